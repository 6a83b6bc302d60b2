//! The server over the bundled model: every endpoint and every refusal, within this process; and real connections.
#![allow(clippy::unwrap_used)]

mod adapters;
mod chat;
mod client;
mod completions;
mod connections;
mod embeddings;
mod guards;
mod malformed;
mod operations;
mod personas;
mod refusals;
mod reload;
mod remote;
mod security;
mod streams;
mod tokens;
mod tools;
