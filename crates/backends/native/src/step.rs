//! Checking the steps of a batch, and running them.

use std::ops::Range;

use consort_core::{Error, ErrorKind, ImageHandle, Logits, Pooling, Result, SeqId, Step, StepInput, StepOutput, Want};

use crate::engine::{EncodedImage, NAME, NativeEngine};
use crate::model::batch::{Batch, Item};

/// A step that was accepted.
pub(crate) struct Accepted<'a> {
    /// Its place among the steps.
    pub(crate) index: usize,
    pub(crate) step: &'a Step<'a>,
}

impl NativeEngine {
    /// The embeddings of an image's tokens.
    pub(crate) fn image<'a>(&self, image: &'a ImageHandle, tokens: &Range<usize>) -> Result<&'a [f32]> {
        let payload: &EncodedImage = image.payload()?;
        if payload.engine != self.id {
            return Err(Error::new(ErrorKind::InvalidRequest, "this image was encoded by another engine"));
        }
        let hidden = self.model.info.hidden_size;
        let bytes = || payload.embeddings.get(tokens.start.checked_mul(hidden)?..tokens.end.checked_mul(hidden)?);
        bytes().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidRequest,
                format!("tokens {tokens:?} are not among the image's {}", payload.embeddings.len() / hidden),
            )
        })
    }

    /// Checks one step and makes room for it. When this fails nothing of the sequence's past has changed.
    pub(crate) fn prepare(&mut self, step: &Step<'_>) -> Result<()> {
        let len = self.sequence(step.seq)?.len();
        step.check(self.model.info.vocab_size)?;
        if let StepInput::Image { image, tokens } = &step.input {
            self.image(image, tokens)?;
        }
        let count = step.input.len();
        if let Want::TopK { .. } = step.want {
            return Err(Error::unsupported(NAME, "top k on the device"));
        }
        if len.saturating_add(count) > self.capability.max_sequence_tokens {
            return Err(too_long(len, count, self.capability.max_sequence_tokens));
        }
        let pool = &self.pool;
        self.sequences.get_mut(&step.seq).map_or_else(|| Err(unknown(step.seq)), |sequence| sequence.grow(pool, count))
    }

    /// Runs the accepted steps; one output per step, in order.
    pub(crate) fn run(&mut self, accepted: &[Accepted<'_>]) -> Result<Vec<StepOutput>> {
        let hidden = self.model.info.hidden_size;
        let mut batch = Batch { items: Vec::with_capacity(accepted.len()), positions: Vec::new() };
        let mut x = Vec::new();
        for Accepted { step, .. } in accepted {
            let start = batch.positions.len();
            batch.positions.extend_from_slice(step.positions);
            match &step.input {
                StepInput::Tokens(tokens) => {
                    for &token in *tokens {
                        let at = x.len();
                        x.resize(at + hidden, 0.0);
                        self.model.text.embed(self.compute, token, &mut x[at..]);
                    }
                }
                StepInput::Image { image, tokens } => x.extend_from_slice(self.image(image, tokens)?),
            }
            // Taken out while it is written to; what it holds stays counted.
            let sequence = self.sequences.remove(&step.seq).ok_or_else(|| unknown(step.seq))?;
            batch.items.push(Item { sequence, start, count: step.input.len() });
        }

        let (text, compute) = (&self.model.text, self.compute);
        let wants: Vec<usize> = accepted.iter().map(|one| logit_rows(one.step.want, one.step.input.len())).collect();
        let mut compute_all = || {
            text.forward(compute, &mut batch, &mut x);
            // The head is the largest matrix: it is read once for all rows that are wanted.
            let mut wanted = Vec::new();
            for (count, item) in wants.iter().zip(&batch.items) {
                let end = (item.start + item.count) * hidden;
                wanted.extend_from_slice(&x[end - count * hidden..end]);
            }
            let normed = text.finish(compute, &wanted);
            let mut logits = text.logits(compute, &normed);
            let vocab = text.shape.vocab;
            let mut row = 0;
            for (count, item) in wants.iter().zip(&batch.items) {
                let rows = &normed[row * hidden..][..count * hidden];
                let place = (item.count - count, *count);
                item.sequence.change_head(compute, place, rows, &mut logits[row * vocab..][..count * vocab]);
                row += count;
            }
            logits
        };
        let logits = match &self.threads {
            Some(threads) => threads.install(compute_all),
            None => compute_all(),
        };

        let vocab = self.model.info.vocab_size;
        let mut rest = logits.as_slice();
        let mut take = |rows: usize| {
            let (mine, others) = rest.split_at((rows * vocab).min(rest.len()));
            rest = others;
            Logits::new(vocab, mine.to_vec()).map(StepOutput::Logits)
        };
        let mut outputs = Vec::with_capacity(accepted.len());
        for (Accepted { step, .. }, Item { mut sequence, start, count }) in accepted.iter().zip(batch.items) {
            sequence.advance(count);
            self.sequences.insert(step.seq, sequence);
            outputs.push(match step.want {
                Want::Last | Want::All => take(logit_rows(step.want, count))?,
                Want::Pooled(pooling) => {
                    let rows = text.finish(compute, &x[start * hidden..][..count * hidden]);
                    StepOutput::Pooled(pool(&rows, hidden, pooling))
                }
                Want::Nothing | Want::TopK { .. } => StepOutput::Nothing,
            });
        }
        Ok(outputs)
    }
}

/// Of how many rows, the last ones of a step, logits are wanted.
fn logit_rows(want: Want<'_>, count: usize) -> usize {
    match want {
        Want::Last => 1,
        Want::All => count,
        Want::Nothing | Want::TopK { .. } | Want::Pooled(_) => 0,
    }
}

pub(crate) fn unknown(seq: SeqId) -> Error {
    Error::new(ErrorKind::NotFound, "no such sequence").with_backend(NAME).with_context("seq", seq.0.to_string())
}

pub(crate) fn too_long(len: usize, more: usize, limit: usize) -> Error {
    Error::new(
        ErrorKind::InvalidRequest,
        format!("{more} more tokens after {len} exceed the {limit} that a sequence can hold"),
    )
    .with_backend(NAME)
}

/// Rows of `[rows, hidden]` as one.
fn pool(rows: &[f32], hidden: usize, pooling: Pooling) -> Vec<f32> {
    match pooling {
        Pooling::Last => rows[rows.len() - hidden..].to_vec(),
        Pooling::Mean => {
            let mut mean = vec![0.0; hidden];
            for row in rows.chunks_exact(hidden) {
                for (mean, x) in mean.iter_mut().zip(row) {
                    *mean += x;
                }
            }
            let count = (rows.len() / hidden) as f32;
            mean.iter_mut().for_each(|mean| *mean /= count);
            mean
        }
    }
}
