//! `/v1/adapters`: all that a persona can speak with.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use consort_core::{AdapterStatus, Residency};
use serde_json::{Value, json};

use crate::app::Shared;
use crate::openai::json_response;

/// Those of the library and those that were loaded by hand. Of one that is not loaded yet, no more than its name is known.
pub(crate) async fn list(State(app): State<Arc<Shared>>) -> Response {
    let loaded = app.adapters.loaded();
    let known = |name: &String| loaded.iter().find(|status| *status.info.key.id == **name);
    let data: Vec<Value> = app.adapters.names().iter().map(|name| shown(name, known(name))).collect();
    json_response(&json!({ "object": "list", "data": data }))
}

fn shown(name: &str, status: Option<&AdapterStatus>) -> Value {
    match status {
        None => json!({ "name": name, "loaded": false, "resident": false, "pinned": false }),
        Some(AdapterStatus { info, residency, resident, .. }) => json!({
            "name": name,
            "loaded": true,
            "resident": resident,
            "pinned": *residency == Residency::Pinned,
            "bytes": info.bytes,
            "rank": info.rank,
            "activated": info.invocation_tokens.is_some(),
        }),
    }
}
