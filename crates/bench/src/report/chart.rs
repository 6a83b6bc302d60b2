//! The report's picture: one panel a figure, one bar a target and group, with its range.

use std::fmt::Write as _;

use super::{Report, Row};
use crate::live::Metric;

/// What is drawn, where it was measured.
const PANELS: [Metric; 4] = [Metric::FirstTokenP50, Metric::InterTokenP50, Metric::StreamRate, Metric::AggregateRate];
/// Colours of targets, told apart on light and on dark, also by those who see no red or no green (Okabe and Ito 2008).
const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"];
const WIDTH: f64 = 860.0;
const LABELS: f64 = 230.0;
const BARS: f64 = 480.0;
const BAR: f64 = 13.0;

impl Report {
    /// The report as an SVG picture, readable on light and on dark.
    #[must_use]
    pub fn chart(&self) -> String {
        let mut body = String::new();
        let mut y = 34.0;
        let _ = writeln!(body, r#"<text class="h" x="12" y="22">{}</text>"#, escaped(&self.title));
        for (index, target) in self.targets.iter().enumerate() {
            let name = format!("{} ({})", target.name, target.transport.describe());
            let _ = writeln!(
                body,
                r#"<rect x="12" y="{y:.0}" width="12" height="12" fill="{}"/><text x="30" y="{:.0}">{}</text>"#,
                colour(index),
                y + 10.0,
                escaped(&name)
            );
            y += 18.0;
        }
        for metric in PANELS {
            y = self.panel(&mut body, metric, y + 14.0);
        }
        let height = y + 12.0;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\" width=\"{WIDTH:.0}\" \
             height=\"{height:.0}\" role=\"img\" aria-label=\"{}\">\n<style>\ntext {{ font: 12px sans-serif; fill: #1f2328 }}\n\
             .h {{ font-weight: bold }}\n.r {{ stroke: #1f2328; stroke-width: 1 }}\n.b {{ fill: #ffffff }}\n\
             @media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3 }} .r {{ stroke: #e6edf3 }} .b {{ fill: #0d1117 }} }}\n\
             </style>\n<rect class=\"b\" width=\"100%\" height=\"100%\"/>\n{body}</svg>\n",
            escaped(&self.title)
        )
    }

    /// Draws one figure from `y` on, and gives where it ends.
    fn panel(&self, body: &mut String, metric: Metric, mut y: f64) -> f64 {
        let rows: Vec<&Row> = self.rows.iter().filter(|row| row.metric == metric).collect();
        let most = rows.iter().map(|row| row.summary.most).fold(0.0, f64::max);
        if most <= 0.0 {
            return y - 14.0;
        }
        let better = match metric.better() {
            crate::live::Better::Lower => "shorter is better",
            crate::live::Better::Higher => "longer is better",
        };
        y += 14.0;
        let _ = writeln!(body, r#"<text class="h" x="12" y="{y:.0}">{} ({better})</text>"#, escaped(metric.title()));
        y += 8.0;
        let groups = self.workload.groups.iter().filter(|group| rows.iter().any(|row| row.group == **group));
        for group in groups {
            let _ = writeln!(body, r#"<text x="12" y="{:.0}">{}</text>"#, y + BAR - 2.0, escaped(group));
            for (index, target) in self.targets.iter().enumerate() {
                let Some(row) = rows.iter().find(|row| row.group == *group && row.target == target.name) else {
                    continue;
                };
                let at = |value: f64| LABELS + BARS * value / most;
                let found = &row.summary;
                let middle = y + BAR / 2.0;
                let _ = writeln!(
                    body,
                    r#"<rect x="{LABELS:.0}" y="{y:.1}" width="{:.1}" height="{:.1}" fill="{}"/><line class="r" x1="{:.1}" x2="{:.1}" y1="{middle:.1}" y2="{middle:.1}"/><text x="{:.1}" y="{:.1}">{}</text>"#,
                    (at(found.median) - LABELS).max(1.0),
                    BAR - 2.0,
                    colour(index),
                    at(found.least),
                    at(found.most),
                    at(found.most) + 6.0,
                    y + BAR - 2.0,
                    escaped(&metric.show(found.median)),
                );
                y += BAR;
            }
            y += 6.0;
        }
        y
    }
}

fn colour(index: usize) -> &'static str {
    COLOURS.get(index % COLOURS.len()).copied().unwrap_or("#888888")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
