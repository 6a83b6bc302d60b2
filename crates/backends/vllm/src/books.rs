//! What was asked and what came of it, in numbers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use consort_core::{Error, ErrorKind, Metrics};

/// The numbers of a backend.
#[derive(Default)]
pub(crate) struct Books {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    metrics: Metrics,
    /// Requests that are being looked at: they take a place, and may yet be refused.
    placing: u64,
}

impl Books {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn snapshot(&self) -> Metrics {
        self.lock().metrics
    }

    /// A place for a request, unless `most` are taken.
    pub(crate) fn place(self: &Arc<Self>, most: usize) -> Option<Place> {
        let mut state = self.lock();
        if state.metrics.running + state.placing >= most as u64 {
            state.metrics.refused += 1;
            return None;
        }
        state.placing += 1;
        Some(Place { books: Arc::clone(self) })
    }
}

/// A place for a request that may yet be refused.
pub(crate) struct Place {
    books: Arc<Books>,
}

impl Place {
    /// The request is accepted.
    pub(crate) fn take(self) -> Entry {
        let mut state = self.books.lock();
        state.metrics.running += 1;
        state.metrics.requests += 1;
        drop(state);
        Entry { books: Arc::clone(&self.books), open: true, last: None }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.books.lock().placing -= 1;
    }
}

/// A request in the books. One that is dropped before it was closed was cancelled.
pub(crate) struct Entry {
    books: Arc<Books>,
    open: bool,
    last: Option<Instant>,
}

/// Which deadline of a request has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deadline {
    FirstToken,
    Total,
}

impl Entry {
    /// New tokens came.
    pub(crate) fn tokens(&mut self, count: usize, arrived: Instant, now: Instant) {
        if count == 0 {
            return;
        }
        let mut state = self.books.lock();
        let metrics = &mut state.metrics;
        metrics.generated_tokens += count as u64;
        match self.last.replace(now) {
            None => metrics.time_to_first_token.record(now.saturating_duration_since(arrived)),
            Some(last) => {
                // Several in one event came at the pace of all of them.
                let each = now.saturating_duration_since(last).div_f64(count as f64);
                (0..count).for_each(|_| metrics.inter_token.record(each));
            }
        }
    }

    pub(crate) fn finished(mut self, prompt_tokens: usize, reused_tokens: usize) {
        let mut state = self.books.lock();
        let metrics = &mut state.metrics;
        metrics.running -= 1;
        metrics.finished += 1;
        metrics.prompt_tokens += prompt_tokens as u64;
        metrics.reused_tokens += reused_tokens as u64;
        drop(state);
        self.open = false;
    }

    pub(crate) fn failed(mut self, error: &Error, late: Option<Deadline>) {
        let mut state = self.books.lock();
        let metrics = &mut state.metrics;
        metrics.running -= 1;
        metrics.failed += 1;
        match late {
            Some(Deadline::FirstToken) => metrics.missed_first_token += 1,
            Some(Deadline::Total) => metrics.missed_total += 1,
            None => {}
        }
        match (late, error.kind()) {
            // Deadlines are ours: a server that speaks of one means something else.
            (None, ErrorKind::DeadlineExceeded) => metrics.failures.engine += 1,
            (_, kind) => metrics.failures.count(kind),
        }
        drop(state);
        self.open = false;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.open {
            let mut state = self.books.lock();
            let metrics = &mut state.metrics;
            metrics.running -= 1;
            metrics.cancelled += 1;
        }
    }
}

/// A moment that lies so far ahead, if there is one.
pub(crate) fn after(from: Instant, time: Option<Duration>) -> Option<Instant> {
    time.and_then(|time| from.checked_add(time))
}
