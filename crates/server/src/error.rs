//! What went wrong, as clients are told.
//!
//! A [`Failure`] belongs to no protocol. As a response it has the shape of OpenAI's API
//! (`{"error": {"message", "type", "param", "code"}}`); another protocol renders it from its parts.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use consort_core::{Error, ErrorKind, ErrorStatus};
use serde_json::{Value, json};

use crate::sampling::request_name;

/// What kind of failure, by what the client can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Change the request.
    InvalidRequest,
    /// Send a key that is known.
    Authentication,
    /// It is not allowed.
    Permission,
    /// It does not exist.
    NotFound,
    /// Try again later: too much at once.
    Overloaded,
    /// It took too long.
    Timeout,
    /// Try again later, or elsewhere: the server goes down, or is not ready.
    Unavailable,
    /// A defect.
    Server,
}

impl FailureKind {
    /// The `type` of OpenAI's errors.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request_error",
            Self::Authentication => "authentication_error",
            Self::Permission => "permission_error",
            Self::NotFound => "not_found_error",
            Self::Overloaded => "rate_limit_error",
            Self::Timeout => "timeout_error",
            Self::Unavailable => "service_unavailable_error",
            Self::Server => "server_error",
        }
    }
}

/// Why a request is not answered.
#[derive(Debug, Clone)]
pub struct Failure(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    status: StatusCode,
    kind: FailureKind,
    code: &'static str,
    param: Option<String>,
    message: String,
    retry_after: Option<u32>,
}

impl Failure {
    fn new(status: StatusCode, kind: FailureKind, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self(Box::new(Inner { status, kind, code, param: None, message, retry_after: None }))
    }

    /// A request that is wrong, 400.
    pub fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, FailureKind::InvalidRequest, code, message)
    }

    /// A value of a field that has no meaning, 400.
    pub fn value(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid("invalid_value", message).with_param(param)
    }

    /// Something that the API has and this server does not, 400.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid("unsupported_parameter", message).with_param(param)
    }

    /// A wrong request with another status of the 400s.
    pub(crate) fn refused(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(status, FailureKind::InvalidRequest, code, message)
    }

    /// A key that is missing or unknown, 401.
    pub(crate) fn authentication(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, FailureKind::Authentication, "invalid_api_key", message)
    }

    /// What is never allowed, 403.
    pub(crate) fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, FailureKind::Permission, code, message)
    }

    /// What is not there, 404.
    pub fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, FailureKind::NotFound, code, message)
    }

    /// Too much at once, 429.
    pub fn overloaded(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, FailureKind::Overloaded, "overloaded", message).with_retry_after(1)
    }

    /// Not now, 503.
    pub fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, FailureKind::Unavailable, code, message).with_retry_after(5)
    }

    /// Too slow, 408 where the client was, 504 where we were.
    pub(crate) fn timeout(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, FailureKind::Timeout, "timeout", message)
    }

    /// A defect, 500. What is wrong stands in the log.
    pub(crate) fn internal() -> Self {
        let message = "something failed that should not have; the server's log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, FailureKind::Server, "internal_error", message)
    }

    /// Names the field of the request.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.0.param = Some(param.into());
        self
    }

    /// Names the field, unless one is named.
    #[must_use]
    pub(crate) fn or_param(mut self, param: &str) -> Self {
        self.0.param.get_or_insert_with(|| param.to_owned());
        self
    }

    /// Says after how many seconds trying again may help.
    #[must_use]
    fn with_retry_after(mut self, seconds: u32) -> Self {
        self.0.retry_after = Some(seconds);
        self
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        self.0.kind
    }

    /// A stable word for what went wrong.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// The field of the request that is concerned.
    #[must_use]
    pub fn param(&self) -> Option<&str> {
        self.0.param.as_deref()
    }

    /// What is wrong and what to do.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The body of OpenAI's API.
    #[must_use]
    pub fn openai(&self) -> Value {
        json!({ "error": {
            "message": self.0.message,
            "type": self.0.kind.as_str(),
            "param": self.0.param,
            "code": self.0.code,
        } })
    }

    /// A response with another protocol's body.
    #[must_use]
    pub fn response(&self, body: &Value) -> Response {
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.0.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.0.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.0.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = self.response(&self.openai());
        // Whoever knows that the client speaks another protocol says it anew.
        response.extensions_mut().insert(self);
        response
    }
}

