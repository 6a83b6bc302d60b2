//! What is to be loaded, and within which limits.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use consort_core::{DevicePolicy, Error, ErrorKind, Result};

/// Where a model's files are.
#[derive(Debug, Clone)]
pub enum ModelSource {
    /// A file, which is mapped into memory. One shard of several (`NAME-00001-of-00003.gguf`) stands for all of them.
    Path(PathBuf),
    /// Several files that are one model: the first one's metadata, and the tensors of all.
    Paths(Vec<PathBuf>),
    /// Bytes that are part of the program, used in place.
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

/// What quantized weights are multiplied with. Weights in F32, F16 and BF16 always meet activations in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activations {
    /// Rounded to eight bits, in blocks of 32 with a scale of their own, once for each product; blocks are multiplied in
    /// integers. Several times as fast as [`F32`](Self::F32), and close to it: the crate's readme has the measured
    /// divergence.
    #[default]
    Int8,
    /// As they are: weights are widened to exactly what `consort_gguf::dequantize` gives, and multiplied in f32.
    F32,
}

/// What [`NativeEngine::load`](crate::NativeEngine::load) loads, and within which limits it then works.
///
/// ```
/// use consort_core::{Device, DevicePolicy};
/// use consort_native::NativeConfig;
///
/// let config = NativeConfig {
///     policy: DevicePolicy::Named(Device::Cpu),
///     sequence_memory_budget: Some(512 << 20),
///     ..NativeConfig::new(std::path::Path::new("model.gguf"))
/// };
/// assert!(config.vision.is_none());
/// ```
#[derive(Debug, Clone)]
pub struct NativeConfig {
    /// The text model, a GGUF of architecture `qwen35`.
    pub text: ModelSource,
    /// The vision tower, a GGUF of architecture `clip` as llama.cpp's converter writes it ("mmproj").
    pub vision: Option<ModelSource>,
    /// Which devices may compute. This engine computes on the processor, so only `Named(Device::Cpu)` loads.
    pub policy: DevicePolicy,
    /// What quantized weights are multiplied with.
    pub activations: Activations,
    /// How many threads compute; `None`: as many as the machine has cores.
    pub threads: Option<NonZeroUsize>,
    /// How many sequences can be open at once. Parked pasts do not count.
    pub max_sequences: usize,
    /// The most tokens that one sequence can hold. The model's own context length bounds it further.
    pub max_sequence_tokens: usize,
    /// The most tokens over all steps of one submit.
    pub max_batch_tokens: usize,
    /// The most bytes that attention keys and values and recurrent states may take, of running sequences and parked pasts
    /// together; `None`: unbounded.
    pub sequence_memory_budget: Option<u64>,
    /// The most patches of one image. 16,384 are 2048 × 2048 pixels in patches of 16.
    pub max_image_patches: usize,
}

impl NativeConfig {
    /// The text model alone, with moderate limits: 16 sequences of up to 32,768 tokens, 512 tokens a batch, memory
    /// unbounded, every core.
    pub fn new(text: impl Into<ModelSource>) -> Self {
        Self {
            text: text.into(),
            vision: None,
            policy: DevicePolicy::default(),
            activations: Activations::default(),
            threads: None,
            max_sequences: 16,
            max_sequence_tokens: 32_768,
            max_batch_tokens: 512,
            sequence_memory_budget: None,
            max_image_patches: 16_384,
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (name, value) in [
            ("max_sequences", self.max_sequences),
            ("max_sequence_tokens", self.max_sequence_tokens),
            ("max_batch_tokens", self.max_batch_tokens),
            ("max_image_patches", self.max_image_patches),
        ] {
            if value == 0 {
                return Err(Error::new(ErrorKind::InvalidConfig, "this limit must be above zero")
                    .with_operation("native::load")
                    .with_context("field", name));
            }
        }
        Ok(())
    }
}
