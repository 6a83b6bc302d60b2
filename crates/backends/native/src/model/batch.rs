//! The tokens of a batch, and to which sequence each belongs.

use consort_core::Position;
use consort_peft::Linear;
use rayon::prelude::*;

use crate::sequence::Sequence;
use crate::weights::{Compute, Matrix};

/// One sequence's part of a batch.
pub(crate) struct Item {
    /// The sequence; its length is still that before the step, its pages and state have room.
    pub(crate) sequence: Sequence,
    /// Where its rows begin.
    pub(crate) start: usize,
    /// How many they are.
    pub(crate) count: usize,
}

/// All parts. Rows of activations are in the order of the items.
pub(crate) struct Batch {
    pub(crate) items: Vec<Item>,
    /// One per row.
    pub(crate) positions: Vec<Position>,
}

impl Batch {
    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.positions.len()
    }

    /// For each row, its item's index and its index within the item.
    pub(crate) fn places(&self) -> Vec<(usize, usize)> {
        let places = |(index, item): (usize, &Item)| (0..item.count).map(move |row| (index, row));
        self.items.iter().enumerate().flat_map(places).collect()
    }

    /// `matrix` times each row of `x`, and what each sequence's adapters add to the rows that they touch.
    pub(crate) fn linear(
        &self,
        compute: Compute,
        matrix: &Matrix,
        (layer, linear): (usize, Linear),
        x: &[f32],
    ) -> Vec<f32> {
        let mut out = matrix.times(compute, x);
        let (rows, cols) = (matrix.rows(), x.len() / self.rows().max(1));
        for item in &self.items {
            for (adapter, scale, first) in item.sequence.active(0, item.count) {
                if let Some(change) = adapter.get(layer, linear) {
                    let (start, count) = (item.start + first, item.count - first);
                    let x = &x[start * cols..][..count * cols];
                    change.add_rows(compute, scale, x, &mut out[start * rows..][..count * rows]);
                }
            }
        }
        out
    }
}

/// Runs `change(index, row)` for each row of `width` numbers, on several threads when `work` multiply-adds are worth it.
pub(crate) fn each_row(
    compute: Compute,
    work: usize,
    rows: &mut [f32],
    width: usize,
    change: impl Fn(usize, &mut [f32]) + Sync,
) {
    if compute.is_parallel(work) {
        let each = (rows.len() / width).div_ceil(compute.threads * 4).max(1);
        rows.par_chunks_mut(width * each).enumerate().for_each(|(part, rows)| {
            for (index, row) in rows.chunks_exact_mut(width).enumerate() {
                change(part * each + index, row);
            }
        });
    } else {
        for (index, row) in rows.chunks_exact_mut(width).enumerate() {
            change(index, row);
        }
    }
}
