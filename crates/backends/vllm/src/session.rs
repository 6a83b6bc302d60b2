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
use crate::transport::UNREACHED;

/// What all requests share.
pub(crate) struct Crossing {
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) retries: Retries,
    pub(crate) budget: Budget,
    /// How long a request waits for servers that are left alone.
    pub(crate) patience: Duration,
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
    /// When the prompt has opened the model's reasoning and the structure begins behind it.
    pub(crate) reasoning: Option<Reasoning>,
    pub(crate) priority: Option<i32>,
    pub(crate) salt: String,
    pub(crate) bypass: bool,
    /// Which server is asked first: equal for requests that share a prefix.
    pub(crate) affinity: [u8; 32],
    pub(crate) deadlines: Deadlines,
}

/// How the model's reasoning ends.
#[derive(Debug, Clone)]
pub(crate) struct Reasoning {
    /// The token that ends it.
    pub(crate) end: TokenId,
    /// Tokens that are line ends, each with how many: some stand between reasoning and answer, where the model puts them.
    pub(crate) line_ends: Vec<(TokenId, u32)>,
}

/// The family's template puts so many line ends between reasoning and answer.
const MOST_LINE_ENDS: u32 = 2;

/// A request on its way.
pub(crate) struct Session {
    pub(crate) crossing: Arc<Crossing>,
    pub(crate) wish: Wish,
    pub(crate) reply: Reply,
    /// Until it is closed.
    pub(crate) entry: Option<Entry>,
    pub(crate) arrived: Instant,
    pub(crate) events: Sender<Result<Event>>,
}

/// How an attempt ended that did not fail.
enum Attempt {
    /// The reply is over.
    Ended,
    /// This phase is over; that one is asked for next.
    Next(Phase),
    /// Nobody reads it any more.
    Abandoned,
}

/// Where a reply stands whose structure begins after its reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Reasoning,
    /// So many line ends may yet come before the structure.
    LineEnds(u32),
    Answer,
}

impl Session {
    /// Sees the request through. Dropping this future cancels it: the connection is closed, and the server stops.
    pub(crate) async fn run(mut self) {
        let outcome = self.attempts().await;
        // An entry that is left is dropped, which says that nobody reads the reply any more.
        if let Err((error, late)) = outcome {
            if let Some(entry) = self.entry.take() {
                entry.failed(&error, late);
            }
            // Nobody may be there to read it.
            let _ = self.events.send(Err(error)).await;
        }
    }

