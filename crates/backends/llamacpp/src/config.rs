//! What is to be loaded, and within which limits.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use consort_core::{DevicePolicy, Error, ErrorKind, Result};

/// Where a model's files are.
#[derive(Debug, Clone)]
pub enum ModelSource {
    /// A file, which is mapped into memory. One shard of several (`NAME-00001-of-00003.gguf`) stands for all of them.
    Path(PathBuf),
    /// Bytes that are part of the program. llama.cpp reads files, so they are written to a temporary one.
    Static(&'static [u8]),
}

impl From<PathBuf> for ModelSource {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<&std::path::Path> for ModelSource {
    fn from(path: &std::path::Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl From<&'static [u8]> for ModelSource {
    fn from(bytes: &'static [u8]) -> Self {
        Self::Static(bytes)
    }
}

/// How attention keys and values are kept, and attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheType {
    /// In half precision, with the fused kernel where the device has one: half the memory, and faster.
    #[default]
    F16,
    /// In single precision, without the fused kernel, which rounds: text and vision as the reference computes them.
    F32,
}

/// What [`LlamacppEngine::load`](crate::LlamacppEngine::load) loads, and within which limits it then works.
///
/// ```
/// use consort_core::{Device, DevicePolicy};
/// use consort_llamacpp::LlamacppConfig;
///
/// let config = LlamacppConfig {
///     policy: DevicePolicy::Named(Device::Cpu),
///     max_total_tokens: 65_536,
///     ..LlamacppConfig::new(std::path::Path::new("model.gguf"))
/// };
/// assert!(config.vision.is_none());
/// ```
#[derive(Debug, Clone)]
pub struct LlamacppConfig {
    /// The text model, a GGUF of architecture `qwen35` or `qwen35moe`.
    pub text: ModelSource,
    /// The vision tower, a GGUF of architecture `clip` as llama.cpp's converter writes it ("mmproj").
    pub vision: Option<ModelSource>,
    /// Which device may compute.
    pub policy: DevicePolicy,
    /// How many threads compute what the processor does; `None`: as many as the machine has cores.
    pub threads: Option<NonZeroUsize>,
    /// How attention keys and values are kept, and attention is computed.
    pub cache: CacheType,
    /// How many sequences can be open at once. Parked pasts do not count.
    pub max_sequences: usize,
    /// How many pasts can be parked at once. The recurrent states of all sequences and parked pasts are allocated when the
    /// model is loaded; together they are at most 256.
    pub max_parked: usize,
    /// The most tokens that one sequence can hold. The model's own context length bounds it further.
    pub max_sequence_tokens: usize,
    /// The most tokens over all steps of one submit.
    pub max_batch_tokens: usize,
    /// The most tokens over all sequences and parked pasts, shared ones once: room for their attention keys and values is
    /// allocated when the model is loaded.
    pub max_total_tokens: usize,
    /// The most bytes that attention keys and values and recurrent states may take of what was allocated, of running
    /// sequences and parked pasts together; `None`: all of it.
    pub sequence_memory_budget: Option<u64>,
    /// The most patches of one image. 16,384 are 2048 × 2048 pixels in patches of 16.
    pub max_image_patches: usize,
}

impl LlamacppConfig {
    /// The text model alone, with moderate limits: 16 sequences, 32 parked pasts and 32,768 tokens over all of them, 512
    /// tokens a batch, every core.
    pub fn new(text: impl Into<ModelSource>) -> Self {
        Self {
            text: text.into(),
            vision: None,
            policy: DevicePolicy::default(),
            threads: None,
            cache: CacheType::default(),
            max_sequences: 16,
            max_parked: 32,
            max_sequence_tokens: 32_768,
            max_batch_tokens: 512,
            max_total_tokens: 32_768,
            sequence_memory_budget: None,
            max_image_patches: 16_384,
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let bounds = [
            ("max_sequences", self.max_sequences, 256),
            ("max_parked", self.max_parked.saturating_add(1), 257),
            ("max_sequences and max_parked together", self.max_sequences.saturating_add(self.max_parked), 256),
            ("max_sequence_tokens", self.max_sequence_tokens, 1 << 30),
            ("max_batch_tokens", self.max_batch_tokens, 1 << 16),
            ("max_total_tokens", self.max_total_tokens, 1 << 30),
            ("max_image_patches", self.max_image_patches, 1 << 20),
        ];
        match bounds.iter().find(|(_, value, most)| *value == 0 || value > most) {
            None => Ok(()),
            Some((field, _, most)) => {
                Err(Error::new(ErrorKind::InvalidConfig, format!("this limit must be above zero and at most {most}"))
                    .with_operation("llamacpp::load")
                    .with_context("field", *field))
            }
        }
    }
}
