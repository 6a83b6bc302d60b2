//! What stands in for the sender in a build without the feature `otel`.

use axum::http::StatusCode;
use consort_core::{Error, ErrorKind, Result, Usage};

use super::{Asked, Closing, TelemetryConfig};

/// Sends nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Sender;

impl Sender {
    pub(super) fn open(_: &TelemetryConfig) -> Result<Self> {
        let message = "this build sends no traces: build it with the feature `otel`, or take `telemetry.traces` out";
        Err(Error::new(ErrorKind::Unsupported, message).with_operation("server::telemetry"))
    }

    #[allow(clippy::unused_self)]
    pub(super) fn request(&self, _: &Asked<'_>) -> RequestSpan {
        RequestSpan
    }

    #[allow(clippy::unused_self)]
    pub(super) fn shut_down(&self) {}
}

/// No span.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequestSpan;

#[allow(clippy::unused_self)]
impl RequestSpan {
    pub(crate) fn reply(&self, _: &str) -> ReplySpan {
        ReplySpan
    }

    pub(crate) fn end(&self, _: Option<StatusCode>) {}
}

/// No span.
#[derive(Debug)]
pub(crate) struct ReplySpan;

#[allow(clippy::unused_self)]
impl ReplySpan {
    pub(crate) fn started(&self, _: Usage) {}

    pub(crate) fn first_token(&self) {}

    pub(crate) fn end(&self, _: Closing) {}
}
