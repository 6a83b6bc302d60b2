//! Renders finished turns as later prompts will contain them, off the engine's thread.

use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use consort_core::{AdapterSet, PrefixReuse, Priority, Result};

use crate::front_end::Conversation;
use crate::past::Past;
use crate::scheduled::{Command, Shared};
use crate::sequence::{Request, Work};

/// A finished turn.
pub(crate) struct Order {
    pub(crate) conversation: Arc<Conversation>,
    pub(crate) reply: String,
    pub(crate) adapters: AdapterSet,
}

/// A thread that turns [`Order`]s into requests. It ends when it is dropped.
pub(crate) struct Keeper {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Without a thread (the system refused one, or nothing can be kept) orders are refused.
    pub(crate) fn new(shared: Arc<Shared>, commands: Sender<Command>) -> Self {
        let (orders, inbox) = mpsc::channel::<Order>();
        let run = move || {
            for order in inbox {
                let kept = match request(&shared, order) {
                    Ok(Some(request)) => commands.send(Command::Keep(Box::new(request))).is_ok(),
                    Ok(None) => false,
                    Err(error) => {
                        tracing::debug!(%error, "a finished turn cannot be kept");
                        false
                    }
                };
                if !kept {
                    shared.board.update(|gauges| gauges.background = gauges.background.saturating_sub(1));
                }
            }
        };
        let thread = std::thread::Builder::new().name("consort-keeper".into()).spawn(run).ok();
        Self { orders: thread.is_some().then_some(orders), thread }
    }

    /// Whether the order was taken; the caller has counted it as background work.
    pub(crate) fn order(&self, order: Order) -> bool {
        self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // Its panic, should there be one, was reported on its own thread and harms no reply.
            let _ = thread.join();
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
    }))
}
