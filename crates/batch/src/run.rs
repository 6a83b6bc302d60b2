//! The run: so many requests at once, and their answers in order.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use consort_core::{Error, ErrorKind, Result};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::batch::Batch;
use crate::journal::Journal;
use crate::line::Lines;
use crate::meter::{Meter, Usage, count};
use crate::record;
use crate::request::{Checked, Checker, Request};
use crate::retry::{Blame, Gate, RetryPolicy, Verdict, judge};
use crate::target::{Answer, Fault, Target};
use crate::window::{Finished, Window};

/// The longest pause of a request that waits for its turn in this process.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
const FIRST_WAIT: Duration = Duration::from_millis(20);

/// How a batch is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunSettings {
    /// Requests that are under way at once.
    pub in_flight: usize,
    /// Requests that are begun and not written: how far a slow one lets the others run ahead.
    pub window: usize,
    /// Bytes of answers that wait for those before them; beyond it nothing new is begun.
    pub held_bytes: usize,
    /// What is asked again.
    pub retry: RetryPolicy,
    /// Whether the run stops at the first failure.
    pub at_failure: AtFailure,
}

/// What a failure does to the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AtFailure {
    /// It goes on.
    #[default]
    GoOn,
    /// It stops, when the failure is written.
    Stop,
}

impl RunSettings {
    /// So many requests at once, and four times as many in the window.
    #[must_use]
    pub fn new(in_flight: usize) -> Self {
        let in_flight = in_flight.max(1);
        Self {
            in_flight,
            window: in_flight.saturating_mul(4),
            held_bytes: 256 << 20,
            retry: RetryPolicy::default(),
            at_failure: AtFailure::default(),
        }
    }
}

/// How a run ended. In every case the files are such that the same call goes on.
#[derive(Debug)]
pub enum End {
    /// Every line is answered, well or not.
    Complete,
    /// Somebody asked for it.
    Stopped,
    /// A request failed, and the run was to stop then.
    Failed,
    /// No request can be answered now.
    Halted(Error),
}

/// Runs a batch to its end, or until `stop`: then nothing new is begun, what is finished is written in order, and what is
/// under way is dropped.
///
/// # Errors
/// The input cannot be read, or the output not be written.
pub async fn run(
    batch: Batch,
    target: Arc<dyn Target>,
    settings: &RunSettings,
    meter: &Arc<Meter>,
    stop: impl Future<Output = ()>,
) -> Result<End> {
    let Batch { lines, checker, mut journal, input, .. } = batch;
    // One line is read while the one before it waits for room.
    let (sender, mut queue) = mpsc::channel(1);
    let reader = std::thread::Builder::new().name("batch-reader".into()).spawn(move || read(lines, checker, &sender));
    reader.map_err(|source| Error::new(ErrorKind::Unexpected, "no thread could be started").with_source(source))?;
    let asker = Arc::new(Asker::new(target, settings.retry, Arc::clone(meter)));
    let (mut window, mut asked, mut all_read) = (Window::default(), JoinSet::new(), false);
    let mut stop = pin!(stop);
    let end = loop {
        if let Some(end) = write(&mut window, &mut journal, meter, settings.at_failure)? {
            break end;
        }
        if all_read && window.len() == 0 {
            break End::Complete;
        }
        let room = !all_read
            && asked.len() < settings.in_flight.max(1)
            && window.len() < settings.window.max(1)
            && window.held_bytes() <= settings.held_bytes;
        tokio::select! {
            biased;
            () = &mut stop => break End::Stopped,
            Some(answered) = asked.join_next() => {
                match answered.map_err(|source| Error::new(ErrorKind::Unexpected, "a request was lost").with_source(source))? {
                    (number, Outcome::Finished(finished)) => window.finish(number, finished),
                    (_, Outcome::Halted(error)) => break End::Halted(error),
                }
            }
            line = queue.recv(), if room => match line {
                None => all_read = true,
                Some(Err(source)) => return Err(Error::io(&input, source).with_operation("batch::read")),
                Some(Ok((end, Checked::Request(request)))) => {
                    let (number, asker) = (window.open(), Arc::clone(&asker));
                    asked.spawn(async move { (number, asker.answer(&request, end).await) });
                }
                Some(Ok((end, Checked::Refused(refused)))) => {
                    let (record, failure) = (record::refused(&refused), Some(refused.code.to_owned()));
                    let number = window.open();
                    window.finish(number, Finished { record, failure, usage: Usage::default(), end });
                }
            },
        }
        meter.change(|figures| {
            figures.most_in_flight = figures.most_in_flight.max(asked.len());
            figures.most_in_window = figures.most_in_window.max(window.len());
            figures.most_held_bytes = figures.most_held_bytes.max(window.held_bytes());
        });
    };
    if !matches!(end, End::Failed) {
        while let Some(answered) = asked.try_join_next() {
            if let Ok((number, Outcome::Finished(finished))) = answered {
                window.finish(number, finished);
            }
        }
        write(&mut window, &mut journal, meter, AtFailure::GoOn)?;
    }
    // Whatever is under way ends here; what it would have said is asked anew.
    asked.abort_all();
    journal.sync()?;
    Ok(end)
}

