//! What goes wrong, on purpose: a script of faults, each for the conversations that it names.
//!
//! A [`Fault`] changes an answer, or takes its place. [`When`] says which requests it meets. Several faults may meet the same
//! request; they apply in the order of the script (say, [`Fault::Slow`] and then [`Fault::Cut`]).

use std::time::Duration;

use crate::answer::{Asked, GrpcCode, Protocol};

/// Which requests a fault meets.
///
/// ```
/// use consort_vllm_replay::When;
///
/// // The third request to the generating route, and no other.
/// let when = When::containing("/inference/v1/generate").nth(3);
/// # let _ = when;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct When {
    containing: String,
    skip: u64,
    times: u64,
}

impl When {
    /// Every request.
    #[must_use]
    pub fn always() -> Self {
        Self::containing("")
    }

    /// Requests whose key contains this text. A key reads `POST /path {"body":"with sorted keys"}`, or
    /// `grpc /vllm.Inference/GenerateStream {…}`.
    #[must_use]
    pub fn containing(text: impl Into<String>) -> Self {
        Self { containing: text.into(), skip: 0, times: u64::MAX }
    }

    /// Only the `n`-th of them, counted from 1.
    #[must_use]
    pub fn nth(mut self, n: u64) -> Self {
        (self.skip, self.times) = (n.saturating_sub(1), 1);
        self
    }

    /// Only the first `n` of them.
    #[must_use]
    pub fn first(mut self, n: u64) -> Self {
        (self.skip, self.times) = (0, n);
        self
    }

    /// All of them from the `n`-th on, counted from 1.
    #[must_use]
    pub fn from(mut self, n: u64) -> Self {
        (self.skip, self.times) = (n.saturating_sub(1), u64::MAX);
        self
    }
}

/// How a connection is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The connection ends in the middle of the answer, in good order as far as TCP is concerned.
    Close,
    /// TCP says RST: "connection reset by peer".
    Reset,
    /// The stream alone is broken off: `RST_STREAM` in HTTP/2. In HTTP/1.1 the same as [`Cut::Close`].
    Stream,
}

/// How far an answer gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The request is read and nothing is answered, not even a status.
    Nothing,
    /// Status and headers, then so many pieces (events, messages).
    Pieces(u64),
}

/// Which of vLLM's front ends is imitated, where their answers differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FrontEnd {
    /// The Python front end. It speaks HTTP.
    #[default]
    Python,
    /// The Rust front end. It speaks HTTP and gRPC.
    Rust,
}

/// How a refusal with status 400 is worded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorShape {
    /// `{"error":{…,"code":400}}`: the Python front end.
    NumberCode,
    /// `{"error":{…,"code":"invalid_request_error"}}`: the Rust front end.
    TextCode,
    /// `{"detail":…}`: FastAPI before vLLM sees the request.
    Detail,
    /// Plain text.
    Text,
    /// A proxy's page.
    Html,
    /// No body at all.
    Empty,
    /// It says JSON, and is none.
    BrokenJson,
}

impl ErrorShape {
    /// All of them, for a test that wants each.
    pub const ALL: [Self; 7] =
        [Self::NumberCode, Self::TextCode, Self::Detail, Self::Text, Self::Html, Self::Empty, Self::BrokenJson];
}

