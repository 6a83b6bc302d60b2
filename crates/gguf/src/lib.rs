//! Reads and writes GGUF files: bounded, memory-mapped, safe with hostile input.
//!
//! A GGUF file is a header (typed metadata and a table of tensors) followed by the tensors' data. [`Gguf`] reads versions
//! 2 and 3, little endian, from a path (memory-mapped), from owned bytes or from bytes that are part of the program; a path to
//! one shard of a model in several files opens them all. [`GgufWriter`] streams version 3 to a path, atomically, in one file
//! or in shards. [`dequantize`] turns any of the supported layouts into f32, [`quantize`] goes the other way.
//!
//! Files are hostile until proven otherwise: every length, count, offset and product is checked against what the file can
//! hold before anything is allocated, and a file that breaks a rule is an [`InvalidModel`](consort_core::ErrorKind)
//! error that names the key or the tensor.
//!
//! ```
//! use consort_gguf::{Gguf, GgufWriter, TensorType, dequantize};
//!
//! # fn main() -> consort_core::Result<()> {
//! let mut writer = GgufWriter::new("toy");
//! writer.set("toy.block_count", 2_u32);
//! // Two rows of three numbers: `dims[0]` is the contiguous dimension, the length of a row.
//! let values: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|v| v.to_le_bytes()).collect();
//! writer.add_tensor_bytes("weight", &[3, 2], TensorType::F32, values)?;
//! let mut file = Vec::new();
//! writer.write(&mut file)?;
//!
//! let gguf = Gguf::from_bytes(file)?;
//! assert_eq!(gguf.metadata().require_u32("toy.block_count")?, 2);
//! let weight = gguf.require_tensor("weight")?;
//! let mut row = [0.0; 3];
//! dequantize(weight.kind, &gguf.tensor_data(weight)[12..], &mut row)?;
//! assert_eq!(row, [4.0, 5.0, 6.0]);
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

mod cursor;
mod dequantize;
mod kquants;
mod metadata;
mod quantize;
mod reader;
mod shards;
mod storage;
mod types;
mod value;
mod writer;

pub use dequantize::dequantize;
pub use metadata::Metadata;
pub use quantize::{f32_to_bf16, f32_to_f16, quantize, quantize_q8_0};
pub use reader::{Gguf, TensorInfo};
pub use shards::ShardName;
pub use storage::{Aligned, MappedFile};
pub use types::TensorType;
pub use value::{Array, Value};
pub use writer::{GgufWriter, ShardLimit, TensorSink};
