//! The multi-token prediction block: from what the layers made of a token, and the token that followed, a draft of the next.
//!
//! The rule is the family's (DeepSeek-V3's, arXiv 2412.19437, section 2.2, with one block): for the hidden state `h` of token
//! `t`, after the final norm, and the embedding `e` of token `t + 1`, `x = eh_proj · [norm(e), norm(h)]` goes through one
//! attention layer with its network, over the drafts' own past, and a last norm; the head makes of it the logits of token
//! `t + 2`.

use std::sync::Arc;

use consort_core::Result;
use consort_gguf::Gguf;

use super::attention::Attention;
use super::batch::Batch;
use super::mlp::FeedForward;
use super::norm;
use super::shape::{LayerKind, TextShape};
use super::text::{TextModel, add};
use crate::kv::PageShape;
use crate::memory::Ledger;
use crate::sequence::Pool;
use crate::state::StateShape;
use crate::weights::{Compute, Matrix, vector};

/// The block's weights.
pub(crate) struct Drafter {
    /// Dimensions of the block alone: one attention layer.
    shape: TextShape,
    /// Counts all layers; no adapter changes the one after the last.
    layer: usize,
    embedding_norm: Vec<f32>,
    hidden_norm: Vec<f32>,
    /// `[hidden, 2 · hidden]`.
    join: Matrix,
    mixer_norm: Vec<f32>,
    attention: Attention,
    mlp_norm: Vec<f32>,
    mlp: FeedForward,
    /// The model's own where the block has none.
    norm: Option<Vec<f32>>,
    embedding: Option<Matrix>,
    head: Option<Matrix>,
}

impl Drafter {
    /// Opens the block after the layers.
    pub(crate) fn open(file: &Arc<Gguf>, text: &TextShape) -> Result<Self> {
        let (block, hidden) = (text.layers.len(), text.hidden);
        let name = |name: &str| format!("blk.{block}.{name}.weight");
        let table = |tensor: &str| -> Result<Option<Matrix>> {
            let name = name(tensor);
            file.tensor(&name).map(|_| Matrix::open(file, &name, text.vocab, hidden)).transpose()
        };
        let last = name("nextn.shared_head_norm");
        let shape = TextShape { layers: vec![LayerKind::Attention], ..text.clone() };
        Ok(Self {
            layer: block,
            embedding_norm: vector(file, &name("nextn.enorm"), &[hidden])?,
            hidden_norm: vector(file, &name("nextn.hnorm"), &[hidden])?,
            join: Matrix::open(file, &name("nextn.eh_proj"), hidden, 2 * hidden)?,
            mixer_norm: vector(file, &name("attn_norm"), &[hidden])?,
            attention: Attention::open(file, text, block)?,
            mlp_norm: vector(file, &name("post_attention_norm"), &[hidden])?,
            mlp: FeedForward::open(file, text, block)?,
            norm: file.tensor(&last).map(|_| vector(file, &last, &[hidden])).transpose()?,
            embedding: table("nextn.embed_tokens")?,
            head: table("nextn.shared_head_head")?,
            shape,
        })
    }

    /// What sequences of drafts are made of: their past is the block's alone.
    pub(crate) fn pool(&self, ledger: &Arc<Ledger>, budget: Option<u64>) -> Pool {
        Pool { page: PageShape::new(&self.shape), state: StateShape::new(&self.shape), ledger: ledger.clone(), budget }
    }

    /// Logits `[rows, vocab]` of the token two after each row's. `hidden` are the rows' final states, `[rows, hidden]`, and
    /// `next` the tokens that follow them; the batch's sequences, from [`pool`](Self::pool), hold the block's own past and grow.
    pub(crate) fn forward(
        &self,
        compute: Compute,
        text: &TextModel,
        batch: &mut Batch,
        (hidden, next): (&[f32], &[u32]),
    ) -> Vec<f32> {
        let (kernels, width, epsilon) = (compute.kernels, self.shape.hidden, self.shape.epsilon);
        let mut joined = vec![0.0; 2 * hidden.len()];
        for ((joined, hidden), token) in joined.chunks_exact_mut(2 * width).zip(hidden.chunks_exact(width)).zip(next) {
            let (left, right) = joined.split_at_mut(width);
            match &self.embedding {
                Some(table) => table.row(compute, *token as usize, left),
                None => text.embed(compute, *token, left),
            }
            right.copy_from_slice(hidden);
            norm::rms(kernels, left, &self.embedding_norm, epsilon);
            norm::rms(kernels, right, &self.hidden_norm, epsilon);
        }
        let mut x = self.join.times(compute, &joined);
        let angles = text.angles(batch);
        let normed = norm::rms_rows(kernels, &x, &self.mixer_norm, epsilon);
        let mixed = self.attention.forward(compute, &self.shape, batch, (self.layer, 0), &angles, &normed);
        add(&mut x, &mixed);
        let normed = norm::rms_rows(kernels, &x, &self.mlp_norm, epsilon);
        add(&mut x, &self.mlp.forward(compute, batch, self.layer, &normed));
        let last = self.norm.as_ref().unwrap_or(&text.norm);
        let normed = norm::rms_rows(kernels, &x, last, epsilon);
        match &self.head {
            Some(head) => head.times(compute, &normed),
            None => text.logits(compute, &normed),
        }
    }
}
