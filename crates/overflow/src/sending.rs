//! How a request is sent, and where it goes when a side gives it up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use consort_core::{
    AdapterMode, AdapterUse, Deadlines, Error, ErrorKind, ErrorStatus, EventStream, GenerateRequest, PlacementRule,
    Priority, Result,
};

use crate::NAME;
use crate::adapters::{Library, Version, inner_uses};
use crate::config::{OverflowConfig, RemoteFailure};
use crate::metrics::Books;
use crate::route::{Needs, Plan, Reason, Route, Side, Situation};
use crate::sides::Sides;

/// What all replies of an [`Overflow`](crate::Overflow) share.
pub(crate) struct Shared {
    pub(crate) sides: Sides,
    pub(crate) config: OverflowConfig,
    pub(crate) library: Library,
    pub(crate) books: Arc<Books>,
}

/// A request on its way.
pub(crate) struct Ask {
    request: GenerateRequest,
    needs: Needs,
    bound: Vec<Arc<Version>>,
    arrived: Instant,
    /// Where it goes when the side that is asked gives it up.
    next: Option<Side>,
    /// It was on that side before, which was full then.
    returns: bool,
    /// The side has less time than the request's own deadlines allow.
    patient: bool,
    /// Time has passed since it arrived.
    waited: bool,
    /// What the other side said.
    earlier: Option<(Side, Error)>,
}

impl Ask {
    pub(crate) fn new(request: GenerateRequest, bound: Vec<Arc<Version>>, arrived: Instant) -> Self {
        Self {
            needs: Needs::of(&request),
            request,
            bound,
            arrived,
            next: None,
            returns: false,
            patient: false,
            waited: false,
            earlier: None,
        }
    }

    /// Whether it may yet begin anew on another side.
    pub(crate) fn may_move(&self) -> bool {
        self.next.is_some()
    }

    /// It waited for a decision.
    pub(crate) fn has_waited(&mut self) {
        self.waited = true;
    }
}

/// A side that took a request.
pub(crate) struct Attempt {
    pub(crate) stream: EventStream,
    pub(crate) side: Side,
    /// How long after the request's arrival it was asked.
    pub(crate) after: Duration,
}

/// When a side gave a request up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// As soon as it was asked.
    AtOnce,
    /// Later, in its stream.
    InTheStream,
}

impl Shared {
    /// What a request names, as it is now.
    pub(crate) fn bind(&self, uses: &[AdapterUse]) -> Result<Vec<Arc<Version>>> {
        let none = |side| self.sides.get(side).capability().adapter_mode == AdapterMode::None;
        if !uses.is_empty() && none(Side::Local) && none(Side::Remote) {
            return Err(Error::unsupported(NAME, "adapters"));
        }
        self.library.bind(uses)
    }

    pub(crate) fn plan_of(
        &self,
        needs: &Needs,
        bound: &[Arc<Version>],
        placement: PlacementRule,
        priority: Priority,
    ) -> Plan {
        let able = |side| self.sides.is_able(side, needs, bound);
        Plan::of(&Situation {
            config: &self.config,
            placement,
            by_priority: self.config.priorities.get(priority),
            able: (able(Side::Local), able(Side::Remote)),
            local_load: &|| self.sides.local.metrics(),
        })
    }

    pub(crate) fn plan(&self, ask: &Ask) -> Plan {
        self.plan_of(&ask.needs, &ask.bound, ask.request.placement, ask.request.priority)
    }

    /// Asks the side of `route`, and the other one if it refuses and `both` may be asked.
    ///
    /// # Errors
    /// Why nobody takes the request.
    pub(crate) fn send(&self, ask: &mut Ask, route: Route, both: bool) -> Result<Attempt> {
        ask.next = both.then(|| route.side.other());
        self.go(ask, route)
    }

    /// Asks another side for a reply that one gave up before it said anything.
    ///
    /// # Errors
    /// Why there is no other side, or what it said.
    pub(crate) fn send_again(&self, ask: &mut Ask, side: Side, error: Error) -> Result<Attempt> {
        let route = self.after(ask, side, error, When::InTheStream)?;
        self.go(ask, route)
    }

    fn go(&self, ask: &mut Ask, mut route: Route) -> Result<Attempt> {
        loop {
            match self.ask(ask, route.side) {
                Ok(attempt) => {
                    self.books.taken(route);
                    if !ask.may_move() {
                        ask.bound.clear();
                    }
                    return Ok(attempt);
                }
                Err(error) => route = self.after(ask, route.side, error, When::AtOnce)?,
            }
        }
    }

    fn ask(&self, ask: &mut Ask, side: Side) -> Result<Attempt> {
        let after = ask.arrived.elapsed();
        let mut deadlines = ask.request.deadlines;
        if ask.waited {
            deadlines = left(deadlines, after).ok_or_else(too_late)?;
        }
        ask.patient = false;
        if side == Side::Local
            && ask.next == Some(Side::Remote)
            && let Some(wait) = self.config.local_wait
        {
            let own = [deadlines.first_token, deadlines.total].into_iter().flatten().min();
            if own.is_none_or(|own| wait < own) {
                deadlines.first_token = Some(wait);
                ask.patient = true;
            }
        }
        let adapters = inner_uses(&ask.request.adapters, &ask.bound);
        let request = GenerateRequest { adapters, deadlines, ..ask.request.clone() };
        let stream = self.sides.get(side).generate(request)?;
        Ok(Attempt { stream, side, after })
    }

