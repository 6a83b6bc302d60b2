//! Serves the synthetic model until the standard input ends: a server whose every token costs what is said and no more.
//!
//! ```text
//! synthetic --http-listen 127.0.0.1:8000 --grpc-listen 127.0.0.1:9000 --pace-ms 5
//! ```
//!
//! It prints the two addresses to talk to. Without addresses it takes free ports of loopback; `--pace-ms` is the pause before each
//! token, `--model` the served name, `--context` the longest context, `--rust` answers as vLLM's Rust front end.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use consort_vllm_replay::{FrontEnd, Synthetic, SyntheticConfig};

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
    let mut config = SyntheticConfig::default();
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{name} wants a value"));
        let address = |text: String| text.parse::<SocketAddr>().map_err(|error| format!("{text}: {error}"));
        match name.as_str() {
            "--http-listen" => config.server.http = Some(address(value()?)?),
            "--grpc-listen" => config.server.grpc = Some(address(value()?)?),
            "--pace-ms" => {
                let text = value()?;
                config.pace = Duration::from_millis(text.parse().map_err(|error| format!("{text}: {error}"))?);
            }
            "--model" => config.model = value()?,
            "--context" => {
                let text = value()?;
                config.max_model_len = text.parse().map_err(|error| format!("{text}: {error}"))?;
            }
            "--rust" => config.front_end = FrontEnd::Rust,
            other => return Err(format!("{other} is not known; see the example's first lines")),
        }
    }
    let synthetic = Synthetic::start(config).map_err(|error| error.to_string())?;
    println!("http {}", synthetic.server().http_url());
    println!("grpc {}", synthetic.server().grpc_url());
    println!("serving until the standard input ends");
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()).map_err(|error| error.to_string())?;
    Ok(())
}
