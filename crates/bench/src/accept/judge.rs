//! Holds the evidence against the rules.

use std::path::{Path, PathBuf};

use consort_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::BehaviorResults;
use super::rules::{Figure, Rules};
use crate::live::{About, Metric};
use crate::report::{Difference, Quality, Report};

/// What is judged, and by what.
#[derive(Debug, Clone)]
pub struct Case<'a> {
    /// The target that wants to be accepted, by its name in the reports.
    pub backend: &'a str,
    /// The one it is held against.
    pub against: &'a str,
    /// Reports in which both were measured.
    pub reports: &'a [Report],
    /// What the behaviour suite printed, if anybody kept it.
    pub behavior: Option<&'a BehaviorResults>,
    /// The axis that a person says it is better on.
    pub statement: Option<&'a Statement>,
}

/// What a person says of a backend that is worse in some figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// On which axis it is better.
    pub axis: String,
    /// What that costs.
    pub trade_off: String,
}

/// Whether a rule is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is.
    Kept,
    /// It is not.
    Broken,
    /// Nobody showed it, which is no better.
    NotShown,
}

impl Outcome {
    fn of(kept: bool) -> Self {
        if kept { Self::Kept } else { Self::Broken }
    }
}

/// A rule and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// The rule.
    pub rule: String,
    /// What was found, with its bound.
    pub figure: String,
    /// Whether it is kept.
    pub outcome: Outcome,
    /// Whether the verdict rests on it.
    pub required: bool,
}

/// What the gate says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As good as the other or better, everywhere that counts.
    Accepted,
    /// Worse somewhere, and clearly better on this axis, with the trade-off recorded.
    BetterOnAxis {
        /// The axis.
        axis: String,
        /// What it costs, in a person's words.
        trade_off: String,
    },
    /// Not accepted.
    Rejected,
}

/// The gate's whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    /// `consort-accept/1`.
    pub schema: String,
    /// Who wants to be accepted.
    pub backend: String,
    /// Against whom.
    pub against: String,
    /// What the gate says.
    pub verdict: Verdict,
    /// Why the verdict is provisional. Empty: it is final.
    pub provisional: Vec<String>,
    /// What every backend must keep.
    pub conditions: Vec<Judged>,
    /// Parity, figure by figure.
    pub parity: Vec<Judged>,
    /// The axes, figure by figure.
    pub axes: Vec<Judged>,
    /// The reports, by title.
    pub reports: Vec<String>,
}

