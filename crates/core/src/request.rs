//! What is asked of a backend.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{AdapterUse, ChatPrompt, ImageSource, Sampling, StopRules, Structure, StructureScope, TokenId};

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

/// Whose turn it is when not all fit into a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
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
/// [`DeadlineExceeded`](crate::ErrorKind::DeadlineExceeded) and frees the slot within one step. What was generated before has
/// been delivered.
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

/// Where a request may be answered, when its backend composes a local one and a remote one. A backend that has but one side
/// answers there, whatever is said here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlacementRule {
    /// Wherever there is room, as the backend is configured.
    #[default]
    Any,
    /// On the local side and nowhere else: what is said never reaches the remote one.
    Local,
    /// On the remote side first; on the local one when the remote fails before it has said anything.
    PreferRemote,
    /// On the remote side and nowhere else.
    Remote,
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
    /// The same for each position of the prompt, in an [`Event::PromptLogprobs`](crate::Event::PromptLogprobs) before the
    /// reply starts. The whole prompt is then computed anew: what the prefix cache gives has no logits.
    pub prompt_logprobs: Option<u32>,
    /// The form that the reply must have.
    pub structure: Option<Structure>,
    /// To which part of the reply the structure applies.
    pub structure_scope: StructureScope,
    /// Whose turn it is.
    pub priority: Priority,
    /// Whether the prefix cache is used.
    pub prefix_reuse: PrefixReuse,
    /// When the reply is of no use any more.
    pub deadlines: Deadlines,
    /// Where it may be answered.
    pub placement: PlacementRule,
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
            prompt_logprobs: None,
            structure: None,
            structure_scope: StructureScope::default(),
            priority: Priority::default(),
            prefix_reuse: PrefixReuse::default(),
            deadlines: Deadlines::default(),
            placement: PlacementRule::default(),
        }
    }
}
