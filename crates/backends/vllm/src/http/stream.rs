//! A stream of server-sent events as chunks of a reply.
//!
//! What ends a reply is a `finish_reason`, and nothing else: vLLM's Python front end sends `[DONE]` after an error too, and
//! its Rust front end cuts the connection.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use consort_core::{Error, ErrorKind, Result};
use eventsource_stream::{EventStreamError, Eventsource as _};
use futures_core::Stream;
use futures_util::{StreamExt as _, stream};

use super::answer;
use super::error::{About, of_event};
use super::wire::Answer;
use crate::call::{Call, Chunk, ChunkStream};
use crate::config::Timeouts;

/// The longest event that is read, as by gRPC. A token with a thousand log probabilities takes a tenth of a megabyte. What has
/// come of an event is looked through again with each part of it, so a long one costs more than its length.
const LONGEST_EVENT: usize = 4 << 20;
/// How long the numbers of a reply are waited for when the reply itself is over.
const AFTERWORD: Duration = Duration::from_millis(500);

type Events = Pin<Box<dyn Stream<Item = std::result::Result<String, Broken>> + Send>>;

/// Why no further event comes.
enum Broken {
    /// The connection.
    Cut(reqwest::Error),
    /// An event longer than is read.
    TooLong,
    /// What is no event stream.
    Malformed,
}

/// What is answered, by whom, and how it is waited for.
pub(super) struct Answered {
    pub(super) call: Arc<Call>,
    pub(super) endpoint: Arc<str>,
    pub(super) timeouts: Timeouts,
    /// Whether text comes beside the ids, as it does where the routes are `OpenAI`'s.
    pub(super) has_text: bool,
}

struct Reading {
    events: Events,
    of: Answered,
    /// What came behind a chunk that might have been the last.
    next: Option<Result<Chunk>>,
    began: bool,
    ended: bool,
}

/// Chunks of the reply.
pub(super) fn chunks(body: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static, of: Answered) -> ChunkStream {
    let reading = Reading { events: events(body), of, next: None, began: false, ended: false };
    Box::pin(stream::unfold(reading, |mut reading| async move {
        if reading.ended {
            return None;
        }
        let next = reading.next().await;
        reading.ended = !matches!(&next, Ok(Chunk { finish: None, .. }));
        Some((next, reading))
    }))
}

impl Reading {
    /// The next chunk. The token that ends a reply and why it ended are one, as every front end has it but one.
    async fn next(&mut self) -> Result<Chunk> {
        if let Some(next) = self.next.take() {
            return next;
        }
        let chunk = self.read().await?;
        if !self.may_be_the_last(&chunk) {
            return Ok(chunk);
        }
        match self.read().await {
            Ok(end) if end.finish.is_some() && end.ids.is_empty() => Ok(Chunk {
                prompt_tokens: end.prompt_tokens.or(chunk.prompt_tokens),
                cached_tokens: end.cached_tokens.or(chunk.cached_tokens),
                text: chunk.text + &end.text,
                finish: end.finish,
                ..chunk
            }),
            next => {
                self.next = Some(next);
                Ok(chunk)
            }
        }
    }

    /// vLLM's front end in Rust tells on `OpenAI`'s routes in an event of its own why a reply ended, after that of the token that ended
    /// it, whose text is not shown.
    fn may_be_the_last(&self, chunk: &Chunk) -> bool {
        let shows_nothing = |last| chunk.text.is_empty() || self.of.call.stop_tokens.contains(last);
        self.of.has_text && chunk.finish.is_none() && chunk.ids.last().is_some_and(shows_nothing)
    }

    /// The next chunk as it comes. The numbers that come after the one that ends the reply are added to it.
    async fn read(&mut self) -> Result<Chunk> {
        let patience = if self.began { self.of.timeouts.token } else { self.of.timeouts.first_token };
        loop {
            let chunk = match tokio::time::timeout(patience, self.event()).await {
                Ok(answer) => answer?.ok_or_else(|| self.unfinished("it ended without a finish reason"))?,
                Err(_) => return Err(self.silent(patience)),
            };
            // Events without anything new keep connections open; they are no token.
            if chunk == Chunk::default() {
                continue;
            }
            self.began = true;
            if let Some(finish) = chunk.finish {
                let mut last = Chunk { finish: Some(finish), ..chunk };
                // The numbers come in an event of their own.
                if let Ok(Ok(Some(after))) = tokio::time::timeout(AFTERWORD, self.event()).await {
                    last.prompt_tokens = after.prompt_tokens.or(last.prompt_tokens);
                    last.cached_tokens = after.cached_tokens.or(last.cached_tokens);
                }
                return Ok(last);
            }
            return Ok(chunk);
        }
    }

    /// The next event. `None`: the stream is over.
    async fn event(&mut self) -> Result<Option<Chunk>> {
        let data = match self.events.next().await {
            None => return Ok(None),
            Some(Ok(data)) => data,
            Some(Err(broken)) => return Err(self.broken(broken)),
        };
        if data == "[DONE]" {
            return Ok(None);
        }
        let answer: Answer = serde_json::from_str(&data)
            .map_err(|source| answer::strange("an event is no JSON of it").with_source(source))?;
        if let Some(error) = &answer.error {
            return Err(of_event(error, self.about()));
        }
        answer::chunk(answer, &self.of.call).map(Some)
    }

    fn about(&self) -> About<'_> {
        About { endpoint: &self.of.endpoint, call: Some(&self.of.call) }
    }

    fn broken(&self, broken: Broken) -> Error {
        match broken {
            Broken::Cut(source) => self.unfinished("the connection was cut").with_source(source),
            Broken::TooLong => answer::strange("an event is too long").with_context("bytes", LONGEST_EVENT.to_string()),
            Broken::Malformed => answer::strange("it is no stream of events"),
        }
        .with_context("endpoint", &*self.of.endpoint)
    }

    fn unfinished(&self, how: &str) -> Error {
        Error::new(ErrorKind::Remote, format!("the reply was not finished: {how}"))
            .with_backend(crate::NAME)
            .with_context("endpoint", &*self.of.endpoint)
    }

    fn silent(&self, patience: Duration) -> Error {
        let what = if self.began { "no further token came" } else { "no token came" };
        Error::new(
            ErrorKind::Remote,
            format!("{what} within {} s; the server may be paused or overloaded", patience.as_secs_f64()),
        )
        .with_backend(crate::NAME)
        .with_context("endpoint", &*self.of.endpoint)
    }
}

/// The data of each event, none longer than is read.
fn events(body: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static) -> Events {
    let since = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&since);
    let body = body.map(move |bytes| match bytes {
        Ok(bytes) if counted.fetch_add(bytes.len(), Ordering::Relaxed) > LONGEST_EVENT => Err(Broken::TooLong),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(Broken::Cut(error)),
    });
    Box::pin(body.eventsource().map(move |event| {
        since.store(0, Ordering::Relaxed);
        match event {
            Ok(event) => Ok(event.data),
            Err(EventStreamError::Transport(broken)) => Err(broken),
            Err(EventStreamError::Utf8(_) | EventStreamError::Parser(_)) => Err(Broken::Malformed),
        }
    }))
}
