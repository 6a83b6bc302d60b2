//! What a part of a reply adds to a message, for every protocol that has messages.

use consort_core::{FinishReason, PositionLogprobs, Usage};
use consort_text::{ReplyEvent, ReplyPiece};

use crate::reply::{Ending, Heard};

/// What a message gets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Delta {
    Reasoning(String),
    Content(String),
    /// A call begins. It has no id: the protocol gives it one.
    Call {
        index: usize,
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
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) why: Why,
    /// Whether the server cut it off, as it goes down.
    pub(crate) cut: bool,
    pub(crate) usage: Usage,
    pub(crate) reasoning_tokens: usize,
}

/// Why a reply ended, as protocols tell it apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Why {
    /// The model has said what it had to say.
    Turn,
    /// One of the request's stop texts came.
    StopText(String),
    /// It has called, and waits for what comes of it.
    Calls,
    /// There was no room for more tokens, or no time, as the server goes down.
    Length,
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
                let cut = ending == Ending::ShutDown;
                let why = match ending {
                    Ending::FirstCall => Why::Calls,
                    Ending::ShutDown | Ending::Backend(FinishReason::Length) => Why::Length,
                    Ending::Backend(_) if self.calls > 0 => Why::Calls,
                    Ending::Backend(FinishReason::StopString(text)) => Why::StopText(text),
                    Ending::Backend(_) => Why::Turn,
                };
                self.ended = Some(Ended { why, cut, usage, reasoning_tokens });
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
                    deltas.push(Delta::Call { index, name });
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
