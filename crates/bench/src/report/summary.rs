//! A figure over all repeats: its median, and how far it spreads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::live::{About, BlockRecord, Metric};
use crate::statistics::percentile;

/// The spread, `(most − least) / median`, beyond which a figure is marked as uncertain.
pub const NOISY_SPREAD: f64 = 0.25;

/// Median, smallest and largest of some measurements, with the measurements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
    /// All of them, block by block; `None` where a block did not give one.
    pub values: Vec<Option<f64>>,
}

impl Summary {
    /// Of the measurements of each block; `None` when no block gave one.
    #[must_use]
    pub fn of(values: Vec<Option<f64>>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().flatten().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        Some(Self { median: percentile(&sorted, 0.5), least, most, values })
    }

    /// `(most − least) / median`; 0 where all are 0.
    #[must_use]
    pub fn spread(&self) -> f64 {
        let width = self.most - self.least;
        if width == 0.0 { 0.0 } else { width / self.median.abs() }
    }

    /// Whether the spread is wider than [`NOISY_SPREAD`].
    #[must_use]
    pub fn is_noisy(&self) -> bool {
        self.spread() > NOISY_SPREAD
    }
}

/// One figure of one group of one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Whose.
    pub target: String,
    /// Of which requests.
    pub group: String,
    /// Which figure.
    pub metric: Metric,
    /// Over all blocks.
    pub summary: Summary,
}

pub(super) fn rows(targets: &[About], blocks: &[BlockRecord]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (place, target) in targets.iter().enumerate() {
        let own: Vec<_> = blocks.iter().filter(|block| block.target == place).collect();
        let mut groups: BTreeMap<&str, Vec<Metric>> = BTreeMap::new();
        for (name, group) in own.iter().flat_map(|block| &block.groups) {
            groups.entry(name).or_default().extend(group.figures.keys());
        }
        for (group, mut metrics) in groups {
            metrics.sort_unstable();
            metrics.dedup();
            for metric in metrics {
                let value = |block: &&BlockRecord| block.groups.get(group)?.figures.get(&metric).copied();
                if let Some(summary) = Summary::of(own.iter().map(value).collect()) {
                    rows.push(Row { target: target.name.clone(), group: group.to_owned(), metric, summary });
                }
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_summary_is_of_what_was_measured() {
        let found = Summary::of(vec![Some(3.0), None, Some(1.0), Some(2.0)]).unwrap();
        assert_eq!((found.least, found.median, found.most, found.spread()), (1.0, 2.0, 3.0, 1.0));
        assert!(found.is_noisy());
        assert!(!Summary::of(vec![Some(100.0), Some(120.0)]).unwrap().is_noisy());
        assert_eq!(Summary::of(vec![None]), None);
        assert_eq!(Summary::of(vec![Some(0.0), Some(0.0)]).unwrap().spread(), 0.0);
    }
}
