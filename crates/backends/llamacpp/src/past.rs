//! A past: which cells and which state a sequence or a parked past holds, and in which of the library's slots it lies.

use std::cell::RefCell;
use std::rc::Rc;

use consort_core::{Position, Result, SequenceMemory};

use crate::memory::{Cells, Pool, State};

/// Slots that were given back and are still to be cleared.
pub(crate) type Returned = Rc<RefCell<Vec<u32>>>;

/// One of the library's sequences. Whoever drops it gives it back.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) number: u32,
    returned: Returned,
}

impl Slot {
    pub(crate) fn new(number: u32, returned: &Returned) -> Self {
        Self { number, returned: Rc::clone(returned) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.returned.borrow_mut().push(self.number);
    }
}

/// What of the context's memory a past holds.
#[derive(Debug)]
pub(crate) struct Past {
    pub(crate) slot: Slot,
    /// Cells that others may share: nobody writes to them any more.
    shared: Vec<Rc<Cells>>,
    /// Cells of this past alone: `written` of them, and ones that are kept for it.
    own: Cells,
    written: usize,
    /// None while the past is empty. The library shares a state until one of its holders writes.
    state: Option<Rc<State>>,
    len: usize,
    last: Option<Position>,
}

impl Past {
    pub(crate) fn empty(slot: Slot, pool: &Pool) -> Self {
        let own = Cells::none(&pool.ledger);
        Self { slot, shared: Vec::new(), own, written: 0, state: None, len: 0, last: None }
    }

    /// Tokens.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where the last token stands.
    pub(crate) fn last(&self) -> Option<Position> {
        self.last
    }

    /// Makes room for `tokens` more.
    ///
    /// # Errors
    /// `OutOfMemory` where they do not fit; nothing changed.
    pub(crate) fn grow(&mut self, pool: &Pool, tokens: usize) -> Result<()> {
        let cells = self.written.saturating_add(tokens).saturating_sub(self.own.count());
        let new_state = self.state.as_ref().is_none_or(|state| Rc::strong_count(state) > 1);
        pool.admit(cells, usize::from(new_state))?;
        self.own.grow(cells);
        if new_state {
            self.state = Some(Rc::new(State::new(&pool.ledger)));
        }
        Ok(())
    }

    /// Says that tokens were appended, for which there was room; the last of them stands at `last`.
    pub(crate) fn append(&mut self, tokens: usize, last: Option<Position>) {
        self.written += tokens;
        self.len += tokens;
        self.last = last.or(self.last);
    }

    /// The same past in another slot, to which the library has copied it. Kept cells stay with the original.
    pub(crate) fn share(&mut self, slot: Slot, pool: &Pool) -> Self {
        if self.written > 0 {
            self.shared.push(Rc::new(self.own.split(self.written)));
            self.written = 0;
        }
        Self {
            slot,
            shared: self.shared.clone(),
            own: Cells::none(&pool.ledger),
            written: 0,
            state: self.state.clone(),
            len: self.len,
            last: self.last,
        }
    }

    /// What it holds alone, and with others.
    pub(crate) fn memory(&self, pool: &Pool) -> SequenceMemory {
        let mut memory = SequenceMemory { unique: pool.cache(self.own.count()), shared: 0 };
        for cells in &self.shared {
            let bytes = pool.cache(cells.count());
            *(if Rc::strong_count(cells) > 1 { &mut memory.shared } else { &mut memory.unique }) += bytes;
        }
        if let Some(state) = &self.state {
            let place = if Rc::strong_count(state) > 1 { &mut memory.shared } else { &mut memory.unique };
            *place += pool.state_bytes;
        }
        memory
    }

    /// What a copy costs when this past has gone: its state, and the cells that only the two share.
    pub(crate) fn copy_bytes(&self, pool: &Pool) -> u64 {
        let alone = self.shared.iter().filter(|cells| Rc::strong_count(cells) == 1).map(|cells| cells.count());
        let state = if self.state.is_some() { pool.state_bytes } else { 0 };
        pool.cache(alone.sum::<usize>() + self.written).saturating_add(state)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::memory::Ledger;

    fn pool() -> Pool {
        Pool { ledger: Rc::new(Ledger::default()), cell_bytes: 10, state_bytes: 1000, max_cells: 100, budget: 10_000 }
    }

    #[test]
    fn what_is_shared_counts_once() {
        let (pool, returned) = (pool(), Returned::default());
        let slot = |number| Slot::new(number, &returned);
        let mut one = Past::empty(slot(0), &pool);
        one.grow(&pool, 30).unwrap();
        one.append(20, Some(Position::text(19)));
        assert_eq!((pool.ledger.cells(), pool.ledger.states()), (30, 1));
        assert_eq!(one.copy_bytes(&pool), 1200);
        let mut two = one.share(slot(1), &pool);
        assert_eq!((pool.ledger.cells(), pool.ledger.states()), (30, 1));
        assert_eq!(two.memory(&pool), SequenceMemory { unique: 0, shared: 1200 });
        assert_eq!(one.memory(&pool), SequenceMemory { unique: 100, shared: 1200 });
        // The first to write takes a state of its own, and the kept cells are its own.
        one.grow(&pool, 10).unwrap();
        assert_eq!((pool.ledger.cells(), pool.ledger.states()), (30, 2));
        two.grow(&pool, 5).unwrap();
        two.append(5, None);
        assert_eq!((pool.ledger.cells(), pool.ledger.states()), (35, 2));
        assert!(two.grow(&pool, 66).is_err());
        drop(one);
        assert_eq!((pool.ledger.cells(), pool.ledger.states()), (25, 1));
        assert_eq!(two.memory(&pool), SequenceMemory { unique: 1250, shared: 0 });
        drop(two);
        assert_eq!((pool.ledger.cells(), pool.ledger.states()), (0, 0));
        assert_eq!(*returned.borrow(), [0, 1]);
    }
}
