#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod adapters;
mod backend;
mod combine;
mod compare;
mod config;
mod metrics;
mod reply;
mod route;
mod sending;
mod sides;

pub use backend::Overflow;
pub use config::{OverflowConfig, PriorityRules, RemoteFailure};
pub use metrics::{OverflowMetrics, RouteCount};
pub use route::{Reason, Route, Side};

/// The backend's name.
const NAME: &str = "overflow";
