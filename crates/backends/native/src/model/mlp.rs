//! What follows the mixer in a layer: a SwiGLU network, plain or as a mixture of experts.

use std::sync::Arc;

use consort_core::Result;
use consort_gguf::Gguf;
use consort_peft::Linear;

use super::batch::{Batch, each_row};
use super::experts::Experts;
use super::shape::TextShape;
use crate::weights::{Compute, Matrix};

/// `down(silu(gate(x)) · up(x))`: a whole layer's network, or the expert that every token goes through.
pub(crate) struct Mlp {
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

impl Mlp {
    /// The matrices `ffn_{gate,up,down}` of a block, their names ended by `suffix`; the width is the shape's `mlp`.
    pub(crate) fn open(file: &Arc<Gguf>, shape: &TextShape, block: usize, suffix: &str) -> Result<Self> {
        let matrix =
            |name: &str, rows, cols| Matrix::open(file, &format!("blk.{block}.{name}{suffix}.weight"), rows, cols);
        Ok(Self {
            gate: matrix("ffn_gate", shape.mlp, shape.hidden)?,
            up: matrix("ffn_up", shape.mlp, shape.hidden)?,
            down: matrix("ffn_down", shape.hidden, shape.mlp)?,
        })
    }

    /// For rows `x` of `[rows, hidden]`, with what the adapters change.
    pub(crate) fn forward(&self, compute: Compute, batch: &Batch, layer: usize, x: &[f32]) -> Vec<f32> {
        let mut gated = batch.linear(compute, &self.gate, (layer, Linear::MlpGate), x);
        let up = batch.linear(compute, &self.up, (layer, Linear::MlpUp), x);
        let width = self.gate.rows();
        each_row(compute, gated.len() * 16, &mut gated, width, |row, gate| {
            compute.kernels.silu_times(gate, &up[row * width..][..width]);
        });
        batch.linear(compute, &self.down, (layer, Linear::MlpDown), &gated)
    }
}

/// The network of a layer.
pub(crate) enum FeedForward {
    Dense(Mlp),
    Experts(Box<Experts>),
}

impl FeedForward {
    pub(crate) fn open(file: &Arc<Gguf>, shape: &TextShape, block: usize) -> Result<Self> {
        match &shape.experts {
            None => Mlp::open(file, shape, block, "").map(Self::Dense),
            Some(experts) => Experts::open(file, shape, experts, block).map(Box::new).map(Self::Experts),
        }
    }

    /// The output for normalised rows `x` of `[rows, hidden]`. `layer` counts all layers.
    pub(crate) fn forward(&self, compute: Compute, batch: &Batch, layer: usize, x: &[f32]) -> Vec<f32> {
        match self {
            Self::Dense(mlp) => mlp.forward(compute, batch, layer, x),
            Self::Experts(experts) => experts.forward(compute, batch, layer, x),
        }
    }
}
