//! The bounded buffer between the engine's thread and a reader, and one-shot answers.
//!
//! A reader that is too slow fills its buffer; the worker then leaves its sequence out of the steps and goes on with the
//! others. A reader that goes away cancels. Either way the worker is woken by a callback, so that it can sleep meanwhile.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use consort_core::{Error, Event, Result};
use futures_core::Stream;

use crate::metrics::Ended;

struct State {
    events: VecDeque<Result<Event>>,
    capacity: usize,
    waker: Option<Waker>,
    /// The worker left the sequence out because the buffer was full.
    paused: bool,
    /// The last event is in the buffer.
    ended: bool,
    /// The reader is gone.
    cancelled: bool,
}

struct Buffer {
    state: Mutex<State>,
}

impl Buffer {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock, and the state is whole at each of its ends.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the worker.
pub(crate) type Wake = Arc<dyn Fn() + Send + Sync>;

/// A buffer of `capacity` events; `wake` is called when the worker has a reason to look.
pub(crate) fn channel(capacity: usize, wake: Wake) -> (EventSender, EventReceiver) {
    let state = State { events: VecDeque::new(), capacity, waker: None, paused: false, ended: false, cancelled: false };
    let buffer = Arc::new(Buffer { state: Mutex::new(state) });
    (EventSender { buffer: Arc::clone(&buffer) }, EventReceiver { buffer, wake })
}

/// Why a reply or an answer that nobody gave will never come: what holds it is dropped with its worker, and a worker that
/// is dropped by a panic is one whose engine panicked.
fn ending() -> Error {
    if std::thread::panicking() { Ended::Panicked.error() } else { Ended::ShutDown.error() }
}

/// The worker's end.
pub(crate) struct EventSender {
    buffer: Arc<Buffer>,
}

impl EventSender {
    /// Whether the sequence may go on. If not, the worker is woken when the reader has caught up.
    pub(crate) fn has_room(&self) -> bool {
        let mut state = self.buffer.lock();
        state.paused = state.events.len() >= state.capacity && !state.cancelled;
        !state.paused
    }

    /// Whether the reader is gone.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.buffer.lock().cancelled
    }

    /// Adds an event. What one step gives is always taken, so the capacity can be passed by one or two events.
    pub(crate) fn send(&self, event: Event) {
        let ended = matches!(event, Event::Finished { .. });
        self.push(Ok(event), ended);
    }

    /// Ends the stream with an error.
    pub(crate) fn fail(&self, error: Error) {
        self.push(Err(error), true);
    }

    fn push(&self, event: Result<Event>, ended: bool) {
        let mut state = self.buffer.lock();
        if state.ended || state.cancelled {
            return;
        }
        state.events.push_back(event);
        state.ended = ended;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        self.fail(ending());
    }
}

/// The reader's end. Dropping it cancels.
pub(crate) struct EventReceiver {
    buffer: Arc<Buffer>,
    wake: Wake,
}

impl Stream for EventReceiver {
    type Item = Result<Event>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.buffer.lock();
        let Some(event) = state.events.pop_front() else {
            if state.ended {
                return Poll::Ready(None);
            }
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        // Half empty rather than one free place: a sequence that pauses and resumes at each token helps nobody.
        let resume = state.paused && state.events.len() <= state.capacity / 2;
        if resume {
            state.paused = false;
        }
        drop(state);
        if resume {
            (self.wake)();
        }
        Poll::Ready(Some(event))
    }
}

impl Drop for EventReceiver {
    fn drop(&mut self) {
        let mut state = self.buffer.lock();
        state.cancelled = true;
        state.events.clear();
        let ended = state.ended;
        drop(state);
        if !ended {
            (self.wake)();
        }
    }
}

struct Slot<T> {
    value: Option<Result<T>>,
    waker: Option<Waker>,
}

/// Where one answer will be.
pub(crate) struct Answer<T> {
    slot: Arc<Mutex<Slot<T>>>,
}

/// Who gives the answer. Dropped without one, it answers that the backend shut down.
pub(crate) struct Answerer<T> {
    slot: Arc<Mutex<Slot<T>>>,
}

/// A question's two ends.
pub(crate) fn question<T>() -> (Answerer<T>, Answer<T>) {
    let slot = Arc::new(Mutex::new(Slot { value: None, waker: None }));
    (Answerer { slot: Arc::clone(&slot) }, Answer { slot })
}

impl<T> Answerer<T> {
    /// Answers; only the first answer counts.
    pub(crate) fn answer(&self, value: Result<T>) {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.value.get_or_insert(value);
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.slot) == 1
    }
}

impl<T> Drop for Answerer<T> {
    fn drop(&mut self) {
        if !self.is_abandoned() {
            self.answer(Err(ending()));
        }
    }
}

impl<T> Future for Answer<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        match slot.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                slot.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use consort_core::{ErrorKind, EventStream, FinishReason, Usage, block_on};

    use super::*;

    fn counted() -> (Wake, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let clone = Arc::clone(&count);
        let wake = move || {
            clone.fetch_add(1, Ordering::SeqCst);
        };
        (Arc::new(wake), count)
    }

    fn finished() -> Event {
        Event::Finished { reason: FinishReason::Length, usage: Usage::default() }
    }

    #[test]
    fn a_full_buffer_pauses_and_a_reader_that_catches_up_wakes() {
        let (wake, woken) = counted();
        let (sender, receiver) = channel(2, wake);
        let mut reader = EventStream::new(receiver).blocking();
        assert!(sender.has_room());
        sender.send(Event::Started(Usage::default()));
        sender.send(Event::Started(Usage::default()));
        assert!(!sender.has_room());
        assert_eq!(woken.load(Ordering::SeqCst), 0);
        reader.next().unwrap().unwrap();
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        assert!(sender.has_room());
        sender.send(finished());
        drop(sender);
        assert_eq!(reader.by_ref().count(), 2);
        drop(reader);
        assert_eq!(woken.load(Ordering::SeqCst), 1, "a reader that read to the end does not cancel");
    }

    #[test]
    fn dropping_the_reader_cancels_and_dropping_the_sender_ends() {
        let (wake, woken) = counted();
        let (sender, receiver) = channel(2, wake);
        drop(receiver);
        assert!(sender.is_cancelled() && woken.load(Ordering::SeqCst) == 1);

        let (sender, receiver) = channel(2, counted().0);
        drop(sender);
        let events: Vec<_> = EventStream::new(receiver).blocking().collect();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].as_ref().unwrap_err().kind(), ErrorKind::Cancelled);
    }

    #[test]
    fn a_question_is_answered_once_or_given_up() {
        let (answerer, answer) = question();
        answerer.answer(Ok(1));
        answerer.answer(Ok(2));
        assert_eq!(block_on(answer).unwrap(), 1);
        let (answerer, answer) = question::<u32>();
        drop(answerer);
        assert_eq!(block_on(answer).unwrap_err().kind(), ErrorKind::Cancelled);
        let (answerer, answer) = question::<u32>();
        drop(answer);
        assert!(answerer.is_abandoned());
    }
}
