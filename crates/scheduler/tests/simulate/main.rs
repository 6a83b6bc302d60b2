//! The scheduler under load on virtual time: the real worker, turn by turn, over an engine that costs time and memory and
//! goes wrong at random.
//!
//! At every turn: the metrics add up, no sequence is open without a request, memory and steps keep to their budgets. At the
//! end: every reply is what the same request is told alone, and everything that was held is given back.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod engine;
mod random;
mod scenarios;
mod world;
