//! What the machine did meanwhile: whose processor time went where, and how much memory was held.
//!
//! Read from `/proc`, so known on Linux; elsewhere each figure is `None`, and a report says that it is not known.

use serde::{Deserialize, Serialize};

/// Clock ticks a second in `/proc`: Linux shows 100 to every program, whatever its own tick is (`USER_HZ`).
const TICKS: f64 = 100.0;

/// Processor time of the whole machine since it started, in seconds over all cores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CpuTimes {
    busy: f64,
    stolen: f64,
    total: f64,
}

impl CpuTimes {
    pub(super) fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal (proc(5)). Guest time is in
    /// user time already.
    fn parse(text: &str) -> Option<Self> {
        let fields = text.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().map(str::parse::<f64>);
        let fields: Vec<f64> = fields.collect::<Result<_, _>>().ok()?;
        let at = |index: usize| fields.get(index).copied().map(|ticks| ticks / TICKS);
        let busy = at(0)? + at(1)? + at(2)? + at(5)? + at(6)?;
        let stolen = at(7)?;
        Some(Self { busy, stolen, total: busy + stolen + at(3)? + at(4)? })
    }
}

/// A process whose time and memory are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    This,
    Other(u32),
}

impl Who {
    fn folder(self) -> String {
        match self {
            Self::This => "/proc/self".into(),
            Self::Other(pid) => format!("/proc/{pid}"),
        }
    }

    /// Seconds of processor time so far, children that ended not counted.
    pub(super) fn cpu_seconds(self) -> Option<f64> {
        cpu_seconds(&std::fs::read_to_string(format!("{}/stat", self.folder())).ok()?)
    }

    /// Lets [`peak_memory`](Self::peak_memory) begin anew, and tells whether that worked.
    pub(super) fn reset_peak(self) -> bool {
        std::fs::write(format!("{}/clear_refs", self.folder()), "5").is_ok()
    }

    /// The most memory that was resident, in bytes.
    pub(super) fn peak_memory(self) -> Option<u64> {
        self.status("VmHWM:")
    }

    /// The memory that is resident, in bytes.
    pub(super) fn memory(self) -> Option<u64> {
        self.status("VmRSS:")
    }

    fn status(self, key: &str) -> Option<u64> {
        kibibytes(&std::fs::read_to_string(format!("{}/status", self.folder())).ok()?, key)
    }
}

/// utime and stime of `/proc/PID/stat`. The name before them may hold blanks and brackets, so the last bracket counts.
pub(super) fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS)
}

fn kibibytes(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the machine did while a block ran.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MachineLog {
    /// How long the block took, in seconds.
    pub seconds: f64,
    /// Processor time of the target's process, in seconds over all cores. For one in this process: of this process, without
    /// the neighbour's.
    pub cpu_seconds: Option<f64>,
    /// Cores that others than the target, this program and its neighbour kept busy, on average.
    pub others_cores: Option<f64>,
    /// The share of the machine's time that its host took away, from 0 to 1.
    pub stolen: Option<f64>,
    /// The most resident memory of the target's process, in bytes. In-process targets share a process: this is of all.
    pub peak_memory: Option<u64>,
    /// Whether that peak is of this block. Otherwise it is since the process began.
    pub peak_is_of_block: bool,
    /// Resident memory before the block, in bytes.
    pub memory_before: Option<u64>,
    /// Resident memory after it.
    pub memory_after: Option<u64>,
    /// What the backend says that it holds for model, sequences and caches after the block, in bytes.
    pub model_memory: Option<u64>,
    /// The rate at which this machine reads memory just before the block, in 10^9 bytes a second.
    pub stream_before: Option<f64>,
    /// The same just after it.
    pub stream_after: Option<f64>,
}

/// Looks at the machine from now on.
pub(crate) struct Watch {
    since: std::time::Instant,
    target: Option<Who>,
    times: Option<CpuTimes>,
    own: Option<f64>,
    theirs: Option<f64>,
    log: MachineLog,
}

impl Watch {
    pub(crate) fn start(target: Option<Who>) -> Self {
        let log = MachineLog {
            memory_before: target.and_then(Who::memory),
            peak_is_of_block: target.is_some_and(Who::reset_peak),
            ..MachineLog::default()
        };
        let theirs = target.and_then(Who::cpu_seconds);
        Self {
            target,
            times: CpuTimes::now(),
            own: Who::This.cpu_seconds(),
            theirs,
            log,
            since: std::time::Instant::now(),
        }
    }

    /// The log so far. `neighbour` is the processor time of our own neighbour, in seconds.
    pub(crate) fn end(self, neighbour: f64) -> MachineLog {
        let seconds = self.since.elapsed().as_secs_f64();
        let between = |before: Option<f64>, after: Option<f64>| Some((after? - before?).max(0.0));
        let own = between(self.own, Who::This.cpu_seconds());
        let theirs = between(self.theirs, self.target.and_then(Who::cpu_seconds));
        let of_target = match self.target {
            Some(Who::This) => theirs.map(|seconds| (seconds - neighbour).max(0.0)),
            _ => theirs,
        };
        let ours = match self.target {
            Some(Who::Other(_)) => own.unwrap_or(0.0) + theirs.unwrap_or(0.0),
            _ => own.unwrap_or(0.0),
        };
        let (others, stolen) = match (self.times, CpuTimes::now()) {
            (Some(before), Some(after)) => (
                Some((after.busy - before.busy - ours).max(0.0) / seconds.max(1e-9)),
                Some((after.stolen - before.stolen).max(0.0) / (after.total - before.total).max(1e-9)),
            ),
            _ => (None, None),
        };
        MachineLog {
            seconds,
            cpu_seconds: of_target,
            others_cores: others,
            stolen,
            peak_memory: self.target.and_then(Who::peak_memory),
            memory_after: self.target.and_then(Who::memory),
            ..self.log
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn proc_is_read_as_its_manual_says() {
        let times = CpuTimes::parse("cpu  100 200 300 400 500 600 700 800 900 1000\ncpu0 1").unwrap();
        assert_eq!(times, CpuTimes { busy: 19.0, stolen: 8.0, total: 36.0 });
        assert_eq!(CpuTimes::parse("intr 1"), None);
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(kibibytes("Name: x\nVmHWM:\t   12 kB\n", "VmHWM:"), Some(12 * 1024));
        assert_eq!(kibibytes("VmHWM: 12 GB", "VmHWM:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_seen() {
        let watch = Watch::start(Some(Who::This));
        let held = std::hint::black_box(vec![1_u8; 32 << 20]);
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 60 {
            std::hint::black_box(held.iter().map(|&byte| u64::from(byte)).sum::<u64>());
        }
        let log = watch.end(0.0);
        assert!(log.cpu_seconds.unwrap() > 0.0 && log.seconds >= 0.06);
        assert!(log.peak_memory.unwrap() >= 32 << 20 && log.memory_before.unwrap() > 0);
        assert!((0.0..=1.0).contains(&log.stolen.unwrap()));
        drop(held);
    }
}
