//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use consort_core::{Error, ErrorKind, Result, Thinking};

use crate::bench::BenchArgs;
use crate::chat::ChatArgs;
use crate::model_args::{DeviceArgs, EngineArgs, ModelArgs};
use crate::quality::{KldArgs, PerplexityArgs};
use crate::sampling::SamplingArgs;
use crate::shell::{CompletionsArgs, ManArgs};
use crate::structure::StructureArgs;
use crate::tokenize::TokenizeArgs;

/// One model, many personas, any engine.
///
/// Consort runs a language model that also sees, for several personas at once. Without `--device` it computes on an
/// accelerator or not at all; `--device cpu` names the processor. A small model, etude, is part of the program, so
/// everything here works without a download.
#[derive(Parser)]
#[command(version, after_help = crate::exit::HELP, max_term_width = 100)]
pub struct Cli {
    /// Log more (-v, -vv, -vvv), to stderr. CONSORT_LOG takes a filter.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Three personas talk about a picture.
    #[command(after_help = "Example:\n  consort demo --device cpu")]
    Demo(DemoArgs),
    /// Answer one prompt.
    #[command(after_help = "Examples:\n  consort run --device cpu \"Hello!\"\n  \
        consort run --device cpu --image shapes.png --adapter pirate \"What do you see?\"\n  \
        consort run --device cpu --model model.gguf --mmproj mmproj.gguf --json \"Hello!\"")]
    Run(RunArgs),
    /// Talk with a model, as one persona or several.
    #[command(after_help = "Examples:\n  consort chat --device cpu\n  \
        consort chat --device cpu --persona Ada --persona Ben@pirate\n  \
        printf 'Hello!\\nWhat is my name?\\n' | consort chat --device cpu\n\n\
        In the chat, /help lists the commands. Ctrl-C stops a reply; Ctrl-D leaves.")]
    Chat(ChatArgs),
    /// Serve a model over HTTP, with personas: OpenAI's API, metrics, a Unix socket.
    #[cfg(feature = "server")]
    #[command(after_help = crate::serve::HELP)]
    Serve(crate::serve::ServeArgs),
    /// Answer a file of requests, in OpenAI's batch form: in order, and going on where it was stopped.
    #[cfg(feature = "server")]
    #[command(after_help = crate::batch::HELP)]
    Batch(Box<crate::batch::BatchArgs>),
    /// Write a configuration for `serve`, or say what is wrong with one.
    #[cfg(feature = "server")]
    #[command(after_help = "Examples:\n  consort config init\n  consort config check consort.toml")]
    Config(crate::serve::ConfigArgs),
    /// Turn text into tokens, and tokens into text. Loads no weights.
    #[command(after_help = "Examples:\n  consort tokenize \"What do you see?\"\n  \
        consort tokenize --model model.gguf --special parse --ids --file prompt.txt\n  \
        consort tokenize --decode 40,1092,315")]
    Tokenize(TokenizeArgs),
    /// How well a model foresees a text.
    #[command(after_help = "Examples:\n  consort perplexity --device cpu --model model.gguf text.txt\n  \
        consort perplexity --device cpu --builtin --context 256 --stride 64")]
    Perplexity(PerplexityArgs),
    /// How far a model's distributions are from another's, or from its own before quantization.
    #[command(after_help = "Example:\n  \
        consort kld --device cpu --model model-Q8_0.gguf --against model-BF16.gguf text.txt")]
    Kld(KldArgs),
    /// Show what a model file or an adapter directory holds.
    #[command(after_help = "Examples:\n  consort inspect model.gguf\n  consort inspect --tensors --json model.gguf")]
    Inspect(InspectArgs),
    /// Show what this machine has, what each backend would do here, and why not.
    Doctor(DoctorArgs),
    /// Turn a Hugging Face Qwen3.5 directory into GGUF and mmproj.
    #[command(after_help = "Example:\n  consort convert --type q8_0 --output out/ models/etude")]
    Convert(ConvertArgs),
    /// Make a GGUF file smaller.
    #[command(after_help = crate::quantize::HELP)]
    Quantize(crate::quantize::QuantizeArgs),
    /// Measure. Writes a report beside the machine's stream rate.
    Bench(BenchArgs),
    /// Print a shell's completion script.
    #[command(after_help = "Example:\n  consort completions bash > ~/.local/share/bash-completion/completions/consort")]
    Completions(CompletionsArgs),
    /// Write the manual pages.
    #[command(after_help = "Examples:\n  consort man | man -l -\n  consort man man1/")]
    Man(ManArgs),
}

impl Command {
    /// How the log is written.
    pub fn log_format(&self) -> crate::output::LogFormat {
        match self {
            #[cfg(feature = "server")]
            Self::Serve(args) => args.log_format,
            _ => crate::output::LogFormat::Text,
        }
    }

    /// What is logged when nobody asked for more.
    pub fn quiet_logs(&self) -> &'static str {
        // llama.cpp warns of every file that is as it should be; what fails comes back as an error.
        match self {
            #[cfg(feature = "server")]
            Self::Serve(_) => "warn,consort_server=info,llama.cpp=off",
            _ => "warn,llama.cpp=off",
        }
    }
}

/// Arguments of `consort demo`.
#[derive(Args)]
pub struct DemoArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Another picture than the one that is part of the program.
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Print one JSON object instead, for scripts.
    #[arg(long)]
    pub json: bool,
}

