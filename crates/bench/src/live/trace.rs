//! One request as it went: a monotonic time for each sign of life.

use std::time::{Duration, Instant};

use super::target::{Beat, Counted};

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// By itself.
    Finished(Counted),
    /// We cancelled it, as the workload says.
    Cancelled,
    /// With an error.
    Failed(String),
}

/// One request as it went.
#[derive(Debug, Clone)]
pub(super) struct Trace {
    pub(super) group: String,
    pub(super) start: Instant,
    pub(super) end: Instant,
    /// When tokens came, and how many as far as the target says.
    pub(super) beats: Vec<(Instant, u32)>,
    pub(super) outcome: Outcome,
}

impl Trace {
    /// Follows a reply to its end, or to where the workload cancels it.
    pub(super) fn follow(
        group: &str,
        cancel_after: Option<u32>,
        start: Instant,
        reply: consort_core::Result<super::target::Beats>,
    ) -> Self {
        let mut beats = Vec::new();
        let mut tokens = 0_u32;
        let outcome = match reply {
            Err(error) => Outcome::Failed(error.to_string()),
            Ok(reply) => 'outcome: {
                for beat in reply {
                    match beat {
                        Ok(Beat::Tokens(count)) => {
                            beats.push((Instant::now(), count));
                            tokens = tokens.saturating_add(count);
                            if cancel_after.is_some_and(|most| tokens >= most) {
                                break 'outcome Outcome::Cancelled;
                            }
                        }
                        Ok(Beat::End(counted)) => break 'outcome Outcome::Finished(counted),
                        Err(error) => break 'outcome Outcome::Failed(error.to_string()),
                    }
                }
                Outcome::Failed("the reply ended without an end".into())
            }
        };
        // The reply was dropped above, so a cancelled request is one here.
        Self { group: group.to_owned(), start, end: Instant::now(), beats, outcome }
    }

    /// From asking to the first token.
    pub(super) fn first_token(&self) -> Option<Duration> {
        self.beats.first().map(|(at, _)| at.duration_since(self.start))
    }

    /// Tokens of the reply: what the target counts, else what came.
    pub(super) fn tokens(&self) -> u64 {
        let came = || self.beats.iter().map(|(_, count)| u64::from(*count)).sum();
        match &self.outcome {
            Outcome::Finished(Counted { completion: Some(count), .. }) => *count,
            _ => came(),
        }
    }

    /// Times from one token to the next, in seconds. Where an event brought n tokens, each of them took an nth of the time;
    /// where a server does not say how many an event brought, all events are taken to have brought the same.
    pub(super) fn gaps(&self, into: &mut Vec<f64>) {
        let came: u64 = self.beats.iter().map(|(_, count)| u64::from(*count)).sum();
        let hidden = self.tokens() as f64 / came.max(1) as f64;
        for pair in self.beats.windows(2) {
            let [(before, _), (at, count)] = pair else { continue };
            let tokens = f64::from(*count) * hidden.max(1.0);
            let each = at.duration_since(*before).as_secs_f64() / tokens;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A handful of tokens.
            into.extend(std::iter::repeat_n(each, tokens.round().max(1.0) as usize));
        }
    }

    /// Tokens a second after the first event's.
    pub(super) fn rate(&self) -> Option<f64> {
        let ((first, count), (last, _)) = (self.beats.first()?, self.beats.last()?);
        let seconds = last.duration_since(*first).as_secs_f64();
        let came: u64 = self.beats.iter().map(|(_, count)| u64::from(*count)).sum();
        let hidden = (self.tokens() as f64 / came.max(1) as f64).max(1.0);
        let after = self.tokens() as f64 - f64::from(*count) * hidden;
        (seconds > 0.0 && after > 0.0).then(|| after / seconds)
    }
}
