//! `consort bench solo`, `room`, `churn`, `neighbour` and `replay`: the live-chat bench.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use consort::bundled;
use consort_bench::live::{
    ChurnConfig, NeighbourConfig, RoomConfig, RunConfig, Settings, SoloConfig, Step, Workload, run as run_workload,
};
use consort_bench::report::{Circumstances, Quality, Report};
use consort_bench::{QualityConfig, Subject, divergence};
use consort_core::{Error, ErrorKind, Result, SpecialTokens};
use indicatif::{ProgressBar, ProgressStyle};

use super::targets::TargetArgs;
use crate::output::{self, styled};

/// What is measured, how often, and where the report goes.
#[derive(Args, Clone, Debug)]
pub struct LiveArgs {
    #[command(flatten)]
    pub targets: TargetArgs,
    /// Repeats, each with words of its own; the median is reported, with the smallest and the largest.
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Run")]
    pub repeats: usize,
    /// The seed of every word.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Run")]
    pub seed: u64,
    /// Write NAME.json, NAME.md and NAME.svg into this folder. Without it the report is printed.
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    pub output: Option<PathBuf>,
    /// The report's name. Default: that of the workload.
    #[arg(long, value_name = "NAME", help_heading = "Run")]
    pub name: Option<String>,
    /// Measure quality beside speed: how far each backend in this process is from the last of them, on the same tokens.
    #[arg(long, help_heading = "Run")]
    pub quality: bool,
    /// The text for --quality. Default: etude's own conversations.
    #[arg(long, value_name = "FILE", requires = "quality", help_heading = "Run")]
    pub quality_text: Option<PathBuf>,
    /// Tokens of that text.
    #[arg(long, value_name = "N", default_value_t = 2048, requires = "quality", help_heading = "Run")]
    pub quality_tokens: usize,
    /// Do not measure the machine's stream rate before and after each block.
    #[arg(long, help_heading = "Run")]
    pub no_stream: bool,
}

impl LiveArgs {
    /// These targets, and everything else as the command line has it by default.
    pub fn new(targets: TargetArgs) -> Self {
        Self {
            targets,
            repeats: 3,
            seed: 1,
            output: None,
            name: None,
            quality: false,
            quality_text: None,
            quality_tokens: 2048,
            no_stream: false,
        }
    }
}

/// Lengths of `solo`.
#[derive(Args, Clone, Debug)]
pub struct SoloArgs {
    /// Lengths of prompts, in tokens, about. Each is read cold, and warm as the next turn.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "128,512,2048")]
    pub prompts: Vec<usize>,
    /// Tokens of the reply that is timed.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub tokens: u32,
}

impl SoloArgs {
    /// The workload.
    pub fn settings(&self) -> Settings {
        Settings::Solo(SoloConfig {
            prompt_tokens: self.prompts.clone(),
            decode_tokens: self.tokens,
            ..SoloConfig::default()
        })
    }
}

/// The shape of a room.
#[derive(Args, Clone, Debug)]
pub struct RoomArgs {
    /// Personas that answer in each round, all at once.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub personas: usize,
    /// Rounds. The first is counted as cold, the others as warm.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub rounds: usize,
    /// Length of the scene that all share, in tokens, about.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub scene: usize,
    /// Length of what is said between two rounds, in tokens, about.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub turn: usize,
    /// Length of a reply, in tokens.
    #[arg(long, value_name = "N", default_value_t = 48)]
    pub reply: u32,
    /// How much later each persona begins than the one before it, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub stagger: u64,
    /// How many adapters the personas take in turns. Default: as many as are named with --adapter or --server-adapter.
    #[arg(long, value_name = "N")]
    pub adapters: Option<usize>,
}

impl RoomArgs {
    fn config(&self, named: usize, pictures: usize, picture_side: u32) -> RoomConfig {
        RoomConfig {
            personas: self.personas,
            rounds: self.rounds,
            scene_tokens: self.scene,
            turn_tokens: self.turn,
            reply_tokens: self.reply,
            stagger_ms: self.stagger,
            adapters: self.adapters.unwrap_or(named),
            pictures,
            picture_side,
        }
    }
}

/// A room, and its pictures.
#[derive(Args, Clone, Debug)]
pub struct RoomWithPicturesArgs {
    #[command(flatten)]
    pub room: RoomArgs,
    /// Pictures that the scene shows. They are made up.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub images: usize,
    /// Width and height of a picture, in pixels.
    #[arg(long, value_name = "PIXELS", default_value_t = 256)]
    pub image_side: u32,
}

