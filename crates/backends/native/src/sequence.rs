//! A sequence: its past, as pages and a state that others may share, and its adapters.

use std::sync::Arc;

use consort_core::{AdapterSet, Error, ErrorKind, Result, SequenceMemory};

use crate::kv::{PAGE, Page, PageShape};
use crate::lora::Adapter;
use crate::memory::Ledger;
use crate::state::{State, StateShape};
use crate::weights::Compute;

/// What sequences of an engine have in common.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    pub(crate) page: PageShape,
    pub(crate) state: StateShape,
    pub(crate) ledger: Arc<Ledger>,
    /// The most bytes that pages and states may take.
    pub(crate) budget: Option<u64>,
}

impl Pool {
    /// Refuses `bytes` more where the budget does not allow them.
    pub(crate) fn admit(&self, bytes: u64) -> Result<()> {
        let held = self.ledger.sequences();
        match self.budget {
            Some(budget) if held.saturating_add(bytes) > budget => Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "{bytes} more bytes do not fit beside the {held} that sequences hold, of {budget}: release or unpark \
                     others, or raise sequence_memory_budget"
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// A past and its adapters. A clone shares everything until one of the two grows.
#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    len: usize,
    /// Pages that hold `len` tokens, and perhaps reserved ones, which nobody shares.
    pages: Vec<Arc<Page>>,
    /// None while the past is empty.
    state: Option<Arc<State>>,
    adapters: AdapterSet,
    /// The weights of each binding, in the same order. None where it is parked: weights must be free to leave meanwhile.
    weights: Vec<Arc<Adapter>>,
}

impl Sequence {
    /// An empty one, with the weights of each binding.
    pub(crate) fn new(adapters: AdapterSet, weights: Vec<Arc<Adapter>>) -> Self {
        Self { len: 0, pages: Vec::new(), state: None, adapters, weights }
    }

    /// Tokens of the past.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Its adapters.
    pub(crate) fn adapters(&self) -> &AdapterSet {
        &self.adapters
    }

    /// The weights of each of its adapters, in order.
    pub(crate) fn weights(&self) -> &[Arc<Adapter>] {
        &self.weights
    }

    /// The same past, shared; reserved room stays with the original.
    pub(crate) fn share(&self) -> Self {
        self.share_with(self.adapters.clone(), self.weights.clone())
    }

    /// The same past, shared, to go on with other adapters.
    pub(crate) fn share_with(&self, adapters: AdapterSet, weights: Vec<Arc<Adapter>>) -> Self {
        let pages = self.pages.iter().take(self.len.div_ceil(PAGE)).cloned().collect();
        Self { len: self.len, pages, state: self.state.clone(), adapters, weights }
    }

    /// What its adapters change of `count` tokens that come `skipped` after its past: each one's weights and scale, and the
    /// first of these tokens that it touches.
    pub(crate) fn active(&self, skipped: usize, count: usize) -> impl Iterator<Item = (&Adapter, f32, usize)> {
        let start = self.len + skipped;
        self.adapters.bindings().iter().zip(&self.weights).filter_map(move |(binding, weights)| {
            let first = binding.active_from.saturating_sub(start);
            (first < count).then_some((weights.as_ref(), binding.scale, first))
        })
    }

    /// Makes room for `tokens` more that this sequence alone can write to.
    ///
    /// # Errors
    /// `OutOfMemory` beyond the budget; nothing changed.
    pub(crate) fn grow(&mut self, pool: &Pool, tokens: usize) -> Result<()> {
        let missing = self.len.saturating_add(tokens).div_ceil(PAGE).saturating_sub(self.pages.len());
        // Only the page that is written to next can be shared and partly empty.
        let shared_page = match self.pages.get(self.len / PAGE) {
            Some(page) if Arc::strong_count(page) > 1 => 1,
            _ => 0,
        };
        let new_state = self.state.as_ref().is_none_or(|state| Arc::strong_count(state) > 1);
        let pages = (missing as u64 + shared_page).saturating_mul(pool.page.bytes());
        pool.admit(pages.saturating_add(if new_state { pool.state.bytes() } else { 0 }))?;

        match &mut self.state {
            Some(state) => _ = Arc::make_mut(state),
            None => self.state = Some(Arc::new(State::new(pool.state, &pool.ledger))),
        }
        if let Some(page) = self.pages.get_mut(self.len / PAGE) {
            Arc::make_mut(page);
        }
        self.pages.extend((0..missing).map(|_| Arc::new(Page::new(pool.page, &pool.ledger))));
        Ok(())
    }

    /// Counts `tokens` that have been appended to every layer.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    pub(crate) fn pages(&self) -> impl Iterator<Item = &Page> {
        self.pages.iter().map(Arc::as_ref)
    }

    /// Writes keys and values `[rows, kv_heads · head_dim]` after the past, into an attention layer; [`grow`](Self::grow)
    /// has made room.
    pub(crate) fn append(&mut self, slot: usize, width: usize, keys: &[f32], values: &[f32]) {
        for (index, (keys, values)) in keys.chunks_exact(width).zip(values.chunks_exact(width)).enumerate() {
            let at = self.len + index;
            if let Some(page) = self.pages.get_mut(at / PAGE) {
                Arc::make_mut(page).write(slot, at % PAGE, keys, values);
            }
        }
    }

    /// The recurrent state of a delta net layer.
    pub(crate) fn state(&mut self, slot: usize) -> &mut [f32] {
        self.state.as_mut().map_or(&mut [], |state| Arc::make_mut(state).recurrent(slot))
    }

    /// The convolution window of a delta net layer.
    pub(crate) fn window(&self, slot: usize) -> &[f32] {
        self.state.as_ref().map_or(&[], |state| state.window(slot))
    }

    /// Moves the convolution window over `new` rows.
    pub(crate) fn slide_window(&mut self, slot: usize, new: &[f32]) {
        if let Some(state) = &mut self.state {
            Arc::make_mut(state).slide(slot, new);
        }
    }

    /// Adds what the adapters change of the head to logits `[count, vocab]`, for normed rows `[count, hidden]` of the tokens
    /// that come `skipped` after its past.
    pub(crate) fn change_head(
        &self,
        compute: Compute,
        (skipped, count): (usize, usize),
        rows: &[f32],
        logits: &mut [f32],
    ) {
        for (adapter, scale, first) in self.active(skipped, count) {
            if let Some(change) = &adapter.head {
                let (hidden, vocab) = (rows.len() / count, logits.len() / count);
                change.add_rows(compute, scale, &rows[first * hidden..], &mut logits[first * vocab..]);
            }
        }
    }

    /// What a past that shares this one costs when this one goes on or is gone: the state, and the pages that no other
    /// past holds.
    pub(crate) fn parked_bytes(&self, pool: &Pool) -> u64 {
        let own = self.pages.iter().take(self.len.div_ceil(PAGE)).filter(|page| Arc::strong_count(page) == 1);
        own.count() as u64 * pool.page.bytes() + if self.state.is_some() { pool.state.bytes() } else { 0 }
    }

    /// What it holds.
    pub(crate) fn memory(&self, pool: &Pool) -> SequenceMemory {
        let mut memory = SequenceMemory::default();
        let mut count = |shared: bool, bytes: u64| {
            *(if shared { &mut memory.shared } else { &mut memory.unique }) += bytes;
        };
        for page in &self.pages {
            count(Arc::strong_count(page) > 1, pool.page.bytes());
        }
        if let Some(state) = &self.state {
            count(Arc::strong_count(state) > 1, pool.state.bytes());
        }
        memory
    }
}
