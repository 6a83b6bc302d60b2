//! The processor: its name, how many of its cores may be used, and what it can compute with.

use std::collections::BTreeSet;
use std::thread::available_parallelism;

use serde::Serialize;

use crate::cgroup;
use crate::files::{Root, field, number_list};
use crate::report::{Finding, sysctl};

/// An instruction set that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum InstructionSet {
    /// x86: 256-bit integer vectors.
    Avx2,
    /// x86: fused multiply-add.
    Fma,
    /// x86: conversion between 16- and 32-bit floats.
    F16c,
    /// x86: 8-bit dot products on 256-bit vectors, without AVX-512.
    AvxVnni,
    /// x86: 512-bit vectors.
    Avx512f,
    /// x86: 512-bit vectors of bytes and words.
    Avx512bw,
    /// x86: 8-bit dot products on 512-bit vectors.
    Avx512vnni,
    /// x86: dot products of bfloat16.
    Avx512bf16,
    /// x86: tiles.
    AmxTile,
    /// x86: 8-bit matrix products on tiles.
    AmxInt8,
    /// x86: bfloat16 matrix products on tiles.
    AmxBf16,
    /// Arm: 128-bit vectors.
    Neon,
    /// Arm: 8-bit dot products.
    Dotprod,
    /// Arm: 8-bit matrix products.
    I8mm,
    /// Arm: bfloat16 dot and matrix products.
    Bf16,
    /// Arm: vectors of scalable length.
    Sve,
}

/// The names in /proc/cpuinfo (`flags` on x86, `Features` on Arm).
const FLAGS: [(InstructionSet, &str); 16] = [
    (InstructionSet::Avx2, "avx2"),
    (InstructionSet::Fma, "fma"),
    (InstructionSet::F16c, "f16c"),
    (InstructionSet::AvxVnni, "avx_vnni"),
    (InstructionSet::Avx512f, "avx512f"),
    (InstructionSet::Avx512bw, "avx512bw"),
    (InstructionSet::Avx512vnni, "avx512_vnni"),
    (InstructionSet::Avx512bf16, "avx512_bf16"),
    (InstructionSet::AmxTile, "amx_tile"),
    (InstructionSet::AmxInt8, "amx_int8"),
    (InstructionSet::AmxBf16, "amx_bf16"),
    (InstructionSet::Neon, "asimd"),
    (InstructionSet::Dotprod, "asimddp"),
    (InstructionSet::I8mm, "i8mm"),
    (InstructionSet::Bf16, "bf16"),
    (InstructionSet::Sve, "sve"),
];

/// What is known of the processor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CpuReport {
    /// Its name, as it gives it itself.
    pub model: Option<Finding<String>>,
    /// Threads of execution that are online.
    pub logical_cores: Finding<usize>,
    /// Cores that are online; with two threads each, half as many.
    pub physical_cores: Option<Finding<usize>>,
    /// How many threads this process can keep busy: the least of online processors, affinity and quota, at least 1.
    pub usable_threads: Finding<usize>,
    /// Distinct cores among the processors that the affinity admits.
    pub usable_cores: Option<Finding<usize>>,
    /// The quota of the control group in processors, if there is one.
    pub quota: Option<Finding<f64>>,
    /// Size of the largest cache in bytes, on one of its instances.
    pub last_level_cache: Option<Finding<u64>>,
    /// The instruction sets that kernels could use, in the order of the enum.
    pub instruction_sets: Vec<Finding<InstructionSet>>,
}

impl CpuReport {
    /// Whether the processor has this instruction set.
    #[must_use]
    pub fn has(&self, set: InstructionSet) -> bool {
        self.instruction_sets.iter().any(|found| found.value == set)
    }
}

pub(crate) fn probe(root: &Root) -> CpuReport {
    let info = root.read("proc/cpuinfo").unwrap_or_default();
    let (logical, online) = logical_cores(root, &info);
    let allowed = allowed(root);
    let quota = cgroup::cpu_quota(root);
    CpuReport {
        model: model(root, &info),
        physical_cores: cores(root, &info, online.as_deref(), "online processors"),
        usable_cores: allowed
            .as_deref()
            .and_then(|allowed| cores(root, &info, Some(allowed), "processors that the affinity admits")),
        usable_threads: usable_threads(root, &logical, allowed.as_deref(), quota.as_ref()),
        logical_cores: logical,
        quota,
        last_level_cache: last_level_cache(root),
        instruction_sets: instruction_sets(root, &info),
    }
}

