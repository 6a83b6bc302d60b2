//! Numbers of a backend that any front end can export.

use std::time::Duration;

use serde::Serialize;

use crate::{ErrorKind, Priority};

/// A number for each priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ByPriority {
    /// [`Priority::Batch`].
    pub batch: u64,
    /// [`Priority::Background`].
    pub background: u64,
    /// [`Priority::Interactive`].
    pub interactive: u64,
    /// [`Priority::Realtime`].
    pub realtime: u64,
}

impl ByPriority {
    /// The number of one priority.
    #[must_use]
    pub fn get(&self, priority: Priority) -> u64 {
        match priority {
            Priority::Batch => self.batch,
            Priority::Background => self.background,
            Priority::Interactive => self.interactive,
            Priority::Realtime => self.realtime,
        }
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, priority: Priority) -> &mut u64 {
        match priority {
            Priority::Batch => &mut self.batch,
            Priority::Background => &mut self.background,
            Priority::Interactive => &mut self.interactive,
            Priority::Realtime => &mut self.realtime,
        }
    }

    /// All priorities together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.batch + self.background + self.interactive + self.realtime
    }
}

/// Requests that ended with an error, by what went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Failures {
    /// They did not fit into memory or into the engine, even alone: [`ErrorKind::OutOfMemory`], [`ErrorKind::Overloaded`].
    pub memory: u64,
    /// Their deadline passed: [`ErrorKind::DeadlineExceeded`].
    pub deadline: u64,
    /// The engine lost their sequence more often than it is computed anew: [`ErrorKind::Poisoned`].
    pub poisoned: u64,
    /// What they asked for turned out to be wrong: a picture, a grammar, a token that the engine refuses.
    pub invalid: u64,
    /// Everything else: a defect of ours or of an engine.
    pub engine: u64,
}

impl Failures {
    /// Counts an error of this kind.
    pub fn count(&mut self, kind: ErrorKind) {
        *match kind {
            ErrorKind::OutOfMemory | ErrorKind::Overloaded => &mut self.memory,
            ErrorKind::DeadlineExceeded => &mut self.deadline,
            ErrorKind::Poisoned => &mut self.poisoned,
            ErrorKind::Unsupported
            | ErrorKind::InvalidTokenizer
            | ErrorKind::InvalidTemplate
            | ErrorKind::InvalidImage
            | ErrorKind::InvalidAdapter
            | ErrorKind::InvalidGrammar
            | ErrorKind::InvalidRequest
            | ErrorKind::NotFound => &mut self.invalid,
            _ => &mut self.engine,
        } += 1;
    }

    /// All classes together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.memory + self.deadline + self.poisoned + self.invalid + self.engine
    }
}

/// How often a duration fell into which range. The bounds are the same for all histograms and never change, so that
/// histograms of several backends, or of one at two times, can be added and subtracted bucket by bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Histogram {
    /// `buckets[i]` counts durations above `BOUNDS[i - 1]` and at most `BOUNDS[i]`; the last one counts what is longer
    /// than every bound.
    pub buckets: [u64; Self::BOUNDS.len() + 1],
    /// How many durations there were: the sum of the buckets.
    pub count: u64,
    /// All durations together.
    pub sum: Duration,
    /// The longest one.
    pub max: Duration,
}

impl Histogram {
    /// Upper bounds of the buckets, inclusive: 1, 2 and 5 in each decade from 0.1 ms to 100 s.
    pub const BOUNDS: [Duration; 19] = [
        Duration::from_micros(100),
        Duration::from_micros(200),
        Duration::from_micros(500),
        Duration::from_millis(1),
        Duration::from_millis(2),
        Duration::from_millis(5),
        Duration::from_millis(10),
        Duration::from_millis(20),
        Duration::from_millis(50),
        Duration::from_millis(100),
        Duration::from_millis(200),
        Duration::from_millis(500),
        Duration::from_secs(1),
        Duration::from_secs(2),
        Duration::from_secs(5),
        Duration::from_secs(10),
        Duration::from_secs(20),
        Duration::from_secs(50),
        Duration::from_secs(100),
    ];