/// Context that names files of this machine. Clients are not told.
const PRIVATE: [&str; 7] = ["path", "file", "folder", "directory", "tokenizer", "url", "cause"];

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        use ErrorKind::{
            Cancelled, DeadlineExceeded, InvalidAdapter, InvalidGrammar, InvalidImage, InvalidRequest, InvalidTemplate,
            InvalidTokenizer, NotFound, OutOfMemory, Overloaded, Poisoned, Remote, Unsupported,
        };
        let field = error.context().find(|(key, _)| *key == "field").map(|(_, field)| request_name(field));
        let failure = match error.kind() {
            Unsupported => Self::invalid("unsupported", told(&error)),
            InvalidRequest if error.context().any(|(key, _)| key == "max_sequence_tokens") => {
                Self::invalid("context_length_exceeded", told(&error))
            }
            InvalidRequest | InvalidTokenizer => Self::invalid("invalid_value", told(&error)),
            InvalidImage => Self::invalid("invalid_image", told(&error)),
            InvalidAdapter => Self::invalid("invalid_adapter", told(&error)),
            InvalidGrammar => Self::invalid("invalid_grammar", told(&error)),
            InvalidTemplate => Self::invalid("invalid_conversation", told(&error)),
            NotFound => Self::not_found("not_found", told(&error)),
            Overloaded => Self::overloaded(told(&error)),
            OutOfMemory => Self::unavailable("out_of_memory", told(&error)),
            Poisoned => Self::unavailable("sequence_lost", told(&error)),
            Cancelled => Self::unavailable("shutting_down", told(&error)),
            // The engine is a server itself. Where it stands is none of the client's business.
            Remote if error.status() == ErrorStatus::Temporary => {
                tracing::warn!(%error, "the engine did not answer");
                Self::unavailable("engine_unavailable", "the engine behind this server does not answer; try again")
            }
            DeadlineExceeded => Self::timeout(StatusCode::GATEWAY_TIMEOUT, told(&error)),
            _ => {
                tracing::error!(%error, "a request failed");
                Self::internal()
            }
        };
        match field.filter(|field| !field.is_empty()) {
            Some(field) => failure.with_param(field),
            None => failure,
        }
    }
}

/// An error's message and the context that concerns the client.
fn told(error: &Error) -> String {
    let mut text = error.message().to_owned();
    let context = error.context().filter(|(key, _)| *key != "field" && !PRIVATE.contains(key));
    let pairs: Vec<String> = context.map(|(key, value)| format!("{key}: {value}")).collect();
    if !pairs.is_empty() {
        text.push_str(&format!(" ({})", pairs.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_what_concerns_them_and_no_paths() {
        let error = Error::new(ErrorKind::InvalidRequest, "must be at most 1")
            .with_context("field", "penalties.presence")
            .with_context("path", "/home/me/model.gguf")
            .with_context("value", "3");
        let failure = Failure::from(error);
        assert_eq!(failure.status(), StatusCode::BAD_REQUEST);
        assert_eq!(failure.param(), Some("presence_penalty"));
        assert_eq!(failure.message(), "must be at most 1 (value: 3)");
        let failure = Failure::from(Error::new(ErrorKind::Unexpected, "the tensor at /x is broken"));
        assert_eq!(failure.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!failure.message().contains("/x"), "{}", failure.message());
    }

    #[test]
    fn each_kind_has_its_status() {
        for (kind, status, retry) in [
            (ErrorKind::Unsupported, 400, false),
            (ErrorKind::InvalidImage, 400, false),
            (ErrorKind::NotFound, 404, false),
            (ErrorKind::Overloaded, 429, true),
            (ErrorKind::OutOfMemory, 503, true),
            (ErrorKind::Cancelled, 503, true),
            (ErrorKind::Remote, 503, true),
            (ErrorKind::DeadlineExceeded, 504, false),
            (ErrorKind::Io, 500, false),
        ] {
            let response = Failure::from(Error::new(kind, "")).into_response();
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(response.headers().contains_key("retry-after"), retry, "{kind:?}");
        }
    }
}
