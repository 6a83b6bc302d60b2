//! The rules, as a file has them.

use std::path::Path;

use consort_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::live::Metric;

/// The form of a rules file. Another form has another number, and is refused.
const FORM: u32 = 1;
/// The largest rules file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The rules of the gate.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    form: u32,
    /// Where a verdict is final.
    pub seed: SeedPlace,
    /// What must be as good as the other's.
    pub parity: Vec<Parity>,
    /// On what one may be better instead.
    pub axis: Vec<Axis>,
    /// Where it must have computed.
    pub device: DeviceRule,
    /// What the behaviour suite must show.
    pub behavior: BehaviorRule,
    /// How near its distributions must be.
    pub quality: QualityBounds,
    /// What it must keep beside other work.
    pub envelope: Envelope,
}

/// The model and the hardware on which a verdict is final.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedPlace {
    /// In words.
    pub model: String,
    /// Its architecture.
    pub architecture: String,
    /// Its decoder layers.
    pub layers: usize,
    /// The width of its hidden state.
    pub hidden_size: usize,
    /// How most of its weights are stored.
    pub weight_type: String,
    /// Whether random weights of these dimensions count.
    pub synthetic: bool,
    /// In words.
    pub hardware: String,
    /// Devices by their kind (`metal`).
    pub devices: Vec<String>,
    /// What the device's own name begins with.
    pub device_names: Vec<String>,
}

/// A figure of a report.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// In a report of this workload.
    pub workload: String,
    /// Of these requests.
    pub group: String,
    /// Which figure.
    pub metric: Metric,
}

/// A figure that must be as good as the other's.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Parity {
    /// In words.
    pub name: String,
    /// Which figure.
    #[serde(flatten)]
    pub figure: Figure,
    /// The least advantage over the other; 1 is as good.
    pub at_least: f64,
}

/// What one may be better on.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// Its name, by which a person states it.
    pub name: String,
    /// Whether it is stated by a person and not measured. The figures then say how much it may cost.
    #[serde(default)]
    pub stated: bool,
    /// The least advantage in each figure.
    pub at_least: f64,
    /// The figures.
    pub figures: Vec<Figure>,
}

/// Where the model must have computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRule {
    /// On an accelerator and nowhere else.
    pub accelerated: bool,
}

/// What the behaviour suite must show.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BehaviorRule {
    /// Suites that must have run.
    pub suites: Vec<String>,
    /// The fewest cases of each.
    pub cases: usize,
}

/// Bounds on a [`Divergence`](crate::Divergence).
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QualityBounds {
    /// The largest mean KL divergence, in nats.
    pub kl_mean: f64,
    /// The largest 99.9th percentile of it.
    pub kl_p99_9: f64,
    /// The smallest share of equal first choices.
    pub top1_agreement: f64,
    /// The largest ratio of the perplexities.
    pub perplexity_ratio: f64,
}

/// What must be kept beside other work.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Envelope {
    /// Which figure, of the backend itself.
    #[serde(flatten)]
    pub figure: Figure,
    /// The least value.
    pub at_least: f64,
}

impl Rules {
    /// The rules of the seed, which are part of the program.
    ///
    /// # Errors
    /// None: a test reads them.
    pub fn seed() -> Result<Self> {
        Self::parse(include_str!("../../rules/seed.toml"))
    }

    /// Rules of a file.
    ///
    /// # Errors
    /// Those of reading; [`ErrorKind::InvalidConfig`] for a file of another form.
    pub fn open(path: &Path) -> Result<Self> {
        let length = std::fs::metadata(path).map_err(|source| Error::io(path, source))?.len();
        let named = |error: Error| error.with_context("path", path.display().to_string());
        if length > MAX_FILE {
            return Err(named(invalid(format!("the file has {length} bytes; rules have at most {MAX_FILE}"))));
        }
        let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
        Self::parse(&text).map_err(named)
    }

    /// # Errors
    /// [`ErrorKind::InvalidConfig`] that says what is wrong, and where.
    fn parse(text: &str) -> Result<Self> {
        let rules: Self = toml::from_str(text).map_err(|source| invalid(source.to_string()))?;
        if rules.form != FORM {
            return Err(invalid(format!("the rules have the form {}, and {FORM} is known", rules.form)));
        }
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let bounds = rules.parity.iter().map(|rule| rule.at_least).chain(rules.axis.iter().map(|axis| axis.at_least));
        if rules.parity.is_empty() || !bounds.chain([rules.envelope.at_least]).all(positive) {
            return Err(invalid("there is at least one rule of parity, and every bound is a positive number"));
        }
        if rules.axis.iter().any(|axis| axis.figures.is_empty()) {
            return Err(invalid("an axis has at least one figure"));
        }
        Ok(rules)
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidConfig, message).with_operation("bench::rules")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SEED: &str = include_str!("../../rules/seed.toml");

    #[test]
    fn the_seeds_rules_are_read() {
        let rules = Rules::seed().unwrap();
        assert_eq!((rules.seed.layers, rules.seed.hidden_size), (32, 2560));
        assert!(rules.device.accelerated && rules.behavior.cases > 0);
        assert_eq!(rules.axis.iter().filter(|axis| axis.stated).count(), 1);
    }

    #[test]
    fn rules_that_say_nothing_are_refused() {
        for (from, to) in [
            ("form = 1", "form = 2"),
            ("at_least = 0.95", "at_least = 0.0"),
            ("at_least = 1.15", "at_least = nan"),
            ("accelerated = true", "accelerate = true"),
            ("first_token_p50", "first_token_p51"),
            ("form = 1", ""),
        ] {
            let wrong = SEED.replacen(from, to, 1);
            assert_ne!(wrong, SEED);
            assert_eq!(Rules::parse(&wrong).unwrap_err().kind(), ErrorKind::InvalidConfig, "{to}");
        }
    }
}
