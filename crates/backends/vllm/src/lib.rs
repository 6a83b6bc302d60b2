//! A remote vLLM behind the outer seam: HTTP and gRPC, several replicas, adapters, probing.
//!
//! vLLM schedules for itself, so [`VllmRemoteBackend`] implements [`ModelBackend`](consort_core::ModelBackend) directly:
//! the same personas, pictures, adapters and forms as on the device, computed on one GPU box or on a cluster behind one
//! address.
//!
//! ```no_run
//! use consort_core::{GenerateRequest, ModelBackend, Prompt, PromptPart};
//! use consort_vllm::{VllmConfig, VllmRemoteBackend};
//!
//! # fn main() -> consort_core::Result<()> {
//! let backend = VllmRemoteBackend::connect(VllmConfig::new(vec!["http://127.0.0.1:8000".parse()?]))?;
//! for replica in backend.replicas() {
//!     println!("{}: {:?}", replica.endpoint, replica.facts);
//! }
//! let prompt = Prompt::Parts(vec![PromptPart::Tokens(vec![9707, 11, 1879])]);
//! for event in backend.generate(GenerateRequest::new(prompt))?.blocking() {
//!     println!("{:?}", event?);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # How a request goes
//!
//! `backend` (checked against what the servers were found to do, written as tokens) → `session` (which server, its adapters,
//! attempts, deadlines) → `replica` (health, affinity) → `transport` (one server, by `http` or `grpc`) → `reply` (chunks to
//! events: text, stop strings, the reason of the end).
//!
//! # What it promises
//!
//! - Nothing that has delivered a token is asked again, unless it is continued from its own tokens where that changes
//!   nothing.
//! - A reply ends with a reason that the server gave, or with an error. A connection that is cut, an error in the middle,
//!   a `[DONE]` without a reason are errors.
//! - A server that is killed, paused or slow costs its own requests their time limits, and others nothing.
//! - What a server ignores in silence was found out when it was connected, and is refused here by name.
//! - Dropping a stream closes the connection, and the server stops.
#![forbid(unsafe_code)]

mod adapters;
mod backend;
mod books;
mod call;
mod config;
mod evidence;
mod facts;
#[cfg(feature = "grpc")]
mod grpc;
mod http;
mod load;
mod outgoing;
mod picture;
mod replica;
mod reply;
mod retry;
mod session;
mod tls;
mod transport;
mod trials;

/// The backend's name.
const NAME: &str = "vllm";

pub use backend::VllmRemoteBackend;
pub use config::{AdapterShare, ApiKey, Endpoint, Protocol, Resume, Retries, Timeouts, VllmConfig};
pub use facts::{Abilities, Finding, ServerFacts, Verdict};
pub use replica::ReplicaStatus;
