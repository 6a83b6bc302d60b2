//! Where lines come from, and when one is whole.

use std::io::BufRead;

use consort_core::{Error, ErrorKind, Result};

use super::editor::Editor;

/// The longest message, in bytes.
const MAX_MESSAGE: usize = 1 << 20;

/// Lines of input that are, or are not yet, a whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assembled {
    /// A message or a command.
    Whole(Typed),
    /// More is to come: the last line ends with a backslash, or a `"""` is open.
    Open,
}

/// What was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Typed {
    /// A line, or lines that were continued: a message or a command.
    Line(String),
    /// A `"""` block: a message, whatever it looks like.
    Block(String),
}

/// Puts lines together. A block begins with `"""` at the beginning of the text and ends with `"""` at the end of a line; a
/// backslash at the end of a line continues it on the next.
pub fn assemble(text: &str) -> Assembled {
    if let Some(block) = text.trim_start().strip_prefix("\"\"\"") {
        return match block.trim_end().strip_suffix("\"\"\"") {
            Some(inner) => {
                let inner = inner.strip_prefix('\n').unwrap_or(inner);
                Assembled::Whole(Typed::Block(inner.strip_suffix('\n').unwrap_or(inner).to_owned()))
            }
            None => Assembled::Open,
        };
    }
    if text.ends_with('\\') {
        return Assembled::Open;
    }
    Assembled::Whole(Typed::Line(text.replace("\\\n", "\n")))
}

/// What came in.
#[derive(Debug)]
pub enum Input {
    /// A message or a command.
    Typed(Typed),
    /// Ctrl-C at an empty prompt.
    InterruptedEmpty,
    /// Ctrl-C in the middle of a line, which is gone.
    Interrupted,
    /// Ctrl-D, or the end of the pipe.
    End,
}

/// A terminal with line editing, or a pipe.
pub enum Source {
    /// A person types.
    Terminal(Box<Editor>),
    /// Each line is a message.
    Pipe(Box<dyn BufRead>),
}

impl Source {
    /// The next message.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for what is no UTF-8 or too long, [`ErrorKind::Io`] when reading fails.
    pub fn next(&mut self, prompt: &str) -> Result<Input> {
        match self {
            Self::Terminal(editor) => editor.next(prompt),
            Self::Pipe(reader) => next_of_pipe(&mut **reader),
        }
    }
}

fn next_of_pipe(reader: &mut dyn BufRead) -> Result<Input> {
    let mut text = String::new();
    loop {
        let read = read_line(reader, &mut text)?;
        if read == 0 {
            // What was begun is said; the end of the pipe ends a block as well.
            return Ok(match text.trim_start().strip_prefix("\"\"\"") {
                _ if text.is_empty() => Input::End,
                Some(block) => Input::Typed(Typed::Block(block.trim_matches('\n').to_owned())),
                None => Input::Typed(Typed::Line(text.trim_end_matches(['\n', '\\']).replace("\\\n", "\n"))),
            });
        }
        match assemble(&text) {
            Assembled::Whole(typed) => return Ok(Input::Typed(typed)),
            Assembled::Open => text.push('\n'),
        }
    }
}

/// Appends a line without its end. 0: there is none.
fn read_line(reader: &mut dyn BufRead, text: &mut String) -> Result<usize> {
    use std::io::Read as _;

    let mut line = Vec::new();
    let left = MAX_MESSAGE.saturating_sub(text.len());
    let read = reader
        .take(left as u64 + 2)
        .read_until(b'\n', &mut line)
        .map_err(|source| Error::new(ErrorKind::Io, "the standard input could not be read").with_source(source))?;
    while matches!(line.last(), Some(b'\n' | b'\r')) {
        line.pop();
    }
    if line.len() > left {
        return Err(Error::new(ErrorKind::InvalidRequest, "a message is longer than 1 MiB"));
    }
    let line = String::from_utf8(line).map_err(|source| {
        Error::new(ErrorKind::InvalidRequest, "the standard input is no UTF-8").with_source(source)
    })?;
    text.push_str(&line);
    Ok(read)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn line(text: &str) -> Assembled {
        Assembled::Whole(Typed::Line(text.into()))
    }

    fn block(text: &str) -> Assembled {
        Assembled::Whole(Typed::Block(text.into()))
    }

    #[test]
    fn lines_and_blocks_end_where_they_should() {
        assert_eq!(assemble("Hello"), line("Hello"));
        assert_eq!(assemble("one\\"), Assembled::Open);
        assert_eq!(assemble("one\\\ntwo"), line("one\ntwo"));
        assert_eq!(assemble("\"\"\""), Assembled::Open);
        assert_eq!(assemble("\"\"\"one\n/two"), Assembled::Open);
        assert_eq!(assemble("\"\"\"\none\n/two\n\"\"\""), block("one\n/two"));
        assert_eq!(assemble("\"\"\"one\"\"\""), block("one"));
        assert_eq!(assemble("\"\"\"\"\"\""), block(""));
        assert_eq!(assemble("say \"\"\""), line("say \"\"\""));
    }

    fn all(text: &[u8]) -> Vec<Typed> {
        let mut source = Source::Pipe(Box::new(std::io::Cursor::new(text.to_vec())));
        let mut typed = Vec::new();
        while let Input::Typed(next) = source.next("").unwrap() {
            typed.push(next);
        }
        typed
    }

    #[test]
    fn each_line_of_a_pipe_is_a_message() {
        let found = all(b"one\r\n\ntwo \\\nthree\n\"\"\"\na\n\nb\n\"\"\"\nlast");
        let expected = [
            Typed::Line("one".into()),
            Typed::Line(String::new()),
            Typed::Line("two \nthree".into()),
            Typed::Block("a\n\nb".into()),
            Typed::Line("last".into()),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_open_at_the_end_is_said() {
        assert_eq!(all(b"one\\"), [Typed::Line("one".into())]);
        assert_eq!(all(b"\"\"\"\none\n"), [Typed::Block("one".into())]);
        assert_eq!(all(b""), []);
    }

    #[test]
    fn too_much_and_no_text_are_refused() {
        let refused = |bytes: Vec<u8>| {
            let mut source = Source::Pipe(Box::new(std::io::Cursor::new(bytes)));
            source.next("").unwrap_err().kind()
        };
        assert_eq!(refused(vec![0xff, b'\n']), ErrorKind::InvalidRequest);
        assert_eq!(refused(vec![b'x'; MAX_MESSAGE + 1]), ErrorKind::InvalidRequest);
        assert_eq!(refused("x\\\n".repeat(MAX_MESSAGE / 2).into_bytes()), ErrorKind::InvalidRequest);
        assert_eq!(all(&vec![b'x'; MAX_MESSAGE]).len(), 1);
    }
}
