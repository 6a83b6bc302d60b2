//! A response as it comes.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Value, json};

use super::output::Output;
use super::{Envelope, Phase};
use crate::app::Shared;
use crate::delta::{Progress, Why};
use crate::error::Failure;
use crate::reply::{Heard, Reply};
use crate::script::{Page, Script, perform};
use crate::sse;

/// Sends a reply as events, each with its number: the response as it begins, its items, and the whole response again.
pub(super) fn response(app: Arc<Shared>, envelope: Envelope, output: Output, reply: Reply) -> Response {
    perform(vec![reply], Written { app, envelope, output, progress: Progress::default(), sent: 0 })
}

struct Written {
    app: Arc<Shared>,
    envelope: Envelope,
    output: Output,
    progress: Progress,
    /// How many events there were.
    sent: u64,
}

impl Script for Written {
    fn hear(&mut self, _: usize, heard: Heard, page: &mut Page) {
        let first = self.progress.started.is_none();
        let (deltas, positions) = self.progress.hear(heard);
        if first && self.progress.started.is_some() {
            let begun = self.envelope.response(&Phase::InProgress, &[]);
            self.send(page, json!({ "type": "response.created", "response": begun }));
            self.send(page, json!({ "type": "response.in_progress", "response": begun }));
        }
        let events = self.output.hear(&self.app, deltas, &positions);
        events.into_iter().for_each(|event| self.send(page, event));
        if let Some(ended) = self.progress.ended.clone() {
            let events = self.output.end(&ended.why);
            events.into_iter().for_each(|event| self.send(page, event));
            let kind = if ended.why == Why::Length { "response.incomplete" } else { "response.completed" };
            let whole = self.envelope.response(&Phase::Ended(&ended), self.output.items());
            self.send(page, json!({ "type": kind, "response": whole }));
            page.close();
        }
    }

    fn fail(&mut self, failure: &Failure, page: &mut Page) {
        let whole = self.envelope.response(&Phase::Failed(failure), self.output.items());
        self.send(page, json!({ "type": "response.failed", "response": whole }));
    }

    fn end(&mut self, page: &mut Page) {
        // It was closed where the reply ended.
        self.fail(&Failure::internal(), page);
    }
}

impl Written {
    /// Sends an event under its own name, with its number.
    fn send(&mut self, page: &mut Page, mut event: Value) {
        let name = event["type"].as_str().unwrap_or_default().to_owned();
        if let Some(fields) = event.as_object_mut() {
            fields.insert("sequence_number".into(), self.sent.into());
        }
        self.sent += 1;
        page.write(sse::named(&name, &event));
    }
}
