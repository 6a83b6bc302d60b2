//! One model, many personas, any engine.
//!
//! This is what an application embeds: [`load`] opens a model on one of the compiled backends and returns it as
//! `Arc<dyn ModelBackend>`, the seam that everything above knows. The types that cross it are those of
//! [`consort_core`], re-exported here as [`core`].
//!
//! ```
//! use consort::core::{ChatMessage, ChatPrompt, Device, DevicePolicy, Event, GenerateRequest, Prompt, Role, Thinking};
//! use consort::{LoadConfig, ModelFiles};
//!
//! # fn main() -> consort::core::Result<()> {
//! // The processor is used because it is named; the default policy admits accelerators only.
//! let backend = consort::load(LoadConfig {
//!     policy: DevicePolicy::Named(Device::Cpu),
//!     ..LoadConfig::new(ModelFiles::Bundled)
//! })?;
//! let prompt = ChatPrompt {
//!     messages: vec![ChatMessage::text(Role::User, "Hello!")],
//!     thinking: Thinking::Off,
//!     ..ChatPrompt::default()
//! };
//! let mut text = String::new();
//! for event in backend.generate(GenerateRequest::new(Prompt::Chat(prompt)))?.blocking() {
//!     if let Event::Tokens { text: piece, .. } = event? {
//!         text.push_str(&piece);
//!     }
//! }
//! assert!(text.starts_with("Hello"), "{text}");
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod adapters;
pub mod bundled;
mod engine;
mod files;
mod load;
pub mod matrix;
#[cfg(feature = "vllm")]
mod remote;
#[cfg(feature = "native")]
mod synthetic;

pub use adapters::{adapter_at, adapter_files};
pub use consort_core as core;
#[cfg(feature = "vllm")]
pub use consort_overflow as overflow;
#[cfg(feature = "server")]
pub use consort_server as server;
#[cfg(feature = "vllm")]
pub use consort_vllm as vllm;
pub use engine::{open_engine, open_template, open_text, open_tokenizer};
pub use load::{Backend, LoadConfig, ModelFiles, backends, load, prepare_picture};
/// Where a model is computed, when it is not here: nowhere in this build, which has not the feature `vllm`.
#[cfg(not(feature = "vllm"))]
pub type RemoteModel = std::convert::Infallible;
#[cfg(feature = "vllm")]
pub use remote::{RemoteModel, front_end_at};
#[cfg(feature = "native")]
pub use synthetic::{SyntheticAdapter, SyntheticModel};
