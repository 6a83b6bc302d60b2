//! The gated delta net: a causal convolution, then a recurrent state per value head.
//!
//! The rule is Yang, Kautz, Hatamizadeh, "Gated Delta Networks" (2024), token by token, in f32.

use std::sync::Arc;

use consort_core::Result;
use consort_gguf::Gguf;
use consort_peft::Linear;
use rayon::prelude::*;

use super::batch::{Batch, each_row};
use super::norm;
use super::shape::TextShape;
use crate::kernels::DeltaStep;
use crate::weights::{Compute, Matrix, vector};

/// The weights of a delta net layer. Value heads are in GGUF's order: head `h` reads key head `h mod key_heads`.
pub(crate) struct DeltaNet {
    /// Queries, keys, values.
    qkv: Matrix,
    gate: Matrix,
    alpha: Matrix,
    beta: Matrix,
    output: Matrix,
    /// `[taps, channels]`, the newest tap last.
    conv: Vec<f32>,
    /// −exp(A_log), per value head.
    a: Vec<f32>,
    /// Per value head.
    step_bias: Vec<f32>,
    /// Of the gated norm, shared by the value heads.
    norm: Vec<f32>,
}

/// One value head's work for one sequence.
struct Head<'a> {
    /// `[dv, dk]`.
    state: &'a mut [f32],
    /// `[count, dv]`.
    out: &'a mut [f32],
    /// The sequence's first row, and the head.
    start: usize,
    head: usize,
}

impl DeltaNet {
    pub(crate) fn open(file: &Arc<Gguf>, shape: &TextShape, block: usize) -> Result<Self> {
        let d = &shape.delta;
        let name = |name: &str| format!("blk.{block}.{name}");
        let matrix = |suffix: &str, rows, cols| Matrix::open(file, &name(suffix), rows, cols);
        let stored = vector(file, &name("ssm_conv1d.weight"), &[d.conv, d.channels()])?;
        let mut conv = vec![0.0; stored.len()];
        for (channel, taps) in stored.chunks_exact(d.conv).enumerate() {
            for (tap, weight) in taps.iter().enumerate() {
                conv[tap * d.channels() + channel] = *weight;
            }
        }
        Ok(Self {
            qkv: matrix("attn_qkv.weight", d.channels(), shape.hidden)?,
            gate: matrix("attn_gate.weight", d.values(), shape.hidden)?,
            alpha: matrix("ssm_alpha.weight", d.value_heads, shape.hidden)?,
            beta: matrix("ssm_beta.weight", d.value_heads, shape.hidden)?,
            output: matrix("ssm_out.weight", shape.hidden, d.values())?,
            conv,
            a: vector(file, &name("ssm_a"), &[d.value_heads])?,
            step_bias: vector(file, &name("ssm_dt.bias"), &[d.value_heads])?,
            norm: vector(file, &name("ssm_norm.weight"), &[d.value_dim])?,
        })
    }

    /// The layer's output for normalised rows `x` of `[rows, hidden]`; each sequence's state advances. `layer` counts all
    /// layers, `slot` the delta net layers.
    pub(crate) fn forward(
        &self,
        compute: Compute,
        shape: &TextShape,
        batch: &mut Batch,
        (layer, slot): (usize, usize),
        x: &[f32],
    ) -> Vec<f32> {
        let d = &shape.delta;
        let kernels = compute.kernels;
        let projected = batch.linear(compute, &self.qkv, (layer, Linear::DeltaQkv), x);
        let mut gate = batch.linear(compute, &self.gate, (layer, Linear::DeltaGate), x);
        let mut alpha = batch.linear(compute, &self.alpha, (layer, Linear::DeltaAlpha), x);
        let mut beta = batch.linear(compute, &self.beta, (layer, Linear::DeltaBeta), x);

        for row in alpha.chunks_exact_mut(d.value_heads) {
            for ((alpha, a), bias) in row.iter_mut().zip(&self.a).zip(&self.step_bias) {
                *alpha = (a * softplus(*alpha + bias)).exp();
            }
        }
        for beta in &mut beta {
            *beta = 1.0 / (1.0 + (-*beta).exp());
        }
        let mixed = self.convolve(compute, shape, batch, slot, &projected);
        let read = self.recur(compute, shape, batch, slot, (&mixed, &alpha, &beta));

        // `read` is [sequence][head][row][dv]; the gated norm puts it in row order. `gate` is overwritten with the result.
        kernels.silu(&mut gate);
        for item in &batch.items {
            let heads = &read[item.start * d.values()..][..item.count * d.values()];
            for (head, rows) in heads.chunks_exact(item.count * d.value_dim).enumerate() {
                for (row, read) in rows.chunks_exact(d.value_dim).enumerate() {
                    let at = (item.start + row) * d.values() + head * d.value_dim;
                    let gate = &mut gate[at..at + d.value_dim];
                    let scale = 1.0 / (kernels.dot(read, read) / d.value_dim as f32 + shape.epsilon).sqrt();
                    for ((gate, read), w) in gate.iter_mut().zip(read).zip(&self.norm) {
                        *gate *= read * scale * w;
                    }
                }
            }
        }
        batch.linear(compute, &self.output, (layer, Linear::DeltaOutput), &gate)
    }