/// Judges.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] when no report measured both, when they were reached in different ways, or when the
/// statement names no axis of the rules.
pub fn judge(rules: &Rules, case: &Case<'_>) -> Result<Acceptance> {
    let refuse = |message: &str| {
        Err(Error::new(ErrorKind::InvalidRequest, message)
            .with_operation("bench::accept")
            .with_context("backend", case.backend.to_owned())
            .with_context("against", case.against.to_owned()))
    };
    let both: Vec<&Report> = case.reports.iter().filter(|report| about(report, case.backend).is_some()).collect();
    let both: Vec<&Report> = both.into_iter().filter(|report| about(report, case.against).is_some()).collect();
    let Some(first) = both.first() else { return refuse("no report measured both") };
    let pairs = both.iter().filter_map(|report| Some((about(report, case.backend)?, about(report, case.against)?)));
    if pairs.into_iter().any(|(one, other)| one.transport != other.transport) {
        return refuse("one was measured in process and the other over HTTP, which is no comparison");
    }
    if let Some(statement) = case.statement
        && (statement.trade_off.trim().is_empty() || !rules.axis.iter().any(|axis| axis.name == statement.axis))
    {
        return refuse("a statement names an axis of the rules, and what it costs");
    }

    let provisional = provisional(rules, &both, case.backend);
    let mut conditions = vec![optimised(&both), same_model(&both, case), device(rules, &both, case.backend)];
    conditions.extend(behavior(rules, case, first));
    conditions.extend(quality(rules, &both, case));
    conditions.push(failures(&both, case.backend));
    conditions.push(envelope(rules, &both, case.backend, provisional.is_empty()));

    let parity: Vec<Judged> = rules
        .parity
        .iter()
        .map(|rule| {
            let found = advantage(&both, &rule.figure, case);
            judged(&rule.name, &rule.figure, found, |found| found.advantage >= rule.at_least, rule.at_least)
        })
        .collect();
    let (mut axes, mut better) = (Vec::new(), None);
    for axis in &rules.axis {
        let figures: Vec<Judged> = axis
            .figures
            .iter()
            .map(|figure| {
                let found = advantage(&both, figure, case);
                // What is stated may cost so much; what is measured must be more than noise.
                let kept = |found: &Difference| found.advantage >= axis.at_least && (axis.stated || !found.is_noise());
                judged(&axis.name, figure, found, kept, axis.at_least)
            })
            .collect();
        let stated = case.statement.filter(|statement| statement.axis == axis.name);
        if let Some(statement) = stated.filter(|_| figures.iter().all(|rule| rule.outcome == Outcome::Kept)) {
            better.get_or_insert_with(|| statement.clone());
        }
        axes.extend(figures);
    }

    let kept = |rules: &[Judged]| rules.iter().all(|rule| !rule.required || rule.outcome == Outcome::Kept);
    let verdict = match better {
        _ if !kept(&conditions) => Verdict::Rejected,
        _ if parity.iter().all(|rule| rule.outcome == Outcome::Kept) => Verdict::Accepted,
        Some(statement) => Verdict::BetterOnAxis { axis: statement.axis, trade_off: statement.trade_off },
        None => Verdict::Rejected,
    };
    Ok(Acceptance {
        schema: "consort-accept/1".into(),
        backend: case.backend.to_owned(),
        against: case.against.to_owned(),
        verdict,
        provisional,
        conditions,
        parity,
        axes,
        reports: both.iter().map(|report| report.title.clone()).collect(),
    })
}

fn about<'r>(report: &'r Report, target: &str) -> Option<&'r About> {
    report.targets.iter().find(|about| about.name == target)
}

fn condition(rule: &str, figure: impl Into<String>, outcome: Outcome) -> Judged {
    Judged { rule: rule.to_owned(), figure: figure.into(), outcome, required: true }
}

/// Why a verdict is not final: another model, other hardware.
fn provisional(rules: &Rules, reports: &[&Report], backend: &str) -> Vec<String> {
    let seed = &rules.seed;
    let mut reasons = Vec::new();
    for report in reports {
        let Some(about) = about(report, backend) else { continue };
        let right_model = about.model.as_ref().is_some_and(|model| {
            model.architecture == seed.architecture
                && model.layers == seed.layers
                && model.hidden_size == seed.hidden_size
                && model.weight_type == seed.weight_type
                && (seed.synthetic || !model.source.starts_with("synthetic:"))
        });
        if !right_model {
            let source = about.model.as_ref().map_or("unknown", |model| model.source.as_str());
            reasons.push(format!("{}: the model is {source}, and {} counts", report.title, seed.model));
        }
        let right_device = about.evidence.as_ref().is_some_and(|found| {
            let kind = found.device.split(':').next().unwrap_or_default();
            seed.devices.iter().any(|device| device == kind)
                && seed.device_names.iter().any(|name| found.device_name.starts_with(name.as_str()))
        });
        if !right_device {
            let device = about.evidence.as_ref().map_or("not seen", |found| found.device_name.as_str());
            reasons.push(format!("{}: the device is {device}, and {} counts", report.title, seed.hardware));
        }
    }
    reasons.sort();
    reasons.dedup();
    reasons
}

fn optimised(reports: &[&Report]) -> Judged {
    let all = reports.iter().all(|report| report.optimised);
    let figure = if all { "it was" } else { "a report is of a program without optimisation" };
    condition("compiled with optimisation", figure, Outcome::of(all))
}