/// What goes wrong with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The connection (or the stream) breaks.
    Cut {
        /// Where.
        after: After,
        /// How.
        how: Cut,
    },
    /// Nothing more comes, and the connection stays open. With [`After::Nothing`] the server never answers.
    Silence {
        /// Where.
        after: After,
    },
    /// A pause before every piece.
    Slow {
        /// How long.
        pause: Duration,
    },
    /// 503 with a text, as a server or its proxy answers that is starting or overloaded. gRPC: `UNAVAILABLE`.
    Unavailable {
        /// `Retry-After`, in seconds.
        retry_after: Option<u32>,
    },
    /// 429. gRPC: `RESOURCE_EXHAUSTED`.
    TooMany {
        /// `Retry-After`, in seconds.
        retry_after: Option<u32>,
    },
    /// 401 `{"error":"Unauthorized"}`. gRPC: `UNAUTHENTICATED`.
    Unauthorized,
    /// 404: the model does not exist. gRPC: `NOT_FOUND`.
    NoModel {
        /// Who says so.
        front_end: FrontEnd,
        /// The name that is not known.
        model: String,
    },
    /// 400. gRPC: `INVALID_ARGUMENT`, whatever the shape.
    BadRequest {
        /// How it is worded.
        shape: ErrorShape,
        /// What it says.
        message: String,
    },
    /// 500 in the Python front end's form. gRPC: `INTERNAL`.
    ServerError {
        /// What it says.
        message: String,
    },
    /// Any HTTP answer in the place of the true one.
    Instead {
        /// The status.
        status: u16,
        /// The body's type.
        content_type: String,
        /// The body.
        body: String,
    },
    /// After so many pieces, an event that carries an error, then `[DONE]`: what vLLM does when its engine dies.
    /// gRPC: the status `INTERNAL`.
    ErrorEvent {
        /// How many pieces come before.
        after: u64,
        /// Who says so.
        front_end: FrontEnd,
        /// What it says.
        message: String,
    },
    /// After so many messages, this status. HTTP/1.1 has none: there it is a [`Cut::Close`].
    Status {
        /// How many pieces come before.
        after: u64,
        /// The code.
        code: GrpcCode,
        /// What it says.
        message: String,
    },
    /// Pieces that carry a finish are left out; the stream ends in good order all the same (`[DONE]`, gRPC's OK). If the piece
    /// carries a token too, the token is left out with it.
    NoFinish,
    /// `[DONE]` is left out; the body ends in good order. Nothing changes for gRPC.
    NoDone,
    /// A comment before every event, and `event:`, `id:` and `retry:` lines in it, as server-sent events may have. Nothing
    /// changes for gRPC.
    Comments,
    /// Events end their lines with CR LF, which server-sent events allow. Nothing changes for gRPC.
    CarriageReturns,
    /// The body goes out in chunks of so many bytes (at least 1), across events and characters. Each is its own HTTP chunk or
    /// DATA frame.
    Split {
        /// Bytes in a chunk.
        bytes: usize,
    },
    /// The piece in which this byte lies goes out in two chunks, parted there. After [`Fault::Glue`], the whole body goes out in two.
    SplitAt {
        /// Bytes of the body before the boundary.
        at: usize,
    },
    /// The whole body goes out as one chunk: all events at once. Bodies beyond 64 MiB are parted.
    Glue,
    /// After so many pieces, an event of this many bytes, without a line's end in it: what a client must not keep in memory. It is
    /// made while it is sent. gRPC: a message whose frame announces that length.
    Gigantic {
        /// How many pieces come before.
        after: u64,
        /// How long it is.
        bytes: u64,
    },
    /// After so many pieces, one that is not what it says: broken JSON, or bytes that are no message.
    Garbage {
        /// How many pieces come before.
        after: u64,
    },
}

/// Which faults meet which requests, in order.
///
/// ```
/// use consort_vllm_replay::{After, Cut, Fault, Script, When};
///
/// // The first request is refused, the second breaks after three events, the rest goes well.
/// let script = Script::new()
///     .on(When::always().nth(1), Fault::Unavailable { retry_after: Some(1) })
///     .on(When::always().nth(2), Fault::Cut { after: After::Pieces(3), how: Cut::Reset });
/// # let _ = script;
/// ```
#[derive(Debug, Clone, Default)]
pub struct Script {
    acts: Vec<Act>,
}

#[derive(Debug, Clone)]
struct Act {
    when: When,
    fault: Fault,
    met: u64,
    fired: u64,
}

impl Script {
    /// Nothing goes wrong.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a fault.
    #[must_use]
    pub fn on(mut self, when: When, fault: Fault) -> Self {
        self.acts.push(Act { when, fault, met: 0, fired: 0 });
        self
    }

    /// The faults that meet this request. Counts it.
    pub(crate) fn meet(&mut self, key: &str) -> Vec<Fault> {
        let mut faults = Vec::new();
        for act in &mut self.acts {
            if !key.contains(&act.when.containing) {
                continue;
            }
            act.met += 1;
            if act.met > act.when.skip && act.fired < act.when.times {
                act.fired += 1;
                faults.push(act.fault.clone());
            }
        }
        faults
    }

    /// How often each fault of the script has fired, in the script's order.
    #[must_use]
    pub fn fired(&self) -> Vec<u64> {
        self.acts.iter().map(|act| act.fired).collect()
    }
}

/// Whether a request is one that gRPC's forms of a fault are for.
pub(crate) fn is_grpc(asked: &Asked) -> bool {
    asked.protocol == Protocol::Grpc
}
