//! Adapters: low-rank weights (LoRA) that make one model many personas.

use std::path::PathBuf;
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
}

/// The effective adapters of a sequence, in canonical order: sorted by key, no id twice, no zero scale.
///
/// Two equal sets mean equal weights; the prefix cache relies on it.
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

    /// Whether this is the base model alone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bindings.is_empty()
    }
}

/// Where an adapter's weights are, in PEFT's format (`adapter_config.json`, `adapter_model.safetensors`).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum AdapterFiles {
    /// A directory as PEFT's `save_pretrained` writes it.
    Directory(PathBuf),
    /// The two files' contents.
    Bytes {
        /// `adapter_config.json`.
        config: Arc<[u8]>,
        /// `adapter_model.safetensors`.
        weights: Arc<[u8]>,
    },
}

/// What [`Engine::load_adapter`](crate::Engine::load_adapter) loads.
#[derive(Debug, Clone)]
pub struct AdapterSource {
    /// Under which key. The caller never reuses a generation.
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

/// An adapter as a request names it; the backend binds it to the current generation when the request is accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterUse {
    /// The name under which it was loaded.
    pub id: String,
    /// Factor on its own scale; 1 is as trained.
    pub scale: f32,
}
