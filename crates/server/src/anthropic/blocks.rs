//! The blocks of a message, and the events that make them.

use serde_json::{Value, json};

use crate::delta::Delta;
use crate::identity;

/// What stands where the API has a signature of the reasoning. Nothing is signed here, and none is asked back; but clients
/// take a thinking block without one for broken.
const SIGNATURE: &str = "unsigned";

/// A block.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Block {
    Thinking(String),
    Text(String),
    ToolUse { id: String, name: String, json: String },
}

impl Block {
    /// The block of a whole message.
    pub(super) fn whole(&self) -> Value {
        match self {
            Self::Thinking(text) => json!({ "type": "thinking", "thinking": text, "signature": SIGNATURE }),
            Self::Text(text) => json!({ "type": "text", "text": text, "citations": null }),
            Self::ToolUse { id, name, json } => {
                // A call is sent when it is whole, and its parts together are an object.
                let input = serde_json::from_str(json).unwrap_or_else(|_| json!({}));
                json!({ "type": "tool_use", "id": id, "name": name, "input": input })
            }
        }
    }

    /// The block as it begins.
    fn empty(&self) -> Value {
        match self {
            Self::Thinking(_) => json!({ "type": "thinking", "thinking": "", "signature": "" }),
            Self::Text(_) => json!({ "type": "text", "text": "", "citations": null }),
            Self::ToolUse { id, name, .. } => json!({ "type": "tool_use", "id": id, "name": name, "input": {} }),
        }
    }
}

/// All blocks so far. The last one is open until another begins.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    pub(super) all: Vec<Block>,
}

impl Blocks {
    /// Adds a part of the reply. What comes of it are the events of a stream.
    pub(super) fn hear(&mut self, delta: Delta) -> Vec<Value> {
        let mut events = Vec::new();
        match delta {
            Delta::Reasoning(text) => {
                if !matches!(self.all.last(), Some(Block::Thinking(_))) {
                    self.open(Block::Thinking(String::new()), &mut events);
                }
                events.push(self.delta(&json!({ "type": "thinking_delta", "thinking": text })));
                if let Some(Block::Thinking(all)) = self.all.last_mut() {
                    all.push_str(&text);
                }
            }
            Delta::Content(text) => {
                if !matches!(self.all.last(), Some(Block::Text(_))) {
                    self.open(Block::Text(String::new()), &mut events);
                }
                events.push(self.delta(&json!({ "type": "text_delta", "text": text })));
                if let Some(Block::Text(all)) = self.all.last_mut() {
                    all.push_str(&text);
                }
            }
            Delta::Call { name, .. } => {
                self.open(Block::ToolUse { id: identity::name("toolu_"), name, json: String::new() }, &mut events);
            }
            Delta::Arguments { json, .. } => {
                events.push(self.delta(&json!({ "type": "input_json_delta", "partial_json": json })));
                if let Some(Block::ToolUse { json: all, .. }) = self.all.last_mut() {
                    all.push_str(&json);
                }
            }
        }
        events
    }

    /// Closes the open block.
    pub(super) fn close(&self) -> Vec<Value> {
        let Some(last) = self.all.last() else { return Vec::new() };
        let mut events = Vec::new();
        if matches!(last, Block::Thinking(_)) {
            events.push(self.delta(&json!({ "type": "signature_delta", "signature": SIGNATURE })));
        }
        events.push(json!({ "type": "content_block_stop", "index": self.index() }));
        events
    }

    fn open(&mut self, block: Block, events: &mut Vec<Value>) {
        events.extend(self.close());
        let empty = block.empty();
        self.all.push(block);
        events.push(json!({ "type": "content_block_start", "index": self.index(), "content_block": empty }));
    }

    fn delta(&self, delta: &Value) -> Value {
        json!({ "type": "content_block_delta", "index": self.index(), "delta": delta })
    }

    /// The place of the last block.
    fn index(&self) -> usize {
        self.all.len().saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_block_begins_after_the_one_before_has_ended() {
        let mut blocks = Blocks::default();
        let mut events = Vec::new();
        for delta in [
            Delta::Reasoning("I ".into()),
            Delta::Reasoning("look.".into()),
            Delta::Content("Wait.".into()),
            Delta::Call { index: 0, name: "look".into() },
            Delta::Arguments { index: 0, json: "{\"at\":".into() },
            Delta::Arguments { index: 0, json: "\"sky\"}".into() },
            Delta::Call { index: 1, name: "stop".into() },
        ] {
            events.extend(blocks.hear(delta));
        }
        events.extend(blocks.close());
        let told: Vec<(String, u64)> = events
            .iter()
            .map(|event| {
                let kind = event["delta"]["type"].as_str().or(event["type"].as_str()).unwrap();
                (kind.to_owned(), event["index"].as_u64().unwrap())
            })
            .collect();
        let expected = [
            ("content_block_start", 0),
            ("thinking_delta", 0),
            ("thinking_delta", 0),
            ("signature_delta", 0),
            ("content_block_stop", 0),
            ("content_block_start", 1),
            ("text_delta", 1),
            ("content_block_stop", 1),
            ("content_block_start", 2),
            ("input_json_delta", 2),
            ("input_json_delta", 2),
            ("content_block_stop", 2),
            ("content_block_start", 3),
            ("content_block_stop", 3),
        ];
        assert_eq!(told, expected.map(|(kind, index)| (kind.to_owned(), index)));
        let whole: Vec<Value> = blocks.all.iter().map(Block::whole).collect();
        assert_eq!(whole[0]["thinking"], "I look.");
        assert_eq!((&whole[2]["input"], &whole[3]["input"]), (&json!({ "at": "sky" }), &json!({})));
    }

    #[test]
    fn silence_has_no_blocks() {
        assert!(Blocks::default().close().is_empty());
    }
}
