//! The text model: embedding, layers, final norm, head.

use std::sync::Arc;

use consort_core::{Result, TokenId};
use consort_gguf::Gguf;

use super::attention::Attention;
use super::batch::Batch;
use super::delta::DeltaNet;
use super::drafter::Drafter;
use super::mlp::FeedForward;
use super::norm;
use super::rope::{Angles, Rope};
use super::shape::{Drafts, LayerKind, TextShape};
use super::supported;
use crate::weights::{Compute, Matrix, vector};

enum Mixer {
    Attention(Attention),
    Delta(DeltaNet),
}

struct Layer {
    mixer_norm: Vec<f32>,
    mixer: Mixer,
    /// Counts the layers of this kind before this one.
    slot: usize,
    mlp_norm: Vec<f32>,
    mlp: FeedForward,
}

/// The text model's weights.
pub(crate) struct TextModel {
    pub(crate) shape: TextShape,
    rope: Rope,
    embedding: Matrix,
    layers: Vec<Layer>,
    pub(super) norm: Vec<f32>,
    head: Matrix,
    /// The block that drafts later tokens, if the file has one.
    pub(crate) drafter: Option<Drafter>,
}

impl TextModel {
    /// Opens every tensor that the metadata ask for, each of exactly the shape that they imply.
    pub(crate) fn open(file: &Arc<Gguf>) -> Result<Self> {
        let shape = TextShape::read(file)?;
        let embedding = Matrix::open(file, "token_embd.weight", shape.vocab, shape.hidden)?;
        // A file without a head of its own uses the embedding table as one.
        let head = match file.tensor("output.weight") {
            Some(_) => Matrix::open(file, "output.weight", shape.vocab, shape.hidden)?,
            None => embedding.clone(),
        };
        let mut layers = Vec::new();
        let mut slots = [0; 2];
        for (block, kind) in shape.layers.iter().enumerate() {
            let name = |name: &str| format!("blk.{block}.{name}.weight");
            let (mixer, slot) = match kind {
                LayerKind::Attention => (Mixer::Attention(Attention::open(file, &shape, block)?), &mut slots[0]),
                LayerKind::Delta => (Mixer::Delta(DeltaNet::open(file, &shape, block)?), &mut slots[1]),
            };
            layers.push(Layer {
                mixer_norm: vector(file, &name("attn_norm"), &[shape.hidden])?,
                mixer,
                slot: *slot,
                mlp_norm: vector(file, &name("post_attention_norm"), &[shape.hidden])?,
                mlp: FeedForward::open(file, &shape, block)?,
            });
            *slot += 1;
        }
        let norm = vector(file, "output_norm.weight", &[shape.hidden])?;
        let drafter = match shape.drafts {
            Drafts::None => None,
            Drafts::OneBlock => Some(Drafter::open(file, &shape)?),
        };
        supported::check_tensors(file, &shape)?;
        Ok(Self { rope: Rope::text(&shape.attention), embedding, layers, norm, head, drafter, shape })
    }

    /// The embedding of `token` into `out`, `[hidden]`.
    pub(crate) fn embed(&self, compute: Compute, token: TokenId, out: &mut [f32]) {
        self.embedding.row(compute, token as usize, out);
    }

    /// Runs all layers over the embedded rows `x` of `[rows, hidden]`, in place; every sequence's past grows.
    pub(crate) fn forward(&self, compute: Compute, batch: &mut Batch, x: &mut [f32]) {
        let (shape, kernels) = (&self.shape, compute.kernels);
        let angles = self.angles(batch);
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = norm::rms_rows(kernels, x, &layer.mixer_norm, shape.epsilon);
            let at = (index, layer.slot);
            let mixed = match &layer.mixer {
                Mixer::Attention(attention) => attention.forward(compute, shape, batch, at, &angles, &normed),
                Mixer::Delta(delta) => delta.forward(compute, shape, batch, at, &normed),
            };
            add(x, &mixed);
            let normed = norm::rms_rows(kernels, x, &layer.mlp_norm, shape.epsilon);
            add(x, &layer.mlp.forward(compute, batch, index, &normed));
        }
    }

    /// What turns each row of the batch.
    pub(super) fn angles(&self, batch: &Batch) -> Vec<Angles> {
        batch.positions.iter().map(|position| self.rope.angles(*position)).collect()
    }

    /// The final norm of rows of `[rows, hidden]`.
    pub(crate) fn finish(&self, compute: Compute, x: &[f32]) -> Vec<f32> {
        norm::rms_rows(compute.kernels, x, &self.norm, self.shape.epsilon)
    }

    /// Logits `[rows, vocab]` of rows after the final norm.
    pub(crate) fn logits(&self, compute: Compute, normed: &[f32]) -> Vec<f32> {
        self.head.times(compute, normed)
    }
}

pub(super) fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
