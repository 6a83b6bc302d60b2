//! Files, held against what llama.cpp takes on trust.
//!
//! The library asserts where a file is not as it expects, and an assertion ends the process. So every key of the model's
//! own that a file may have is listed here with what it may say, and every tensor with its shape and the types that the
//! graph takes; a key or a tensor that is not listed is refused by name.

mod text;
mod vision;

use consort_core::{Error, ErrorKind, Result};
use consort_gguf::{Gguf, Metadata, TensorType};

pub(crate) use text::TextShape;
pub(crate) use vision::VisionShape;

/// What a tensor's numbers may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbers {
    /// A matrix of a product: any float or quantized type that the library multiplies.
    Matrix,
    /// What is added, multiplied elementwise or convolved: F32 alone.
    F32,
    /// A convolution over an image: F32 or F16.
    Kernel,
}

/// A tensor that a file must have.
#[derive(Debug, Clone)]
struct Expected {
    name: String,
    dims: Vec<u64>,
    numbers: Numbers,
}

impl Expected {
    fn new(name: impl Into<String>, dims: &[usize], numbers: Numbers) -> Self {
        Self { name: name.into(), dims: dims.iter().map(|&dim| dim as u64).collect(), numbers }
    }
}

fn invalid(key: &str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidModel, message).with_operation("llamacpp::load").with_context("key", key)
}

fn unsupported(key: &'static str, name: &str, what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, what).with_operation("llamacpp::load").with_context(key, name)
}

/// A number from 1 to 2²⁴.
fn dimension(metadata: &Metadata, key: &str) -> Result<usize> {
    match metadata.require_u32(key)? as usize {
        value @ 1..=0x0100_0000 => Ok(value),
        value => Err(invalid(key, format!("{value} is no dimension of a model"))),
    }
}

/// A number between 0 and 1.
fn epsilon(metadata: &Metadata, key: &str) -> Result<()> {
    let value = metadata.require_f32(key)?;
    if value > 0.0 && value < 1.0 { Ok(()) } else { Err(invalid(key, "this must lie between 0 and 1")) }
}

/// Refuses keys that begin with `prefix` and are not among `known`.
fn only_known(metadata: &Metadata, prefix: &str, known: &[&str]) -> Result<()> {
    let stranger = metadata.iter().find_map(|(key, _)| {
        let rest = key.strip_prefix(prefix)?;
        (!known.contains(&rest)).then_some(key)
    });
    match stranger {
        None => Ok(()),
        Some(key) => Err(unsupported("key", key, "this key is not known here, and llama.cpp might act on it")),
    }
}

/// Holds a file's tensors against the list: each is there with its shape and a type that can be computed with, and of the
/// others each is `skipped`.
fn tensors(file: &Gguf, expected: &[Expected], skipped: impl Fn(&str) -> bool) -> Result<()> {
    for wanted in expected {
        let info = file.require_tensor(&wanted.name)?;
        if significant(&info.dims) != significant(&wanted.dims) {
            return Err(Error::new(
                ErrorKind::InvalidModel,
                format!("this tensor must be {:?} by the metadata, and is {:?}", wanted.dims, info.dims),
            )
            .with_operation("llamacpp::load")
            .with_context("tensor", &wanted.name));
        }
        if !takes(wanted.numbers, info.kind) {
            return Err(unsupported(
                "tensor",
                &wanted.name,
                format!("llama.cpp does not compute with {} in this place", info.kind),
            ));
        }
    }
    let known: std::collections::HashSet<&str> = expected.iter().map(|wanted| wanted.name.as_str()).collect();
    match file.tensors().find(|info| !known.contains(info.name.as_str()) && !skipped(&info.name)) {
        None => Ok(()),
        Some(stranger) => {
            Err(unsupported("tensor", &stranger.name, "this tensor is not known here, or not in this place"))
        }
    }
}

/// Without the ones at the end, which say nothing.
fn significant(dims: &[u64]) -> &[u64] {
    let end = dims.iter().rposition(|&dim| dim != 1).map_or(0, |last| last + 1);
    &dims[..end]
}

fn takes(numbers: Numbers, kind: TensorType) -> bool {
    use TensorType as T;
    match numbers {
        Numbers::F32 => kind == T::F32,
        Numbers::Kernel => matches!(kind, T::F32 | T::F16),
        Numbers::Matrix => matches!(
            kind,
            T::F32
                | T::F16
                | T::BF16
                | T::Q8_0
                | T::Q4_0
                | T::Q4_1
                | T::Q5_0
                | T::Q5_1
                | T::Q2K
                | T::Q3K
                | T::Q4K
                | T::Q5K
                | T::Q6K
                | T::IQ1S
                | T::IQ1M
                | T::IQ2XXS
                | T::IQ2XS
                | T::IQ2S
                | T::IQ3XXS
                | T::IQ3S
                | T::IQ4NL
                | T::IQ4XS
                | T::TQ1_0
                | T::TQ2_0
                | T::MXFP4
        ),
    }
}
