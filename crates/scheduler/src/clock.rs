//! Where the scheduler's time comes from.
//!
//! Deadlines, aging, pacing and the cache's memory of when a past was used all ask one clock, so that hours of them can be
//! simulated in seconds, and the same way each time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The time of a backend.
#[derive(Debug, Clone)]
pub(crate) enum Clock {
    /// The system's monotonic clock.
    System,
    /// Time that passes only when somebody says so.
    Virtual(VirtualClock),
}

impl Clock {
    pub(crate) fn now(&self) -> Instant {
        match self {
            Self::System => Instant::now(),
            Self::Virtual(clock) => clock.now(),
        }
    }
}

/// Time that passes only when [`advance`](Self::advance) is called. Clones show the same time.
///
/// A simulated engine holds one and advances it by what its work would have taken.
#[derive(Debug, Clone)]
pub struct VirtualClock {
    origin: Instant,
    nanos: Arc<AtomicU64>,
}

impl Default for VirtualClock {
    fn default() -> Self {
        Self { origin: Instant::now(), nanos: Arc::default() }
    }
}

impl VirtualClock {
    /// The time that has passed since the clock was made.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::SeqCst))
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        self.nanos.fetch_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    pub(crate) fn now(&self) -> Instant {
        // `Instant` has room for centuries; where it has not, time stands still.
        self.origin.checked_add(self.elapsed()).unwrap_or(self.origin)
    }

    /// How far off a moment is. 0 for one that has passed.
    pub(crate) fn until(&self, moment: Instant) -> Duration {
        moment.saturating_duration_since(self.now())
    }
}
