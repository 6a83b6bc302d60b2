//! What a piece of a reply adds to a message of the API.

use consort_core::{FinishReason, PositionLogprobs, Usage};
use consort_text::{ReplyEvent, ReplyPiece};

use crate::identity;
use crate::reply::{Ending, Heard};

/// What a message gets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Delta {
    Reasoning(String),
    Content(String),
    /// A call begins.
    Call {
        index: usize,
        id: String,
        name: String,
    },
    /// Its arguments go on.
    Arguments {
        index: usize,
        json: String,
    },
}

/// How far one reply is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    calls: usize,
    /// Whether the prompt is in, and what it took.
    pub(crate) started: Option<Usage>,
    pub(crate) ended: Option<Ended>,
}

/// How a reply ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) reason: &'static str,
    pub(crate) usage: Usage,
    pub(crate) reasoning_tokens: usize,
}

impl Progress {
    /// What a part of the reply adds.
    pub(crate) fn hear(&mut self, heard: Heard) -> (Vec<Delta>, Vec<PositionLogprobs>) {
        match heard {
            Heard::Prompt(_) => (Vec::new(), Vec::new()),
            Heard::Started(usage) => {
                self.started = Some(usage);
                (Vec::new(), Vec::new())
            }
            Heard::Said { pieces, logprobs, .. } => (self.deltas(pieces), logprobs),
            Heard::Ended { ending, usage, reasoning_tokens, pieces } => {
                let deltas = self.deltas(pieces);
                let reason = match ending {
                    Ending::FirstCall => "tool_calls",
                    Ending::ShutDown | Ending::Backend(FinishReason::Length) => "length",
                    Ending::Backend(_) if self.calls > 0 => "tool_calls",
                    Ending::Backend(_) => "stop",
                };
                self.ended = Some(Ended { reason, usage, reasoning_tokens });
                self.started.get_or_insert(usage);
                (deltas, Vec::new())
            }
        }
    }

    fn deltas(&mut self, pieces: Vec<ReplyPiece>) -> Vec<Delta> {
        let mut deltas = Vec::new();
        for ReplyPiece { raw, event } in pieces {
            match event {
                ReplyEvent::Content => deltas.push(Delta::Content(raw)),
                ReplyEvent::Reasoning => deltas.push(Delta::Reasoning(raw)),
                ReplyEvent::Malformed { text, .. } => deltas.push(Delta::Content(text)),
                ReplyEvent::CallBegun { index, name, .. } => {
                    self.calls += 1;
                    deltas.push(Delta::Call { index, id: identity::name("call_"), name });
                }
                ReplyEvent::Arguments { index, json } if !json.is_empty() => {
                    deltas.push(Delta::Arguments { index, json });
                }
                ReplyEvent::Arguments { .. } | ReplyEvent::CallFinished { .. } | ReplyEvent::Markup => {}
            }
        }
        deltas
    }
}
