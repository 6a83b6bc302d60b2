//! What is asked of a backend.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::{AdapterUse, ChatPrompt, Error, ErrorKind, ImageSource, Result, TokenId};

/// A piece of a rendered prompt.
#[derive(Debug, Clone)]
pub enum PromptPart {
    /// Token ids. The model's image token must not be among them.
    Tokens(Vec<TokenId>),
    /// An image, which takes `grid().tokens()` positions.
    Image(Arc<dyn ImageSource>),
}

/// What the model continues.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// A conversation; the backend renders, tokenizes and processes its images.
    Chat(ChatPrompt),
    /// Rendered by the caller.
    Parts(Vec<PromptPart>),
}

/// How the next token is chosen. The default is greedy: the first maximum.
///
/// The filters apply in the order top k, top p, min p, temperature, as in transformers' processors sorted by llama.cpp's
/// default chain (filters on the unscaled distribution, temperature last).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sampling {
    /// 0 is greedy; 1 is the model's own distribution.
    pub temperature: f32,
    /// Keep the k most probable tokens. 0: all.
    pub top_k: u32,
    /// Keep the smallest set of tokens whose probability reaches this. 1: all. (Nucleus sampling, Holtzman et al. 2019.)
    pub top_p: f32,
    /// Keep tokens at least this fraction as probable as the most probable one. 0: all.
    pub min_p: f32,
    /// Randomness is a function of the seed and the token's index in the reply, and of nothing else.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

impl Sampling {
    /// Refuses values without meaning.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] that names the field.
    pub fn validate(&self) -> Result<()> {
        let refuse = |field: &'static str, value: f32, range: &str| {
            Err(Error::new(ErrorKind::InvalidRequest, format!("must be {range}, and is {value}"))
                .with_context("field", field))
        };
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refuse("temperature", self.temperature, "0 (greedy) or a positive number");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", self.top_p, "above 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return refuse("min_p", self.min_p, "from 0 to 1");
        }
        Ok(())
    }
}

/// What ends a reply, besides the model's own end tokens and `max_tokens`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct StopRules {
    /// Texts; the reply ends before the first of them that appears, also across token borders.
    pub strings: Vec<String>,
    /// Tokens; the reply ends before them.
    pub tokens: Vec<TokenId>,
}

/// Whose turn it is when not all fit into a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Work for throughput, whenever there is room.
    Batch,
    /// Work that prepares what comes later, such as keeping a finished turn in the prefix cache.
    Background,
    /// Somebody reads along.
    #[default]
    Interactive,
    /// Somebody listens: a voice must not falter.
    Realtime,
}

/// When a reply is of no use any more, counted from the request's arrival.
///
/// A deadline that passes, in the queue or in the middle of the reply, ends the stream with
/// [`ErrorKind::DeadlineExceeded`] and frees the slot within one step. What was generated before has been delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
pub struct Deadlines {
    /// The first token comes within this time. `None`: whenever it comes.
    pub first_token: Option<Duration>,
    /// The reply ends within this time. `None`: whenever it ends.
    pub total: Option<Duration>,
}

/// Whether a request reads from and adds to the prefix cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PrefixReuse {
    /// It does.
    #[default]
    Shared,
    /// It computes everything anew and leaves nothing: for measurements and comparisons.
    Bypass,
}

/// A request for a reply.
///
/// ```
/// use consort_core::{ChatMessage, ChatPrompt, GenerateRequest, Prompt, Role};
///
/// let request = GenerateRequest {
///     max_tokens: Some(64),
///     ..GenerateRequest::new(Prompt::Chat(ChatPrompt {
///         messages: vec![ChatMessage::text(Role::User, "What colour is the circle?")],
///         ..ChatPrompt::default()
///     }))
/// };
/// # assert_eq!(request.max_tokens, Some(64));
/// ```
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// What the model continues.
    pub prompt: Prompt,
    /// With which adapters.
    pub adapters: Vec<AdapterUse>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What ends the reply.
    pub stop: StopRules,
    /// The most tokens of a reply. `None`: what the context still holds.
    pub max_tokens: Option<u32>,
    /// How many of the most probable tokens to report at each position, besides the chosen one. `None`: no log
    /// probabilities at all.
    pub logprobs: Option<u32>,
    /// Whose turn it is.
    pub priority: Priority,
    /// Whether the prefix cache is used.
    pub prefix_reuse: PrefixReuse,
    /// When the reply is of no use any more.
    pub deadlines: Deadlines,
}

impl GenerateRequest {
    /// A greedy request with the defaults of every field.
    #[must_use]
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            adapters: Vec::new(),
            sampling: Sampling::default(),
            stop: StopRules::default(),
            max_tokens: None,
            logprobs: None,
            priority: Priority::default(),
            prefix_reuse: PrefixReuse::default(),
            deadlines: Deadlines::default(),
        }
    }
}