fn model(root: &Root, info: &str) -> Option<Finding<String>> {
    for key in ["model name", "Model", "Hardware"] {
        if let Some(name) = field(info, key).filter(|name| !name.is_empty()) {
            return Some(Finding::new(name.to_owned(), format!("/proc/cpuinfo, {key}")));
        }
    }
    if let Some(name) = root.line("proc/device-tree/model") {
        return Some(Finding::new(name.trim_end_matches('\0').to_owned(), "/proc/device-tree/model"));
    }
    if let (Some(maker), Some(part)) = (field(info, "CPU implementer"), field(info, "CPU part")) {
        let name = format!("Arm implementer {maker} part {part}");
        return Some(Finding::new(name, "/proc/cpuinfo, CPU implementer and part"));
    }
    sysctl(root, "machdep.cpu.brand_string")
}

fn logical_cores(root: &Root, info: &str) -> (Finding<usize>, Option<Vec<u32>>) {
    let path = "sys/devices/system/cpu/online";
    if let Some(online) = root.line(path).map(|text| number_list(&text)).filter(|online| !online.is_empty()) {
        return (Finding::new(online.len(), format!("/{path}")), Some(online));
    }
    let entries = info.lines().filter(|line| line.split(':').next().is_some_and(|key| key.trim() == "processor"));
    let entries = entries.count();
    if entries > 0 {
        return (Finding::new(entries, "/proc/cpuinfo, processor entries"), None);
    }
    if let Some(found) = sysctl(root, "hw.logicalcpu")
        && let Ok(count) = found.value.parse()
    {
        return (Finding::new(count, found.established_by), None);
    }
    let asked = root.live.then(|| available_parallelism().ok()).flatten();
    match asked {
        Some(count) => (Finding::new(count.get(), "the operating system's available parallelism"), None),
        None => (Finding::new(1, "nothing says so; there is at least one"), None),
    }
}

/// The processors on which this process may run.
fn allowed(root: &Root) -> Option<Vec<u32>> {
    let status = root.read("proc/self/status")?;
    field(&status, "Cpus_allowed_list").map(number_list).filter(|allowed| !allowed.is_empty())
}

fn usable_threads(
    root: &Root,
    logical: &Finding<usize>,
    allowed: Option<&[u32]>,
    quota: Option<&Finding<f64>>,
) -> Finding<usize> {
    let mut usable = logical.clone();
    if let Some(allowed) = allowed.filter(|allowed| allowed.len() < usable.value) {
        usable = Finding::new(allowed.len(), "/proc/self/status, Cpus_allowed_list");
    }
    if let Some(quota) = quota {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is at least 1")]
        let whole = (quota.value.floor() as usize).max(1);
        if whole < usable.value {
            usable = Finding::new(whole, quota.established_by.clone());
        }
    }
    if let Some(asked) = root.live.then(|| available_parallelism().ok()).flatten()
        && asked.get() < usable.value
    {
        usable = Finding::new(asked.get(), "the operating system's available parallelism");
    }
    usable
}

