//! Runs a workload on its targets, block by block: A B A B.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use consort_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::figures::{GroupFigures, Metric, of_group};
use super::machine::{MachineLog, Watch, Who};
use super::neighbour::{Spinning, fair_share};
use super::target::{Process, Target};
use super::trace::Trace;
use super::workload::{Block, Lane, Neighbour, Phase, Workload};

/// The group that stands for a whole block: memory and processor time.
pub const WHOLE_BLOCK: &str = "whole block";

/// How a workload is run.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// Bytes that the stream probe reads before and after each block; `None`: the rate is not measured. Several times what
    /// the processor's caches hold.
    pub stream_bytes: Option<usize>,
    /// How long to wait before each block, so that background work of the block before is over.
    pub settle: Duration,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self { stream_bytes: Some(256 << 20), settle: Duration::from_millis(500) }
    }
}

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// Blocks that are done, over all targets.
    pub done: usize,
    /// Blocks that will be.
    pub total: usize,
    /// Whose turn it is.
    pub target: &'a str,
    /// Whether this is a warm-up.
    pub warm_up: bool,
}

/// One block of one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockRecord {
    /// Which block, from 0.
    pub block: usize,
    /// Which target, by its place in the report.
    pub target: usize,
    /// What each group of requests came to; [`WHOLE_BLOCK`] is all of them.
    pub groups: BTreeMap<String, GroupFigures>,
    /// What the machine did meanwhile.
    pub machine: MachineLog,
}