/// Speed with another model is no speed.
fn same_model(reports: &[&Report], case: &Case<'_>) -> Judged {
    let rule = "the same model file";
    for report in reports {
        let of = |name| about(report, name).and_then(|about| about.model.as_ref());
        let (Some(one), Some(other)) = (of(case.backend), of(case.against)) else {
            return condition(rule, format!("not seen in {}", report.title), Outcome::NotShown);
        };
        if (&one.source, one.parameters, &one.weight_type) != (&other.source, other.parameters, &other.weight_type) {
            return condition(rule, format!("{} and {}", one.source, other.source), Outcome::Broken);
        }
    }
    condition(rule, "it was", Outcome::Kept)
}

fn device(rules: &Rules, reports: &[&Report], backend: &str) -> Judged {
    let rule = "accelerated only";
    if !rules.device.accelerated {
        return condition(rule, "not asked for", Outcome::Kept);
    }
    for report in reports {
        let Some(found) = about(report, backend).and_then(|about| about.evidence.as_ref()) else {
            return condition(rule, format!("no device evidence in {}", report.title), Outcome::NotShown);
        };
        let seen = format!("{} ({}), by {}", found.device, found.device_name, found.established_by.replace('_', " "));
        if !found.accelerator || !found.strays.is_empty() {
            let strays = if found.strays.is_empty() { String::new() } else { format!("; {}", found.strays.join(", ")) };
            return condition(rule, format!("{seen}{strays}"), Outcome::Broken);
        }
    }
    let seen = reports.first().and_then(|report| about(report, backend)?.evidence.as_ref());
    condition(rule, seen.map_or_else(String::new, |found| found.device_name.clone()), Outcome::Kept)
}

/// The suite knows a backend by its engine's name.
fn behavior(rules: &Rules, case: &Case<'_>, report: &Report) -> Vec<Judged> {
    let engine = about(report, case.backend).map_or(case.backend, |about| about.engine.as_str());
    let of = |suite: &String| {
        let rule = format!("behaviour suite `{suite}` green");
        match case.behavior.and_then(|results| results.of(suite, engine)) {
            None => condition(&rule, format!("no result of {engine}"), Outcome::NotShown),
            Some(found) => {
                // A filter on the command line leaves the profile content with what did not run. The gate is not.
                let all = found.executed == found.registered && found.executed >= rules.behavior.cases;
                let kept = found.complete && found.failed.is_empty() && all;
                let failed = match found.failed.as_slice() {
                    [] if found.complete => String::new(),
                    [] => "; the profile's requirements are not met".into(),
                    failed => format!("; {} failed, the first is {}", failed.len(), failed[0]),
                };
                let figure = format!("{} of {} cases ran{failed}", found.executed, found.registered);
                condition(&rule, figure, Outcome::of(kept))
            }
        }
    };
    rules.behavior.suites.iter().map(of).collect()
}

fn quality(rules: &Rules, reports: &[&Report], case: &Case<'_>) -> Vec<Judged> {
    let all: Vec<&Quality> = reports
        .iter()
        .flat_map(|report| &report.quality)
        .filter(|quality| quality.other == case.backend && quality.reference == case.against)
        .collect();
    let bounds = &rules.quality;
    type Value = fn(&Quality) -> f64;
    let rules: [(&str, Value, f64, bool); 4] = [
        ("KL divergence, mean", |found| found.divergence.kl.mean, bounds.kl_mean, true),
        ("KL divergence, 99.9%", |found| found.divergence.kl.p99_9, bounds.kl_p99_9, true),
        ("same first choice", |found| found.divergence.top1_agreement, bounds.top1_agreement, false),
        ("ratio of the perplexities", |found| found.divergence.perplexity_ratio, bounds.perplexity_ratio, true),
    ];
    rules
        .into_iter()
        .map(|(rule, value, bound, at_most)| {
            let rule = format!("quality: {rule}");
            // The worst of all texts and models counts.
            let values = all.iter().map(|found| value(found));
            let worst = if at_most { values.reduce(f64::max) } else { values.reduce(f64::min) };
            match worst {
                None => condition(&rule, "not measured", Outcome::NotShown),
                Some(worst) => {
                    let kept = if at_most { worst <= bound } else { worst >= bound };
                    let word = if at_most { "at most" } else { "at least" };
                    condition(&rule, format!("{worst:.5}, {word} {bound}"), Outcome::of(kept))
                }
            }
        })
        .collect()
}

