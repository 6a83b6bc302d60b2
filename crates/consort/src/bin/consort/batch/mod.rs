//! `consort batch`.

mod args;
mod inside;
mod progress;
mod summary;

use std::io::Write as _;
use std::num::NonZeroU64;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use consort::server::{App, Config, Keys, Parts, TextFloor};
use consort_batch::{
    AtFailure, Batch, End, Figures, Files, HttpConfig, HttpTarget, Input, Meter, RetryPolicy, Rules, RunSettings,
    Start, Target,
};
use consort_core::{Error, ErrorKind, Priority, Result};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

pub use args::{BatchArgs, HELP};

use crate::output::{BAD, FAINT, styled};
use crate::serve::Plan;
use crate::{exit, session};

/// Requests at once, where nobody says what the server takes.
const IN_FLIGHT: usize = 64;
/// The most that is chosen for a model in this process.
const MOST_IN_FLIGHT: usize = 512;
/// Requests that may wait for a slot: all that are in flight, whatever was chosen.
const QUEUED: usize = 4096;
/// What no reply takes: a year.
const NO_LIMIT: u64 = 365 * 24 * 3600;
/// Lines that `--validate` shows; the others are counted.
const SHOWN: usize = 50;

/// Runs a batch.
pub fn run(args: &BatchArgs) -> Result<ExitCode> {
    let config = configuration(args)?;
    let rules = if args.url.is_some() { Rules::server() } else { Rules::model(config.limits.body_bytes.get()) };
    if args.validate {
        return validate(args, rules);
    }
    let files = args.files()?;
    let start = if args.restart { Start::Anew } else { Start::Resume };
    let batch = Batch::open(&files, start, rules)?;
    if batch.before().cut_bytes > 0 {
        anstream::eprintln!("{}", styled(FAINT, "a line broke off when the last run ended; it is asked again"));
    }
    let meter = Arc::new(Meter::of(&batch));
    if batch.is_done() {
        // Everything is answered: no model is loaded for that.
        return report(args, &files, End::Complete, &meter.figures());
    }
    let (end, figures) = match &args.url {
        Some(url) => {
            let target = Arc::new(HttpTarget::new(http(args, url)?)?);
            let in_flight = args.in_flight.map_or(IN_FLIGHT, usize::from);
            let runtime = runtime(in_flight)?;
            let outcome = drive(args, &runtime, batch, target, in_flight, &files);
            // Whoever waits for a server still, after an interrupt, is not waited for.
            runtime.shutdown_background();
            outcome?
        }
        None => model(args, config, batch, &files)?,
    };
    report(args, &files, end, &figures)
}

/// The file that `serve` would read, as a batch takes it: no doors, no keys, no hurry.
fn configuration(args: &BatchArgs) -> Result<Config> {
    let mut config = args.config.as_deref().map(Config::load).transpose()?.unwrap_or_default();
    (config.server.api_key_env, config.server.api_key_file) = (None, None);
    config.telemetry.traces = false;
    let limits = &mut config.limits;
    limits.priority = Priority::Batch;
    limits.first_token_seconds = None;
    limits.reply_seconds = args.request_seconds.or(NonZeroU64::new(NO_LIMIT)).unwrap_or(limits.reply_seconds);
    Ok(config)
}

/// The model in this process.
fn model(args: &BatchArgs, config: Config, batch: Batch, files: &Files) -> Result<(End, Figures)> {
    let own_queue = config.scheduler.max_queued.is_some();
    let mut plan = Plan::of_model(config, &args.adapters, args.name.as_ref(), &args.model)?;
    if !own_queue {
        plan.load.scheduler.max_queued = QUEUED;
    }
    let files_of_model = plan.load.model.clone();
    let backend = consort::load(plan.load)?;
    same_model(&batch, &backend.info().digest)?;
    let (tokenizer, template) = consort::open_text(&files_of_model)?;
    let text = TextFloor { tokenizer: Some(tokenizer), template };
    anstream::eprint!("{}", session::evidence_lines(&backend.evidence()));
    let in_flight = match args.in_flight {
        Some(in_flight) => in_flight.get(),
        None => backend.capability().max_sequences.saturating_mul(2).clamp(1, MOST_IN_FLIGHT),
    };
    let runtime = runtime(in_flight)?;
    let parts = Parts { backend, text, config: plan.config, keys: Keys::none(), adapters: plan.adapters };
    let app = runtime.block_on(App::open(parts))?;
    let outcome = drive(args, &runtime, batch, Arc::new(inside::Model(app.inside())), in_flight, files);
    // What still computes for nobody is not waited for.
    runtime.shutdown_background();
    outcome
}

/// Answers of two models do not belong into one file.
fn same_model(batch: &Batch, digest: &[u8]) -> Result<()> {
    let now: String = digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    let now = format!("consort-{now}");
    match &batch.before().fingerprint {
        Some(before) if *before != now => Err(Error::new(
            ErrorKind::InvalidConfig,
            "another model has answered the first requests of this batch: go on with that one, name another output, or begin \
             anew (--restart)",
        )
        .with_operation("batch")
        .with_context("before", before.clone())
        .with_context("now", now)),
        _ => Ok(()),
    }
}

