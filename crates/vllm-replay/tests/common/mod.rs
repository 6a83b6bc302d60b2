//! A client that sees what goes over the wire.
#![allow(dead_code)]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How a connection ended, or that it did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The answer ended as it should.
    Complete,
    /// FIN in the middle.
    Closed,
    /// RST.
    Reset,
    /// Nothing came any more.
    Silent,
}

/// An answer, as far as it came.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) status: u16,
    pub(crate) head: String,
    /// The chunks of a chunked body, or the one of a body of known length.
    pub(crate) chunks: Vec<Vec<u8>>,
    pub(crate) end: End,
}

impl Seen {
    pub(crate) fn body(&self) -> Vec<u8> {
        self.chunks.concat()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body()).unwrap()
    }
}

/// Sends a request.
pub(crate) fn send(stream: &mut TcpStream, method: &str, path: &str, body: &str) {
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
}

pub(crate) fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Asks on a connection of its own.
pub(crate) fn ask(to: SocketAddr, method: &str, path: &str, body: &str) -> Seen {
    let mut stream = connect(to);
    send(&mut stream, method, path, body);
    read(&mut stream)
}

/// Reads at most so long that silence is told from slowness.
pub(crate) fn ask_for(to: SocketAddr, limit: Duration, path: &str, body: &str) -> Seen {
    let mut stream = connect(to);
    stream.set_read_timeout(Some(limit)).unwrap();
    send(&mut stream, "POST", path, body);
    read(&mut stream)
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Reads one answer.
pub(crate) fn read(stream: &mut impl Read) -> Seen {
    let mut seen = Seen { status: 0, head: String::new(), chunks: Vec::new(), end: End::Complete };
    let mut bytes = Vec::new();
    // More bytes, or how it ended.
    let mut more = |bytes: &mut Vec<u8>| -> Result<(), End> {
        let mut part = [0_u8; 65536];
        match stream.read(&mut part) {
            Ok(0) => Err(End::Closed),
            Ok(read) => {
                bytes.extend_from_slice(&part[..read]);
                Ok(())
            }
            Err(error) => Err(match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => End::Silent,
                ErrorKind::ConnectionReset => End::Reset,
                _ => End::Closed,
            }),
        }
    };
    let result = (|| -> Result<(), End> {
        let at = loop {
            if let Some(at) = find(&bytes, b"\r\n\r\n") {
                break at + 4;
            }
            more(&mut bytes)?;
        };
        seen.head = String::from_utf8(bytes.drain(..at).collect()).unwrap().to_ascii_lowercase();
        seen.status = seen.head.split(' ').nth(1).unwrap().parse().unwrap();
        if let Some((_, length)) = seen.head.split_once("content-length: ") {
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            let ended = loop {
                if bytes.len() >= length {
                    break Ok(());
                }
                if let Err(end) = more(&mut bytes) {
                    break Err(end);
                }
            };
            seen.chunks.push(std::mem::take(&mut bytes));
            return ended;
        }
        loop {
            let at = loop {
                if let Some(at) = find(&bytes, b"\r\n") {
                    break at;
                }
                more(&mut bytes)?;
            };
            let size = usize::from_str_radix(std::str::from_utf8(&bytes[..at]).unwrap(), 16).unwrap();
            while bytes.len() < at + 2 + size + 2 {
                more(&mut bytes)?;
            }
            let chunk = bytes[at + 2..at + 2 + size].to_vec();
            bytes.drain(..at + 2 + size + 2);
            if size == 0 {
                return Ok(());
            }
            seen.chunks.push(chunk);
        }
    })();
    seen.end = result.err().unwrap_or(End::Complete);
    seen
}

/// A stream of so many tokens after token 3.
pub(crate) fn generate(tokens: u32) -> String {
    format!(r#"{{"model":"synthetic","token_ids":[1,2,3],"stream":true,"sampling_params":{{"max_tokens":{tokens}}}}}"#)
}
