//! From requests as they went to figures.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::trace::{Outcome, Trace};
use crate::statistics::percentile;

/// A figure that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// From asking to the first token: the median over requests, in milliseconds.
    FirstTokenP50,
    /// The same: the 95th percentile.
    FirstTokenP95,
    /// From one token of a reply to the next: the median, in milliseconds.
    InterTokenP50,
    /// The same: the 95th percentile.
    InterTokenP95,
    /// The same: the 99th percentile.
    InterTokenP99,
    /// Tokens a second of one stream after its first: the median over requests.
    StreamRate,
    /// Tokens a second of all streams together, from the first request's start to the last one's end.
    AggregateRate,
    /// Prompt tokens that were computed, by the time to the first token, for requests that no other overlapped: tokens a
    /// second. The first step of decoding is in that time.
    PrefillRate,
    /// The share of prompt tokens that came from a cache, from 0 to 1.
    ReusedShare,
    /// The most resident memory of the process, in bytes.
    PeakMemory,
    /// What the backend holds for model, sequences and caches, in bytes.
    ModelMemory,
    /// Processor time for each token of a reply, prompts included, in seconds.
    CpuSecondsPerToken,
    /// The aggregate rate beside a neighbour, by the same alone, by the share that is due (`1` is all that is due).
    FairShareKept,
    /// The neighbour's own speed beside the target, by its speed alone on its cores.
    NeighbourSpeed,
}

/// Which way a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
}

impl Metric {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 14] = [
        Self::FirstTokenP50,
        Self::FirstTokenP95,
        Self::InterTokenP50,
        Self::InterTokenP95,
        Self::InterTokenP99,
        Self::StreamRate,
        Self::AggregateRate,
        Self::PrefillRate,
        Self::ReusedShare,
        Self::PeakMemory,
        Self::ModelMemory,
        Self::CpuSecondsPerToken,
        Self::FairShareKept,
        Self::NeighbourSpeed,
    ];

    /// The name in tables, with the unit.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::FirstTokenP50 => "first token p50, ms",
            Self::FirstTokenP95 => "first token p95, ms",
            Self::InterTokenP50 => "inter-token p50, ms",
            Self::InterTokenP95 => "inter-token p95, ms",
            Self::InterTokenP99 => "inter-token p99, ms",
            Self::StreamRate => "one stream, tokens/s",
            Self::AggregateRate => "all streams, tokens/s",
            Self::PrefillRate => "prefill, tokens/s",
            Self::ReusedShare => "prompt reused, %",
            Self::PeakMemory => "peak resident, MiB",
            Self::ModelMemory => "held by the backend, MiB",
            Self::CpuSecondsPerToken => "processor ms a token",
            Self::FairShareKept => "fair share kept, %",
            Self::NeighbourSpeed => "neighbour's speed, %",
        }
    }

    /// Which way it is better.
    #[must_use]
    pub fn better(self) -> Better {
        match self {
            Self::StreamRate
            | Self::AggregateRate
            | Self::PrefillRate
            | Self::ReusedShare
            | Self::FairShareKept
            | Self::NeighbourSpeed => Better::Higher,
            _ => Better::Lower,
        }
    }

    /// The value in the unit of [`title`](Self::title), for people.
    #[must_use]
    pub fn show(self, value: f64) -> String {
        let value = match self {
            Self::PeakMemory | Self::ModelMemory => value / f64::from(1 << 20),
            Self::ReusedShare | Self::FairShareKept | Self::NeighbourSpeed => 100.0 * value,
            Self::CpuSecondsPerToken => 1000.0 * value,
            _ => value,
        };
        match value.abs() {
            size if size >= 100.0 => format!("{value:.0}"),
            size if size >= 10.0 => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        }
    }
}

/// What a group of requests came to in one block.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupFigures {
    /// Requests that ended by themselves.
    pub finished: usize,
    /// Requests that the workload cancelled.
    pub cancelled: usize,
    /// Requests that failed. Their times are in no figure.
    pub failed: usize,
    /// What the first of them failed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Prompt tokens, where the target counts them.
    pub prompt_tokens: Option<u64>,
    /// Of these, from a cache, where the target says.
    pub reused_tokens: Option<u64>,
    /// Tokens of replies.
    pub completion_tokens: u64,
    /// Tokens that an event brought, on average. Above 1 the gaps between tokens within an event are not seen.
    pub tokens_per_event: f64,
    /// The figures that could be had.
    pub figures: BTreeMap<Metric, f64>,
}

