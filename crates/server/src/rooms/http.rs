//! `/v1/rooms`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use consort_core::Thinking;
use serde_json::{Value, json};

use super::turn::{self, Wishes, no_persona};
use super::{Change, Detail, MAX_PARTICIPANTS, Said, picture};
use crate::app::Shared;
use crate::body;
use crate::error::Failure;
use crate::fields::{Fields, wrong_type};
use crate::openai::json_response;

type Id = Result<Path<String>, PathRejection>;
type Pair = Result<Path<(String, String)>, PathRejection>;

fn named<T>(path: Result<Path<T>, PathRejection>) -> Result<T, Failure> {
    path.map(|Path(name)| name).map_err(|_| super::unknown())
}

/// All rooms, without their messages.
pub(crate) async fn list(State(app): State<Arc<Shared>>) -> Response {
    json_response(&json!({ "object": "list", "data": app.rooms.listed() }))
}

/// Makes a room.
pub(crate) async fn make(State(app): State<Arc<Shared>>, request: Request) -> Result<Response, Failure> {
    let change = change_of(&app, body::json(&app, request).await?)?;
    if change.participants.is_none() {
        return Err(crate::fields::missing("participants"));
    }
    let room = app.rooms.make(change)?;
    let mut response = json_response(&room.shown(Detail::Whole));
    *response.status_mut() = StatusCode::CREATED;
    Ok(response)
}

/// One of them, whole.
pub(crate) async fn one(State(app): State<Arc<Shared>>, path: Id) -> Result<Response, Failure> {
    let room = app.rooms.find(&named(path)?)?;
    Ok(json_response(&room.shown(Detail::Whole)))
}

/// Changes its scene, who is in it, or how they answer.
pub(crate) async fn change(State(app): State<Arc<Shared>>, path: Id, request: Request) -> Result<Response, Failure> {
    let room = app.rooms.find(&named(path)?)?;
    let change = change_of(&app, body::json(&app, request).await?)?;
    app.rooms.change(&room, change)?;
    Ok(json_response(&room.shown(Detail::Whole)))
}

/// Takes a room away. Who speaks in it stops.
pub(crate) async fn delete(State(app): State<Arc<Shared>>, path: Id) -> Result<Response, Failure> {
    let id = named(path)?;
    app.rooms.remove(&id)?;
    Ok(json_response(&json!({ "id": id, "object": "room.deleted", "deleted": true })))
}

/// Says something in a room, and streams what the personas answer.
pub(crate) async fn say(State(app): State<Arc<Shared>>, path: Id, request: Request) -> Result<Response, Failure> {
    let room = app.rooms.find(&named(path)?)?;
    let mut fields = body::json(&app, request).await?;
    let content: String = fields.require("content")?;
    check_text(&app, "content", &content)?;
    let respond = respond_of(&app, &mut fields)?;
    let mode = fields.get("mode")?;
    let wishes = Wishes {
        max_tokens: max_tokens_of(&app, &mut fields)?,
        thinking: fields.get("thinking")?.map(|on| if on { Thinking::On } else { Thinking::Off }),
    };
    let images = texts(&mut fields, "images", app.config.limits.images)?;
    fields.finish()?;
    let pictures = if images.is_empty() {
        Vec::new()
    } else {
        if !app.backend.capability().image_input {
            return Err(Failure::unsupported("images", "this model sees no pictures"));
        }
        let most = app.config.limits.image_bytes.get();
        let read = tokio::task::spawn_blocking(move || picture::read(&images, most));
        read.await.map_err(|_| Failure::internal())??
    };
    turn::response(&app, &room, Said { content, pictures, respond, mode }, &wishes)
}

/// Stops some, or all that speak or wait.
pub(crate) async fn stop(State(app): State<Arc<Shared>>, path: Id, request: Request) -> Result<Response, Failure> {
    let room = app.rooms.find(&named(path)?)?;
    let mut fields = body::json(&app, request).await?;
    let all = fields.take("personas");
    let names = match all {
        None => None,
        Some(list) => Some(texts_of(list, "personas", MAX_PARTICIPANTS)?),
    };
    fields.finish()?;
    Ok(json_response(&json!({ "stopped": room.stop(names.as_deref()) })))
}