/// Runs the warm-up on each target, then each block on each target in turn.
///
/// Requests that fail are counted, and end nothing; a warm-up that fails ends the run.
///
/// # Errors
/// [`ErrorKind::InvalidConfig`] without targets; the first failure of a warm-up; those of the stream probe.
pub fn run(
    workload: &Workload,
    targets: &[Box<dyn Target>],
    config: &RunConfig,
    progress: &mut dyn FnMut(Step<'_>),
) -> Result<Vec<BlockRecord>> {
    if targets.is_empty() {
        return Err(Error::new(ErrorKind::InvalidConfig, "there is nothing to measure: name a target")
            .with_operation("bench::run"));
    }
    let pictures: Vec<Arc<[u8]>> = workload.render_pictures()?.into_iter().map(Into::into).collect();
    let total = workload.blocks.len() * targets.len();
    for target in targets {
        progress(Step { done: 0, total, target: &target.about().name, warm_up: true });
        let (traces, _) = block(&**target, &workload.warm_up, &pictures);
        if let Some(message) = traces.iter().find_map(|trace| match &trace.outcome {
            super::trace::Outcome::Failed(message) => Some(message.clone()),
            _ => None,
        }) {
            return Err(Error::new(ErrorKind::Remote, format!("a target does not answer: {message}"))
                .with_operation("bench::warm_up")
                .with_context("target", target.about().name.clone()));
        }
    }
    let mut records = Vec::with_capacity(total);
    for (number, script) in workload.blocks.iter().enumerate() {
        for (place, target) in targets.iter().enumerate() {
            progress(Step { done: records.len(), total, target: &target.about().name, warm_up: false });
            std::thread::sleep(config.settle);
            records.push(measured(&**target, place, number, script, &pictures, config)?);
        }
    }
    Ok(records)
}

/// Runs one block and nothing else: for a short search among settings.
///
/// # Errors
/// Those of the stream probe.
pub(super) fn measured(
    target: &dyn Target,
    place: usize,
    number: usize,
    script: &Block,
    pictures: &[Arc<[u8]>],
    config: &RunConfig,
) -> Result<BlockRecord> {
    let stream_before = stream(config)?;
    let watch = Watch::start(match target.process() {
        Process::Own => Some(Who::This),
        Process::Child(pid) => Some(Who::Other(pid)),
        Process::Elsewhere => None,
    });
    let (traces, beside) = block(target, script, pictures);
    let mut machine = watch.end(beside.cpu_seconds);
    machine.model_memory = target.model_memory();
    machine.stream_before = stream_before;
    machine.stream_after = stream(config)?;
    let mut groups = BTreeMap::new();
    let names: BTreeSet<&str> = traces.iter().map(|trace| trace.group.as_str()).collect();
    for name in names {
        let own: Vec<_> = traces.iter().filter(|trace| trace.group == name).collect();
        groups.insert(name.to_owned(), of_group(&own, &traces));
    }
    beside.add_shares(&mut groups);
    let mut whole = of_group(&traces.iter().collect::<Vec<_>>(), &traces);
    // Percentiles over requests of different kinds say nothing.
    whole.figures.retain(|metric, _| *metric == Metric::ReusedShare);
    let tokens = whole.completion_tokens;
    let mut set = |metric, value: Option<f64>| whole.figures.extend(value.map(|value| (metric, value)));
    set(Metric::PeakMemory, machine.peak_memory.map(|bytes| bytes as f64));
    set(Metric::ModelMemory, machine.model_memory.map(|bytes| bytes as f64));
    set(Metric::CpuSecondsPerToken, machine.cpu_seconds.filter(|_| tokens > 0).map(|seconds| seconds / tokens as f64));
    groups.insert(WHOLE_BLOCK.to_owned(), whole);
    Ok(BlockRecord { block: number, target: place, groups, machine })
}

fn stream(config: &RunConfig) -> Result<Option<f64>> {
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let rate = config.stream_bytes.map(|bytes| consort_hardware::stream_rate(threads, bytes)).transpose()?;
    Ok(rate.map(|rate| rate.gigabytes_per_second))
}

/// What the neighbour did in a block.
#[derive(Default)]
struct Beside {
    /// Its processor time, in seconds.
    cpu_seconds: f64,
    /// Its speed beside the target by its speed alone, phase by phase.
    speeds: Vec<f64>,
    threads: usize,
}

impl Beside {
    /// How much of what it was due each room beside a neighbour kept, and how the neighbour fared.
    fn add_shares(&self, groups: &mut BTreeMap<String, GroupFigures>) {
        if self.threads == 0 {
            return;
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let due = fair_share(cores, self.threads);
        let rate = |groups: &BTreeMap<String, GroupFigures>, name: &str| {
            groups.get(name).and_then(|found| found.figures.get(&Metric::AggregateRate)).copied()
        };
        let speed = self.speeds.iter().sum::<f64>() / self.speeds.len().max(1) as f64;
        for temperature in ["cold", "warm"] {
            let beside = format!("room beside a neighbour, {temperature}");
            let (alone, found) = (rate(groups, &format!("room alone, {temperature}")), rate(groups, &beside));
            if let (Some(alone), Some(found), Some(group)) = (alone, found, groups.get_mut(&beside)) {
                group.figures.insert(Metric::FairShareKept, found / alone / due);
                group.figures.insert(Metric::NeighbourSpeed, speed);
            }
        }
    }
}

fn block(target: &dyn Target, script: &Block, pictures: &[Arc<[u8]>]) -> (Vec<Trace>, Beside) {
    let (mut traces, mut beside) = (Vec::new(), Beside::default());
    for phase in &script.phases {
        match phase.beside {
            None => traces.extend(lanes(target, phase, pictures)),
            Some(neighbour) => {
                let alone = speed_alone(neighbour);
                let spinning = Spinning::start(neighbour);
                traces.extend(lanes(target, phase, pictures));
                beside.speeds.push(spinning.rate() / alone.max(1e-9));
                beside.threads = neighbour.threads;
                beside.cpu_seconds += spinning.end();
            }
        }
    }
    (traces, beside)
}

/// Turns a second of a neighbour that has the machine for itself.
fn speed_alone(neighbour: Neighbour) -> f64 {
    let spinning = Spinning::start(neighbour);
    std::thread::sleep(Duration::from_millis(200));
    spinning.rate()
}

fn lanes(target: &dyn Target, phase: &Phase, pictures: &[Arc<[u8]>]) -> Vec<Trace> {
    let traces = Mutex::new(Vec::new());
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for lane in &phase.lanes {
            let traces = &traces;
            scope.spawn(move || {
                let own = walk(target, lane, pictures, begin);
                traces.lock().unwrap_or_else(PoisonError::into_inner).extend(own);
            });
        }
    });
    traces.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn walk(target: &dyn Target, lane: &Lane, pictures: &[Arc<[u8]>], begin: Instant) -> Vec<Trace> {
    let wait = Duration::from_millis(lane.start_ms).saturating_sub(begin.elapsed());
    std::thread::sleep(wait);
    let mut traces = Vec::with_capacity(lane.asks.len());
    for (index, ask) in lane.asks.iter().enumerate() {
        if index > 0 {
            std::thread::sleep(Duration::from_millis(lane.pause_ms));
        }
        let start = Instant::now();
        let reply = target.ask(ask, pictures);
        traces.push(Trace::follow(&ask.group, ask.cancel_after, start, reply));
    }
    traces
}