impl RoomWithPicturesArgs {
    /// The workload. `named` adapters are at hand.
    pub fn settings(&self, named: usize) -> Settings {
        Settings::Room(self.room.config(named, self.images, self.image_side))
    }
}

/// Who comes and goes.
#[derive(Args, Clone, Debug)]
pub struct ChurnArgs {
    /// Voices that talk all the time.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub voices: usize,
    /// Replies of each voice, alone and then beside the churn.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub turns: usize,
    /// Length of a reply, in tokens.
    #[arg(long, value_name = "N", default_value_t = 48)]
    pub reply: u32,
    /// Long prompts that come meanwhile.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub long_prompts: usize,
    /// Length of each, in tokens, about.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub long: usize,
    /// Requests that come and go meanwhile. Every other one is cancelled.
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub arrivals: usize,
    /// The mean time between two of them, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub arrival_time: u64,
    /// Requests that are cancelled at once, between one that is timed and another that is. 999: the thousandth request
    /// should be served as the first.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub cancels: usize,
}

impl ChurnArgs {
    /// The workload.
    pub fn settings(&self) -> Settings {
        Settings::Churn(ChurnConfig {
            voices: self.voices,
            turns: self.turns,
            voice_tokens: self.reply,
            long_prompts: self.long_prompts,
            long_tokens: self.long,
            arrivals: self.arrivals,
            arrival_ms: self.arrival_time,
            cancels: self.cancels,
            ..ChurnConfig::default()
        })
    }
}

/// A room, and what it stands beside.
#[derive(Args, Clone, Debug)]
pub struct NeighbourArgs {
    #[command(flatten)]
    pub room: RoomArgs,
    /// Threads of the neighbour: each wants a core.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub neighbours: usize,
    /// Hold each of them to a core of its own (Linux).
    #[arg(long)]
    pub pinned: bool,
}

impl NeighbourArgs {
    /// The workload. `named` adapters are at hand.
    pub fn settings(&self, named: usize) -> Settings {
        Settings::Neighbour(NeighbourConfig {
            room: self.room.config(named, 0, 256),
            threads: self.neighbours,
            pinned: self.pinned,
        })
    }
}

/// Arguments of `consort bench workload`.
#[derive(Args, Clone, Debug)]
pub struct WorkloadArgs {
    /// Which workload.
    #[command(subcommand)]
    pub which: WorkloadChoice,
    /// Write it there.
    #[arg(long, value_name = "FILE", global = true)]
    pub output: Option<PathBuf>,
    /// Repeats, each with words of its own.
    #[arg(long, value_name = "N", default_value_t = 3, global = true)]
    pub repeats: usize,
    /// The seed of every word.
    #[arg(long, value_name = "N", default_value_t = 1, global = true)]
    pub seed: u64,
}

/// A workload by its name.
#[derive(Subcommand, Clone, Debug)]
pub enum WorkloadChoice {
    /// One stream at a time: prompts of several lengths, cold and warm, and one long reply.
    Solo(SoloArgs),
    /// Personas in one conversation that grows.
    Room(RoomWithPicturesArgs),
    /// Arrivals, cancels and long prompts beside voices that talk.
    Churn(ChurnArgs),
    /// The same room while other work takes a core.
    Neighbour(NeighbourArgs),
}

impl WorkloadChoice {
    fn settings(&self) -> Settings {
        match self {
            Self::Solo(args) => args.settings(),
            Self::Room(args) => args.settings(0),
            Self::Churn(args) => args.settings(),
            Self::Neighbour(args) => args.settings(0),
        }
    }
}

/// Writes a workload.
pub fn save(args: &WorkloadArgs) -> Result<()> {
    let Some(path) = &args.output else {
        return Err(Error::new(ErrorKind::InvalidConfig, "say with --output where the workload is written"));
    };
    let workload = Workload::generate(args.which.settings(), args.seed, args.repeats)?;
    workload.save(path)?;
    let line = format!("{} requests, digest {}", workload.asks().count(), workload.digest());
    anstream::println!("{}", styled(output::FAINT, &line));
    Ok(())
}

/// Makes a workload, runs it, and shows or writes what came of it.
pub fn generate(settings: Settings, args: &LiveArgs) -> Result<()> {
    publish(&generated(settings, args)?, args.output.as_deref())
}

