//! The items of a response, and the events that make them.

use consort_core::PositionLogprobs;
use serde_json::{Value, json};

use crate::app::Shared;
use crate::delta::{Delta, Why};
use crate::identity;
use crate::openai::common;

/// All items so far. The last one is open until another begins.
#[derive(Debug)]
pub(super) struct Output {
    /// Those that are whole.
    done: Vec<Value>,
    open: Option<Item>,
    /// Whether log probabilities were asked for.
    logprobs: bool,
    /// Those of tokens whose text has not come yet. Few: text waits for what may be a tag or the rest of a character.
    waiting: Vec<Value>,
}

/// An item that is being made.
#[derive(Debug)]
struct Item {
    id: String,
    kind: Kind,
    /// The text, or a call's arguments.
    text: String,
}

#[derive(Debug)]
enum Kind {
    Reasoning,
    Message { logprobs: Vec<Value> },
    Call { id: String, name: String },
}

impl Item {
    fn new(kind: Kind) -> Self {
        let prefix = match kind {
            Kind::Reasoning => "rs_",
            Kind::Message { .. } => "msg_",
            Kind::Call { .. } => "fc_",
        };
        Self { id: identity::name(prefix), kind, text: String::new() }
    }

    /// The item with what it has so far; as it begins it has no parts.
    fn item(&self, status: &str, parts: &[Value]) -> Value {
        match &self.kind {
            Kind::Reasoning => {
                json!({ "id": self.id, "type": "reasoning", "status": status, "summary": [], "content": parts })
            }
            Kind::Message { .. } => {
                json!({ "id": self.id, "type": "message", "status": status, "role": "assistant", "content": parts })
            }
            Kind::Call { id, name } => json!({
                "id": self.id, "type": "function_call", "status": status, "call_id": id, "name": name, "arguments": self.text,
            }),
        }
    }

    /// The one part of what is said; calls have none.
    fn part(&self) -> Option<Value> {
        match &self.kind {
            Kind::Reasoning => Some(json!({ "type": "reasoning_text", "text": self.text })),
            Kind::Message { logprobs } => {
                Some(json!({ "type": "output_text", "text": self.text, "annotations": [], "logprobs": logprobs }))
            }
            Kind::Call { .. } => None,
        }
    }
}

impl Output {
    pub(super) fn new(logprobs: bool) -> Self {
        Self { done: Vec::new(), open: None, logprobs, waiting: Vec::new() }
    }

    /// The items that are whole.
    pub(super) fn items(&self) -> &[Value] {
        &self.done
    }

    /// Adds parts of the reply. What comes of them are the events of a stream.
    pub(super) fn hear(&mut self, app: &Shared, deltas: Vec<Delta>, positions: &[PositionLogprobs]) -> Vec<Value> {
        let logprobs = if self.logprobs { common::chat_logprobs(app, positions) } else { Vec::new() };
        self.take(deltas, logprobs)
    }

    fn take(&mut self, deltas: Vec<Delta>, logprobs: Vec<Value>) -> Vec<Value> {
        let mut events = Vec::new();
        // Text may come later than its tokens. Those of reasoning and calls belong to no text of the answer.
        self.waiting.extend(logprobs);
        for delta in deltas {
            match delta {
                Delta::Reasoning(text) => {
                    self.waiting.clear();
                    if !matches!(&self.open, Some(Item { kind: Kind::Reasoning, .. })) {
                        self.begin(Kind::Reasoning, &mut events);
                    }
                    self.say("response.reasoning_text.delta", &text, &mut events);
                }
                Delta::Content(text) => {
                    if !matches!(&self.open, Some(Item { kind: Kind::Message { .. }, .. })) {
                        self.begin(Kind::Message { logprobs: Vec::new() }, &mut events);
                    }
                    self.say("response.output_text.delta", &text, &mut events);
                }
                Delta::Call { name, .. } => {
                    self.waiting.clear();
                    self.begin(Kind::Call { id: identity::name("call_"), name }, &mut events);
                }
                Delta::Arguments { json, .. } => {
                    self.waiting.clear();
                    self.say("response.function_call_arguments.delta", &json, &mut events);
                }
            }
        }
        events
    }

    /// Ends the last item.
    pub(super) fn end(&mut self, why: &Why) -> Vec<Value> {
        let mut events = Vec::new();
        self.close(if *why == Why::Length { "incomplete" } else { "completed" }, &mut events);
        events
    }

    fn begin(&mut self, kind: Kind, events: &mut Vec<Value>) {
        self.close("completed", events);
        let item = Item::new(kind);
        let place = self.done.len();
        events.push(json!({
            "type": "response.output_item.added", "output_index": place, "item": item.item("in_progress", &[]),
        }));
        if let Some(part) = item.part() {
            events.push(json!({
                "type": "response.content_part.added", "item_id": item.id, "output_index": place, "content_index": 0,
                "part": part,
            }));
        }
        self.open = Some(item);
    }

