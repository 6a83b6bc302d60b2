//! Renders finished turns as later prompts will contain them, off the engine's thread.

use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use consort_core::{AdapterSet, PrefixReuse, Priority, Result};

use crate::front_end::Conversation;
use crate::metrics::Books;
use crate::past::Past;
use crate::scheduled::{Command, Shared};
use crate::sequence::{Request, Work};

/// A finished turn.
pub(crate) struct Order {
    pub(crate) conversation: Arc<Conversation>,
    pub(crate) reply: String,
    pub(crate) adapters: AdapterSet,
}

/// Turns [`Order`]s into requests.
pub(crate) enum Keeper {
    /// On a thread of its own, which ends when this is dropped.
    Thread { orders: Option<Sender<Order>>, thread: Option<JoinHandle<()>> },
    /// At once, on the caller's thread, so that a simulation is the same each time.
    Here { shared: Arc<Shared>, commands: Sender<Command> },
}

impl Keeper {
    /// Without a thread (the system refused one) orders are refused.
    pub(crate) fn threaded(shared: Arc<Shared>, commands: Sender<Command>) -> Self {
        let (orders, inbox) = mpsc::channel::<Order>();
        let run = move || {
            for order in inbox {
                if !keep(&shared, &commands, order) {
                    shared.board.update(Books::leave_background);
                }
            }
        };
        let thread = std::thread::Builder::new().name("consort-keeper".into()).spawn(run).ok();
        Self::Thread { orders: thread.is_some().then_some(orders), thread }
    }

    /// Whether the order was taken; the caller has counted it as background work.
    pub(crate) fn order(&self, order: Order) -> bool {
        match self {
            Self::Thread { orders, .. } => orders.as_ref().is_some_and(|orders| orders.send(order).is_ok()),
            Self::Here { shared, commands } => keep(shared, commands, order),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Self::Thread { orders, thread } = self {
            *orders = None;
            if let Some(thread) = thread.take() {
                // Its panic, should there be one, was reported on its own thread and harms no reply.
                let _ = thread.join();
            }
        }
    }
}

/// Whether the request was made and sent.
fn keep(shared: &Shared, commands: &Sender<Command>, order: Order) -> bool {
    match request(shared, order) {
        Ok(Some(request)) => commands.send(Command::Keep(Box::new(request))).is_ok(),
        Ok(None) => false,
        Err(error) => {
            tracing::debug!(%error, "a finished turn cannot be kept");
            false
        }
    }
}

fn request(shared: &Shared, order: Order) -> Result<Option<Request>> {
    let parts = shared.preparer.next_turn(&order.conversation, &order.reply)?;
    if parts.is_empty() {
        return Ok(None);
    }
    let mut past = Past::new(parts)?;
    shared.preparer.check_length(past.len())?;
    shared.seal(&mut past, &order.adapters, PrefixReuse::Shared);
    Ok(Some(Request {
        id: shared.next_id(),
        priority: Priority::Background,
        reuse: PrefixReuse::Shared,
        adapters: order.adapters,
        past,
        borders: Vec::new(),
        work: Work::Keep,
        arrived: shared.clock.now(),
    }))
}
