//! A stream of answers as chunks of a reply.
//!
//! What ends a reply is a `finish_info` with a reason. The head of the answer comes when the request is queued, the prompt's
//! numbers with the first token.

use std::time::Duration;

use consort_core::{Error, PositionLogprobs, Result, TokenId, TokenLogprob};
use futures_util::stream;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tonic::Streaming;
use vllm_proto::control_client::ControlClient;
use vllm_proto::finish_info::{FinishReason, StopReason};
use vllm_proto::{AbortRequest, CandidateTokenInfo, FinishInfo, GenerateResponse, PromptInfo, SequenceOutput};

use super::Service;
use super::error::About;
use super::request::Text;
use crate::call::{Call, CallPrompt, Chunk, ChunkStream, Finish};
use crate::config::Timeouts;
use crate::http::{best, strange};

/// Tells the server to stop, when it is dropped before the reply was over.
pub(super) struct Abort {
    /// What is needed for it. `None`: there is nothing to stop any more.
    armed: Option<(ControlClient<Service>, String)>,
    runtime: Handle,
    patience: Duration,
}

impl Abort {
    pub(super) fn new(control: ControlClient<Service>, id: String, runtime: Handle, patience: Duration) -> Self {
        Self { armed: Some((control, id)), runtime, patience }
    }

    pub(super) fn disarm(&mut self) {
        self.armed = None;
    }
}

impl Drop for Abort {
    fn drop(&mut self) {
        let Some((mut control, id)) = self.armed.take() else { return };
        let patience = self.patience;
        // The call itself was dropped too, which the server notices, unless something stands between that does not pass
        // it on.
        self.runtime.spawn(async move {
            let request = AbortRequest { request_ids: vec![id] };
            match tokio::time::timeout(patience, control.abort(request)).await {
                Ok(Ok(_)) => {}
                Ok(Err(status)) => tracing::debug!(code = ?status.code(), "a request could not be aborted"),
                Err(_) => tracing::debug!("a request was not aborted in time"),
            }
        });
    }
}

/// Reads answers.
#[derive(Debug)]
pub(super) struct Decoder {
    logprobs: Option<u32>,
    prompt_logprobs: Option<u32>,
    image_token: Option<TokenId>,
    shows_pictures: bool,
    text: Text,
    /// How many tokens may still come.
    left: usize,
    last: Option<TokenId>,
}

impl Decoder {
    pub(super) fn new(call: &Call, image_token: Option<TokenId>, text: Text) -> Self {
        Self {
            logprobs: call.logprobs,
            prompt_logprobs: call.prompt_logprobs,
            image_token,
            shows_pictures: matches!(&call.prompt, CallPrompt::Tokens { pictures, .. } if !pictures.is_empty()),
            text,
            left: call.max_tokens as usize,
            last: None,
        }
    }

    /// An answer as a chunk.
    ///
    /// # Errors
    /// [`ErrorKind::Remote`](consort_core::ErrorKind::Remote) for what the protocol does not have, and for a reply that the
    /// server aborted.
    pub(super) fn read(&mut self, response: GenerateResponse) -> Result<Chunk> {
        let mut chunk = Chunk::default();
        if let Some(prompt) = response.prompt_info {
            chunk.prompt_tokens = Some(prompt.num_prompt_tokens as usize);
            if let Some(count) = self.prompt_logprobs {
                chunk.prompt_logprobs = Some(self.of_prompt(prompt, count)?);
            }
        }
        let Some(output) = response.outputs else { return Ok(chunk) };
        let SequenceOutput { index, text, num_tokens, token_ids, logprobs, candidate_tokens, finish_info, .. } = output;
        if index != 0 {
            return Err(strange("it has a reply that was not asked for"));
        }
        if num_tokens as usize != token_ids.len() {
            return Err(strange("it does not say which tokens came"));
        }
        self.left = self.left.checked_sub(token_ids.len()).ok_or_else(|| strange("the reply is too long"))?;
        self.last = token_ids.last().copied().or(self.last);
        if let Some(count) = self.logprobs {
            chunk.logprobs = rows(&token_ids, &logprobs, candidate_tokens, count)?;
        }
        chunk.ids = token_ids;
        if self.text == Text::Wanted {
            chunk.text = text;
        }
        if let Some(info) = finish_info {
            chunk.cached_tokens = info.num_cached_tokens.map(|count| count as usize);
            chunk.finish = self.finish(info)?;
        }
        Ok(chunk)
    }

    fn finish(&self, info: FinishInfo) -> Result<Option<Finish>> {
        let reason = FinishReason::try_from(info.finish_reason)
            .map_err(|_| strange("it ended for a reason that is not known here"))?;
        let ended_with = |token: TokenId, finish: Finish| {
            if self.last == Some(token) {
                Ok(Some(finish))
            } else {
                Err(strange("the token that ended it is not its last").with_context("token", token.to_string()))
            }
        };
        match (reason, info.stop_reason) {
            (FinishReason::NotFinished, _) => Ok(None),
            (FinishReason::Length, _) => Ok(Some(Finish::Length)),
            (FinishReason::Aborted, _) => {
                Err(Error::new(consort_core::ErrorKind::Remote, "the server aborted the request")
                    .with_backend(crate::NAME))
            }
            (FinishReason::Stop, Some(StopReason::EosTokenId(token))) => ended_with(token, Finish::End),
            (FinishReason::Stop, Some(StopReason::StopTokenId(token))) => ended_with(token, Finish::Token(token)),
            (FinishReason::Stop, Some(StopReason::StopString(string))) => Ok(Some(Finish::String(string))),
            (FinishReason::Stop, None) => Err(strange("it stopped and does not say why")),
        }
    }