type Read = std::io::Result<(u64, Checked)>;

fn read(mut lines: Lines<impl std::io::BufRead>, mut checker: Checker, to: &mpsc::Sender<Read>) {
    loop {
        let read = match lines.next_line() {
            Ok(None) => return,
            Ok(Some(line)) => Ok((line.end, checker.check(line))),
            Err(error) => Err(error),
        };
        let failed = read.is_err();
        // Nobody listens: the run has ended.
        if to.blocking_send(read).is_err() || failed {
            return;
        }
    }
}

/// Writes what is finished and has nobody before it.
fn write(window: &mut Window, journal: &mut Journal, meter: &Meter, at_failure: AtFailure) -> Result<Option<End>> {
    while let Some(Finished { record, failure, usage, end }) = window.take() {
        journal.write(&record, failure.is_some())?;
        meter.change(|figures| {
            match &failure {
                None => figures.succeeded += 1,
                Some(code) => count(&mut figures.failures, code),
            }
            figures.prompt_tokens = figures.prompt_tokens.saturating_add(usage.prompt_tokens);
            figures.reused_tokens = figures.reused_tokens.saturating_add(usage.reused_tokens);
            figures.completion_tokens = figures.completion_tokens.saturating_add(usage.completion_tokens);
            figures.input_bytes = end;
        });
        if failure.is_some() && at_failure == AtFailure::Stop {
            return Ok(Some(End::Failed));
        }
    }
    Ok(None)
}

/// What became of one request.
enum Outcome {
    Finished(Finished),
    Halted(Error),
}

/// Asks, and asks again.
struct Asker {
    target: Arc<dyn Target>,
    policy: RetryPolicy,
    meter: Arc<Meter>,
    gate: Gate,
    /// Requests that are with the target now.
    asking: AtomicUsize,
    /// Outcomes that stood, of any request.
    settled: AtomicU64,
    retried: AtomicU64,
}

impl Asker {
    fn new(target: Arc<dyn Target>, policy: RetryPolicy, meter: Arc<Meter>) -> Self {
        Self {
            target,
            policy,
            meter,
            gate: Gate::default(),
            asking: AtomicUsize::new(0),
            settled: AtomicU64::new(0),
            retried: AtomicU64::new(0),
        }
    }

