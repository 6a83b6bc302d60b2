//! Byte-level BPE tokenizers.

mod build;
mod byte_level;
mod gguf;
mod json;
mod pretokenizer;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use aho_corasick::AhoCorasick;
use consort_core::{Error, ErrorKind, Result, SpecialTokens, TokenId};
use consort_gguf::Gguf;
use fancy_regex::Regex;
use tokenizers::normalizers::NFC;
use tokenizers::{Model as _, NormalizedString, Normalizer as _, models::bpe::BPE};

pub use self::pretokenizer::PreTokenizer;
use crate::SpecialText;
use crate::detokenizer::Utf8Stream;
use crate::guard::Marks;

/// The longest text that [`Tokenizer::encode`] takes, in bytes. Well above any context window, and it bounds memory.
const MAX_TEXT_BYTES: usize = 8 << 20;

/// A byte-level BPE tokenizer. Cheap to clone; clones share everything.
///
/// It never adds tokens of its own: beginning-of-text and the like stand in the chat template.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    bpe: BPE,
    pre: PreTokenizer,
    pattern: Regex,
    /// Whether text is brought into normal form C first; `tokenizer.json` files of the family ask for it, GGUF files
    /// have no such field.
    normalize: bool,
    added: Option<AddedTokens>,
    spellings: Spellings,
    /// Bytes that no token stands for: the foreign crate would drop them in silence.
    missing_bytes: Vec<u8>,
    special: Vec<bool>,
    ends: Vec<TokenId>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    pad: Option<TokenId>,
    chat_template: Option<String>,
}

/// Tokens that are matched as text before words are cut.
struct AddedTokens {
    matcher: AhoCorasick,
    /// By the matcher's pattern index.
    ids: Vec<TokenId>,
    by_text: HashMap<String, TokenId>,
}

/// What each token is called in the vocabulary, and the bytes it stands for; `None` where an id has no token.
struct Spellings {
    tokens: Vec<Option<Box<str>>>,
    bytes: Vec<Option<Box<[u8]>>>,
}

