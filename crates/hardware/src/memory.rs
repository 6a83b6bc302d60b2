//! Main memory: what the machine has and what this process may take of it.

use serde::Serialize;

use crate::cgroup;
use crate::files::{Root, field};
use crate::report::{Finding, sysctl};

/// Memory in bytes. `None`: unknown on this system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryReport {
    /// What this process may have at most: the machine's memory, or the limit of its control group if that is less.
    pub total: Option<Finding<u64>>,
    /// What can still be taken without pushing anything out: the machine's estimate, or what is left of the limit.
    pub available: Option<Finding<u64>>,
    /// What the machine has, whatever the limit.
    pub machine_total: Option<Finding<u64>>,
    /// The limit of the control group, if there is one.
    pub limit: Option<Finding<u64>>,
}

pub(crate) fn probe(root: &Root) -> MemoryReport {
    let info = root.read("proc/meminfo").unwrap_or_default();
    let bytes = |key: &str| {
        let kibibytes: u64 = field(&info, key)?.split_whitespace().next()?.parse().ok()?;
        Some(Finding::new(kibibytes.checked_mul(1024)?, format!("/proc/meminfo, {key}")))
    };
    let machine_total = bytes("MemTotal").or_else(|| {
        let found = sysctl(root, "hw.memsize")?;
        Some(Finding::new(found.value.parse().ok()?, found.established_by))
    });
    let (mut total, mut available) = (machine_total.clone(), bytes("MemAvailable"));
    let limit = cgroup::memory_limit(root);
    if let Some(found) = &limit {
        let left = found.limit.value.saturating_sub(found.used);
        if total.as_ref().is_none_or(|total| found.limit.value < total.value) {
            total = Some(found.limit.clone());
        }
        if available.as_ref().is_none_or(|available| left < available.value) {
            let how = format!("{}, less what is used and not reclaimable", found.limit.established_by);
            available = Some(Finding::new(left, how));
        }
    }
    MemoryReport { total, available, machine_total, limit: limit.map(|found| found.limit) }
}
