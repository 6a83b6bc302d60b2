//! A reply as it comes, taken apart and counted.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use consort_core::{Event, EventStream, FinishReason, PositionLogprobs, TokenId, Usage};
use consort_text::{CallDelivery, ReplyEvent, ReplyOptions, ReplyParser, ReplyPiece, ReplyStart};
use futures_core::Stream;
use serde_json::Value;

use crate::error::Failure;
use crate::metrics::{Outcome, ReplyMeter};
use crate::registry::Seat;

/// How a reply is read.
#[derive(Debug, Clone)]
pub(crate) enum Reading {
    /// As text.
    Raw,
    /// As a turn of a conversation: reasoning, answer, calls.
    Turn {
        /// How it begins.
        start: ReplyStart,
        /// The tools that were offered.
        tools: Vec<Value>,
        /// What calls are.
        calls: Calls,
    },
}

/// What calls are in a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Calls {
    /// Text like any other.
    Text,
    /// Calls; the reply ends after the first.
    One,
    /// Calls.
    Several,
}

/// Why a reply ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ending {
    /// As the backend says.
    Backend(FinishReason),
    /// It has made the one call that it may make.
    FirstCall,
    /// The server goes down, and the time for replies is over.
    ShutDown,
}

impl Ending {
    /// A word for it.
    fn as_str(&self) -> &'static str {
        match self {
            Self::Backend(FinishReason::Length) => "length",
            Self::Backend(_) => "stop",
            Self::FirstCall => "tool_call",
            Self::ShutDown => "shut_down",
        }
    }
}

/// A part of a reply.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Heard {
    /// What the model thought of the prompt, where that was asked for.
    Prompt(Vec<Option<PositionLogprobs>>),
    /// The prompt is in.
    Started(Usage),
    /// Tokens, and the text that became certain.
    Said {
        ids: Vec<TokenId>,
        /// All of the text: of a raw reading.
        text: String,
        /// The text taken apart: of a turn.
        pieces: Vec<ReplyPiece>,
        logprobs: Vec<PositionLogprobs>,
    },
    /// The end, with what was held back.
    Ended { ending: Ending, usage: Usage, reasoning_tokens: usize, pieces: Vec<ReplyPiece> },
}

/// A reply. Dropping it cancels the request and gives its seat back.
pub(crate) struct Reply {
    /// `None` after the end.
    events: Option<EventStream>,
    parser: Option<ReplyParser>,
    calls: Calls,
    meter: ReplyMeter,
    reasoning: Reasoning,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
    seat: Option<Seat>,
}

/// How many tokens were reasoning.
#[derive(Debug, Default)]
struct Reasoning {
    tokens: usize,
    begun: bool,
    answered: bool,
}

impl Reasoning {
    fn hear(&mut self, tokens: usize, pieces: &[ReplyPiece]) {
        for piece in pieces {
            match piece.event {
                ReplyEvent::Reasoning => self.begun = true,
                ReplyEvent::Markup => {}
                _ => self.answered = true,
            }
        }
        if self.begun && !self.answered {
            self.tokens += tokens;
        }
    }
}

impl Reply {
    pub(crate) fn new(
        events: EventStream,
        reading: &Reading,
        meter: ReplyMeter,
        cut: Pin<Box<dyn Future<Output = ()> + Send>>,
        seat: Seat,
    ) -> Self {
        let (parser, calls) = match reading {
            Reading::Raw => (None, Calls::Text),
            Reading::Turn { start, tools, calls } => {
                // A call that has been sent cannot be taken back, so only whole ones are sent.
                let delivery = if *calls == Calls::Text { CallDelivery::AsText } else { CallDelivery::Whole };
                let options =
                    ReplyOptions { start: *start, tools: tools.clone(), calls: delivery, ..ReplyOptions::default() };
                (Some(ReplyParser::new(&options)), *calls)
            }
        };
        let reasoning = Reasoning::default();
        Self { events: Some(events), parser, calls, meter, reasoning, cut, seat: Some(seat) }
    }

    /// Takes an event; `None`: nothing to tell.
    fn hear(&mut self, event: Event) -> Option<Heard> {
        match event {
            Event::PromptLogprobs(positions) => Some(Heard::Prompt(positions)),
            Event::Started(usage) => {
                self.meter.started(usage);
                Some(Heard::Started(usage))
            }
            Event::Tokens { ids, text, logprobs } => {
                if !ids.is_empty() {
                    self.meter.tokens(ids.len());
                }
                let mut pieces = self.parser.as_mut().map(|parser| parser.push(&text)).unwrap_or_default();
                self.reasoning.hear(ids.len(), &pieces);
                let first = pieces.iter().position(|piece| matches!(piece.event, ReplyEvent::CallFinished { .. }));
                if let Some(first) = first.filter(|_| self.calls == Calls::One) {
                    pieces.truncate(first + 1);
                    self.parser = None;
                    let usage = self.meter.usage();
                    return Some(self.end(Ending::FirstCall, usage, pieces));
                }
                Some(Heard::Said { ids, text, pieces, logprobs })
            }
            Event::Finished { reason, usage } => Some(self.end(Ending::Backend(reason), usage, Vec::new())),
            _ => None,
        }
    }

