//! Two targets of one report, or two reports, beside each other.

use serde::{Deserialize, Serialize};

use super::{Report, Row, Summary};
use crate::live::{Better, Metric};

/// How much better one figure is than another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// By what factor the first is better: above 1 it is, below 1 it is worse, whichever way the figure counts.
    pub advantage: f64,
    /// The smallest factor that the measurements allow.
    pub least: f64,
    /// The largest.
    pub most: f64,
    /// Whether the factors were taken block by block within one run. Else they span the extremes of both.
    pub paired: bool,
}

impl Difference {
    /// Of two figures of one run, whose blocks took turns: the factor of each block counts.
    #[must_use]
    pub fn paired(metric: Metric, one: &Summary, other: &Summary) -> Option<Self> {
        let factors = one.values.iter().zip(&other.values).map(|pair| match pair {
            (Some(one), Some(other)) => advantage(metric, *one, *other),
            _ => None,
        });
        let found = Summary::of(factors.collect())?;
        Some(Self { advantage: found.median, least: found.least, most: found.most, paired: true })
    }

    /// Of two figures of different runs.
    #[must_use]
    pub fn unpaired(metric: Metric, one: &Summary, other: &Summary) -> Option<Self> {
        let all = [(one.least, other.most), (one.most, other.least)].map(|(one, other)| advantage(metric, one, other));
        let [first, second] = all;
        let (first, second) = (first?, second?);
        Some(Self {
            advantage: advantage(metric, one.median, other.median)?,
            least: first.min(second),
            most: first.max(second),
            paired: false,
        })
    }

    /// Whether the measurements allow that there is no difference.
    #[must_use]
    pub fn is_noise(&self) -> bool {
        self.least <= 1.0 && self.most >= 1.0
    }

    /// In words.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        if self.is_noise() {
            "within noise"
        } else if self.advantage > 1.0 {
            "better"
        } else {
            "worse"
        }
    }
}

/// `None` where a factor has no meaning.
fn advantage(metric: Metric, one: f64, other: f64) -> Option<f64> {
    let factor = match metric.better() {
        Better::Higher => one / other,
        Better::Lower => other / one,
    };
    (factor.is_finite() && factor > 0.0).then_some(factor)
}

/// One figure of two targets.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Of which requests.
    pub group: String,
    /// Which figure.
    pub metric: Metric,
    /// Of the first.
    pub one: Summary,
    /// Of the second.
    pub other: Summary,
    /// How much better the first is.
    pub difference: Difference,
}

/// Every figure that both have: the target `one` of the first report beside `other` of the second, which may be the same
/// report.
#[must_use]
pub fn compare(first: &Report, one: &str, second: &Report, other: &str) -> Vec<Comparison> {
    let same_run = std::ptr::eq(first, second);
    let beside = |row: &Row| {
        let found = second.row(other, &row.group, row.metric)?;
        let difference = if same_run {
            Difference::paired(row.metric, &row.summary, &found.summary)?
        } else {
            Difference::unpaired(row.metric, &row.summary, &found.summary)?
        };
        Some(Comparison {
            group: row.group.clone(),
            metric: row.metric,
            one: row.summary.clone(),
            other: found.summary.clone(),
            difference,
        })
    };
    first.rows.iter().filter(|row| row.target == one).filter_map(beside).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn summary(values: &[f64]) -> Summary {
        Summary::of(values.iter().map(|&value| Some(value)).collect()).unwrap()
    }

    #[test]
    fn pairs_cancel_what_both_suffered() {
        // The machine was slower in the second block, for both.
        let (one, other) = (summary(&[100.0, 50.0, 80.0]), summary(&[80.0, 40.0, 64.0]));
        let found = Difference::paired(Metric::StreamRate, &one, &other).unwrap();
        assert_eq!((found.advantage, found.least, found.most), (1.25, 1.25, 1.25));
        assert_eq!(found.verdict(), "better");
        let found = Difference::unpaired(Metric::StreamRate, &one, &other).unwrap();
        assert!(found.is_noise() && found.verdict() == "within noise");
    }

    #[test]
    fn less_time_is_an_advantage() {
        let found = Difference::unpaired(Metric::FirstTokenP50, &summary(&[10.0]), &summary(&[20.0])).unwrap();
        assert_eq!((found.advantage, found.verdict()), (2.0, "better"));
        let found = Difference::paired(Metric::FirstTokenP50, &summary(&[20.0]), &summary(&[10.0])).unwrap();
        assert_eq!((found.advantage, found.verdict()), (0.5, "worse"));
    }

    #[test]
    fn what_has_no_factor_is_left_out() {
        assert_eq!(Difference::unpaired(Metric::ReusedShare, &summary(&[0.0]), &summary(&[0.0])), None);
        assert_eq!(Difference::paired(Metric::ReusedShare, &summary(&[0.0]), &summary(&[1.0])), None);
    }
}
