//! What goes through the server: a request as it was read, and an answer as it will be written.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

/// Which of the two protocols a request came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1 with JSON bodies and server-sent events.
    Http,
    /// gRPC over HTTP/2.
    Grpc,
}

/// A request, read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// How it came.
    pub protocol: Protocol,
    /// The method, in capitals. Always `POST` for gRPC.
    pub method: String,
    /// The path with its query, as it was sent. For gRPC, `/package.Service/Method`.
    pub path: String,
    /// Names in lower case, in the order of arrival. Values that are no text are left out.
    pub headers: Vec<(String, String)>,
    /// The body. For gRPC, the one message without its frame.
    pub body: Bytes,
}

impl Asked {
    /// The first header of this name (in lower case).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The path without its query.
    #[must_use]
    pub fn route(&self) -> &str {
        self.path.split('?').next().unwrap_or_default()
    }
}

/// One piece of an answer's body: a server-sent event with its blank line, a gRPC message, or a whole body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// How long to wait before it is sent.
    pub(crate) pause: Duration,
    /// What is sent. For gRPC, the message without its frame.
    pub(crate) bytes: Bytes,
}

impl Piece {
    /// A piece that is sent at once.
    #[must_use]
    pub(crate) fn now(bytes: impl Into<Bytes>) -> Self {
        Self { pause: Duration::ZERO, bytes: bytes.into() }
    }
}

/// What comes after the last piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ending {
    /// The answer ends as its protocol says.
    #[default]
    Complete,
    /// The server breaks the connection.
    Cut,
    /// The server sends nothing more and waits for the client to leave, as it did when it was recorded.
    Silence,
    /// The client left before there was a status: the server never answers.
    Unanswered,
}

/// An answer, before anything goes wrong with it.
pub(crate) struct Answer {
    /// The HTTP status. 200 for every gRPC answer; its own status stands in the trailers.
    pub(crate) status: u16,
    /// Headers beyond those of the framing.
    pub(crate) headers: Vec<(String, String)>,
    /// The body's length, if it is announced. Without it the body is chunked.
    pub(crate) length: Option<u64>,
    /// The body, made while it is sent.
    pub(crate) pieces: Box<dyn Iterator<Item = Piece> + Send>,
    /// What comes after the last piece.
    pub(crate) ending: Ending,
    /// gRPC's `grpc-status` and `grpc-message`, with whatever else the server said.
    pub(crate) trailers: Vec<(String, String)>,
    /// Whether a paused server holds the body back, as vLLM does with generation.
    pub(crate) pausable: bool,
}

impl Answer {
    /// A body of a known length.
    #[must_use]
    pub(crate) fn whole(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let headers =
            if content_type.is_empty() { Vec::new() } else { vec![("content-type".into(), content_type.into())] };
        Self {
            status,
            headers,
            length: Some(body.len() as u64),
            pieces: if body.is_empty() {
                Box::new(std::iter::empty())
            } else {
                Box::new(std::iter::once(Piece::now(body)))
            },
            ending: Ending::Complete,
            trailers: Vec::new(),
            pausable: false,
        }
    }

    /// A JSON body of a known length.
    #[must_use]
    pub(crate) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::whole(status, "application/json", body.to_string())
    }

    /// Server-sent events.
    #[must_use]
    pub(crate) fn events(pieces: impl Iterator<Item = Piece> + Send + 'static) -> Self {
        Self {
            status: 200,
            headers: vec![("content-type".into(), "text/event-stream; charset=utf-8".into())],
            length: None,
            pieces: Box::new(pieces),
            ending: Ending::Complete,
            trailers: Vec::new(),
            pausable: false,
        }
    }

    /// gRPC messages, then the status OK.
    #[must_use]
    pub(crate) fn messages(pieces: impl Iterator<Item = Piece> + Send + 'static) -> Self {
        Self {
            status: 200,
            headers: vec![("content-type".into(), "application/grpc".into())],
            length: None,
            pieces: Box::new(pieces),
            ending: Ending::Complete,
            trailers: vec![("grpc-status".into(), "0".into())],
            pausable: false,
        }
    }

    /// gRPC's status alone, as a server answers that refuses a call.
    #[must_use]
    pub(crate) fn refusal(code: GrpcCode, message: &str) -> Self {
        let mut answer = Self::messages(std::iter::empty());
        answer.trailers = status_trailers(code, message);
        answer
    }

    /// Adds a header.
    #[must_use]
    pub(crate) fn with_header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// A gRPC status code, by the number that goes over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GrpcCode(pub u32);

impl GrpcCode {
    /// The client cancelled.
    pub const CANCELLED: Self = Self(1);
    /// A malformed request.
    pub const INVALID_ARGUMENT: Self = Self(3);
    /// The deadline passed.
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    /// The named thing does not exist.
    pub const NOT_FOUND: Self = Self(5);
    /// The named thing exists already.
    pub const ALREADY_EXISTS: Self = Self(6);
    /// Too much at once.
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    /// The server's state does not allow it.
    pub const FAILED_PRECONDITION: Self = Self(9);
    /// The method is not there.
    pub const UNIMPLEMENTED: Self = Self(12);
    /// A defect of the server.
    pub const INTERNAL: Self = Self(13);
    /// The server cannot answer now.
    pub const UNAVAILABLE: Self = Self(14);
    /// No valid credentials.
    pub const UNAUTHENTICATED: Self = Self(16);
}

/// The trailers that carry a status. The message is percent-encoded as gRPC's HTTP/2 mapping asks.
pub(crate) fn status_trailers(code: GrpcCode, message: &str) -> Vec<(String, String)> {
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    vec![("grpc-status".into(), code.0.to_string()), ("grpc-message".into(), encoded)]
}

/// A gRPC message in its frame: not compressed, four bytes of length, the message.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}
