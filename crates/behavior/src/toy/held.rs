//! Memory that counts itself.

use std::cell::Cell;
use std::rc::Rc;

/// How many bytes of one kind are held.
#[derive(Clone, Default)]
pub(super) struct Counter(Rc<Cell<u64>>);

impl Counter {
    pub(super) fn hold(&self, bytes: u64) -> Held {
        self.0.set(self.0.get() + bytes);
        Held { bytes, counter: self.clone() }
    }

    pub(super) fn total(&self) -> u64 {
        self.0.get()
    }
}

/// Bytes that are counted until this is dropped.
pub(super) struct Held {
    bytes: u64,
    counter: Counter,
}

impl Held {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives up to `bytes` back.
    pub(super) fn shrink(&mut self, bytes: u64) {
        let given = bytes.min(self.bytes);
        self.bytes -= given;
        self.counter.0.set(self.counter.0.get() - given);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}
