//! Records conversations with a running vLLM until the standard input ends, and writes a transcript.
//!
//! ```text
//! record --http-from http://127.0.0.1:8000 --grpc-from 127.0.0.1:8001 --source "vLLM 0.32.0" --out transcript.jsonl
//! ```
//!
//! It prints the two addresses to talk to. `--http-listen` and `--grpc-listen` choose them, `--scene` names what is recorded,
//! `--without-pauses` leaves pauses out, `--replace /from=/to` writes a text of answers otherwise (may stand several times), and
//! `--verbatim` keeps answers to the byte. If the file is there already, its other scenes stay.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use consort_vllm_replay::{Recorder, RecorderConfig, Rules, Transcript};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut config = RecorderConfig::default();
    let mut out = None;
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{name} wants a value"));
        let address = |text: String| text.parse::<SocketAddr>().map_err(|error| format!("{text}: {error}"));
        match name.as_str() {
            "--http-from" => config.http_from = Some(authority(&value()?)),
            "--grpc-from" => config.grpc_from = Some(authority(&value()?)),
            "--http-listen" => config.http = Some(address(value()?)?),
            "--grpc-listen" => config.grpc = Some(address(value()?)?),
            "--source" => config.source = value()?,
            "--scene" => config.scene = value()?,
            "--out" => out = Some(PathBuf::from(value()?)),
            "--without-pauses" => config.without_pauses = true,
            "--verbatim" => config.rules = Rules::none(),
            "--replace" => {
                let pair = value()?;
                let (from, to) = pair.split_once('=').ok_or("--replace wants /from=/to")?;
                config.rules.replaced.push((from.to_owned(), to.to_owned()));
            }
            other => return Err(format!("{other} is not known; see the example's first lines")),
        }
    }
    let out = out.ok_or("--out is wanted: the file to write")?;
    let recorder = Recorder::start(config).map_err(|error| error.to_string())?;
    println!("http {}", recorder.http_url());
    println!("grpc {}", recorder.grpc_url());
    println!("recording until the standard input ends");
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()).map_err(|error| error.to_string())?;
    let recorded = recorder.finish().map_err(|error| error.to_string())?;
    let count = recorded.conversations.len();
    let mut transcript =
        if out.exists() { Transcript::load(&out).map_err(|error| error.to_string())? } else { Transcript::default() };
    transcript.merge(recorded).map_err(|error| error.to_string())?;
    transcript.save(&out).map_err(|error| error.to_string())?;
    println!("{count} conversations recorded; {} in {}", transcript.conversations.len(), out.display());
    Ok(())
}

/// `host:port` of an address that may begin with a scheme.
fn authority(url: &str) -> String {
    url.trim_start_matches("http://").trim_end_matches('/').to_owned()
}
