//! The books of a backend, and waiting until nothing is left to do.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use consort_core::{Error, ErrorKind, Metrics, Priority, Result};

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was told to.
    ShutDown,
    /// The engine panicked.
    Panicked,
}

impl Ended {
    /// What those who still want something are told.
    pub(crate) fn error(self) -> Error {
        match self {
            Self::ShutDown => Error::new(ErrorKind::Cancelled, "the backend shut down"),
            Self::Panicked => Error::new(
                ErrorKind::Unexpected,
                "the engine panicked and is gone; load the model anew, and please report this",
            ),
        }
    }
}

/// All numbers, which change together under one lock: in no snapshot a request is nowhere or in two places.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) metrics: Metrics,
    /// Requests whose prompt is being prepared on their caller's thread. They have a place in the queue.
    pub(crate) placing: u64,
    /// Since when the one that waits longest waits.
    pub(crate) oldest: Option<Instant>,
    pub(crate) ended: Option<Ended>,
    /// The worker did something after it last brought the gauges up to date, so they may say what is no more.
    pub(crate) unsettled: bool,
}

impl Books {
    fn is_idle(&self) -> bool {
        let metrics = &self.metrics;
        let busy = metrics.queued + metrics.running + metrics.background + self.placing;
        busy == 0 && !self.unsettled
    }

    /// A request is accepted.
    pub(crate) fn accept(&mut self, priority: Priority, prompt_tokens: usize) {
        self.metrics.requests += 1;
        self.metrics.prompt_tokens += prompt_tokens as u64;
        self.join_queue(priority);
    }

    pub(crate) fn join_queue(&mut self, priority: Priority) {
        self.metrics.queued += 1;
        *self.metrics.queued_by.get_mut(priority) += 1;
    }

    pub(crate) fn leave_queue(&mut self, priority: Priority) {
        lower(&mut self.metrics.queued);
        lower(self.metrics.queued_by.get_mut(priority));
    }

    pub(crate) fn leave_running(&mut self) {
        lower(&mut self.metrics.running);
    }

    pub(crate) fn leave_background(&mut self) {
        lower(&mut self.metrics.background);
    }
}

/// Lowers a gauge. After the worker's end all of them are 0.
fn lower(gauge: &mut u64) {
    *gauge = gauge.saturating_sub(1);
}

/// The books, for all threads.
#[derive(Debug, Default)]
pub(crate) struct Board {
    books: Mutex<Books>,
    idle: Condvar,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the books.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut Books) -> T) -> T {
        let mut books = self.lock();
        let result = change(&mut books);
        if books.is_idle() || books.ended.is_some() {
            self.idle.notify_all();
        }
        result
    }

    /// The worker has ended: whoever waited or ran is cancelled.
    pub(crate) fn end(&self, ended: Ended) {
        self.update(|books| {
            let metrics = &mut books.metrics;
            metrics.cancelled += metrics.queued + metrics.running;
            (metrics.queued, metrics.queued_by, metrics.running) = Default::default();
            (metrics.background, metrics.parked_pasts, metrics.parked_bytes) = (0, 0, 0);
            (metrics.cached_pasts, metrics.cached_bytes, metrics.image_cache_bytes, metrics.adapters) = (0, 0, 0, 0);
            metrics.adapter_bytes = 0;
            (books.placing, books.oldest, books.unsettled) = (0, None, false);
            books.ended = Some(ended);
        });
    }

    pub(crate) fn snapshot(&self, now: Instant) -> Metrics {
        let books = self.lock();
        let mut metrics = books.metrics;
        metrics.oldest_waiting = books.oldest.map(|since| now.saturating_duration_since(since)).unwrap_or_default();
        metrics
    }

    /// Waits until nothing is queued, running or to be kept, and the gauges say so.
    pub(crate) fn wait_idle(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now().checked_add(timeout);
        let mut books = self.lock();
        loop {
            if books.is_idle() {
                return Ok(());
            }
            if let Some(ended) = books.ended {
                return Err(ended.error());
            }
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                let metrics = &books.metrics;
                return Err(Error::new(ErrorKind::DeadlineExceeded, "the backend is still busy")
                    .with_operation("scheduler::wait_idle")
                    .with_context("queued", metrics.queued.to_string())
                    .with_context("running", metrics.running.to_string())
                    .with_context("background", metrics.background.to_string()));
            }
            // A year at most: some platforms refuse longer waits.
            let left = left.min(Duration::from_secs(31_536_000));
            books = self.idle.wait_timeout(books, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
