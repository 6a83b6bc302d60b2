//! What a run came to.

use std::fmt::Write as _;

use consort_batch::{End, Figures, Files};
use serde_json::{Value, json};

use super::progress::span;
use crate::output::{BAD, FAINT, GOOD, HEADING, printable, styled};

/// A word for how a run ended.
pub fn ended(end: &End) -> &'static str {
    match end {
        End::Complete => "complete",
        End::Stopped => "interrupted",
        End::Failed => "failed",
        End::Halted(_) => "halted",
    }
}

/// For people, on stderr.
pub fn text(end: &End, figures: &Figures, files: &Files) -> String {
    let mut text = String::new();
    let (style, word) = match end {
        End::Complete if figures.failed() == 0 => (GOOD, "done:"),
        End::Complete => (HEADING, "done:"),
        _ => (BAD, "not done:"),
    };
    let succeeded = figures.before.succeeded + figures.succeeded;
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} {succeeded} answered, {} failed", styled(style, word), figures.failed());
    let mut kinds = figures.before.failures.clone();
    for (code, count) in &figures.failures {
        *kinds.entry(code.clone()).or_default() += count;
    }
    for (code, count) in &kinds {
        let _ = writeln!(text, "  {count} × {}", printable(code));
    }
    let before = figures.before.succeeded + figures.before.failed;
    if before > 0 {
        let _ = writeln!(text, "  {before} of them by an earlier run");
    }
    let _ = writeln!(
        text,
        "  tokens: {} of prompts ({} reused), {} of replies; {}, {:.1} tokens/s",
        figures.prompt_tokens,
        figures.reused_tokens,
        figures.completion_tokens,
        span(figures.seconds),
        figures.tokens_per_second()
    );
    if figures.retries > 0 {
        let _ = writeln!(text, "  {} retries", figures.retries);
    }
    let mut paths = format!("  {}", files.output.display());
    if figures.failed() > 0 {
        let _ = write!(paths, ", failures in {}", files.errors.display());
    }
    let _ = writeln!(text, "{}", styled(FAINT, &paths));
    text
}

/// For machines.
pub fn json(end: &End, figures: &Figures, files: &Files) -> Value {
    let mut value = json!(figures);
    let more = json!({
        "end": ended(end),
        "done": figures.done(),
        "failed": figures.failed(),
        "tokens_per_second": figures.tokens_per_second(),
        "output": files.output,
        "errors": files.errors,
    });
    if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
        value.extend(more);
    }
    value
}
