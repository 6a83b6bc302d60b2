//! Means with their standard errors, and percentiles.

use serde::{Deserialize, Serialize};

/// A running mean and variance (Welford 1962), which does not lose digits as a sum of squares does.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Running {
    count: usize,
    mean: f64,
    squares: f64,
}

impl Running {
    pub(crate) fn push(&mut self, value: f64) {
        self.count += 1;
        let from_before = value - self.mean;
        #[allow(clippy::cast_precision_loss)]
        let count = self.count as f64;
        self.mean += from_before / count;
        self.squares += from_before * (value - self.mean);
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn mean(&self) -> f64 {
        self.mean
    }

    /// The standard error of the mean, `s / √n` with the sample's standard deviation `s`. `None` below two values.
    pub(crate) fn standard_error(&self) -> Option<f64> {
        #[allow(clippy::cast_precision_loss)]
        (self.count > 1).then(|| (self.squares / (self.count - 1) as f64 / self.count as f64).sqrt())
    }
}

/// How a quantity is spread over the scored tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard error of the mean, as if tokens were independent. `None` for one token.
    pub standard_error: Option<f64>,
    /// The median.
    pub median: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The 99.9th percentile. With fewer than a thousand tokens it says hardly more than the maximum.
    pub p99_9: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of some values, at least one. Percentiles are interpolated linearly between the two nearest ranks.
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        let mut running = Running::default();
        values.iter().for_each(|&value| running.push(value));
        values.sort_by(f64::total_cmp);
        let at = |fraction| percentile(&values, fraction);
        Self {
            mean: running.mean(),
            standard_error: running.standard_error(),
            median: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: at(1.0),
        }
    }
}

/// The value below which a fraction of the sorted values lies: linear interpolation at rank `fraction · (n − 1)`.
pub(crate) fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let (below, part) = {
        let rank = fraction * (sorted.len().saturating_sub(1)) as f64;
        (rank as usize, rank.fract())
    };
    let low = sorted.get(below).copied().unwrap_or(f64::NAN);
    let high = sorted.get(below + 1).copied().unwrap_or(low);
    low + part * (high - low)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_precision_loss)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn as_the_formulas_say(values in prop::collection::vec(-100.0..100.0_f64, 2..200)) {
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
            let spread = Spread::of(values.clone());
            prop_assert!((spread.mean - mean).abs() < 1e-9);
            prop_assert!((spread.standard_error.unwrap() - (variance / n).sqrt()).abs() < 1e-9);
            let largest = values.iter().copied().fold(f64::MIN, f64::max);
            prop_assert_eq!(spread.max, largest);
            let ordered = [spread.median, spread.p90, spread.p99, spread.p99_9, spread.max];
            prop_assert!(ordered.is_sorted());
            let below = values.iter().filter(|&&v| v <= spread.p90).count() as f64;
            prop_assert!(below >= (0.9 * (n - 1.0)).floor() && values.iter().filter(|&&v| v < spread.p90).count() as f64 <= 0.9 * n + 1.0);
        }
    }

    #[test]
    fn percentiles_are_interpolated() {
        let sorted = [0.0, 10.0, 20.0, 30.0, 40.0];
        assert_eq!(percentile(&sorted, 0.5), 20.0);
        assert_eq!(percentile(&sorted, 0.9), 36.0);
        assert_eq!(percentile(&sorted, 1.0), 40.0);
        assert_eq!(percentile(&[7.0], 0.999), 7.0);
    }

    #[test]
    fn one_value_has_no_error() {
        assert_eq!(Spread::of(vec![3.0]).standard_error, None);
    }
}
