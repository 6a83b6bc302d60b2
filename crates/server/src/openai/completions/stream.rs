//! Completions as they come.

use std::sync::Arc;

use axum::response::Response;
use consort_core::Usage;
use serde_json::{Value, json};

use super::choice::Choice;
use crate::app::Shared;
use crate::error::Failure;
use crate::openai::chat::Envelope;
use crate::reply::{Heard, Reply};
use crate::script::{Page, Script, perform};
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
    perform(replies, Written { app, envelope, choices, each, usage })
}

struct Written {
    app: Arc<Shared>,
    envelope: Envelope,
    choices: Vec<Choice>,
    each: usize,
    usage: bool,
}

impl Script for Written {
    fn hear(&mut self, index: usize, heard: Heard, page: &mut Page) {
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
        page.write(sse::data(&chunk));
    }

    fn fail(&mut self, failure: &Failure, page: &mut Page) {
        page.write(sse::data(&failure.openai()));
    }

    fn end(&mut self, page: &mut Page) {
        if self.usage {
            let took: Vec<Usage> = self.choices.iter().filter_map(|choice| Some(choice.ended?.1)).collect();
            let mut chunk = self.envelope.object("text_completion", &json!([]));
            if let Some(fields) = chunk.as_object_mut() {
                fields.insert("usage".into(), super::usage(&took, self.each));
            }
            page.write(sse::data(&chunk));
        }
        page.write(sse::DONE);
    }
}
