//! The server over the bundled model: every endpoint and every refusal, within this process; and real connections.
#![allow(clippy::unwrap_used)]

mod adapters;
mod anthropic;
mod chat;
mod client;
mod completions;
mod connections;
mod embeddings;
mod guards;
mod inside;
mod malformed;
mod operations;
mod overflow;
mod page;
mod personas;
mod refusals;
mod reload;
mod remote;
mod responses;
mod rooms;
mod security;
mod streams;
#[cfg(feature = "otel")]
mod telemetry;
mod tokens;
mod tools;
