//! The live-chat bench: workloads, targets, clocks.
//!
//! A [`Workload`] says word for word what is asked; [`run`] asks it of each [`Target`] in turn, block by block, and gives
//! [`BlockRecord`]s, of which [`crate::report`] makes a report.
//!
//! ```
//! use consort_bench::live::{RunConfig, Settings, SoloConfig, Target, Workload, run};
//!
//! # fn targets() -> Vec<Box<dyn Target>> { Vec::new() }
//! # fn main() -> consort_core::Result<()> {
//! let settings = SoloConfig { prompt_tokens: vec![32], decode_tokens: 8, ..SoloConfig::default() };
//! let workload = Workload::generate(Settings::Solo(settings), 1, 3)?;
//! let targets: Vec<Box<dyn Target>> = targets();
//! if !targets.is_empty() {
//!     let records = run(&workload, &targets, &RunConfig::default(), &mut |_| {})?;
//!     assert_eq!(records.len(), 3 * targets.len());
//! }
//! # Ok(())
//! # }
//! ```

mod churn;
mod figures;
mod http;
mod machine;
mod neighbour;
mod peer;
mod picture;
mod random;
mod room;
mod run;
mod search;
mod solo;
mod sse;
mod target;
mod trace;
mod words;
mod workload;

pub use churn::ChurnConfig;
pub use figures::{Better, GroupFigures, Metric};
pub use http::{AdapterStyle, HttpConfig, HttpTarget};
pub use machine::MachineLog;
pub(crate) use machine::Watch;
pub use neighbour::{NeighbourConfig, fair_share};
pub use peer::{Peer, PeerConfig};
pub(crate) use random::Random;
pub use room::RoomConfig;
pub use run::{BlockRecord, RunConfig, Step, WHOLE_BLOCK, run};
pub use search::{Candidate, Open, SearchReport, SearchSpace, search};
pub use solo::SoloConfig;
pub use target::{About, Beat, Beats, Counted, Evidence, InProcess, ModelAbout, Process, Target, Transport};
pub use words::WORDS;
pub use workload::{
    Ask, Block, Lane, Message, Neighbour, Part, Phase, Picture, Settings, Speaker, WORKLOAD_SCHEMA, Workload,
};