    fn end(&mut self, ending: Ending, usage: Usage, mut pieces: Vec<ReplyPiece>) -> Heard {
        // Cancels, where it still runs.
        self.events = None;
        self.seat = None;
        self.meter.because(ending.as_str());
        self.meter.ended(Outcome::Finished, usage);
        if let Some(parser) = self.parser.take() {
            pieces.extend(parser.finish().pieces);
        }
        Heard::Ended { ending, usage, reasoning_tokens: self.reasoning.tokens, pieces }
    }

    fn fail(&mut self) {
        let usage = self.meter.usage();
        self.events = None;
        self.seat = None;
        self.meter.ended(Outcome::Failed, usage);
    }
}

impl Stream for Reply {
    type Item = Result<Heard, Failure>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            let Some(events) = &mut this.events else { return Poll::Ready(None) };
            // What has come is delivered before anything is cut off.
            let polled = match Pin::new(events).poll_next(context) {
                Poll::Ready(polled) => polled,
                Poll::Pending => {
                    ready!(this.cut.as_mut().poll(context));
                    let usage = this.meter.usage();
                    return Poll::Ready(Some(Ok(this.end(Ending::ShutDown, usage, Vec::new()))));
                }
            };
            match polled {
                Some(Ok(event)) => {
                    if let Some(heard) = this.hear(event) {
                        return Poll::Ready(Some(Ok(heard)));
                    }
                }
                Some(Err(error)) => {
                    this.fail();
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => {
                    this.fail();
                    tracing::error!("a reply ended without a finish reason");
                    return Poll::Ready(Some(Err(Failure::internal())));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::time::Instant;

    use consort_core::{Error, ErrorKind};
    use futures_util::{StreamExt as _, stream};

    use super::*;
    use crate::metrics::Meter;
    use crate::persona::Persona;
    use crate::registry::Registry;

    fn said(text: &str) -> Result<Event, Error> {
        Ok(Event::Tokens { ids: vec![1], text: text.into(), logprobs: Vec::new() })
    }

    fn finished() -> Result<Event, Error> {
        let usage = Usage { prompt_tokens: 3, completion_tokens: 9, ..Usage::default() };
        Ok(Event::Finished { reason: FinishReason::EndToken(0), usage })
    }

    async fn heard(events: Vec<Result<Event, Error>>, calls: Calls) -> (Vec<Result<Heard, Failure>>, Arc<Meter>) {
        let meter: Arc<Meter> = Arc::default();
        let reading = Reading::Turn { start: ReplyStart::Reasoning, tools: Vec::new(), calls };
        let registry = Registry::new("m", 1, 1);
        registry.put(Persona { memory_share: Some(1.0), ..Persona::new("p") }).unwrap();
        let member = registry.persona("p").unwrap();
        let reply = Reply::new(
            EventStream::new(stream::iter(events)),
            &reading,
            meter.reply("p", Instant::now()),
            Box::pin(std::future::pending()),
            member.sit().unwrap(),
        );
        assert!(member.sit().is_err(), "the seat is taken");
        let all = reply.collect().await;
        member.sit().unwrap();
        (all, meter)
    }

    const CALL: &str = "<tool_call>\n<function=f>\n</function>\n</tool_call>";

    #[tokio::test]
    async fn reasoning_is_counted_and_told_apart() {
        let events = vec![
            Ok(Event::Started(Usage::default())),
            said("I look."),
            said("\n</think>\n\n"),
            said("Red."),
            finished(),
        ];
        let (all, meter) = heard(events, Calls::Several).await;
        let Some(Ok(Heard::Ended { reasoning_tokens, ending, .. })) = all.last() else { panic!("{all:?}") };
        assert_eq!((*reasoning_tokens, ending), (2, &Ending::Backend(FinishReason::EndToken(0))));
        assert_eq!((meter.counts().finished, meter.counts().completion_tokens), (1, 9));
    }

    #[tokio::test]
    async fn the_one_call_ends_the_reply() {
        let calls = format!("</think>\n\n{CALL}\n{CALL}");
        let (all, meter) = heard(vec![said(&calls), said("more"), finished()], Calls::One).await;
        let Some(Ok(Heard::Ended { ending: Ending::FirstCall, pieces, .. })) = all.last() else { panic!("{all:?}") };
        let finished = pieces.iter().filter(|piece| matches!(piece.event, ReplyEvent::CallFinished { .. })).count();
        assert_eq!((all.len(), finished, meter.counts().finished), (1, 1, 1));
    }

    #[tokio::test]
    async fn an_error_and_a_lost_end_are_failures() {
        let error = Error::new(ErrorKind::DeadlineExceeded, "too late");
        let (all, meter) = heard(vec![said("a"), Err(error)], Calls::Text).await;
        assert_eq!(all[1].as_ref().unwrap_err().status().as_u16(), 504);
        assert_eq!((all.len(), meter.counts().failed), (2, 1));
        let (all, _) = heard(vec![said("a")], Calls::Text).await;
        assert_eq!(all[1].as_ref().unwrap_err().status().as_u16(), 500);
    }
}