    /// One entry for each position of the prompt. The first comes with a number that means nothing, those of pictures with
    /// that of the token that stands for them.
    fn of_prompt(&self, prompt: PromptInfo, count: u32) -> Result<Vec<Option<PositionLogprobs>>> {
        let PromptInfo { num_prompt_tokens, token_ids, logprobs, candidate_tokens, .. } = prompt;
        if token_ids.len() != num_prompt_tokens as usize {
            return Err(strange("it does not say which tokens the prompt has"));
        }
        if self.shows_pictures && self.image_token.is_none() {
            return Err(strange("it does not say which positions are of pictures"));
        }
        let of_picture = |token: TokenId| self.shows_pictures && self.image_token == Some(token);
        let rows = rows(&token_ids, &logprobs, candidate_tokens, count)?;
        let entry = |(at, row): (usize, PositionLogprobs)| (at > 0 && !of_picture(row.chosen.token)).then_some(row);
        Ok(rows.into_iter().enumerate().map(entry).collect())
    }
}

/// One entry for each token.
fn rows(
    ids: &[TokenId],
    logprobs: &[f32],
    candidates: Vec<CandidateTokenInfo>,
    count: u32,
) -> Result<Vec<PositionLogprobs>> {
    // Where no candidates are wanted, an empty list of them is as good as a list of empty ones.
    let fits = candidates.len() == ids.len() || (count == 0 && candidates.is_empty());
    if logprobs.len() != ids.len() || !fits {
        return Err(strange("it has not one log probability for each token"));
    }
    let mut candidates = candidates.into_iter();
    let entry = |(&token, &logprob): (&TokenId, &f32)| {
        let top = candidates.next().unwrap_or_default().tokens;
        let top: Vec<_> = top.iter().map(|t| TokenLogprob { token: t.id, logprob: t.logprob }).collect();
        if logprob.is_nan() || top.iter().any(|candidate| candidate.logprob.is_nan()) {
            return Err(strange("a log probability is no number"));
        }
        Ok(PositionLogprobs { chosen: TokenLogprob { token, logprob }, top: unique(best(top, u32::MAX), count) })
    };
    ids.iter().zip(logprobs).map(entry).collect()
}

/// The first of them, each token once.
fn unique(top: Vec<TokenLogprob>, count: u32) -> Vec<TokenLogprob> {
    let mut seen = std::collections::BTreeSet::new();
    top.into_iter().filter(|candidate| seen.insert(candidate.token)).take(count as usize).collect()
}

struct Reading {
    messages: Streaming<GenerateResponse>,
    decoder: Decoder,
    abort: Abort,
    about: About,
    timeouts: Timeouts,
    /// When the next token is too late.
    deadline: Instant,
    began: bool,
    ended: bool,
}

/// Chunks of a reply. Dropping them before their end aborts it.
pub(super) fn chunks(
    messages: Streaming<GenerateResponse>,
    decoder: Decoder,
    abort: Abort,
    about: About,
    timeouts: Timeouts,
) -> ChunkStream {
    let deadline = after(timeouts.first_token);
    let reading = Reading { messages, decoder, abort, about, timeouts, deadline, began: false, ended: false };
    Box::pin(stream::unfold(reading, |mut reading| async move {
        if reading.ended {
            return None;
        }
        let next = reading.next().await;
        reading.ended = !matches!(&next, Ok(Chunk { finish: None, .. }));
        if matches!(&next, Ok(Chunk { finish: Some(_), .. })) {
            reading.abort.disarm();
        }
        Some((next, reading))
    }))
}

/// That time from now. A patience without end is a year.
fn after(patience: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + patience.min(YEAR)
}

impl Reading {
    async fn next(&mut self) -> Result<Chunk> {
        loop {
            let message = match tokio::time::timeout_at(self.deadline, self.messages.message()).await {
                Ok(Ok(Some(message))) => message,
                Ok(Ok(None)) => {
                    return Err(self.about.remote("the reply was not finished: it ended without a reason".into()));
                }
                Ok(Err(status)) => return Err(self.about.of_status(status)),
                Err(_) => return Err(self.silent()),
            };
            let chunk =
                self.decoder.read(message).map_err(|error| error.with_context("endpoint", &*self.about.endpoint))?;
            if !chunk.ids.is_empty() {
                self.began = true;
                self.deadline = after(self.timeouts.token);
            }
            // Messages without anything new are no token, and give no time.
            if chunk != Chunk::default() {
                return Ok(chunk);
            }
        }
    }

    fn silent(&self) -> Error {
        let (what, patience) = if self.began {
            ("no further token came", self.timeouts.token)
        } else {
            ("no token came", self.timeouts.first_token)
        };
        let patience = patience.as_secs_f64();
        self.about.remote(format!("{what} within {patience} s; the server may be paused or overloaded"))
    }
}
