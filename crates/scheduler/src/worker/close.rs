//! How a job leaves the books, or its slot.

use consort_core::{Engine, Error, ErrorKind, Event, FinishReason, PrefixReuse};

use super::Worker;
use crate::keeper::Order;
use crate::metrics::Books;
use crate::sequence::{Job, Work};

/// Where a job is when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Queued,
    Running,
}

/// How a job leaves the books.
pub(super) enum Closing {
    Finished(Option<FinishReason>),
    Cancelled,
    Failed(Error),
    /// This deadline of it has passed.
    Late(Deadline, Error),
}

/// A deadline of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deadline {
    FirstToken,
    Total,
}

/// What becomes of a running job's past when it has to give its slot up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meanwhile {
    /// It is parked, where the engine can; else it is computed anew.
    Park,
    /// It is unknown: it is computed anew.
    Replay,
}

impl<E: Engine> Worker<E> {
    /// Writes a job off: its memory is given back, the books are made, and then its reader learns of it.
    pub(super) fn close(&mut self, mut job: Job, place: Place, closing: Closing) {
        if let Some(slot) = job.slot.take() {
            self.engine.release(slot.seq);
        }
        job.parked = None;
        job.images.clear();
        // Before the gauges: whoever waits for them reads these next.
        self.publish();
        let order = self.order(&mut job, &closing);
        let most = self.shared.config.max_background as u64;
        let (is_keep, priority) = (job.is_keep(), job.priority);
        let order = self.books(|books| {
            match (is_keep, place) {
                (true, _) => books.leave_background(),
                (false, Place::Queued) => books.leave_queue(priority),
                (false, Place::Running) => books.leave_running(),
            }
            let metrics = &mut books.metrics;
            match &closing {
                _ if is_keep => {}
                Closing::Finished(_) => metrics.finished += 1,
                Closing::Cancelled => metrics.cancelled += 1,
                // Deadlines are ours: an engine that speaks of one means something else.
                Closing::Failed(error) if error.kind() == ErrorKind::DeadlineExceeded => {
                    metrics.failed += 1;
                    metrics.failures.engine += 1;
                }
                Closing::Failed(error) | Closing::Late(_, error) => {
                    metrics.failed += 1;
                    metrics.failures.count(error.kind());
                }
            }
            match &closing {
                Closing::Late(Deadline::FirstToken, _) => metrics.missed_first_token += 1,
                Closing::Late(Deadline::Total, _) => metrics.missed_total += 1,
                _ => {}
            }
            let order = order.filter(|_| metrics.background < most);
            metrics.background += u64::from(order.is_some());
            order
        });
        let refused = |order: Order| !self.keeper.as_ref().is_some_and(|keeper| keeper.order(order));
        if order.is_some_and(refused) {
            self.books(Books::leave_background);
        }
        match (job.work, closing) {
            (Work::Reply(reply), Closing::Finished(reason)) => {
                let reason = reason.unwrap_or(FinishReason::Length);
                reply.events.send(Event::Finished { reason, usage: reply.usage });
            }
            (Work::Reply(reply), Closing::Failed(error) | Closing::Late(_, error)) => reply.events.fail(error),
            (Work::Embed(embed), Closing::Finished(_)) => embed.answer.answer(Ok(embed.sum)),
            (Work::Embed(embed), Closing::Failed(error) | Closing::Late(_, error)) => embed.answer.answer(Err(error)),
            (Work::Keep, Closing::Failed(error) | Closing::Late(_, error)) => {
                tracing::debug!(%error, "a finished turn was not kept");
            }
            (_, Closing::Cancelled) | (Work::Keep, Closing::Finished(_)) => {}
        }
    }

    /// What is to be kept of a reply that finished.
    fn order(&self, job: &mut Job, closing: &Closing) -> Option<Order> {
        let lasting = job.lasting_adapters();
        let (Closing::Finished(_), Work::Reply(reply)) = (closing, &mut job.work) else { return None };
        if job.reuse != PrefixReuse::Shared || self.keeper.is_none() {
            return None;
        }
        let text = std::mem::take(&mut reply.text);
        reply.conversation.take().map(|conversation| Order { conversation, reply: text, adapters: lasting })
    }

    /// Puts a running job back into the queue.
    pub(super) fn suspend(&mut self, index: usize, meanwhile: Meanwhile) {
        let now = self.shared.clock.now();
        let mut job = self.running.swap_remove(index);
        let began = job.done() > 0;
        if let Some(slot) = job.slot.take() {
            if meanwhile == Meanwhile::Park && self.shared.capability.park && slot.done > 0 {
                job.parked = self.engine.park(slot.seq).ok().filter(|parked| parked.tokens() == slot.done);
            }
            self.engine.release(slot.seq);
        }
        job.standing.suspended(now);
        job.is_owed_memory = false;
        job.queued_since = now;
        let (is_keep, priority, parked) = (job.is_keep(), job.priority, job.parked.is_some());
        self.books(|books| {
            if !is_keep {
                books.leave_running();
                books.join_queue(priority);
            }
            let metrics = &mut books.metrics;
            match meanwhile {
                Meanwhile::Replay => metrics.replays += 1,
                Meanwhile::Park if parked => metrics.preempted_parked += 1,
                // What had not begun loses nothing.
                Meanwhile::Park => metrics.preempted_recomputed += u64::from(began),
            }
        });
        self.queue.push(job);
        self.cap_parked();
    }
}
