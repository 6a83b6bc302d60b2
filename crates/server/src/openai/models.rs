//! `/v1/models`.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::json_response;
use crate::app::Shared;
use crate::error::Failure;
use crate::personas::name_of;

/// Everybody who can be asked: the model as it is first, then personas, then adapters by their own names.
pub(crate) async fn list(State(app): State<Arc<Shared>>) -> Result<Response, Failure> {
    let base = app.registry.model().persona.name.clone();
    let mut models = vec![entry(&app, &base, app.created, None)];
    let personas = app.registry.personas();
    models.extend(personas.iter().map(|member| entry(&app, &member.persona.name, member.created, Some(&base))));
    let other = app.clone();
    let adapters =
        tokio::task::spawn_blocking(move || other.adapters.names()).await.map_err(|_| Failure::internal())?;
    let own = |name: &String| *name != base && personas.iter().all(|member| member.persona.name != *name);
    models.extend(adapters.iter().filter(|name| own(name)).map(|name| entry(&app, name, app.created, Some(&base))));
    Ok(json_response(&json!({ "object": "list", "data": models })))
}

/// One of them.
pub(crate) async fn one(
    State(app): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Failure> {
    let name = name_of(path)?;
    let member = app.member(&name)?;
    let base = &app.registry.model().persona.name;
    let parent = (member.persona.name != *base).then_some(base.as_str());
    Ok(json_response(&entry(&app, &name, member.created.max(app.created), parent)))
}

fn entry(app: &Shared, name: &str, created: u64, parent: Option<&str>) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "consort",
        // What vLLM's clients look for.
        "root": parent.unwrap_or(name),
        "parent": parent,
        "max_model_len": max_tokens(app),
    })
}

/// The longest sequence, prompt and reply together.
pub(crate) fn max_tokens(app: &Shared) -> usize {
    let (info, capability) = (app.backend.info(), app.backend.capability());
    match info.context_length {
        0 => capability.max_sequence_tokens,
        context => context.min(capability.max_sequence_tokens),
    }
}
