//! One continuation of a prompt, and its log probabilities in the API's old shape.

use consort_core::{FinishReason, PositionLogprobs, TokenId, Usage};
use serde_json::{Map, Value, json};

use super::request::Prepared;
use crate::app::Shared;
use crate::openai::common::finite;
use crate::reply::{Ending, Heard};

/// How far a continuation is.
#[derive(Debug)]
pub(super) struct Choice {
    /// The prompt, as long as it has yet to be echoed.
    echo: Option<Prepared>,
    logprobs: bool,
    /// Characters so far.
    offset: usize,
    pub(super) started: Option<Usage>,
    pub(super) ended: Option<(&'static str, Usage)>,
}

/// What a part of a reply adds to it.
#[derive(Debug, Default)]
pub(super) struct Added {
    pub(super) text: String,
    pub(super) logprobs: Option<Logprobs>,
}

impl Choice {
    pub(super) fn new(echo: Option<Prepared>, logprobs: bool) -> Self {
        Self { echo, logprobs, offset: 0, started: None, ended: None }
    }

    pub(super) fn hear(&mut self, app: &Shared, heard: Heard) -> Added {
        let mut added = Added::default();
        match heard {
            Heard::Prompt(positions) => added = self.echoed(app, &positions),
            Heard::Started(usage) => {
                self.started = Some(usage);
                // Where log probabilities were asked for, it came with them.
                added = self.echoed(app, &[]);
            }
            Heard::Said { ids, text, logprobs, .. } => {
                added.text = text;
                let mut table = Logprobs::default();
                for (id, position) in ids.iter().zip(&logprobs) {
                    self.offset += table.add(app, *id, Some(position), self.offset);
                }
                added.logprobs = self.logprobs.then_some(table);
            }
            Heard::Ended { ending, usage, .. } => {
                let reason = match ending {
                    Ending::ShutDown | Ending::Backend(FinishReason::Length) => "length",
                    Ending::FirstCall | Ending::Backend(_) => "stop",
                };
                self.started.get_or_insert(usage);
                self.ended = Some((reason, usage));
            }
        }
        added
    }

    fn echoed(&mut self, app: &Shared, positions: &[Option<PositionLogprobs>]) -> Added {
        let Some(prompt) = self.echo.take() else { return Added::default() };
        let mut table = Logprobs::default();
        if self.logprobs {
            for (place, id) in prompt.tokens.iter().enumerate() {
                let position = positions.get(place).and_then(Option::as_ref);
                self.offset += table.add(app, *id, position, self.offset);
            }
        }
        Added { text: prompt.text, logprobs: self.logprobs.then_some(table) }
    }
}

/// The API's old table of log probabilities.
#[derive(Debug, Default)]
pub(super) struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Value>>,
    text_offset: Vec<usize>,
}

impl Logprobs {
    /// Adds a token; returns its length in characters. The first of a prompt has no probability.
    fn add(&mut self, app: &Shared, id: TokenId, position: Option<&PositionLogprobs>, offset: usize) -> usize {
        let token = spelled(&app.text.token_bytes(id));
        let length = token.chars().count();
        self.tokens.push(token);
        self.token_logprobs.push(position.map(|position| finite(position.chosen.logprob)));
        self.top_logprobs.push(position.map(|position| {
            let mut top = Map::new();
            for candidate in &position.top {
                let token = spelled(&app.text.token_bytes(candidate.token));
                top.entry(token).or_insert_with(|| json!(finite(candidate.logprob)));
            }
            Value::Object(top)
        }));
        self.text_offset.push(offset);
        length
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.tokens.extend(other.tokens);
        self.token_logprobs.extend(other.token_logprobs);
        self.top_logprobs.extend(other.top_logprobs);
        self.text_offset.extend(other.text_offset);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

/// A token as text; one that is no whole characters as the API writes its bytes.
fn spelled(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("bytes:{}", bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_spelled_in_bytes() {
        assert_eq!(spelled("é".as_bytes()), "é");
        assert_eq!(spelled(&[0xc3, 0x28]), "bytes:\\xc3\\x28");
    }
}
