//! One stream of events, whichever side they come from.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use consort_core::{BoxFuture, Error, ErrorKind, Event, MemoryReport, Result, Usage};
use futures_core::Stream;

use crate::NAME;
use crate::metrics::Ticket;
use crate::route::{Reason, Route, Side};
use crate::sending::{Ask, Attempt, Shared};

/// Before its first token a reply says no more than this: what was thought of the prompt, and that it starts.
const MOST_HELD: usize = 2;

enum State {
    /// The local memory is asked.
    Deciding(BoxFuture<'static, Result<MemoryReport>>, Box<Ask>),
    /// A side was asked. What it says before its first token is held back as long as another side could be asked instead.
    Waiting(Attempt, Box<Ask>, Vec<Event>),
    /// This side answers, whatever comes.
    Answering(Attempt),
    /// It was too late before a side could be asked.
    Late(Error),
    /// Nothing more comes.
    Ended,
}

/// A reply. Dropping it drops whatever is alive of it.
pub(crate) struct Reply {
    // Weak: an `Overflow` that is gone must not live on in its streams, as its sides would, and nobody would be told.
    shared: Weak<Shared>,
    state: State,
    ready: VecDeque<Event>,
    ticket: Ticket,
    /// Unloads weights that this reply was the last to need, while it goes on. If it ends before, the next change does.
    tidying: Option<BoxFuture<'static, ()>>,
}

impl Reply {
    /// One that is sent once the local side has told what it holds.
    pub(crate) fn deciding(shared: &Arc<Shared>, ask: Ask) -> Self {
        let local = Arc::clone(&shared.sides.local);
        let memory = Box::pin(async move { local.memory().await });
        Self::new(shared, State::Deciding(memory, Box::new(ask)))
    }

    /// One that a side took.
    pub(crate) fn waiting(shared: &Arc<Shared>, attempt: Attempt, ask: Ask) -> Self {
        Self::new(shared, State::Waiting(attempt, Box::new(ask), Vec::new()))
    }

    /// One whose time was over before a side could be asked.
    pub(crate) fn late(shared: &Arc<Shared>, error: Error) -> Self {
        Self::new(shared, State::Late(error))
    }

    fn new(shared: &Arc<Shared>, state: State) -> Self {
        let ticket = Ticket::new(&shared.books);
        Self { shared: Arc::downgrade(shared), state, ready: VecDeque::new(), ticket, tidying: None }
    }

    fn shared(&self) -> Result<Arc<Shared>> {
        self.shared
            .upgrade()
            .ok_or_else(|| Error::new(ErrorKind::Cancelled, "the backend shut down").with_backend(NAME))
    }

    /// Sends a request whose place the local memory decides.
    fn decided(&self, report: Result<MemoryReport>, mut ask: Box<Ask>) -> Result<State> {
        let shared = self.shared()?;
        ask.has_waited();
        let plan = shared.plan(&ask);
        let mut route = plan.route;
        // A side that cannot tell is asked as if it had room.
        if plan.by_memory
            && let (Some(share), Ok(report)) = (shared.config.local_memory, report)
            && is_full(&report, share)
        {
            route = Route { side: Side::Remote, reason: Reason::Memory };
        }
        let attempt = shared.send(&mut ask, route, plan.both)?;
        Ok(State::Waiting(attempt, ask, Vec::new()))
    }

    /// Begins anew what a side gave up.
    fn given_up(&self, side: Side, error: Error, mut ask: Box<Ask>) -> Result<State> {
        match self.shared.upgrade() {
            Some(shared) => {
                let attempt = shared.send_again(&mut ask, side, error)?;
                Ok(State::Waiting(attempt, ask, Vec::new()))
            }
            None => Err(error),
        }
    }

    /// This side answers, so whatever the other one kept for the request can go.
    fn answered_by(&mut self, attempt: Attempt, ask: Box<Ask>, held: Vec<Event>) -> State {
        self.ticket.answered(attempt.side);
        // A reply without a token is over before it is anybody's.
        let over = matches!(held.last(), Some(Event::Finished { .. }));
        self.ready.extend(held);
        drop(ask);
        if let Some(shared) = self.shared.upgrade().filter(|shared| shared.library.is_untidy()) {
            self.tidying = Some(Box::pin(async move { shared.library.tidy(&shared.sides).await }));
        }
        if over { State::Ended } else { State::Answering(attempt) }
    }