fn failures(reports: &[&Report], backend: &str) -> Judged {
    let mut failed = 0;
    for report in reports {
        let place = report.targets.iter().position(|about| about.name == backend);
        let own = report.blocks.iter().filter(|block| Some(block.target) == place).flat_map(|block| &block.groups);
        failed +=
            own.filter(|(name, _)| *name != crate::live::WHOLE_BLOCK).map(|(_, found)| found.failed).sum::<usize>();
    }
    condition("no request failed", format!("{failed} failed"), Outcome::of(failed == 0))
}

/// Required where the verdict is final: elsewhere it says something of another machine.
fn envelope(rules: &Rules, reports: &[&Report], backend: &str, required: bool) -> Judged {
    let (figure, bound) = (&rules.envelope.figure, rules.envelope.at_least);
    let found =
        of_workload(reports, &figure.workload).find_map(|report| report.row(backend, &figure.group, figure.metric));
    let rule = "envelope: fair share kept beside other work";
    let judged = match found {
        None => condition(rule, "not measured", Outcome::NotShown),
        Some(row) => {
            let value = row.summary.median;
            condition(rule, format!("{value:.2}, at least {bound}"), Outcome::of(value >= bound))
        }
    };
    Judged { required, ..judged }
}

fn of_workload<'r>(reports: &[&'r Report], name: &str) -> impl Iterator<Item = &'r Report> {
    let own: Vec<_> = reports.iter().copied().filter(|report| report.workload.settings.name() == name).collect();
    own.into_iter()
}

/// `Err` says why there is no figure that counts.
fn advantage(reports: &[&Report], figure: &Figure, case: &Case<'_>) -> Result<Difference, String> {
    let report = of_workload(reports, &figure.workload).next();
    let report = report.ok_or_else(|| format!("no report of {}", figure.workload))?;
    let row = |target: &str| report.row(target, &figure.group, figure.metric);
    let (Some(one), Some(other)) = (row(case.backend), row(case.against)) else {
        return Err("not measured of both".into());
    };
    let found = Difference::paired(figure.metric, &one.summary, &other.summary).ok_or("it has no ratio")?;
    // The factors of the blocks are what counts; where they scatter, nothing is shown.
    if (found.most - found.least) / found.advantage > 2.0 * crate::report::NOISY_SPREAD {
        return Err(format!("too uncertain: {:.2}× ({:.2}–{:.2})", found.advantage, found.least, found.most));
    }
    Ok(found)
}

fn judged(
    name: &str,
    figure: &Figure,
    found: Result<Difference, String>,
    kept: impl Fn(&Difference) -> bool,
    bound: f64,
) -> Judged {
    let metric: Metric = figure.metric;
    let rule = format!("{name} ({}: {}, {})", figure.workload, figure.group, metric.title());
    match found {
        Err(why) => condition(&rule, why, Outcome::NotShown),
        Ok(found) => {
            let text = format!(
                "{:.2}× ({:.2}–{:.2}), at least {bound:.2}×{}",
                found.advantage,
                found.least,
                found.most,
                if found.is_noise() { "; within noise" } else { "" }
            );
            condition(&rule, text, Outcome::of(kept(&found)))
        }
    }
}

impl Acceptance {
    /// Writes `accept-BACKEND-against-OTHER.json` and `.md` into a folder, and gives their paths.
    ///
    /// # Errors
    /// Those of writing.
    pub fn save(&self, folder: &Path) -> Result<[PathBuf; 2]> {
        let name = format!("accept-{}-against-{}", self.backend, self.against);
        crate::report::check_name(&name)?;
        let json = serde_json::to_string_pretty(self)
            .map_err(|source| Error::new(ErrorKind::Unexpected, "a verdict is no JSON").with_source(source))?;
        std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
        let paths = [folder.join(format!("{name}.json")), folder.join(format!("{name}.md"))];
        for (path, text) in paths.iter().zip([json + "\n", self.markdown()]) {
            std::fs::write(path, text).map_err(|source| Error::io(path, source))?;
        }
        Ok(paths)
    }
}
