//! Adapters: low-rank weights (LoRA) that make one model many personas.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::{Error, ErrorKind, Result, TokenId};

/// One loaded version of an adapter. Loading other weights under the same id yields a new generation, so that nothing
/// computed with the old weights is ever mistaken for the new.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct AdapterKey {
    /// The name by which requests refer to it.
    pub id: Arc<str>,
    /// Counts loads in this backend, over all ids; never reused.
    pub generation: u64,
}

/// An adapter as a sequence uses it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdapterBinding {
    /// Which weights.
    pub key: AdapterKey,
    /// Factor on the adapter's own scale (PEFT's `lora_alpha / r`). 1 is as trained; never 0.
    pub scale: f32,
    /// The index of the first token of the sequence that it touches. 0 for an ordinary adapter; for an activated one
    /// (aLoRA) where its invocation tokens begin.
    pub active_from: usize,
}

impl AdapterBinding {
    /// An ordinary adapter, which touches every token.
    #[must_use]
    pub fn new(key: AdapterKey, scale: f32) -> Self {
        Self { key, scale, active_from: 0 }
    }

    /// Whether it touches the token at this index of the sequence.
    #[must_use]
    pub fn is_active_at(&self, index: usize) -> bool {
        index >= self.active_from
    }
}

/// The effective adapters of a sequence, in canonical order: sorted by key, no id twice, no zero scale.
///
/// Two equal sets mean equal weights at every token. Two sets that differ mean equal weights
/// [up to where they part](Self::agreement); the prefix cache relies on both.
///
/// ```
/// use consort_core::{AdapterBinding, AdapterKey, AdapterSet};
///
/// # fn main() -> consort_core::Result<()> {
/// let persona = |id: &str, active_from| {
///     AdapterSet::new([AdapterBinding { key: AdapterKey { id: id.into(), generation: 1 }, scale: 1.0, active_from }])
/// };
/// let (alice, bob) = (persona("alice", 900)?, persona("bob", 907)?);
/// // Whoever has read the first 900 tokens for Alice has read them for Bob, and for nobody at all.
/// assert_eq!(alice.agreement(&bob), 900);
/// assert_eq!(alice.within(900), AdapterSet::none());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct AdapterSet {
    bindings: Arc<[AdapterBinding]>,
}

impl AdapterSet {
    /// The base model alone.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// A canonical set. Bindings of scale 0 are dropped: they have no effect.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] when an id occurs twice or a scale is not finite.
    pub fn new(bindings: impl IntoIterator<Item = AdapterBinding>) -> Result<Self> {
        let mut bindings: Vec<_> = bindings.into_iter().filter(|binding| binding.scale != 0.0).collect();
        bindings.sort_by(|a, b| a.key.cmp(&b.key));
        for binding in &bindings {
            if !binding.scale.is_finite() {
                return Err(Error::new(ErrorKind::InvalidRequest, "an adapter's scale must be a finite number")
                    .with_context("adapter", &*binding.key.id));
            }
        }
        if let Some(pair) = bindings.windows(2).find(|pair| pair[0].key.id == pair[1].key.id) {
            return Err(Error::new(ErrorKind::InvalidRequest, "an adapter may be named once in a request")
                .with_context("adapter", &*pair[0].key.id));
        }
        Ok(Self { bindings: bindings.into() })
    }

    /// The bindings in canonical order.
    #[must_use]
    pub fn bindings(&self) -> &[AdapterBinding] {
        &self.bindings
    }

    /// The bindings that touch the token at this index of the sequence, in canonical order.
    pub fn active_at(&self, index: usize) -> impl Iterator<Item = &AdapterBinding> {
        self.bindings.iter().filter(move |binding| binding.is_active_at(index))
    }

    /// The bindings that touch any of the first `tokens` tokens: what a past of that length was computed with.
    #[must_use]
    pub fn within(&self, tokens: usize) -> Self {
        Self { bindings: self.bindings.iter().filter(|binding| binding.active_from < tokens).cloned().collect() }
    }

    /// The length up to which both sets compute the same: where the first binding that only one of them has becomes
    /// active. `usize::MAX` for equal sets.
    #[must_use]
    pub fn agreement(&self, other: &Self) -> usize {
        let only = |one: &Self, other: &Self| {
            let missing = |binding: &&AdapterBinding| !other.bindings.contains(binding);
            one.bindings.iter().filter(missing).map(|binding| binding.active_from).min().unwrap_or(usize::MAX)
        };
        only(self, other).min(only(other, self))
    }

    /// Whether this is the base model alone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bindings.is_empty()
    }
}

/// Where an adapter's weights are: in PEFT's format (`adapter_config.json`, `adapter_model.safetensors`), or in one GGUF file
/// as llama.cpp's `convert_lora_to_gguf.py` writes it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum AdapterFiles {
    /// A directory as PEFT's `save_pretrained` writes it.
    Directory(PathBuf),
    /// The contents of PEFT's two files.
    Bytes {
        /// `adapter_config.json`.
        config: Arc<[u8]>,
        /// `adapter_model.safetensors`.
        weights: Arc<[u8]>,
    },
    /// A GGUF file.
    File(PathBuf),
    /// A GGUF file's contents.
    Gguf(Arc<[u8]>),
}

