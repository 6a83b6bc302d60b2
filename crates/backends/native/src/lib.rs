//! The reference engine: Qwen3.5 text and vision on the CPU, from GGUF.
#![deny(unsafe_code)]
mod config;
mod engine;
mod evidence;
mod kernels;
mod kv;
mod load;
mod lora;
mod memory;
mod model;
mod sequence;
mod state;
mod weights;
pub use config::{ModelSource, NativeConfig};
pub use engine::NativeEngine;