    fn say(&mut self, event: &str, text: &str, events: &mut Vec<Value>) {
        let place = self.done.len();
        let Some(item) = &mut self.open else { return };
        item.text.push_str(text);
        let mut said = json!({ "type": event, "item_id": item.id, "output_index": place });
        let Some(fields) = said.as_object_mut() else { return };
        if !matches!(item.kind, Kind::Call { .. }) {
            fields.insert("content_index".into(), 0.into());
        }
        fields.insert("delta".into(), text.into());
        if let Kind::Message { logprobs } = &mut item.kind {
            let mut new = std::mem::take(&mut self.waiting);
            if logprobs.is_empty() {
                new.drain(..before(&new, text.as_bytes()));
            }
            logprobs.extend(new.iter().cloned());
            fields.insert("logprobs".into(), new.into());
        }
        events.push(said);
    }

    fn close(&mut self, status: &str, events: &mut Vec<Value>) {
        let Some(item) = self.open.take() else { return };
        let place = self.done.len();
        let (kind, key) = match &item.kind {
            Kind::Reasoning => ("response.reasoning_text.done", "text"),
            Kind::Message { .. } => ("response.output_text.done", "text"),
            Kind::Call { .. } => ("response.function_call_arguments.done", "arguments"),
        };
        let mut done = json!({ "type": kind, "item_id": item.id, "output_index": place, key: item.text });
        if let Some(fields) = done.as_object_mut() {
            match &item.kind {
                Kind::Reasoning => drop(fields.insert("content_index".into(), 0.into())),
                Kind::Message { logprobs } => {
                    fields.insert("content_index".into(), 0.into());
                    fields.insert("logprobs".into(), logprobs.clone().into());
                }
                Kind::Call { name, .. } => drop(fields.insert("name".into(), name.clone().into())),
            }
        }
        events.push(done);
        let part = item.part();
        if let Some(part) = &part {
            events.push(json!({
                "type": "response.content_part.done", "item_id": item.id, "output_index": place, "content_index": 0,
                "part": part,
            }));
        }
        let whole = item.item(status, part.as_slice());
        events.push(json!({ "type": "response.output_item.done", "output_index": place, "item": whole }));
        self.done.push(whole);
    }
}

/// How many of these tokens come before the one with which a text begins: tags, and line breaks beside them.
fn before(tokens: &[Value], text: &[u8]) -> usize {
    let (mut spelled, mut begins) = (Vec::new(), Vec::with_capacity(tokens.len()));
    for token in tokens {
        begins.push(spelled.len());
        let bytes = token["bytes"].as_array().into_iter().flatten();
        spelled.extend(bytes.filter_map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok())));
    }
    begins.iter().position(|begin| spelled.get(*begin..).is_some_and(|rest| rest.starts_with(text))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_text_begins_with_its_first_token() {
        let token = |text: &str| json!({ "token": text, "bytes": text.as_bytes() });
        let tokens = ["</think>", "\n\n", "I", " am"].map(token);
        assert_eq!(before(&tokens, b"I am"), 2);
        assert_eq!(before(&tokens, b"I"), 2, "what comes after it is held back");
        assert_eq!(before(&tokens[2..], b"I a"), 0);
        assert_eq!(before(&tokens, b"something else"), 0);
        assert_eq!(before(&[], b"I"), 0);
    }

    #[test]
    fn each_item_is_added_and_done_in_its_place() {
        let mut output = Output::new(true);
        let mut events = output.take(vec![Delta::Reasoning("I look.".into())], vec![json!("of the reasoning")]);
        // A token whose text is held back, and the one with which it comes.
        events.extend(output.take(Vec::new(), vec![json!(1)]));
        events.extend(output.take(vec![Delta::Content("Red".into())], vec![json!(2)]));
        events.extend(output.take(
            vec![Delta::Call { index: 0, name: "look".into() }, Delta::Arguments { index: 0, json: "{}".into() }],
            vec![json!("of the call")],
        ));
        events.extend(output.end(&Why::Calls));
        let told: Vec<(&str, u64)> =
            events.iter().map(|e| (e["type"].as_str().unwrap(), e["output_index"].as_u64().unwrap())).collect();
        assert_eq!(
            told,
            [
                ("response.output_item.added", 0),
                ("response.content_part.added", 0),
                ("response.reasoning_text.delta", 0),
                ("response.reasoning_text.done", 0),
                ("response.content_part.done", 0),
                ("response.output_item.done", 0),
                ("response.output_item.added", 1),
                ("response.content_part.added", 1),
                ("response.output_text.delta", 1),
                ("response.output_text.done", 1),
                ("response.content_part.done", 1),
                ("response.output_item.done", 1),
                ("response.output_item.added", 2),
                ("response.function_call_arguments.delta", 2),
                ("response.function_call_arguments.done", 2),
                ("response.output_item.done", 2),
            ]
        );
        assert_eq!(events[8]["logprobs"], json!([1, 2]));
        assert_eq!(output.items()[1]["content"][0]["logprobs"], json!([1, 2]));
        assert_eq!(output.items()[2]["arguments"], "{}");
    }

    #[test]
    fn what_was_cut_is_incomplete() {
        let mut output = Output::new(false);
        output.take(vec![Delta::Content("Re".into())], Vec::new());
        output.end(&Why::Length);
        assert_eq!((&output.items()[0]["status"], output.items().len()), (&json!("incomplete"), 1));
    }
}
