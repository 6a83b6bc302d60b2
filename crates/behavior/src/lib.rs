//! The behaviour suites that every engine and every backend must pass.
//!
//! [`engine_cases`] is for any [`Engine`](consort_core::Engine), [`backend_cases`] for any
//! [`ModelBackend`](consort_core::ModelBackend). A fixture says how to make one and what to
//! ask it; its capability says which cases apply. [`harness`] runs them under libtest's protocol and **fails
//! closed**: a profile lists what must be there, what it must declare, and how many cases must have run.
//!
//! [`saboteur`] proves the suite: the same engine with one fault, each of which a named case must catch.
//! [`toy::HashEngine`] is a model for that purpose, whose logits are a hash of all that it was told.
//!
//! ```
//! use std::sync::Arc;
//!
//! use consort_behavior::fixture::EngineFixture;
//! use consort_behavior::toy::HashEngine;
//! use consort_behavior::{engine_cases, saboteur};
//! use consort_core::Device;
//!
//! let make = |setup: &_| Ok(Box::new(HashEngine::new(64, setup)?) as Box<dyn consort_core::Engine>);
//! let fixture = EngineFixture::new("hash", "", Device::Cpu, 1..60, Arc::new(make))?;
//! let case = "a_batch_of_3_against_each_alone";
//! let run = |fixture: &EngineFixture| engine_cases(fixture).into_iter().find(|c| c.name() == case).unwrap().run();
//!
//! assert_eq!(run(&fixture), Ok(()));
//! assert!(run(&saboteur::sabotaged(&fixture, saboteur::Fault::NeighbourLogits)).is_err());
//! # Ok::<(), consort_core::Error>(())
//! ```
#![forbid(unsafe_code)]

mod activation;
pub mod backend;
mod case;
mod engine;
pub mod fixture;
pub mod golden;
pub mod harness;
mod picture;
pub mod profile;
mod rig;
pub mod saboteur;
mod script;
pub mod toy;
pub mod witness;

pub use backend::backend_cases;
pub use case::{Case, Failure, Outcome};
pub use engine::{LOGITS, engine_cases, pair_cases};
pub use picture::Picture;