    async fn attempts(&mut self) -> Result<(), (Error, Option<Deadline>)> {
        let mut tried: Vec<usize> = Vec::new();
        let mut reloaded = false;
        let mut attempt = 1;
        let mut phase = if self.wish.reasoning.is_some() { Phase::Reasoning } else { Phase::Answer };
        let mut first_error: Option<Error> = None;
        let mut waited = Duration::ZERO;
        loop {
            let chosen = self.crossing.replicas.choose(&self.wish.affinity, &tried, Instant::now());
            let (index, visit) = match chosen {
                Ok(chosen) => chosen,
                // A server that is left alone is waited for as long as one that is slow to answer.
                Err(_) if waited < self.crossing.patience => {
                    self.within(tokio::time::sleep(LOOK)).await?;
                    waited += LOOK;
                    continue;
                }
                // Why the attempts failed says more than that there is nobody left.
                Err(error) => return Err((first_error.unwrap_or(error), None)),
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
                    return Ok(());
                }
                Ok(Attempt::Next(next)) => {
                    phase = next;
                    continue;
                }
                Ok(Attempt::Abandoned) => return Ok(()),
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
            // A reply that was cut says little of the others there; a server that cannot be reached is left alone at once, and
            // its health tells the rest.
            if error.operation() == UNREACHED {
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
                replica.learn(facts)
            }
        };
        let call = Arc::new(self.call(&facts.model, phase));
        let mut chunks = flat(self.within(replica.transport.generate(&call)).await)?;
        loop {
            let Some(chunk) = self.within(chunks.next()).await? else {
                let message = "the reply was not finished: it ended without a finish reason";
                return Err((Error::new(ErrorKind::Remote, message).with_backend(crate::NAME), None));
            };
            let mut chunk = chunk.map_err(|error| (error, None))?;
            if self.reply.is_none_wanted() {
                chunk.ids.clear();
                chunk.logprobs.clear();
                chunk.text.clear();
                chunk.finish = chunk.finish.map(|_| Finish::Length);
            }
            let next = self.next_phase(&mut chunk, phase);
            if let Some(Phase::Answer) = next.filter(|_| matches!(phase, Phase::LineEnds(_)) && chunk.ids.is_empty()) {
                // What came was no line end: it was only looked at.
                return Ok(Attempt::Next(Phase::Answer));
            }
            if next.is_some() && self.reply.room() as usize <= chunk.ids.len() {
                chunk.finish = Some(Finish::Length);
            }
            self.check_clamp(&chunk);
            let now = Instant::now();
            let heard = self.reply.hear(chunk, now);
            let ended = heard.ended;
            if let Some(entry) = &mut self.entry {
                entry.tokens(heard.tokens, self.arrived, now);
            }
            // The books are made before the reader learns of the end.
            if let Some(entry) = self.entry.take_if(|_| ended) {
                let usage = self.reply.usage();
                entry.finished(usage.prompt_tokens, usage.reused_tokens);
            }
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
            if let Some(next) = next {
                return Ok(Attempt::Next(next));
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
        // A timer may go off a millisecond late, in which an answer can come.
        if at <= Instant::now() {
            return Err((late(which), Some(which)));
        }
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
            Phase::Reasoning => {
                stop_tokens.extend(wish.reasoning.as_ref().map(|reasoning| reasoning.end));
                None
            }
            Phase::LineEnds(_) => None,
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
            // vLLM reads no prompt to which it may say nothing.
            max_tokens: if matches!(phase, Phase::LineEnds(_)) { 1 } else { self.reply.room().max(1) },
            logprobs: wish.logprobs,
            prompt_logprobs: wish.prompt_logprobs.filter(|_| said == 0),
            structure,
            priority: wish.priority,
            salt: wish.salt.clone(),
            bypass: wish.bypass,
        }
    }

    /// Which phase comes after this chunk, if this one is over. Then the chunk does not end the reply, and one that was only
    /// looked at is emptied.
    fn next_phase(&self, chunk: &mut Chunk, phase: Phase) -> Option<Phase> {
        let reasoning = self.wish.reasoning.as_ref()?;
        match phase {
            Phase::Reasoning if chunk.finish == Some(Finish::Token(reasoning.end)) => {
                chunk.finish = None;
                Some(Phase::LineEnds(MOST_LINE_ENDS))
            }
            Phase::LineEnds(most) => {
                chunk.finish.take()?;
                let count = match chunk.ids.as_slice() {
                    [id] => reasoning.line_ends.iter().find(|(token, _)| token == id).map(|(_, count)| *count),
                    _ => None,
                };
                match count.filter(|&count| count <= most) {
                    Some(count) if count < most => Some(Phase::LineEnds(most - count)),
                    Some(_) => Some(Phase::Answer),
                    None => {
                        *chunk = Chunk::default();
                        Some(Phase::Answer)
                    }
                }
            }
            Phase::Reasoning | Phase::Answer => None,
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
    fn check_clamp(&self, chunk: &Chunk) {
        if chunk.finish == Some(Finish::Length) {
            let (came, asked) = (chunk.ids.len(), self.reply.room());
            if came < asked as usize {
                tracing::warn!(asked, came, "the server ended the reply before `max_tokens`: its context is full");
            }
        }
    }
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

/// How often it is looked whether a server can be asked again.
const LOOK: Duration = Duration::from_millis(20);

/// How long a stream of events may be ahead of its reader, in events.
pub(crate) const AHEAD: usize = 64;

/// The longest that a question outside of a request waits for the task that answers it, over its own time limits.
pub(crate) const GRACE: Duration = Duration::from_secs(1);
