//! The whole report, and what every part of it has in common.

use serde::Serialize;

use crate::accelerator::{self, Accelerator, Readiness};
use crate::cpu::{self, CpuReport};
use crate::files::Root;
use crate::memory::{self, MemoryReport};
use crate::vulkan::{self, VulkanReport};

/// A fact, and how it was established.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Serialize)]
pub struct Finding<T> {
    /// The fact.
    pub value: T,
    /// How it is known: the file and key it was read from, or what was asked.
    pub established_by: String,
}

impl<T> Finding<T> {
    pub(crate) fn new(value: T, established_by: impl Into<String>) -> Self {
        Self { value, established_by: established_by.into() }
    }
}

/// The operating system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OperatingSystem {
    /// `linux`, `macos`, `windows`, ...
    pub family: String,
    /// What it calls itself, e.g. "Debian GNU/Linux 12 (bookworm)".
    pub name: Option<String>,
    /// The kernel's release.
    pub kernel: Option<String>,
    /// The architecture this program was compiled for.
    pub architecture: String,
}

/// What a machine has. Serializes to JSON as it stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HardwareReport {
    /// The operating system.
    pub os: Finding<OperatingSystem>,
    /// The processor.
    pub cpu: CpuReport,
    /// Main memory.
    pub memory: MemoryReport,
    /// Accelerators that can be seen, ready or not. Software renderers and plain displays are not among them.
    pub accelerators: Vec<Accelerator>,
    /// Graphics devices that are no accelerators, and why.
    pub not_accelerators: Vec<Finding<String>>,
    /// The Vulkan loader and drivers that are installed.
    pub vulkan: VulkanReport,
}

impl HardwareReport {
    /// The accelerators whose driver's files are all there.
    pub fn ready_accelerators(&self) -> impl Iterator<Item = &Accelerator> {
        self.accelerators.iter().filter(|found| found.readiness == Readiness::Ready)
    }
}

pub(crate) fn assemble(root: &Root) -> HardwareReport {
    let (accelerators, not_accelerators) = accelerator::probe(root);
    HardwareReport {
        os: operating_system(root),
        cpu: cpu::probe(root),
        memory: memory::probe(root),
        accelerators,
        not_accelerators,
        vulkan: vulkan::probe(root),
    }
}

fn operating_system(root: &Root) -> Finding<OperatingSystem> {
    let release = root.read("etc/os-release").or_else(|| root.read("usr/lib/os-release")).unwrap_or_default();
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let name = pretty.map(|name| name.trim().trim_matches('"').to_owned()).filter(|name| !name.is_empty());
    let name = name.or_else(|| sysctl(root, "kern.osproductversion").map(|found| format!("macOS {}", found.value)));
    let kernel = root.line("proc/sys/kernel/osrelease");
    let mut how = String::from("the compilation target");
    if name.is_some() || kernel.is_some() {
        how.push_str(", /etc/os-release, /proc/sys/kernel/osrelease");
    }
    let system = OperatingSystem {
        family: std::env::consts::OS.to_owned(),
        name,
        kernel,
        architecture: std::env::consts::ARCH.to_owned(),
    };
    Finding::new(system, how)
}

/// Asks macOS, which has no files for this, through its own tool. `None` elsewhere, and for a tree of files.
pub(crate) fn sysctl(root: &Root, name: &str) -> Option<Finding<String>> {
    if !(root.live && cfg!(target_os = "macos")) {
        return None;
    }
    let output = std::process::Command::new("/usr/sbin/sysctl").args(["-n", name]).output().ok()?;
    let value = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !value.is_empty()).then(|| Finding::new(value, format!("sysctl {name}")))
}
