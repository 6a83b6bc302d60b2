//! The verdict for people.

use std::fmt::Write as _;

use super::{Acceptance, Judged, Outcome, Verdict};
use crate::report::cell;

impl Acceptance {
    /// The verdict in words: `rejected (provisional)`.
    #[must_use]
    pub fn headline(&self) -> String {
        let verdict = match &self.verdict {
            Verdict::Accepted => "accepted".to_owned(),
            Verdict::BetterOnAxis { axis, .. } => format!("better on an axis: {axis}"),
            Verdict::Rejected => "rejected".to_owned(),
        };
        if self.provisional.is_empty() { verdict } else { format!("{verdict} (provisional)") }
    }

    /// The verdict as Markdown, each rule with its figure.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "# The gate: {} against {}\n", cell(&self.backend), cell(&self.against));
        let _ = writeln!(text, "**{}**\n", self.headline());
        if let Verdict::BetterOnAxis { trade_off, .. } = &self.verdict {
            let _ = writeln!(text, "The trade-off: {}\n", cell(trade_off));
        }
        if !self.provisional.is_empty() {
            text.push_str("Provisional, because\n\n");
            for reason in &self.provisional {
                let _ = writeln!(text, "- {}", cell(reason));
            }
            text.push('\n');
        }
        let _ = writeln!(text, "From the reports {}.\n", self.reports.join(", "));
        for (title, rules) in [
            ("What every backend must keep", &self.conditions),
            ("Parity", &self.parity),
            ("Clearly better", &self.axes),
        ] {
            table(&mut text, title, rules);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }
}

fn table(text: &mut String, title: &str, rules: &[Judged]) {
    let _ = writeln!(text, "## {title}\n\n| rule | found | |\n|---|---|---|");
    for rule in rules {
        let outcome = match rule.outcome {
            Outcome::Kept => "kept",
            Outcome::Broken => "**not kept**",
            Outcome::NotShown => "**not shown**",
        };
        let required = if rule.required { "" } else { ", not required here" };
        let _ = writeln!(text, "| {} | {} | {outcome}{required} |", cell(&rule.rule), cell(&rule.figure));
    }
    text.push('\n');
}
