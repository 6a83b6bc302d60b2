//! What a server by HTTP is, and what it does.

use consort_core::{Error, ErrorKind, Result};
use reqwest::Method;
use serde_json::{Value, json};

use super::{HttpTransport, Ways, wire};
use crate::facts::{Finding, ServerFacts, Verdict};
use crate::trials::{self, Subject};

/// Finds it out.
///
/// # Errors
/// The server is not reached, refuses the key, or does not have the model.
pub(super) async fn probe(server: &HttpTransport) -> Result<ServerFacts> {
    let patience = server.timeouts.control;
    let models: wire::Models = server.ask(server.request(Method::GET, "/v1/models"), patience).await?;
    let model = base(server, models)?;
    // Servers that are no vLLM have no such route.
    let version = server.ask::<wire::Version>(server.request(Method::GET, "/version"), patience).await.ok();
    let is_rust = version.as_ref().is_some_and(|version| version.rust_frontend_version.is_some());
    let generate = has_route(server, "/inference/v1/generate").await?;
    let completions = has_route(server, "/v1/completions").await?;
    let chat = has_route(server, "/v1/chat/completions").await?;
    // A second probing finds the same.
    let _ = server.ways.set(Ways { generate, completions, is_rust });
    let subject = Subject {
        transport: server,
        model: &model.id,
        image_token: server.image_token.filter(|_| generate),
        adapters: server.share.as_deref(),
        prompts: server.may_ask_of_prompts,
    };
    let trials::Tried { mut abilities, mut findings } = trials::run(&subject).await?;
    let route = |name, there: bool| Finding {
        name,
        verdict: if there { Verdict::Works } else { Verdict::Refused },
        seen: if there { "the server has the route" } else { "the server has no such route" }.into(),
    };
    findings.insert(0, route("/inference/v1/generate", generate));
    findings.insert(1, route("/v1/completions", completions));
    findings.insert(2, route("/v1/chat/completions", chat));
    let tokenized =
        server.post("/tokenize", &json!({ "model": model.id, "prompt": "Hi", "add_special_tokens": false }))?;
    let tokenized = server.ask::<wire::Tokenized>(tokenized, patience).await;
    abilities.tokenize = tokenized.as_ref().is_ok_and(|tokenized| !tokenized.tokens.is_empty());
    findings.push(Finding {
        name: "tokenize",
        verdict: if abilities.tokenize { Verdict::Works } else { Verdict::Refused },
        seen: match tokenized {
            Ok(tokenized) => format!("`Hi` is {:?}", tokenized.tokens),
            Err(error) => error.to_string(),
        },
    });
    abilities.completions = completions;
    abilities.chat = chat;
    // A model that sees beside tokens sees in conversations.
    abilities.pictures_in_chat = chat && abilities.pictures_with_tokens;
    let version = version.and_then(|version| version.version);
    Ok(ServerFacts {
        endpoint: server.endpoint.to_string(),
        front_end: match (&version, is_rust) {
            (Some(_), true) => "rust",
            (Some(_), false) => "python",
            (None, _) => "unknown",
        }
        .into(),
        version: version.unwrap_or_else(|| "unknown".into()),
        root: model.root.unwrap_or_default(),
        context_length: model.max_model_len.unwrap_or_default(),
        model: model.id,
        max_running: None,
        abilities,
        findings,
    })
}

/// The base model that is meant.
fn base(server: &HttpTransport, models: wire::Models) -> Result<wire::Model> {
    let mut bases: Vec<_> = models.data.into_iter().filter(|model| model.parent.is_none()).collect();
    let names: Vec<_> = bases.iter().map(|model| model.id.clone()).collect();
    let found = match &server.model {
        Some(name) => bases.iter().position(|model| model.id == *name),
        None if bases.len() == 1 => Some(0),
        None => None,
    };
    match (found, &server.model) {
        (Some(index), _) => Ok(bases.swap_remove(index)),
        (None, Some(name)) => Err(Error::new(ErrorKind::NotFound, "the server does not have the model")
            .with_backend(crate::NAME)
            .with_context("endpoint", &*server.endpoint)
            .with_context("model", name.clone())
            .with_context("it has", names.join(", "))),
        (None, None) => {
            let what =
                if names.is_empty() { "the server has no model" } else { "the server has several models: name one" };
            Err(Error::new(ErrorKind::InvalidConfig, what)
                .with_backend(crate::NAME)
                .with_context("key", "model")
                .with_context("endpoint", &*server.endpoint)
                .with_context("it has", names.join(", ")))
        }
    }
}

/// Whether the server knows a route: what it says of a request without anything in it.
async fn has_route(server: &HttpTransport, path: &str) -> Result<bool> {
    let sent =
        server.send(server.post(path, &Value::Object(serde_json::Map::new()))?, server.timeouts.control, None).await;
    match sent {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            ErrorKind::InvalidRequest => Ok(true),
            ErrorKind::NotFound | ErrorKind::Unsupported => Ok(false),
            _ => Err(error),
        },
    }
}
