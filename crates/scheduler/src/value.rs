//! What a parked past is worth.
//!
//! ```text
//! value = tokens / bytes × 2^(−age / half-life)
//! ```
//!
//! `tokens`: the past's length, which whoever resumes it need not compute. `bytes`: what the engine declares that giving it
//! up frees, so a past that shares its pages costs little and is worth keeping. `age`: the time since it was last used.
//! Where memory is short, the past of the least value is given up first.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

/// A value that can be compared at any time: between two pasts that are not used the ratio of their values never changes,
/// as both decay alike. So the logarithm at a fixed moment in the past does, `log2(tokens / bytes) + used / half-life`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Value(f64);

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Value {}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Value {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Makes values that can be compared with each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Appraiser {
    origin: Instant,
    half_life: Duration,
}

impl Appraiser {
    /// `origin`: a moment before every use.
    pub(crate) fn new(origin: Instant, half_life: Duration) -> Self {
        Self { origin, half_life: half_life.max(Duration::from_millis(1)) }
    }

    /// The value of a past of `tokens` tokens and `bytes` bytes that was last used at `used`.
    pub(crate) fn value(&self, tokens: usize, bytes: u64, used: Instant) -> Value {
        let density = tokens.max(1) as f64 / bytes.max(1) as f64;
        let used = used.saturating_duration_since(self.origin).as_secs_f64();
        Value(density.log2() + used / self.half_life.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_life_later_twice_the_density_is_worth_the_same() {
        let origin = Instant::now();
        let second = Duration::from_secs(1);
        let appraiser = Appraiser::new(origin, 60 * second);
        let value = |tokens, bytes, seconds: u32| appraiser.value(tokens, bytes, origin + seconds * second);
        assert_eq!(value(256, 8, 0), value(128, 8, 60));
        assert_eq!(value(256, 16, 7), value(128, 8, 7));
        assert!(value(200, 10, 0) > value(100, 10, 59) && value(200, 10, 0) < value(100, 10, 61));
        assert!(value(100, 1, 0) > value(100, 1000, 60));
        // Nothing is worth nothing at all, and nothing divides by zero.
        assert!(value(0, 0, 0) > value(0, 1000, 0));
    }
}
