//! `Scheduled<E>`: turns any [`Engine`](consort_core::Engine) into a [`ModelBackend`](consort_core::ModelBackend).
#![forbid(unsafe_code)]

mod config;
mod events;
mod front_end;
mod images;
mod keeper;
mod metrics;
mod past;
mod prefix_cache;
mod sampler;
mod scheduled;
mod sequence;
mod step_plan;
mod stop;
mod worker;

pub use config::SchedulerConfig;
pub use front_end::FrontEnd;
pub use scheduled::Scheduled;
