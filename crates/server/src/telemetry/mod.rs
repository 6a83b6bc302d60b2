//! OpenTelemetry traces, when they are asked for: a span for each request, and below it one for each reply.
//!
//! Names and attributes are those of OpenTelemetry's semantic conventions for HTTP servers and for generative models.
//! Nothing of what was said stands in a span. A request with a `traceparent` (W3C Trace Context) continues its trace.
//!
//! Sending is a feature (`otel`) of the build. Without it the same functions are there and do nothing, and a configuration
//! that asks for traces is refused.

#[cfg(not(feature = "otel"))]
#[path = "none.rs"]
mod sender;
#[cfg(feature = "otel")]
#[path = "otlp.rs"]
mod sender;

use consort_core::Result;
use serde::{Deserialize, Serialize};

pub(crate) use self::sender::{ReplySpan, RequestSpan};

/// Where traces go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Whether traces are sent.
    pub traces: bool,
    /// The collector's base address; traces go to `/v1/traces` below it, as protobuf over HTTP. `None`: what the environment says
    /// (`OTEL_EXPORTER_OTLP_ENDPOINT`), else `http://localhost:4318`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// What this server is called in traces.
    pub service_name: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { traces: false, otlp_endpoint: None, service_name: "consort".into() }
    }
}

impl TelemetryConfig {
    /// Why the collector's address is none.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let Some(address) = &self.otlp_endpoint else { return Ok(()) };
        let parsed = address.parse::<axum::http::Uri>().ok();
        let whole =
            parsed.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
        if whole { Ok(()) } else { Err("a collector's address is a URL, such as http://127.0.0.1:4318") }
    }
}

/// The way to the collector. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traces(sender::Sender);

impl Traces {
    /// Opens the way, if traces are asked for. The collector need not be there yet.
    ///
    /// # Errors
    /// This build cannot send any, or the environment's settings for it are wrong.
    pub(crate) fn open(config: &TelemetryConfig) -> Result<Self> {
        if config.traces { sender::Sender::open(config).map(Self) } else { Ok(Self::default()) }
    }

    /// Begins a request's span.
    pub(crate) fn request(&self, asked: &Asked<'_>) -> RequestSpan {
        self.0.request(asked)
    }

    /// Sends what is left.
    pub(crate) fn shut_down(&self) {
        self.0.shut_down();
    }
}

/// What a span says of its request.
#[derive(Debug)]
#[cfg_attr(not(feature = "otel"), expect(dead_code, reason = "read by the sender alone"))]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a axum::http::Method,
    pub(crate) route: &'a str,
    pub(crate) id: &'a str,
    pub(crate) headers: &'a axum::http::HeaderMap,
}

tokio::task_local! {
    static CURRENT: RequestSpan;
}

impl RequestSpan {
    /// The span of the request that this task answers; one that does nothing, if there is none.
    pub(crate) fn current() -> Self {
        CURRENT.try_with(Clone::clone).unwrap_or_default()
    }

    /// Runs what answers the request.
    pub(crate) async fn scope<T>(self, answer: impl Future<Output = T>) -> T {
        CURRENT.scope(self, answer).await
    }

    /// The same for a part that does not wait.
    pub(crate) fn enter<T>(&self, part: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self.clone(), part)
    }
}

/// How a reply ended, for its span.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "otel"), expect(dead_code, reason = "read by the sender alone"))]
pub(crate) struct Closing {
    /// `finished`, `cancelled` or `failed`.
    pub(crate) outcome: &'static str,
    /// Why, if it ended by itself.
    pub(crate) reason: Option<&'static str>,
    pub(crate) usage: consort_core::Usage,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_collectors_address_is_a_url() {
        let at = |address: &str| TelemetryConfig { otlp_endpoint: Some(address.into()), ..TelemetryConfig::default() };
        at("http://127.0.0.1:4318").check().unwrap();
        at("https://collector.example.org/base").check().unwrap();
        for address in ["", "collector:4318", "ftp://x", "http://", "/v1/traces"] {
            at(address).check().unwrap_err();
        }
    }

    #[cfg(not(feature = "otel"))]
    #[test]
    fn a_build_that_cannot_send_traces_says_so() {
        let asked = TelemetryConfig { traces: true, ..TelemetryConfig::default() };
        assert_eq!(Traces::open(&asked).unwrap_err().kind(), consort_core::ErrorKind::Unsupported);
        Traces::open(&TelemetryConfig::default()).unwrap();
    }
}
