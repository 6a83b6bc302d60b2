//! Drafts of the multi-token prediction block, to measure how many the model itself would have said.

use consort_core::{AdapterSet, Error, ErrorKind, Logits, Position, Result, TokenId};

use crate::engine::{NAME, NativeEngine};
use crate::model::batch::{Batch, Item};
use crate::sequence::Sequence;

/// What the model and its multi-token prediction block make of one text.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Drafts {
    /// The model's logits after each token: `[tokens, vocab]`.
    pub model: Logits,
    /// The block's: row `t`, made of tokens `0` to `t + 1`, is a draft of what the model says after token `t + 1`, which is row
    /// `t + 1` of [`model`](Self::model). `[tokens - 1, vocab]`.
    pub drafts: Logits,
}

impl NativeEngine {
    /// Whether the model has a multi-token prediction block.
    #[must_use]
    pub fn drafts_tokens(&self) -> bool {
        self.model.text.drafter.is_some()
    }

    /// Runs a text of at least two tokens, without adapters, through the model and its multi-token prediction block. A draft is
    /// right where the largest of its logits is the model's too: such tokens could be taken without running the layers one by
    /// one.
    ///
    /// No sequence is kept. Nothing schedules drafts yet; this is what shows that the block computes what it was trained to.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a model without such a block; [`ErrorKind::InvalidRequest`] for fewer than two tokens, more
    /// than `max_batch_tokens`, or one beyond the vocabulary; [`ErrorKind::OutOfMemory`] beyond the budget of sequences.
    pub fn drafts(&self, tokens: &[TokenId]) -> Result<Drafts> {
        let Some(drafter) = &self.model.text.drafter else {
            return Err(Error::unsupported(NAME, "drafts without a multi-token prediction block"));
        };
        let refuse = |message: String| {
            Err(Error::new(ErrorKind::InvalidRequest, message).with_backend(NAME).with_operation("drafts"))
        };
        let (text, compute) = (&self.model.text, self.compute);
        let (hidden, vocab) = (text.shape.hidden, text.shape.vocab);
        let most = self.capability.max_batch_tokens.min(self.capability.max_sequence_tokens);
        if !(2..=most).contains(&tokens.len()) {
            return refuse(format!("{} tokens are not 2 to {most}", tokens.len()));
        }
        if let Some(stranger) = tokens.iter().find(|&&token| token as usize >= vocab) {
            return refuse(format!("token {stranger} is beyond the vocabulary of {vocab}"));
        }
        let pair = |pool: &crate::sequence::Pool, count: usize| -> Result<Batch> {
            let mut sequence = Sequence::new(AdapterSet::none(), Vec::new());
            sequence.grow(pool, count).map_err(|error| error.with_backend(NAME).with_operation("drafts"))?;
            let positions = (0..count).map(|index| Position::text(index as u32)).collect();
            Ok(Batch { items: vec![Item { sequence, start: 0, count }], positions })
        };
        let mut batch = pair(&self.pool, tokens.len())?;
        let mut drafting = pair(&drafter.pool(&self.pool.ledger, self.pool.budget), tokens.len() - 1)?;
        let mut run = || {
            let mut x = vec![0.0; tokens.len() * hidden];
            for (row, token) in x.chunks_exact_mut(hidden).zip(tokens) {
                text.embed(compute, *token, row);
            }
            text.forward(compute, &mut batch, &mut x);
            let states = text.finish(compute, &x);
            let before = &states[..states.len() - hidden];
            let drafts = drafter.forward(compute, text, &mut drafting, (before, &tokens[1..]));
            (text.logits(compute, &states), drafts)
        };
        let (model, drafts) = match &self.threads {
            Some(threads) => threads.install(run),
            None => run(),
        };
        Ok(Drafts { model: Logits::new(vocab, model)?, drafts: Logits::new(vocab, drafts)? })
    }
}
