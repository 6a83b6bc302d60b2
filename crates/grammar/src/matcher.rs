//! One reply's place in its grammar.

use std::fmt;

use consort_core::{Error, ErrorKind, Result, TokenId};
use consort_sampling::TokenMask;
use llguidance::api::StopReason;

use crate::Vocabulary;
use crate::compiler::first_lines;

/// Which tokens may come next, for one reply. Made by [`Compiler::compile`](crate::Compiler::compile).
pub struct Matcher {
    inner: llguidance::Matcher,
    vocabulary: Vocabulary,
    structure: &'static str,
    /// Tokens that it heard.
    heard: usize,
}

impl Matcher {
    pub(crate) fn new(inner: llguidance::Matcher, vocabulary: Vocabulary, structure: &'static str) -> Self {
        Self { inner, vocabulary, structure, heard: 0 }
    }

    /// A copy at the same place, which shares nothing that changes.
    #[must_use]
    pub fn fork(&self) -> Self {
        let Self { inner, vocabulary, structure, heard } = self;
        Self { inner: inner.deep_clone(), vocabulary: vocabulary.clone(), structure, heard: *heard }
    }

    /// The tokens that may come next. The end tokens are among them where the text is one that the grammar matches as a
    /// whole; they alone are when nothing can follow it. Of a model without end tokens the set is then empty.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidGrammar`]: the grammar takes more than its limits here. It stays so.
    pub fn mask(&mut self) -> Result<TokenMask> {
        let set = self.inner.compute_mask_or_eos().map_err(|error| self.failed(&error.to_string()))?;
        let mut mask = TokenMask::from_words(set.as_slice().to_vec());
        if self.vocabulary.end_tokens().is_empty() {
            // It stood for the end, and is no token of the model.
            mask.forbid(self.vocabulary.vocab_size() as TokenId);
        }
        Ok(mask)
    }

    /// Hears which token came. An end token, or one that the mask does not allow, must not come.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidGrammar`] where a limit is passed; [`ErrorKind::Unexpected`] for a token that was not allowed.
    pub fn commit(&mut self, token: TokenId) -> Result<()> {
        if self.inner.is_stopped() || token as usize >= self.vocabulary.vocab_size() {
            return Err(Error::new(ErrorKind::Unexpected, "a token came that the grammar does not allow")
                .with_operation("grammar::commit")
                .with_context("structure", self.structure)
                .with_context("token", token.to_string()));
        }
        self.inner.consume_token(token).map_err(|error| self.failed(&error.to_string()))?;
        self.heard += 1;
        Ok(())
    }

    /// Whether the text is whole, and nothing can follow it but the end.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.inner.stop_reason() == StopReason::NoExtension
    }

    /// Whether the text is one that the grammar matches as a whole. More may follow.
    ///
    /// # Errors
    /// As [`mask`](Self::mask).
    pub fn may_end(&mut self) -> Result<bool> {
        if self.is_complete() {
            return Ok(true);
        }
        self.inner.is_accepting().map_err(|error| self.failed(&error.to_string()))
    }

    fn failed(&self, message: &str) -> Error {
        Error::new(
            ErrorKind::InvalidGrammar,
            format!("the grammar cannot be matched further: {}", first_lines(message)),
        )
        .with_operation("grammar::match")
        .with_context("structure", self.structure)
        .with_context("after_tokens", self.heard.to_string())
    }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matcher")
            .field("structure", &self.structure)
            .field("heard", &self.heard)
            .finish_non_exhaustive()
    }
}
