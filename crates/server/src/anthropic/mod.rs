//! Anthropic's API: `/v1/messages`, `/v1/messages/count_tokens`, and its form of models and errors.

mod blocks;
mod content;
pub(crate) mod failure;
pub(crate) mod models;
mod request;
mod stream;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;
use consort_core::{Prompt, Usage};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use self::blocks::{Block, Blocks};
use self::request::MessageRequest;
use crate::app::Shared;
use crate::body;
use crate::conversation::Conversation;
use crate::delta::{Ended, Progress, Why};
use crate::error::Failure;
use crate::identity;
use crate::openai::json_response;
use crate::registry::Member;
use crate::reply::{Heard, Reading, Reply};
use crate::speak::{Ask, Wish};
use crate::text::Turn;

/// What all parts of one answer say.
#[derive(Debug, Clone)]
struct Envelope {
    id: String,
    model: String,
    /// The most tokens of the reply.
    most: u32,
}

impl Envelope {
    /// The message, as far as it is.
    fn message(&self, content: &Value, ended: Option<&Ended>, usage: &Value) -> Value {
        let (reason, sequence) = ended.map_or((Value::Null, Value::Null), |ended| stop_reason(ended, self.most));
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage,
        })
    }
}

/// Answers a conversation.
pub(crate) async fn messages(State(app): State<Arc<Shared>>, request: Request) -> Result<Response, Failure> {
    let arrived = Instant::now();
    let fields = body::json(&app, request).await?;
    let asked = MessageRequest::read(fields, &app.config.limits)?;
    let member = app.member(&asked.model)?;
    let envelope = Envelope { id: identity::name("msg_"), model: asked.model, most: asked.most };
    let mut replies = asked.conversation.begin(&app, &member, 1, arrived).await.map_err(renamed)?;
    let reply = replies.pop().ok_or_else(Failure::internal)?;
    if asked.streamed { Ok(stream::response(envelope, reply)) } else { whole(&envelope, reply).await }
}

async fn whole(envelope: &Envelope, mut reply: Reply) -> Result<Response, Failure> {
    let (mut progress, mut blocks) = (Progress::default(), Blocks::default());
    while let Some(heard) = reply.next().await {
        for delta in progress.hear(heard?).0 {
            blocks.hear(delta);
        }
    }
    let ended = progress.ended.ok_or_else(Failure::internal)?;
    let content: Vec<Value> = blocks.all.iter().map(Block::whole).collect();
    let usage = usage(&ended.usage, Some(ended.reasoning_tokens));
    Ok(json_response(&envelope.message(&content.into(), Some(&ended), &usage)))
}

/// How many tokens a conversation has.
pub(crate) async fn count_tokens(State(app): State<Arc<Shared>>, request: Request) -> Result<Response, Failure> {
    let fields = body::json(&app, request).await?;
    let (model, conversation) = request::read_count(fields, &app.config.limits)?;
    let member = app.member(&model)?;
    let tokens = count(&app, &member, conversation).await?;
    Ok(json_response(&json!({ "input_tokens": tokens })))
}

async fn count(app: &Arc<Shared>, member: &Arc<Member>, conversation: Conversation) -> Result<usize, Failure> {
    let pictures = conversation.messages.iter().flat_map(consort_core::ChatMessage::images).next().is_some();
    let (chat, _, _) = conversation.heard(member);
    if !pictures {
        let (other, chat) = (Arc::clone(app), chat.clone());
        let rendered = tokio::task::spawn_blocking(move || other.text.render(&chat, Turn::Opened));
        if let Some(tokens) = rendered.await.map_err(|_| Failure::internal())?? {
            return Ok(tokens.len());
        }
    }
    // Only the model knows how many tokens a picture takes: it reads the prompt, which the message to come finds in the
    // prefix cache.
    let ask = Ask { prompt: Prompt::Chat(chat), choices: 1 };
    let wish = Wish { max_tokens: Some(0), ..Wish::default() };
    let mut replies = app.speak(member, vec![ask], &wish, &Reading::Raw, Instant::now()).await?;
    let mut reply = replies.pop().ok_or_else(Failure::internal)?;
    while let Some(heard) = reply.next().await {
        if let Heard::Started(usage) | Heard::Ended { usage, .. } = heard? {
            return Ok(usage.prompt_tokens);
        }
    }
    Err(Failure::internal())
}

/// What a reply took, in the API's shape: the prompt without what came out of the cache, and that beside it.
fn usage(usage: &Usage, thinking: Option<usize>) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens.saturating_sub(usage.reused_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.reused_tokens,
        "output_tokens": if thinking.is_some() { usage.completion_tokens } else { 0 },
        "output_tokens_details": thinking.map(|tokens| json!({ "thinking_tokens": tokens })),
        "service_tier": "standard",
    })
}

/// `stop_reason` and `stop_sequence`.
fn stop_reason(ended: &Ended, most: u32) -> (Value, Value) {
    match &ended.why {
        Why::Turn => ("end_turn".into(), Value::Null),
        Why::StopText(text) => ("stop_sequence".into(), text.clone().into()),
        Why::Calls => ("tool_use".into(), Value::Null),
        Why::Length if ended.cut || ended.usage.completion_tokens >= most as usize => {
            ("max_tokens".into(), Value::Null)
        }
        Why::Length => ("model_context_window_exceeded".into(), Value::Null),
    }
}

/// Calls fields as this API calls them.
fn renamed(failure: Failure) -> Failure {
    if failure.param() == Some("stop") { failure.with_param("stop_sequences") } else { failure }
}
