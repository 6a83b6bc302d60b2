//! Errors in the API's form.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};

use crate::error::{Failure, FailureKind};

/// The status of a server that has too much to do.
const OVERLOADED: u16 = 529;

/// Whether a request speaks this API: by its path, or because it says so.
pub(crate) fn is_spoken(path: &str, headers: &HeaderMap) -> bool {
    let below = path.strip_prefix("/v1/messages").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    below || headers.contains_key("anthropic-version")
}

/// A response as this API's clients expect it: with the request's name in their header, and with their form of errors.
pub(crate) fn dressed(response: Response, id: &str) -> Response {
    let mut response = match response.extensions().get::<Failure>() {
        None => response,
        Some(failure) => {
            let mut dressed = failure.response(&body(failure, Some(id)));
            *dressed.status_mut() = status(failure);
            dressed
        }
    };
    if let Ok(id) = HeaderValue::try_from(id) {
        response.headers_mut().insert(HeaderName::from_static("request-id"), id);
    }
    response
}

fn status(failure: &Failure) -> StatusCode {
    match failure.kind() {
        FailureKind::Overloaded => StatusCode::from_u16(OVERLOADED).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
        _ => failure.status(),
    }
}

/// The body of an error. The field is named in the message, as the API has no place of its own for it.
pub(super) fn body(failure: &Failure, id: Option<&str>) -> Value {
    let kind = match failure.kind() {
        FailureKind::InvalidRequest => "invalid_request_error",
        FailureKind::Authentication => "authentication_error",
        FailureKind::Permission => "permission_error",
        FailureKind::NotFound => "not_found_error",
        FailureKind::Overloaded => "overloaded_error",
        FailureKind::Timeout => "timeout_error",
        FailureKind::Unavailable | FailureKind::Server => "api_error",
    };
    let message = match failure.param() {
        Some(param) if !failure.message().contains(param) => format!("{param}: {}", failure.message()),
        _ => failure.message().to_owned(),
    };
    let mut body = json!({
        "type": "error",
        "error": { "type": kind, "message": message, "details": { "error_code": failure.code() } },
    });
    if let (Some(id), Some(body)) = (id, body.as_object_mut()) {
        body.insert("request_id".into(), id.into());
    }
    body
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_request_says_by_its_path_or_a_header_that_it_speaks_this_api() {
        let none = HeaderMap::new();
        for (path, spoken) in [
            ("/v1/messages", true),
            ("/v1/messages/count_tokens", true),
            ("/v1/messages/", true),
            ("/v1/messagesX", false),
            ("/v1/models", false),
        ] {
            assert_eq!(is_spoken(path, &none), spoken, "{path}");
        }
        let said = HeaderMap::from_iter([(HeaderName::from_static("anthropic-version"), "x".parse().unwrap())]);
        assert!(is_spoken("/v1/models", &said));
    }

    #[test]
    fn each_kind_has_its_type_and_its_status() {
        for (failure, code, kind) in [
            (Failure::invalid("invalid_json", "no"), 400, "invalid_request_error"),
            (Failure::authentication("who?"), 401, "authentication_error"),
            (Failure::forbidden("host_not_allowed", "no"), 403, "permission_error"),
            (Failure::not_found("not_found", "no"), 404, "not_found_error"),
            (Failure::refused(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "no"), 413, "invalid_request_error"),
            (Failure::overloaded("later"), 529, "overloaded_error"),
            (Failure::unavailable("shutting_down", "no"), 503, "api_error"),
            (Failure::timeout(StatusCode::GATEWAY_TIMEOUT, "slow"), 504, "timeout_error"),
            (Failure::internal(), 500, "api_error"),
        ] {
            assert_eq!(
                (status(&failure).as_u16(), body(&failure, None)["error"]["type"].as_str().unwrap()),
                (code, kind)
            );
        }
    }

    #[test]
    fn the_message_names_the_field_once() {
        let told = |failure: Failure| body(&failure, Some("req_1"));
        assert_eq!(
            told(Failure::value("tools[0].name", "another tool has this name")),
            json!({
                "type": "error",
                "error": {
                    "type": "invalid_request_error",
                    "message": "tools[0].name: another tool has this name",
                    "details": { "error_code": "invalid_value" },
                },
                "request_id": "req_1",
            })
        );
        let message = told(Failure::value("x", "`x` is wrong"))["error"]["message"].clone();
        assert_eq!(message, "`x` is wrong");
    }
}
