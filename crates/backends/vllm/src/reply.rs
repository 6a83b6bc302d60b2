//! Chunks of a server's reply as events of ours.

use std::time::Instant;

use consort_core::{Event, FinishReason, GenerateRequest, PositionLogprobs, Result, TokenId, Usage};
use consort_text::{Detokenizer, StopMatcher};

use crate::call::{Chunk, Finish};

/// A reply as it is put together, over all attempts.
pub(crate) struct Reply {
    arrived: Instant,
    detokenizer: Option<Detokenizer>,
    stopper: StopMatcher,
    stop_tokens: Vec<TokenId>,
    wants_logprobs: bool,
    max_tokens: u32,
    started: bool,
    first_token: Option<Instant>,
    usage: Usage,
    /// Tokens that were delivered, for an attempt that continues.
    said: Vec<TokenId>,
}

/// What became of a chunk.
pub(crate) struct Heard {
    pub(crate) events: Vec<Event>,
    /// Tokens that it brought.
    pub(crate) tokens: usize,
    /// Whether the last of the events ends the reply.
    pub(crate) ended: bool,
}

impl Reply {
    /// # Errors
    /// Stop strings that are none.
    pub(crate) fn new(
        request: &GenerateRequest,
        detokenizer: Option<Detokenizer>,
        max_tokens: u32,
        arrived: Instant,
    ) -> Result<Self> {
        Ok(Self {
            arrived,
            detokenizer,
            stopper: StopMatcher::new(&request.stop.strings)?,
            stop_tokens: request.stop.tokens.clone(),
            wants_logprobs: request.logprobs.is_some(),
            max_tokens,
            started: false,
            first_token: None,
            usage: Usage::default(),
            said: Vec::new(),
        })
    }

    /// Whether anything was delivered.
    pub(crate) fn has_started(&self) -> bool {
        self.started
    }

    /// The tokens that were delivered.
    pub(crate) fn said(&self) -> &[TokenId] {
        &self.said
    }

    /// Whether text and stop strings are found here, and not by the server.
    pub(crate) fn shows_text_itself(&self) -> bool {
        self.detokenizer.is_some()
    }

    /// How many tokens may still come.
    pub(crate) fn room(&self) -> u32 {
        self.max_tokens.saturating_sub(u32::try_from(self.said.len()).unwrap_or(u32::MAX))
    }

    /// Whether the prompt is only to be read.
    pub(crate) fn is_none_wanted(&self) -> bool {
        self.max_tokens == 0
    }

    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// The prompt's length as it is known here.
    pub(crate) fn expect_prompt(&mut self, tokens: usize) {
        self.usage.prompt_tokens = tokens;
    }

    /// Takes a chunk, which came at `now`.
    pub(crate) fn hear(&mut self, chunk: Chunk, now: Instant) -> Heard {
        let Chunk { prompt_tokens, cached_tokens, prompt_logprobs, ids, logprobs, text, finish } = chunk;
        let mut events = Vec::new();
        // What an attempt that continues calls its prompt holds what was said.
        if let Some(tokens) = prompt_tokens.filter(|_| !self.started) {
            self.usage.prompt_tokens = tokens;
        }
        if let Some(cached) = cached_tokens {
            self.usage.reused_tokens = cached.min(self.usage.prompt_tokens);
        }
        if !self.started {
            self.started = true;
            events.extend(prompt_logprobs.map(Event::PromptLogprobs));
            events.push(Event::Started(self.usage));
        }
        let tokens = ids.len();
        if tokens > 0 {
            let first = *self.first_token.get_or_insert(now);
            self.usage.time_to_first_token = Some(first.saturating_duration_since(self.arrived));
            self.usage.decode_time = now.saturating_duration_since(first);
        }
        let reason = self.take(ids, logprobs, &text, finish, &mut events);
        let ended = reason.is_some();
        if let Some(reason) = reason {
            events.push(Event::Finished { reason, usage: self.usage });
        }
        Heard { events, tokens, ended }
    }

    /// The new tokens as events, and why the reply is over, if it is.
    fn take(
        &mut self,
        mut ids: Vec<TokenId>,
        mut logprobs: Vec<PositionLogprobs>,
        text: &str,
        finish: Option<Finish>,
        events: &mut Vec<Event>,
    ) -> Option<FinishReason> {
        let last = ids.last().copied();
        let reason = match finish {
            None => None,
            Some(Finish::Length) => Some(FinishReason::Length),
            Some(Finish::String(string)) => Some(FinishReason::StopString(string)),
            // The token that ends a reply is no part of it.
            Some(Finish::End) => match last {
                Some(token) if self.stop_tokens.contains(&token) => Some(FinishReason::StopToken(token)),
                Some(token) => Some(FinishReason::EndToken(token)),
                None => Some(FinishReason::StructureComplete),
            },
            Some(Finish::Token(token)) if self.stop_tokens.contains(&token) => Some(FinishReason::StopToken(token)),
            Some(Finish::Token(token)) => Some(FinishReason::EndToken(token)),
        };
        if let Some(FinishReason::EndToken(token) | FinishReason::StopToken(token)) = &reason
            && last == Some(*token)
        {
            ids.pop();
            logprobs.truncate(ids.len());
            self.usage.completion_tokens += 1;
        }
        if !self.wants_logprobs {
            logprobs.clear();
        }
        let (text, stopped_by) = self.show(&mut ids, &mut logprobs, text);
        self.usage.completion_tokens += ids.len();
        self.said.extend(&ids);
        if !ids.is_empty() || !text.is_empty() {
            events.push(Event::Tokens { ids, text, logprobs });
        }
        if let Some(string) = stopped_by {
            return Some(FinishReason::StopString(string));
        }
        let reason = reason?;
        // What was held back as half a character, or as the beginning of a stop string.
        let rest = self.detokenizer.as_mut().map(Detokenizer::finish).unwrap_or_default();
        let fed = self.stopper.feed(&rest);
        let (mut text, reason) = match fed.stopped_by {
            Some(string) => (fed.text, FinishReason::StopString(string)),
            None => (fed.text, reason),
        };
        if !matches!(reason, FinishReason::StopString(_)) {
            text.push_str(&self.stopper.flush());
        }
        if !text.is_empty() {
            events.push(Event::Tokens { ids: Vec::new(), text, logprobs: Vec::new() });
        }
        Some(reason)
    }

    /// The text of new tokens, and the stop string that ends it. What comes behind that is cut off.
    fn show(
        &mut self,
        ids: &mut Vec<TokenId>,
        logprobs: &mut Vec<PositionLogprobs>,
        text: &str,
    ) -> (String, Option<String>) {
        // Without a tokenizer here, the server has looked for stop strings in its own text.
        let Some(detokenizer) = &mut self.detokenizer else { return (text.to_owned(), None) };
        let mut shown = String::new();
        for (index, &id) in ids.iter().enumerate() {
            let fed = self.stopper.feed(&detokenizer.push(id));
            shown.push_str(&fed.text);
            if fed.stopped_by.is_some() {
                ids.truncate(index + 1);
                logprobs.truncate(index + 1);
                return (shown, fed.stopped_by);
            }
        }
        (shown, None)
    }
}
