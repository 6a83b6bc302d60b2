//! A message as it comes.

use std::collections::VecDeque;

use axum::body::Bytes;
use axum::response::Response;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::blocks::Blocks;
use super::{Envelope, failure, stop_reason, usage};
use crate::delta::Progress;
use crate::error::Failure;
use crate::reply::{Heard, Reply};
use crate::sse;

/// Sends a reply as events: the message as it begins, its blocks, why it ended and what it took. An error is the last event.
pub(super) fn response(envelope: Envelope, reply: Reply) -> Response {
    let script = Script {
        envelope,
        reply,
        progress: Progress::default(),
        blocks: Blocks::default(),
        ready: VecDeque::new(),
        over: false,
    };
    let events = futures_util::stream::unfold(script, |mut script| async move {
        let event = script.next().await?;
        Some((event, script))
    });
    sse::response(events)
}

struct Script {
    envelope: Envelope,
    reply: Reply,
    progress: Progress,
    blocks: Blocks,
    /// Events that wait to be sent.
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
            match self.reply.next().await {
                Some(Ok(heard)) => self.hear(heard),
                Some(Err(failure)) => self.fail(&failure),
                None => self.fail(&Failure::internal()),
            }
        }
    }

    fn hear(&mut self, heard: Heard) {
        let first = self.progress.started.is_none();
        let (deltas, _) = self.progress.hear(heard);
        if let (true, Some(started)) = (first, self.progress.started) {
            let message = self.envelope.message(&json!([]), None, &usage(&started, None));
            self.send(&json!({ "type": "message_start", "message": message }));
            self.send(&json!({ "type": "ping" }));
        }
        for delta in deltas {
            let events = self.blocks.hear(delta);
            events.iter().for_each(|event| self.send(event));
        }
        if let Some(ended) = &self.progress.ended {
            let (reason, sequence) = stop_reason(ended, self.envelope.most);
            let last = json!({
                "type": "message_delta",
                "delta": { "stop_reason": reason, "stop_sequence": sequence },
                "usage": usage(&ended.usage, Some(ended.reasoning_tokens)),
            });
            self.blocks.close().iter().for_each(|event| self.send(event));
            self.send(&last);
            self.send(&json!({ "type": "message_stop" }));
            self.over = true;
        }
    }

    fn fail(&mut self, failure: &Failure) {
        self.send(&failure::body(failure, None));
        self.over = true;
    }

    /// Sends an event under its own name.
    fn send(&mut self, event: &Value) {
        let name = event["type"].as_str().unwrap_or_default();
        self.ready.push_back(sse::named(name, event));
    }
}
