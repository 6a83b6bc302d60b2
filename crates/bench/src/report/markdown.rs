//! The report for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{NOISY_SPREAD, Quality, Report, Summary};
use crate::live::{Metric, Transport};

impl Report {
    /// The report as Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "# {}: `{}`\n", self.title, self.workload.settings.name());
        let _ = writeln!(text, "Written by `{}`.\n", cell(&self.command));
        let machine = &self.machine;
        let _ = writeln!(
            text,
            "{}, {} of {} threads usable, {} on {}. Accelerators: {}. {} blocks on each target, in turns; each figure is the \
             median (smallest–largest) over them, and ~ marks what spreads by more than {:.0}%.\n",
            machine.processor,
            machine.usable_threads,
            machine.threads,
            machine.system,
            machine.architecture,
            if machine.accelerators.is_empty() { "none".into() } else { machine.accelerators.join(", ") },
            self.workload.repeats,
            100.0 * NOISY_SPREAD,
        );
        let settings = serde_json::to_string(&self.workload.settings).unwrap_or_default();
        let _ =
            writeln!(text, "Workload: `{settings}`, seed {}, digest `{}`.\n", self.workload.seed, self.workload.digest);
        if !self.notes.is_empty() {
            text.push_str("## To be known\n\n");
            for note in &self.notes {
                let _ = writeln!(text, "- {}", note.replace('\n', " "));
            }
            text.push('\n');
        }
        self.targets_table(&mut text);
        for transport in [Transport::InProcess, Transport::Http] {
            self.figures(&mut text, transport);
        }
        self.searches(&mut text);
        quality(&mut text, &self.quality);
        self.machine_log(&mut text);
        text
    }

    fn targets_table(&self, text: &mut String) {
        text.push_str(
            "## Targets\n\n| name | reached | engine | model | device | settings |\n|---|---|---|---|---|---|\n",
        );
        for target in &self.targets {
            let model = target.model.as_ref().map_or_else(
                || "as the server says".into(),
                |model| {
                    format!(
                        "{} ({}, {} layers of {}, {})",
                        model.source, model.architecture, model.layers, model.hidden_size, model.weight_type
                    )
                },
            );
            let device = target.evidence.as_ref().map_or_else(
                || "not seen".into(),
                |found| {
                    format!("{} ({}), by {}", found.device, found.device_name, found.established_by.replace('_', " "))
                },
            );
            let settings: Vec<_> = target.settings.iter().map(|(key, value)| format!("{key}: {value}")).collect();
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} |",
                cell(&target.name),
                target.transport.describe(),
                cell(&target.engine),
                cell(&model),
                cell(&device),
                cell(&settings.join("; "))
            );
        }
        text.push('\n');
    }

    /// The tables of all targets that are reached alike.
    fn figures(&self, text: &mut String, transport: Transport) {
        let targets: Vec<_> = self.targets.iter().filter(|target| target.transport == transport).collect();
        let Some(first) = targets.first() else { return };
        let _ = writeln!(text, "## Figures, {}\n", transport.describe());
        let measured = |group: &&String| {
            self.rows.iter().any(|row| row.group == **group && targets.iter().any(|target| target.name == row.target))
        };
        for group in self.workload.groups.iter().filter(measured) {
            let _ = write!(text, "### {group}\n\n| |");
            for target in &targets {
                let _ = write!(text, " {} |", cell(&target.name));
            }
            for target in targets.iter().skip(1) {
                let _ = write!(text, " {} is better by, than {} |", cell(&first.name), cell(&target.name));
            }
            text.push_str("\n|---|");
            text.push_str(&"---:|".repeat(2 * targets.len() - 1));
            text.push('\n');
            for metric in Metric::ALL {
                let found: Vec<_> = targets.iter().map(|target| self.row(&target.name, group, metric)).collect();
                if found.iter().all(Option::is_none) {
                    continue;
                }
                let _ = write!(text, "| {} |", metric.title());
                for row in &found {
                    let _ = write!(text, " {} |", row.map_or_else(|| "-".into(), |row| show(metric, &row.summary)));
                }
                for other in found.iter().skip(1) {
                    let difference = match (found.first(), other) {
                        (Some(Some(one)), Some(other)) => {
                            super::Difference::paired(metric, &one.summary, &other.summary)
                        }
                        _ => None,
                    };
                    let shown = difference.map_or_else(
                        || "-".into(),
                        |found| {
                            let noise = if found.is_noise() { ", noise" } else { "" };
                            format!("{:.2}× ({:.2}–{:.2}{noise})", found.advantage, found.least, found.most)
                        },
                    );
                    let _ = write!(text, " {shown} |");
                }
                text.push('\n');
            }
            text.push('\n');
        }
        self.counts(text, transport);
    }

    /// How many requests and tokens stand behind the figures.
    fn counts(&self, text: &mut String, transport: Transport) {
        text.push_str(
            "| target | requests | finished | cancelled | failed | prompt tokens | reused | reply tokens |\n\
             |---|---|---:|---:|---:|---:|---:|---:|\n",
        );
        for (place, target) in self.targets.iter().enumerate().filter(|(_, target)| target.transport == transport) {
            let mut groups: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
            let mut tokens: BTreeMap<&str, (Option<u64>, Option<u64>, u64)> = BTreeMap::new();
            for block in self.blocks.iter().filter(|block| block.target == place) {
                for (name, found) in &block.groups {
                    let counts = groups.entry(name).or_default();
                    for (count, more) in counts.iter_mut().zip([found.finished, found.cancelled, found.failed]) {
                        *count += more;
                    }
                    let sums = tokens.entry(name).or_insert((Some(0), Some(0), 0));
                    let sum = |total: Option<u64>, more: Option<u64>| Some(total? + more?);
                    *sums = (
                        sum(sums.0, found.prompt_tokens),
                        sum(sums.1, found.reused_tokens),
                        sums.2 + found.completion_tokens,
                    );
                }
            }
            for name in &self.workload.groups {
                let Some([finished, cancelled, failed]) = groups.get(name.as_str()) else { continue };
                let (prompt, reused, completion) = tokens.get(name.as_str()).copied().unwrap_or_default();
                let known = |count: Option<u64>| count.map_or_else(|| "not said".into(), |count| count.to_string());
                let _ = writeln!(
                    text,
                    "| {} | {name} | {finished} | {cancelled} | {failed} | {} | {} | {completion} |",
                    cell(&target.name),
                    known(prompt),
                    known(reused)
                );
            }
        }
        text.push('\n');
    }

    fn searches(&self, text: &mut String) {
        for search in &self.searches {
            let _ = writeln!(text, "## Settings that were tried for {}\n", cell(&search.target));
            text.push_str("| settings | decode, tokens/s | prefill, tokens/s | |\n|---|---:|---:|---|\n");
            for (index, found) in search.candidates.iter().enumerate() {
                let settings: Vec<_> = found.variables.iter().map(|(key, value)| format!("{key}={value}")).collect();
                let rate = |rate: Option<f64>| rate.map_or_else(|| "-".into(), |rate| format!("{rate:.1}"));
                let remark = match &found.failure {
                    Some(failure) => cell(failure),
                    None if index == search.chosen => "**chosen**".into(),
                    None => String::new(),
                };
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | {remark} |",
                    cell(&settings.join(", ")),
                    rate(found.decode),
                    rate(found.prefill)
                );
            }
            text.push('\n');
        }
    }

    fn machine_log(&self, text: &mut String) {
        text.push_str(
            "## The machine, block by block\n\n| block | target | seconds | processor s | other programs, cores | stolen | \
             stream before / after, GB/s | resident before / peak / after, MiB |\n|---:|---|---:|---:|---:|---:|---:|---:|\n",
        );
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "unknown".into(), |value| format!("{value:.digits$}"))
        };
        for block in &self.blocks {
            let log = &block.machine;
            let mebibytes = |bytes: Option<u64>| number(bytes.map(|bytes| bytes as f64 / f64::from(1 << 20)), 0);
            let name = self.targets.get(block.target).map_or("", |target| target.name.as_str());
            let _ = writeln!(
                text,
                "| {} | {} | {:.1} | {} | {} | {} | {} / {} | {} / {}{} / {} |",
                block.block + 1,
                cell(name),
                log.seconds,
                number(log.cpu_seconds, 1),
                number(log.others_cores, 2),
                log.stolen.map_or_else(|| "unknown".into(), |share| format!("{:.1}%", 100.0 * share)),
                number(log.stream_before, 2),
                number(log.stream_after, 2),
                mebibytes(log.memory_before),
                mebibytes(log.peak_memory),
                if log.peak_is_of_block { "" } else { " (since its start)" },
                mebibytes(log.memory_after),
            );
        }
    }
}

fn quality(text: &mut String, all: &[Quality]) {
    if all.is_empty() {
        return;
    }
    text.push_str(
        "## Quality\n\nHow far distributions are from a reference's on the same tokens.\n\n| | against | model | text | tokens \
         | KL mean | KL 99.9% | same first choice | perplexity | reference's | ratio |\n\
         |---|---|---|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for quality in all {
        let found = &quality.divergence;
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {:.3e} | {:.3e} | {:.2}% | {:.4} | {:.4} | {:.5} |",
            cell(&quality.other),
            cell(&quality.reference),
            cell(&quality.model),
            cell(&quality.text),
            quality.tokens,
            found.kl.mean,
            found.kl.p99_9,
            100.0 * found.top1_agreement,
            found.other.perplexity,
            found.reference.perplexity,
            found.perplexity_ratio
        );
    }
    text.push('\n');
}

/// `12.3 (11.0–14.5)`.
pub(super) fn show(metric: Metric, summary: &Summary) -> String {
    let mark = if summary.is_noisy() { "~" } else { "" };
    format!("{mark}{} ({}–{})", metric.show(summary.median), metric.show(summary.least), metric.show(summary.most))
}

/// Text that stays in its cell.
pub(crate) fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}
