//! Who answers.

use std::time::Duration;

use consort_core::BoxFuture;

use crate::request::Request;

/// Where the one who answers is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In this process: that there is too much at once is our own doing, and we wait.
    Here,
    /// Behind a network: what goes wrong may go well the next time.
    There,
}

/// An answer, good or bad.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// By which the server calls the request.
    pub request_id: Option<String>,
    /// After how long trying again may help (`Retry-After`).
    pub retry_after: Option<Duration>,
    /// Whether trying again can help, where the server says so itself (`x-should-retry`).
    pub retry: Option<bool>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// Whether it is a good one.
    #[must_use]
    pub fn is_good(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// What kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The server cannot be reached, or went away.
    Unreachable,
    /// The time for a request is over.
    Late,
    /// Trying again does not help.
    Permanent,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind.
    pub kind: FaultKind,
    /// A stable word for it.
    pub code: &'static str,
    /// What happened.
    pub message: String,
}

/// Who answers requests.
pub trait Target: Send + Sync + 'static {
    /// Where it is.
    fn place(&self) -> Place;

    /// Asks once. When the future is dropped, the answer is of no use any more.
    fn ask<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Answer, Fault>>;
}
