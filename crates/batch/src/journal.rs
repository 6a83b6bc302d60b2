//! The two files that a batch is written into, and what they tell whoever opens them again.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use consort_core::{Error, ErrorKind, Result};
use serde::Serialize;

use crate::line::Lines;
use crate::meter::count;
use crate::record::{Kept, may_begin};
use crate::request::Checker;

/// What stood in the files already.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Before {
    /// Good answers.
    pub succeeded: u64,
    /// Failures.
    pub failed: u64,
    /// What went wrong, in a word, and how often.
    pub failures: BTreeMap<String, u64>,
    /// Bytes that were cut off: of a line that broke off, or that its neighbours did not survive.
    pub cut_bytes: u64,
    /// By which the last answering model can be known (`system_fingerprint`).
    pub fingerprint: Option<String>,
}

/// Where answers and failures are written.
#[derive(Debug)]
pub(crate) struct Journal {
    output: Written,
    errors: Written,
}

/// One of the two files.
#[derive(Debug)]
struct Written {
    path: PathBuf,
    /// `None`: it is not there.
    file: Option<File>,
}

impl Written {
    fn open(path: &Path, create: bool) -> Result<Self> {
        let opened = OpenOptions::new().read(true).write(true).create(create).truncate(false).open(path);
        let file = match opened {
            Ok(file) => Some(file),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound && !create => None,
            Err(source) => return Err(Error::io(path, source).with_operation("batch::open")),
        };
        Ok(Self { path: path.to_owned(), file })
    }

    fn write(&mut self, record: &[u8]) -> Result<()> {
        if self.file.is_none() {
            *self = Self::open(&self.path, true)?;
        }
        let failed = |source| Error::io(&self.path, source).with_operation("batch::write");
        // It stands at the end: nobody else writes, and whatever was behind has been cut off.
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(record)).map_err(failed)
    }

    fn sync(&self) -> Result<()> {
        let failed = |source| Error::io(&self.path, source).with_operation("batch::write");
        self.file.as_ref().map_or(Ok(()), File::sync_data).map_err(failed)
    }

    /// Cuts the file off: the bytes that were behind.
    fn cut(&mut self, length: u64) -> Result<u64> {
        let failed = |source| Error::io(&self.path, source).with_operation("batch::open");
        let Some(file) = &mut self.file else { return Ok(0) };
        let behind = file.metadata().map_err(failed)?.len().saturating_sub(length);
        if behind > 0 {
            file.set_len(length).map_err(failed)?;
        }
        file.seek(SeekFrom::Start(length)).map_err(failed)?;
        Ok(behind)
    }
}

/// Reads what stands in one of the files, line by line.
struct Kepts<'a> {
    path: &'a Path,
    input: Option<BufReader<&'a File>>,
    /// The next line, and where it begins.
    head: Option<Kept>,
    at: u64,
    next: u64,
    number: u64,
}

impl<'a> Kepts<'a> {
    fn new(written: &'a Written) -> Result<Self> {
        let path = written.path.as_path();
        let mut input = written.file.as_ref();
        if let Some(file) = &mut input {
            file.seek(SeekFrom::Start(0)).map_err(|source| Error::io(path, source))?;
        }
        let mut kepts = Self {
            path,
            input: input.map(|file| BufReader::with_capacity(1 << 16, file)),
            head: None,
            at: 0,
            next: 0,
            number: 0,
        };
        kepts.advance()?;
        Ok(kepts)
    }

    /// Goes on to the next line. A last one without a line break is torn: nothing of it counts.
    fn advance(&mut self) -> Result<()> {
        self.at = self.next;
        self.head = None;
        let Some(input) = &mut self.input else { return Ok(()) };
        let mut line = Vec::new();
        // Before a line of what may be anything is read to its end.
        if !may_begin(input.fill_buf().map_err(|source| Error::io(self.path, source))?) {
            return Err(foreign(self.path, self.number + 1));
        }
        input.read_until(b'\n', &mut line).map_err(|source| Error::io(self.path, source))?;
        if line.is_empty() {
            return Ok(());
        }
        self.number += 1;
        if line.last() == Some(&b'\n') {
            self.next += line.len() as u64;
            self.head = Some(Kept::read(&line).ok_or_else(|| foreign(self.path, self.number))?);
        }
        Ok(())
    }
}

