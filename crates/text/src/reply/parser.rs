//! The parser: text in, pieces out.
//!
//! What a piece is depends on the reply's text alone and not on how it was cut. So a step takes what is certain whatever
//! follows, or waits. It never waits for more than a few hundred bytes, and no byte is looked at more than a bounded number
//! of times for each piece of text that comes in.

use consort_core::ToolCall;
use serde_json::{Map, Value};

use super::arguments::{Tools, Types};
use super::tags::{self, CALL, END_CALL, END_PARAMETER, END_THINK, Miss, THINK, ValueEnd};
use super::{
    CallDelivery, MalformedReason, ReasoningEnd, ReplyEnd, ReplyEvent, ReplyLimits, ReplyOptions, ReplyPiece,
    ReplyStart, ToolMatch,
};

/// The most line breaks before a tag that belong to it.
const MAX_GAP: usize = 256;

/// Reads a reply as it streams.
///
/// ```
/// use consort_text::{ReplyEvent, ReplyOptions, ReplyParser, ReplyStart};
///
/// let options = ReplyOptions { start: ReplyStart::Reasoning, ..ReplyOptions::default() };
/// let mut parser = ReplyParser::new(&options);
/// let mut pieces = parser.push("It is late.\n</th");
/// pieces.extend(parser.push("ink>\n\nGood night!"));
/// pieces.extend(parser.finish().pieces);
///
/// let of = |event: ReplyEvent| pieces.iter().filter(|p| p.event == event).map(|p| p.raw.as_str()).collect::<String>();
/// assert_eq!(of(ReplyEvent::Reasoning), "It is late.");
/// assert_eq!(of(ReplyEvent::Content), "Good night!");
/// assert_eq!(of(ReplyEvent::Markup), "\n</think>\n\n");
/// ```
#[derive(Debug)]
pub struct ReplyParser {
    tools: Tools,
    delivery: CallDelivery,
    limits: ReplyLimits,
    state: State,
    /// What cannot be judged yet.
    held: String,
    /// Calls so far.
    calls: usize,
    reasoning: ReasoningEnd,
}

#[derive(Debug)]
enum State {
    Start(ReplyStart),
    Reasoning {
        /// Whether anything was said. Line breaks before it are markup.
        begun: bool,
    },
    Content(Before),
    Call(Box<Call>),
    /// After a call that was none, up to its end.
    Broken(MalformedReason),
}

/// What came just before a piece of text, as far as its line breaks depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Text: line breaks are text.
    Text,
    /// The end of the reasoning: line breaks are markup.
    Reasoning,
    /// A call: line breaks are markup if another call or the end of the reply follows.
    Call,
}

/// A call that is being read.
#[derive(Debug)]
struct Call {
    index: usize,
    name: String,
    tool: ToolMatch,
    /// All of it so far, from the line breaks before `<tool_call>` on.
    source: String,
    arguments: Map<String, Value>,
    open: Option<Parameter>,
    /// Pieces that wait until the call is whole.
    pieces: Pieces,
}

/// A parameter whose value has not ended.
#[derive(Debug)]
struct Parameter {
    key: String,
    types: Types,
    text: String,
    /// Whether a line break here would be the one that the form writes before a value.
    at_begin: bool,
}

/// Pieces, of which neighbours of one kind are one.
#[derive(Debug, Default)]
struct Pieces(Vec<ReplyPiece>);

impl Pieces {
    fn add(&mut self, raw: &str, event: ReplyEvent) {
        if let Some(last) = self.0.last_mut() {
            let joined = match (&mut last.event, &event) {
                (ReplyEvent::Content, ReplyEvent::Content)
                | (ReplyEvent::Reasoning, ReplyEvent::Reasoning)
                | (ReplyEvent::Markup, ReplyEvent::Markup) => true,
                (ReplyEvent::Arguments { index, json }, ReplyEvent::Arguments { index: next_index, json: next })
                    if index == next_index =>
                {
                    json.push_str(next);
                    true
                }
                (
                    ReplyEvent::Malformed { text, reason, .. },
                    ReplyEvent::Malformed { withdraws: None, text: next, reason: next_reason },
                ) if reason == next_reason => {
                    text.push_str(next);
                    true
                }
                _ => false,
            };
            if joined {
                last.raw.push_str(raw);
                return;
            }
        }
        self.0.push(ReplyPiece { raw: raw.to_owned(), event });
    }

