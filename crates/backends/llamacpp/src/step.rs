//! Checking the steps of a batch, and running them.
//!
//! The library applies one set of adapters to a whole batch. So steps run in groups of one set, and a step in which an
//! adapter begins to act runs in two parts, the second after the first: then each token meets exactly the adapters that are
//! active at its place.

use std::ops::Range;
use std::rc::Rc;

use consort_core::{
    AdapterBinding, Error, ErrorKind, ImageHandle, Logits, Pooling, Position, Result, SeqId, Step, StepInput,
    StepOutcome, StepOutput, Want,
};

use crate::engine::{EncodedImage, LlamacppEngine, NAME, Sequence};
use crate::ffi::{Context, Input, Lora, Row, Verdict};
use crate::outcome::{Touched, failed};

/// A part of a step: tokens that meet the same adapters.
#[derive(Debug)]
struct Part {
    range: Range<usize>,
    adapters: Vec<(Rc<Lora>, f32)>,
}

/// A step on its way.
pub(crate) struct Running<'s> {
    /// Its place among the steps.
    index: usize,
    step: &'s Step<'s>,
    slot: u32,
    /// Embeddings `[tokens, hidden]` of what is no plain token.
    embeddings: Option<Vec<f32>>,
    parts: Vec<Part>,
    /// Rows of logits, or of hidden states, as they come.
    rows: Vec<f32>,
    outcome: Option<StepOutcome>,
}

