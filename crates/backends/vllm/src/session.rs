//! One request, from the first attempt to its end.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consort_core::{Deadlines, Error, ErrorKind, ErrorStatus, Event, Result, Sampling, Structure, TokenId};
use futures_util::StreamExt as _;
use tokio::sync::mpsc::Sender;

use crate::adapters::Bound;
use crate::books::{Deadline, Entry, after};
use crate::call::{Call, CallPrompt, Chunk, Finish};
use crate::config::{Resume, Retries};
use crate::replica::{Replica, Replicas};
use crate::reply::Reply;
use crate::retry::{Budget, pause};

/// What all requests share.
pub(crate) struct Crossing {
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) retries: Retries,
    pub(crate) budget: Budget,
}

/// What a request asks of whichever server answers.
pub(crate) struct Wish {
    pub(crate) id: String,
    pub(crate) prompt: CallPrompt,
    pub(crate) adapter: Option<Bound>,
    pub(crate) sampling: Sampling,
    /// For the server to look for.
    pub(crate) stop_strings: Vec<String>,
    pub(crate) stop_tokens: Vec<TokenId>,
    pub(crate) min_tokens: u32,
    pub(crate) ignore_end: bool,
    pub(crate) logprobs: Option<u32>,
    pub(crate) prompt_logprobs: Option<u32>,
    pub(crate) structure: Option<Structure>,
    /// The token that ends the model's reasoning, when the prompt has opened it and the structure begins behind it.
    pub(crate) reasoning_end: Option<TokenId>,
    pub(crate) priority: Option<i32>,
    pub(crate) salt: String,
    pub(crate) bypass: bool,
    /// Which server is asked first: equal for requests that share a prefix.
    pub(crate) affinity: [u8; 32],
    pub(crate) deadlines: Deadlines,
}

/// A request on its way.
pub(crate) struct Session {
    pub(crate) crossing: Arc<Crossing>,
    pub(crate) wish: Wish,
    pub(crate) reply: Reply,
    pub(crate) entry: Entry,
    pub(crate) arrived: Instant,
    pub(crate) events: Sender<Result<Event>>,
}

/// How an attempt ended that did not fail.
enum Attempt {
    /// The reply is over.
    Ended,
    /// The reasoning is over; the answer is asked for next.
    Reasoned,
    /// Nobody reads it any more.
    Abandoned,
}

/// Where a reply stands whose structure begins after its reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Reasoning(TokenId),
    Answer,
}

impl Session {
    /// Sees the request through. Dropping this future cancels it: the connection is closed, and the server stops.
    pub(crate) async fn run(mut self) {
        let outcome = self.attempts().await;
        let Self { entry, reply, events, .. } = self;
        match outcome {
            Ok(true) => entry.finished(reply.usage().prompt_tokens, reply.usage().reused_tokens),
            // The entry is dropped, which says so.
            Ok(false) => {}
            Err((error, late)) => {
                entry.failed(&error, late);
                // Nobody may be there to read it.
                let _ = events.send(Err(error)).await;
            }
        }
    }

