//! `consort bench compare` and `consort bench accept`: what a report says beside another, and beside the rules.

use std::path::{Path, PathBuf};

use clap::Args;
use consort_bench::accept::{BehaviorResults, Case, Rules, Statement, Verdict, judge};
use consort_bench::report::{Report, compare as compare_reports};
use consort_core::{Error, ErrorKind, Result};

use super::live::{self, LiveArgs, NeighbourArgs, RoomArgs, RoomWithPicturesArgs};
use super::targets::TargetArgs;
use crate::model_args::DeviceArgs;
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
    /// The target that wants to be accepted, by its name in the reports; without reports, a backend as `bench room` takes it.
    #[arg(long, value_name = "NAME")]
    pub backend: String,
    /// The target that it is held against, in the same way.
    #[arg(long, value_name = "NAME", default_value = "llamacpp")]
    pub against: String,
    /// A report's JSON in which both were measured. Repeat: the rules look at `room` and `neighbour`. Without any, both are
    /// measured now, as backends of this process, and their quality too.
    #[arg(long = "report", value_name = "FILE")]
    pub reports: Vec<PathBuf>,
    #[command(flatten)]
    pub now: MeasureArgs,
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
    /// Write the verdict into this folder, as JSON and as Markdown; and the reports, where they are made now.
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

/// How `accept` measures where it is given no reports.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Without --report")]
pub struct MeasureArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// A GGUF file, a folder that holds one, or synthetic:SIZE:MIX. Default: the bundled etude.
    #[arg(long, value_name = "PATH|NAME", conflicts_with = "reports")]
    pub model: Option<String>,
    /// Repeats; the median counts.
    #[arg(long, value_name = "N", default_value_t = 3, conflicts_with = "reports")]
    pub repeats: usize,
    #[command(flatten)]
    pub room: RoomArgs,
}

impl MeasureArgs {
    /// Measures both backends in a room, with their quality, and in a room beside other work that takes a core. Their names
    /// are those of the targets in the reports.
    fn reports(&self, pair: [&str; 2], output: Option<&Path>) -> Result<(Vec<Report>, [String; 2])> {
        let targets = TargetArgs {
            device: self.device.clone(),
            model: self.model.clone(),
            backends: pair.map(str::to_owned).to_vec(),
            ..TargetArgs::default()
        };
        let specs = targets.backend_specs()?.into_iter().map(|spec| spec.name);
        let names: [String; 2] = specs.collect::<Vec<_>>().try_into().unwrap_or_default();
        let live = |name: &str, quality| LiveArgs {
            repeats: self.repeats,
            name: Some(format!("accept-{}-{name}", names.join("-against-"))),
            quality,
            ..LiveArgs::new(targets.clone())
        };
        let neighbour = NeighbourArgs { room: self.room.clone(), neighbours: 1, pinned: true };
        let room = RoomWithPicturesArgs { room: self.room.clone(), images: 0, image_side: 256 };
        let all = [("room", true, room.settings(0)), ("neighbour", false, neighbour.settings(0))];
        let measured = all.map(|(name, quality, settings)| {
            let report = live::generated(settings, &live(name, quality))?;
            if let Some(folder) = output {
                live::publish(&report, Some(folder))?;
            }
            Ok(report)
        });
        let reports = measured.into_iter().collect::<Result<_>>()?;
        Ok((reports, names))
    }
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
    // What is given is read before anything is measured.
    let behavior = args.behavior.as_deref().map(BehaviorResults::open).transpose()?;
    let (reports, [backend, against]) = if args.reports.is_empty() {
        args.now.reports([&args.backend, &args.against], args.output.as_deref())?
    } else {
        if args.now.device.device.is_some() || args.now.device.threads.is_some() {
            let message = "--device and --threads are for measuring now, and these reports were measured already";
            return Err(Error::new(ErrorKind::InvalidConfig, message));
        }
        let reports = args.reports.iter().map(|path| Report::open(path)).collect::<Result<Vec<_>>>()?;
        (reports, [args.backend.clone(), args.against.clone()])
    };
    let statement =
        args.axis.clone().zip(args.trade_off.clone()).map(|(axis, trade_off)| Statement { axis, trade_off });
    let found = judge(
        &rules,
        &Case {
            backend: &backend,
            against: &against,
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
