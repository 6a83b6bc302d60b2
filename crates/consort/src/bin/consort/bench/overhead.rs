//! `consort bench overhead`: our path to a server against a bare HTTP client.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use consort::vllm::{Endpoint, Protocol, VllmRemoteBackend};
use consort::{ModelFiles, RemoteModel};
use consort_bench::overhead::{OverheadConfig, Path, Place, Session, measure};
use consort_core::{Error, ErrorKind, ModelBackend, Result};
use consort_scheduler::FrontEnd;
use indicatif::{ProgressBar, ProgressStyle};

use crate::output;

/// Arguments of `consort bench overhead`.
#[derive(Args, Clone, Debug)]
pub struct OverheadArgs {
    /// A server: what the report calls it, its address for the bare client and for our path by HTTP, and, where it speaks
    /// gRPC, that for our path by gRPC. Repeat for several.
    #[arg(long, value_name = "NAME=http://…[,grpc://…]", required = true, value_parser = parse_at)]
    pub at: Vec<At>,
    /// Where the model's tokenizer is. Default: the bundled etude's.
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// Lengths of prompts, in tokens.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "64,2048")]
    pub prompts: Vec<usize>,
    /// Replies at once.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8")]
    pub streams: Vec<usize>,
    /// Length of a reply, in tokens.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub tokens: u32,
    /// How often each path takes its turn.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub rounds: usize,
    /// The seed of the prompts.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Write NAME.json and NAME.md into this folder. Without it the report is printed.
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// The report's name.
    #[arg(long, value_name = "NAME", default_value = "overhead")]
    pub name: String,
}

/// A server with its addresses.
#[derive(Clone, Debug, PartialEq)]
pub struct At {
    name: String,
    http: Endpoint,
    grpc: Option<Endpoint>,
}

impl FromStr for At {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |message: &str| Error::new(ErrorKind::InvalidConfig, message).with_context("at", text);
        // An address has an equals sign in none of its parts.
        let (name, addresses) = text.split_once('=').filter(|(name, _)| !name.trim().is_empty()).ok_or_else(|| {
            refuse("a server is written NAME=http://HOST:PORT or NAME=http://HOST:PORT,grpc://HOST:PORT")
        })?;
        let mut endpoints = addresses.split(',').map(Endpoint::from_str);
        let first = endpoints.next().transpose()?;
        let http = first.filter(|endpoint| endpoint.protocol() == Protocol::Http && !endpoint.is_encrypted());
        let http =
            http.ok_or_else(|| refuse("the first address is plain HTTP's: the bare client speaks nothing else"))?;
        let grpc = endpoints.next().transpose()?;
        if endpoints.next().is_some() || grpc.as_ref().is_some_and(|endpoint| endpoint.protocol() != Protocol::Grpc) {
            return Err(refuse("behind the first address there is one at most, of gRPC"));
        }
        Ok(Self { name: name.trim().to_owned(), http, grpc })
    }
}

/// clap shows an error's text alone, without its context.
fn parse_at(text: &str) -> Result<At, String> {
    text.parse().map_err(|error: Error| error.message().to_owned())
}

/// Runs the command.
pub fn run(args: &OverheadArgs) -> Result<()> {
    let config = OverheadConfig {
        prompts: args.prompts.clone(),
        streams: args.streams.clone(),
        tokens: args.tokens,
        rounds: args.rounds,
        seed: args.seed,
    };
    let places = args.at.iter().map(|at| place(at, args)).collect::<Result<Vec<_>>>()?;
    let style = ProgressStyle::with_template("{spinner} {wide_bar} {pos}/{len} rounds, {eta} to go");
    let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let session = Session { title: args.name.clone(), command: super::command_line() };
    let report = measure(&config, &places, session, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    match &args.output {
        None => anstream::print!("{}", output::printable_lines(&report.markdown())),
        Some(folder) => {
            for path in report.save(folder)? {
                anstream::println!("{}", path.display());
            }
        }
    }
    Ok(())
}

/// The server, and our ways to it.
fn place(at: &At, args: &OverheadArgs) -> Result<Place> {
    let ways = [("by HTTP", Some(&at.http)), ("by gRPC", at.grpc.as_ref())];
    let ways = ways.into_iter().filter_map(|(name, endpoint)| Some((name, endpoint?)));
    let paths = ways.map(|(name, endpoint)| Ok(Path { name: name.to_owned(), backend: connect(endpoint, args)? }));
    Place::find(&at.name, &at.http.url(), paths.collect::<Result<_>>()?)
}

fn connect(endpoint: &Endpoint, args: &OverheadArgs) -> Result<Arc<dyn ModelBackend>> {
    let remote = RemoteModel { files: args.model.clone(), ..RemoteModel::new(vec![endpoint.clone()]) };
    let mut config = remote.config()?;
    if args.model.is_none() {
        let (tokenizer, template) = consort::open_text(&ModelFiles::Bundled)?;
        config.front_end = FrontEnd { tokenizer: Some(tokenizer), template, ..FrontEnd::default() };
    }
    Ok(Arc::new(VllmRemoteBackend::connect(config)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_server_has_a_name_and_one_or_two_addresses() {
        let at: At = "5 ms a token=http://127.0.0.1:8000,grpc://127.0.0.1:9000".parse().unwrap();
        assert_eq!((at.name.as_str(), at.http.to_string().as_str()), ("5 ms a token", "http://127.0.0.1:8000"));
        assert_eq!(at.grpc.unwrap().to_string(), "grpc://127.0.0.1:9000");
        assert!("a=http://h:1".parse::<At>().unwrap().grpc.is_none());
        for wrong in ["http://h:1", "=http://h:1", "a=", "a=grpc://h:1", "a=https://h:1", "a=http://h:1,http://h:2"] {
            let error = wrong.parse::<At>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{wrong}");
        }
        assert!("a=http://h:1,grpc://h:2,grpc://h:3".parse::<At>().is_err());
    }
}