impl Journal {
    /// Opens the files for this process alone.
    ///
    /// # Errors
    /// Those of opening; [`ErrorKind::Overloaded`] while another run writes them.
    pub(crate) fn open(output: &Path, errors: &Path) -> Result<Self> {
        let output = Written::open(output, true)?;
        match output.file.as_ref().map_or(Ok(()), File::try_lock) {
            // A file system without locks.
            Ok(()) | Err(TryLockError::Error(_)) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(
                    ErrorKind::Overloaded,
                    "another run writes this output; wait for it, or end it",
                )
                .with_operation("batch::open")
                .with_context("output", output.path.display().to_string()));
            }
        }
        Ok(Self { output, errors: Written::open(errors, false)? })
    }

    /// Empties both files.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] where one of them was never a batch's output: what stands there is somebody's.
    pub(crate) fn restart(&mut self) -> Result<()> {
        for written in [&self.output, &self.errors] {
            let mut first = Vec::new();
            if let Some(file) = &written.file {
                let failed = |source| Error::io(&written.path, source);
                let mut file: &File = file;
                file.seek(SeekFrom::Start(0)).map_err(failed)?;
                file.take(64).read_to_end(&mut first).map_err(failed)?;
            }
            if !may_begin(&first) {
                return Err(foreign(&written.path, 1));
            }
        }
        self.output.cut(0)?;
        self.errors.cut(0)?;
        Ok(())
    }

    /// Whether nothing stands in either.
    pub(crate) fn is_empty(&self) -> Result<bool> {
        let length = |written: &Written| match &written.file {
            None => Ok(0),
            Some(file) => file.metadata().map(|found| found.len()).map_err(|source| Error::io(&written.path, source)),
        };
        Ok(length(&self.output)? == 0 && length(&self.errors)? == 0)
    }

    /// Finds out how far an earlier run has come: what stands in the files must answer the first lines of `lines`, in their
    /// order. Afterwards `lines` stands before the first line that is to be asked, and `checker` has seen those before it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`]: the files hold something else, or the input has changed. Nothing is changed then.
    pub(crate) fn recover<R: BufRead + std::io::Seek>(
        &mut self,
        input: &Path,
        lines: &mut Lines<R>,
        checker: &mut Checker,
    ) -> Result<Before> {
        let unread = |source| Error::io(input, source).with_operation("batch::open");
        let mut before = Before::default();
        let (mut output, mut errors) = (Kepts::new(&self.output)?, Kepts::new(&self.errors)?);
        while output.head.is_some() || errors.head.is_some() {
            let mark = lines.mark();
            let line = lines.next_line().map_err(unread)?;
            let name = line.as_ref().map(|line| line.id.name());
            let is = |kept: &Kept| Some(&kept.id) == name.as_ref();
            if let Some(kept) = output.head.take_if(|kept| is(kept)) {
                before.succeeded += 1;
                before.fingerprint = kept.fingerprint.or(before.fingerprint);
                output.advance()?;
            } else if let Some(kept) = errors.head.take_if(|kept| is(kept)) {
                before.failed += 1;
                count(&mut before.failures, &kept.code);
                errors.advance()?;
            } else {
                // Where the system itself went down, one file can have kept more than the other: what then answers later
                // lines of this very input is cut off. Anything else is no answer to this input.
                let number = line.map(|line| line.number);
                let mut missing: Vec<&Kept> = output.head.iter().chain(&errors.head).collect();
                while !missing.is_empty() {
                    let Some(line) = lines.next_line().map_err(unread)? else {
                        return Err(changed(input, &output, &errors, number));
                    };
                    let name = line.id.name();
                    missing.retain(|kept| kept.id != name);
                }
                lines.rewind(mark).map_err(unread)?;
                break;
            }
            if let Some(line) = line {
                checker.check(line);
            }
        }
        let ends = (output.at, errors.at);
        before.cut_bytes = self.output.cut(ends.0)? + self.errors.cut(ends.1)?;
        Ok(before)
    }

    /// Writes a line behind all others.
    pub(crate) fn write(&mut self, record: &[u8], is_failure: bool) -> Result<()> {
        if is_failure { self.errors.write(record) } else { self.output.write(record) }
    }

    /// Sees to it that what is written survives the system.
    pub(crate) fn sync(&self) -> Result<()> {
        self.output.sync()?;
        self.errors.sync()
    }
}

fn foreign(path: &Path, number: u64) -> Error {
    Error::new(
        ErrorKind::InvalidConfig,
        "this file is there, and it is no output of a batch: it is not touched; name another one",
    )
    .with_operation("batch::open")
    .with_context("path", path.display().to_string())
    .with_context("line", number.to_string())
}

fn changed(input: &Path, output: &Kepts<'_>, errors: &Kepts<'_>, number: Option<u64>) -> Error {
    let error = Error::new(
        ErrorKind::InvalidConfig,
        "the output answers another input: the input has changed since, or belongs to other files; --restart begins anew, \
         and throws away what was answered",
    )
    .with_operation("batch::open")
    .with_context("input", input.display().to_string())
    .with_context("input line", number.map_or_else(|| "the end".to_owned(), |number| number.to_string()));
    let named = [("output", output), ("errors", errors)];
    named.into_iter().filter(|(_, kepts)| kepts.head.is_some()).fold(error, |error, (key, kepts)| {
        error.with_context(key, format!("{}, line {}", kepts.path.display(), kepts.number))
    })
}
