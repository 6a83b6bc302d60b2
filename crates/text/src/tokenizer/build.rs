//! From a definition, whichever file it came from, to a tokenizer. Everything is checked here, before the foreign crate
//! sees it: its builder indexes past a buffer when a merge makes a token longer than any in the vocabulary.

use std::collections::HashMap;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use consort_core::{Error, ErrorKind, Result, TokenId};
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::{AddedTokens, Inner, PreTokenizer, Spellings, Tokenizer, byte_level, shorten};

/// The most ids a vocabulary may span. The largest published vocabularies have about 260,000 tokens.
pub(super) const MAX_VOCAB: usize = 1 << 21;

/// Names of tokens that end a reply in this family, whatever else a file names.
const FAMILY_ENDS: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];

/// What a tokenizer file says.
pub(super) struct Definition {
    pub(super) pre: PreTokenizer,
    pub(super) normalize: bool,
    /// Take a word that is a token as it is, without asking the merges.
    pub(super) ignore_merges: bool,
    /// Tokens that BPE may produce, by spelling.
    pub(super) vocab: Vec<(String, TokenId)>,
    pub(super) merges: Merges,
    pub(super) added: Vec<Added>,
    /// Tokens that are never produced from text, only decoded.
    pub(super) unused: Vec<(String, TokenId)>,
    pub(super) bos: Option<TokenId>,
    pub(super) eos: Option<TokenId>,
    pub(super) pad: Option<TokenId>,
    pub(super) end_of_turn: Option<TokenId>,
    pub(super) chat_template: Option<String>,
}

/// A token that is matched as text.
pub(super) struct Added {
    pub(super) text: String,
    pub(super) id: TokenId,
    pub(super) special: bool,
}

pub(super) fn build(definition: Definition) -> Result<Tokenizer> {
    let Definition { pre, normalize, ignore_merges, vocab, merges, added, unused, .. } = definition;

    let mut spellings = Spellings::with_room_for(
        vocab.iter().chain(&unused).map(|(_, id)| *id).chain(added.iter().map(|token| token.id)),
        vocab.len() + unused.len() + added.len(),
    )?;
    for (token, id) in &vocab {
        spellings.set(*id, token, byte_level::bytes_of(token))?;
    }
    for (token, id) in &unused {
        spellings.set(*id, token, byte_level::bytes_of(token))?;
    }

    let mut map = Vocab::with_capacity(vocab.len());
    for (token, id) in vocab {
        if let Some(other) = map.insert(token.clone(), id) {
            return Err(bad("two ids have the same token")
                .with_context("token", shorten(&token))
                .with_context("ids", format!("{other} and {id}")));
        }
    }

    let mut special = vec![false; spellings.tokens.len()];
    for token in &added {
        // A token may stand both in the model's vocabulary and among the added ones, under one id.
        if map.get(&token.text) != Some(&token.id) {
            spellings.set(token.id, &token.text, token.text.clone().into_bytes())?;
        }
        if let Some(flag) = special.get_mut(token.id as usize) {
            *flag = token.special;
        }
    }

    let mut joined = String::new();
    for (left, right) in &merges {
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        for part in [left, right, &joined] {
            if !map.contains_key(part) {
                return Err(bad("a merge uses a token that is not in the vocabulary")
                    .with_context("token", shorten(part))
                    .with_context("merge", format!("{} {}", shorten(left), shorten(right))));
            }
        }
    }
    let missing_bytes =
        (0..=255_u8).filter(|&byte| !map.contains_key(byte_level::char_of(byte).to_string().as_str())).collect();
    let bpe = BPE::builder().vocab_and_merges(map, merges).ignore_merges(ignore_merges).build().map_err(|source| {
        bad("vocabulary and merges do not fit together").with_context("detail", shorten(&source.to_string()))
    })?;

    let added = added_tokens(added)?;
    let named = |name: &str| added.as_ref().and_then(|added| added.by_text.get(name).copied());
    let mut ends: Vec<TokenId> = FAMILY_ENDS.into_iter().filter_map(named).collect();
    for (key, id) in [
        ("end of text", definition.eos),
        ("end of turn", definition.end_of_turn),
        ("beginning of text", definition.bos),
        ("padding", definition.pad),
    ] {
        let Some(id) = id else { continue };
        if spellings.tokens.get(id as usize).is_none_or(Option::is_none) {
            return Err(bad("a named token is not in the vocabulary")
                .with_context("token", key)
                .with_context("id", id.to_string()));
        }
        if key.starts_with("end") {
            ends.push(id);
        }
    }
    ends.sort_unstable();
    ends.dedup();

    Ok(Tokenizer {
        inner: Arc::new(Inner {
            bpe,
            pre,
            pattern: pre.compile()?,
            normalize,
            added,
            spellings,
            missing_bytes,
            special,
            ends,
            bos: definition.bos,
            eos: definition.eos,
            pad: definition.pad,
            chat_template: definition.chat_template,
        }),
    })
}

impl Spellings {
    fn with_room_for(ids: impl Iterator<Item = TokenId>, tokens: usize) -> Result<Self> {
        let size = ids.max().map_or(0, |largest| largest as usize + 1);
        // Holes are normal (reserved ids), but a lone huge id must not make us allocate for all below it.
        if tokens == 0 || size > MAX_VOCAB || size > tokens.saturating_mul(2).saturating_add(4096) {
            return Err(bad("the vocabulary is empty, too large or mostly holes")
                .with_context("tokens", tokens.to_string())
                .with_context("ids", size.to_string()));
        }
        Ok(Self { tokens: vec![None; size], bytes: vec![None; size] })
    }

    fn set(&mut self, id: TokenId, token: &str, bytes: Vec<u8>) -> Result<()> {
        if let (Some(slot), Some(room)) = (self.tokens.get_mut(id as usize), self.bytes.get_mut(id as usize)) {
            if let Some(other) = slot {
                return Err(bad("two tokens have the same id")
                    .with_context("id", id.to_string())
                    .with_context("tokens", format!("{} and {}", shorten(other), shorten(token))));
            }
            *slot = Some(token.into());
            *room = Some(bytes.into());
        }
        Ok(())
    }
}

fn added_tokens(tokens: Vec<Added>) -> Result<Option<AddedTokens>> {
    let mut by_text = HashMap::with_capacity(tokens.len());
    let (mut texts, mut ids) = (Vec::new(), Vec::new());
    for token in tokens {
        // An empty text would match everywhere.
        if token.text.is_empty() {
            continue;
        }
        if by_text.insert(token.text.clone(), token.id).is_some() {
            return Err(bad("an added token stands twice").with_context("token", shorten(&token.text)));
        }
        texts.push(token.text);
        ids.push(token.id);
    }
    if texts.is_empty() {
        return Ok(None);
    }
    let matcher = AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(&texts)
        .map_err(|source| bad("the added tokens cannot be matched").with_source(source))?;
    Ok(Some(AddedTokens { matcher, ids, by_text }))
}

pub(super) fn bad(message: &str) -> Error {
    Error::new(ErrorKind::InvalidTokenizer, message)
}
