//! `consort bench compare` and `consort bench accept`: what a report says beside another, and beside the rules.

use std::path::{Path, PathBuf};

use clap::Args;
use consort_bench::accept::{BehaviorResults, Case, Rules, Statement, Verdict, judge};
use consort_bench::report::{Report, compare as compare_reports};
use consort_core::{Error, ErrorKind, Result};

use crate::output::{self, Table, styled};

/// Arguments of `consort bench compare`.
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// A report's JSON.
    pub first: PathBuf,
    /// Another's; the same file compares two targets of one run, block by block.
    pub second: PathBuf,
    /// The target of the first report. Default: its first.
    #[arg(long, value_name = "NAME")]
    pub one: Option<String>,
    /// The target of the second report. Default: that of the same name, else its first; in one report the second.
    #[arg(long, value_name = "NAME")]
    pub other: Option<String>,
}

/// Arguments of `consort bench accept`.
#[derive(Args, Clone, Debug)]
pub struct AcceptArgs {
    /// The target that wants to be accepted, by its name in the reports.
    #[arg(long, value_name = "NAME")]
    pub backend: String,
    /// The target that it is held against.
    #[arg(long, value_name = "NAME", default_value = "llamacpp")]
    pub against: String,
    /// A report's JSON in which both were measured. Repeat: the rules look at `room` and `neighbour`.
    #[arg(long = "report", value_name = "FILE", required = true)]
    pub reports: Vec<PathBuf>,
    /// The saved output of the behaviour suite (cargo test -p consort-behavior). Without it the suite counts as not shown.
    #[arg(long, value_name = "FILE")]
    pub behavior: Option<PathBuf>,
    /// Other rules than the seed's.
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// The axis on which it is better although it is worse elsewhere.
    #[arg(long, value_name = "NAME", requires = "trade_off")]
    pub axis: Option<String>,
    /// What that costs, in words.
    #[arg(long, value_name = "TEXT", requires = "axis")]
    pub trade_off: Option<String>,
    /// Write the verdict into this folder, as JSON and as Markdown.
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

/// Shows two targets beside each other.
pub fn compare(args: &CompareArgs) -> Result<()> {
    let first = Report::open(&args.first)?;
    let same = same_file(&args.first, &args.second);
    let second = if same { None } else { Some(Report::open(&args.second)?) };
    let second = second.as_ref().unwrap_or(&first);
    let one = choose(&first, args.one.as_deref(), 0)?;
    let other = match &args.other {
        Some(name) => choose(second, Some(name), 0)?,
        None if same => choose(second, None, 1)?,
        None if second.targets.iter().any(|target| target.name == one) => one.clone(),
        None => choose(second, None, 0)?,
    };
    let transport = |report: &Report, name: &str| {
        report.targets.iter().find(|target| target.name == name).map(|target| target.transport)
    };
    if transport(&first, &one) != transport(second, &other) {
        anstream::println!("One was measured in process and the other over HTTP, which costs time of its own.\n");
    }
    if first.workload.digest != second.workload.digest {
        anstream::println!("The two reports measured different workloads.\n");
    }
    let mut table = Table::new(["figure", "one", "other", "one is better by", ""]);
    for found in compare_reports(&first, &one, second, &other) {
        let difference = found.difference;
        table.row([
            format!("{}: {}", found.group, found.metric.title()),
            found.metric.show(found.one.median),
            found.metric.show(found.other.median),
            format!("{:.2}× ({:.2}–{:.2})", difference.advantage, difference.least, difference.most),
            difference.verdict().to_owned(),
        ]);
    }
    anstream::print!("{}", table.render());
    let how = if same { "block by block within one run" } else { "medians; the range spans the extremes of both runs" };
    anstream::println!("{}", styled(output::FAINT, &format!("one: {one}, other: {other}; {how}")));
    Ok(())
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

fn choose(report: &Report, name: Option<&str>, place: usize) -> Result<String> {
    let names: Vec<&str> = report.targets.iter().map(|target| target.name.as_str()).collect();
    let found = match name {
        Some(name) => names.iter().find(|known| **known == name),
        None => names.get(place),
    };
    found.map(ToString::to_string).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "the report does not have this target")
            .with_context("target", name.unwrap_or("a second one"))
            .with_context("targets", names.join(", "))
    })
}

/// Judges a backend. A rejection is an answer and no error.
pub fn accept(args: &AcceptArgs) -> Result<()> {
    let rules = args.rules.as_deref().map_or_else(Rules::seed, Rules::open)?;
    let reports = args.reports.iter().map(|path| Report::open(path)).collect::<Result<Vec<_>>>()?;
    let behavior = args.behavior.as_deref().map(BehaviorResults::open).transpose()?;
    let statement =
        args.axis.clone().zip(args.trade_off.clone()).map(|(axis, trade_off)| Statement { axis, trade_off });
    let found = judge(
        &rules,
        &Case {
            backend: &args.backend,
            against: &args.against,
            reports: &reports,
            behavior: behavior.as_ref(),
            statement: statement.as_ref(),
        },
    )?;
    match &args.output {
        None => anstream::print!("{}", output::printable_lines(&found.markdown())),
        Some(folder) => {
            let style = if found.verdict == Verdict::Rejected { output::BAD } else { output::GOOD };
            anstream::println!("{}", styled(style, &found.headline()));
            for path in found.save(folder)? {
                anstream::println!("{}", path.display());
            }
        }
    }
    Ok(())
}