/// How many distinct cores the given processors are threads of (all that have a topology, when none are given).
fn cores(root: &Root, info: &str, processors: Option<&[u32]>, which: &str) -> Option<Finding<usize>> {
    let topology = |number: u32| {
        let folder = format!("sys/devices/system/cpu/cpu{number}/topology");
        let package = root.line(&format!("{folder}/physical_package_id"))?;
        // Dies and clusters number their cores anew on some machines.
        let die = root.line(&format!("{folder}/die_id")).unwrap_or_default();
        let cluster = root.line(&format!("{folder}/cluster_id")).unwrap_or_default();
        Some((package, die, cluster, root.line(&format!("{folder}/core_id"))?))
    };
    let distinct: BTreeSet<_> = processors.unwrap_or_default().iter().filter_map(|number| topology(*number)).collect();
    if !distinct.is_empty() {
        return Some(Finding::new(distinct.len(), format!("/sys/devices/system/cpu/cpu*/topology of the {which}")));
    }
    let entries: BTreeSet<_> = info
        .split("\n\n")
        .filter(|entry| {
            let number = field(entry, "processor").and_then(|number| number.parse().ok());
            processors.is_none_or(|processors| number.is_some_and(|number| processors.contains(&number)))
        })
        .filter_map(|entry| Some((field(entry, "physical id")?, field(entry, "core id")?)))
        .collect();
    if !entries.is_empty() {
        return Some(Finding::new(entries.len(), format!("/proc/cpuinfo, core ids of the {which}")));
    }
    let found = sysctl(root, "hw.physicalcpu")?;
    Some(Finding::new(found.value.parse().ok()?, found.established_by))
}

fn last_level_cache(root: &Root) -> Option<Finding<u64>> {
    let folder = "sys/devices/system/cpu/cpu0/cache";
    let caches = root.names(folder).into_iter().filter(|name| name.starts_with("index")).filter_map(|name| {
        let text = root.line(&format!("{folder}/{name}/size"))?;
        let digits = text.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
        let unit = match text.get(digits.len()..)? {
            "" => 1,
            "K" => 1 << 10,
            "M" => 1 << 20,
            _ => return None,
        };
        Some(Finding::new(digits.parse::<u64>().ok()?.checked_mul(unit)?, format!("/{folder}/{name}/size")))
    });
    caches.max_by_key(|cache| cache.value)
}

fn instruction_sets(root: &Root, info: &str) -> Vec<Finding<InstructionSet>> {
    let mut found = if root.live { detected() } else { Vec::new() };
    let flags: BTreeSet<&str> =
        ["flags", "Features"].iter().filter_map(|key| field(info, key)).flat_map(str::split_whitespace).collect();
    for (set, flag) in FLAGS {
        // Arm's `fp16`-like names do not collide with x86's; `bf16`, `i8mm` and `sve` are Arm's only.
        if flags.contains(flag) && !found.iter().any(|known| known.value == set) {
            found.push(Finding::new(set, format!("/proc/cpuinfo, {flag}")));
        }
    }
    found.sort_by_key(|found| found.value);
    found
}

/// What the processor itself reports, the operating system's consent included.
fn detected() -> Vec<Finding<InstructionSet>> {
    #[allow(unused_mut, reason = "on other architectures nothing is asked")]
    let mut sets: Vec<(InstructionSet, bool)> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    sets.extend([
        (InstructionSet::Avx2, is_x86_feature_detected!("avx2")),
        (InstructionSet::Fma, is_x86_feature_detected!("fma")),
        (InstructionSet::F16c, is_x86_feature_detected!("f16c")),
        (InstructionSet::AvxVnni, is_x86_feature_detected!("avxvnni")),
        (InstructionSet::Avx512f, is_x86_feature_detected!("avx512f")),
        (InstructionSet::Avx512bw, is_x86_feature_detected!("avx512bw")),
        (InstructionSet::Avx512vnni, is_x86_feature_detected!("avx512vnni")),
        (InstructionSet::Avx512bf16, is_x86_feature_detected!("avx512bf16")),
    ]);
    #[cfg(target_arch = "aarch64")]
    sets.extend([
        (InstructionSet::Neon, std::arch::is_aarch64_feature_detected!("neon")),
        (InstructionSet::Dotprod, std::arch::is_aarch64_feature_detected!("dotprod")),
        (InstructionSet::I8mm, std::arch::is_aarch64_feature_detected!("i8mm")),
        (InstructionSet::Bf16, std::arch::is_aarch64_feature_detected!("bf16")),
        (InstructionSet::Sve, std::arch::is_aarch64_feature_detected!("sve")),
    ]);
    let present = sets.into_iter().filter(|(_, present)| *present);
    present.map(|(set, _)| Finding::new(set, "asked of the processor at run time")).collect()
}
