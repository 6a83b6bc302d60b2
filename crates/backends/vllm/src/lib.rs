//! A remote vLLM behind the outer seam.
#![forbid(unsafe_code)]

mod call;
mod config;
mod facts;
mod transport;

pub use config::{AdapterShare, ApiKey, Endpoint, Protocol, Resume, Retries, Timeouts, VllmConfig};
pub use facts::{Abilities, Finding, ServerFacts, Verdict};
