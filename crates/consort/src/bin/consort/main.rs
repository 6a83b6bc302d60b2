//! The `consort` command.
#![forbid(unsafe_code)]
// Nothing in a program can be reached from outside; `pub` says what a module offers to the others.
#![allow(unreachable_pub)]

mod args;
#[cfg(feature = "server")]
mod batch;
mod bench;
mod chat;
mod convert;
mod demo;
mod doctor;
mod exit;
mod inspect;
mod model_args;
mod output;
mod picture;
mod quality;
mod quantize;
mod run;
mod sampling;
#[cfg(feature = "server")]
mod serve;
mod session;
mod shell;
mod structure;
mod tokenize;

use clap::Parser;

use args::{Cli, Command};

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    output::init_logs(cli.verbose, cli.command.quiet_logs(), cli.command.log_format());
    let outcome = match &cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Run(args) => run::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Perplexity(args) => quality::perplexity(args),
        Command::Kld(args) => quality::kld(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Quantize(args) => quantize::run(args),
        Command::Bench(args) => bench::run(args),
        #[cfg(feature = "server")]
        Command::Serve(args) => serve::run(args),
        #[cfg(feature = "server")]
        Command::Batch(args) => match batch::run(args) {
            Ok(end) => return end,
            Err(error) => Err(error),
        },
        #[cfg(feature = "server")]
        Command::Config(args) => serve::config(args),
        Command::Completions(args) => shell::completions(args),
        Command::Man(args) => shell::man(args),
    };
    exit::code(outcome)
}
