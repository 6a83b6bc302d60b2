//! Reading a request's body within limits.

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use crate::app::Shared;
use crate::error::Failure;
use crate::fields::Fields;

/// A body of this size or more is parsed beside the connections.
const LARGE: usize = 256 << 10;

/// The JSON object in a request's body.
///
/// # Errors
/// 415 for another type (which a page of another origin could send unasked), 413 for what is too large, 408 for what takes
/// too long, 400 for what is no JSON object.
pub(crate) async fn json(app: &Shared, request: Request) -> Result<Fields, Failure> {
    let (head, body) = request.into_parts();
    if !is_json(&head.headers) {
        return Err(Failure::refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "the body must be JSON: send `Content-Type: application/json`",
        ));
    }
    let bytes = read(app, body, &head.headers).await?;
    let fields = if bytes.len() < LARGE {
        Fields::parse(&bytes)?
    } else {
        tokio::task::spawn_blocking(move || Fields::parse(&bytes)).await.map_err(|_| Failure::internal())??
    };
    pictures(app, fields).await
}

/// With the pictures that stand at other servers, where those may be asked.
async fn pictures(app: &Shared, mut fields: Fields) -> Result<Fields, Failure> {
    let Some(remote) = app.remote.clone().filter(|remote| remote.concerns(&mut fields)) else { return Ok(fields) };
    let limits = app.config.limits.clone();
    let fetched = tokio::task::spawn_blocking(move || remote.fetch_all(fields, &limits));
    fetched.await.map_err(|_| Failure::internal())?
}

/// Makes sure that a request says nothing, where there is nothing to be said: no body, or an empty object.
///
/// # Errors
/// As [`json`], and for a field.
pub(crate) async fn nothing(app: &Shared, request: Request) -> Result<(), Failure> {
    let (head, body) = request.into_parts();
    let bytes = read(app, body, &head.headers).await?;
    if bytes.is_empty() { Ok(()) } else { Fields::parse(&bytes)?.finish() }
}

async fn read(app: &Shared, body: Body, headers: &HeaderMap) -> Result<Bytes, Failure> {
    let most = app.config.limits.body_bytes.get();
    let too_large = || {
        let message = format!("the body may have {most} bytes");
        Failure::refused(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > most as u64) {
        return Err(too_large());
    }
    let collected = tokio::time::timeout(app.config.limits.body_time(), Limited::new(body, most).collect());
    match collected.await {
        Err(_) => Err(Failure::timeout(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive")),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Failure::invalid("invalid_body", "the body was cut off")),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}
