//! The lines of a batch, and their names.

use std::io::{self, BufRead, Read as _, Seek, SeekFrom};

/// What the hash of the first line begins with.
const SEED: &[u8] = b"consort batch 1";
/// What every name begins with, as in OpenAI's API.
pub(crate) const PREFIX: &str = "batch_req_";
/// So many bytes of a line that is too long are thrown away at once.
const SCRAP: u64 = 64 << 10;

/// A hash of a line and of all lines before it (BLAKE3). Two inputs that differ anywhere have different ids from there on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LineId([u8; 32]);

impl LineId {
    /// Before the first line.
    #[must_use]
    pub fn start() -> Self {
        Self(*blake3::hash(SEED).as_bytes())
    }

    /// The `id` of the line that answers this one: 96 bits of the hash.
    #[must_use]
    pub fn name(&self) -> String {
        let digits: String = self.0.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        format!("{PREFIX}{digits}")
    }

    fn hasher(&self) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        hasher
    }
}

/// A line that is not blank.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Which line of the file it is, from 1.
    pub number: u64,
    /// Its name.
    pub id: LineId,
    /// Its bytes without the line break. `None`: there are more than are kept.
    pub text: Option<Vec<u8>>,
    /// Where the next line begins, in bytes.
    pub end: u64,
}

/// A place between lines, to which one can go back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    pub(crate) offset: u64,
    pub(crate) number: u64,
    id: LineId,
}

/// Reads lines, one at a time, each within bounds.
#[derive(Debug)]
pub struct Lines<R> {
    input: R,
    at: Mark,
    most: usize,
}

impl<R: BufRead> Lines<R> {
    /// From the beginning of a batch. Of a line with more than `most` bytes only the name is kept.
    pub fn new(input: R, most: usize) -> Self {
        Self { input, at: Mark { offset: 0, number: 0, id: LineId::start() }, most }
    }

    /// The next line that is not blank; `None` at the end.
    ///
    /// # Errors
    /// Those of reading.
    pub fn next_line(&mut self) -> io::Result<Option<Line>> {
        loop {
            let mut bytes = Vec::new();
            let bound = self.most as u64 + 1;
            let read = (&mut self.input).take(bound).read_until(b'\n', &mut bytes)? as u64;
            if read == 0 {
                return Ok(None);
            }
            self.at.number += 1;
            self.at.offset += read;
            let ended = bytes.last() == Some(&b'\n');
            if ended {
                bytes.pop();
            }
            let mut hasher = self.at.id.hasher();
            hasher.update(&bytes);
            let whole = ended || read < bound;
            if whole && bytes.trim_ascii().is_empty() {
                continue;
            }
            if !whole {
                self.throw_away(&mut hasher)?;
            }
            self.at.id = LineId(*hasher.finalize().as_bytes());
            // Some editors put a byte order mark before the first line.
            if self.at.number == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
                bytes.drain(..3);
            }
            let text = whole.then_some(bytes);
            return Ok(Some(Line { number: self.at.number, id: self.at.id, text, end: self.at.offset }));
        }
    }

    fn throw_away(&mut self, hasher: &mut blake3::Hasher) -> io::Result<()> {
        let mut scrap = Vec::new();
        loop {
            scrap.clear();
            let read = (&mut self.input).take(SCRAP).read_until(b'\n', &mut scrap)?;
            self.at.offset += read as u64;
            let ended = scrap.last() == Some(&b'\n');
            if ended {
                scrap.pop();
            }
            hasher.update(&scrap);
            if ended || read == 0 {
                return Ok(());
            }
        }
    }

    pub(crate) fn mark(&self) -> Mark {
        self.at
    }

    /// The same place of another reader of the same bytes, which stands there.
    pub(crate) fn map<S>(self, other: impl FnOnce(R) -> S) -> Lines<S> {
        Lines { input: other(self.input), at: self.at, most: self.most }
    }
}

impl<R: BufRead + Seek> Lines<R> {
    /// Goes back.
    pub(crate) fn rewind(&mut self, mark: Mark) -> io::Result<()> {
        self.input.seek(SeekFrom::Start(mark.offset))?;
        self.at = mark;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{BufReader, Cursor};

    use proptest::prelude::*;

    use super::*;

    fn lines(bytes: &[u8], most: usize, buffer: usize) -> Vec<Line> {
        let mut lines = Lines::new(BufReader::with_capacity(buffer, bytes), most);
        std::iter::from_fn(|| lines.next_line().unwrap()).collect()
    }

    #[test]
    fn blank_lines_count_and_say_nothing() {
        let all = lines(b"\xef\xbb\xbfone\n\n \t\r\ntwo\r\nthree", 100, 8);
        let shown: Vec<_> = all.iter().map(|line| (line.number, line.text.as_deref().unwrap(), line.end)).collect();
        assert_eq!(shown, [(1, &b"one"[..], 7), (4, b"two\r", 17), (5, b"three", 22)]);
        assert_eq!(lines(b"\n\n", 100, 8), []);
        // Blank lines do not change the names of the others; anything else does, and of all that follow.
        let ids = |text: &[u8]| lines(text, 100, 8).iter().map(|line| line.id).collect::<Vec<_>>();
        let base = ids(b"a\nb\nc\n");
        assert_eq!(base, ids(b"a\n\nb\nc"));
        let other = ids(b"a\nB\nc\n");
        assert_eq!(base[0], other[0]);
        assert!(base[1] != other[1] && base[2] != other[2]);
        assert_ne!(ids(b"ab\nc")[1], ids(b"a\nbc")[1], "where lines end matters");
        assert_eq!(base[0].name().len(), PREFIX.len() + 24);
    }

    #[test]
    fn a_line_beyond_the_bound_is_passed_over_with_its_name() {
        let long = vec![b'x'; 200_000];
        let text = [b"a\n".as_slice(), &long, b"\nb\n"].concat();
        let all = lines(&text, 10, 16);
        assert_eq!(all.iter().map(|line| line.text.is_some()).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(all[2].end, text.len() as u64);
        // The bound does not change names.
        let ids = |most| lines(&text, most, 16).iter().map(|line| line.id).collect::<Vec<_>>();
        assert_eq!(ids(10), ids(1 << 20));
        assert!(lines(b"0123456789\n", 10, 16)[0].text.is_some(), "the line break is not part of it");
    }

    proptest! {
        #[test]
        fn any_bytes_are_lines(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b' '), any::<u8>()], 0..400), most in 1_usize..64, buffer in 1_usize..32) {
            let all = lines(&bytes, most, buffer);
            let expected: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').filter(|line| line.len() > most || !line.trim_ascii().is_empty()).collect();
            prop_assert_eq!(all.len(), expected.len());
            for (index, (line, expected)) in all.iter().zip(expected).enumerate() {
                prop_assert_eq!(line.text.is_some(), expected.len() <= most);
                if let Some(text) = &line.text {
                    let mark = line.number == 1 && expected.starts_with(b"\xef\xbb\xbf");
                    prop_assert_eq!(text.as_slice(), if mark { &expected[3..] } else { expected }, "{}", index);
                }
            }
            // From any line on, the rest is read as it was.
            let mut again = Lines::new(BufReader::with_capacity(buffer, Cursor::new(&bytes)), most);
            if let Some(first) = again.next_line().unwrap() {
                let mark = again.mark();
                while again.next_line().unwrap().is_some() {}
                again.rewind(mark).unwrap();
                prop_assert_eq!(first, all[0].clone());
                prop_assert_eq!(again.next_line().unwrap(), all.get(1).cloned());
            }
        }
    }
}