    fn malformed(&mut self, raw: &str, reason: MalformedReason) {
        if !raw.is_empty() {
            self.add(raw, ReplyEvent::Malformed { withdraws: None, text: raw.to_owned(), reason });
        }
    }
}

impl ReplyParser {
    /// For a new reply.
    #[must_use]
    pub fn new(options: &ReplyOptions) -> Self {
        Self {
            tools: Tools::new(&options.tools),
            delivery: options.calls,
            limits: options.limits,
            state: State::Start(options.start),
            held: String::new(),
            calls: 0,
            reasoning: match options.start {
                ReplyStart::Reasoning => ReasoningEnd::Unfinished,
                ReplyStart::Undecided | ReplyStart::Content => ReasoningEnd::None,
            },
        }
    }

    /// Reads on. Returns the pieces that became certain, which may be none.
    pub fn push(&mut self, text: &str) -> Vec<ReplyPiece> {
        let mut pieces = Pieces::default();
        self.read(text, &mut pieces);
        pieces.0
    }

    /// Ends the reply. What was held back comes as what it then is.
    #[must_use]
    pub fn finish(mut self) -> ReplyEnd {
        let mut pieces = Pieces::default();
        if let State::Start(start) = self.state {
            // No `<think>` any more, so what is held is read as what follows.
            self.begin(start);
            self.read("", &mut pieces);
        }
        let rest = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.state, State::Content(Before::Text)) {
            State::Start(_) => {}
            State::Reasoning { .. } => add_text(&mut pieces, &rest, ReplyEvent::Reasoning),
            State::Content(before) => {
                let (at, _) = tags::find(&rest, &[CALL]);
                let (text, call) = rest.split_at(at);
                if call.starts_with(CALL) {
                    add_text(&mut pieces, text, ReplyEvent::Content);
                    pieces.malformed(call, MalformedReason::Unfinished);
                } else if before == Before::Call && gap(&rest) == rest.len() {
                    add_text(&mut pieces, &rest, ReplyEvent::Markup);
                } else {
                    add_text(&mut pieces, &rest, ReplyEvent::Content);
                }
            }
            State::Call(call) => {
                self.break_call(*call, MalformedReason::Unfinished, &mut pieces);
                pieces.malformed(&rest, MalformedReason::Unfinished);
            }
            State::Broken(reason) => pieces.malformed(&rest, reason),
        }
        ReplyEnd { pieces: pieces.0, reasoning: self.reasoning }
    }

    fn read(&mut self, text: &str, pieces: &mut Pieces) {
        let mut held = std::mem::take(&mut self.held);
        held.push_str(text);
        let mut done = 0;
        while let Some(taken) = self.step(held.get(done..).unwrap_or_default(), pieces) {
            done += taken;
        }
        held.drain(..done);
        self.held = held;
    }

    /// Takes what is certain at the beginning of `rest`: how many bytes, or `None` when more must come.
    fn step(&mut self, rest: &str, pieces: &mut Pieces) -> Option<usize> {
        if rest.is_empty() {
            return None;
        }
        match std::mem::replace(&mut self.state, State::Content(Before::Text)) {
            State::Start(start) => self.start(start, rest, pieces),
            State::Reasoning { begun } => self.reasoning(begun, rest, pieces),
            State::Content(before) => self.content(before, rest, pieces),
            State::Call(call) => self.call(call, rest, pieces),
            State::Broken(reason) => self.broken(reason, rest, pieces),
        }
    }

    fn begin(&mut self, start: ReplyStart) {
        self.state = match start {
            ReplyStart::Reasoning => State::Reasoning { begun: false },
            ReplyStart::Content => State::Content(Before::Reasoning),
            ReplyStart::Undecided => State::Content(Before::Text),
        };
    }

    fn start(&mut self, start: ReplyStart, rest: &str, pieces: &mut Pieces) -> Option<usize> {
        let breaks = rest.bytes().take(MAX_GAP + 1).take_while(|byte| *byte == b'\n').count();
        let tag = rest.get(breaks..).unwrap_or_default();
        if breaks <= MAX_GAP && tag.starts_with(THINK) {
            // Where the prompt has opened the reasoning already, some models open it again.
            let taken = breaks + THINK.len();
            add_text(pieces, rest.get(..taken).unwrap_or_default(), ReplyEvent::Markup);
            self.reasoning = ReasoningEnd::Unfinished;
            self.state = State::Reasoning { begun: false };
            return Some(taken);
        }
        if breaks <= MAX_GAP && THINK.starts_with(tag) {
            self.state = State::Start(start);
            return None;
        }
        self.begin(start);
        Some(0)
    }

    fn reasoning(&mut self, begun: bool, rest: &str, pieces: &mut Pieces) -> Option<usize> {
        self.state = State::Reasoning { begun };
        if !begun {
            let breaks = rest.bytes().take_while(|byte| *byte == b'\n').count();
            if breaks > 0 {
                add_text(pieces, rest.get(..breaks).unwrap_or_default(), ReplyEvent::Markup);
                return Some(breaks);
            }
        }
        let (text, tag, found) = text_before(rest, END_THINK);
        if !text.is_empty() {
            self.state = State::Reasoning { begun: true };
            add_text(pieces, text, ReplyEvent::Reasoning);
            return Some(text.len());
        }
        if !found {
            return None;
        }
        add_text(pieces, tag, ReplyEvent::Markup);
        self.reasoning = ReasoningEnd::Closed;
        self.state = State::Content(Before::Reasoning);
        Some(tag.len())
    }

    fn content(&mut self, before: Before, rest: &str, pieces: &mut Pieces) -> Option<usize> {
        if before == Before::Reasoning {
            let breaks = rest.bytes().take_while(|byte| *byte == b'\n').count();
            if breaks > 0 {
                self.state = State::Content(Before::Reasoning);
                add_text(pieces, rest.get(..breaks).unwrap_or_default(), ReplyEvent::Markup);
                return Some(breaks);
            }
        }
        self.state = State::Content(Before::Text);
        if self.delivery == CallDelivery::AsText {
            add_text(pieces, rest, ReplyEvent::Content);
            return Some(rest.len());
        }
        let (text, tag, found) = text_before(rest, CALL);
        if !text.is_empty() {
            add_text(pieces, text, ReplyEvent::Content);
            return Some(text.len());
        }
        let gap = gap(rest);
        let begin = if found { tags::call_begin(rest.get(gap..).unwrap_or_default()) } else { Err(Miss::More) };
        match begin {
            Ok((length, name)) => {
                self.begin_call(rest.get(..gap + length).unwrap_or_default(), gap, name, pieces);
                Some(gap + length)
            }
            Err(Miss::More) => {
                self.state = State::Content(before);
                None
            }
            Err(Miss::No) => {
                add_text(pieces, rest.get(..gap).unwrap_or_default(), ReplyEvent::Content);
                pieces.malformed(CALL, MalformedReason::NoFunction);
                Some(tag.len())
            }
        }
    }

    fn begin_call(&mut self, raw: &str, gap: usize, name: &str, pieces: &mut Pieces) {
        let refused = if self.calls >= self.limits.calls {
            Some(MalformedReason::TooMany)
        } else if raw.len() - gap > self.limits.call_bytes {
            Some(MalformedReason::TooLong)
        } else {
            None
        };
        if let Some(reason) = refused {
            add_text(pieces, raw.get(..gap).unwrap_or_default(), ReplyEvent::Content);
            pieces.malformed(raw.get(gap..).unwrap_or_default(), reason);
            self.state = State::Broken(reason);
            return;
        }
        let (index, tool) = (self.calls, self.tools.find(name));
        self.calls += 1;
        let mut call = Call {
            index,
            name: name.to_owned(),
            tool,
            source: String::new(),
            arguments: Map::new(),
            open: None,
            pieces: Pieces::default(),
        };
        self.add(&mut call, pieces, raw, ReplyEvent::CallBegun { index, name: name.to_owned(), tool });
        self.state = State::Call(Box::new(call));
    }

    /// Adds a piece of a call.
    fn add(&self, call: &mut Call, pieces: &mut Pieces, raw: &str, event: ReplyEvent) {
        call.source.push_str(raw);
        match self.delivery {
            CallDelivery::Whole => call.pieces.add(raw, event),
            CallDelivery::Streamed | CallDelivery::AsText => pieces.add(raw, event),
        }
    }

    /// Ends a call as text. What follows is text too, up to the call's end.
    fn break_call(&mut self, call: Call, reason: MalformedReason, pieces: &mut Pieces) {
        match self.delivery {
            CallDelivery::Whole => {
                self.calls -= 1;
                pieces.malformed(&call.source, reason);
            }
            CallDelivery::Streamed | CallDelivery::AsText => {
                pieces.add("", ReplyEvent::Malformed { withdraws: Some(call.index), text: call.source, reason });
            }
        }
        self.state = State::Broken(reason);
    }

    fn call(&mut self, mut call: Box<Call>, rest: &str, pieces: &mut Pieces) -> Option<usize> {
        if let Some(open) = call.open.take() {
            return self.value(call, open, rest, pieces);
        }
        let next = match tags::parameter(rest) {
            Ok((length, key)) => Ok((length, Some(key))),
            Err(Miss::No) => tags::call_end(rest).map(|length| (length, None)),
            Err(Miss::More) => Err(Miss::More),
        };
        let (length, key) = match next {
            Ok(next) => next,
            Err(Miss::More) => {
                self.state = State::Call(call);
                return None;
            }
            Err(Miss::No) => {
                self.break_call(*call, MalformedReason::UnexpectedText, pieces);
                return Some(0);
            }
        };
        let refused = if length > self.room(&call) {
            Some(MalformedReason::TooLong)
        } else if key.is_some_and(|key| call.arguments.contains_key(key)) {
            Some(MalformedReason::DuplicateParameter)
        } else {
            None
        };
        if let Some(reason) = refused {
            self.break_call(*call, reason, pieces);
            return Some(0);
        }
        let raw = rest.get(..length).unwrap_or_default();
        let (index, first) = (call.index, call.arguments.is_empty());
        if let Some(key) = key {
            let types = self.tools.types(&call.name, key);
            let mut json = format!("{}{}:", if first { '{' } else { ',' }, quoted(key));
            if types.only_strings() {
                json.push('"');
            }
            self.add(&mut call, pieces, raw, ReplyEvent::Arguments { index, json });
            call.open = Some(Parameter { key: key.to_owned(), types, text: String::new(), at_begin: true });
            self.state = State::Call(call);
        } else {
            let json = if first { "{}" } else { "}" }.to_owned();
            self.add(&mut call, pieces, "", ReplyEvent::Arguments { index, json });
            let arguments = Value::Object(std::mem::take(&mut call.arguments));
            let whole = ToolCall { id: None, name: std::mem::take(&mut call.name), arguments };
            let tool = call.tool;
            self.add(&mut call, pieces, raw, ReplyEvent::CallFinished { index, call: whole, tool });
            pieces.0.append(&mut call.pieces.0);
            self.state = State::Content(Before::Call);
        }
        Some(length)
    }

    fn value(&mut self, mut call: Box<Call>, mut open: Parameter, rest: &str, pieces: &mut Pieces) -> Option<usize> {
        let room = self.room(&call);
        let index = call.index;
        if open.at_begin && rest.starts_with('\n') && room > 0 {
            open.at_begin = false;
            self.add(&mut call, pieces, "\n", ReplyEvent::Markup);
            call.open = Some(open);
            self.state = State::Call(call);
            return Some(1);
        }
        open.at_begin = false;
        let (at, end) = find_value_end(rest);
        let text = rest.get(..at).unwrap_or_default();
        // The form writes one line break between a value and its end.
        let text = text.strip_suffix('\n').unwrap_or(text);
        if !text.is_empty() {
            let text = fitting(text, room);
            if text.is_empty() {
                self.break_call(*call, MalformedReason::TooLong, pieces);
                return Some(0);
            }
            open.text.push_str(text);
            let json = if open.types.only_strings() { escaped(text) } else { String::new() };
            self.add(&mut call, pieces, text, ReplyEvent::Arguments { index, json });
            call.open = Some(open);
            self.state = State::Call(call);
            return Some(text.len());
        }
        let Some(end) = end else {
            call.open = Some(open);
            self.state = State::Call(call);
            return None;
        };
        let length = at + END_PARAMETER.len();
        let refused = match end {
            ValueEnd::Cut => Some(MalformedReason::UnfinishedValue),
            ValueEnd::Closed => (length > room).then_some(MalformedReason::TooLong),
        };
        if let Some(reason) = refused {
            self.break_call(*call, reason, pieces);
            return Some(0);
        }
        let Parameter { key, types, text, .. } = open;
        let streamed = types.only_strings();
        let value = types.value(text);
        let json = if streamed { "\"".to_owned() } else { value.to_string() };
        self.add(&mut call, pieces, rest.get(..length).unwrap_or_default(), ReplyEvent::Arguments { index, json });
        call.arguments.insert(key, value);
        self.state = State::Call(call);
        Some(length)
    }

    fn room(&self, call: &Call) -> usize {
        self.limits.call_bytes.saturating_sub(call.source.len())
    }

    fn broken(&mut self, reason: MalformedReason, rest: &str, pieces: &mut Pieces) -> Option<usize> {
        const TAGS: [&str; 2] = [END_CALL, CALL];
        self.state = State::Broken(reason);
        let (at, found) = tags::find(rest, &TAGS);
        if at > 0 {
            pieces.malformed(rest.get(..at).unwrap_or_default(), reason);
            return Some(at);
        }
        found.map(|tag| {
            self.state = State::Content(Before::Text);
            if tag == 0 {
                pieces.malformed(END_CALL, reason);
                END_CALL.len()
            } else {
                0
            }
        })
    }
}

