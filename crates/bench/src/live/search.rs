//! A short search for a target's best settings, whose results the report shows: nobody is beaten by a bad flag.

use std::collections::BTreeMap;
use std::str::FromStr;

use consort_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::SoloConfig;
use super::figures::Metric;
use super::run::{RunConfig, measured};
use super::target::Target;

/// The most combinations that are tried.
const MOST: usize = 64;

/// Alternatives for each variable, as `threads=1,2;batch=256,512`.
///
/// ```
/// use consort_bench::live::SearchSpace;
///
/// # fn main() -> consort_core::Result<()> {
/// let space: SearchSpace = "threads=1,2;batch=256".parse()?;
/// assert_eq!(space.combinations().len(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SearchSpace {
    variables: Vec<(String, Vec<String>)>,
}

impl FromStr for SearchSpace {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |message: &str| {
            Err(Error::new(ErrorKind::InvalidConfig, message)
                .with_operation("bench::search")
                .with_context("search", text.to_owned()))
        };
        let mut variables: Vec<(String, Vec<String>)> = Vec::new();
        for part in text.split(';').filter(|part| !part.trim().is_empty()) {
            let Some((name, values)) = part.split_once('=') else {
                return refuse("alternatives are given as name=value,value;name=value,value");
            };
            let values: Vec<String> = values.split(',').map(|value| value.trim().to_owned()).collect();
            let name = name.trim().to_owned();
            if name.is_empty() || variables.iter().any(|(other, _)| *other == name) {
                return refuse("each variable has a name, and stands once");
            }
            variables.push((name, values));
        }
        let space = Self { variables };
        if space
            .variables
            .iter()
            .map(|(_, values)| values.len())
            .try_fold(1_usize, usize::checked_mul)
            .is_none_or(|all| all > MOST)
        {
            return refuse("a search tries at most 64 combinations");
        }
        Ok(space)
    }
}

impl SearchSpace {
    /// Every combination; one empty one where there is nothing to search.
    #[must_use]
    pub fn combinations(&self) -> Vec<BTreeMap<String, String>> {
        let mut all = vec![BTreeMap::new()];
        for (name, values) in &self.variables {
            all = all
                .iter()
                .flat_map(|before| {
                    values.iter().map(move |value| {
                        let mut next: BTreeMap<String, String> = before.clone();
                        next.insert(name.clone(), value.clone());
                        next
                    })
                })
                .collect();
        }
        all
    }

    /// Whether there is a choice.
    #[must_use]
    pub fn is_choice(&self) -> bool {
        self.variables.iter().any(|(_, values)| values.len() > 1)
    }
}

/// What one combination came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The values of the variables.
    pub variables: BTreeMap<String, String>,
    /// Tokens a second of one stream.
    pub decode: Option<f64>,
    /// Prompt tokens a second.
    pub prefill: Option<f64>,
    /// Why it could not be measured.
    pub failure: Option<String>,
}

impl Candidate {
    /// The geometric mean of the two rates; 0 for what could not be measured.
    fn score(&self) -> f64 {
        match (self.decode, self.prefill) {
            (Some(decode), Some(prefill)) => (decode * prefill).sqrt(),
            _ => 0.0,
        }
    }
}

/// A search as it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchReport {
    /// Whose settings.
    pub target: String,
    /// What was tried, in order.
    pub candidates: Vec<Candidate>,
    /// Which of them is best by the geometric mean of its two rates.
    pub chosen: usize,
}

/// What opens a target with the values of a combination.
pub type Open<'a> = dyn FnMut(&BTreeMap<String, String>) -> Result<Box<dyn Target>> + 'a;

/// Tries each combination with a short `solo` and tells which is best. `open` starts a target with the given values.
///
/// # Errors
/// [`ErrorKind::InvalidConfig`] when none of them works; it shows why the first did not.
pub fn search(name: &str, space: &SearchSpace, seed: u64, open: &mut Open<'_>) -> Result<SearchReport> {
    let config = SoloConfig { prompt_tokens: vec![256], decode_prompt: 32, decode_tokens: 24 };
    let run = RunConfig { stream_bytes: None, ..RunConfig::default() };
    let mut candidates = Vec::new();
    for variables in space.combinations() {
        let rates = open(&variables).and_then(|target| {
            // The first pass warms up.
            let mut last = None;
            for pass in 0..2 {
                last = Some(measured(&*target, 0, 0, &config.block(seed, pass), &[], &run)?);
            }
            Ok(last)
        });
        let figure = |group: &str, metric: Metric| {
            rates.as_ref().ok()?.as_ref()?.groups.get(group)?.figures.get(&metric).copied()
        };
        candidates.push(Candidate {
            decode: figure("decode", Metric::StreamRate),
            prefill: figure("prefill 256, cold", Metric::PrefillRate),
            failure: rates.as_ref().err().map(ToString::to_string),
            variables,
        });
    }
    let best = (0..candidates.len()).rev().max_by(|&a, &b| {
        let score = |index: usize| candidates.get(index).map_or(0.0, Candidate::score);
        score(a).total_cmp(&score(b))
    });
    match best.filter(|&index| candidates.get(index).is_some_and(|found| found.score() > 0.0)) {
        Some(chosen) => Ok(SearchReport { target: name.to_owned(), candidates, chosen }),
        None => {
            let why = candidates.into_iter().find_map(|found| found.failure).unwrap_or_else(|| "no figures".into());
            Err(Error::new(ErrorKind::InvalidConfig, format!("none of the settings works: {why}"))
                .with_operation("bench::search")
                .with_context("target", name.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn all_combinations_are_tried() {
        let space: SearchSpace = "a=1,2; b=x,y,z".parse().unwrap();
        let all = space.combinations();
        assert_eq!(all.len(), 6);
        assert_eq!(all[5], BTreeMap::from([("a".into(), "2".into()), ("b".into(), "z".into())]));
        assert!(space.is_choice() && !SearchSpace::default().is_choice());
        assert_eq!(SearchSpace::default().combinations(), [BTreeMap::new()]);
        for wrong in ["a", "=1", "a=1;a=2", "a=1,2,3,4,5,6,7,8,9;b=1,2,3,4,5,6,7,8,9"] {
            assert_eq!(wrong.parse::<SearchSpace>().unwrap_err().kind(), ErrorKind::InvalidConfig, "{wrong}");
        }
    }
}