/// The figures of all requests of one group. `all` are those of the whole block, to know who was alone.
pub(super) fn of_group(traces: &[&Trace], all: &[Trace]) -> GroupFigures {
    let mut found = GroupFigures::default();
    let (mut firsts, mut gaps, mut rates, mut alone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut prompt, mut reused, mut events) = (Some(0), Some(0), 0_u64);
    for trace in traces {
        match &trace.outcome {
            Outcome::Failed(message) => {
                found.failed += 1;
                found.failure.get_or_insert_with(|| message.clone());
                continue;
            }
            Outcome::Cancelled => found.cancelled += 1,
            Outcome::Finished(counted) => {
                found.finished += 1;
                let sum = |total: Option<u64>, part: Option<u64>| Some(total? + part?);
                prompt = sum(prompt, counted.prompt);
                reused = sum(reused, counted.reused);
                let computed = counted.prompt.map(|prompt| prompt.saturating_sub(counted.reused.unwrap_or(0)));
                if let (Some(first), Some(computed)) = (trace.first_token(), computed)
                    && !overlapped(trace, all)
                {
                    alone.push(computed as f64 / first.as_secs_f64().max(1e-9));
                }
            }
        }
        firsts.extend(trace.first_token().map(|time| 1e3 * time.as_secs_f64()));
        trace.gaps(&mut gaps);
        rates.extend(trace.rate());
        found.completion_tokens += trace.tokens();
        events += trace.beats.len() as u64;
    }
    // Of cancelled requests nobody says how long their prompts were.
    if found.finished > 0 {
        (found.prompt_tokens, found.reused_tokens) = (prompt, reused);
    }
    found.tokens_per_event = found.completion_tokens as f64 / events.max(1) as f64;
    let mut set = |metric: Metric, value: Option<f64>| {
        found.figures.extend(value.filter(|value| value.is_finite()).map(|value| (metric, value)));
    };
    set(Metric::FirstTokenP50, quantile(&mut firsts, 0.5));
    set(Metric::FirstTokenP95, quantile(&mut firsts, 0.95));
    gaps.iter_mut().for_each(|gap| *gap *= 1e3);
    for (metric, at) in [(Metric::InterTokenP50, 0.5), (Metric::InterTokenP95, 0.95), (Metric::InterTokenP99, 0.99)] {
        set(metric, quantile(&mut gaps, at));
    }
    set(Metric::StreamRate, quantile(&mut rates, 0.5));
    set(Metric::AggregateRate, aggregate(traces));
    set(Metric::PrefillRate, quantile(&mut alone, 0.5));
    let (prompt, reused) = (found.prompt_tokens, found.reused_tokens);
    if let (Some(prompt @ 1..), Some(reused)) = (prompt, reused) {
        found.figures.insert(Metric::ReusedShare, reused as f64 / prompt as f64);
    }
    found
}

/// Tokens a second of all requests together. The groups of a room's rounds lie apart in time, so what lies between two
/// requests of the group while none of it runs does not count.
fn aggregate(traces: &[&Trace]) -> Option<f64> {
    let mut spans: Vec<(Instant, Instant)> = Vec::new();
    let mut tokens = 0;
    for trace in traces.iter().filter(|trace| !matches!(trace.outcome, Outcome::Failed(_))) {
        spans.push((trace.start, trace.end));
        tokens += trace.tokens();
    }
    spans.sort();
    let (mut seconds, mut reached) = (0.0, spans.first()?.0);
    for (start, end) in spans {
        let from = start.max(reached);
        seconds += end.saturating_duration_since(from).as_secs_f64();
        reached = reached.max(end);
    }
    (seconds > 0.0 && tokens > 0).then(|| tokens as f64 / seconds)
}

/// Whether another request ran between this one's start and its first token.
fn overlapped(trace: &Trace, all: &[Trace]) -> bool {
    let until = trace.first_token().map_or(trace.end, |first| trace.start + first);
    let others = all.iter().filter(|other| !std::ptr::eq(*other, trace));
    others.into_iter().any(|other| other.start < until && other.end > trace.start)
}

