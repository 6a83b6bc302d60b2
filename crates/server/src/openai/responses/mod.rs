//! `/v1/responses`: its stateless core. Nothing is stored, so whoever goes on sends all items again.

mod items;
mod output;
mod request;
mod stream;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;
use consort_core::Usage;
use futures_util::StreamExt as _;
use serde_json::{Map, Value, json};

use self::output::Output;
use self::request::ResponseRequest;
use crate::app::Shared;
use crate::body;
use crate::delta::{Ended, Progress, Why};
use crate::error::Failure;
use crate::identity;
use crate::registry::Member;
use crate::reply::Reply;

/// What a response says of its request, and of itself.
#[derive(Debug, Clone)]
struct Envelope(Map<String, Value>);

/// How far a response is.
#[derive(Debug)]
enum Phase<'a> {
    InProgress,
    Ended(&'a Ended),
    Failed(&'a Failure),
}

impl Envelope {
    fn new(app: &Shared, member: &Member, asked: &ResponseRequest) -> Self {
        let sampling = app.settings(member, &asked.conversation.wish).sampling();
        let mut said = Map::new();
        let own = json!({
            "id": identity::name("resp_"),
            "object": "response",
            "created_at": identity::now(),
            "background": false,
            "model": asked.model,
            "parallel_tool_calls": asked.parallel,
            "previous_response_id": null,
            "service_tier": "default",
            "store": false,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "truncation": "disabled",
        });
        said.extend(own.as_object().cloned().unwrap_or_default());
        said.extend(asked.echo.clone());
        Self(said)
    }

    /// The response, as far as it is.
    fn response(&self, state: &Phase<'_>, output: &[Value]) -> Value {
        let (mut error, mut incomplete, mut completed_at, mut used) =
            (Value::Null, Value::Null, Value::Null, Value::Null);
        let status = match state {
            Phase::InProgress => "in_progress",
            Phase::Failed(failure) => {
                error = json!({ "code": "server_error", "message": failure.message() });
                "failed"
            }
            Phase::Ended(ended) => {
                completed_at = identity::now().into();
                used = usage(&ended.usage, ended.reasoning_tokens);
                if ended.why == Why::Length {
                    incomplete = json!({ "reason": "max_output_tokens" });
                    "incomplete"
                } else {
                    "completed"
                }
            }
        };
        let mut all = self.0.clone();
        all.insert("status".into(), status.into());
        all.insert("completed_at".into(), completed_at);
        all.insert("error".into(), error);
        all.insert("incomplete_details".into(), incomplete);
        all.insert("output".into(), output.into());
        all.insert("usage".into(), used);
        Value::Object(all)
    }
}

fn usage(usage: &Usage, reasoning: usize) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": { "cached_tokens": usage.reused_tokens, "cache_write_tokens": 0 },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": { "reasoning_tokens": reasoning },
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}

/// Answers a conversation.
pub(crate) async fn handle(State(app): State<Arc<Shared>>, request: Request) -> Result<Response, Failure> {
    let arrived = Instant::now();
    let asked = ResponseRequest::read(body::json(&app, request).await?, &app.config.limits)?;
    let member = app.member(&asked.model)?;
    let envelope = Envelope::new(&app, &member, &asked);
    let output = Output::new(asked.conversation.wish.logprobs.is_some());
    let mut replies = asked.conversation.begin(&app, &member, 1, arrived).await.map_err(renamed)?;
    let reply = replies.pop().ok_or_else(Failure::internal)?;
    if asked.streamed {
        return Ok(stream::response(app, envelope, output, reply));
    }
    whole(&app, &envelope, output, reply).await
}

async fn whole(app: &Shared, envelope: &Envelope, mut output: Output, mut reply: Reply) -> Result<Response, Failure> {
    let mut progress = Progress::default();
    while let Some(heard) = reply.next().await {
        let (deltas, positions) = progress.hear(heard?);
        output.hear(app, deltas, &positions);
    }
    let ended = progress.ended.ok_or_else(Failure::internal)?;
    output.end(&ended.why);
    Ok(super::json_response(&envelope.response(&Phase::Ended(&ended), output.items())))
}

/// Calls fields as this address calls them.
fn renamed(failure: Failure) -> Failure {
    match failure.param() {
        Some("max_tokens") => failure.with_param("max_output_tokens"),
        _ => failure,
    }
}
