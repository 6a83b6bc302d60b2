//! What was measured, as data, as a table, as a chart, and beside another report.

mod chart;
mod compare;
mod markdown;
mod summary;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use consort_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

pub use compare::{Comparison, Difference, compare};
pub(crate) use markdown::cell;
pub use summary::{NOISY_SPREAD, Row, Summary};

use crate::Divergence;
use crate::live::{About, BlockRecord, Settings, Workload};

/// The form of a report's file. Another form has another number, and is refused.
pub const REPORT_SCHEMA: &str = "consort-bench/1";
/// The largest file that is read as a report, in bytes.
const MAX_FILE: u64 = 256 << 20;

/// A report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_SCHEMA`].
    pub schema: String,
    /// What it is called: the name of its files.
    pub title: String,
    /// The command that made it, as it was typed.
    pub command: String,
    /// Whether this program was compiled with optimisation. Figures of one that was not are of no use.
    pub optimised: bool,
    /// The machine.
    pub machine: Machine,
    /// What was measured.
    pub workload: WorkloadAbout,
    /// Who was measured.
    pub targets: Vec<About>,
    /// What is to be known before figures are compared.
    pub notes: Vec<String>,
    /// How settings were found.
    pub searches: Vec<crate::live::SearchReport>,
    /// Each figure over all blocks.
    pub rows: Vec<Row>,
    /// How far targets' distributions are from one another.
    pub quality: Vec<Quality>,
    /// Every block, as it was measured.
    pub blocks: Vec<BlockRecord>,
}

/// The machine that measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Threads that this process may use.
    pub usable_threads: usize,
    /// Threads that there are.
    pub threads: usize,
    /// `linux`, `macos`, ...
    pub system: String,
    /// `x86_64`, `aarch64`, ...
    pub architecture: String,
    /// The processor's instruction sets, by name.
    pub instruction_sets: Vec<String>,
    /// Accelerators that are ready, by name.
    pub accelerators: Vec<String>,
}

impl Machine {
    /// This machine.
    #[must_use]
    pub fn probe() -> Self {
        let found = consort_hardware::probe();
        let name = |value: serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Self {
            processor: found.cpu.model.as_ref().map_or_else(|| "unknown".into(), |model| model.value.clone()),
            usable_threads: found.cpu.usable_threads.value,
            threads: found.cpu.logical_cores.value,
            system: found.os.value.family.clone(),
            architecture: found.os.value.architecture.clone(),
            instruction_sets: found
                .cpu
                .instruction_sets
                .iter()
                .filter_map(|found| serde_json::to_value(found.value).ok())
                .map(name)
                .collect(),
            accelerators: found.ready_accelerators().map(|found| found.name.clone()).collect(),
        }
    }
}

/// The workload, without its words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkloadAbout {
    /// From what it was made.
    pub settings: Settings,
    /// The seed of its words.
    pub seed: u64,
    /// How many blocks there are.
    pub repeats: usize,
    /// [`Workload::digest`].
    pub digest: String,
    /// Groups of requests, in the order in which they come. The last is [`WHOLE_BLOCK`](crate::live::WHOLE_BLOCK).
    pub groups: Vec<String>,
}

impl WorkloadAbout {
    /// What a report says of a workload.
    #[must_use]
    pub fn of(workload: &Workload) -> Self {
        let mut groups: Vec<String> = Vec::new();
        for ask in workload.asks() {
            if !groups.contains(&ask.group) {
                groups.push(ask.group.clone());
            }
        }
        groups.push(crate::live::WHOLE_BLOCK.to_owned());
        Self {
            groups,
            settings: workload.settings.clone(),
            seed: workload.seed,
            repeats: workload.blocks.len(),
            digest: workload.digest(),
        }
    }
}

/// How far a target's distributions are from another's on the same tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Whose distributions are taken to be right.
    pub reference: String,
    /// Whose are looked at.
    pub other: String,
    /// The model that both had.
    pub model: String,
    /// The text.
    pub text: String,
    /// Scored tokens of it.
    pub tokens: usize,
    /// What was found.
    pub divergence: Divergence,
}

/// What is needed for a report besides the blocks.
#[derive(Debug, Clone)]
pub struct Circumstances {
    /// What it is called.
    pub title: String,
    /// The command that made it.
    pub command: String,
    /// What is to be known.
    pub notes: Vec<String>,
    /// How settings were found.
    pub searches: Vec<crate::live::SearchReport>,
    /// Quality beside speed.
    pub quality: Vec<Quality>,
}

impl Report {
    /// A report of what [`run`](crate::live::run) measured.
    #[must_use]
    pub fn new(
        workload: &Workload,
        targets: Vec<About>,
        blocks: Vec<BlockRecord>,
        circumstances: Circumstances,
    ) -> Self {
        let Circumstances { title, command, notes, searches, quality } = circumstances;
        let mut report = Self {
            schema: REPORT_SCHEMA.to_owned(),
            title,
            command,
            optimised: !cfg!(debug_assertions),
            machine: Machine::probe(),
            workload: WorkloadAbout::of(workload),
            rows: summary::rows(&targets, &blocks),
            targets,
            notes,
            searches,
            quality,
            blocks,
        };
        report.add_notes();
        report
    }

