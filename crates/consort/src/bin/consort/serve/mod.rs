//! `consort serve` and `consort config`.

mod args;
mod overflow;
mod plan;
mod remote;

use std::io::Write as _;
use std::path::Path;

use consort::LoadConfig;
use consort::server::{App, Config, Parts, Server, TEMPLATE, TextFloor};
use consort_core::{Error, ErrorKind, Result};

use args::ConfigCommand;
pub use args::{ConfigArgs, HELP, ServeArgs};
#[cfg(feature = "vllm")]
pub use overflow::describe as rule;
pub use plan::Plan;

use crate::output::{self, FAINT, styled};
use crate::session;

/// Threads for connections. The model has threads of its own, and what takes long has others.
const THREADS: usize = 2;

/// Serves until the process is asked to end.
pub fn run(args: &ServeArgs) -> Result<()> {
    if args.print_openapi {
        return say(&format!("{:#}", consort::server::openapi()));
    }
    let plan = Plan::of_args(args)?;
    let text = text(&plan.load)?;
    let source = Plan::source(args, &plan.config);
    let backend = consort::load(plan.load)?;
    let evidence = backend.evidence();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    let runtime = runtime.map_err(|source| {
        Error::new(ErrorKind::Unexpected, "the threads for connections cannot be started").with_source(source)
    })?;
    runtime.block_on(async {
        let parts = Parts { backend, text, config: plan.config, keys: plan.keys, adapters: plan.adapters };
        let app = App::open(parts).await?.with_source(source);
        let server = Server::bind(app, &plan.listen).await?;
        anstream::eprint!("{}", session::evidence_lines(&evidence));
        // On the standard output, a line each: scripts read it to learn the port.
        if let Some(address) = server.address() {
            say(&format!("listening on http://{address}"))?;
        }
        if let Some(socket) = &plan.listen.socket {
            say(&format!("listening on {}", socket.display()))?;
        }
        server.run().await;
        Ok::<_, Error>(())
    })?;
    // What still computes for nobody is not waited for.
    runtime.shutdown_background();
    anstream::eprintln!("{}", styled(FAINT, "served"));
    Ok(())
}

/// The model's tokenizer and template, where they are at hand.
fn text(load: &LoadConfig) -> Result<TextFloor> {
    #[cfg(feature = "vllm")]
    if let Some(remote) = load.remote.as_ref().filter(|_| load.is_remote()) {
        let front_end = remote.files.as_deref().map(consort::front_end_at).transpose()?.unwrap_or_default();
        return Ok(TextFloor { tokenizer: front_end.tokenizer, template: front_end.template });
    }
    let (tokenizer, template) = consort::open_text(&load.model)?;
    Ok(TextFloor { tokenizer: Some(tokenizer), template })
}

fn say(line: &str) -> Result<()> {
    let mut stdout = anstream::stdout();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .map_err(|source| Error::new(ErrorKind::Io, "the standard output could not be written").with_source(source))
}

/// Writes or checks a configuration.
pub fn config(args: &ConfigArgs) -> Result<()> {
    match &args.command {
        ConfigCommand::Init { file } if file.as_os_str() == "-" => {
            anstream::print!("{TEMPLATE}");
            Ok(())
        }
        ConfigCommand::Init { file } => {
            write_new(file)?;
            anstream::println!("{} is written; `consort serve --config {}` reads it", file.display(), file.display());
            Ok(())
        }
        ConfigCommand::Check { file } => {
            let plan = Plan::of_config(Config::load(file)?)?;
            anstream::print!("{}", plan.describe());
            anstream::println!("{} {} is right", styled(output::GOOD, "ok:"), file.display());
            Ok(())
        }
    }
}

/// # Errors
/// [`ErrorKind::InvalidConfig`] where something is there already.
fn write_new(path: &Path) -> Result<()> {
    let file = std::fs::File::options().write(true).create_new(true).open(path);
    let mut file = file.map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::new(ErrorKind::InvalidConfig, "the file is there already; it is not replaced")
                .with_context("path", path.display().to_string())
        }
        _ => Error::io(path, source),
    })?;
    file.write_all(TEMPLATE.as_bytes()).map_err(|source| Error::io(path, source))
}
