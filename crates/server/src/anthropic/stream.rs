//! A message as it comes.

use axum::response::Response;
use serde_json::{Value, json};

use super::blocks::Blocks;
use super::{Envelope, failure, stop_reason, usage};
use crate::delta::Progress;
use crate::error::Failure;
use crate::reply::{Heard, Reply};
use crate::script::{Page, Script, perform};
use crate::sse;

/// Sends a reply as events: the message as it begins, its blocks, why it ended and what it took. An error is the last event.
pub(super) fn response(envelope: Envelope, reply: Reply) -> Response {
    perform(vec![reply], Written { envelope, progress: Progress::default(), blocks: Blocks::default() })
}

struct Written {
    envelope: Envelope,
    progress: Progress,
    blocks: Blocks,
}

impl Script for Written {
    fn hear(&mut self, _: usize, heard: Heard, page: &mut Page) {
        let first = self.progress.started.is_none();
        let (deltas, _) = self.progress.hear(heard);
        if let (true, Some(started)) = (first, self.progress.started) {
            let message = self.envelope.message(&json!([]), None, &usage(&started, None));
            send(page, &json!({ "type": "message_start", "message": message }));
            send(page, &json!({ "type": "ping" }));
        }
        for delta in deltas {
            let events = self.blocks.hear(delta);
            events.iter().for_each(|event| send(page, event));
        }
        if let Some(ended) = &self.progress.ended {
            let (reason, sequence) = stop_reason(ended, self.envelope.most);
            let last = json!({
                "type": "message_delta",
                "delta": { "stop_reason": reason, "stop_sequence": sequence },
                "usage": usage(&ended.usage, Some(ended.reasoning_tokens)),
            });
            self.blocks.close().iter().for_each(|event| send(page, event));
            send(page, &last);
            send(page, &json!({ "type": "message_stop" }));
            page.close();
        }
    }

    fn fail(&mut self, failure: &Failure, page: &mut Page) {
        send(page, &failure::body(failure, None));
    }

    fn end(&mut self, page: &mut Page) {
        // It was closed where the reply ended.
        self.fail(&Failure::internal(), page);
    }
}

/// Sends an event under its own name.
fn send(page: &mut Page, event: &Value) {
    let name = event["type"].as_str().unwrap_or_default();
    page.write(sse::named(name, event));
}