impl Tokenizer {
    /// The tokenizer in a GGUF file's metadata (`tokenizer.ggml.*`, `tokenizer.chat_template`).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTokenizer`] or [`ErrorKind::InvalidModel`]: a key is missing or malformed, the model is not
    /// byte-level BPE (`gpt2`), the pre-tokenizer is unknown, or vocabulary and merges do not fit together.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        Self::from_metadata(gguf.metadata())
    }

    /// As [`from_gguf`](Self::from_gguf), from metadata alone.
    ///
    /// # Errors
    /// As [`from_gguf`](Self::from_gguf).
    pub fn from_metadata(metadata: &consort_gguf::Metadata) -> Result<Self> {
        gguf::definition(metadata).and_then(build::build).map_err(|error| error.with_operation("text::tokenizer"))
    }

    /// The tokenizer in a `tokenizer.json`, with what its `tokenizer_config.json` adds (end token, chat template).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTokenizer`]: the JSON is malformed, it is not byte-level BPE with a known pre-tokenizer, it
    /// uses something that is not supported (named), or vocabulary and merges do not fit together.
    pub fn from_json(tokenizer_json: &[u8], tokenizer_config: Option<&[u8]>) -> Result<Self> {
        json::definition(tokenizer_json, tokenizer_config)
            .and_then(build::build)
            .map_err(|error| error.with_operation("text::tokenizer"))
    }

    /// The tokens of `text`.
    ///
    /// With [`SpecialTokens::Plain`], no text becomes a special or added token, whatever it looks like.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] when the text is longer than 8 MiB or has about a million
    /// blanks in a row, [`ErrorKind::InvalidTokenizer`] when the
    /// vocabulary has no token for one of its bytes.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<TokenId>> {
        self.encode_inner(text, special, &Marks::default()).map_err(|error| error.with_operation("text::encode"))
    }

    /// The tokens of a rendering in which some texts are marked, so that they do not become special tokens.
    pub(crate) fn encode_marked(&self, text: &str, marks: &Marks) -> Result<Vec<TokenId>> {
        self.encode_inner(text, SpecialTokens::Parse, marks).map_err(|error| error.with_operation("text::encode"))
    }

    fn encode_inner(&self, text: &str, special: SpecialTokens, marks: &Marks) -> Result<Vec<TokenId>> {
        if text.len() > MAX_TEXT_BYTES {
            let message = format!("the text has {} bytes; at most {MAX_TEXT_BYTES} are tokenized", text.len());
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
        let mut ids = Vec::with_capacity(text.len() / 3 + 8);
        let mut done = 0;
        if let (SpecialTokens::Parse, Some(added)) = (special, &self.inner.added) {
            for found in added.matcher.find_iter(text) {
                self.encode_words(&marks.restore(text.get(done..found.start()).unwrap_or_default()), &mut ids)?;
                ids.extend(added.ids.get(found.pattern().as_usize()));
                done = found.end();
            }
        }
        self.encode_words(&marks.restore(text.get(done..).unwrap_or_default()), &mut ids)?;
        Ok(ids)
    }

    /// Appends the tokens of a text without added tokens.
    fn encode_words(&self, text: &str, ids: &mut Vec<TokenId>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let inner = &*self.inner;
        // ASCII is its own normal form.
        let normalized = (inner.normalize && !text.is_ascii())
            .then(|| {
                let mut normalized = NormalizedString::from(text);
                NFC.normalize(&mut normalized).map(|()| normalized).map_err(|source| {
                    Error::new(ErrorKind::Unexpected, "normalizing the text failed").with_source(source)
                })
            })
            .transpose()?;
        let text = normalized.as_ref().map_or(text, |normalized| normalized.get());
        if let Some(&byte) = inner.missing_bytes.iter().find(|&&byte| text.as_bytes().contains(&byte)) {
            return Err(Error::new(ErrorKind::InvalidTokenizer, "the vocabulary has no token for a byte of the text")
                .with_context("byte", format!("0x{byte:02x}")));
        }
        let mut spelled = String::new();
        let mut word = |part: &str, ids: &mut Vec<TokenId>| {
            spelled.clear();
            byte_level::spell(part, &mut spelled);
            let tokens = inner.bpe.tokenize(&spelled).map_err(|source| {
                Error::new(ErrorKind::InvalidTokenizer, "BPE failed on a word of the text").with_source(source)
            })?;
            ids.extend(tokens.iter().map(|token| token.id));
            Ok::<(), Error>(())
        };
        let mut done = 0;
        for found in inner.pattern.find_iter(text) {
            let found = found.map_err(|source| {
                Error::new(ErrorKind::InvalidRequest, "the text has a run of blanks that is too long to be tokenized")
                    .with_source(source)
            })?;
            // What no alternative matches is a word too, as in the reference. (The known patterns match everything.)
            word(text.get(done..found.start()).unwrap_or_default(), ids)?;
            word(found.as_str(), ids)?;
            done = found.end();
        }
        word(text.get(done..).unwrap_or_default(), ids)
    }

    /// The text of `ids`. Bytes that are no UTF-8 become U+FFFD; ids without a token add nothing.
    #[must_use]
    pub fn decode(&self, ids: &[TokenId], special: SpecialText) -> String {
        let mut text = String::with_capacity(ids.len() * 4);
        let mut stream = Utf8Stream::default();
        for &id in ids {
            if special == SpecialText::Show || !self.is_special(id) {
                stream.push(self.token_bytes(id).unwrap_or_default(), &mut text);
            }
        }
        stream.finish(&mut text);
        text
    }

    /// One more than the largest token id. A model's `lm_head` may have more rows, which no token belongs to.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.spellings.tokens.len()
    }

    /// The id of a token by its spelling in the vocabulary: byte-level symbols (`Ġhello`) or, for added tokens, text.
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<TokenId> {
        let added = self.inner.added.as_ref().and_then(|added| added.by_text.get(token).copied());
        added.or_else(|| self.inner.bpe.token_to_id(token))
    }

    /// A token's spelling in the vocabulary; the inverse of [`token_to_id`](Self::token_to_id).
    #[must_use]
    pub fn id_to_token(&self, id: TokenId) -> Option<&str> {
        self.inner.spellings.tokens.get(id as usize)?.as_deref()
    }

    /// The bytes that a token stands for; not always UTF-8 on its own.
    #[must_use]
    pub fn token_bytes(&self, id: TokenId) -> Option<&[u8]> {
        self.inner.spellings.bytes.get(id as usize)?.as_deref()
    }

    /// Whether `id` is a control token, which is no part of what is said (`<|im_end|>`).
    #[must_use]
    pub fn is_special(&self, id: TokenId) -> bool {
        self.inner.special.get(id as usize).copied().unwrap_or(false)
    }

    /// The spellings of all special tokens.
    pub(crate) fn special_spellings(&self) -> Vec<String> {
        let added = self.inner.added.iter().flat_map(|added| &added.by_text);
        added.filter(|(_, id)| self.is_special(**id)).map(|(text, _)| text.clone()).collect()
    }

    /// Tokens that end a reply: the file's end-of-text and end-of-turn tokens and, where they exist, `<|im_end|>` and
    /// `<|endoftext|>`. Sorted.
    #[must_use]
    pub fn end_tokens(&self) -> &[TokenId] {
        &self.inner.ends
    }

    /// The file's end token.
    #[must_use]
    pub fn eos_token(&self) -> Option<TokenId> {
        self.inner.eos
    }

    /// The file's beginning-of-text token. (It is not added by [`encode`](Self::encode).)
    #[must_use]
    pub fn bos_token(&self) -> Option<TokenId> {
        self.inner.bos
    }

    /// The file's padding token.
    #[must_use]
    pub fn pad_token(&self) -> Option<TokenId> {
        self.inner.pad
    }

    /// The rule that cuts text into words.
    #[must_use]
    pub fn pre_tokenizer(&self) -> PreTokenizer {
        self.inner.pre
    }

    /// The source of the chat template that came with the tokenizer.
    #[must_use]
    pub fn chat_template(&self) -> Option<&str> {
        self.inner.chat_template.as_deref()
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("pre_tokenizer", &self.inner.pre)
            .field("end_tokens", &self.inner.ends)
            .finish_non_exhaustive()
    }
}

/// Text from a file, cut to a length that fits into an error message.
fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        short.push('…');
    }
    short
}

/// A complete, tiny `tokenizer.json`: the 256 bytes and two special tokens. For documentation and tests.
#[doc(hidden)]
#[must_use]
pub fn doc_tokenizer_json() -> Vec<u8> {
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..=255_u8).map(|byte| (byte_level::char_of(byte).to_string(), byte.into())).collect();
    serde_json::json!({
        "added_tokens": [
            { "id": 256, "content": "<|im_start|>", "special": true },
            { "id": 257, "content": "<|im_end|>", "special": true },
        ],
        "normalizer": { "type": "NFC" },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": PreTokenizer::Qwen35.pattern() }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
        ]},
        "decoder": { "type": "ByteLevel" },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
    .to_string()
    .into_bytes()
}
