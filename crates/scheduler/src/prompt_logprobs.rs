//! What the model thought of its prompt, position by position, as the prompt is read.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use consort_core::{Error, ErrorKind, Logits, PositionLogprobs, Result};
use consort_sampling::{Workspace, logprobs};

use crate::past::Past;

/// A step gives a row of the vocabulary for each of its positions; so many of them are held at a time.
pub(crate) const MOST_ROWS: usize = 32;
/// The most entries that one request can have, in all positions.
const MOST_ENTRIES: usize = 4 << 20;

/// Log probabilities of a prompt as they come.
pub(crate) struct PromptLogprobs {
    count: usize,
    /// One for each position. A position that is read again gets the same.
    entries: Vec<Option<PositionLogprobs>>,
    workspace: Arc<Mutex<Workspace>>,
}

impl PromptLogprobs {
    /// # Errors
    /// [`ErrorKind::InvalidRequest`]: more than can be kept.
    pub(crate) fn new(count: u32, prompt_tokens: usize, workspace: Arc<Mutex<Workspace>>) -> Result<Self> {
        let count = count as usize;
        if prompt_tokens.saturating_mul(count.saturating_add(1)) > MOST_ENTRIES {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "so many log probabilities of so long a prompt are not kept",
            )
            .with_context("field", "prompt_logprobs")
            .with_context("prompt_logprobs", count.to_string())
            .with_context("prompt_tokens", prompt_tokens.to_string()));
        }
        Ok(Self { count, entries: vec![None; prompt_tokens], workspace })
    }

    /// Takes the rows of a step over `range` of the past: each tells of the position after its own.
    pub(crate) fn hear(&mut self, range: Range<usize>, logits: &Logits, past: &Past) -> Result<()> {
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        // A step that wanted its last row alone has one.
        let skipped = range.len().saturating_sub(logits.rows());
        for (row, at) in range.skip(skipped).enumerate() {
            let Some(entry) = self.entries.get_mut(at + 1) else { break };
            let (Some(token), Some(row)) = (past.token_at(at + 1), logits.row(row)) else { continue };
            *entry = Some(logprobs(row, token, self.count, &mut workspace)?);
        }
        Ok(())
    }

    pub(crate) fn into_entries(self) -> Vec<Option<PositionLogprobs>> {
        self.entries
    }
}
