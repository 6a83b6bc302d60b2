//! How many requests went where, and why.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::route::{Reason, Route, Side};

/// How many requests a side took for a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RouteCount {
    /// Which side, and why.
    #[serde(flatten)]
    pub route: Route,
    /// How many.
    pub requests: u64,
}

/// What came of the requests for replies since the [`Overflow`](crate::Overflow) was made, taken at one moment.
///
/// In every snapshot `requests = answered_local + answered_remote + failed + cancelled + pending`. A request that both sides
/// took, one after the other, is among the routes twice and in each of these numbers once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct OverflowMetrics {
    /// Requests accepted.
    pub requests: u64,
    /// Requests refused at once because both sides, or the only one that may answer, are overloaded. They are not among
    /// `requests`.
    pub refused: u64,
    /// Requests of whose reply something came from the local side.
    pub answered_local: u64,
    /// Requests of whose reply something came from the remote side.
    pub answered_remote: u64,
    /// Requests that ended with an error before anything came.
    pub failed: u64,
    /// Requests that were cancelled before anything came.
    pub cancelled: u64,
    /// Gauge: requests of which nothing has come yet.
    pub pending: u64,
    /// How often a side took a request, by the reason for which it was sent there. What never happened is left out.
    pub routes: Vec<RouteCount>,
    /// Texts that the local side embedded, or refused to.
    pub embeds_local: u64,
    /// Texts that the remote side embedded, or refused to.
    pub embeds_remote: u64,
}

impl OverflowMetrics {
    /// How often a side took a request for this reason.
    #[must_use]
    pub fn taken_for(&self, side: Side, reason: Reason) -> u64 {
        let route = Route { side, reason };
        self.routes.iter().find(|count| count.route == route).map_or(0, |count| count.requests)
    }

    /// How often a side took a request.
    #[must_use]
    pub fn taken(&self, side: Side) -> u64 {
        self.routes.iter().filter(|count| count.route.side == side).map(|count| count.requests).sum()
    }

    /// How often a side took a request that the other had been asked before.
    #[must_use]
    pub fn moved(&self, side: Side) -> u64 {
        let moves = self.routes.iter().filter(|count| count.route.side == side && count.route.reason.is_move());
        moves.map(|count| count.requests).sum()
    }

    fn count(&mut self, route: Route) {
        match self.routes.iter_mut().find(|count| count.route == route) {
            Some(count) => count.requests += 1,
            None => self.routes.push(RouteCount { route, requests: 1 }),
        }
    }
}

/// All numbers, under one lock.
#[derive(Debug, Default)]
pub(crate) struct Books {
    metrics: Mutex<OverflowMetrics>,
}

impl Books {
    fn update<T>(&self, change: impl FnOnce(&mut OverflowMetrics) -> T) -> T {
        change(&mut self.metrics.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn snapshot(&self) -> OverflowMetrics {
        self.update(|metrics| metrics.clone())
    }

    pub(crate) fn taken(&self, route: Route) {
        tracing::debug!(side = route.side.as_str(), reason = ?route.reason, "a side takes a request");
        self.update(|metrics| metrics.count(route));
    }

    pub(crate) fn refused(&self) {
        self.update(|metrics| metrics.refused += 1);
    }

    pub(crate) fn embeds(&self, side: Side) {
        self.update(|metrics| match side {
            Side::Local => metrics.embeds_local += 1,
            Side::Remote => metrics.embeds_remote += 1,
        });
    }
}

/// A request in the books. Dropped before anything came, it was cancelled.
#[derive(Debug)]
pub(crate) struct Ticket {
    books: Arc<Books>,
    pending: bool,
}

impl Ticket {
    pub(crate) fn new(books: &Arc<Books>) -> Self {
        books.update(|metrics| {
            metrics.requests += 1;
            metrics.pending += 1;
        });
        Self { books: Arc::clone(books), pending: true }
    }

    pub(crate) fn answered(&mut self, side: Side) {
        self.settle(|metrics| match side {
            Side::Local => &mut metrics.answered_local,
            Side::Remote => &mut metrics.answered_remote,
        });
    }

    pub(crate) fn failed(&mut self) {
        self.settle(|metrics| &mut metrics.failed);
    }

    fn settle(&mut self, number: impl FnOnce(&mut OverflowMetrics) -> &mut u64) {
        if std::mem::take(&mut self.pending) {
            self.books.update(|metrics| {
                metrics.pending = metrics.pending.saturating_sub(1);
                *number(metrics) += 1;
            });
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.settle(|metrics| &mut metrics.cancelled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_ends_once() {
        let books = Arc::new(Books::default());
        let route = |side, reason| Route { side, reason };
        books.taken(route(Side::Remote, Reason::Queue));
        books.taken(route(Side::Remote, Reason::Overloaded));
        books.taken(route(Side::Remote, Reason::Queue));
        let mut answered = Ticket::new(&books);
        answered.answered(Side::Remote);
        answered.failed();
        drop(answered);
        let mut failed = Ticket::new(&books);
        failed.failed();
        drop(Ticket::new(&books));
        let pending = Ticket::new(&books);
        let seen = books.snapshot();
        assert_eq!((seen.requests, seen.answered_remote, seen.answered_local), (4, 1, 0));
        assert_eq!((seen.failed, seen.cancelled, seen.pending), (1, 1, 1));
        assert_eq!((seen.taken_for(Side::Remote, Reason::Queue), seen.taken(Side::Remote)), (2, 3));
        assert_eq!((seen.moved(Side::Remote), seen.taken(Side::Local)), (1, 0));
        drop(pending);
    }
}
