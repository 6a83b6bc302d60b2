//! Runs batch files in OpenAI's form: one request a line in, one answer a line out.
//!
//! ```
//! use std::sync::Arc;
//!
//! use consort_batch::{Batch, End, Files, HttpTarget, HttpConfig, Meter, Rules, RunSettings, Start};
//! use consort_core::Result;
//!
//! /// Sends the requests of `batch.jsonl` to a server, and goes on where an earlier run stopped.
//! async fn send(files: &Files) -> Result<bool> {
//!     let batch = Batch::open(files, Start::Resume, Rules::server())?;
//!     let target = HttpTarget::new(HttpConfig::new("http://127.0.0.1:8000"))?;
//!     let settings = RunSettings::new(64);
//!     let meter = Arc::new(Meter::of(&batch));
//!     let end = consort_batch::run(batch, Arc::new(target), &settings, &meter, std::future::pending()).await?;
//!     Ok(matches!(end, End::Complete) && meter.figures().failed() == 0)
//! }
//! ```
//!
//! # How it goes
//!
//! `line` (lines within bounds, each with a name) → `request` (what is wrong with a line is said by name) → `run` (so many
//! requests at once, over a [`Target`]) → `retry` (what is temporary is asked again) → `window` (answers wait for those before
//! them) → `journal` (two files: answers and failures, both in the order of the input).
//!
//! # What it promises
//!
//! - **The output is the journal.** A line's name is a hash of its bytes and of all lines before it, and it is the `id` of the
//!   line that answers it. Whoever opens the files again sees from them alone how far the run had come, and that the input
//!   is still the one that was answered. Nothing else is written anywhere.
//! - A run that is killed at any moment goes on from there: a torn line is cut off and asked anew, nothing is lost, and nothing
//!   stands in the output twice.
//! - Memory does not grow with the input, but for 12 bytes of each `custom_id`. A slow request holds a window of answers back,
//!   and then the reading.
//! - When it is the server that fails and not a request, the run stops instead of writing a failure for each line that is
//!   left.
#![forbid(unsafe_code)]

mod batch;
mod http;
mod journal;
mod line;
mod meter;
mod record;
mod request;
mod retry;
mod run;
mod target;
mod window;

pub use batch::{Batch, Files, Input, Start, count, validate};
pub use http::{HttpConfig, HttpTarget};
pub use journal::Before;
pub use line::{Line, LineId, Lines};
pub use meter::{Figures, Meter, Usage};
pub use request::{Checked, Checker, Refused, Request, Rules};
pub use retry::RetryPolicy;
pub use run::{AtFailure, End, RunSettings, run};
pub use target::{Answer, Fault, FaultKind, Place, Target};
