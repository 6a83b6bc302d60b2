//! `consort bench`: what is measured, one file each.

mod decode;
mod gate;
mod live;
#[cfg(feature = "vllm")]
mod overhead;
mod questions;
mod synthetic;
mod targets;

use clap::{Args, Subcommand};
use consort_core::Result;

use crate::args::{BenchDecodeArgs, BenchQuestionsArgs};

/// Arguments of `consort bench`.
#[derive(Args)]
pub struct BenchArgs {
    /// What is measured.
    #[command(subcommand)]
    pub what: BenchCommand,
}

/// What `consort bench` measures.
#[derive(Subcommand)]
pub enum BenchCommand {
    /// Decode speed of etude and of a generated model of the 0.8B's dimensions, beside the stream rate of the machine.
    Decode(BenchDecodeArgs),
    /// Ask the questions of a folder (questions.jsonl and its pictures) and count the answers that are exactly right, beside
    /// the same questions with shuffled and with blank pictures.
    Questions(BenchQuestionsArgs),
    /// One stream at a time: prompts of several lengths, cold and warm, and one long reply.
    #[command(after_help = "Examples:\n  consort bench solo --device cpu --model synthetic:0.8b:Q4_K_M\n  \
        consort bench solo --device cpu --model model.gguf --backend native \\\n    \
        --peer 'llama=llama-server -m {model} --port {port} -t {threads}' --search 'llama:threads=1,2'")]
    Solo {
        #[command(flatten)]
        workload: live::SoloArgs,
        #[command(flatten)]
        run: live::LiveArgs,
    },
    /// Personas in one conversation that grows: the workload this project is about.
    #[command(
        after_help = "Examples:\n  consort bench room --device cpu --personas 3 --adapter pirate --adapter butler\n  \
        consort bench room --device cpu --images 1 --output docs/benchmarks --name room-etude"
    )]
    Room {
        #[command(flatten)]
        workload: live::RoomWithPicturesArgs,
        #[command(flatten)]
        run: live::LiveArgs,
    },
    /// Arrivals, cancels and long prompts beside voices that talk.
    #[command(after_help = "Example:\n  consort bench churn --device cpu --cancels 999 --repeats 1")]
    Churn {
        #[command(flatten)]
        workload: live::ChurnArgs,
        #[command(flatten)]
        run: live::LiveArgs,
    },
    /// The same room while other work takes a core: how much of its fair share the engine keeps.
    #[command(after_help = "Example:\n  consort bench neighbour --device cpu --neighbours 1 --pinned")]
    Neighbour {
        #[command(flatten)]
        workload: live::NeighbourArgs,
        #[command(flatten)]
        run: live::LiveArgs,
    },
    /// What our path to a vLLM server costs over a bare HTTP client: to the first token, and for each token.
    #[cfg(feature = "vllm")]
    #[command(
        after_help = "Example:\n  consort bench overhead --at 'at once=http://127.0.0.1:8000,grpc://127.0.0.1:9000' \\\n    \
        --output docs/benchmarks"
    )]
    Overhead(overhead::OverheadArgs),
    /// Write a workload to a file, to be replayed here or elsewhere.
    #[command(after_help = "Example:\n  consort bench workload room --personas 3 --output room.json")]
    Workload(live::WorkloadArgs),
    /// Run a workload of a file.
    #[command(after_help = "Example:\n  consort bench replay room.json --device cpu")]
    Replay {
        /// What `consort bench workload` wrote. It brings its own repeats and seed.
        workload: std::path::PathBuf,
        #[command(flatten)]
        run: live::LiveArgs,
    },
    /// Show two targets beside each other, and which differences are within noise.
    #[command(after_help = "Examples:\n  consort bench compare before.json after.json\n  \
        consort bench compare room.json room.json --one native --other llamacpp")]
    Compare(gate::CompareArgs),
    /// The acceptance gate: hold a backend's reports against the rules.
    #[command(after_help = "Examples:\n  cargo test -p consort-behavior --test backends 2>&1 | tee behavior.txt\n  \
        consort bench accept --backend native --against llamacpp --model model.gguf --behavior behavior.txt\n  \
        consort bench accept --backend native --against llamacpp --report room.json --report neighbour.json \\\n    \
        --behavior behavior.txt --output docs/benchmarks")]
    Accept(gate::AcceptArgs),
    /// Write a model of random weights and tell where it is: the time and the memory of a real one, and no sense.
    #[command(after_help = "Example:\n  consort bench synthetic synthetic:0.8b:Q4_K_M")]
    Synthetic(synthetic::SyntheticArgs),
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<()> {
    match &args.what {
        BenchCommand::Decode(args) => decode::run(args),
        BenchCommand::Questions(args) => questions::run(args),
        BenchCommand::Solo { workload, run } => live::generate(workload.settings(), run),
        BenchCommand::Room { workload, run } => live::generate(workload.settings(run.targets.adapters()), run),
        BenchCommand::Churn { workload, run } => live::generate(workload.settings(), run),
        BenchCommand::Neighbour { workload, run } => live::generate(workload.settings(run.targets.adapters()), run),
        #[cfg(feature = "vllm")]
        BenchCommand::Overhead(args) => overhead::run(args),
        BenchCommand::Workload(args) => live::save(args),
        BenchCommand::Replay { workload, run } => live::replay(workload, run),
        BenchCommand::Compare(args) => gate::compare(args),
        BenchCommand::Accept(args) => gate::accept(args),
        BenchCommand::Synthetic(args) => synthetic::run(args),
    }
}

/// As it was typed, without the folders of this machine: reports are published.
fn command_line() -> String {
    let arguments = std::env::args().skip(1).map(|argument| without_folders(&argument));
    std::iter::once("consort".to_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}

/// Of every absolute path in an argument, also behind a `=` or a `,`, the last part.
fn without_folders(argument: &str) -> String {
    let mut text = String::new();
    for word in argument.split_inclusive([' ', '=', ',']) {
        let short =
            if word.starts_with('/') { word.trim_end_matches('/').rsplit('/').next().unwrap_or(word) } else { word };
        text.push_str(short);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_folder_of_this_machine_is_shown() {
        let shown =
            without_folders("llama=/opt/x/llama-server -m {model} --lora /tmp/a,b=/tmp/c/d.gguf --url http://h/v1");
        assert_eq!(shown, "llama=llama-server -m {model} --lora a,b=d.gguf --url http://h/v1");
        assert_eq!(without_folders("out/dir"), "out/dir");
    }
}