    /// Whether the reply was read to its end.
    async fn attempts(&mut self) -> Result<bool, (Error, Option<Deadline>)> {
        let mut tried: Vec<usize> = Vec::new();
        let mut reloaded = false;
        let mut attempt = 1;
        let mut phase = self.wish.reasoning_end.map_or(Phase::Answer, Phase::Reasoning);
        let mut first_error: Option<Error> = None;
        loop {
            let chosen = self.crossing.replicas.choose(&self.wish.affinity, &tried, Instant::now());
            let (index, visit) = match (chosen, first_error.take()) {
                (Ok(chosen), before) => {
                    first_error = before;
                    chosen
                }
                // Why the attempts failed says more than that there is nobody left.
                (Err(_), Some(error)) | (Err(error), None) => return Err((error, None)),
            };
            if tried.contains(&index) {
                let rest = pause(&self.crossing.retries, attempt - 1, chance(&self.wish.id, attempt));
                self.within(tokio::time::sleep(rest)).await?;
            }
            let replica = Arc::clone(&visit.replica);
            let error = match self.attempt(&replica, phase).await {
                Ok(Attempt::Ended) => {
                    replica.works();
                    self.crossing.budget.earn();
                    return Ok(true);
                }
                Ok(Attempt::Reasoned) => {
                    phase = Phase::Answer;
                    continue;
                }
                Ok(Attempt::Abandoned) => return Ok(false),
                Err((error, Some(late))) => return Err((error, Some(late))),
                Err((error, None)) => error,
            };
            drop(visit);
            // A server that was started anew has lost its adapters, and says so as it would of a model.
            let lost =
                self.wish.adapter.as_ref().filter(|_| error.kind() == ErrorKind::NotFound && !self.reply.has_started());
            if let Some(bound) = lost.filter(|_| !reloaded) {
                tracing::info!(endpoint = %replica.name, adapter = %bound.name, "the server has lost the adapter; it is loaded again");
                replica.forget(&bound.name).await;
                reloaded = true;
                continue;
            }
            if error.kind() == ErrorKind::Remote && error.status() == ErrorStatus::Temporary {
                replica.fails(&error, Instant::now());
            }
            let temporary = error.status() == ErrorStatus::Temporary
                && matches!(error.kind(), ErrorKind::Remote | ErrorKind::Overloaded);
            let again = temporary
                && attempt < self.crossing.retries.attempts
                && (!self.reply.has_started() || self.can_resume())
                && self.crossing.budget.spend();
            if !again {
                let error = if attempt > 1 { error.with_context("attempts", attempt.to_string()) } else { error };
                return Err((error, None));
            }
            tracing::debug!(endpoint = %replica.name, %error, attempt, "the request is tried again");
            tried.push(index);
            attempt += 1;
            first_error = Some(error);
        }
    }

    async fn attempt(&mut self, replica: &Arc<Replica>, phase: Phase) -> Result<Attempt, (Error, Option<Deadline>)> {
        if let Some(bound) = self.wish.adapter.clone() {
            flat(self.within(replica.need(&bound.name, &bound.path)).await)?;
        }
        let facts = match replica.facts() {
            Some(facts) => facts,
            // It was not there when the backend was made.
            None => {
                let facts = flat(self.within(replica.transport.probe()).await)?;
                replica.learn(facts.clone());
                facts
            }
        };
        let call = self.call(&facts.model, phase);
        let mut chunks = flat(self.within(replica.transport.generate(&call)).await)?;
        loop {
            let Some(chunk) = self.within(chunks.next()).await? else {
                let message = "the reply was not finished: it ended without a finish reason";
                return Err((Error::new(ErrorKind::Remote, message).with_backend(crate::NAME), None));
            };
            let mut chunk = chunk.map_err(|error| (error, None))?;
            let reasoned = end_of_reasoning(&mut chunk, phase);
            self.check_clamp(&chunk, call.max_tokens);
            let now = Instant::now();
            let heard = self.reply.hear(chunk, now);
            self.entry.tokens(heard.tokens, self.arrived, now);
            let ended = heard.ended;
            for event in heard.events {
                let sent = self.events.send(Ok(event));
                // A reader that is slow holds up its own reply, and the connection with it.
                let deadline = after(self.arrived, self.wish.deadlines.total);
                let sent = match deadline {
                    None => sent.await,
                    Some(at) => match tokio::time::timeout_at(at.into(), sent).await {
                        Ok(sent) => sent,
                        Err(_) => return Err((late(Deadline::Total), Some(Deadline::Total))),
                    },
                };
                if sent.is_err() {
                    return Ok(Attempt::Abandoned);
                }
            }
            if ended {
                return Ok(Attempt::Ended);
            }
            if reasoned {
                return Ok(Attempt::Reasoned);
            }
        }
    }

    /// Waits, but not beyond the request's deadlines.
    async fn within<T>(&self, future: impl Future<Output = T>) -> Result<T, (Error, Option<Deadline>)> {
        let first = after(self.arrived, self.wish.deadlines.first_token)
            .filter(|_| self.reply.usage().time_to_first_token.is_none());
        let total = after(self.arrived, self.wish.deadlines.total);
        let (at, which) = match (first, total) {
            (Some(first), Some(total)) if total < first => (total, Deadline::Total),
            (Some(first), _) => (first, Deadline::FirstToken),
            (None, Some(total)) => (total, Deadline::Total),
            (None, None) => return Ok(future.await),
        };
        tokio::time::timeout_at(at.into(), future).await.map_err(|_| (late(which), Some(which)))
    }

