//! How far a batch has come, shown while it runs.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use consort_batch::{Figures, Files, Input, Meter};
use indicatif::{ProgressBar, ProgressStyle};

use crate::output::{FAINT, styled};

/// How often a terminal is drawn anew.
const TICK: Duration = Duration::from_millis(100);
/// How often a line is written where nobody looks at a terminal.
const LINE: Duration = Duration::from_secs(10);

/// A thread that shows progress on stderr until it is dropped.
pub struct Progress {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Begins to show a run. The file's requests are counted beside it.
    pub fn show(meter: &Arc<Meter>, files: &Files) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let total = Arc::new(std::sync::OnceLock::new());
        if let Input::File(path) = &files.input {
            let (path, total) = (path.clone(), Arc::clone(&total));
            // Not waited for: a long file is counted while its first requests are answered.
            std::thread::spawn(move || consort_batch::count(&path).map(|count| total.set(count)));
        }
        let (stop, meter) = (Arc::clone(&ended), Arc::clone(meter));
        let thread = std::thread::spawn(move || {
            if std::io::stderr().is_terminal() {
                draw(&meter, &total, &stop);
            } else {
                tell(&meter, &total, &stop);
            }
        });
        Self { ended, thread: Some(thread) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It only shows: should it have failed, the run has not.
            let _ = thread.join();
        }
    }
}

type Total = std::sync::OnceLock<u64>;

fn draw(meter: &Meter, total: &Total, ended: &AtomicBool) {
    let bar = ProgressBar::no_length();
    let style =
        |template: &str| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style("{spinner} {pos} answered  {msg}"));
    while !ended.load(Ordering::Relaxed) {
        if let (Some(total), None) = (total.get(), bar.length()) {
            bar.set_length(*total);
            bar.set_style(style("{wide_bar} {pos}/{len}  {msg}"));
        }
        let figures = meter.figures();
        bar.set_position(figures.done());
        bar.set_message(said(&figures, total.get().copied()));
        bar.tick();
        std::thread::park_timeout(TICK);
    }
    bar.finish_and_clear();
}

fn tell(meter: &Meter, total: &Total, ended: &AtomicBool) {
    let mut last = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        std::thread::park_timeout(TICK);
        if last.elapsed() >= LINE {
            last = Instant::now();
            let (figures, total) = (meter.figures(), total.get().copied());
            let of = total.map_or(String::new(), |total| format!("/{total}"));
            anstream::eprintln!(
                "{}",
                styled(FAINT, &format!("{}{of} answered  {}", figures.done(), said(&figures, total)))
            );
        }
    }
}

fn said(figures: &Figures, total: Option<u64>) -> String {
    let mut said = format!("{} failed  {:.1} tokens/s", figures.failed(), figures.tokens_per_second());
    if figures.retries > 0 {
        said.push_str(&format!("  {} retries", figures.retries));
    }
    if let Some(left) = total.and_then(|total| time_left(figures, total)) {
        said.push_str(&format!("  {} left", span(left)));
    }
    said
}

/// At the rate of this run.
#[allow(clippy::cast_precision_loss)]
fn time_left(figures: &Figures, total: u64) -> Option<f64> {
    let now = figures.succeeded + figures.failed_now();
    let left = total.checked_sub(figures.done())?;
    (now > 0).then(|| figures.seconds / now as f64 * left as f64)
}

/// A span of time for people.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, _) => format!("{seconds:.1} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_reckoned_from_this_run_alone() {
        let mut figures = Figures { succeeded: 10, seconds: 5.0, completion_tokens: 50, ..Figures::default() };
        figures.before.succeeded = 80;
        assert_eq!(time_left(&figures, 100), Some(5.0));
        assert_eq!(said(&figures, Some(100)), "0 failed  10.0 tokens/s  5.0 s left");
        assert_eq!(time_left(&figures, 50), None, "the file has been added to since it was counted");
        assert_eq!(time_left(&Figures::default(), 50), None);
        assert_eq!((span(61.0), span(7260.0)), ("1 min 1 s".into(), "2 h 1 min".into()));
    }
}
