//! A response as it comes.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Bytes;
use axum::response::Response;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::output::Output;
use super::{Envelope, Phase};
use crate::app::Shared;
use crate::delta::{Progress, Why};
use crate::error::Failure;
use crate::reply::{Heard, Reply};
use crate::sse;

/// Sends a reply as events, each with its number: the response as it begins, its items, and the whole response again.
pub(super) fn response(app: Arc<Shared>, envelope: Envelope, output: Output, reply: Reply) -> Response {
    let script = Script {
        app,
        envelope,
        output,
        reply,
        progress: Progress::default(),
        sent: 0,
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
    app: Arc<Shared>,
    envelope: Envelope,
    output: Output,
    reply: Reply,
    progress: Progress,
    /// How many events there were.
    sent: u64,
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
        let (deltas, positions) = self.progress.hear(heard);
        if first && self.progress.started.is_some() {
            let begun = self.envelope.response(&Phase::InProgress, &[]);
            self.send(json!({ "type": "response.created", "response": begun }));
            self.send(json!({ "type": "response.in_progress", "response": begun }));
        }
        let events = self.output.hear(&self.app, deltas, &positions);
        events.into_iter().for_each(|event| self.send(event));
        if let Some(ended) = self.progress.ended.clone() {
            let events = self.output.end(&ended.why);
            events.into_iter().for_each(|event| self.send(event));
            let kind = if ended.why == Why::Length { "response.incomplete" } else { "response.completed" };
            let whole = self.envelope.response(&Phase::Ended(&ended), self.output.items());
            self.send(json!({ "type": kind, "response": whole }));
            self.over = true;
        }
    }

    fn fail(&mut self, failure: &Failure) {
        let whole = self.envelope.response(&Phase::Failed(failure), self.output.items());
        self.send(json!({ "type": "response.failed", "response": whole }));
        self.over = true;
    }

    /// Sends an event under its own name, with its number.
    fn send(&mut self, mut event: Value) {
        let name = event["type"].as_str().unwrap_or_default().to_owned();
        if let Some(fields) = event.as_object_mut() {
            fields.insert("sequence_number".into(), self.sent.into());
        }
        self.sent += 1;
        self.ready.push_back(sse::named(&name, &event));
    }
}