fn quantile(values: &mut [f64], at: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    (!values.is_empty()).then(|| percentile(values, at))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::super::target::Counted;
    use super::*;

    fn trace(base: Instant, start: u64, beats: &[(u64, u32)], end: u64, outcome: Outcome) -> Trace {
        let at = |ms| base + Duration::from_millis(ms);
        Trace {
            group: "g".into(),
            start: at(start),
            end: at(end),
            beats: beats.iter().map(|&(ms, count)| (at(ms), count)).collect(),
            outcome,
        }
    }

    fn counted(prompt: u64, reused: Option<u64>, completion: u64) -> Outcome {
        Outcome::Finished(Counted { prompt: Some(prompt), reused, completion: Some(completion) })
    }

    fn figures(traces: &[Trace]) -> GroupFigures {
        of_group(&traces.iter().collect::<Vec<_>>(), traces)
    }

    #[test]
    fn a_request_alone() {
        let base = Instant::now();
        let beats: Vec<_> = (0..5).map(|index| (100 + 10 * index, 1)).collect();
        let found = figures(&[trace(base, 0, &beats, 140, counted(50, Some(10), 5))]);
        let of = |metric| found.figures[&metric];
        let near = |one: f64, other: f64| (one - other).abs() < 1e-6 * other.abs().max(1.0);
        assert!(near(of(Metric::FirstTokenP50), 100.0) && near(of(Metric::InterTokenP99), 10.0));
        assert!(near(of(Metric::StreamRate), 100.0) && near(of(Metric::AggregateRate), 5.0 / 0.14));
        assert!(near(of(Metric::PrefillRate), 400.0) && near(of(Metric::ReusedShare), 0.2));
        assert_eq!((found.finished, found.completion_tokens, found.tokens_per_event), (1, 5, 1.0));
    }

    #[test]
    fn several_tokens_an_event_are_spread_over_its_time() {
        let base = Instant::now();
        // In process: the event says that it brought four.
        let found = figures(&[trace(base, 0, &[(10, 1), (50, 4)], 50, counted(5, None, 5))]);
        assert!((found.figures[&Metric::InterTokenP50] - 10.0).abs() < 1e-6);
        assert!((found.figures[&Metric::StreamRate] - 100.0).abs() < 1e-6);
        // HTTP: three events, and the usage says that there were six tokens.
        let found = figures(&[trace(base, 0, &[(10, 1), (30, 1), (50, 1)], 50, counted(5, None, 6))]);
        assert_eq!(found.tokens_per_event, 2.0);
        assert!((found.figures[&Metric::InterTokenP50] - 10.0).abs() < 1e-6);
        assert!((found.figures[&Metric::StreamRate] - 100.0).abs() < 1e-6);
        assert!(!found.figures.contains_key(&Metric::ReusedShare));
    }

    #[test]
    fn what_failed_is_counted_and_not_timed() {
        let base = Instant::now();
        let found = figures(&[
            trace(base, 0, &[(10, 1), (20, 1)], 20, counted(4, Some(0), 2)),
            trace(base, 5, &[(6, 1)], 7, Outcome::Failed("cut".into())),
            trace(base, 30, &[(40, 1)], 41, Outcome::Cancelled),
        ]);
        assert_eq!((found.finished, found.failed, found.cancelled), (1, 1, 1));
        assert_eq!(found.failure.as_deref(), Some("cut"));
        assert!((found.figures[&Metric::FirstTokenP50] - 10.0).abs() < 1e-6);
        // The failed one ran meanwhile, so nobody was alone.
        assert!(!found.figures.contains_key(&Metric::PrefillRate));
        // 3 tokens in 20 + 11 ms: the pause between does not count.
        assert!((found.figures[&Metric::AggregateRate] - 3.0 / 0.031).abs() < 1e-3);
        assert!(figures(&[]).figures.is_empty());
    }

    #[test]
    fn every_metric_has_a_title_of_its_own() {
        let titles: std::collections::BTreeSet<_> = Metric::ALL.iter().map(|metric| metric.title()).collect();
        assert_eq!(titles.len(), Metric::ALL.len());
        assert_eq!(Metric::PeakMemory.show(1048576.0), "1.00");
        assert_eq!(Metric::CpuSecondsPerToken.show(0.5), "500");
    }
}