    /// The request as this server is asked it, from where the reply stands.
    fn call(&self, model: &str, phase: Phase) -> Call {
        let wish = &self.wish;
        let said = self.reply.said();
        let mut prompt = wish.prompt.clone();
        if let CallPrompt::Tokens { ids, .. } = &mut prompt {
            ids.extend_from_slice(said);
        }
        let adapter = wish.adapter.as_ref().map(|bound| bound.name.clone());
        let mut stop_tokens = wish.stop_tokens.clone();
        let structure = match phase {
            Phase::Reasoning(end) => {
                stop_tokens.push(end);
                None
            }
            Phase::Answer => wish.structure.clone(),
        };
        let said = u32::try_from(said.len()).unwrap_or(u32::MAX);
        Call {
            // A server may not have done with the attempt before.
            id: if said == 0 { wish.id.clone() } else { format!("{}-{said}", wish.id) },
            model: adapter.clone().unwrap_or_else(|| model.to_owned()),
            adapter,
            prompt,
            sampling: wish.sampling.clone(),
            stop_strings: wish.stop_strings.clone(),
            stop_tokens,
            min_tokens: wish.min_tokens.saturating_sub(said),
            ignore_end: wish.ignore_end,
            max_tokens: self.reply.room(),
            logprobs: wish.logprobs,
            prompt_logprobs: wish.prompt_logprobs.filter(|_| said == 0),
            structure,
            priority: wish.priority,
            salt: wish.salt.clone(),
            bypass: wish.bypass,
        }
    }

    /// Whether another attempt can continue the reply from its tokens as if nothing had happened.
    fn can_resume(&self) -> bool {
        let wish = &self.wish;
        let penalties = &wish.sampling.penalties;
        self.crossing.retries.resume == Resume::ByTokens
            && matches!(wish.prompt, CallPrompt::Tokens { .. })
            // The seed's place is lost, and so are counts of what was said.
            && wish.sampling.temperature == 0.0
            && penalties.presence == 0.0
            && penalties.frequency == 0.0
            && wish.structure.is_none()
            && self.reply.shows_text_itself()
            && self.reply.room() > 0
    }

    /// vLLM cuts `max_tokens` in silence where the context ends. It is bounded here before, so this is a server whose
    /// context is shorter than it says.
    fn check_clamp(&self, chunk: &Chunk, asked: u32) {
        if chunk.finish == Some(Finish::Length) {
            let came = self.reply.said().len() + chunk.ids.len();
            if came < asked as usize {
                tracing::warn!(asked, came, "the server ended the reply before `max_tokens`: its context is full");
            }
        }
    }
}

/// Whether this chunk ends the model's reasoning; then it does not end the reply.
fn end_of_reasoning(chunk: &mut Chunk, phase: Phase) -> bool {
    let Phase::Reasoning(end) = phase else { return false };
    let reasoned = chunk.finish == Some(Finish::Token(end));
    if reasoned {
        chunk.finish = None;
    }
    reasoned
}

fn late(which: Deadline) -> Error {
    let what = match which {
        Deadline::FirstToken => "the first token did not come in time",
        Deadline::Total => "the reply did not end in time",
    };
    Error::new(ErrorKind::DeadlineExceeded, what).with_backend(crate::NAME)
}

fn flat<T>(result: Result<Result<T>, (Error, Option<Deadline>)>) -> Result<T, (Error, Option<Deadline>)> {
    result.and_then(|inner| inner.map_err(|error| (error, None)))
}

/// A number between 0 and 1 that requests have each to themselves.
fn chance(id: &str, attempt: u32) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(id.as_bytes());
    hasher.update(&attempt.to_le_bytes());
    let bytes = hasher.finalize();
    let number =
        u32::from_le_bytes([bytes.as_bytes()[0], bytes.as_bytes()[1], bytes.as_bytes()[2], bytes.as_bytes()[3]]);
    f64::from(number) / f64::from(u32::MAX)
}

/// How long a stream of events may be ahead of its reader, in events.
pub(crate) const AHEAD: usize = 64;

/// The longest that a question outside of a request waits for the task that answers it, over its own time limits.
pub(crate) const GRACE: Duration = Duration::from_secs(1);