    async fn answer(&self, request: &Request, end: u64) -> Outcome {
        let mut settled_before = None;
        let (mut failures, mut waits, mut refused_alone) = (0_u32, 0_u32, 0_u32);
        loop {
            self.gate.pass().await;
            let others = Asking::begin(&self.asking);
            let outcome = self.target.ask(request).await;
            let alone = others.alone();
            drop(others);
            let body = outcome.as_ref().ok().and_then(|answer| serde_json::from_slice::<Value>(&answer.body).ok());
            let finished = || Outcome::Finished(finish(request, &outcome, body.as_ref(), end));
            match judge(self.target.place(), &outcome, body.as_ref()) {
                Verdict::Final => {
                    self.settled.fetch_add(1, Ordering::Relaxed);
                    return finished();
                }
                Verdict::Hopeless(why) => {
                    return Outcome::Halted(halted(ErrorKind::InvalidConfig, why, request, &outcome));
                }
                Verdict::Busy => {
                    // Whoever is refused though nobody else is there asks for more than there is.
                    refused_alone += u32::from(alone);
                    if refused_alone >= self.policy.attempts.max(1) {
                        return finished();
                    }
                    waits = waits.saturating_add(1);
                    self.meter.change(|figures| figures.waits += 1);
                    let policy = RetryPolicy { first_pause: FIRST_WAIT, longest_pause: LONGEST_WAIT, ..self.policy };
                    tokio::time::sleep(policy.pause(waits)).await;
                }
                Verdict::Again(blame) => {
                    failures += 1;
                    let settled = self.settled.load(Ordering::Relaxed);
                    let before = *settled_before.get_or_insert(settled);
                    if failures >= self.policy.attempts.max(1) {
                        // Nobody was answered from its first failure to its last: it is not this request.
                        if blame == Blame::Server && settled == before {
                            let why = "the server answers no request now";
                            return Outcome::Halted(halted(ErrorKind::Remote, why, request, &outcome));
                        }
                        return finished();
                    }
                    if self.policy.budget.is_some_and(|most| self.retried.fetch_add(1, Ordering::Relaxed) >= most) {
                        let why = "as many requests were asked again as may be (the retry budget)";
                        return Outcome::Halted(halted(ErrorKind::Remote, why, request, &outcome));
                    }
                    self.meter.change(|figures| figures.retries += 1);
                    tracing::debug!(
                        line = request.number,
                        failures,
                        status = status(&outcome),
                        "a request is asked again"
                    );
                    let wished =
                        outcome.as_ref().ok().and_then(|answer| answer.retry_after).filter(|pause| !pause.is_zero());
                    if let Some(pause) = wished {
                        self.gate.close_for(pause);
                    } else {
                        tokio::time::sleep(self.policy.pause(failures)).await;
                    }
                }
            }
        }
    }
}

/// A request that is with the target.
struct Asking<'a> {
    count: &'a AtomicUsize,
    found: usize,
}

impl<'a> Asking<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        Self { count, found: count.fetch_add(1, Ordering::Relaxed) }
    }

    /// Nobody else is there, neither when it began nor now.
    fn alone(&self) -> bool {
        self.found == 0 && self.count.load(Ordering::Relaxed) == 1
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

fn finish(request: &Request, outcome: &Result<Answer, Fault>, body: Option<&Value>, end: u64) -> Finished {
    let usage = body.map(Usage::read).unwrap_or_default();
    let (record, failure) = match outcome {
        Ok(answer) if answer.is_good() => (record::answered(request, answer), None),
        Ok(answer) => (record::answered(request, answer), Some(record::code_of(u64::from(answer.status), body))),
        Err(fault) => (record::unanswered(request, fault), Some(fault.code.to_owned())),
    };
    Finished { record, failure, usage, end }
}

fn status(outcome: &Result<Answer, Fault>) -> u16 {
    outcome.as_ref().map_or(0, |answer| answer.status)
}

fn halted(kind: ErrorKind, why: &str, request: &Request, outcome: &Result<Answer, Fault>) -> Error {
    let last = match outcome {
        Ok(answer) => format!("status {}", answer.status),
        Err(fault) => fault.message.clone(),
    };
    Error::new(
        kind,
        format!("{why}: the run stops; what was answered is written, and the same command goes on from there"),
    )
    .with_operation("batch::run")
    .with_context("line", request.number.to_string())
    .with_context("last", last)
}