    /// The causal convolution with its activation, and queries and keys normalised per head. Each sequence keeps the last
    /// rows for the next step.
    fn convolve(
        &self,
        compute: Compute,
        shape: &TextShape,
        batch: &mut Batch,
        slot: usize,
        projected: &[f32],
    ) -> Vec<f32> {
        let d = &shape.delta;
        let (kernels, channels, window) = (compute.kernels, d.channels(), d.conv - 1);
        let places = batch.places();
        let mut mixed = vec![0.0; projected.len()];
        let scale = 1.0 / (d.key_dim as f32).sqrt();
        let items = &batch.items;
        each_row(compute, projected.len() * 16, &mut mixed, channels, |row, out| {
            let (item, within) = places[row];
            let item = &items[item];
            let past = item.sequence.window(slot);
            for (tap, weights) in self.conv.chunks_exact(channels).enumerate() {
                // Row `within + tap` of the window followed by the new rows.
                let input = match (within + tap).checked_sub(window) {
                    Some(new) => &projected[(item.start + new) * channels..][..channels],
                    None => &past[(within + tap) * channels..][..channels],
                };
                kernels.add_product(out, weights, input);
            }
            kernels.silu(out);
            let (queries, rest) = out.split_at_mut(d.keys());
            for query in queries.chunks_exact_mut(d.key_dim) {
                norm::l2(kernels, query, scale);
            }
            for key in rest[..d.keys()].chunks_exact_mut(d.key_dim) {
                norm::l2(kernels, key, 1.0);
            }
        });
        for item in &mut batch.items {
            let new = &projected[item.start * channels..][..item.count * channels];
            item.sequence.slide_window(slot, new);
        }
        mixed
    }

    /// Runs the rule over each sequence's rows: `[sequence][head][row][dv]`.
    fn recur(
        &self,
        compute: Compute,
        shape: &TextShape,
        batch: &mut Batch,
        slot: usize,
        (mixed, decay, beta): (&[f32], &[f32], &[f32]),
    ) -> Vec<f32> {
        let d = &shape.delta;
        let (kernels, channels) = (compute.kernels, d.channels());
        let mut read = vec![0.0; batch.rows() * d.values()];
        let work = read.len().saturating_mul(4 * d.key_dim);
        let mut heads = Vec::with_capacity(batch.items.len() * d.value_heads);
        let mut rest = read.as_mut_slice();
        for item in &mut batch.items {
            let (outs, after) = rest.split_at_mut(item.count * d.values());
            rest = after;
            let states = item.sequence.state(slot).chunks_exact_mut(d.value_dim * d.key_dim);
            for (head, (state, out)) in states.zip(outs.chunks_exact_mut(item.count * d.value_dim)).enumerate() {
                heads.push(Head { state, out, start: item.start, head });
            }
        }
        let run = |Head { state, out, start, head }: &mut Head<'_>| {
            let key_head = *head % d.key_heads;
            for (index, out) in out.chunks_exact_mut(d.value_dim).enumerate() {
                let row = *start + index;
                let mixed = &mixed[row * channels..][..channels];
                kernels.delta_step(DeltaStep {
                    state,
                    q: &mixed[key_head * d.key_dim..][..d.key_dim],
                    k: &mixed[d.keys() + key_head * d.key_dim..][..d.key_dim],
                    v: &mixed[2 * d.keys() + *head * d.value_dim..][..d.value_dim],
                    decay: decay[row * d.value_heads + *head],
                    beta: beta[row * d.value_heads + *head],
                    out,
                });
            }
        };
        if compute.is_parallel(work) {
            heads.par_iter_mut().for_each(run);
        } else {
            heads.iter_mut().for_each(run);
        }
        read
    }
}

/// ln(1 + e^x), as torch computes it: the identity from 20 on.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}