impl AdapterFiles {
    /// The directory or the file, for messages; `None` for what is in memory.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Directory(path) | Self::File(path) => Some(path),
            Self::Bytes { .. } | Self::Gguf(_) => None,
        }
    }
}

/// What [`Engine::load_adapter`](crate::Engine::load_adapter) loads.
#[derive(Debug, Clone)]
pub struct AdapterSource {
    /// Under which key. The same key always means the same weights: a caller that unloads an adapter may load it again,
    /// and gives other weights another generation.
    pub key: AdapterKey,
    /// From where.
    pub files: AdapterFiles,
}

/// What an engine says of a loaded adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdapterInfo {
    /// Its key.
    pub key: AdapterKey,
    /// The largest rank among its layers.
    pub rank: usize,
    /// How many linear layers it changes.
    pub layers: usize,
    /// Bytes that it occupies in the engine.
    pub bytes: u64,
    /// The tokens from which it is active, for an activated adapter (aLoRA); `None` for an ordinary one, which touches
    /// every position.
    pub invocation_tokens: Option<Vec<TokenId>>,
}

impl AdapterInfo {
    /// Where an activated adapter becomes active in these tokens: at the beginning of the last place where its invocation
    /// tokens stand, as in PEFT. `None` when they stand nowhere (then it is not in effect at all), and for an ordinary
    /// adapter.
    #[must_use]
    pub fn invoked_at(&self, tokens: &[TokenId]) -> Option<usize> {
        let invocation = self.invocation_tokens.as_deref().filter(|invocation| !invocation.is_empty())?;
        tokens.windows(invocation.len()).rposition(|place| place == invocation)
    }
}

/// Whether a backend may take an adapter out of the engine's memory while nobody uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
    /// It stays in the engine.
    Pinned,
    /// It may be paged out and is loaded again on its next use.
    Paged {
        /// The higher, the longer it stays; among equals the least recently used one goes first.
        priority: i32,
    },
}

impl Default for Residency {
    fn default() -> Self {
        Self::Paged { priority: 0 }
    }
}

/// An adapter as a backend keeps it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdapterStatus {
    /// What the engine said of it when it was loaded.
    pub info: AdapterInfo,
    /// Whether it may be paged out.
    pub residency: Residency,
    /// Whether the engine holds it now.
    pub resident: bool,
    /// BLAKE3 digest of its files, where the backend has read them: of a GGUF file, or of the length of `adapter_config.json`
    /// (eight bytes, little-endian), its bytes, and those of `adapter_model.safetensors`.
    pub digest: Option<[u8; 32]>,
}

/// An adapter as a request names it; the backend binds it to the current generation when the request is accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterUse {
    /// The name under which it was loaded.
    pub id: String,
    /// Factor on its own scale; 1 is as trained.
    pub scale: f32,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn binding(id: &str, scale: f32, active_from: usize) -> AdapterBinding {
        AdapterBinding { key: AdapterKey { id: id.into(), generation: 1 }, scale, active_from }
    }

    fn set(bindings: &[AdapterBinding]) -> AdapterSet {
        AdapterSet::new(bindings.iter().cloned()).unwrap()
    }

    #[test]
    fn sets_agree_until_the_first_difference_acts() {
        let (base, a5, a9) = (AdapterSet::none(), set(&[binding("a", 1.0, 5)]), set(&[binding("a", 1.0, 9)]));
        assert_eq!(base.agreement(&base), usize::MAX);
        assert_eq!((base.agreement(&a5), a9.agreement(&base), a5.agreement(&a9)), (5, 9, 5));
        assert_eq!(a9.agreement(&set(&[binding("a", 0.5, 9)])), 9);
        let ordinary = binding("o", 1.0, 0);
        let (one, two) = (set(&[ordinary.clone(), binding("a", 1.0, 5)]), set(&[binding("b", 1.0, 7), ordinary]));
        assert_eq!((one.agreement(&two), one.agreement(&a5), one.agreement(&one.clone())), (5, 0, usize::MAX));
    }

    #[test]
    fn the_last_place_counts() {
        let info = |tokens: Option<&[TokenId]>| AdapterInfo {
            key: AdapterKey { id: "a".into(), generation: 1 },
            rank: 1,
            layers: 1,
            bytes: 1,
            invocation_tokens: tokens.map(<[TokenId]>::to_vec),
        };
        assert_eq!(info(Some(&[1, 2])).invoked_at(&[0, 1, 2, 1, 2, 1]), Some(3));
        assert_eq!(info(Some(&[5, 5])).invoked_at(&[5, 5, 5, 0]), Some(1));
        assert_eq!(info(Some(&[1, 2])).invoked_at(&[2, 1]), None);
        assert_eq!(info(Some(&[1, 2])).invoked_at(&[1]), None);
        assert_eq!((info(Some(&[])).invoked_at(&[1]), info(None).invoked_at(&[1])), (None, None));
    }

    #[test]
    fn what_is_active_depends_on_the_place() {
        let both = set(&[binding("b", 1.0, 3), binding("a", 1.0, 0)]);
        let names = |index| both.active_at(index).map(|binding| binding.key.id.to_string()).collect::<Vec<_>>();
        assert_eq!((names(2), names(3)), (vec!["a".to_owned()], vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(
            (both.within(0), both.within(3), both.within(4)),
            (AdapterSet::none(), set(&[binding("a", 1.0, 0)]), both.clone())
        );
    }
}
