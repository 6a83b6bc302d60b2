//! Masks of grammars, computed while the model computes the next logits.
//!
//! What may come next depends on the tokens that came and on nothing else, so it is worked out on other threads between the
//! moment a token is chosen and the moment the next row of logits is there. A grammar that takes long delays its own reply.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use consort_core::{Error, ErrorKind, Result};
use consort_grammar::Matcher;
use consort_sampling::TokenMask;

/// Threads that compute masks. One may be busy with a hostile grammar.
const THREADS: usize = 2;

/// A matcher and what it allows next.
pub(crate) type Ready = (Matcher, TokenMask);

struct Order {
    matcher: Matcher,
    answer: Sender<Result<Ready>>,
}

/// The threads, started when the first grammar comes and ended with the backend.
#[derive(Default)]
pub(crate) struct Masks {
    orders: OnceLock<Mutex<Sender<Order>>>,
}

impl Masks {
    /// Has the next mask computed.
    pub(crate) fn order(&self, matcher: Matcher) -> Receiver<Result<Ready>> {
        let (answer, ready) = mpsc::channel();
        let orders = self.orders.get_or_init(start).lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(mpsc::SendError(order)) = orders.send(Order { matcher, answer }) {
            // No thread could be started: then it is done here.
            drop(orders);
            serve(order);
        }
        ready
    }
}

fn serve(order: Order) {
    let Order { mut matcher, answer } = order;
    let ready = matcher.mask().map(|mask| (matcher, mask));
    // The reply may be gone.
    let _ = answer.send(ready);
}

fn start() -> Mutex<Sender<Order>> {
    let (sender, receiver) = mpsc::channel::<Order>();
    let receiver = Arc::new(Mutex::new(receiver));
    for index in 0..THREADS {
        let receiver = Arc::clone(&receiver);
        let work = move || {
            loop {
                let order = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(order) = order else { return };
                serve(order);
            }
        };
        if let Err(error) = std::thread::Builder::new().name(format!("consort-grammar-{index}")).spawn(work) {
            tracing::warn!(%error, "a thread for grammars could not be started");
        }
    }
    Mutex::new(sender)
}

/// Waits for a mask.
///
/// # Errors
/// What the matcher says; [`ErrorKind::Unexpected`] when the thread is gone.
pub(crate) fn wait(receiver: &Receiver<Result<Ready>>) -> Result<Ready> {
    receiver
        .recv()
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Unexpected, "the thread that matches grammars is gone")))
}
