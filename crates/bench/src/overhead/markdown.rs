//! The report for people.

use std::fmt::Write as _;

use super::record::{Bound, Distance, PathFigures, Verdict};
use super::{FIRST_TOKEN_BOUND, OverheadReport, TOKEN_BOUND};
use crate::report::{Summary, cell};

impl OverheadReport {
    /// The report as Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let (machine, config) = (&self.machine, &self.config);
        let _ = writeln!(text, "# {}: what our path costs over a bare HTTP client\n", self.title);
        let _ = writeln!(text, "Written by `{}`.\n", cell(&self.command));
        let _ = writeln!(
            text,
            "{}, {} of {} threads usable, {} on {}. Replies of {} tokens; {} rounds, in which the paths take turns; milliseconds.\n",
            machine.processor,
            machine.usable_threads,
            machine.threads,
            machine.system,
            machine.architecture,
            config.tokens,
            config.rounds,
        );
        text.push_str(
            "The bare client is a blocking socket for each reply: the JSON is written before the clock runs, and the answer is split at \
             blank lines and not read. Ours writes the request, reads each event, makes the tokens' text, keeps its books, and hands \
             events to a thread that waits for them. A difference is ours less the bare client's of the same round: the median over \
             the rounds (smallest–largest).\n\n",
        );
        for verdict in &self.verdicts {
            let _ = writeln!(text, "- {}", line(verdict));
        }
        text.push('\n');
        if !self.notes.is_empty() {
            text.push_str("## To be known\n\n");
            for note in &self.notes {
                let _ = writeln!(text, "- {}", note.replace('\n', " "));
            }
            text.push('\n');
        }
        for found in &self.cells {
            let _ = writeln!(text, "## {}\n", cell(&found.describe()));
            text.push_str(
                "| | first token p50 | p95 | between tokens p50 | p95 | reply, by its tokens p50 | p95 |\n|---|---:|---:|---:|---:|---:|---:|\n",
            );
            figures(&mut text, &found.bare);
            for (path, _) in &found.ours {
                figures(&mut text, path);
            }
            for (path, distance) in &found.ours {
                differences(&mut text, &path.name, distance);
            }
            text.push('\n');
        }
        text.push_str(
            "A reply, by its tokens: from asking to the last token, by the number of tokens. Where the server is faster than its readers, \
             tokens come many at once, and the time between two of them says nothing; this does. The bound for each token is held \
             against the larger of the two.\n",
        );
        text
    }
}

/// A verdict, in a line.
fn line(verdict: &Verdict) -> String {
    let (what, most) = match verdict.bound {
        Bound::FirstToken => ("to the first token", FIRST_TOKEN_BOUND),
        Bound::Token => ("for each token", TOKEN_BOUND),
    };
    let holds = if verdict.kept { "**holds**" } else { "**does not hold**" };
    format!(
        "{}, {what}: {:+.3} ms where it is most ({}); at most {most} ms {holds}.",
        cell(&verdict.path),
        verdict.found,
        cell(&verdict.cell)
    )
}

fn figures(text: &mut String, path: &PathFigures) {
    let _ = write!(text, "| {} |", cell(&path.name));
    for value in [path.first, path.between, path.whole].iter().flatten() {
        let _ = write!(text, " {value:.3} |");
    }
    text.push('\n');
}

fn differences(text: &mut String, name: &str, distance: &Distance) {
    let show = |summary: &Summary| format!("{:+.3} ({:+.3}–{:+.3})", summary.median, summary.least, summary.most);
    let Distance { first, between, whole } = distance;
    let _ =
        writeln!(text, "| difference, {} | {} | | {} | | {} | |", cell(name), show(first), show(between), show(whole));
}
