//! Counters, gauges, and waiting until nothing is left to do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use consort_core::{Error, ErrorKind, Metrics, Result};

/// How many requests are where. One lock holds all three, so that no request is ever in none of them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Gauges {
    pub(crate) queued: u64,
    pub(crate) running: u64,
    pub(crate) background: u64,
    /// The worker has ended.
    pub(crate) dead: bool,
}

impl Gauges {
    fn is_idle(&self) -> bool {
        self.queued == 0 && self.running == 0 && self.background == 0
    }
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// Counters that any thread can read; those of the worker are written by it alone.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64),* }

        impl Counters {
            fn write_into(&self, metrics: &mut Metrics) { $(metrics.$name = self.$name.load(Ordering::Relaxed);)* }
        }
    };
}

counters!(
    requests,
    finished,
    cancelled,
    failed,
    refused,
    steps,
    prompt_tokens,
    reused_tokens,
    prefilled_tokens,
    generated_tokens,
    images_encoded,
    images_reused,
    cached_pasts,
    cached_bytes,
    evicted_pasts,
    adapters,
    adapter_bytes,
    adapter_page_ins,
    adapter_page_outs,
);

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// All numbers of a backend.
#[derive(Debug, Default)]
pub(crate) struct Board {
    gauges: Mutex<Gauges>,
    idle: Condvar,
    pub(crate) counters: Counters,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Gauges> {
        self.gauges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the gauges together.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut Gauges) -> T) -> T {
        let mut gauges = self.lock();
        let result = change(&mut gauges);
        if gauges.is_idle() || gauges.dead {
            self.idle.notify_all();
        }
        result
    }

    pub(crate) fn snapshot(&self) -> Metrics {
        let gauges = *self.lock();
        let mut metrics = Metrics {
            queued: gauges.queued,
            running: gauges.running,
            background: gauges.background,
            ..Metrics::default()
        };
        self.counters.write_into(&mut metrics);
        metrics
    }

    /// Waits until nothing is queued, running or to be kept.
    pub(crate) fn wait_idle(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now().checked_add(timeout);
        let mut gauges = self.lock();
        loop {
            if gauges.is_idle() {
                return Ok(());
            }
            if gauges.dead {
                return Err(Error::new(ErrorKind::Cancelled, "the backend shut down"));
            }
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(Error::new(ErrorKind::DeadlineExceeded, "the backend is still busy")
                    .with_operation("scheduler::wait_idle")
                    .with_context("queued", gauges.queued.to_string())
                    .with_context("running", gauges.running.to_string())
                    .with_context("background", gauges.background.to_string()));
            }
            // A year at most: some platforms refuse longer waits.
            let left = left.min(Duration::from_secs(31_536_000));
            gauges = self.idle.wait_timeout(gauges, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
