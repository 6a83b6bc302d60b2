//! The scheduler over engines that tell on it.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod cache;
mod chat;
mod engine;
mod faults;
mod flow;
#[path = "../../../core/examples/parrot.rs"]
#[allow(dead_code)]
mod parrot;
mod parroting;
mod random;
mod support;
mod time;
