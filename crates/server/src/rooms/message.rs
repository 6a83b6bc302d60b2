//! What was said in a room.

use std::sync::Arc;
use std::time::Duration;

use consort_core::Usage;
use consort_vision::ImageFormat;
use serde_json::{Map, Value, json};

use crate::identity;
use crate::persona::PersonaAdapter;

/// Who says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Speaker {
    User,
    Persona(String),
}

/// A picture that was shown in a room.
#[derive(Debug, Clone)]
pub(crate) struct Picture {
    pub(crate) id: String,
    /// As it was sent.
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) format: ImageFormat,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

/// Why a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Stop,
    Length,
    Cancelled,
    Error,
}

impl Reason {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Error => "error",
        }
    }
}

/// What a reply took.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Figures {
    pub(crate) prompt_tokens: usize,
    pub(crate) reused_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) first_token: Option<Duration>,
    /// From the first token to the last.
    pub(crate) decode: Duration,
}

impl From<Usage> for Figures {
    fn from(usage: Usage) -> Self {
        let Usage { prompt_tokens, reused_tokens, completion_tokens, time_to_first_token, decode_time } = usage;
        Self { prompt_tokens, reused_tokens, completion_tokens, first_token: time_to_first_token, decode: decode_time }
    }
}

impl Figures {
    pub(crate) fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "reused_tokens": self.reused_tokens,
            "completion_tokens": self.completion_tokens,
        })
    }

    /// `None` without a token. A rate needs two.
    pub(crate) fn timings(&self) -> Option<Value> {
        let first = self.first_token?;
        let seconds = self.decode.as_secs_f64();
        let rate = match self.completion_tokens {
            tokens @ 2.. if seconds > 0.0 => (tokens - 1) as f64 / seconds,
            _ => 0.0,
        };
        Some(json!({ "first_token_ms": first.as_secs_f64() * 1e3, "tokens_per_second": rate }))
    }
}

/// How a reply ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) reason: Reason,
    pub(crate) figures: Figures,
    /// The inner object of an error.
    pub(crate) error: Option<Value>,
}

/// Something that was said.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) from: Speaker,
    pub(crate) content: String,
    pub(crate) reasoning: String,
    pub(crate) pictures: Vec<Picture>,
    /// With which a reply was begun.
    pub(crate) adapters: Vec<PersonaAdapter>,
    /// `None` for the user's words, and while a reply grows.
    pub(crate) ended: Option<Ended>,
}

impl Message {
    pub(crate) fn new(from: Speaker) -> Self {
        Self {
            id: identity::name("msg_"),
            from,
            content: String::new(),
            reasoning: String::new(),
            pictures: Vec::new(),
            adapters: Vec::new(),
            ended: None,
        }
    }

    /// About how much memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        const RECORD: usize = 512;
        let pictures: usize = self.pictures.iter().map(|picture| picture.bytes.len() + RECORD).sum();
        RECORD + self.content.len() + self.reasoning.len() + pictures
    }

    /// As clients see it.
    pub(crate) fn shown(&self) -> Value {
        let mut fields = Map::new();
        fields.insert("id".into(), self.id.clone().into());
        let from = match &self.from {
            Speaker::User => "user",
            Speaker::Persona(name) => name,
        };
        fields.insert("from".into(), from.into());
        fields.insert("content".into(), self.content.clone().into());
        if !self.reasoning.is_empty() {
            fields.insert("reasoning".into(), self.reasoning.clone().into());
        }
        if !self.pictures.is_empty() {
            let picture = |p: &Picture| json!({ "id": p.id, "width": p.width, "height": p.height });
            fields.insert("images".into(), self.pictures.iter().map(picture).collect());
        }
        if self.from != Speaker::User {
            fields.insert("adapters".into(), json!(self.adapters));
        }
        if let Some(Ended { reason, figures, error }) = &self.ended {
            fields.insert("usage".into(), figures.usage());
            if let Some(timings) = figures.timings() {
                fields.insert("timings".into(), timings);
            }
            fields.insert("reason".into(), reason.as_str().into());
            if *reason == Reason::Cancelled {
                fields.insert("stopped".into(), true.into());
            }
            if let Some(error) = error {
                fields.insert("error".into(), error.clone());
            }
        }
        Value::Object(fields)
    }
}
