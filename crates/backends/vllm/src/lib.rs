//! A remote vLLM behind the outer seam.
#![forbid(unsafe_code)]

mod call;
mod config;
mod facts;
#[cfg(feature = "grpc")]
mod grpc;
#[cfg_attr(not(test), allow(dead_code))]
mod tls;
mod transport;
#[allow(dead_code)]
mod trials;

pub use config::{AdapterShare, ApiKey, Endpoint, Protocol, Resume, Retries, Timeouts, VllmConfig};
pub use facts::{Abilities, Finding, ServerFacts, Verdict};

/// How errors name this backend.
pub(crate) const NAME: &str = "vllm";
