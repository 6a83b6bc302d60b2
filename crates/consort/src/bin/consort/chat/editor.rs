//! Line editing on a terminal.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use consort_core::{Error, ErrorKind, Result};
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{
    Cmd, ConditionalEventHandler, Config, Context, Event, EventContext, EventHandler, Helper, KeyCode, KeyEvent,
    Modifiers, RepeatCount,
};

use super::command::NAMES;
use super::input::{Assembled, Input, Typed, assemble};
use crate::output::{self, styled};

/// The editor of a terminal.
pub struct Editor {
    inner: rustyline::Editor<Assistance, FileHistory>,
    /// Where lines are remembered between chats, when that was asked for.
    history: Option<PathBuf>,
    /// Whether the line was empty when Ctrl-C was pressed.
    interrupted_empty: Arc<AtomicBool>,
}

impl Editor {
    /// An editor that remembers lines in `history`, or for this chat only.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the terminal cannot be used or the history cannot be read.
    pub fn new(history: Option<&Path>) -> Result<Self> {
        let config = Config::builder().auto_add_history(true).build();
        let mut inner = rustyline::Editor::with_config(config).map_err(|source| terminal(source, "opened"))?;
        inner.set_helper(Some(Assistance { files: FilenameCompleter::new() }));
        let interrupted_empty = Arc::new(AtomicBool::new(false));
        let key = OnInterrupt { empty: Arc::clone(&interrupted_empty) };
        inner.bind_sequence(KeyEvent::ctrl('C'), EventHandler::Conditional(Box::new(key)));
        inner.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), Cmd::Newline);
        if let Some(path) = history.filter(|path| path.exists()) {
            inner.load_history(path).map_err(|source| {
                Error::new(ErrorKind::Io, "the history could not be read")
                    .with_context("path", path.display().to_string())
                    .with_source(source)
            })?;
        }
        Ok(Self { inner, history: history.map(Path::to_owned), interrupted_empty })
    }

    /// The next message.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the terminal fails.
    pub fn next(&mut self, prompt: &str) -> Result<Input> {
        // The styled prompt is left out by the editor where colours do not belong.
        let prompts = (prompt.to_owned(), styled(output::HEADING, prompt));
        match self.inner.readline(&prompts) {
            Ok(text) => {
                if let Some(path) = &self.history
                    && let Err(error) = self.inner.append_history(path)
                {
                    tracing::warn!(path = %path.display(), %error, "the history could not be written");
                }
                Ok(Input::Typed(match assemble(&text) {
                    Assembled::Whole(typed) => typed,
                    Assembled::Open => Typed::Line(text),
                }))
            }
            Err(ReadlineError::Interrupted) if self.interrupted_empty.load(Ordering::Relaxed) => {
                Ok(Input::InterruptedEmpty)
            }
            Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
            Err(ReadlineError::Eof) => Ok(Input::End),
            Err(source) => Err(terminal(source, "read")),
        }
    }
}

fn terminal(source: ReadlineError, what: &str) -> Error {
    Error::new(ErrorKind::Io, format!("the terminal could not be {what}")).with_source(source)
}

/// Notes whether there was anything on the line before the editor throws it away.
struct OnInterrupt {
    empty: Arc<AtomicBool>,
}

impl ConditionalEventHandler for OnInterrupt {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        self.empty.store(context.line().is_empty(), Ordering::Relaxed);
        Some(Cmd::Interrupt)
    }
}

/// Completes commands and file names, and knows when a message goes on.
struct Assistance {
    files: FilenameCompleter,
}

impl Helper for Assistance {}

impl Completer for Assistance {
    type Candidate = Pair;

    fn complete(&self, line: &str, position: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = line.get(..position).unwrap_or(line);
        match before.split_once(char::is_whitespace) {
            None if before.starts_with('/') => {
                let names = NAMES.into_iter().filter(|name| name.starts_with(before));
                Ok((0, names.map(|name| Pair { display: name.into(), replacement: format!("{name} ") }).collect()))
            }
            Some(("/image" | "/save" | "/load" | "/adapter", _)) => self.files.complete_path(line, position),
            _ => Ok((position, Vec::new())),
        }
    }
}

impl Hinter for Assistance {
    type Hint = String;
}

impl Highlighter for Assistance {}

impl Validator for Assistance {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match assemble(context.input()) {
            Assembled::Whole(_) => ValidationResult::Valid(None),
            Assembled::Open => ValidationResult::Incomplete,
        })
    }
}
