//! `/v1/personas`.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use crate::app::Shared;
use crate::body;
use crate::error::Failure;
use crate::fields::Fields;
use crate::openai::json_response;
use crate::persona::{Persona, PersonaAdapter};
use crate::registry::{Member, Placed};
use crate::sampling::SamplingSettings;

type Name = Result<Path<String>, PathRejection>;

/// The name in an address.
pub(crate) fn name_of(path: Name) -> Result<String, Failure> {
    path.map(|Path(name)| name).map_err(|_| Failure::value("name", "the name in the address is no text"))
}

/// All personas.
pub(crate) async fn list(State(app): State<Arc<Shared>>) -> Response {
    let resident = resident(&app);
    let data: Vec<Value> = app.registry.personas().iter().map(|member| shown(member, &resident)).collect();
    json_response(&json!({ "object": "list", "data": data }))
}

/// One of them.
pub(crate) async fn one(State(app): State<Arc<Shared>>, path: Name) -> Result<Response, Failure> {
    let name = name_of(path)?;
    let member = app.registry.persona(&name).ok_or_else(unknown)?;
    Ok(json_response(&shown(&member, &resident(&app))))
}

/// Adds a persona, or puts it in another's place: whoever asks from now on asks the new one.
pub(crate) async fn put(State(app): State<Arc<Shared>>, path: Name, request: Request) -> Result<Response, Failure> {
    let name = name_of(path)?;
    let persona = read(body::json(&app, request).await?, name)?;
    // What was put is shown, and not what has the name now: others put and take away at the same time.
    let Placed { member, before } = app.put_persona(persona).await?;
    let mut response = json_response(&shown(&member, &resident(&app)));
    if before.is_none() {
        *response.status_mut() = StatusCode::CREATED;
    }
    tracing::info!(persona = %member.persona.name, "a persona was put");
    Ok(response)
}

/// Takes a persona away. Its replies that run go on.
pub(crate) async fn delete(State(app): State<Arc<Shared>>, path: Name) -> Result<Response, Failure> {
    let name = name_of(path)?;
    app.remove_persona(&name).await?;
    tracing::info!(persona = %name, "a persona was taken away");
    Ok(json_response(&json!({ "id": name, "object": "persona.deleted", "deleted": true })))
}

fn unknown() -> Failure {
    Failure::not_found("not_found", "there is no persona of this name").with_param("name")
}

/// The adapters that the engine holds now.
fn resident(app: &Shared) -> BTreeSet<String> {
    let loaded = app.adapters.loaded().into_iter().filter(|status| status.resident);
    loaded.map(|status| status.info.key.id.to_string()).collect()
}

fn shown(member: &Member, resident: &BTreeSet<String>) -> Value {
    let persona = &member.persona;
    let mut value = serde_json::to_value(persona).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        // What clients look for is there, even if there is nothing in it.
        fields.insert("system".into(), persona.system.clone().unwrap_or_default().into());
        fields.insert("adapters".into(), json!(persona.adapters));
        fields.insert("thinking".into(), persona.thinking.into());
        let ready = persona.adapters.iter().all(|adapter| resident.contains(&adapter.name));
        fields.insert("resident".into(), ready.into());
        fields.insert("object".into(), "persona".into());
        fields.insert("created".into(), member.created.into());
    }
    value
}

fn read(mut fields: Fields, name: String) -> Result<Persona, Failure> {
    if fields.get::<String>("name")?.is_some_and(|given| given != name) {
        return Err(Failure::value("name", "the persona and its address have different names"));
    }
    // What a `GET` shows can be put back.
    fields.harmless(&["object", "created", "resident"]);
    let mut adapters = Vec::new();
    for (param, value) in fields.list("adapters", 64)?.unwrap_or_default() {
        let mut adapter = Fields::of(value, param)?;
        adapters.push(PersonaAdapter { name: adapter.require("name")?, scale: adapter.get("scale")?.unwrap_or(1.0) });
        adapter.finish()?;
    }
    let sampling = match fields.object("sampling")? {
        None => SamplingSettings::default(),
        Some(mut sampling) => {
            let read = SamplingSettings::take(&mut sampling)?;
            sampling.finish()?;
            read
        }
    };
    let persona = Persona {
        name,
        system: fields.get::<String>("system")?.filter(|system| !system.is_empty()),
        adapters,
        priority: fields.get("priority")?.unwrap_or_default(),
        placement: fields.get("placement")?.unwrap_or_default(),
        memory_share: fields.get("memory_share")?,
        pinned: fields.get("pinned")?.unwrap_or(false),
        thinking: fields.get("thinking")?,
        max_tokens: fields.get("max_tokens")?,
        sampling,
        color: fields.get("color")?,
    };
    fields.finish()?;
    Ok(persona)
}
