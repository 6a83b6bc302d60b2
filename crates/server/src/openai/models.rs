//! `/v1/models`.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::json_response;
use crate::anthropic;
use crate::app::Shared;
use crate::error::Failure;
use crate::personas::name_of;

/// One who can be asked.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
}

/// Everybody who can be asked: the model as it is first, then personas, then adapters by their own names.
pub(crate) async fn list(State(app): State<Arc<Shared>>, request: Request) -> Result<Response, Failure> {
    let all = everybody(&app).await?;
    if anthropic::failure::is_spoken(request.uri().path(), request.headers()) {
        return anthropic::models::list(&app, &all, request.uri().query());
    }
    let data: Vec<Value> = all.iter().map(|one| entry(&app, one)).collect();
    Ok(json_response(&json!({ "object": "list", "data": data })))
}

async fn everybody(app: &Arc<Shared>) -> Result<Vec<Entry>, Failure> {
    let base = app.registry.model().persona.name.clone();
    let mut all = vec![Entry { name: base, created: app.created }];
    let personas = app.registry.personas();
    let named = personas.iter().map(|member| Entry { name: member.persona.name.clone(), created: member.created });
    all.extend(named);
    let other = Arc::clone(app);
    let adapters =
        tokio::task::spawn_blocking(move || other.adapters.names()).await.map_err(|_| Failure::internal())?;
    for name in adapters {
        if all.iter().all(|one| one.name != name) {
            all.push(Entry { name, created: app.created });
        }
    }
    Ok(all)
}

/// One of them.
pub(crate) async fn one(
    State(app): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Failure> {
    let name = name_of(path)?;
    let member = app.member(&name)?;
    let one = Entry { name, created: member.created.max(app.created) };
    let spoken = anthropic::failure::is_spoken(request.uri().path(), request.headers());
    Ok(json_response(&if spoken { anthropic::models::model(&app, &one) } else { entry(&app, &one) }))
}

fn entry(app: &Shared, one: &Entry) -> Value {
    let base = app.registry.model().persona.name.as_str();
    let (name, parent) = (one.name.as_str(), (one.name != base).then_some(base));
    json!({
        "id": name,
        "object": "model",
        "created": one.created,
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
