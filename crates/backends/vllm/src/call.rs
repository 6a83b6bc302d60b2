//! What one request asks of one server, whatever it is spoken to by.

use std::pin::Pin;
use std::sync::Arc;

use consort_core::{PositionLogprobs, Result, Sampling, Structure, TokenId};
use futures_core::Stream;

/// A picture as servers take it.
#[derive(Debug, Clone)]
pub(crate) struct Picture {
    /// The file.
    pub(crate) bytes: Arc<[u8]>,
    /// Its kind (`image/png`).
    pub(crate) mime: &'static str,
}

/// What is to be continued.
#[derive(Debug, Clone)]
pub(crate) enum CallPrompt {
    /// Token ids, in which each picture is *one* image token.
    Tokens {
        /// The ids.
        ids: Vec<TokenId>,
        /// The pictures, in order.
        pictures: Vec<Picture>,
    },
    /// A conversation that the server is to write: OpenAI's messages, with pictures as `data:` addresses.
    Chat {
        /// The messages.
        messages: serde_json::Value,
        /// Tools in OpenAI's form.
        tools: Vec<serde_json::Value>,
        /// `enable_thinking` of the template, where it is said.
        thinking: Option<bool>,
    },
}

/// A request as a server is asked it.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Names the request in the server's log, and for aborting it.
    pub(crate) id: String,
    /// The model's name there, or an adapter's.
    pub(crate) model: String,
    /// The adapter's name alone, for protocols that have a field of their own for it.
    pub(crate) adapter: Option<String>,
    pub(crate) prompt: CallPrompt,
    /// Valid, and nothing in it that vLLM has not.
    pub(crate) sampling: Sampling,
    /// Empty where the caller looks for them itself.
    pub(crate) stop_strings: Vec<String>,
    pub(crate) stop_tokens: Vec<TokenId>,
    pub(crate) min_tokens: u32,
    pub(crate) ignore_end: bool,
    pub(crate) max_tokens: u32,
    pub(crate) logprobs: Option<u32>,
    /// Answered in one piece, without a stream.
    pub(crate) prompt_logprobs: Option<u32>,
    pub(crate) structure: Option<Structure>,
    /// vLLM's: lower is earlier. `None`: not said.
    pub(crate) priority: Option<i32>,
    /// Only what was computed under the same salt is reused.
    pub(crate) salt: String,
    /// Nothing is reused.
    pub(crate) bypass: bool,
}

impl Call {
    /// Whether it shows pictures.
    pub(crate) fn has_pictures(&self) -> bool {
        match &self.prompt {
            CallPrompt::Tokens { pictures, .. } => !pictures.is_empty(),
            CallPrompt::Chat { messages, .. } => {
                let parts = |message: &serde_json::Value| message["content"].as_array().cloned().unwrap_or_default();
                let messages = messages.as_array().map(Vec::as_slice).unwrap_or_default();
                messages.iter().flat_map(parts).any(|part| part["type"] == "image_url")
            }
        }
    }
}

/// Why a server ended a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finish {
    /// An end token, which is the last of the ids that came.
    End,
    /// This token of `stop_tokens`, or one that the server counts among its end tokens. The last of the ids that came.
    Token(TokenId),
    /// This stop string.
    String(String),
    /// `max_tokens` or the context's end.
    Length,
}

/// A piece of a reply.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Chunk {
    /// How many tokens the prompt has, as the server counts, where it says so.
    pub(crate) prompt_tokens: Option<usize>,
    /// How many of them it had, where it says so.
    pub(crate) cached_tokens: Option<usize>,
    /// One entry for each position of the prompt. `None` for the first, and for those of images.
    pub(crate) prompt_logprobs: Option<Vec<Option<PositionLogprobs>>>,
    /// New tokens, an end or stop token included.
    pub(crate) ids: Vec<TokenId>,
    /// One for each of them, where they were asked for.
    pub(crate) logprobs: Vec<PositionLogprobs>,
    /// Text as the server shows it; used where there is no tokenizer here.
    pub(crate) text: String,
    /// The end. A stream that ends without one is an error, which the transport makes.
    pub(crate) finish: Option<Finish>,
}

/// A reply as it comes. It ends after a chunk with a [`Finish`], or with an error. Dropping it makes the server stop.
pub(crate) type ChunkStream = Pin<Box<dyn Stream<Item = Result<Chunk>> + Send>>;
