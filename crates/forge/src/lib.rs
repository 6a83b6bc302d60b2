//! Makes model files: [`convert`], from a Hugging Face Qwen3.5 directory to GGUF, and [`quantize`], from a GGUF file to a
//! smaller one.
//!
//! The result of a conversion is what llama.cpp's converter writes for the architectures `qwen35` and `qwen35moe`, in names, order, shapes, types
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
//!
//! Quantization takes the names that published files have ([`Mix`]), overrides for particular tensors and an importance
//! matrix. [`quantize_plan`] tells beforehand what would become of each tensor.
//!
//! ```no_run
//! use consort_forge::{Mix, QuantizeConfig, quantize};
//!
//! # fn main() -> consort_core::Result<()> {
//! let mut config = QuantizeConfig::new("m-BF16.gguf", "m-Q4_K_M.gguf", Mix::Q4KM);
//! config.overrides.push("ffn_down=Q6_K".parse()?);
//! let report = quantize(&config, &mut |progress| println!("{} {}", progress.tensor, progress.done))?;
//! println!("{} bytes", report.file.bytes);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod checkpoint;
mod config;
mod convert;
mod hf;
mod plan;
mod quantize;
mod sources;
mod text;
mod tokenizer;
mod vision;

pub use config::{ConvertConfig, ConvertReport, OutputType, Overwrite, WrittenFile};
pub use convert::convert;
pub use quantize::{
    Importance, Mix, Override, PlannedTensor, QuantizeConfig, QuantizePlan, QuantizeProgress, QuantizeReport, Reason,
    Requantize, Spread, mix_types, quantize, quantize_plan,
};
