//! `/health`, `/ready` and `/metrics`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::app::Shared;
use crate::metrics::render;
use crate::openai::json_response;
use crate::shutdown::Phase;

/// An engine that does not answer for so long is not ready.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether the process lives.
pub(crate) async fn health() -> Response {
    json_response(&json!({ "status": "ok" }))
}

/// Whether requests are answered: the model is loaded and its engine answers. Who may ask for replies is also told on what
/// it computes, and how that is known.
pub(crate) async fn ready(State(app): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let status = if app.shutdown.phase() == Phase::Serving {
        match tokio::time::timeout(PATIENCE, app.backend.memory()).await {
            Ok(Ok(_)) => "ready",
            // A remote backend may not tell of its memory, and is none the worse for it.
            Ok(Err(error)) if error.kind() == consort_core::ErrorKind::Unsupported => "ready",
            Ok(Err(error)) => {
                tracing::error!(%error, "the engine is gone");
                "failed"
            }
            Err(_) => "busy",
        }
    } else {
        "draining"
    };
    let mut answer = json!({ "status": status });
    if let (Ok(()), Some(fields)) = (app.keys.check(&headers), answer.as_object_mut()) {
        let evidence = serde_json::to_value(app.backend.evidence()).unwrap_or(Value::Null);
        fields.insert("model".into(), app.registry.model().persona.name.clone().into());
        fields.insert("evidence".into(), evidence);
    }
    let mut response = json_response(&answer);
    if status != "ready" {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

/// All numbers, for Prometheus.
pub(crate) async fn metrics(State(app): State<Arc<Shared>>) -> Response {
    let page = render(&app.snapshot().await);
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], page).into_response()
}
