//! `/tokenize` and `/detokenize`, in vLLM's form.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use consort_core::{ChatMessage, ChatPrompt, SpecialTokens, TokenId};
use serde_json::{Value, json};

use super::{chat, json_response, models};
use crate::app::Shared;
use crate::body;
use crate::error::Failure;
use crate::speak::as_heard;
use crate::text::Turn;

/// Text to tokens: a prompt, or a conversation as a persona hears it.
pub(crate) async fn tokenize(State(app): State<Arc<Shared>>, request: Request) -> Result<Response, Failure> {
    let mut fields = body::json(&app, request).await?;
    let model = fields.get::<String>("model")?;
    let member = model.map_or_else(|| Ok(app.registry.model().clone()), |model| app.member(&model))?;
    let spelled = fields.get::<bool>("return_token_strs")?.unwrap_or(false);
    let prompt = fields.get::<String>("prompt")?;
    let special =
        if fields.get::<bool>("parse_special")?.unwrap_or(true) { SpecialTokens::Parse } else { SpecialTokens::Plain };
    // The family's tokenizer adds none, whatever is said.
    fields.harmless(&["add_special_tokens"]);
    let tokens = if let Some(prompt) = prompt {
        fields.finish()?;
        let backend = app.backend.clone();
        tokio::task::spawn_blocking(move || backend.tokenize(&prompt, special))
            .await
            .map_err(|_| Failure::internal())??
    } else {
        let turn =
            if fields.get::<bool>("add_generation_prompt")?.unwrap_or(true) { Turn::Opened } else { Turn::NotOpened };
        let tools = fields.list("tools", app.config.limits.tools.get())?.unwrap_or_default();
        let messages = as_heard(&member, chat::messages(&mut fields, &app.config.limits)?);
        fields.finish()?;
        if messages.iter().flat_map(ChatMessage::images).next().is_some() {
            let message = "how many tokens a picture takes is told by `usage` of a reply";
            return Err(Failure::unsupported("messages", message));
        }
        let chat = ChatPrompt {
            messages,
            tools: tools.into_iter().map(|(_, tool)| tool).collect(),
            thinking: member.persona.thinking(),
        };
        let other = app.clone();
        let rendered = tokio::task::spawn_blocking(move || other.text.render(&chat, turn));
        rendered
            .await
            .map_err(|_| Failure::internal())??
            .ok_or_else(|| Failure::unsupported("messages", "the model's template is out of reach; send a `prompt`"))?
    };
    let spellings = spelled.then(|| tokens.iter().map(|token| app.text.spelling(*token)).collect::<Vec<_>>());
    let mut answer = json!({ "count": tokens.len(), "max_model_len": models::max_tokens(&app), "tokens": tokens });
    if let (Some(spellings), Some(answer)) = (spellings, answer.as_object_mut()) {
        answer.insert("token_strs".into(), Value::from(spellings));
    }
    Ok(json_response(&answer))
}

/// Tokens to text, special ones included.
pub(crate) async fn detokenize(State(app): State<Arc<Shared>>, request: Request) -> Result<Response, Failure> {
    let mut fields = body::json(&app, request).await?;
    if let Some(model) = fields.get::<String>("model")? {
        app.member(&model)?;
    }
    let tokens: Vec<TokenId> = fields.require("tokens")?;
    fields.finish()?;
    let text = app.backend.detokenize(&tokens).map_err(|error| Failure::from(error).or_param("tokens"))?;
    Ok(json_response(&json!({ "prompt": text })))
}
