//! Reads LoRA adapters, as PEFT saves them (`adapter_config.json` and `adapter_model.safetensors`) and as llama.cpp's
//! `convert_lora_to_gguf.py` writes them (one GGUF file), and holds them against a model.
//!
//! [`PeftAdapter`] and [`GgufAdapter`] give one [`LoraDelta`] for each linear layer that the adapter changes, with the name
//! that the layer has in the file, the two factors in f32 and the scale, so that an engine computes
//! `y = W x + scale · B (A x)`. Whatever an adapter asks for beyond that is refused *by name* rather than dropped: DoRA,
//! `modules_to_save`, biases, embeddings, vision layers, and the rest.
//!
//! Engines take a [`ModelAdapter`]: an adapter in either form, whose names, shapes and kinds of layers were checked against
//! the model's [`TextDimensions`], and whose value heads are in the order of the model's GGUF file.
//!
//! Files are hostile until proven otherwise: sizes are bounded before anything is read, every tensor must belong to a pair
//! whose shapes agree with each other and with the config, and numbers must be finite. Every such error is an
//! [`InvalidAdapter`](consort_core::ErrorKind::InvalidAdapter) that names the key or the tensor.
//!
//! ```
//! use consort_peft::PeftAdapter;
//!
//! # fn main() -> consort_core::Result<()> {
//! let config = br#"{"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]}"#;
//! let header = concat!(
//!     r#"{"base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"#,
//!     r#""base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[8,12]}}"#,
//! );
//! let mut weights = (header.len() as u64).to_le_bytes().to_vec();
//! weights.extend(header.as_bytes());
//! weights.extend([1.0_f32, 2.0, 3.0].iter().flat_map(|value| value.to_le_bytes()));
//!
//! let adapter = PeftAdapter::from_parts(config, &weights)?;
//! let delta = adapter.deltas().next().expect("one layer");
//! assert_eq!((delta.module.as_str(), delta.layer), ("layers.3.self_attn.q_proj", Some(3)));
//! assert_eq!((&delta.a[..], &delta.b[..], delta.scale), (&[1.0, 2.0][..], &[3.0][..], 2.0));
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod adapter;
mod bytes;
mod config;
mod gguf;
mod linear;
mod model;
mod module;

pub use adapter::{LoraDelta, MAX_RANK, PeftAdapter};
pub use bytes::AdapterBytes;
pub use config::PeftConfig;
pub use gguf::GgufAdapter;
pub use linear::{LayerKind, Linear, Naming, Network, TextDimensions};
pub use model::{ModelAdapter, Place, TensorDelta};