    fn fail(&mut self, error: Error) -> Poll<Option<Result<Event>>> {
        self.state = State::Ended;
        self.ticket.failed();
        Poll::Ready(Some(Err(error)))
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Event>>> {
        loop {
            if let Some(tidying) = &mut self.tidying
                && tidying.as_mut().poll(context).is_ready()
            {
                self.tidying = None;
            }
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            let next = match std::mem::replace(&mut self.state, State::Ended) {
                State::Ended => return Poll::Ready(None),
                State::Late(error) => return self.fail(error),
                State::Deciding(mut memory, ask) => match memory.as_mut().poll(context) {
                    Poll::Pending => {
                        self.state = State::Deciding(memory, ask);
                        return Poll::Pending;
                    }
                    Poll::Ready(report) => self.decided(report, ask),
                },
                State::Waiting(mut attempt, ask, mut held) => match poll_event(&mut attempt, context) {
                    Poll::Pending => {
                        self.state = State::Waiting(attempt, ask, held);
                        return Poll::Pending;
                    }
                    Poll::Ready(Some(Ok(event))) => {
                        let early = matches!(event, Event::PromptLogprobs(_) | Event::Started(_));
                        held.push(event);
                        if early && ask.may_move() && held.len() <= MOST_HELD {
                            Ok(State::Waiting(attempt, ask, held))
                        } else {
                            Ok(self.answered_by(attempt, ask, held))
                        }
                    }
                    Poll::Ready(Some(Err(error))) => {
                        let side = attempt.side;
                        // Its slot is free before another is asked for.
                        drop(attempt);
                        self.given_up(side, error, ask)
                    }
                    Poll::Ready(None) => self.given_up(attempt.side, cut_short(), ask),
                },
                State::Answering(mut attempt) => match poll_event(&mut attempt, context) {
                    Poll::Ready(Some(Ok(event))) => {
                        if !matches!(event, Event::Finished { .. }) {
                            self.state = State::Answering(attempt);
                        }
                        return Poll::Ready(Some(Ok(event)));
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                    Poll::Ready(None) => return Poll::Ready(Some(Err(cut_short()))),
                    Poll::Pending => {
                        self.state = State::Answering(attempt);
                        return Poll::Pending;
                    }
                },
            };
            match next {
                Ok(state) => self.state = state,
                Err(error) => return self.fail(error),
            }
        }
    }
}

impl Stream for Reply {
    type Item = Result<Event>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll(context)
    }
}

/// The next event, with times counted from the request's arrival.
fn poll_event(attempt: &mut Attempt, context: &mut Context<'_>) -> Poll<Option<Result<Event>>> {
    let after = attempt.after;
    let since_arrival = |usage: Usage| Usage {
        time_to_first_token: usage.time_to_first_token.map(|time| time.saturating_add(after)),
        ..usage
    };
    Pin::new(&mut attempt.stream).poll_next(context).map(|event| {
        event.map(|event| {
            event.map(|event| match event {
                Event::Started(usage) => Event::Started(since_arrival(usage)),
                Event::Finished { reason, usage } => Event::Finished { reason, usage: since_arrival(usage) },
                other => other,
            })
        })
    })
}

fn cut_short() -> Error {
    Error::new(ErrorKind::Unexpected, "a side's stream ended without an end; please report this").with_backend(NAME)
}

/// Whether running and suspended requests hold this share of what sequences may.
fn is_full(report: &MemoryReport, share: f32) -> bool {
    let held = report.kv_cache.saturating_add(report.recurrent_state).saturating_sub(report.kept_pasts);
    report.sequence_budget.is_some_and(|budget| held as f64 >= f64::from(share) * budget as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_pasts_are_room() {
        let report = MemoryReport {
            kv_cache: 600,
            recurrent_state: 300,
            kept_pasts: 400,
            sequence_budget: Some(1000),
            ..MemoryReport::default()
        };
        assert!(is_full(&report, 0.5));
        assert!(!is_full(&report, 0.51));
        assert!(is_full(&MemoryReport { kept_pasts: 0, ..report }, 0.9));
        assert!(!is_full(&MemoryReport { sequence_budget: None, ..report }, 0.1));
    }
}