    /// Where a request goes that a side gave up.
    fn after(&self, ask: &mut Ask, side: Side, error: Error, when: When) -> Result<Route> {
        let reason = self.why(side, &error, ask.patient);
        let next = ask.next.take().zip(reason).filter(|(_, reason)| {
            // Who was full a moment ago is still full.
            !ask.returns || (when == When::InTheStream && *reason != Reason::Unable)
        });
        let Some((next, reason)) = next else { return Err(both_reasons(ask.earlier.take(), side, error)) };
        if left(ask.request.deadlines, ask.arrived.elapsed()).is_none() {
            return Err(too_late().with_context(side.as_str(), error.to_string()));
        }
        tracing::debug!(from = side.as_str(), %error, "a request begins anew on the other side");
        let was_full = matches!(reason, Reason::Overloaded | Reason::OutOfMemory | Reason::Slow);
        let comes_back = self.config.remote_failure == RemoteFailure::LocalAnswers;
        if side == Side::Local && was_full && comes_back {
            ask.next = Some(Side::Local);
            ask.returns = true;
        }
        ask.waited = true;
        ask.earlier = Some((side, error));
        Ok(Route { side: next, reason })
    }

    /// Why the other side may be asked after this error. `None`: because of this one it may not.
    pub(crate) fn why(&self, side: Side, error: &Error, patient: bool) -> Option<Reason> {
        match (error.kind(), side) {
            (ErrorKind::Unsupported, _) => Some(Reason::Unable),
            // A prompt that is too long is one kind of a wrong request, and the other side may have room for it.
            (ErrorKind::InvalidRequest, _) => self.sides.other_is_longer(side).then_some(Reason::Unable),
            (_, Side::Remote) if self.config.remote_failure == RemoteFailure::Fails => None,
            (_, Side::Remote) if error.status() == ErrorStatus::Permanent => None,
            (ErrorKind::Overloaded, _) => Some(Reason::Overloaded),
            (ErrorKind::OutOfMemory, _) => Some(Reason::OutOfMemory),
            (ErrorKind::DeadlineExceeded, Side::Local) => patient.then_some(Reason::Slow),
            // An engine that panicked is gone; whoever waits for it need not be.
            (ErrorKind::Poisoned | ErrorKind::Remote | ErrorKind::Io | ErrorKind::Unexpected, _) => {
                Some(Reason::Broken)
            }
            _ => None,
        }
    }
}

/// What is left of the time for a reply. `None` when there is none.
pub(crate) fn left(deadlines: Deadlines, passed: Duration) -> Option<Deadlines> {
    let of = |deadline: Option<Duration>| match deadline {
        None => Some(None),
        Some(deadline) => deadline.checked_sub(passed).filter(|left| !left.is_zero()).map(Some),
    };
    Some(Deadlines { first_token: of(deadlines.first_token)?, total: of(deadlines.total)? })
}

fn too_late() -> Error {
    Error::new(ErrorKind::DeadlineExceeded, "the time for the reply was over before a side could be asked")
        .with_backend(NAME)
        .with_operation("overflow::generate")
}

/// One error of what both sides said: the local one's, with the remote one's as context. A side that could not have answered
/// at all does not decide whether trying again can help.
pub(crate) fn both_reasons(earlier: Option<(Side, Error)>, side: Side, error: Error) -> Error {
    let Some((earlier_side, earlier)) = earlier else { return error };
    let unable = |error: &Error| matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::InvalidRequest);
    let (local, remote) = if earlier_side == Side::Local { (earlier, error) } else { (error, earlier) };
    debug_assert_ne!(earlier_side, side);
    if unable(&local) && !unable(&remote) {
        remote.with_context("local", local.to_string())
    } else {
        local.with_context("remote", remote.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_counted_from_the_arrival() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let deadlines = |first_token, total| Deadlines { first_token, total };
        let passed = Duration::from_secs(3);
        assert_eq!(left(deadlines(seconds(5), None), passed), Some(deadlines(seconds(2), None)));
        assert_eq!(left(deadlines(None, seconds(4)), passed), Some(deadlines(None, seconds(1))));
        assert_eq!(left(deadlines(None, None), passed), Some(deadlines(None, None)));
        assert_eq!(left(deadlines(seconds(3), seconds(9)), passed), None);
        assert_eq!(left(deadlines(seconds(9), seconds(2)), passed), None);
        assert!(left(deadlines(Some(Duration::MAX), Some(Duration::MAX)), passed).is_some());
    }

    #[test]
    fn the_local_kind_counts_unless_it_could_not_have_answered() {
        let error = |kind, message: &str| Error::new(kind, message);
        let full = || error(ErrorKind::Overloaded, "the queue is full");
        let broken = || error(ErrorKind::Remote, "503");
        for (earlier, side, last) in
            [((Side::Local, full()), Side::Remote, broken()), ((Side::Remote, broken()), Side::Local, full())]
        {
            let both = both_reasons(Some(earlier), side, last);
            assert_eq!((both.kind(), both.message()), (ErrorKind::Overloaded, "the queue is full"));
            assert!(both.context().any(|(key, value)| key == "remote" && value.contains("503")), "{both}");
        }
        let blind = error(ErrorKind::Unsupported, "no eyes");
        let both = both_reasons(Some((Side::Local, blind)), Side::Remote, broken());
        assert_eq!((both.kind(), both.status()), (ErrorKind::Remote, ErrorStatus::Temporary));
        assert!(both.context().any(|(key, value)| key == "local" && value.contains("no eyes")), "{both}");
        assert_eq!(both_reasons(None, Side::Local, full()).to_string(), full().to_string());
    }
}
