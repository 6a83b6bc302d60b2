//! What the control groups of this process (a container's, a service's) let it use.
//!
//! A limit may stand at the process's own group or at any above it; the tightest counts. Inside a container the path in
//! /proc/self/cgroup may not exist below the mounted tree; then the tree's top is the container's own group.

use crate::files::Root;
use crate::report::Finding;

/// Values at and above this are how version 1 spells "no limit" (a page-rounded 2^63 − 1).
const NO_LIMIT: u64 = 1 << 60;

/// Processors' worth of time per time, e.g. 1.5.
pub(crate) fn cpu_quota(root: &Root) -> Option<Finding<f64>> {
    let v2 = folders(root, "", "sys/fs/cgroup").into_iter().filter_map(|folder| {
        let path = format!("{folder}/cpu.max");
        let text = root.line(&path)?;
        let (quota, period) = text.split_once(' ')?;
        ratio(quota.parse().ok()?, period.trim().parse().ok()?).map(|value| Finding::new(value, format!("/{path}")))
    });
    let v1 = ["cpu", "cpu,cpuacct"].into_iter().flat_map(|mount| {
        folders(root, "cpu", &format!("sys/fs/cgroup/{mount}")).into_iter().filter_map(|folder| {
            let path = format!("{folder}/cpu.cfs_quota_us");
            // −1, which does not parse, is "no limit".
            let value = ratio(root.number(&path)?, root.number(&format!("{folder}/cpu.cfs_period_us"))?)?;
            Some(Finding::new(value, format!("/{path}")))
        })
    });
    v2.chain(v1).min_by(|a, b| a.value.total_cmp(&b.value))
}

/// A limit of memory and what of it is in use and could not be given back, in bytes.
pub(crate) struct MemoryLimit {
    pub(crate) limit: Finding<u64>,
    pub(crate) used: u64,
}

pub(crate) fn memory_limit(root: &Root) -> Option<MemoryLimit> {
    let read = |folder: String, limit: &str, used: &str, cache: &str| {
        let path = format!("{folder}/{limit}");
        // "max", which does not parse, is "no limit".
        let value = root.number(&path).filter(|value| *value < NO_LIMIT)?;
        let used = root.number(&format!("{folder}/{used}")).unwrap_or(0);
        // Pages of files that were read once are counted as used, and given back on demand.
        let stat = root.read(&format!("{folder}/memory.stat")).unwrap_or_default();
        let reclaimable = stat.lines().find_map(|line| line.strip_prefix(cache)?.trim().parse::<u64>().ok());
        Some(MemoryLimit {
            limit: Finding::new(value, format!("/{path}")),
            used: used.saturating_sub(reclaimable.unwrap_or(0)),
        })
    };
    let v2 = folders(root, "", "sys/fs/cgroup")
        .into_iter()
        .filter_map(|folder| read(folder, "memory.max", "memory.current", "inactive_file "));
    let v1 = folders(root, "memory", "sys/fs/cgroup/memory")
        .into_iter()
        .filter_map(|folder| read(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "));
    // Of nested groups, the one with least left is what will be met first.
    v2.chain(v1).min_by_key(|found| found.limit.value.saturating_sub(found.used))
}

fn ratio(quota: u64, period: u64) -> Option<f64> {
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

/// The folders of this process's group of a controller ("" is version 2) and of all groups above it, below `mount`.
fn folders(root: &Root, controller: &str, mount: &str) -> Vec<String> {
    let text = root.read("proc/self/cgroup").unwrap_or_default();
    let group = text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        (controllers.split(',').any(|name| name == controller)).then_some(path)
    });
    let mut folders = vec![mount.to_owned()];
    let mut folder = mount.to_owned();
    let safe = |part: &&str| !part.is_empty() && *part != "." && *part != "..";
    for part in group.unwrap_or("").split('/').filter(safe).take(64) {
        folder = format!("{folder}/{part}");
        folders.push(folder.clone());
    }
    folders
}
