//! How much the engine may do at once, and how much of the time it may work.

use std::time::{Duration, Instant};

/// What of older steps counts with each new one: after ten of them a third is left.
const FORGETTING: f64 = 0.9;

/// How many prompt tokens a step gets while nothing is known of how long they take.
const FIRST_CHUNK: usize = 16;

/// How long steps take, learned from those of late: `seconds = fixed + per_token × prompt tokens`.
///
/// Tokens of replies are part of `fixed`, as each step has them. The two numbers are those of the least squares over all
/// steps so far, where each step's weight falls by a tenth with every later one: the device may slow down, and prompts
/// grow.
#[derive(Debug, Default)]
pub(crate) struct StepTimes {
    weight: f64,
    tokens: f64,
    seconds: f64,
    tokens_squared: f64,
    tokens_seconds: f64,
    /// The most prompt tokens that a step of late had.
    largest: usize,
}

impl StepTimes {
    /// Takes the time of a step that had so many tokens of prompts.
    pub(crate) fn learn(&mut self, tokens: usize, took: Duration) {
        let (count, seconds) = (tokens as f64, took.as_secs_f64());
        for (sum, value) in [
            (&mut self.weight, 1.0),
            (&mut self.tokens, count),
            (&mut self.seconds, seconds),
            (&mut self.tokens_squared, count * count),
            (&mut self.tokens_seconds, count * seconds),
        ] {
            *sum = *sum * FORGETTING + value;
        }
        // What was tried long ago says little of what the next step can bear.
        self.largest = tokens.max(self.largest - self.largest / 16);
    }

    /// How many prompt tokens fit into a step of this length, at least one: a prompt always gets on. It never grows beyond
    /// twice of what was tried, as a line through few points is a poor prophet.
    pub(crate) fn tokens_within(&self, limit: Duration) -> usize {
        let most = self.largest.saturating_mul(2).max(FIRST_CHUNK);
        if self.largest == 0 {
            return most;
        }
        let spread = self.weight * self.tokens_squared - self.tokens * self.tokens;
        let slope = (self.weight * self.tokens_seconds - self.tokens * self.seconds) / spread;
        let limit = limit.as_secs_f64();
        // All steps had the same size, or larger ones were quicker: the mean rate then takes the fixed part for the
        // tokens' and errs on the safe side.
        let well_posed = spread > 1e-6 * self.weight * self.tokens_squared && slope > 0.0;
        let tokens = if well_posed {
            let fixed = ((self.seconds - slope * self.tokens) / self.weight).max(0.0);
            (limit - fixed) / slope
        } else {
            limit * self.tokens / self.seconds.max(f64::MIN_POSITIVE)
        };
        // A hair more, so that 39.999999 is 40. The cast saturates.
        ((tokens + 1e-6).max(1.0) as usize).min(most)
    }
}

/// Keeps the engine's share of the time.
///
/// After work of `d` it rests for `d × (1 − share) / share`, so that each span of work and the rest after it keep the
/// share by themselves. Time in which there was nothing to do earns nothing: whoever shares the device is to have it
/// regularly, and not on average over an hour.
#[derive(Debug)]
pub(crate) struct Pacer {
    share: f64,
    rest: Option<Rest>,
}

#[derive(Debug, Clone, Copy)]
struct Rest {
    since: Instant,
    until: Instant,
}

impl Pacer {
    /// `share`: from above 0 to 1.
    pub(crate) fn new(share: f32) -> Self {
        Self { share: f64::from(share), rest: None }
    }

    /// The engine worked for so long until now.
    pub(crate) fn worked(&mut self, now: Instant, busy: Duration) {
        let owed = busy.as_secs_f64() * (1.0 - self.share) / self.share;
        let owed = Duration::try_from_secs_f64(owed).unwrap_or(Duration::MAX);
        let until = if owed.is_zero() { None } else { now.checked_add(owed) };
        self.rest = until.map(|until| Rest { since: now, until });
    }

    /// Until when the engine is to rest, if it is.
    pub(crate) fn resting(&self, now: Instant) -> Option<Instant> {
        self.rest.map(|rest| rest.until).filter(|until| now < *until)
    }

    /// How long the rest was that is over now; `None` if none was.
    pub(crate) fn rested(&mut self, now: Instant) -> Option<Duration> {
        let rest = self.rest.filter(|rest| now >= rest.until)?;
        self.rest = None;
        Some(rest.until.saturating_duration_since(rest.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn what_fits_into_a_step_is_learned() {
        let mut times = StepTimes::default();
        let takes = |tokens: usize| 10 * MILLI + MILLI / 2 * tokens as u32;
        let mut sizes = Vec::new();
        for _ in 0..6 {
            let tokens = times.tokens_within(50 * MILLI);
            sizes.push(tokens);
            times.learn(tokens, takes(tokens));
            // A voice alone, between two prompts.
            times.learn(0, takes(0));
        }
        assert_eq!(sizes, [16, 30, 58, 80, 80, 80]);
        // The device slows down by half: within a few steps it is known.
        for _ in 0..20 {
            let tokens = times.tokens_within(50 * MILLI);
            times.learn(tokens, 2 * takes(tokens));
        }
        let tokens = times.tokens_within(50 * MILLI);
        assert!((25..=32).contains(&tokens), "{tokens}");
        // Where even one token is too much there is one.
        assert_eq!(times.tokens_within(MILLI), 1);
    }

    #[test]
    fn equal_steps_err_on_the_safe_side() {
        let mut times = StepTimes::default();
        for _ in 0..9 {
            times.learn(20, 30 * MILLI);
        }
        assert_eq!(times.tokens_within(45 * MILLI), 30);
        assert_eq!(times.tokens_within(450 * MILLI), 40, "not more than twice what was tried");
    }

    #[test]
    fn a_share_of_the_time_is_kept() {
        let start = Instant::now();
        let mut pacer = Pacer::new(0.25);
        assert_eq!(pacer.resting(start), None);
        pacer.worked(start, 10 * MILLI);
        assert_eq!(pacer.resting(start), Some(start + 30 * MILLI));
        assert_eq!(pacer.rested(start + 29 * MILLI), None);
        assert_eq!(pacer.resting(start + 30 * MILLI), None);
        assert_eq!((pacer.rested(start + 31 * MILLI), pacer.rested(start + 31 * MILLI)), (Some(30 * MILLI), None));
        let mut whole = Pacer::new(1.0);
        whole.worked(start, 10 * MILLI);
        assert_eq!(whole.resting(start), None);
    }
}
