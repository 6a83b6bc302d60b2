//! Counting what is held: every page, state, image and adapter counts itself when it is made and when it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes by kind, shared things once.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    kinds: [AtomicU64; 4],
}

/// What bytes are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Cache,
    State,
    Adapter,
    Image,
}

impl Ledger {
    /// What is held of this kind.
    pub(crate) fn held(&self, kind: Kind) -> u64 {
        self.kinds[kind as usize].load(Ordering::Relaxed)
    }

    /// What counts against the budget for sequences.
    pub(crate) fn sequences(&self) -> u64 {
        self.held(Kind::Cache) + self.held(Kind::State)
    }
}

/// Bytes that are counted for as long as this lives; a clone counts again.
#[derive(Debug)]
pub(crate) struct Counted {
    ledger: Arc<Ledger>,
    kind: Kind,
    bytes: u64,
}

impl Counted {
    pub(crate) fn new(ledger: &Arc<Ledger>, kind: Kind, bytes: u64) -> Self {
        ledger.kinds[kind as usize].fetch_add(bytes, Ordering::Relaxed);
        Self { ledger: ledger.clone(), kind, bytes }
    }
}

impl Clone for Counted {
    fn clone(&self) -> Self {
        Self::new(&self.ledger, self.kind, self.bytes)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.ledger.kinds[self.kind as usize].fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
