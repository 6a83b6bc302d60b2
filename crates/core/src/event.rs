//! What comes back: a stream of events.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use serde::Serialize;

use crate::{Result, TokenId};

/// Why a reply ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its turn with this token.
    EndToken(TokenId),
    /// A stop token of the request came.
    StopToken(TokenId),
    /// This stop string of the request came. The text ends before it.
    StopString(String),
    /// The [`Structure`](crate::Structure) of the request is complete, and the model has no end token that says so.
    StructureComplete,
    /// `max_tokens` or the context's end was reached.
    Length,
}

/// The log probability of one candidate at one position.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// The candidate.
    pub token: TokenId,
    /// Natural logarithm of its probability under the model's own distribution (temperature 1, no filter).
    pub logprob: f32,
}

/// Log probabilities of one token of a reply or of a prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PositionLogprobs {
    /// The token that was chosen, or stands in the prompt.
    pub chosen: TokenLogprob,
    /// The most probable ones, best first.
    pub top: Vec<TokenLogprob>,
}

/// What a reply took.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Usage {
    /// Tokens of the prompt, image tokens included.
    pub prompt_tokens: usize,
    /// Of these, how many came out of the prefix cache.
    pub reused_tokens: usize,
    /// Tokens of the reply, the end token included.
    pub completion_tokens: usize,
    /// From the request's arrival to its first token. `None` while there is none.
    pub time_to_first_token: Option<Duration>,
    /// From the first token to the last.
    pub decode_time: Duration,
}

/// A part of a reply.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// What the model thought of the prompt, before [`Started`](Self::Started), when the request asked for it: one entry for
    /// each of its positions. `None` for the first, which nothing precedes, and for those of images.
    PromptLogprobs(Vec<Option<PositionLogprobs>>),
    /// The prompt is in, and the first token comes next.
    Started(Usage),
    /// New tokens. Text that may yet turn out to be the beginning of a stop string, or that ends within a character, is
    /// held back and comes with a later event, so `text` may be empty and may belong to earlier tokens.
    Tokens {
        /// Their ids, in order.
        ids: Vec<TokenId>,
        /// Text that can be shown now.
        text: String,
        /// One entry per id when the request asked for them, else empty.
        logprobs: Vec<PositionLogprobs>,
    },
    /// The end. Nothing follows.
    Finished {
        /// Why.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
}

/// The reply to a request, as it comes. An `Err` is the last item. **Dropping it cancels the request.**
///
/// It is a [`Stream`]; a caller without an async runtime iterates with [`blocking`](Self::blocking).
pub struct EventStream {
    stream: Pin<Box<dyn Stream<Item = Result<Event>> + Send>>,
}

impl EventStream {
    /// Wraps a backend's stream. Dropping that stream must cancel the request.
    pub fn new(stream: impl Stream<Item = Result<Event>> + Send + 'static) -> Self {
        Self { stream: Box::pin(stream) }
    }

    /// Iterates by blocking the current thread.
    #[must_use]
    pub fn blocking(self) -> BlockingEvents {
        BlockingEvents { stream: self }
    }
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EventStream")
    }
}

impl Stream for EventStream {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.as_mut().poll_next(context)
    }
}

/// Blocking iteration over an [`EventStream`]. Dropping it cancels the request.
#[derive(Debug)]
pub struct BlockingEvents {
    stream: EventStream,
}

impl Iterator for BlockingEvents {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        crate::block_on(std::future::poll_fn(|context| Pin::new(&mut self.stream).poll_next(context)))
    }
}
