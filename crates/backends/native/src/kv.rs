//! Pages of attention keys and values. Sequences share them until one writes.

use std::sync::Arc;

use crate::memory::{Counted, Kind, Ledger};
use crate::model::shape::{LayerKind, TextShape};

/// Tokens per page.
pub(crate) const PAGE: usize = 32;

/// How pages of a model are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageShape {
    /// Attention layers.
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl PageShape {
    pub(crate) fn new(shape: &TextShape) -> Self {
        let attention = &shape.attention;
        Self { layers: shape.count(LayerKind::Attention), kv_heads: attention.kv_heads, head_dim: attention.head_dim }
    }

    /// Numbers of one head's keys in a page.
    fn head(self) -> usize {
        PAGE * self.head_dim
    }

    fn numbers(self) -> usize {
        self.layers * 2 * self.kv_heads * self.head()
    }

    /// Bytes of a page.
    pub(crate) fn bytes(self) -> u64 {
        4 * self.numbers() as u64
    }
}

/// The keys and values of [`PAGE`] tokens: `[attention layer][keys, values][kv head][token][head_dim]`, f32.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    values: Vec<f32>,
    shape: PageShape,
    _counted: Counted,
}

impl Page {
    pub(crate) fn new(shape: PageShape, ledger: &Arc<Ledger>) -> Self {
        let counted = Counted::new(ledger, Kind::Cache, shape.bytes());
        Self { values: vec![0.0; shape.numbers()], shape, _counted: counted }
    }

    fn head(&self, slot: usize, values: usize, head: usize) -> std::ops::Range<usize> {
        let start = ((slot * 2 + values) * self.shape.kv_heads + head) * self.shape.head();
        start..start + self.shape.head()
    }

    /// The keys of a head, `[PAGE, head_dim]`.
    pub(crate) fn keys(&self, slot: usize, head: usize) -> &[f32] {
        &self.values[self.head(slot, 0, head)]
    }

    /// The values of a head, `[PAGE, head_dim]`.
    pub(crate) fn values(&self, slot: usize, head: usize) -> &[f32] {
        &self.values[self.head(slot, 1, head)]
    }

    /// Writes the keys and values `[kv_heads, head_dim]` of the page's token `index`.
    pub(crate) fn write(&mut self, slot: usize, index: usize, keys: &[f32], values: &[f32]) {
        let dim = self.shape.head_dim;
        for (which, rows) in [keys, values].into_iter().enumerate() {
            for (head, row) in rows.chunks_exact(dim).enumerate() {
                let range = self.head(slot, which, head);
                self.values[range][index * dim..][..dim].copy_from_slice(row);
            }
        }
    }
}
