//! The same room while other work takes cores, and that other work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::RoomConfig;
use super::machine;
use super::workload::{Block, Neighbour};

/// What `neighbour` is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NeighbourConfig {
    /// The room: once alone, once beside the neighbour.
    pub room: RoomConfig,
    /// Threads of the neighbour.
    pub threads: usize,
    /// Whether each is held to a core of its own, counted from the last.
    pub pinned: bool,
}

impl Default for NeighbourConfig {
    fn default() -> Self {
        Self { room: RoomConfig { rounds: 2, ..RoomConfig::default() }, threads: 1, pinned: false }
    }
}

impl NeighbourConfig {
    pub(super) fn block(&self, seed: u64, index: usize) -> Block {
        let mut block = self.room.block(seed, index, "room alone", None);
        let neighbour = Neighbour { threads: self.threads.max(1), pinned: self.pinned };
        block.phases.extend(self.room.block(seed, index, "room beside a neighbour", Some(neighbour)).phases);
        block
    }
}

/// The share of its own speed that an engine is due when it takes all of `cores` cores and `threads` others want one each:
/// `cores / (cores + threads)`, as a fair scheduler of the operating system divides them.
#[must_use]
pub fn fair_share(cores: usize, threads: usize) -> f64 {
    cores as f64 / (cores + threads).max(1) as f64
}

/// Threads that compute until they are stopped. Dropping stops them.
pub(super) struct Spinning {
    stop: Arc<AtomicBool>,
    turns: Arc<AtomicU64>,
    threads: Vec<JoinHandle<f64>>,
    since: Instant,
}

impl Spinning {
    pub(super) fn start(neighbour: Neighbour) -> Self {
        let (stop, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..neighbour.threads)
            .map(|index| {
                let (stop, turns) = (Arc::clone(&stop), Arc::clone(&turns));
                std::thread::spawn(move || {
                    if neighbour.pinned {
                        pin(cores - 1 - index % cores);
                    }
                    while !stop.load(Ordering::Relaxed) {
                        turn();
                        turns.fetch_add(1, Ordering::Relaxed);
                    }
                    thread_seconds().unwrap_or(0.0)
                })
            })
            .collect();
        Self { stop, turns, threads, since: Instant::now() }
    }

    /// Turns a second so far, by all threads together.
    pub(super) fn rate(&self) -> f64 {
        self.turns.load(Ordering::Relaxed) as f64 / self.since.elapsed().as_secs_f64().max(1e-9)
    }

    /// Stops, and tells the processor time of all threads in seconds; 0 where it cannot be seen.
    pub(super) fn end(mut self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        // A thread that computes sums has nothing to panic about.
        self.threads.drain(..).map(|thread| thread.join().unwrap_or(0.0)).sum()
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// Processor time of the calling thread.
fn thread_seconds() -> Option<f64> {
    machine::cpu_seconds(&std::fs::read_to_string("/proc/thread-self/stat").ok()?)
}

/// Some tens of microseconds of arithmetic that stays in registers: it takes a core, and none of the memory's rate.
fn turn() {
    let mut value = std::hint::black_box(1_u64);
    for _ in 0..20_000 {
        value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    }
    std::hint::black_box(value);
}

#[cfg(target_os = "linux")]
fn pin(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(core, %error, "the neighbour could not be held to its core");
    }
}

#[cfg(not(target_os = "linux"))]
fn pin(core: usize) {
    tracing::warn!(core, "holding a thread to a core is done on Linux only");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_what_is_left() {
        assert_eq!(fair_share(2, 1), 2.0 / 3.0);
        assert_eq!((fair_share(4, 0), fair_share(1, 1)), (1.0, 0.5));
    }

    #[test]
    fn spinning_makes_progress_and_ends() {
        let spinning = Spinning::start(Neighbour { threads: 1, pinned: true });
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(spinning.rate() > 1.0);
        drop(spinning);
    }
}
