//! llama.cpp as an [`Engine`](consort_core::Engine): Qwen3.5 text and vision from GGUF, on the processor and on GPUs.
//!
//! Many sequences live in one context, so that a fork shares attention cells and batches mix text and images of many
//! voices. Files are checked before the library sees them, its log goes to `tracing`, and what ran where is read off its
//! graphs, node by node. All `unsafe` is in one module.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use consort_core::{AdapterSet, Device, DevicePolicy, Engine, Position, Step, StepInput, Want};
//! use consort_llamacpp::{LlamacppConfig, LlamacppEngine};
//!
//! # fn main() -> consort_core::Result<()> {
//! let policy = DevicePolicy::Named(Device::Cpu); // The processor must be named: nothing falls back to it.
//! let mut engine = LlamacppEngine::load(LlamacppConfig { policy, ..LlamacppConfig::new(Path::new("model.gguf")) })?;
//! let seq = engine.open(&AdapterSet::none())?;
//! let (tokens, positions) = ([1, 2], [Position::text(0), Position::text(1)]);
//! let step = Step { seq, input: StepInput::Tokens(&tokens), positions: &positions, want: Want::Last };
//! let ticket = engine.submit(&[step])?;
//! println!("{:?}", engine.collect(ticket)?);
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]
mod adapter;
mod check;
mod config;
mod device;
mod engine;
mod evidence;
mod ffi;
mod image;
mod load;
mod memory;
mod outcome;
mod past;
mod step;
pub use config::{CacheType, LlamacppConfig, ModelSource};
pub use engine::LlamacppEngine;
