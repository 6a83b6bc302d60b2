//! The numbers of a run.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;
use serde_json::Value;

use crate::batch::Batch;
use crate::journal::Before;

/// So many words for failures are told apart; they come from servers.
const MOST_CODES: usize = 64;
/// The longest word, in characters.
const LONGEST_CODE: usize = 64;

/// What an answer took, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Of prompts.
    pub prompt_tokens: u64,
    /// Of prompts, and not computed anew.
    pub reused_tokens: u64,
    /// Of replies.
    pub completion_tokens: u64,
}

impl Usage {
    /// What an answer's `usage` says, in the words of OpenAI's API (chat and responses) or Anthropic's.
    #[must_use]
    pub fn read(body: &Value) -> Self {
        let Some(usage) = body.get("usage") else { return Self::default() };
        let number = |path: &str| usage.pointer(path).and_then(Value::as_u64).unwrap_or_default();
        // Anthropic's prompts are counted without what came from a cache.
        let cached = number("/cache_read_input_tokens");
        let beside = cached.saturating_add(number("/cache_creation_input_tokens"));
        Self {
            prompt_tokens: number("/prompt_tokens").saturating_add(number("/input_tokens")).saturating_add(beside),
            reused_tokens: number("/prompt_tokens_details/cached_tokens")
                .saturating_add(number("/input_tokens_details/cached_tokens"))
                .saturating_add(cached),
            completion_tokens: number("/completion_tokens").saturating_add(number("/output_tokens")),
        }
    }
}

/// What has come of a batch so far.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Figures {
    /// What stood in the files when this run began.
    pub before: Before,
    /// Requests that this run wrote into the output.
    pub succeeded: u64,
    /// What this run wrote about failures, by what went wrong.
    pub failures: BTreeMap<String, u64>,
    /// Tokens of this run's prompts.
    pub prompt_tokens: u64,
    /// Of those, the ones that were not computed anew.
    pub reused_tokens: u64,
    /// Tokens of this run's replies.
    pub completion_tokens: u64,
    /// How often a request was asked again after a failure.
    pub retries: u64,
    /// How often a request was asked again because there was too much at once in this process.
    pub waits: u64,
    /// Up to where the input is answered, in bytes.
    pub input_bytes: u64,
    /// The most requests that were under way at once.
    pub most_in_flight: usize,
    /// The most requests that were begun and not written.
    pub most_in_window: usize,
    /// The most bytes of answers that waited for those before them.
    pub most_held_bytes: usize,
    /// How long this run has taken, in seconds.
    pub seconds: f64,
}

impl Figures {
    /// What this run wrote about failures.
    #[must_use]
    pub fn failed_now(&self) -> u64 {
        self.failures.values().sum()
    }

    /// All failures of the batch.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.before.failed + self.failed_now()
    }

    /// All that is written.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.before.succeeded + self.succeeded + self.failed()
    }

    /// Tokens of replies in a second of this run.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn tokens_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.completion_tokens as f64 / self.seconds } else { 0.0 }
    }
}

/// Counts while a batch runs; whoever shows progress looks at it.
#[derive(Debug)]
pub struct Meter {
    began: Instant,
    figures: Mutex<Figures>,
}

impl Meter {
    /// Of a batch that begins now.
    #[must_use]
    pub fn of(batch: &Batch) -> Self {
        let figures =
            Figures { before: batch.before().clone(), input_bytes: batch.answered_bytes(), ..Figures::default() };
        Self { began: Instant::now(), figures: Mutex::new(figures) }
    }

    /// The numbers now.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures { seconds: self.began.elapsed().as_secs_f64(), ..self.lock().clone() }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Figures)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One more of a kind. Kinds beyond the bound are one.
pub(crate) fn count(kinds: &mut BTreeMap<String, u64>, code: &str) {
    let known = kinds.len() < MOST_CODES || kinds.contains_key(code);
    *kinds.entry(if known { code } else { "other" }.to_owned()).or_default() += 1;
}

/// A word from a server, within bounds and without what a terminal obeys.
pub(crate) fn shortened(code: &str) -> String {
    code.chars().filter(|c| !c.is_control()).take(LONGEST_CODE).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_are_read_in_each_apis_words() {
        let read = |usage: Value| {
            let Usage { prompt_tokens, reused_tokens, completion_tokens } = Usage::read(&json!({ "usage": usage }));
            (prompt_tokens, reused_tokens, completion_tokens)
        };
        let chat =
            json!({ "prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": { "cached_tokens": 5 } });
        assert_eq!(read(chat), (9, 5, 4));
        let responses =
            json!({ "input_tokens": 9, "output_tokens": 4, "input_tokens_details": { "cached_tokens": 5 } });
        assert_eq!(read(responses), (9, 5, 4));
        let anthropic = json!({ "input_tokens": 3, "output_tokens": 4, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 1 });
        assert_eq!(read(anthropic), (9, 5, 4));
        assert_eq!(read(json!("much")), (0, 0, 0));
        assert_eq!(Usage::read(&json!([])), Usage::default());
    }

    #[test]
    fn kinds_of_failures_are_bounded() {
        let mut kinds = BTreeMap::new();
        for index in 0..1000 {
            count(&mut kinds, &format!("code {index}"));
            count(&mut kinds, "code 0");
        }
        assert_eq!((kinds.len(), kinds["code 0"], kinds["other"]), (MOST_CODES + 1, 1001, 1000 - MOST_CODES as u64));
        assert_eq!(shortened("a\u{1b}[2J"), "a[2J");
    }
}
