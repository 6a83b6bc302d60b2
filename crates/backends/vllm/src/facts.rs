//! What a server was found to be.

use std::fmt;

use serde::Serialize;

/// What came of trying something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It had the effect that it should.
    Works,
    /// The server said no.
    Refused,
    /// The server said yes, and nothing came of it.
    Ignored,
    /// It could not be tried.
    Untried,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Works => "works",
            Self::Refused => "refused",
            Self::Ignored => "ignored",
            Self::Untried => "not tried",
        })
    }
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// What came of it.
    pub verdict: Verdict,
    /// What was seen.
    pub seen: String,
}

/// What a server does, as was found by asking it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Abilities {
    /// Token ids in, token ids out, pictures beside them (`/inference/v1/generate`, or gRPC).
    pub tokens_in_and_out: bool,
    /// Token ids in and out by `/v1/completions`.
    pub completions: bool,
    /// Conversations by `/v1/chat/completions`.
    pub chat: bool,
    /// Pictures beside token ids.
    pub pictures_with_tokens: bool,
    /// Pictures in conversations.
    pub pictures_in_chat: bool,
    /// Log probabilities by token id.
    pub logprobs: bool,
    /// Log probabilities of the prompt.
    pub prompt_logprobs: bool,
    /// Replies are held to a form.
    pub structured_output: bool,
    /// A bias on logits has an effect.
    pub logit_bias: bool,
    /// The same seed gives the same reply.
    pub seed: bool,
    /// A priority is accepted.
    pub priority: bool,
    /// Adapters can be loaded while the server runs.
    pub adapters: bool,
    /// It says how many tokens of a prompt it had.
    pub tells_cached_tokens: bool,
    /// Text can be tokenized there.
    pub tokenize: bool,
}

/// What a server was found to be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServerFacts {
    /// Its address.
    pub endpoint: String,
    /// Its version, as it says.
    pub version: String,
    /// Which of vLLM's front ends answers (`python`, `rust`), or another server's name where it gives one.
    pub front_end: String,
    /// The model's name there.
    pub model: String,
    /// From where the server says that it loaded it.
    pub root: String,
    /// The longest sequence, in tokens.
    pub context_length: usize,
    /// How many requests it runs at once, where it says so.
    pub max_running: Option<usize>,
    /// What it does.
    pub abilities: Abilities,
    /// How that is known.
    pub findings: Vec<Finding>,
}
