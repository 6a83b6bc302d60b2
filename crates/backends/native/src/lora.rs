//! Low-rank adapters, applied per sequence and from a token on: `y += scale · B (A x)`.

use std::sync::Arc;

use consort_core::{AdapterInfo, AdapterSource, Result};
use consort_peft::{Linear, ModelAdapter, Place, TensorDelta};

use crate::kernels::{Format, KernelSet, Matmul};
use crate::memory::{Counted, Kind, Ledger};
use crate::model::batch::each_row;
use crate::model::shape::TextShape;
use crate::weights::Compute;

/// The change of one linear layer.
#[derive(Debug)]
pub(crate) struct LowRank {
    /// `[rank, in]`.
    a: Vec<f32>,
    /// The transpose of B: `[rank, out]`.
    b: Vec<f32>,
    rank: usize,
    /// The adapter's own scale.
    scale: f32,
}

impl LowRank {
    /// Takes over a delta.
    fn new(delta: TensorDelta) -> Self {
        let (rank, outputs) = (delta.rank, delta.outputs());
        let mut b = vec![0.0; delta.b.len()];
        for (output, row) in delta.b.chunks_exact(rank).enumerate() {
            for (rank, value) in row.iter().enumerate() {
                b[rank * outputs + output] = *value;
            }
        }
        Self { a: delta.a, b, rank, scale: delta.scale }
    }

    /// Adds the change for rows `x` of `[rows, in]` to `out`, `[rows, out]`.
    pub(crate) fn add_rows(&self, compute: Compute, scale: f32, x: &[f32], out: &mut [f32]) {
        let (inputs, outputs) = (self.a.len() / self.rank, self.b.len() / self.rank);
        let work = x.len() / inputs * (self.a.len() + self.b.len());
        each_row(compute, work, out, outputs, |row, out| {
            self.add(compute.kernels, scale, &x[row * inputs..][..inputs], out);
        });
    }

    fn add(&self, kernels: KernelSet, scale: f32, x: &[f32], out: &mut [f32]) {
        let mut low = vec![0.0; self.rank];
        let (weights, cols) = (bytemuck::cast_slice(&self.a), x.len());
        kernels.matmul(
            Format::F32,
            Matmul { weights, row_bytes: 4 * cols, x, cols, out: &mut low, stride: self.rank, offset: 0 },
        );
        for (low, b) in low.iter().zip(self.b.chunks_exact(out.len())) {
            kernels.add_scaled(out, scale * self.scale * low, b);
        }
    }
}

/// One generation of an adapter's weights. Sequences that opened with it keep it.
#[derive(Debug)]
pub(crate) struct Adapter {
    layers: Vec<[Option<LowRank>; Linear::COUNT]>,
    /// The change of the head.
    pub(crate) head: Option<LowRank>,
    pub(crate) info: AdapterInfo,
    _counted: Counted,
}

impl Adapter {
    /// Reads an adapter and holds it against the model.
    pub(crate) fn load(source: &AdapterSource, shape: &TextShape, ledger: &Arc<Ledger>) -> Result<Self> {
        let adapter = ModelAdapter::load(&source.files, &shape.dimensions())?;
        let info = adapter.info(source.key.clone());
        let mut layers: Vec<[Option<LowRank>; Linear::COUNT]> = Vec::new();
        layers.resize_with(shape.layers.len(), Default::default);
        let mut head = None;
        for delta in adapter.into_deltas() {
            let slot = match delta.place {
                Place::Head => &mut head,
                Place::Layer { index, linear } => &mut layers[index][linear as usize],
            };
            *slot = Some(LowRank::new(delta));
        }
        let counted = Counted::new(ledger, Kind::Adapter, info.bytes);
        Ok(Self { layers, head, info, _counted: counted })
    }

    /// The change of one linear layer, if the adapter has one.
    pub(crate) fn get(&self, layer: usize, linear: Linear) -> Option<&LowRank> {
        self.layers.get(layer)?[linear as usize].as_ref()
    }
}
