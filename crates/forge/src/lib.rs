//! Makes model files. So far: [`convert`], from a Hugging Face Qwen3.5 directory to GGUF.
//!
//! The result is what llama.cpp's converter writes for the architectures `qwen35` and `qwen35moe`, in names, order, shapes, types
//! and metadata: a text model `<name>-<TYPE>.gguf` and, where the checkpoint sees, a vision projector
//! `mmproj-<name>-<TYPE>.gguf`. Tensors stream from the mapped safetensors to the output, so that memory use does not grow
//! with the model. The few differences from that converter are listed at [`convert`].
//!
//! ```no_run
//! use consort_forge::{ConvertConfig, OutputType, convert};
//!
//! # fn main() -> consort_core::Result<()> {
//! let mut config = ConvertConfig::new("models/Qwen3.5-0.8B", "models/gguf");
//! config.text_type = OutputType::Q8_0;
//! let report = convert(&config)?;
//! println!("{}", report.text.path.display());
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod checkpoint;
mod config;
mod convert;
mod hf;
mod plan;
mod sources;
mod text;
mod tokenizer;
mod vision;

pub use config::{ConvertConfig, ConvertReport, OutputType, Overwrite, WrittenFile};
pub use convert::convert;
