//! Server-sent events (WHATWG HTML, "Server-sent events"), as far as chat servers use them: the `data` of each event.

use std::io::BufRead;

use consort_core::{Error, ErrorKind, Result};

/// The longest event that is taken, in bytes. The longest that chat servers send is a usage with its timings.
const MAX_EVENT: usize = 1 << 20;

/// Reads events one by one.
pub(super) struct Events<R> {
    from: R,
}

impl<R: BufRead> Events<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from }
    }

    /// The data of the next event, `None` at the end of the stream. An event that the end cuts off is dropped, as the
    /// standard says.
    ///
    /// # Errors
    /// [`ErrorKind::Remote`] when reading fails, or the event is too long or no UTF-8.
    pub(super) fn next(&mut self) -> Result<Option<String>> {
        let (mut data, mut any) = (String::new(), false);
        loop {
            let Some(line) = self.line()? else { return Ok(None) };
            if line.is_empty() {
                if any {
                    return Ok(Some(data));
                }
                continue;
            }
            // Comments begin with a colon; fields other than `data` mean nothing to us.
            let Some(value) = line.strip_prefix("data:") else { continue };
            if any {
                data.push('\n');
            }
            any = true;
            data.push_str(value.strip_prefix(' ').unwrap_or(value));
            if data.len() > MAX_EVENT {
                return Err(remote("an event of the stream is longer than a mebibyte"));
            }
        }
    }

    /// The next line without its end, `None` at the end of the stream.
    fn line(&mut self) -> Result<Option<String>> {
        let mut line = Vec::new();
        loop {
            let found = self.from.fill_buf().map_err(|source| remote("the stream was cut off").with_source(source))?;
            if found.is_empty() {
                return Ok(None);
            }
            let end = found.iter().position(|&byte| byte == b'\n');
            let take = end.unwrap_or(found.len());
            if line.len() + take > MAX_EVENT {
                return Err(remote("a line of the stream is longer than a mebibyte"));
            }
            line.extend_from_slice(found.get(..take).unwrap_or_default());
            self.from.consume(take + usize::from(end.is_some()));
            if end.is_some() {
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                let line = String::from_utf8(line).map_err(|_| remote("the stream is no UTF-8"))?;
                return Ok(Some(line));
            }
        }
    }
}

pub(super) fn remote(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Remote, message).with_operation("bench::http")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn events(text: &[u8]) -> Vec<String> {
        let mut events = Events::new(text);
        std::iter::from_fn(|| events.next().unwrap()).collect()
    }

    #[test]
    fn data_is_joined_and_the_rest_ignored() {
        let text = b": hello\n\nevent: x\ndata: a\ndata:b\r\n\r\nid: 1\n\n\ndata: [DONE]\n\ndata: cut";
        assert_eq!(events(text), ["a\nb", "[DONE]"]);
    }

    #[test]
    fn what_is_too_long_or_no_text_is_refused() {
        let long = [b"data: ".as_slice(), &vec![b'x'; MAX_EVENT + 10], b"\n\n"].concat();
        assert_eq!(Events::new(long.as_slice()).next().unwrap_err().kind(), ErrorKind::Remote);
        let many = b"data: 0123456789\n".repeat(MAX_EVENT / 8);
        assert_eq!(Events::new(many.as_slice()).next().unwrap_err().kind(), ErrorKind::Remote);
        assert_eq!(Events::new(b"data: \xff\n\n".as_slice()).next().unwrap_err().kind(), ErrorKind::Remote);
    }

    proptest! {
        #[test]
        fn any_cut_of_the_bytes_gives_the_same_events(data in prop::collection::vec("[a-zé ]{0,9}", 0..6), size in 1..9_usize) {
            let text: String = data.iter().map(|data| format!("data: {data}\n\n")).collect();
            let mut reader = Events::new(std::io::BufReader::with_capacity(size, text.as_bytes()));
            let found: Vec<_> = std::iter::from_fn(|| reader.next().unwrap()).collect();
            prop_assert_eq!(found, data);
        }
    }
}
