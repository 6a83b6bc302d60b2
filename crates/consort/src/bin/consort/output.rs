//! What the commands print: styles, tables, errors, logs. Colours appear only on a terminal, and never with `NO_COLOR`.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Color, Style};
use consort_core::{Error, ErrorKind};

/// Headings.
pub const HEADING: Style = Style::new().bold();
/// What is of less interest.
pub const FAINT: Style = Style::new().dimmed();
/// What is well.
pub const GOOD: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Green)));
/// What is not.
pub const BAD: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Red))).bold();

/// One colour per persona.
pub const PERSONAS: [Style; 3] = [
    Style::new().fg_color(Some(Color::Ansi(AnsiColor::Cyan))).bold(),
    Style::new().fg_color(Some(Color::Ansi(AnsiColor::Yellow))).bold(),
    Style::new().fg_color(Some(Color::Ansi(AnsiColor::Magenta))).bold(),
];

/// `text` in `style`; the stream strips the codes where they do not belong.
pub fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// How the log is written.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line, for programs that collect logs.
    Json,
}

/// Logs go to stderr: `quiet` by default, more with `-v`; `CONSORT_LOG` takes a filter.
pub fn init_logs(verbose: u8, quiet: &str, format: LogFormat) {
    let default = match verbose {
        0 => quiet,
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("CONSORT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    // A second initialisation can only come from a test that calls this twice; the first one stays.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(anstream::stderr);
    let _ = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
}

/// Shows an error with its context, line by line, and what to do where the kind tells.
pub fn show_error(error: &Error) {
    let mut text = format!("{} {}\n", styled(BAD, "error:"), error.message());
    for (key, value) in error.context() {
        let _ = writeln!(text, "  {key}: {value}");
    }
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let _ = writeln!(text, "  caused by: {inner}");
        cause = inner.source();
    }
    let hint = match error.kind() {
        ErrorKind::DevicePolicy => Some("`consort doctor` shows what this machine has and what each backend would do"),
        ErrorKind::InvalidModel => Some("`consort inspect FILE` shows what a model file holds"),
        _ => None,
    };
    if let Some(hint) = hint {
        let _ = writeln!(text, "  hint: {hint}");
    }
    anstream::eprint!("{text}");
}

/// A table with aligned columns: the first to the left, the others to the right.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a heading row.
    pub fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.iter().map(ToString::to_string).collect()] }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// The table as text, heading first.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            let mut line = String::from("  ");
            for (column, cell) in row.iter().enumerate() {
                let padding = " ".repeat(widths[column] - cell.chars().count());
                let cell = if column == 0 { format!("{cell}{padding}") } else { format!("  {padding}{cell}") };
                line.push_str(&cell);
            }
            let style = if index == 0 { HEADING } else { Style::new() };
            let _ = writeln!(text, "{}", styled(style, line.trim_end()));
        }
        text
    }
}

/// A file's strings are not trusted to leave the terminal as it was.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}

/// The same for text of several lines.
pub fn printable_lines(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{FFFD}' } else { c }).collect()
}

/// A count of bytes for people.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[allow(clippy::cast_precision_loss)]
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let mut table = Table::new(["name", "n"]);
        table.row(["a".into(), "100".into()]);
        let text = anstream::adapter::strip_str(&table.render()).to_string();
        assert_eq!(text, "  name    n\n  a     100\n");
    }

    #[test]
    fn bytes_are_rounded() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
    }
}
