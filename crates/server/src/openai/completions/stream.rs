//! Completions as they come.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Bytes;
use axum::response::Response;
use consort_core::Usage;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::choice::Choice;
use crate::app::Shared;
use crate::openai::chat::{Envelope, Merged, merged};
use crate::reply::{Heard, Reply};
use crate::sse;

/// Sends continuations as events, at the end what they took, if that was asked for, and `[DONE]`.
pub(super) fn response(
    app: Arc<Shared>,
    envelope: Envelope,
    replies: Vec<Reply>,
    choices: Vec<Choice>,
    each: usize,
    usage: bool,
) -> Response {
    let script =
        Script { app, envelope, replies: merged(replies), choices, each, usage, ready: VecDeque::new(), over: false };
    let events = futures_util::stream::unfold(script, |mut script| async move {
        let event = script.next().await?;
        Some((event, script))
    });
    sse::response(events)
}

struct Script {
    app: Arc<Shared>,
    envelope: Envelope,
    replies: Merged,
    choices: Vec<Choice>,
    each: usize,
    usage: bool,
    ready: VecDeque<Bytes>,
    over: bool,
}

impl Script {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            match self.replies.next().await {
                Some((index, Ok(heard))) => self.hear(index, heard),
                Some((_, Err(failure))) => {
                    self.over = true;
                    self.ready.push_back(sse::data(&failure.openai()));
                }
                None => self.end(),
            }
        }
    }

    fn hear(&mut self, index: usize, heard: Heard) {
        let Some(choice) = self.choices.get_mut(index) else { return };
        let added = choice.hear(&self.app, heard);
        let reason = choice.ended.map(|(reason, _)| reason);
        let table = added.logprobs.filter(|table| !table.is_empty());
        if added.text.is_empty() && table.is_none() && reason.is_none() {
            return;
        }
        let choice = json!({
            "text": added.text,
            "index": index,
            "logprobs": table.map(|table| table.json()),
            "finish_reason": reason,
        });
        let mut chunk = self.envelope.object("text_completion", &json!([choice]));
        if let (true, Some(fields)) = (self.usage, chunk.as_object_mut()) {
            fields.insert("usage".into(), Value::Null);
        }
        self.ready.push_back(sse::data(&chunk));
    }

    fn end(&mut self) {
        self.over = true;
        if self.usage {
            let took: Vec<Usage> = self.choices.iter().filter_map(|choice| Some(choice.ended?.1)).collect();
            let mut chunk = self.envelope.object("text_completion", &json!([]));
            if let Some(fields) = chunk.as_object_mut() {
                fields.insert("usage".into(), super::usage(&took, self.each));
            }
            self.ready.push_back(sse::data(&chunk));
        }
        self.ready.push_back(sse::DONE);
    }
}
