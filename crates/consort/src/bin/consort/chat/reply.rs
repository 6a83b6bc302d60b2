//! A reply as it comes: taken apart, shown, and stopped when the person wants it.

use std::pin::Pin;
use std::task::Poll;
use std::time::Instant;

use consort_core::{Error, ErrorKind, Event, EventStream, FinishReason, Result, Usage, block_on};
use consort_text::{CallDelivery, ReplyEvent, ReplyOptions, ReplyParser, ReplyPiece, ReplyStart};

use super::interrupt::Interrupt;
use super::state::Ending;

/// What a persona said.
#[derive(Debug, Clone, PartialEq)]
pub struct Spoken {
    /// The words.
    pub text: String,
    /// What it thought before, unless it did not.
    pub reasoning: Option<String>,
    /// Tokens of the reply that belong to the reasoning.
    pub reasoning_tokens: usize,
    /// How it ended.
    pub ending: Ending,
    /// What it took; of a reply that was stopped, what it took until then.
    pub usage: Usage,
}

/// A part of a reply that can be shown now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'t> {
    /// Of what it thinks.
    Reasoning(&'t str),
    /// Of what it says.
    Words(&'t str),
}

/// Follows a reply to its end, or until it is interrupted; the request is then cancelled.
///
/// # Errors
/// Those of the stream.
pub fn follow(
    mut stream: EventStream,
    start: ReplyStart,
    interrupt: &Interrupt,
    mut show: impl FnMut(Part<'_>),
) -> Result<Spoken> {
    let watch = interrupt.watch();
    let begun = Instant::now();
    let mut listener = Listener::new(start);
    let (mut usage, mut first): (Usage, Option<Instant>) = (Usage::default(), None);
    let ending = loop {
        let next = block_on(std::future::poll_fn(|context| match watch.poll(context) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => futures_core::Stream::poll_next(Pin::new(&mut stream), context).map(Some),
        }));
        let event = match next {
            None => {
                // Measured here: a reply that is cancelled tells nothing of itself.
                usage.time_to_first_token = first.map(|first| first - begun);
                usage.decode_time = first.map(|first| first.elapsed()).unwrap_or_default();
                break Ending::Stopped;
            }
            Some(event) => event.transpose()?,
        };
        match event {
            Some(Event::Started(started)) => usage = started,
            Some(Event::Tokens { ids, text, .. }) => {
                first.get_or_insert_with(Instant::now);
                usage.completion_tokens += ids.len();
                listener.hear(ids.len(), &text, &mut show);
            }
            Some(Event::Finished { reason, usage: all }) => {
                usage = all;
                break if reason == FinishReason::Length { Ending::Cut } else { Ending::Whole };
            }
            Some(_) => {}
            None => return Err(Error::new(ErrorKind::Unexpected, "the reply ended without a finish reason")),
        }
    };
    drop(stream);
    Ok(listener.finish(ending, usage, &mut show))
}

/// Takes a reply apart. Tool calls are words here: a chat offers no tools.
struct Listener {
    parser: ReplyParser,
    words: String,
    reasoning: String,
    reasoning_tokens: usize,
}

impl Listener {
    fn new(start: ReplyStart) -> Self {
        let options = ReplyOptions { start, calls: CallDelivery::AsText, ..ReplyOptions::default() };
        Self { parser: ReplyParser::new(&options), words: String::new(), reasoning: String::new(), reasoning_tokens: 0 }
    }

    fn hear(&mut self, tokens: usize, text: &str, show: &mut impl FnMut(Part<'_>)) {
        let pieces = self.parser.push(text);
        self.take(pieces, show);
        if self.words.is_empty() && !self.reasoning.is_empty() {
            self.reasoning_tokens += tokens;
        }
    }

    fn take(&mut self, pieces: Vec<ReplyPiece>, show: &mut impl FnMut(Part<'_>)) {
        for piece in pieces {
            match piece.event {
                ReplyEvent::Reasoning => {
                    show(Part::Reasoning(&piece.raw));
                    self.reasoning.push_str(&piece.raw);
                }
                ReplyEvent::Markup => {}
                _ => {
                    show(Part::Words(&piece.raw));
                    self.words.push_str(&piece.raw);
                }
            }
        }
    }

    fn finish(mut self, ending: Ending, usage: Usage, show: &mut impl FnMut(Part<'_>)) -> Spoken {
        let parser = std::mem::replace(&mut self.parser, ReplyParser::new(&ReplyOptions::default()));
        let rest = parser.finish().pieces;
        self.take(rest, show);
        let reasoning = (!self.reasoning.trim().is_empty()).then_some(self.reasoning);
        Spoken { text: self.words, reasoning, reasoning_tokens: self.reasoning_tokens, ending, usage }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(start: ReplyStart, pieces: &[&str]) -> (Spoken, Vec<String>) {
        let mut listener = Listener::new(start);
        let mut shown = Vec::new();
        let mut show = |part: Part<'_>| {
            shown.push(match part {
                Part::Reasoning(text) => format!("({text})"),
                Part::Words(text) => text.to_owned(),
            });
        };
        for piece in pieces {
            listener.hear(1, piece, &mut show);
        }
        let spoken = listener.finish(Ending::Whole, Usage::default(), &mut show);
        (spoken, shown)
    }

    #[test]
    fn reasoning_and_words_are_told_apart_while_they_come() {
        let (spoken, shown) = heard(ReplyStart::Reasoning, &["I ", "look.", "\n</th", "ink>", "\n\n", "Red", "."]);
        assert_eq!(spoken.text, "Red.");
        assert_eq!(spoken.reasoning.as_deref(), Some("I look."));
        assert_eq!(spoken.reasoning_tokens, 5);
        assert_eq!(shown.concat(), "(I )(look.)Red.");
        let (spoken, _) = heard(ReplyStart::Content, &["Red", "."]);
        assert_eq!((spoken.text.as_str(), spoken.reasoning, spoken.reasoning_tokens), ("Red.", None, 0));
    }

    #[test]
    fn what_looks_like_a_call_is_words() {
        let call = "<tool_call>\n<function=f>\n</function>\n</tool_call>";
        let (spoken, _) = heard(ReplyStart::Content, &["I call.\n\n", call]);
        assert_eq!(spoken.text, format!("I call.\n\n{call}"));
    }
}
