//! What each token of a model stands for.

use std::fmt;
use std::sync::{Arc, OnceLock};

use consort_core::{Error, ErrorKind, Result, SpecialTokens, TokenId};
use consort_text::Tokenizer;
use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

/// A model's tokens as bytes, arranged for matching. Cheap to clone; what is large is built when it is first needed.
#[derive(Clone)]
pub struct Vocabulary {
    inner: Arc<Inner>,
}

struct Inner {
    tokenizer: Tokenizer,
    vocab_size: usize,
    end_tokens: Vec<TokenId>,
    factory: OnceLock<Result<ParserFactory>>,
}

/// The tokens as a trie, and the tokenizer.
struct Environment {
    trie: TokTrie,
    tokenizer: Tokenizer,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            self.tokenizer.encode(text, SpecialTokens::Plain).unwrap_or_default()
        })
    }

    /// No tokens are forced: the model chooses how to spell.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

impl Vocabulary {
    /// The tokens of a model whose `lm_head` has `vocab_size` rows and that ends replies with `end_tokens`.
    ///
    /// Rows without a token, and control tokens (`<|im_start|>`), are never allowed; a Lark grammar can name the latter.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTokenizer`] when the vocabulary is empty or too large, or an end token lies beyond it.
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize, end_tokens: &[TokenId]) -> Result<Self> {
        let refuse =
            |message: &str| Err(Error::new(ErrorKind::InvalidTokenizer, message).with_operation("grammar::vocabulary"));
        // The trie has 24 bits for a token.
        if vocab_size == 0 || vocab_size >= 1 << 24 {
            return refuse("a vocabulary must have 1 to 16,777,215 tokens")
                .map_err(|error: Error| error.with_context("vocab_size", vocab_size.to_string()));
        }
        if let Some(stranger) = end_tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return refuse("an end token lies beyond the vocabulary")
                .map_err(|error: Error| error.with_context("token", stranger.to_string()));
        }
        Ok(Self {
            inner: Arc::new(Inner {
                tokenizer: tokenizer.clone(),
                vocab_size,
                end_tokens: end_tokens.to_vec(),
                factory: OnceLock::new(),
            }),
        })
    }

    /// How many tokens a mask has room for.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// The tokens that end a reply.
    #[must_use]
    pub fn end_tokens(&self) -> &[TokenId] {
        &self.inner.end_tokens
    }

    /// What makes matchers. Built once, by whoever comes first: it takes a second or two for a large vocabulary.
    pub(crate) fn factory(&self) -> Result<&ParserFactory> {
        match self.inner.factory.get_or_init(|| self.inner.build()) {
            Ok(factory) => Ok(factory),
            Err(error) => Err(Error::new(error.kind(), error.message()).with_operation("grammar::vocabulary")),
        }
    }
}

impl Inner {
    fn build(&self) -> Result<ParserFactory> {
        // One more than the model has stands for the end of a model without end tokens.
        let mut words: Vec<Vec<u8>> = (0..self.vocab_size as TokenId)
            .map(|token| {
                let bytes = self.tokenizer.token_bytes(token).unwrap_or_default();
                if self.tokenizer.is_special(token) || self.end_tokens.contains(&token) {
                    [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
                } else {
                    bytes.to_vec()
                }
            })
            .collect();
        let mut ends = self.end_tokens.clone();
        if ends.is_empty() {
            ends.push(words.len() as TokenId);
            words.push([&[TokTrie::SPECIAL_TOKEN_MARKER][..], b"<end>"].concat());
        }
        let first = ends.first().copied().unwrap_or_default();
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, first), &words).with_eos_tokens(&ends);
        let environment: TokEnv = Arc::new(Environment { trie, tokenizer: self.tokenizer.clone() });
        let capabilities = InferenceCapabilities { ff_tokens: false, ..InferenceCapabilities::default() };
        let slices = SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&environment, capabilities, &slices).map_err(|error| {
            Error::new(ErrorKind::InvalidTokenizer, format!("the vocabulary cannot be arranged: {error}"))
        })?;
        factory.quiet();
        Ok(factory)
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary")
            .field("vocab_size", &self.inner.vocab_size)
            .field("end_tokens", &self.inner.end_tokens)
            .finish_non_exhaustive()
    }
}