fn add_text(pieces: &mut Pieces, raw: &str, event: ReplyEvent) {
    if !raw.is_empty() {
        pieces.add(raw, event);
    }
}

/// Line breaks at the beginning, as many as can belong to a tag.
fn gap(text: &str) -> usize {
    text.bytes().take(MAX_GAP).take_while(|byte| *byte == b'\n').count()
}

/// The text before a tag and the line breaks that belong to it; these and the tag; whether the tag is there. Where it is
/// not, line breaks at the end and what may become the tag are no text yet.
fn text_before<'a>(rest: &'a str, tag: &str) -> (&'a str, &'a str, bool) {
    let (at, found) = tags::find(rest, &[tag]);
    let (before, _) = rest.split_at(at);
    let breaks = before.bytes().rev().take(MAX_GAP).take_while(|byte| *byte == b'\n').count();
    let (text, from) = rest.split_at(at - breaks);
    let end = breaks + if found.is_some() { tag.len() } else { 0 };
    (text, from.get(..end).unwrap_or_default(), found.is_some())
}

/// Where a value ends and how; `None`: not in this text, and what is from there on cannot be judged yet.
fn find_value_end(rest: &str) -> (usize, Option<ValueEnd>) {
    let mut from = 0;
    while let Some(offset) = rest.get(from..).and_then(|rest| rest.find('<')) {
        let at = from + offset;
        match tags::value_end(rest.get(at..).unwrap_or_default()) {
            Ok(end) => return (at, Some(end)),
            Err(Miss::More) => return (at, None),
            Err(Miss::No) => from = at + 1,
        }
    }
    (rest.len(), None)
}

/// As much of the beginning as has at most `room` bytes.
fn fitting(text: &str, room: usize) -> &str {
    let mut end = room.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// A text as JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// What stands between the quotes.
fn escaped(text: &str) -> String {
    let mut json = quoted(text);
    json.pop();
    json.remove(0);
    json
}