impl LlamacppEngine {
    /// The embeddings of an image's tokens.
    pub(crate) fn image<'a>(&self, image: &'a ImageHandle, tokens: &Range<usize>) -> Result<&'a [f32]> {
        let payload: &EncodedImage = image.payload()?;
        if payload.engine != self.id {
            return Err(Error::new(ErrorKind::InvalidRequest, "this image was encoded by another engine"));
        }
        let hidden = self.loaded.shape.hidden;
        let values = || payload.embeddings.get(tokens.start.checked_mul(hidden)?..tokens.end.checked_mul(hidden)?);
        values().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidRequest,
                format!("tokens {tokens:?} are not among the image's {}", payload.embeddings.len() / hidden),
            )
        })
    }

    /// Checks one step and makes room for it. When this fails nothing of the sequence's past has changed.
    pub(crate) fn prepare<'s>(&mut self, index: usize, step: &'s Step<'s>) -> Result<Running<'s>> {
        let sequence = self.sequence(step.seq)?;
        if sequence.poisoned {
            return Err(Error::new(ErrorKind::Poisoned, "this sequence's state is unknown: release it"));
        }
        let (len, last) = (sequence.past.len(), sequence.past.last());
        step.check(self.loaded.shape.vocab)?;
        let embeddings = match &step.input {
            StepInput::Tokens(_) => None,
            StepInput::Image { image, tokens } => Some(self.image(image, tokens)?.to_vec()),
        };
        let count = step.input.len();
        if let Want::TopK { .. } = step.want {
            return Err(Error::unsupported(NAME, "top k on the device"));
        }
        in_order(last, step.positions)?;
        if len.saturating_add(count) > self.capability.max_sequence_tokens {
            return Err(too_long(len, count, self.capability.max_sequence_tokens));
        }
        let embeddings = match (embeddings, &step.input) {
            (None, StepInput::Tokens(tokens)) if step.positions.iter().any(|place| !is_text(*place)) => {
                Some(self.embed(tokens)?)
            }
            (embeddings, _) => embeddings,
        };
        let pool = &self.pool;
        let sequence = self.sequences.get_mut(&step.seq).ok_or_else(|| unknown(step.seq))?;
        sequence.past.grow(pool, count)?;
        let (slot, parts) = (sequence.past.slot.number, parts(sequence, count));
        Ok(Running { index, step, slot, embeddings, parts, rows: Vec::new(), outcome: None })
    }

    /// Rows of the embedding table. The library gives a token one position for all three components, so tokens that stand
    /// elsewhere are handed over as their embeddings, which are the same numbers.
    fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let hidden = self.loaded.shape.hidden;
        let table = self.loaded.file.require_tensor("token_embd.weight")?;
        let data = self.loaded.file.tensor_data(table);
        let row_bytes = data.len() / self.loaded.shape.vocab;
        let mut all = vec![0.0; tokens.len() * hidden];
        for (row, token) in all.chunks_exact_mut(hidden).zip(tokens) {
            let start = *token as usize * row_bytes;
            consort_gguf::dequantize(table.kind, data.get(start..start + row_bytes).unwrap_or_default(), row)?;
        }
        Ok(all)
    }

    /// Runs the accepted steps, part by part; each has its place and its outcome.
    pub(crate) fn run(&mut self, mut running: Vec<Running<'_>>) -> Vec<(usize, StepOutcome)> {
        let most = running.iter().map(|one| one.parts.len()).max().unwrap_or(0);
        'rounds: for round in 0..most {
            let mut waiting: Vec<usize> = (0..running.len())
                .filter(|&at| running[at].outcome.is_none() && running[at].parts.len() > round)
                .collect();
            while let Some(&first) = waiting.first() {
                let (group, others) = waiting.into_iter().partition(|&at| alike(&running[first], &running[at], round));
                waiting = others;
                if let Verdict::Failed(code) = self.run_group(&mut running, &group, round) {
                    self.lose_everything();
                    let unfinished = running.iter_mut().filter(|one| one.outcome.is_none());
                    unfinished.for_each(|one| one.outcome = Some(failed(Verdict::Failed(code), Touched::Perhaps)));
                    break 'rounds;
                }
            }
        }
        let hidden = self.loaded.shape.hidden;
        running
            .into_iter()
            .map(|one| {
                let outcome = match one.outcome {
                    Some(outcome) => outcome,
                    None => {
                        let last = one.step.positions.last().copied();
                        if let Some(sequence) = self.sequences.get_mut(&one.step.seq) {
                            sequence.past.append(one.step.input.len(), last);
                        }
                        match output(one.step.want, one.rows, self.loaded.shape.vocab, hidden) {
                            Ok(output) => StepOutcome::Done(output),
                            Err(error) => StepOutcome::Poisoned(error),
                        }
                    }
                };
                if let (StepOutcome::Poisoned(_), Some(sequence)) = (&outcome, self.sequences.get_mut(&one.step.seq)) {
                    sequence.poisoned = true;
                }
                (one.index, outcome)
            })
            .collect()
    }

    /// After a batch that failed on the way the library's memory is in no known state: it had begun to move the recurrent
    /// states of other sequences too. So all of it is cleared, and every past is lost; whoever held one replays it.
    fn lose_everything(&mut self) {
        tracing::error!("llama.cpp gave up on a batch: every past is lost");
        self.loaded.context.clear_all();
        self.losses += 1;
        self.sequences.values_mut().for_each(|sequence| sequence.poisoned = true);
    }

    /// One batch of the library: parts that meet the same adapters. After a failure on the way no step has its outcome.
    fn run_group(&mut self, running: &mut [Running<'_>], group: &[usize], round: usize) -> Verdict {
        let hidden = self.loaded.shape.hidden;
        let context = &mut self.loaded.context;
        let mut rows = Vec::new();
        let mut starts = Vec::with_capacity(group.len());
        for &at in group {
            starts.push(rows.len());
            rows_of(&running[at], round, hidden, &mut rows);
        }
        let Some(first) = group.first().map(|&at| &running[at]) else { return Verdict::Done };
        context.set_embeddings(matches!(first.step.want, Want::Pooled(_)));
        let adapters = first.parts[round].adapters.clone();
        let verdict = if context.set_adapters(adapters) { context.decode(&rows) } else { Verdict::Invalid };
        drop(rows);
        if matches!(verdict, Verdict::Failed(_)) {
            return verdict;
        }
        for (&at, start) in group.iter().zip(starts) {
            let one = &mut running[at];
            if verdict != Verdict::Done || !collect(context, one, round, start) {
                let begun = round > 0 || verdict == Verdict::Done;
                one.outcome = Some(failed(verdict, if begun { Touched::Perhaps } else { Touched::Not }));
            }
        }
        verdict
    }
}

/// Rows of one part of a step.
fn rows_of<'r>(one: &'r Running<'_>, round: usize, hidden: usize, rows: &mut Vec<Row<'r>>) {
    let (count, range) = (one.step.input.len(), one.parts[round].range.clone());
    for index in range {
        let place = one.step.positions[index];
        let input = match (&one.embeddings, &one.step.input) {
            (None, StepInput::Tokens(tokens)) => Input::Token(tokens[index]),
            (embeddings, _) => {
                let values = embeddings.as_deref().unwrap_or_default();
                Input::Embedding(values.get(index * hidden..(index + 1) * hidden).unwrap_or_default())
            }
        };
        let output = match one.step.want {
            Want::All | Want::Pooled(_) => true,
            Want::Last => index + 1 == count,
            Want::Nothing | Want::TopK { .. } => false,
        };
        rows.push(Row { slot: one.slot, input, position: [place.t, place.h, place.w].map(|at| at as i32), output });
    }
}

