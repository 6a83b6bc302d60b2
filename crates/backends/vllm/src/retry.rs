//! When the same is asked again.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Retries;

/// How long the reserve of retries lasts.
const WINDOW: Duration = Duration::from_secs(10);

/// Bounds retries over all requests: a share of those that succeed, and a small reserve. (The retry budget of Finagle.)
pub(crate) struct Budget {
    retries: Retries,
    state: Mutex<State>,
}

struct State {
    /// Retries that may be taken, in fractions.
    balance: f64,
    since: Instant,
}

impl Budget {
    pub(crate) fn new(retries: Retries) -> Self {
        let state = State { balance: f64::from(retries.reserve), since: Instant::now() };
        Self { retries, state: Mutex::new(state) }
    }

    /// A request succeeded.
    pub(crate) fn earn(&self) {
        let most = f64::from(self.retries.reserve) + 100.0 * self.retries.budget;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.balance = (state.balance + self.retries.budget).min(most);
    }

    /// Takes one retry out. Whether there was one.
    pub(crate) fn spend(&self) -> bool {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(state.since).as_secs_f64() / WINDOW.as_secs_f64();
        let reserve = f64::from(self.retries.reserve);
        if state.balance < reserve {
            state.balance = (state.balance + passed * reserve).min(reserve);
        }
        state.since = now;
        let may = state.balance >= 1.0;
        if may {
            state.balance -= 1.0;
        }
        may
    }
}

/// The pause before attempt number `attempt` (the second is 1) on a server that was asked before. `chance` is between 0
/// and 1.
pub(crate) fn pause(retries: &Retries, attempt: u32, chance: f64) -> Duration {
    let doubled = retries.pause.saturating_mul(1 << attempt.saturating_sub(1).min(16));
    let whole = doubled.min(retries.longest_pause);
    whole.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_run_out_and_are_earned() {
        let budget = Budget::new(Retries { budget: 0.5, reserve: 2, ..Retries::default() });
        assert!(budget.spend() && budget.spend());
        assert!(!budget.spend());
        for _ in 0..4 {
            budget.earn();
        }
        assert!(budget.spend() && budget.spend());
        assert!(!budget.spend());
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let retries = Retries {
            pause: Duration::from_millis(100),
            longest_pause: Duration::from_millis(350),
            ..Retries::default()
        };
        let whole = |attempt| pause(&retries, attempt, 1.0).as_millis();
        assert_eq!([whole(1), whole(2), whole(3), whole(60)], [100, 200, 350, 350]);
        assert_eq!(pause(&retries, 1, 0.0).as_millis(), 50);
    }
}
