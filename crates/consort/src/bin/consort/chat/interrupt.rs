//! Ctrl-C stops the reply, not the program.
//!
//! While a line is edited the terminal hands Ctrl-C to the editor as a key. While a reply streams it is a signal: it wakes
//! whoever waits for the next token, even in the middle of a long prefill.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use consort_core::{Error, ErrorKind, Result};

/// What an interrupt does while no reply streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenIdle {
    /// It ends the program, as in any other filter.
    Leave,
    /// Nothing: on a terminal the editor knows what to do with the key.
    Stay,
}

/// The exit code of a program that was interrupted, as shells have it.
const INTERRUPTED: i32 = 130;

/// The program's handler.
#[derive(Debug, Clone)]
pub struct Interrupt {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    watched: bool,
    pressed: bool,
    waker: Option<Waker>,
}

impl Shared {
    /// Whether the interrupt was for a reply.
    fn press(&mut self) -> bool {
        if self.watched {
            self.pressed = true;
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
        self.watched
    }
}

impl Interrupt {
    /// Takes the process's interrupts over.
    ///
    /// # Errors
    /// [`ErrorKind::Unexpected`] when somebody else has.
    pub fn install(when_idle: WhenIdle) -> Result<Self> {
        let interrupt = Self { shared: Arc::default() };
        let shared = Arc::clone(&interrupt.shared);
        let pressed = move || {
            let taken = lock(&shared).press();
            if !taken && when_idle == WhenIdle::Leave {
                std::process::exit(INTERRUPTED);
            }
        };
        ctrlc::set_handler(pressed).map_err(|source| {
            Error::new(ErrorKind::Unexpected, "interrupts could not be taken over").with_source(source)
        })?;
        Ok(interrupt)
    }

    /// From here on, until the guard is dropped, an interrupt is for the reply.
    pub fn watch(&self) -> Watch<'_> {
        *lock(&self.shared) = Shared { watched: true, ..Shared::default() };
        Watch { shared: &self.shared }
    }
}

/// A reply that can be interrupted.
#[derive(Debug)]
pub struct Watch<'i> {
    shared: &'i Mutex<Shared>,
}

impl Watch<'_> {
    /// Ready once it was interrupted; else the task is woken when it is.
    pub fn poll(&self, context: &Context<'_>) -> Poll<()> {
        let mut shared = lock(self.shared);
        if shared.pressed {
            return Poll::Ready(());
        }
        shared.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        *lock(self.shared) = Shared::default();
    }
}

/// What is behind the lock is whole after every statement, so a panic elsewhere does not spoil it.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_interrupt_wakes_who_waits_and_is_forgotten_with_the_reply() {
        let interrupt = Interrupt { shared: Arc::default() };
        assert!(!lock(&interrupt.shared).press(), "no reply streams");
        let watch = interrupt.watch();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                assert!(lock(&interrupt.shared).press());
            });
            consort_core::block_on(poll_fn(|context| watch.poll(context)));
        });
        drop(watch);
        let next = interrupt.watch();
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(next.poll(&context), Poll::Pending, "an interrupt counts for one reply");
        lock(&interrupt.shared).press();
        context = Context::from_waker(Waker::noop());
        assert_eq!(next.poll(&context), Poll::Ready(()));
    }
}