fn http(args: &BatchArgs, url: &str) -> Result<HttpConfig> {
    let mut config = HttpConfig::new(url);
    if let Some(seconds) = args.request_seconds {
        config.timeout = Duration::from_secs(seconds.get().min(NO_LIMIT));
    }
    config.connections = args.in_flight.map_or(IN_FLIGHT, usize::from);
    if let Some(name) = &args.api_key_env {
        let key = std::env::var(name).map_err(|_| {
            Error::new(ErrorKind::InvalidConfig, "the environment has no such variable, or it is no text")
                .with_operation("batch")
                .with_context("api_key_env", name.clone())
        })?;
        config.api_key = Some(key.trim().to_owned());
    }
    Ok(config)
}

/// A request that waits on a network, or for its prompt to be tokenized, is a thread.
fn runtime(in_flight: usize) -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(in_flight.saturating_add(16))
        .enable_all()
        .build()
        .map_err(|source| Error::new(ErrorKind::Unexpected, "no threads can be started").with_source(source))
}

fn drive(
    args: &BatchArgs,
    runtime: &Runtime,
    batch: Batch,
    target: Arc<impl Target>,
    in_flight: usize,
    files: &Files,
) -> Result<(End, Figures)> {
    let mut settings = RunSettings::new(in_flight);
    settings.window = args.window.map_or(settings.window, usize::from);
    settings.retry = RetryPolicy { attempts: args.attempts.get(), budget: args.retry_budget, ..RetryPolicy::default() };
    settings.at_failure = if args.fail_fast { AtFailure::Stop } else { AtFailure::GoOn };
    let meter = Arc::new(Meter::of(&batch));
    let progress = progress::Progress::show(&meter, files);
    let (stop, stopped) = oneshot::channel();
    runtime.spawn(interrupts(stop));
    let end = runtime.block_on(consort_batch::run(batch, target, &settings, &meter, async {
        if stopped.await.is_err() {
            std::future::pending::<()>().await;
        }
    }))?;
    drop(progress);
    Ok((end, meter.figures()))
}

/// The first signal ends the run; the second ends the program, whatever it does.
async fn interrupts(stop: oneshot::Sender<()>) {
    consort_server::asked_to_end().await;
    // The run has ended by itself.
    let _ = stop.send(());
    consort_server::asked_to_end().await;
    std::process::exit(i32::from(exit::INTERRUPTED));
}

/// Says what the run came to.
fn report(args: &BatchArgs, files: &Files, end: End, figures: &Figures) -> Result<ExitCode> {
    anstream::eprint!("{}", summary::text(&end, figures, files));
    if args.json {
        say(&summary::json(&end, figures, files))?;
    }
    let code = match end {
        End::Halted(error) => return Err(error),
        End::Stopped => {
            let how = match files.input {
                Input::File(_) => "the run was interrupted; the same command goes on from there",
                Input::Stdin => "the run was interrupted; what was not answered was not kept",
            };
            anstream::eprintln!("{how}");
            exit::INTERRUPTED
        }
        End::Complete | End::Failed if figures.failed() > 0 => exit::SOME_FAILED,
        End::Complete | End::Failed => 0,
    };
    Ok(ExitCode::from(code))
}

/// Says what is wrong with a file.
fn validate(args: &BatchArgs, rules: Rules) -> Result<ExitCode> {
    let (mut wrong, mut shown) = (0_u64, Vec::new());
    let good = consort_batch::validate(&args.source(), rules, |refused| {
        wrong += 1;
        if shown.len() < SHOWN {
            let id = refused.custom_id.clone();
            shown.push(serde_json::json!({
                "line": refused.number, "custom_id": id, "code": refused.code, "param": refused.param, "message": refused.message,
            }));
        }
    })?;
    if args.json {
        say(&serde_json::json!({ "requests": good, "wrong": wrong, "errors": shown }))?;
    } else {
        for line in &shown {
            let text = |key: &str| line.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
            let number = line.get("line").and_then(serde_json::Value::as_u64).unwrap_or_default();
            anstream::eprintln!(
                "{} {}: {}",
                styled(BAD, &format!("line {number}:")),
                text("code"),
                crate::output::printable(&text("message"))
            );
        }
        anstream::eprintln!("{good} requests, {wrong} lines that are none");
    }
    Ok(ExitCode::from(if wrong > 0 { exit::SOME_FAILED } else { 0 }))
}

fn say(value: &serde_json::Value) -> Result<()> {
    let mut stdout = anstream::stdout();
    writeln!(stdout, "{value}")
        .and_then(|()| stdout.flush())
        .map_err(|source| Error::new(ErrorKind::Io, "the standard output could not be written").with_source(source))
}
