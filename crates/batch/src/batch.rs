//! A batch that is opened.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use consort_core::{Error, ErrorKind, Result};

use crate::journal::{Before, Journal};
use crate::line::Lines;
use crate::request::{Checked, Checker, Refused, Rules};

/// What is read at once, in bytes.
const BUFFER: usize = 256 << 10;

/// Where requests come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A file.
    File(PathBuf),
    /// The standard input, which cannot be read twice: such a run does not go on where it stopped.
    Stdin,
}

/// The files of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The requests.
    pub input: Input,
    /// Good answers.
    pub output: PathBuf,
    /// Failures. It is made with the first of them.
    pub errors: PathBuf,
}

/// Whether what is written already counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It does.
    Resume,
    /// It is thrown away.
    Anew,
}

/// A batch, opened where an earlier run stopped.
pub struct Batch {
    pub(crate) lines: Lines<Box<dyn BufRead + Send>>,
    pub(crate) checker: Checker,
    pub(crate) journal: Journal,
    pub(crate) input: PathBuf,
    before: Before,
    is_done: bool,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("input", &self.input).field("before", &self.before).finish_non_exhaustive()
    }
}

impl Batch {
    /// Opens the files, and finds out how far an earlier run has come. Until [`run`](crate::run) nothing is added.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidConfig`]: the output answers another input or is no output at all, or two of the files are one.
    /// - [`ErrorKind::Overloaded`]: another run writes the output.
    /// - Those of opening and reading.
    pub fn open(files: &Files, start: Start, rules: Rules) -> Result<Self> {
        distinct(files)?;
        let mut checker = Checker::new(rules);
        let most = rules.line_bytes();
        match &files.input {
            Input::Stdin => {
                let mut journal = Journal::open(&files.output, &files.errors)?;
                if start == Start::Anew {
                    journal.restart()?;
                } else if !journal.is_empty()? {
                    return Err(refuse(
                        "the output is there, and requests of the standard input cannot be read again to go on with it: \
                         name another output, or begin anew (--restart)",
                    )
                    .with_context("output", files.output.display().to_string()));
                }
                let input: Box<dyn BufRead + Send> = Box::new(BufReader::with_capacity(BUFFER, io::stdin()));
                let (lines, before) = (Lines::new(input, most), Before::default());
                Ok(Self { lines, checker, journal, input: "the standard input".into(), before, is_done: false })
            }
            Input::File(path) => {
                let mut lines = Lines::new(open(path)?, most);
                let mut journal = Journal::open(&files.output, &files.errors)?;
                let before = match start {
                    Start::Anew => journal.restart().map(|()| Before::default())?,
                    Start::Resume => journal.recover(path, &mut lines, &mut checker)?,
                };
                let unread = |source| Error::io(path, source).with_operation("batch::open");
                let mark = lines.mark();
                let is_done = lines.next_line().map_err(unread)?.is_none();
                lines.rewind(mark).map_err(unread)?;
                let lines = lines.map(|input| Box::new(input) as Box<dyn BufRead + Send>);
                Ok(Self { lines, checker, journal, input: path.clone(), before, is_done })
            }
        }
    }

    /// What stood in the files already.
    #[must_use]
    pub fn before(&self) -> &Before {
        &self.before
    }

    /// Whether every line is answered, so that nobody needs to be asked.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Up to where the input is answered, in bytes.
    #[must_use]
    pub fn answered_bytes(&self) -> u64 {
        self.lines.mark().offset
    }
}

/// Checks all lines of an input, and asks nobody. `refused` is told of each that is no request.
///
/// # Errors
/// Those of reading.
pub fn validate(input: &Input, rules: Rules, mut refused: impl FnMut(&Refused)) -> Result<u64> {
    let (path, reader): (&Path, Box<dyn BufRead>) = match input {
        Input::Stdin => (Path::new("the standard input"), Box::new(BufReader::with_capacity(BUFFER, io::stdin()))),
        Input::File(path) => (path, Box::new(open(path)?)),
    };
    let (mut lines, mut checker, mut good) = (Lines::new(reader, rules.line_bytes()), Checker::new(rules), 0);
    while let Some(line) = lines.next_line().map_err(|source| Error::io(path, source))? {
        match checker.check(line) {
            Checked::Request(_) => good += 1,
            Checked::Refused(wrong) => refused(&wrong),
        }
    }
    Ok(good)
}

/// Counts the lines of a file that are not blank.
///
/// # Errors
/// Those of reading.
pub fn count(path: &Path) -> Result<u64> {
    let mut input = open(path)?;
    let (mut count, mut blank) = (0, true);
    loop {
        let bytes = input.fill_buf().map_err(|source| Error::io(path, source))?;
        if bytes.is_empty() {
            return Ok(count + u64::from(!blank));
        }
        for byte in bytes {
            match byte {
                b'\n' => {
                    count += u64::from(!blank);
                    blank = true;
                }
                byte if byte.is_ascii_whitespace() => {}
                _ => blank = false,
            }
        }
        let length = bytes.len();
        input.consume(length);
    }
}

fn open(path: &Path) -> Result<BufReader<File>> {
    let failed = |source| Error::io(path, source).with_operation("batch::open");
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_file() {
        Ok(BufReader::with_capacity(BUFFER, file))
    } else {
        Err(refuse("the input is no plain file; `-` reads the standard input")
            .with_context("input", path.display().to_string()))
    }
}

fn distinct(files: &Files) -> Result<()> {
    // A file that is not there yet is known by its folder.
    let known = |path: &Path| {
        path.canonicalize().ok().or_else(|| {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Some(folder.canonicalize().ok()?.join(path.file_name()?))
        })
    };
    let input = match &files.input {
        Input::File(path) => Some(path.as_path()),
        Input::Stdin => None,
    };
    let (output, errors) = (known(&files.output), known(&files.errors));
    let input = input.and_then(known);
    let same = |one: &Option<PathBuf>, other: &Option<PathBuf>| one.is_some() && one == other;
    if same(&output, &errors) || same(&input, &output) || same(&input, &errors) {
        return Err(refuse("requests, answers and failures are three files")
            .with_context("output", files.output.display().to_string())
            .with_context("errors", files.errors.display().to_string()));
    }
    Ok(())
}

fn refuse(message: &str) -> Error {
    Error::new(ErrorKind::InvalidConfig, message).with_operation("batch::open")
}
