//! The reference engine: Qwen3.5 text and vision on the processor, from GGUF.
//!
//! It is the oracle for every other engine, so it is clear before it is clever: one forward pass in f32 over weights that
//! stay in the file's mapping (F32, F16, BF16 and the quantized types that published files use), written over kernels that
//! exist for AVX-512, AVX2 and any other processor. Quantized weights meet activations in eight bits, or in f32 where
//! [`Activations`] says so. Batches, chunks, forks, caches and threads do not change a bit of what a sequence gives.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use consort_core::{AdapterSet, Device, DevicePolicy, Engine, Position, Step, StepInput, Want};
//! use consort_native::{NativeConfig, NativeEngine};
//!
//! # fn main() -> consort_core::Result<()> {
//! let policy = DevicePolicy::Named(Device::Cpu); // The processor must be named: nothing falls back to it.
//! let mut engine = NativeEngine::load(NativeConfig { policy, ..NativeConfig::new(Path::new("model.gguf")) })?;
//! let seq = engine.open(&AdapterSet::none())?;
//! let (tokens, positions) = ([1, 2], [Position::text(0), Position::text(1)]);
//! let step = Step { seq, input: StepInput::Tokens(&tokens), positions: &positions, want: Want::Last };
//! let ticket = engine.submit(&[step])?;
//! println!("{:?}", engine.collect(ticket)?);
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]
mod config;
mod drafts;
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
mod step;
pub mod synthetic;
mod weights;
pub use config::{Activations, ModelSource, NativeConfig};
pub use drafts::Drafts;
pub use engine::NativeEngine;
