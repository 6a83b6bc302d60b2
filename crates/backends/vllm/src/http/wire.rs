//! What servers answer, as far as it is used. Everything is optional: front ends and versions differ.

use serde::Deserialize;
use serde_json::Value;

/// `/v1/models`.
#[derive(Debug, Deserialize)]
pub(super) struct Models {
    #[serde(default)]
    pub(super) data: Vec<Model>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Model {
    pub(super) id: String,
    #[serde(default)]
    pub(super) root: Option<String>,
    /// The model that an adapter changes.
    #[serde(default)]
    pub(super) parent: Option<String>,
    #[serde(default)]
    pub(super) max_model_len: Option<usize>,
}

/// `/version`.
#[derive(Debug, Deserialize)]
pub(super) struct Version {
    #[serde(default)]
    pub(super) version: Option<String>,
    #[serde(default)]
    pub(super) rust_frontend_version: Option<String>,
}

/// `/is_paused`.
#[derive(Debug, Deserialize)]
pub(super) struct Paused {
    #[serde(default)]
    pub(super) is_paused: bool,
}

/// `/tokenize`.
#[derive(Debug, Deserialize)]
pub(super) struct Tokenized {
    pub(super) tokens: Vec<u32>,
}

/// `/detokenize`.
#[derive(Debug, Deserialize)]
pub(super) struct Detokenized {
    pub(super) prompt: String,
}

/// An event of a stream, or a whole answer, of any of the three routes.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    #[serde(default)]
    pub(super) error: Option<Value>,
    #[serde(default)]
    pub(super) choices: Vec<Choice>,
    #[serde(default)]
    pub(super) usage: Option<Usage>,
    /// By `/inference/v1/generate` and `/v1/chat/completions`.
    #[serde(default)]
    pub(super) prompt_token_ids: Option<Vec<u32>>,
    #[serde(default)]
    pub(super) mm_placeholders: Option<std::collections::HashMap<String, Vec<Placeholder>>>,
    #[serde(default)]
    pub(super) prompt_logprobs: Option<Vec<Option<serde_json::Map<String, Value>>>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Placeholder {
    pub(super) offset: usize,
    pub(super) length: usize,
}

#[derive(Debug, Deserialize)]
pub(super) struct Choice {
    #[serde(default)]
    pub(super) token_ids: Option<Vec<u32>>,
    /// By `/v1/completions`.
    #[serde(default)]
    pub(super) prompt_token_ids: Option<Vec<u32>>,
    #[serde(default)]
    pub(super) prompt_logprobs: Option<Vec<Option<serde_json::Map<String, Value>>>>,
    #[serde(default)]
    pub(super) text: Option<String>,
    /// By a chat's stream.
    #[serde(default)]
    pub(super) delta: Option<Said>,
    /// By a chat's whole answer.
    #[serde(default)]
    pub(super) message: Option<Said>,
    #[serde(default)]
    pub(super) logprobs: Option<Logprobs>,
    #[serde(default)]
    pub(super) finish_reason: Option<String>,
    /// A token's id or a string.
    #[serde(default)]
    pub(super) stop_reason: Option<Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Said {
    #[serde(default)]
    pub(super) content: Option<String>,
    /// Where the server takes reasoning apart.
    #[serde(default, alias = "reasoning_content")]
    pub(super) reasoning: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Logprobs {
    /// By chat and generate.
    #[serde(default)]
    pub(super) content: Option<Vec<Content>>,
    /// By completions.
    #[serde(default)]
    pub(super) token_logprobs: Option<Vec<Option<f32>>>,
    #[serde(default)]
    pub(super) tokens: Option<Vec<String>>,
    #[serde(default)]
    pub(super) top_logprobs: Option<Vec<Option<serde_json::Map<String, Value>>>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Content {
    /// By generate.
    #[serde(default)]
    pub(super) token_id: Option<u32>,
    /// By chat: `token_id:395`.
    #[serde(default)]
    pub(super) token: Option<String>,
    #[serde(default)]
    pub(super) logprob: Option<f32>,
    #[serde(default)]
    pub(super) top_logprobs: Vec<Content>,
}

impl Content {
    pub(super) fn id(&self) -> Option<u32> {
        self.token_id.or_else(|| self.token.as_deref().and_then(token_id))
    }
}

/// The id in `token_id:395`.
pub(super) fn token_id(text: &str) -> Option<u32> {
    text.strip_prefix("token_id:")?.parse().ok()
}

#[derive(Debug, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    pub(super) prompt_tokens: Option<usize>,
    #[serde(default)]
    pub(super) prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Debug, Deserialize)]
pub(super) struct PromptDetails {
    #[serde(default)]
    pub(super) cached_tokens: Option<usize>,
}
