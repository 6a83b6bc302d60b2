//! Gated attention over paged keys and values.

use std::sync::Arc;

use consort_core::Result;
use consort_gguf::Gguf;
use consort_peft::Linear;

use super::batch::{Batch, each_row};
use super::norm;
use super::rope::Angles;
use super::shape::TextShape;
use crate::kv::PAGE;
use crate::weights::{Compute, Matrix, vector};

/// The weights of an attention layer.
pub(crate) struct Attention {
    /// Per head its query, then its gate.
    query: Matrix,
    key: Matrix,
    value: Matrix,
    output: Matrix,
    query_norm: Vec<f32>,
    key_norm: Vec<f32>,
}

impl Attention {
    pub(crate) fn open(file: &Arc<Gguf>, shape: &TextShape, block: usize) -> Result<Self> {
        let a = &shape.attention;
        let (queries, keys) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let matrix = |name: &str, rows, cols| Matrix::open(file, &format!("blk.{block}.{name}.weight"), rows, cols);
        let norm = |name: &str| vector(file, &format!("blk.{block}.{name}.weight"), &[a.head_dim]);
        Ok(Self {
            query: matrix("attn_q", 2 * queries, shape.hidden)?,
            key: matrix("attn_k", keys, shape.hidden)?,
            value: matrix("attn_v", keys, shape.hidden)?,
            output: matrix("attn_output", shape.hidden, queries)?,
            query_norm: norm("attn_q_norm")?,
            key_norm: norm("attn_k_norm")?,
        })
    }

    /// The layer's output for normalised rows `x` of `[rows, hidden]`. Keys and values are appended to each sequence.
    /// `layer` counts all layers, `slot` the attention layers.
    pub(crate) fn forward(
        &self,
        compute: Compute,
        shape: &TextShape,
        batch: &mut Batch,
        (layer, slot): (usize, usize),
        angles: &[Angles],
        x: &[f32],
    ) -> Vec<f32> {
        let a = &shape.attention;
        let (kernels, dim) = (compute.kernels, a.head_dim);
        let (queries, keys) = (a.heads * dim, a.kv_heads * dim);
        let mut paired = batch.linear(compute, &self.query, (layer, Linear::Query), x);
        let mut key = batch.linear(compute, &self.key, (layer, Linear::Key), x);
        let value = batch.linear(compute, &self.value, (layer, Linear::Value), x);

        for (row, angles) in angles.iter().enumerate() {
            for query in paired[row * 2 * queries..][..2 * queries].chunks_exact_mut(2 * dim) {
                norm::rms(kernels, &mut query[..dim], &self.query_norm, shape.epsilon);
                angles.rotate(&mut query[..dim]);
            }
            for key in key[row * keys..][..keys].chunks_exact_mut(dim) {
                norm::rms(kernels, key, &self.key_norm, shape.epsilon);
                angles.rotate(key);
            }
        }
        for item in &mut batch.items {
            let rows = item.start * keys..(item.start + item.count) * keys;
            item.sequence.append(slot, keys, &key[rows.clone()], &value[rows]);
        }

        let places = batch.places();
        let mut out = vec![0.0; batch.rows() * queries];
        let scale = 1.0 / (dim as f32).sqrt();
        let pairs: usize = batch.items.iter().map(|item| item.count * (item.sequence.len() + item.count)).sum();
        each_row(compute, pairs * queries, &mut out, dim, |index, out| {
            let (row, head) = (index / a.heads, index % a.heads);
            let (item, within) = places[row];
            let sequence = &batch.items[item].sequence;
            let query = &paired[index * 2 * dim..][..dim];
            // Two passes over the positions in order: the result depends on nothing but them.
            let mut weights = vec![0.0; sequence.len() + within + 1];
            let kv_head = head / (a.heads / a.kv_heads);
            for (weights, page) in weights.chunks_mut(PAGE).zip(sequence.pages()) {
                kernels.attention_scores(query, page.keys(slot, kv_head), scale, weights);
            }
            kernels.softmax(&mut weights);
            for (weights, page) in weights.chunks(PAGE).zip(sequence.pages()) {
                kernels.attention_values(weights, page.values(slot, kv_head), out);
            }
            kernels.times_sigmoid(out, &paired[index * 2 * dim + dim..][..dim]);
        });
        batch.linear(compute, &self.output, (layer, Linear::Output), &out)
    }
}
