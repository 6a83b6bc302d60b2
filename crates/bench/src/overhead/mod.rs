//! What a path of ours costs over a bare HTTP client, on the same server, in one run.
//!
//! The bare client sends a request whose JSON is written already and splits the answer at its blank lines: no
//! client does less. A path of ours is a [`ModelBackend`] that asks the same server for the same. They take turns, round by
//! round, so what disturbs a round disturbs them both; what is told is the difference of each round, its median and its range.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use consort_bench::overhead::{OverheadConfig, Path, Place, Session, measure};
//!
//! # fn compare(backend: Arc<dyn consort_core::ModelBackend>) -> consort_core::Result<()> {
//! let path = Path { name: "HTTP".into(), backend };
//! let place = Place::find("at once", "http://127.0.0.1:8000", vec![path])?;
//! let config = OverheadConfig::default();
//! let session = Session { title: "overhead".into(), command: "…".into() };
//! let report = measure(&config, &[place], session, &mut |_, _| {})?;
//! println!("{}", report.markdown());
//! # Ok(())
//! # }
//! ```

mod bare;
mod markdown;
mod record;
mod run;

use std::path::PathBuf;
use std::sync::Arc;

use consort_core::{Error, ErrorKind, ModelBackend, Result};
use serde::{Deserialize, Serialize};

pub use record::{Bound, Cell, Distance, PathFigures, Verdict};
pub use run::measure;

use crate::report::Machine;

/// The form of a report's file.
pub const OVERHEAD_SCHEMA: &str = "consort-overhead/1";
/// What a path of ours may cost to the first token, over a bare client, in milliseconds.
pub const FIRST_TOKEN_BOUND: f64 = 2.0;
/// What it may cost for each token, in milliseconds.
pub const TOKEN_BOUND: f64 = 1.0;

/// What is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverheadConfig {
    /// Lengths of prompts, in tokens.
    pub prompts: Vec<usize>,
    /// How many replies run at once.
    pub streams: Vec<usize>,
    /// Length of each reply, in tokens; two at least, or there is nothing between them.
    pub tokens: u32,
    /// How often each path takes its turn.
    pub rounds: usize,
    /// The seed of the prompts.
    pub seed: u64,
}

impl Default for OverheadConfig {
    fn default() -> Self {
        Self { prompts: vec![64, 2048], streams: vec![1, 8], tokens: 128, rounds: 20, seed: 1 }
    }
}

impl OverheadConfig {
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] where nothing would be measured.
    fn check(&self) -> Result<()> {
        let wrong = |field: &str, message: &str| {
            let error = Error::new(ErrorKind::InvalidConfig, message).with_operation("bench::overhead");
            Err(error.with_context("field", field))
        };
        if self.prompts.is_empty() || self.prompts.iter().any(|&tokens| tokens < 2) {
            return wrong("prompts", "a prompt has two tokens at least");
        }
        if self.streams.is_empty() || self.streams.contains(&0) {
            return wrong("streams", "at least one reply runs at once");
        }
        if self.tokens < 2 {
            return wrong("tokens", "a reply has two tokens at least, or there is nothing between them");
        }
        if self.rounds == 0 {
            return wrong("rounds", "there is at least one round");
        }
        Ok(())
    }
}

/// One way of ours to a server.
#[derive(Clone)]
pub struct Path {
    /// What the report calls it.
    pub name: String,
    /// The way.
    pub backend: Arc<dyn ModelBackend>,
}

/// A server with everything that is measured on it.
#[derive(Clone)]
pub struct Place {
    name: String,
    bare: bare::Bare,
    paths: Vec<Path>,
}

impl Place {
    /// A server at an address (`http://HOST:PORT`), and our ways to it. The bare client asks it what its model is called.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for an address that is not plain HTTP or without ways of ours, [`ErrorKind::Remote`] when
    /// the server does not answer as a vLLM does.
    pub fn find(name: impl Into<String>, url: &str, paths: Vec<Path>) -> Result<Self> {
        if paths.is_empty() {
            let error = Error::new(ErrorKind::InvalidConfig, "there is no path of ours to compare with");
            return Err(error.with_operation("bench::overhead"));
        }
        Ok(Self { name: name.into(), bare: bare::Bare::find(url)?, paths })
    }
}

/// What a report says of its making.
#[derive(Debug, Clone)]
pub struct Session {
    /// The name of the report's files.
    pub title: String,
    /// The command, as it was typed.
    pub command: String,
}

/// A report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OverheadReport {
    /// [`OVERHEAD_SCHEMA`].
    pub schema: String,
    /// What it is called: the name of its files.
    pub title: String,
    /// The command that made it.
    pub command: String,
    /// Whether this program was compiled with optimisation. Figures of one that was not are of no use.
    pub optimised: bool,
    /// The machine.
    pub machine: Machine,
    /// What was measured.
    pub config: OverheadConfig,
    /// What is to be known before figures are read.
    pub notes: Vec<String>,
    /// Whether each path of ours keeps each bound.
    pub verdicts: Vec<Verdict>,
    /// Each server, each length of prompts, each number of replies at once.
    pub cells: Vec<Cell>,
}

impl OverheadReport {
    /// Writes `TITLE.json` and `TITLE.md` into a folder, and gives their paths.
    ///
    /// # Errors
    /// Those of writing; [`ErrorKind::InvalidConfig`] for a title that is no file name.
    pub fn save(&self, folder: &std::path::Path) -> Result<[PathBuf; 2]> {
        crate::report::check_name(&self.title)?;
        let json = serde_json::to_string_pretty(self)
            .map_err(|source| Error::new(ErrorKind::Unexpected, "a report is no JSON").with_source(source))?;
        std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
        let paths = ["json", "md"].map(|extension| folder.join(format!("{}.{extension}", self.title)));
        for (path, text) in paths.iter().zip([json + "\n", self.markdown()]) {
            std::fs::write(path, text).map_err(|source| Error::io(path, source))?;
        }
        Ok(paths)
    }
}