    /// What is too uncertain, or went wrong, is said in words.
    fn add_notes(&mut self) {
        if !self.optimised {
            self.notes.push("This program was compiled without optimisation: its figures are of no use.".into());
        }
        let mut noisy: BTreeMap<&str, usize> = BTreeMap::new();
        for row in self.rows.iter().filter(|row| row.summary.is_noisy()) {
            *noisy.entry(row.target.as_str()).or_default() += 1;
        }
        let mut notes = Vec::new();
        for (target, count) in noisy {
            notes.push(format!(
                "{target}: {count} figures (marked ~) spread by more than {:.0}% of their median over the repeats; they \
                 tell orders of magnitude and no more.",
                100.0 * NOISY_SPREAD
            ));
        }
        for (place, target) in self.targets.iter().enumerate() {
            let groups = || self.blocks.iter().filter(|block| block.target == place).flat_map(|block| &block.groups);
            let failed: usize =
                groups().filter(|(name, _)| *name != crate::live::WHOLE_BLOCK).map(|(_, found)| found.failed).sum();
            if failed > 0 {
                let why = groups().find_map(|(_, found)| found.failure.clone()).unwrap_or_default();
                notes.push(format!("{}: {failed} requests failed, the first with: {why}", target.name));
            }
            let most = groups().map(|(_, found)| found.tokens_per_event).fold(1.0, f64::max);
            if most > 1.05 {
                notes.push(format!(
                    "{}: up to {most:.2} tokens came in one event on average; times between tokens are shares of the \
                     times between events.",
                    target.name
                ));
            }
        }
        let blocks = &self.blocks;
        let others = blocks.iter().filter_map(|block| block.machine.others_cores).fold(0.0, f64::max);
        if others > 0.1 {
            notes.push(format!("Other programs kept up to {others:.2} cores busy during a block."));
        }
        let stolen = blocks.iter().filter_map(|block| block.machine.stolen).fold(0.0, f64::max);
        if stolen > 0.02 {
            notes.push(format!("The host took up to {:.1}% of the machine's time during a block.", 100.0 * stolen));
        }
        self.notes.extend(notes);
    }

    /// Reads a report's JSON.
    ///
    /// # Errors
    /// Those of reading; [`ErrorKind::InvalidConfig`] for a file of another form.
    pub fn open(path: &Path) -> Result<Self> {
        let refuse = |message: String| {
            Error::new(ErrorKind::InvalidConfig, message)
                .with_operation("bench::report")
                .with_context("path", path.display().to_string())
        };
        let length = std::fs::metadata(path).map_err(|source| Error::io(path, source))?.len();
        if length > MAX_FILE {
            return Err(refuse(format!("the file has {length} bytes; a report has at most {MAX_FILE}")));
        }
        let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        let report: Self = serde_json::from_slice(&bytes)
            .map_err(|source| refuse(format!("this is no report: {source}")).with_source(source))?;
        if report.schema != REPORT_SCHEMA {
            return Err(refuse(format!("the report has the form {:?}, and {REPORT_SCHEMA} is known", report.schema)));
        }
        Ok(report)
    }

    /// Writes `TITLE.json`, `TITLE.md` and `TITLE.svg` into a folder, and gives their paths.
    ///
    /// # Errors
    /// Those of writing; [`ErrorKind::InvalidConfig`] for a title that is no file name.
    pub fn save(&self, folder: &Path) -> Result<[PathBuf; 3]> {
        check_name(&self.title)?;
        let json = serde_json::to_string_pretty(self)
            .map_err(|source| Error::new(ErrorKind::Unexpected, "a report is no JSON").with_source(source))?;
        std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
        let path = |extension: &str| folder.join(format!("{}.{extension}", self.title));
        let paths = [path("json"), path("md"), path("svg")];
        for (path, text) in paths.iter().zip([json + "\n", self.markdown(), self.chart()]) {
            std::fs::write(path, text).map_err(|source| Error::io(path, source))?;
        }
        Ok(paths)
    }

    /// The row of a target, a group and a metric.
    #[must_use]
    pub fn row(&self, target: &str, group: &str, metric: crate::live::Metric) -> Option<&Row> {
        self.rows.iter().find(|row| row.target == target && row.group == group && row.metric == metric)
    }
}

/// # Errors
/// [`ErrorKind::InvalidConfig`] for what would be a path, or nothing.
pub(crate) fn check_name(title: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if title.is_empty() || title.starts_with('.') || !title.chars().all(plain) {
        return Err(Error::new(ErrorKind::InvalidConfig, "a name is made of letters, digits, dots, _ and -")
            .with_operation("bench::report")
            .with_context("name", title.to_owned()));
    }
    Ok(())
}
