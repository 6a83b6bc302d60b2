//! `/v1/chat/completions`.

mod request;
mod stream;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;
use consort_core::Usage;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use self::request::ChatRequest;
use crate::app::Shared;
use crate::body;
use crate::delta::{Delta, Progress, Why};
use crate::error::Failure;
use crate::identity;
use crate::openai::common::{self, Delivery};
use crate::reply::Reply;

pub(crate) use self::request::messages;

/// What all parts of one answer say.
#[derive(Debug, Clone)]
pub(crate) struct Envelope {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) fingerprint: String,
}

impl Envelope {
    pub(crate) fn new(app: &Shared, prefix: &str, model: &str) -> Self {
        Self {
            id: identity::name(prefix),
            created: identity::now(),
            model: model.to_owned(),
            fingerprint: app.fingerprint.clone(),
        }
    }

    /// An object of this answer.
    pub(crate) fn object(&self, kind: &str, choices: &Value) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }
}

/// Answers a conversation.
pub(crate) async fn handle(State(app): State<Arc<Shared>>, request: Request) -> Result<Response, Failure> {
    let arrived = Instant::now();
    let asked = ChatRequest::read(body::json(&app, request).await?, &app.config.limits)?;
    let member = app.member(&asked.model)?;
    let logprobs = asked.conversation.wish.logprobs.is_some();
    let replies = asked.conversation.begin(&app, &member, asked.choices, arrived).await?;
    let envelope = Envelope::new(&app, "chatcmpl-", &asked.model);
    match asked.delivery {
        Delivery::Streamed { usage } => Ok(stream::response(app, envelope, replies, usage, logprobs)),
        Delivery::Whole => whole(&app, &envelope, replies, logprobs).await,
    }
}

/// The answer at once.
async fn whole(app: &Shared, envelope: &Envelope, replies: Vec<Reply>, logprobs: bool) -> Result<Response, Failure> {
    let read = replies.into_iter().map(|reply| read_whole(app, reply, logprobs));
    let choices: Vec<Whole> = futures_util::future::try_join_all(read).await?;
    let took: Vec<(Usage, usize)> = choices.iter().map(|choice| choice.took).collect();
    let prompts: Vec<Usage> = took.first().map(|(usage, _)| *usage).into_iter().collect();
    let choices = choices.into_iter().enumerate().map(|(index, choice)| {
        json!({
            "index": index,
            "message": choice.message,
            "logprobs": choice.logprobs.map(|content| json!({ "content": content, "refusal": null })),
            "finish_reason": choice.finish_reason,
        })
    });
    let mut answer = envelope.object("chat.completion", &choices.collect());
    if let Some(fields) = answer.as_object_mut() {
        fields.insert("usage".into(), common::usage(&took, &prompts));
    }
    Ok(super::json_response(&answer))
}

/// A whole choice.
struct Whole {
    message: Value,
    logprobs: Option<Vec<Value>>,
    finish_reason: &'static str,
    took: (Usage, usize),
}

async fn read_whole(app: &Shared, mut reply: Reply, logprobs: bool) -> Result<Whole, Failure> {
    let (mut progress, mut all) = (Progress::default(), Vec::new());
    let (mut content, mut reasoning) = (String::new(), String::new());
    let mut calls: Vec<(String, String, String)> = Vec::new();
    while let Some(heard) = reply.next().await {
        let (deltas, positions) = progress.hear(heard?);
        all.extend(positions);
        for delta in deltas {
            match delta {
                Delta::Reasoning(text) => reasoning.push_str(&text),
                Delta::Content(text) => content.push_str(&text),
                Delta::Call { name, .. } => calls.push((call_id(), name, String::new())),
                Delta::Arguments { json, .. } => {
                    if let Some((_, _, arguments)) = calls.last_mut() {
                        arguments.push_str(&json);
                    }
                }
            }
        }
    }
    let ended = progress.ended.ok_or_else(Failure::internal)?;
    let mut message = serde_json::Map::new();
    message.insert("role".into(), "assistant".into());
    let silent = content.is_empty() && !calls.is_empty();
    message.insert("content".into(), if silent { Value::Null } else { content.into() });
    message.insert("refusal".into(), Value::Null);
    if !reasoning.is_empty() {
        message.insert("reasoning_content".into(), reasoning.into());
    }
    if !calls.is_empty() {
        let call = |(id, name, arguments): (String, String, String)| json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } });
        message.insert("tool_calls".into(), calls.into_iter().map(call).collect());
    }
    Ok(Whole {
        message: Value::Object(message),
        logprobs: logprobs.then(|| common::chat_logprobs(app, &all)),
        finish_reason: finish_reason(&ended.why),
        took: (ended.usage, ended.reasoning_tokens),
    })
}

fn call_id() -> String {
    identity::name("call_")
}

fn finish_reason(why: &Why) -> &'static str {
    match why {
        Why::Turn | Why::StopText(_) => "stop",
        Why::Calls => "tool_calls",
        Why::Length => "length",
    }
}
