//! What a conversion is asked to do, and what it says it did.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use consort_core::{Error, ErrorKind};
use consort_gguf::TensorType;

/// What to convert, into what, and where.
#[derive(Debug, Clone)]
pub struct ConvertConfig {
    /// The Hugging Face directory: `config.json`, safetensors (one file or shards), `tokenizer.json` and so on.
    pub source: PathBuf,
    /// The directory for the results; made if it is not there.
    pub output: PathBuf,
    /// The name in the files' names and metadata; the source directory's name if `None`.
    pub name: Option<String>,
    /// The type of the text model's matrices.
    pub text_type: OutputType,
    /// The type of the vision projector's matrices.
    pub mmproj_type: OutputType,
    /// What to do with files that are there already.
    pub overwrite: Overwrite,
}

impl ConvertConfig {
    /// A conversion to Q8_0 text and F16 vision that overwrites nothing.
    #[must_use]
    pub fn new(source: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            source: source.into(),
            output: output.into(),
            name: None,
            text_type: OutputType::Q8_0,
            mmproj_type: OutputType::F16,
            overwrite: Overwrite::Refuse,
        }
    }
}

/// The type that matrices take. Norms, biases, convolutions and other small tensors are F32 whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputType {
    /// 32 bits: exact for every source.
    F32,
    /// 16 bits, five of exponent.
    F16,
    /// 16 bits, eight of exponent: exact for bf16 sources.
    BF16,
    /// 8 bits and a scale for each 32 numbers.
    Q8_0,
}

impl OutputType {
    /// The type's name in file names.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.tensor_type().name()
    }

    /// The tensor type.
    #[must_use]
    pub fn tensor_type(self) -> TensorType {
        match self {
            Self::F32 => TensorType::F32,
            Self::F16 => TensorType::F16,
            Self::BF16 => TensorType::BF16,
            Self::Q8_0 => TensorType::Q8_0,
        }
    }

    /// The number that `general.file_type` has for it.
    pub(crate) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::BF16 => 32,
        }
    }
}

impl fmt::Display for OutputType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for OutputType {
    type Err = Error;

    /// Reads a name in upper or lower case.
    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::F32, Self::F16, Self::BF16, Self::Q8_0]
            .into_iter()
            .find(|kind| kind.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidConfig,
                    format!("{text:?} is not a type to convert to; F32, F16, BF16 and Q8_0 are"),
                )
            })
    }
}

/// What to do with a result's file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// Refuse before anything is done.
    Refuse,
    /// Replace it, once the new one is whole.
    Replace,
}

/// What a conversion wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvertReport {
    /// The text model.
    pub text: WrittenFile,
    /// The vision projector, if the checkpoint has a vision tower.
    pub mmproj: Option<WrittenFile>,
    /// How many multi-token prediction layers the text model holds. 0 also where the config announces some but the
    /// checkpoint lacks their tensors.
    pub mtp_layers: usize,
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenFile {
    /// Where it is.
    pub path: PathBuf,
    /// How many tensors it holds.
    pub tensors: usize,
    /// How many numbers they hold.
    pub parameters: u64,
    /// How large it is.
    pub bytes: u64,
}