/// A picture, as it was sent.
pub(crate) async fn image(State(app): State<Arc<Shared>>, path: Pair) -> Result<Response, Failure> {
    let (room, image) = named(path)?;
    let picture = app.rooms.find(&room)?.picture(&image);
    let picture = picture.ok_or_else(|| Failure::not_found("not_found", "there is no such picture in this room"))?;
    // Whoever opens it in a window gets a picture, whatever else its bytes may be.
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(picture.format.media_type())),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, Bytes::from_owner(picture.bytes)).into_response())
}

fn change_of(app: &Shared, mut fields: Fields) -> Result<Change, Failure> {
    let participants = match fields.take("participants") {
        None => None,
        Some(list) => Some(texts_of(list, "participants", MAX_PARTICIPANTS)?),
    };
    let (scene, mode) = (fields.get::<String>("scene")?, fields.get("mode")?);
    fields.finish()?;
    if let Some(names) = &participants {
        if names.is_empty() {
            return Err(Failure::value("participants", "a room has one persona at least"));
        }
        check_personas(app, "participants", names)?;
    }
    if let Some(scene) = &scene {
        check_text(app, "scene", scene)?;
    }
    Ok(Change { participants, scene, mode })
}

fn respond_of(app: &Shared, fields: &mut Fields) -> Result<Option<Vec<String>>, Failure> {
    match fields.take("respond") {
        None => Ok(None),
        Some(Value::String(all)) if all == "all" => Ok(None),
        Some(list @ Value::Array(_)) => {
            let names = texts_of(list, "respond", MAX_PARTICIPANTS)?;
            check_personas(app, "respond", &names)?;
            Ok(Some(names))
        }
        Some(_) => Err(Failure::value("respond", "`respond` is \"all\" or a list of names")),
    }
}

fn max_tokens_of(app: &Shared, fields: &mut Fields) -> Result<Option<u32>, Failure> {
    let wanted = fields.get::<std::num::NonZeroU32>("max_tokens")?;
    match (wanted, app.config.limits.reply_tokens) {
        (Some(wanted), Some(most)) if wanted > most => {
            Err(Failure::value("max_tokens", format!("a reply has at most {most} tokens here")))
        }
        _ => Ok(wanted.map(std::num::NonZero::get)),
    }
}

/// All are personas, and none is named twice.
fn check_personas(app: &Shared, param: &str, names: &[String]) -> Result<(), Failure> {
    for (at, name) in names.iter().enumerate() {
        let param = format!("{param}[{at}]");
        if app.registry.persona(name).is_none() {
            return Err(no_persona(name).with_param(param));
        }
        if names.iter().take(at).any(|other| other == name) {
            return Err(Failure::value(param, "this persona is named twice"));
        }
    }
    Ok(())
}

fn check_text(app: &Shared, param: &str, text: &str) -> Result<(), Failure> {
    let most = app.config.limits.room_text_bytes.get();
    if text.len() > most {
        return Err(Failure::value(param, format!("`{param}` may have {most} bytes (limits.room_text_bytes)")));
    }
    Ok(())
}

fn texts(fields: &mut Fields, name: &str, most: usize) -> Result<Vec<String>, Failure> {
    fields.take(name).map_or(Ok(Vec::new()), |list| texts_of(list, name, most))
}

/// A list of texts.
fn texts_of(list: Value, param: &str, most: usize) -> Result<Vec<String>, Failure> {
    let Value::Array(items) = list else { return Err(wrong_type(param, "an array", &list)) };
    if items.len() > most {
        let message = format!("`{param}` has {} items; at most {most} are taken", items.len());
        return Err(Failure::value(param, message));
    }
    let text = |(at, item)| match item {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(&format!("{param}[{at}]"), "a string", &other)),
    };
    items.into_iter().enumerate().map(text).collect()
}