/// Whether the model thinks before it answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ThinkChoice {
    /// It thinks first.
    On,
    /// It answers at once.
    Off,
    /// As the model's template does when nothing is said.
    Template,
}

impl From<ThinkChoice> for Thinking {
    fn from(choice: ThinkChoice) -> Self {
        match choice {
            ThinkChoice::On => Self::On,
            ThinkChoice::Off => Self::Off,
            ThinkChoice::Template => Self::TemplateDefault,
        }
    }
}

/// Arguments of `consort run`.
#[derive(Args)]
pub struct RunArgs {
    /// What to say to the model. `-` reads it from the standard input.
    pub prompt: String,
    #[command(flatten)]
    pub model: ModelArgs,
    /// A picture, put before the prompt. Repeat for several.
    #[arg(long, value_name = "FILE")]
    pub image: Vec<PathBuf>,
    /// An adapter: a PEFT folder, a GGUF file, or the name of a bundled one; `@0.5` sets its scale. Repeat to add several.
    #[arg(long, value_name = "NAME|PATH[@SCALE]")]
    pub adapter: Vec<String>,
    /// A system message.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Whether the model thinks before it answers.
    #[arg(long, value_enum, default_value = "off")]
    pub think: ThinkChoice,
    /// The most tokens of the reply.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_tokens: u32,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub structure: StructureArgs,
    /// End the reply before this text. Repeat for several.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Print one JSON object: text, tokens, finish reason, usage, device evidence.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `consort inspect`.
#[derive(Args)]
pub struct InspectArgs {
    /// A GGUF file, or a folder with a PEFT adapter.
    pub path: PathBuf,
    /// List every tensor.
    #[arg(long)]
    pub tensors: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `consort doctor`.
#[derive(Args)]
pub struct DoctorArgs {
    /// Print the README's table of backends, of those in this build.
    #[arg(long, conflicts_with = "json")]
    pub matrix: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Where the tokenizer of the servers' model is: with it pictures are tried as well.
    #[cfg(feature = "vllm")]
    #[arg(long, value_name = "PATH", requires = "vllm")]
    pub model: Option<PathBuf>,
    #[cfg(feature = "vllm")]
    #[command(flatten)]
    pub remote: crate::model_args::RemoteArgs,
    /// A configuration of `serve` with servers: show them, and, where an engine here stands beside them, what goes where.
    #[cfg(all(feature = "server", feature = "vllm"))]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["matrix", "model", "vllm"])]
    pub config: Option<PathBuf>,
}

/// How weights are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum WeightChoice {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit blocks of 32.
    #[value(name = "q8_0")]
    Q8_0,
}

/// Arguments of `consort convert`.
#[derive(Args)]
pub struct ConvertArgs {
    /// The Hugging Face directory: config.json, *.safetensors, tokenizer.json, ...
    pub source: PathBuf,
    /// Where the files go. Default: the source folder.
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// How the text model's matrices are stored.
    #[arg(long = "type", value_enum, default_value = "q8_0")]
    pub text_type: WeightChoice,
    /// How the vision tower's matrices are stored.
    #[arg(long, value_enum, default_value = "f16")]
    pub mmproj_type: WeightChoice,
    /// Replace files that are there.
    #[arg(long)]
    pub overwrite: bool,
}

/// Arguments of `consort bench decode`.
#[derive(Args)]
pub struct BenchDecodeArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Tokens per measurement.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub tokens: usize,
    /// Measurements; the median is reported, with the smallest and the largest.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub repeats: usize,
    /// Weight types of the models with random weights: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL or
    /// IQ4_XS.
    #[arg(long, value_name = "TYPE,…", value_delimiter = ',', default_value = "Q8_0,Q6_K,Q4_K,Q4_0,F16")]
    pub types: Vec<String>,
    /// Multiply quantized weights with activations in f32, and not in eight bits.
    #[arg(long)]
    pub exact: bool,
    /// Write the report there, as Markdown.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Arguments of `consort bench questions`.
#[derive(Args)]
pub struct BenchQuestionsArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The folder.
    pub folder: PathBuf,
    /// Ask with this adapter, and count answers that contain the expected words.
    #[arg(long, value_name = "NAME|PATH[@SCALE]")]
    pub adapter: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Show each wrong answer beside the expected one.
    #[arg(long)]
    pub wrong: bool,
}

/// Splits `NAME@SCALE`.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] for a scale that is no number.
pub fn adapter_spec(spec: &str) -> Result<(&str, f32)> {
    let Some((name, scale)) = spec.rsplit_once('@') else { return Ok((spec, 1.0)) };
    match scale.parse::<f32>() {
        Ok(value) if value.is_finite() && !name.is_empty() => Ok((name, value)),
        _ => {
            Err(Error::new(ErrorKind::InvalidRequest, "an adapter is named as NAME or NAME@SCALE, such as pirate@0.5")
                .with_context("adapter", spec))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn adapters_carry_their_scale() {
        assert_eq!(adapter_spec("pirate").unwrap(), ("pirate", 1.0));
        assert_eq!(adapter_spec("dir/x@0.5").unwrap(), ("dir/x", 0.5));
        adapter_spec("pirate@loud").unwrap_err();
    }
}