    /// Counts a duration.
    pub fn record(&mut self, duration: Duration) {
        let bucket = Self::BOUNDS.partition_point(|bound| *bound < duration);
        if let Some(count) = self.buckets.get_mut(bucket) {
            *count += 1;
        }
        self.count += 1;
        self.sum = self.sum.saturating_add(duration);
        self.max = self.max.max(duration);
    }

    /// The mean. `None` while nothing was counted.
    #[must_use]
    pub fn mean(&self) -> Option<Duration> {
        (self.count > 0).then(|| self.sum.div_f64(self.count as f64))
    }

    /// A duration that a fraction `q` (0 to 1) of all do not exceed: the bound of the bucket that the quantile lies in, or
    /// the longest duration where that is less. `None` while nothing was counted.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let wanted = (q.clamp(0.0, 1.0) * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Some(Self::BOUNDS.get(index).copied().unwrap_or(self.max).min(self.max));
            }
        }
        None
    }
}

/// Counters, gauges and histograms of a backend since it was made, taken at one moment.
///
/// A gauge says how things are now; every other number only grows. They add up, in every snapshot:
///
/// - `requests = finished + cancelled + failed + queued + running`;
/// - `queued = queued_by.total()`, `failed = failures.total()`, and `failures.deadline = missed_first_token + missed_total`;
/// - `step_tokens = prefilled_tokens + recomputed_tokens + decoded_tokens`.
///
/// A remote backend leaves what it cannot know at 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Metrics {
    /// Gauge: requests that wait for a slot, those that had to give theirs up included.
    pub queued: u64,
    /// Gauge: the same by the priority that they came with.
    pub queued_by: ByPriority,
    /// Gauge: how long the one that waits longest has been waiting for a slot. 0 when nobody waits.
    pub oldest_waiting: Duration,
    /// Gauge: requests that are being prefilled or decoded.
    pub running: u64,
    /// Gauge: finished turns that have yet to be kept in the prefix cache.
    pub background: u64,
    /// Requests accepted.
    pub requests: u64,
    /// Requests that ended by themselves.
    pub finished: u64,
    /// Requests that were cancelled, by their reader or because the backend shut down.
    pub cancelled: u64,
    /// Requests that ended with an error.
    pub failed: u64,
    /// The same by what went wrong.
    pub failures: Failures,
    /// Requests whose deadline for the first token passed.
    pub missed_first_token: u64,
    /// Requests whose deadline for the whole reply passed.
    pub missed_total: u64,
    /// Requests refused because the queue was full. They are not among `requests`.
    pub refused: u64,
    /// Engine batches.
    pub steps: u64,
    /// Sequences over all batches: divided by `steps`, how many share a batch on average.
    pub step_sequences: u64,
    /// Tokens over all batches: divided by `steps`, how full a batch is on average.
    pub step_tokens: u64,
    /// Prompt tokens of accepted requests.
    pub prompt_tokens: u64,
    /// Of these, how many the prefix cache gave.
    pub reused_tokens: u64,
    /// Tokens of prompts that were computed for the first time, background work included.
    pub prefilled_tokens: u64,
    /// Of these, how many were computed to keep a finished turn.
    pub background_tokens: u64,
    /// Tokens that were computed again after a preemption or a replay.
    pub recomputed_tokens: u64,
    /// Generated tokens that were appended to their sequence. The last token of a reply is not.
    pub decoded_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Running requests that gave their slot up and whose past was parked meanwhile.
    pub preempted_parked: u64,
    /// Running requests that gave their slot up and whose past is computed anew.
    pub preempted_recomputed: u64,
    /// Parked pasts of waiting requests that were given up for memory: they are computed anew.
    pub parked_given_up: u64,
    /// Sequences that the engine lost and that were computed anew.
    pub replays: u64,
    /// Gauge: pasts of waiting requests that are parked.
    pub parked_pasts: u64,
    /// Gauge: what they cost, in bytes as the engine declares them.
    pub parked_bytes: u64,
    /// Images encoded.
    pub images_encoded: u64,
    /// Images whose embedding was at hand.
    pub images_reused: u64,
    /// Gauge: embeddings that are kept, in bytes.
    pub image_cache_bytes: u64,
    /// Gauge: pasts in the prefix cache.
    pub cached_pasts: u64,
    /// Gauge: what they cost, in bytes as the engine declares them.
    pub cached_bytes: u64,
    /// Requests that began with a past of the prefix cache.
    pub cache_hits: u64,
    /// Requests that looked into the prefix cache and found nothing.
    pub cache_misses: u64,
    /// Pasts that were given up, for room or because the cache was cleared.
    pub evicted_pasts: u64,
    /// Gauge: adapters that the engine holds, those that wait for their last request included.
    pub adapters: u64,
    /// Gauge: what they cost there, in bytes.
    pub adapter_bytes: u64,
    /// Adapters that were loaded again because a request needed them.
    pub adapter_page_ins: u64,
    /// Adapters that left the engine to make room for others.
    pub adapter_page_outs: u64,
    /// Time that the engine worked on batches and images.
    pub busy: Duration,
    /// Time that it rested although there was work, because it may take only a share of the device's time.
    pub paced: Duration,
    /// From a request's arrival to its first token.
    pub time_to_first_token: Histogram,
    /// From one token of a reply to the next, where its reader kept up.
    pub inter_token: Histogram,
    /// How long requests waited for a slot, each time that they did.
    pub queue_wait: Histogram,
    /// How long the engine's batches took.
    pub step_time: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_bucket_whose_bound_they_do_not_exceed() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.mean(), histogram.quantile(0.5)), (None, None));
        for micros in [0, 100, 101, 5_000, 5_001, 200_000_000] {
            histogram.record(Duration::from_micros(micros));
        }
        assert_eq!(
            (histogram.buckets[0], histogram.buckets[1], histogram.buckets[5], histogram.buckets[6]),
            (2, 1, 1, 1)
        );
        assert_eq!((histogram.buckets[19], histogram.count), (1, 6));
        assert_eq!(histogram.buckets.iter().sum::<u64>(), histogram.count);
        assert_eq!(histogram.max, Duration::from_secs(200));
        assert_eq!(histogram.quantile(0.5), Some(Duration::from_micros(200)));
        assert_eq!(histogram.quantile(1.0), Some(Duration::from_secs(200)));
        assert_eq!(histogram.quantile(0.0), Some(Duration::from_micros(100)));
        assert_eq!(histogram.mean(), Some(Duration::from_micros(200_010_202).div_f64(6.0)));
        assert!(Histogram::BOUNDS.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn every_kind_of_failure_is_counted_once() {
        let mut failures = Failures::default();
        for kind in [ErrorKind::OutOfMemory, ErrorKind::DeadlineExceeded, ErrorKind::Poisoned, ErrorKind::InvalidImage]
        {
            failures.count(kind);
        }
        failures.count(ErrorKind::Unexpected);
        assert_eq!(failures, Failures { memory: 1, deadline: 1, poisoned: 1, invalid: 1, engine: 1 });
        assert_eq!(failures.total(), 5);
    }

    #[test]
    fn each_priority_has_its_number() {
        let mut numbers = ByPriority::default();
        for (times, priority) in
            [Priority::Batch, Priority::Background, Priority::Interactive, Priority::Realtime].into_iter().enumerate()
        {
            *numbers.get_mut(priority) += times as u64 + 1;
            assert_eq!(numbers.get(priority), times as u64 + 1);
        }
        assert_eq!(numbers.total(), 10);
    }
}