/// Makes a workload and runs it.
pub fn generated(settings: Settings, args: &LiveArgs) -> Result<Report> {
    measure(&Workload::generate(settings, args.seed, args.repeats)?, args)
}

/// Runs a workload that was saved.
pub fn replay(path: &Path, args: &LiveArgs) -> Result<()> {
    publish(&measure(&Workload::open(path)?, args)?, args.output.as_deref())
}

/// Prints a report, or writes it into a folder and prints the paths.
pub fn publish(report: &Report, folder: Option<&Path>) -> Result<()> {
    match folder {
        None => anstream::print!("{}", output::printable_lines(&report.markdown())),
        Some(folder) => {
            for path in report.save(folder)? {
                anstream::println!("{}", path.display());
            }
        }
    }
    Ok(())
}

fn measure(workload: &Workload, args: &LiveArgs) -> Result<Report> {
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("{spinner} {msg} {wide_bar} {pos}/{len} blocks, {eta} to go")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let opened = args.targets.open(workload.adapters, args.seed, &|text| bar.set_message(text.to_owned()))?;
    let config = RunConfig {
        stream_bytes: RunConfig::default().stream_bytes.filter(|_| !args.no_stream),
        ..RunConfig::default()
    };
    let blocks = run_workload(workload, &opened.targets, &config, &mut |step| show(&bar, step))?;
    let targets = opened.targets.iter().map(|target| target.about().clone()).collect();
    // Peers end and memory is free before the engines of the quality instrument are opened.
    drop(opened.targets);
    let quality = if args.quality { quality(args, &bar)? } else { Vec::new() };
    bar.finish_and_clear();
    let title = args.name.clone().unwrap_or_else(|| workload.settings.name().to_owned());
    let circumstances = Circumstances {
        title,
        command: super::command_line(),
        notes: opened.notes,
        searches: opened.searches,
        quality,
    };
    Ok(Report::new(workload, targets, blocks, circumstances))
}

fn show(bar: &ProgressBar, step: Step<'_>) {
    bar.set_length(step.total as u64);
    bar.set_position(step.done as u64);
    bar.set_message(format!("{}{}", step.target, if step.warm_up { ": warming up" } else { "" }));
    bar.tick();
}

/// Each backend in this process beside the last of them.
fn quality(args: &LiveArgs, bar: &ProgressBar) -> Result<Vec<Quality>> {
    let specs = args.targets.backend_specs()?;
    let Some((reference, others)) = specs.split_last().filter(|(_, others)| !others.is_empty()) else {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            "--quality compares backends in this process: name two with --backend",
        ));
    };
    let (text, text_name) = match &args.quality_text {
        Some(path) => (crate::session::read_text(path)?, path.file_name().unwrap_or_default().to_string_lossy().into()),
        None => (bundled::EVALUATION_TEXT.to_owned(), String::from("etude's conversations")),
    };
    let special = if args.quality_text.is_some() { SpecialTokens::Plain } else { SpecialTokens::Parse };
    let mut found = Vec::new();
    for other in others {
        bar.set_message(format!("{}: quality", other.name));
        let open = |spec| -> Result<_> {
            let config = args.targets.load_config(spec, None)?;
            let tokenizer = match &config.model {
                consort::ModelFiles::Bundled => consort::open_tokenizer(None)?,
                consort::ModelFiles::Files { text, .. } => consort::open_tokenizer(Some(text))?,
            };
            Ok((consort::open_engine(&config)?, tokenizer))
        };
        let ((mut one, one_tokenizer), (mut two, two_tokenizer)) = (open(reference)?, open(other)?);
        let mut tokens = one_tokenizer.encode(&text, special)?;
        tokens.truncate(args.quality_tokens);
        let config = QualityConfig::new(tokens.len().min(512));
        let divergence = divergence(
            Subject::new(&mut *one, &one_tokenizer),
            Subject::new(&mut *two, &two_tokenizer),
            &tokens,
            &config,
            &mut |progress| {
                bar.set_length(progress.total as u64);
                bar.set_position(progress.scored as u64);
            },
        )?;
        found.push(Quality {
            reference: reference.name.clone(),
            other: other.name.clone(),
            model: args.targets.source(other.model.as_deref()),
            text: text_name.clone(),
            tokens: divergence.reference.scored,
            divergence,
        });
    }
    Ok(found)
}
