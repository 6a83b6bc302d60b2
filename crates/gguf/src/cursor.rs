//! A reader over bytes that cannot run past the end and cannot be talked into a large allocation.

use consort_core::{Error, ErrorKind, Result};

pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(crate) fn position(&self) -> usize {
        self.position
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.position.checked_add(count).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            return Err(invalid(format!(
                "the header needs {count} bytes at byte {}, but the file has {} left; it is truncated or damaged",
                self.position,
                self.remaining()
            )));
        };
        let taken = &self.bytes[self.position..end];
        self.position = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reads a count of entries of at least `min_bytes` bytes each, and refuses one that the rest of the file cannot hold,
    /// so that callers may allocate for it.
    pub(crate) fn count(&mut self, min_bytes: usize, what: &str) -> Result<usize> {
        let count = self.u64()?;
        self.check_count(count, min_bytes, what)
    }

    pub(crate) fn check_count(&self, count: u64, min_bytes: usize, what: &str) -> Result<usize> {
        let most = self.remaining() / min_bytes.max(1);
        usize::try_from(count).ok().filter(|&count| count <= most).ok_or_else(|| {
            invalid(format!(
                "the header announces {count} {what}, but the rest of the file can hold {most}; it is truncated or damaged"
            ))
        })
    }

    /// A string of at most `limit` bytes.
    pub(crate) fn string(&mut self, limit: usize, what: &str) -> Result<&'a str> {
        let length = self.count(1, "bytes of text")?;
        if length > limit {
            return Err(invalid(format!("a {what} of {length} bytes is longer than the {limit} that are allowed")));
        }
        std::str::from_utf8(self.take(length)?)
            .map_err(|source| invalid(format!("a {what} is not UTF-8 text")).with_source(source))
    }
}

pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidModel, message).with_operation("gguf::open")
}
