//! What this device has: the processor and its instruction sets, memory as it may be used, accelerators that can be seen,
//! and the rate at which memory can be read.
//!
//! [`probe`] looks and never touches: it reads files of the operating system and asks the processor, but loads no driver,
//! starts no other program on Linux, and opens no device. So it can say that a device is *there*, and whether the files that
//! its driver needs are; only an engine that ran on it can say that it *works* (that is `DeviceEvidence`). Every finding
//! carries how it was established. A software renderer is never reported as an accelerator.
//!
//! ```
//! let report = consort_hardware::probe();
//! println!("{} of {} threads", report.cpu.usable_threads.value, report.cpu.logical_cores.value);
//! if report.ready_accelerators().next().is_none() {
//!     println!("no accelerator: {:?}", report.accelerators);
//! }
//! assert!(report.cpu.usable_threads.value >= 1);
//! assert!(!report.cpu.usable_threads.established_by.is_empty());
//! ```
//!
//! [`probe_at`] does the same for a file tree elsewhere, which is how it is tested: with the trees of machines that are not
//! here.
#![forbid(unsafe_code)]

mod accelerator;
mod cgroup;
mod cpu;
mod files;
mod memory;
mod report;
mod stream;
mod vulkan;

use std::path::Path;

pub use accelerator::{Accelerator, Readiness, Vendor};
pub use cpu::{CpuReport, InstructionSet};
pub use memory::MemoryReport;
pub use report::{Finding, HardwareReport, OperatingSystem};
pub use stream::{StreamRate, stream_rate};
pub use vulkan::{DriverKind, VulkanDriver, VulkanReport};

use files::Root;

/// Looks at this machine.
#[must_use]
pub fn probe() -> HardwareReport {
    report::assemble(&Root::machine())
}

/// Looks at a tree of files that has `proc`, `sys`, `dev`, `usr` and `etc` of a Linux machine below `root`.
///
/// Nothing is asked of the processor or the operating system that runs this: what the files don't say is unknown.
#[must_use]
pub fn probe_at(root: &Path) -> HardwareReport {
    report::assemble(&Root::tree(root))
}
