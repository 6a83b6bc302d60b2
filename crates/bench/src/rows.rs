//! Takes an engine through a window, a chunk of rows at a time.

use std::ops::Range;

use consort_core::{
    AdapterSet, Capability, Engine, Error, ErrorKind, Logits, Position, Result, SeqId, Step, StepInput, StepOutcome,
    StepOutput, TokenId, Want,
};

use crate::{QualityConfig, Window};

/// How far a measurement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Tokens scored so far.
    pub scored: usize,
    /// Tokens that will be scored.
    pub total: usize,
}

/// An engine in the middle of a window. The sequence is released when it is dropped.
struct Reader<'e> {
    engine: &'e mut dyn Engine,
    seq: SeqId,
    at: usize,
}

impl<'e> Reader<'e> {
    fn open(engine: &'e mut dyn Engine, adapters: &AdapterSet, tokens: usize) -> Result<Self> {
        let seq = engine.open(adapters)?;
        let reader = Self { engine, seq, at: 0 };
        reader.engine.reserve(seq, tokens)?;
        Ok(reader)
    }

    /// Appends tokens; `Want::All` gives a row for each.
    fn append(&mut self, tokens: &[TokenId], want: Want<'_>) -> Result<StepOutput> {
        let positions = (self.at..self.at + tokens.len())
            .map(|index| u32::try_from(index).map(Position::text))
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|_| Error::new(ErrorKind::InvalidConfig, "a window has more positions than can be counted"))?;
        let step = Step { seq: self.seq, input: StepInput::Tokens(tokens), positions: &positions, want };
        let ticket = self.engine.submit(&[step])?;
        match self.engine.collect(ticket)?.pop() {
            Some(StepOutcome::Done(output)) => {
                self.at += tokens.len();
                Ok(output)
            }
            Some(StepOutcome::Refused(error) | StepOutcome::Poisoned(error)) => Err(error),
            None => Err(Error::new(ErrorKind::Unexpected, "the engine gave no outcome")),
        }
    }

    fn rows(&mut self, tokens: &[TokenId]) -> Result<Logits> {
        let vocabulary = self.engine.info().vocab_size;
        match self.append(tokens, Want::All)? {
            StepOutput::Logits(rows)
                if rows.rows() == tokens.len() && rows.last().map(<[f32]>::len) == Some(vocabulary) =>
            {
                Ok(rows)
            }
            _ => Err(Error::new(ErrorKind::Unexpected, "the engine did not give a row of logits for each position")
                .with_backend(self.engine.name())),
        }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.engine.release(self.seq);
    }
}

/// What stands behind every row: what the engine must be able to do, and how many rows are asked for at a time.
pub(crate) struct Chunking {
    /// Tokens of a chunk whose rows are wanted.
    scored: usize,
    /// Tokens of a chunk whose rows are not.
    unscored: usize,
}

impl Chunking {
    /// # Errors
    /// [`ErrorKind::Unsupported`] when the engine gives no logits of every position, [`ErrorKind::InvalidConfig`] when the
    /// window is longer than its sequences, [`ErrorKind::InvalidRequest`] for a token that it does not know.
    pub(crate) fn of(engines: &[&dyn Engine], tokens: &[TokenId], config: &QualityConfig) -> Result<Self> {
        let mut chunking = Self { scored: usize::MAX, unscored: usize::MAX };
        for engine in engines {
            let (capability, vocabulary) = (engine.capability(), engine.info().vocab_size);
            Capability::require(capability.prompt_logprobs, engine.name(), "logits of every position")?;
            if config.context > capability.max_sequence_tokens {
                return Err(Error::new(ErrorKind::InvalidConfig, "the window is longer than the engine's sequences")
                    .with_backend(engine.name())
                    .with_context("context", config.context.to_string())
                    .with_context("max_sequence_tokens", capability.max_sequence_tokens.to_string()));
            }
            if let Some((index, token)) = tokens.iter().enumerate().find(|(_, token)| **token as usize >= vocabulary) {
                return Err(Error::new(
                    ErrorKind::InvalidRequest,
                    "the text has a token beyond the model's vocabulary",
                )
                .with_context("token", token.to_string())
                .with_context("index", index.to_string())
                .with_context("vocabulary", vocabulary.to_string()));
            }
            let rows = config.max_row_bytes / vocabulary.saturating_mul(size_of::<f32>()).max(1);
            let batch = capability.max_batch_tokens.max(1);
            chunking.scored = chunking.scored.min(rows.clamp(1, batch));
            chunking.unscored = chunking.unscored.min(batch);
        }
        Ok(chunking)
    }
}

/// Takes `N` engines through a window together. `score` gets the rows of a chunk from each, and the tokens that came
/// after each row.
pub(crate) fn read_window<const N: usize>(
    engines: [&mut dyn Engine; N],
    tokens: &[TokenId],
    window: &Window,
    chunking: &Chunking,
    adapters: &AdapterSet,
    mut score: impl FnMut([&Logits; N], &[TokenId]) -> Result<()>,
) -> Result<()> {
    let piece = |range: Range<usize>| {
        tokens.get(range).ok_or_else(|| Error::new(ErrorKind::Unexpected, "a window reaches beyond its text"))
    };
    let mut readers = Vec::with_capacity(N);
    for engine in engines {
        readers.push(Reader::open(engine, adapters, window.tokens.len())?);
    }
    // The row that foresees a token stands at the token before it. The last token's own row foresees nothing scored, so
    // that token is not read at all.
    let first_row = window.scored.start.saturating_sub(1);
    for chunk in piece(window.tokens.start..first_row)?.chunks(chunking.unscored) {
        for reader in &mut readers {
            reader.append(chunk, Want::Nothing)?;
        }
    }
    let mut at = first_row;
    for chunk in piece(first_row..window.scored.end.saturating_sub(1))?.chunks(chunking.scored) {
        let next = piece(at + 1..at + 1 + chunk.len())?;
        let rows = readers.iter_mut().map(|reader| reader.rows(chunk)).collect::<Result<Vec<_>>>()?;
        let rows: [&Logits; N] = rows
            .iter()
            .collect::<Vec<_>>()
            .try_into()
            .map_err(|_| Error::new(ErrorKind::Unexpected, "there is not a set of rows for each engine"))?;
        score(rows, next)?;
        at += chunk.len();
    }
    Ok(())
}
