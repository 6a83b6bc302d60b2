//! The command line of `consort serve` and `consort config`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::model_args::ModelArgs;
use crate::output::LogFormat;

/// What `--help` shows at the end.
pub const HELP: &str = "\
Examples:
  consort serve --device cpu
  consort serve --device cpu --socket /tmp/consort.sock
  CONSORT_API_KEY=… consort serve --config consort.toml --listen 0.0.0.0:8080 --api-key-env CONSORT_API_KEY

  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{\"model\": \"etude\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}]}'

Flags go before the file. SIGHUP reads personas, adapters and API keys again; no reply notices. SIGTERM and Ctrl-C let
running replies end; a second one cuts them.";

/// Arguments of `consort serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// A configuration; `consort config init` writes one.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The TCP address. Port 0 takes any free one. [default: 127.0.0.1:8080, or none with --socket]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// A Unix domain socket that only this user can open.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The environment variable with the API key that clients must send.
    #[arg(long, value_name = "NAME", conflicts_with = "api_key_file")]
    pub api_key_env: Option<String>,
    /// A file of API keys, one a line.
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Listen beyond this machine without an API key.
    #[arg(long)]
    pub allow_anyone: bool,
    /// A folder of PEFT folders and GGUF files, each an adapter under its name. Repeat for several.
    #[arg(long, value_name = "DIR")]
    pub adapters: Vec<PathBuf>,
    /// The name by which clients ask for the model. Default: the file's, in small letters.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Print a description of all addresses (OpenAPI 3.1, JSON), and serve nothing.
    #[arg(long, exclusive = true)]
    pub print_openapi: bool,
    /// How the log is written, on stderr. In neither form it holds anything that was said.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    #[command(flatten)]
    pub model: ModelArgs,
}

/// Arguments of `consort config`.
#[derive(Args, Clone, Debug)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

/// What is done with a configuration.
#[derive(Subcommand, Clone, Debug)]
pub enum ConfigCommand {
    /// Write an annotated file with every key and its default.
    Init {
        /// Where; `-` is the standard output. What is there is not replaced.
        #[arg(default_value = "consort.toml")]
        file: PathBuf,
    },
    /// Say what a file means, or what is wrong with it. Loads no weights.
    Check {
        /// The file.
        file: PathBuf,
    },
}
