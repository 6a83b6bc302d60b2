//! Numbers of the server: by persona, and of its connections. The backend keeps its own.

mod exposition;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use consort_core::{Histogram, Usage};

use crate::telemetry::{Closing, ReplySpan, RequestSpan};

pub(crate) use self::exposition::render;

/// How a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// By itself, or at a limit.
    Finished,
    /// Its client went away.
    Cancelled,
    /// With an error.
    Failed,
    /// It was none: there was no room for it.
    Refused,
}

/// The numbers of one persona.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Replies that are waiting or being written.
    pub(crate) active: u64,
    pub(crate) finished: u64,
    pub(crate) cancelled: u64,
    pub(crate) failed: u64,
    /// Requests that were refused: their persona's share was taken, or the queue was full.
    pub(crate) refused: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) reused_tokens: u64,
    pub(crate) completion_tokens: u64,
    /// From a request's arrival to the first token of its reply.
    pub(crate) first_token: Histogram,
    /// From one piece of a reply to the next.
    pub(crate) inter_token: Histogram,
    /// From a request's arrival to the end of its reply.
    pub(crate) duration: Histogram,
}

/// One persona's numbers, counted from several replies at once.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    counts: Mutex<Counts>,
}

impl Meter {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn counts(&self) -> Counts {
        *self.lock()
    }

    pub(crate) fn refused(&self) {
        self.lock().refused += 1;
    }

    /// Begins to count a reply of `persona` to a request that came at `arrived`.
    pub(crate) fn reply(self: &Arc<Self>, persona: &str, arrived: Instant) -> ReplyMeter {
        self.lock().active += 1;
        ReplyMeter {
            meter: Arc::clone(self),
            persona: persona.to_owned(),
            arrived,
            last: None,
            usage: Usage::default(),
            outcome: Outcome::Cancelled,
            reason: None,
            span: RequestSpan::current().reply(persona),
        }
    }
}

/// Counts one reply. One that is dropped before its end was cancelled.
#[derive(Debug)]
pub(crate) struct ReplyMeter {
    meter: Arc<Meter>,
    persona: String,
    arrived: Instant,
    last: Option<Instant>,
    usage: Usage,
    outcome: Outcome,
    reason: Option<&'static str>,
    span: ReplySpan,
}

impl ReplyMeter {
    /// The prompt is in.
    pub(crate) fn started(&mut self, usage: Usage) {
        self.usage = usage;
        self.span.started(usage);
    }

    /// Tokens came.
    pub(crate) fn tokens(&mut self, count: usize) {
        let now = Instant::now();
        self.usage.completion_tokens += count;
        let mut counts = self.meter.lock();
        match self.last.replace(now) {
            None => {
                self.span.first_token();
                counts.first_token.record(now.saturating_duration_since(self.arrived));
            }
            Some(last) => counts.inter_token.record(now.saturating_duration_since(last)),
        }
    }

    /// What the reply has taken so far.
    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// Why the reply ended by itself.
    pub(crate) fn because(&mut self, reason: &'static str) {
        self.reason = Some(reason);
    }

    /// The reply is over.
    pub(crate) fn ended(&mut self, outcome: Outcome, usage: Usage) {
        (self.outcome, self.usage) = (outcome, usage);
    }
}

impl Drop for ReplyMeter {
    fn drop(&mut self) {
        let mut counts = self.meter.lock();
        counts.active = counts.active.saturating_sub(1);
        *match self.outcome {
            Outcome::Finished => &mut counts.finished,
            Outcome::Cancelled => &mut counts.cancelled,
            Outcome::Failed => &mut counts.failed,
            Outcome::Refused => {
                counts.refused += 1;
                return;
            }
        } += 1;
        counts.prompt_tokens += self.usage.prompt_tokens as u64;
        counts.reused_tokens += self.usage.reused_tokens as u64;
        counts.completion_tokens += self.usage.completion_tokens as u64;
        counts.duration.record(self.arrived.elapsed());
        drop(counts);
        let Usage { prompt_tokens, reused_tokens, completion_tokens, .. } = self.usage;
        let outcome = match self.outcome {
            Outcome::Finished => "finished",
            Outcome::Cancelled => "cancelled",
            Outcome::Failed => "failed",
            Outcome::Refused => "refused",
        };
        self.span.end(Closing { outcome, reason: self.reason, usage: self.usage });
        let persona = &self.persona;
        tracing::info!(%persona, outcome, prompt_tokens, reused_tokens, completion_tokens, "reply");
    }
}

/// Numbers of the HTTP side.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Requests by route and status.
    answers: Mutex<BTreeMap<(String, u16), u64>>,
    pub(crate) requests: AtomicU64,
    pub(crate) connections: AtomicU64,
}

impl Traffic {
    /// Counts an answer. Routes are the server's own patterns, so there are few.
    pub(crate) fn answered(&self, route: &str, status: u16) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry((route.to_owned(), status)).or_default() += 1;
    }

    pub(crate) fn answers(&self) -> BTreeMap<(String, u16), u64> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A gauge that is one higher while this lives.
#[derive(Debug)]
pub(crate) struct Counted(Arc<Traffic>, fn(&Traffic) -> &AtomicU64);

impl Counted {
    pub(crate) fn new(traffic: &Arc<Traffic>, gauge: fn(&Traffic) -> &AtomicU64) -> Self {
        gauge(traffic).fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(traffic), gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.1)(&self.0).fetch_sub(1, Ordering::Relaxed);
    }
}

/// What an exposition shows.
pub(crate) struct Snapshot {
    pub(crate) version: &'static str,
    pub(crate) model: String,
    pub(crate) backend: &'static str,
    pub(crate) device: String,
    pub(crate) uptime: Duration,
    pub(crate) personas: Vec<(String, Counts)>,
    pub(crate) answers: BTreeMap<(String, u16), u64>,
    pub(crate) requests: u64,
    pub(crate) connections: u64,
    pub(crate) engine: consort_core::Metrics,
    /// `None` where the backend is one by itself.
    pub(crate) sides: Option<consort_core::SidesReport>,
    /// `None` where the backend does not tell.
    pub(crate) memory: Option<consort_core::MemoryReport>,
    /// Name, bytes and whether the engine holds it now.
    pub(crate) adapters: Vec<(String, u64, bool)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_counted_once_however_it_ends() {
        let meter = Arc::new(Meter::default());
        let usage = Usage { prompt_tokens: 5, reused_tokens: 2, completion_tokens: 3, ..Usage::default() };
        let mut done = meter.reply("ada", Instant::now());
        assert_eq!(meter.counts().active, 1);
        done.started(Usage { prompt_tokens: 5, ..Usage::default() });
        done.tokens(1);
        done.tokens(1);
        assert_eq!(done.usage().completion_tokens, 2);
        done.ended(Outcome::Finished, usage);
        drop(done);
        let mut gone = meter.reply("ada", Instant::now());
        gone.tokens(4);
        drop(gone);
        let mut refused = meter.reply("ada", Instant::now());
        refused.ended(Outcome::Refused, Usage::default());
        drop(refused);
        let counts = meter.counts();
        assert_eq!(counts.refused, 1);
        assert_eq!((counts.active, counts.finished, counts.cancelled, counts.failed), (0, 1, 1, 0));
        assert_eq!((counts.prompt_tokens, counts.reused_tokens, counts.completion_tokens), (5, 2, 7));
        assert_eq!((counts.first_token.count, counts.inter_token.count, counts.duration.count), (2, 1, 2));
    }
}
