//! A chat completion as it comes.

use std::sync::Arc;

use axum::response::Response;
use consort_core::Usage;
use serde_json::{Value, json};

use super::{Envelope, call_id, finish_reason};
use crate::app::Shared;
use crate::delta::{Delta, Progress};
use crate::error::Failure;
use crate::openai::common;
use crate::reply::{Heard, Reply};
use crate::script::{Page, Script, perform};
use crate::sse;

/// Sends replies as events: for each a first one with the role, then what it says, then why it ended; at the end what they
/// took, if that was asked for, and `[DONE]`. An error ends the stream with an event of its own, and no `[DONE]`.
pub(super) fn response(
    app: Arc<Shared>,
    envelope: Envelope,
    replies: Vec<Reply>,
    usage: bool,
    logprobs: bool,
) -> Response {
    let progress = replies.iter().map(|_| Progress::default()).collect();
    perform(replies, Written { app, envelope, progress, usage, logprobs })
}

struct Written {
    app: Arc<Shared>,
    envelope: Envelope,
    progress: Vec<Progress>,
    usage: bool,
    logprobs: bool,
}

impl Script for Written {
    fn hear(&mut self, index: usize, heard: Heard, page: &mut Page) {
        let Some(progress) = self.progress.get_mut(index) else { return };
        let first = progress.started.is_none();
        let (deltas, positions) = progress.hear(heard);
        let (begun, ended) = (progress.started.is_some(), progress.ended.clone());
        if first && begun {
            self.send(page, index, &json!({ "role": "assistant", "content": "" }), None, &Value::Null);
        }
        // Log probabilities belong to tokens, and not to the pieces of text that these became: they go with the first.
        let mut logprobs = (self.logprobs && !positions.is_empty())
            .then(|| json!({ "content": common::chat_logprobs(&self.app, &positions), "refusal": null }));
        if deltas.is_empty() && logprobs.is_some() {
            self.send(page, index, &json!({}), None, &logprobs.take().unwrap_or_default());
        }
        for delta in deltas {
            let delta = match delta {
                Delta::Reasoning(text) => json!({ "reasoning_content": text }),
                Delta::Content(text) => json!({ "content": text }),
                Delta::Call { index, name } => json!({ "tool_calls": [{
                    "index": index, "id": call_id(), "type": "function", "function": { "name": name, "arguments": "" },
                }] }),
                Delta::Arguments { index, json } => {
                    json!({ "tool_calls": [{ "index": index, "function": { "arguments": json } }] })
                }
            };
            self.send(page, index, &delta, None, &logprobs.take().unwrap_or_default());
        }
        if let Some(ended) = ended {
            self.send(page, index, &json!({}), Some(finish_reason(&ended.why)), &Value::Null);
        }
    }

    fn fail(&mut self, failure: &Failure, page: &mut Page) {
        page.write(sse::data(&failure.openai()));
    }

    fn end(&mut self, page: &mut Page) {
        if self.usage {
            let ended = self.progress.iter().filter_map(|progress| progress.ended.as_ref());
            let took: Vec<(Usage, usize)> = ended.map(|ended| (ended.usage, ended.reasoning_tokens)).collect();
            let prompts: Vec<Usage> = took.first().map(|(usage, _)| *usage).into_iter().collect();
            let mut chunk = self.envelope.object("chat.completion.chunk", &json!([]));
            if let Some(fields) = chunk.as_object_mut() {
                fields.insert("usage".into(), common::usage(&took, &prompts));
            }
            page.write(sse::data(&chunk));
        }
        page.write(sse::DONE);
    }
}

impl Written {
    fn send(&self, page: &mut Page, index: usize, delta: &Value, finish_reason: Option<&str>, logprobs: &Value) {
        let choice = json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason });
        let mut chunk = self.envelope.object("chat.completion.chunk", &json!([choice]));
        if let (true, Some(fields)) = (self.usage, chunk.as_object_mut()) {
            fields.insert("usage".into(), Value::Null);
        }
        page.write(sse::data(&chunk));
    }
}
