//! Counting what is held. The library allocates a context's memory at once; what of it is used is counted here, cell by cell
//! and state by state, as the library itself shares and copies them.

use std::cell::Cell;
use std::rc::Rc;

use consort_core::{Error, ErrorKind, Result};

/// What is used. Every holder counts itself when it is made and when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    cells: Cell<usize>,
    states: Cell<usize>,
    adapters: Cell<u64>,
    images: Cell<u64>,
}

impl Ledger {
    pub(crate) fn cells(&self) -> usize {
        self.cells.get()
    }

    pub(crate) fn states(&self) -> usize {
        self.states.get()
    }

    pub(crate) fn adapters(&self) -> u64 {
        self.adapters.get()
    }

    pub(crate) fn images(&self) -> u64 {
        self.images.get()
    }
}

/// Cells of attention keys and values: used ones, and ones that are kept for a sequence.
#[derive(Debug)]
pub(crate) struct Cells {
    ledger: Rc<Ledger>,
    count: usize,
}

impl Cells {
    pub(crate) fn none(ledger: &Rc<Ledger>) -> Self {
        Self { ledger: Rc::clone(ledger), count: 0 }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn grow(&mut self, more: usize) {
        self.count += more;
        self.ledger.cells.set(self.ledger.cells.get() + more);
    }

    /// Takes the first `count` away, to be held by themselves.
    pub(crate) fn split(&mut self, count: usize) -> Self {
        let count = count.min(self.count);
        self.count -= count;
        Self { ledger: Rc::clone(&self.ledger), count }
    }
}

impl Drop for Cells {
    fn drop(&mut self) {
        self.ledger.cells.set(self.ledger.cells.get().saturating_sub(self.count));
    }
}

/// One recurrent state.
#[derive(Debug)]
pub(crate) struct State {
    ledger: Rc<Ledger>,
}

impl State {
    pub(crate) fn new(ledger: &Rc<Ledger>) -> Self {
        ledger.states.set(ledger.states.get() + 1);
        Self { ledger: Rc::clone(ledger) }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.ledger.states.set(self.ledger.states.get().saturating_sub(1));
    }
}

/// What else is counted in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Adapter,
    Image,
}

/// Bytes that are counted for as long as this lives.
#[derive(Debug)]
pub(crate) struct Counted {
    ledger: Rc<Ledger>,
    kind: Kind,
    bytes: u64,
}

impl Counted {
    pub(crate) fn new(ledger: &Rc<Ledger>, kind: Kind, bytes: u64) -> Self {
        let counted = Self { ledger: Rc::clone(ledger), kind, bytes };
        counted.cell().set(counted.cell().get() + bytes);
        counted
    }

    fn cell(&self) -> &Cell<u64> {
        match self.kind {
            Kind::Adapter => &self.ledger.adapters,
            Kind::Image => &self.ledger.images,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.cell().set(self.cell().get().saturating_sub(self.bytes));
    }
}

/// What sequences of an engine share.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    pub(crate) ledger: Rc<Ledger>,
    /// Bytes of the keys and values of one token.
    pub(crate) cell_bytes: u64,
    /// Bytes of the recurrent states of one sequence.
    pub(crate) state_bytes: u64,
    /// How many cells were allocated.
    pub(crate) max_cells: usize,
    /// The most bytes of cells and states.
    pub(crate) budget: u64,
}

impl Pool {
    /// Bytes of cells.
    pub(crate) fn cache(&self, cells: usize) -> u64 {
        self.cell_bytes.saturating_mul(cells as u64)
    }

    /// Bytes of states.
    pub(crate) fn states(&self, states: usize) -> u64 {
        self.state_bytes.saturating_mul(states as u64)
    }

    /// Refuses what does not fit beside what is used.
    pub(crate) fn admit(&self, cells: usize, states: usize) -> Result<()> {
        let used = self.ledger.cells();
        if used.saturating_add(cells) > self.max_cells {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "{cells} more tokens do not fit beside {used} of {}: release or unpark others, or raise max_total_tokens",
                    self.max_cells
                ),
            ));
        }
        let held = self.cache(used).saturating_add(self.states(self.ledger.states()));
        let more = self.cache(cells).saturating_add(self.states(states));
        if held.saturating_add(more) > self.budget {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "{more} more bytes do not fit beside the {held} that sequences hold, of {}: release or unpark others, \
                     or raise sequence_memory_budget",
                    self.budget
                ),
            ));
        }
        Ok(())
    }
}