/// Takes what a step wanted from the batch in which its part began at row `start`.
fn collect(context: &Context, one: &mut Running<'_>, round: usize, start: usize) -> bool {
    let (count, range) = (one.step.input.len(), one.parts[round].range.clone());
    let row = |index: usize| start + index - range.start;
    match one.step.want {
        Want::Nothing | Want::TopK { .. } => true,
        Want::Last if range.end < count => true,
        Want::Last => context.logits(row(count - 1)).map(|logits| one.rows.extend_from_slice(logits)).is_some(),
        Want::All => range
            .clone()
            .all(|index| context.logits(row(index)).map(|logits| one.rows.extend_from_slice(logits)).is_some()),
        Want::Pooled(_) => range
            .clone()
            .all(|index| context.embedding(row(index)).map(|state| one.rows.extend_from_slice(state)).is_some()),
    }
}

/// Where a step is cut: wherever an adapter begins to act.
fn parts(sequence: &Sequence, count: usize) -> Vec<Part> {
    let (len, bindings) = (sequence.past.len(), sequence.adapters.bindings());
    let mut borders: Vec<usize> = bindings
        .iter()
        .map(|binding| binding.active_from.saturating_sub(len))
        .filter(|border| (1..count).contains(border))
        .chain([0, count])
        .collect();
    borders.sort_unstable();
    borders.dedup();
    let active = |at: usize| {
        let both = bindings.iter().zip(&sequence.weights);
        let acts = |(binding, _): &(&AdapterBinding, _)| binding.is_active_at(len + at);
        both.filter(acts).map(|(binding, weights)| (Rc::clone(&weights.lora), binding.scale)).collect()
    };
    borders.windows(2).map(|pair| Part { range: pair[0]..pair[1], adapters: active(pair[0]) }).collect()
}

/// Whether two steps can share a batch in this round: the same adapters, and hidden states for both or neither.
fn alike(one: &Running<'_>, other: &Running<'_>, round: usize) -> bool {
    let pooled = |running: &Running<'_>| matches!(running.step.want, Want::Pooled(_));
    let (a, b) = (&one.parts[round].adapters, &other.parts[round].adapters);
    pooled(one) == pooled(other)
        && a.len() == b.len()
        && a.iter().zip(b).all(|(one, other)| Rc::ptr_eq(&one.0, &other.0) && one.1 == other.1)
}

/// Whether the three components are equal, as they are for text.
fn is_text(place: Position) -> bool {
    place.t == place.h && place.h == place.w
}

/// The library orders a past by time, row and column, and attends to what comes before in that order.
fn in_order(last: Option<Position>, positions: &[Position]) -> Result<()> {
    let key = |place: &Position| (place.t, place.h, place.w);
    let mut before = last;
    for place in positions {
        if place.max_component() >= i32::MAX as u32 {
            return Err(Error::new(ErrorKind::InvalidRequest, "a position is beyond what llama.cpp counts"));
        }
        if let Some(before) = before
            && key(place) <= key(&before)
        {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("positions must grow by time, row and column, and {place:?} comes after {before:?}"),
            ));
        }
        before = Some(*place);
    }
    Ok(())
}

/// What a step gives, of its rows.
fn output(want: Want<'_>, rows: Vec<f32>, vocab: usize, hidden: usize) -> Result<StepOutput> {
    Ok(match want {
        Want::Nothing | Want::TopK { .. } => StepOutput::Nothing,
        Want::Last | Want::All => StepOutput::Logits(Logits::new(vocab, rows)?),
        Want::Pooled(Pooling::Last) => {
            StepOutput::Pooled(rows.get(rows.len().saturating_sub(hidden)..).unwrap_or_default().to_vec())
        }
        Want::Pooled(Pooling::Mean) => {
            let mut mean = vec![0.0; hidden];
            for row in rows.chunks_exact(hidden) {
                for (mean, x) in mean.iter_mut().zip(row) {
                    *mean += x;
                }
            }
            let count = (rows.len() / hidden).max(1) as f32;
            mean.iter_mut().for_each(|mean| *mean /= count);
            StepOutput::Pooled(mean)
        }
    })
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn positions_grow_by_time_row_and_column() {
        let image = [(5, 5, 5), (5, 5, 6), (5, 6, 5), (5, 6, 6)].map(|(t, h, w)| Position { t, h, w });
        in_order(Some(Position::text(4)), &image).unwrap();
        in_order(Some(image[3]), &[Position::text(7)]).unwrap();
        in_order(None, &[Position::text(0), Position::text(9)]).unwrap();
        for (last, next) in [
            (Position::text(4), Position::text(4)),
            (Position::text(4), Position::text(3)),
            (image[2], image[1]),
            (Position::text(0), Position::text(u32::MAX)),
        ] {
            assert!(in_order(Some(last), &[next]).is_err(), "{last:?} {next:?}");
        }
    }
}
