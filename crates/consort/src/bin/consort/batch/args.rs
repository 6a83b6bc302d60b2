//! The command line of `consort batch`.

use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};

use clap::Args;
use consort_batch::{Files, Input};
use consort_core::{Error, ErrorKind, Result};

use crate::model_args::ModelArgs;

/// What `--help` shows at the end.
pub const HELP: &str = "\
Examples:
  consort batch --device cpu batch.jsonl
  consort batch --config consort.toml --output answers.jsonl batch.jsonl
  CONSORT_API_KEY=… consort batch --url http://gpu-box:8000 --api-key-env CONSORT_API_KEY --in-flight 128 batch.jsonl
  consort batch --validate batch.jsonl

A line of the file is {\"custom_id\": \"a\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", \"body\": {…}}.
Ctrl-C and SIGTERM end the run; the same command goes on from there. A second one ends it at once, with the same promise.";

/// Arguments of `consort batch`.
#[derive(Args, Clone, Debug)]
pub struct BatchArgs {
    /// The requests, one a line. `-` is the standard input, from which a run cannot go on later.
    #[arg(value_name = "FILE.jsonl")]
    pub input: PathBuf,
    /// Where good answers go. [default: FILE.out.jsonl]
    #[arg(long, value_name = "OUT.jsonl")]
    pub output: Option<PathBuf>,
    /// Where failures go. [default: as the output, with `errors` in its name]
    #[arg(long, value_name = "ERR.jsonl")]
    pub errors: Option<PathBuf>,
    /// Throw away what an earlier run wrote, and begin anew.
    #[arg(long)]
    pub restart: bool,
    /// Say what is wrong with the file, and ask nobody.
    #[arg(long, conflicts_with_all = ["output", "errors", "restart", "fail_fast"])]
    pub validate: bool,
    /// Stop at the first failure.
    #[arg(long)]
    pub fail_fast: bool,
    /// Requests that are under way at once. [default: twice what the model takes at once, or 64 with --url]
    #[arg(long, value_name = "N")]
    pub in_flight: Option<NonZeroUsize>,
    /// Requests that are begun and not written, as a slow one lets others run ahead. [default: four times --in-flight]
    #[arg(long, value_name = "N")]
    pub window: Option<NonZeroUsize>,
    /// How often a request is asked at most, where it fails for a time.
    #[arg(long, value_name = "N", default_value = "6")]
    pub attempts: NonZeroU32,
    /// Requests that are asked again in all, before the run stops. [default: no bound]
    #[arg(long, value_name = "N")]
    pub retry_budget: Option<u64>,
    /// How long a request may take, in seconds, its wait for a turn included. [default: no limit, or an hour with --url]
    #[arg(long, value_name = "SECONDS")]
    pub request_seconds: Option<NonZeroU64>,
    /// Print the summary as one JSON object on the standard output.
    #[arg(long)]
    pub json: bool,
    /// Send the requests to a server with OpenAI's or Anthropic's API, and load no model.
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "adapters", "name", "model", "mmproj", "backend", "device", "threads"])]
    #[cfg_attr(feature = "vllm", arg(conflicts_with = "vllm"))]
    pub url: Option<String>,
    /// The environment variable with the server's API key.
    #[arg(long, value_name = "NAME", requires = "url")]
    pub api_key_env: Option<String>,
    /// A configuration as `serve` has it: personas, adapters, limits, the model.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A folder of PEFT folders and GGUF files, each an adapter under its name. Repeat for several.
    #[arg(long, value_name = "DIR")]
    pub adapters: Vec<PathBuf>,
    /// The name by which requests ask for the model. Default: the file's, in small letters.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    #[command(flatten)]
    pub model: ModelArgs,
}

impl BatchArgs {
    /// Where requests come from.
    pub fn source(&self) -> Input {
        if self.input.as_os_str() == "-" { Input::Stdin } else { Input::File(self.input.clone()) }
    }

    /// All files.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`]: the standard input without an output, or `-` for a file that is written.
    pub fn files(&self) -> Result<Files> {
        let refuse = |message: &str| Error::new(ErrorKind::InvalidConfig, message).with_operation("batch");
        let input = self.source();
        let output = match (&self.output, &input) {
            (Some(output), _) => output.clone(),
            (None, Input::File(path)) => beside(path, "out"),
            (None, Input::Stdin) => return Err(refuse("name the output: --output answers.jsonl")),
        };
        let errors = self.errors.clone().unwrap_or_else(|| match (&self.output, &input) {
            (None, Input::File(path)) => beside(path, "errors"),
            _ => beside(&output, "errors"),
        });
        if [&output, &errors].iter().any(|path| path.as_os_str() == "-") {
            return Err(refuse("answers go to files, from which a run can go on; `-` is none"));
        }
        Ok(Files { input, output, errors })
    }
}

/// `batch.jsonl` → `batch.out.jsonl`, in the same folder.
fn beside(path: &Path, word: &str) -> PathBuf {
    let is_lines = path.extension().is_some_and(|extension| extension == "jsonl");
    let stem = if is_lines { path.file_stem() } else { path.file_name() };
    let mut name: OsString = stem.unwrap_or_default().to_owned();
    name.push(format!(".{word}.jsonl"));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn files(args: &[&str]) -> Result<Files> {
        let cli = Cli::try_parse_from(["consort", "batch"].iter().chain(args)).unwrap();
        let Command::Batch(args) = cli.command else { panic!() };
        args.files()
    }

    #[test]
    fn files_have_names_that_belong_together() {
        let named = |args: &[&str]| {
            let files = files(args).unwrap();
            (files.output.display().to_string(), files.errors.display().to_string())
        };
        let pair = |output: &str, errors: &str| (output.to_owned(), errors.to_owned());
        assert_eq!(named(&["in/a.jsonl"]), pair("in/a.out.jsonl", "in/a.errors.jsonl"));
        assert_eq!(named(&["a.txt"]), pair("a.txt.out.jsonl", "a.txt.errors.jsonl"));
        assert_eq!(named(&["a.jsonl", "--output", "out/b.jsonl"]), pair("out/b.jsonl", "out/b.errors.jsonl"));
        assert_eq!(named(&["-", "--output", "b.jsonl", "--errors", "c"]), pair("b.jsonl", "c"));
        assert!(files(&["-"]).is_err() && files(&["a.jsonl", "--output", "-"]).is_err());
    }

    #[test]
    fn a_server_and_a_model_exclude_each_other() {
        for other in [["--device", "cpu"], ["--model", "x"], ["--config", "x"], ["--adapters", "x"]] {
            let args = [["consort", "batch"], ["a.jsonl", "--url"], ["http://x", other[0]], [other[1], "--json"]];
            assert!(Cli::try_parse_from(args.concat()).is_err(), "{other:?}");
        }
        assert!(Cli::try_parse_from(["consort", "batch", "a.jsonl", "--api-key-env", "X"]).is_err());
    }
}
