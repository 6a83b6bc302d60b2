//! What a model of the family replies: reasoning, text and tool calls, told apart while it streams.
//!
//! ```text
//! reasoning
//! </think>
//!
//! text
//!
//! <tool_call>
//! <function=NAME>
//! <parameter=KEY>
//! VALUE
//! </parameter>
//! </function>
//! </tool_call>
//! ```
//!
//! The form has no escapes, so a value can look like the end of itself. A value ends at a `</parameter>` after which the
//! call goes on (`<parameter=…>`) or ends (`</function>`, `</tool_call>`), blanks between; any other `</parameter>` is a part
//! of the value. What the template writes for a call therefore reads back as the same call, unless a value holds one of
//! these sequences itself.

mod arguments;
mod form;
mod parser;
mod tags;

use consort_core::{ChatMessage, ContentPart, Role, ToolCall};
use serde_json::Value;

pub use self::form::{CallCount, CallForm, Otherwise};
pub use self::parser::ReplyParser;

/// Where a reply begins: the generation prompt may have opened the reasoning, or closed an empty one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ReplyStart {
    /// The prompt says nothing of reasoning. A reply that begins with `<think>` reasons.
    #[default]
    Undecided,
    /// The prompt ends with `<think>`: the reply begins inside the reasoning.
    Reasoning,
    /// The prompt ends with an empty reasoning: the reply begins with its text.
    Content,
}

impl ReplyStart {
    /// How a reply to this prompt begins.
    ///
    /// ```
    /// use consort_text::ReplyStart;
    ///
    /// assert_eq!(ReplyStart::after("<|im_start|>assistant\n<think>\n"), ReplyStart::Reasoning);
    /// assert_eq!(ReplyStart::after("<|im_start|>assistant\n<think>\n\n</think>\n\n"), ReplyStart::Content);
    /// assert_eq!(ReplyStart::after("<|im_start|>assistant\n"), ReplyStart::Undecided);
    /// ```
    #[must_use]
    pub fn after(prompt: &str) -> Self {
        let prompt = prompt.trim_end();
        if prompt.ends_with(tags::THINK) {
            Self::Reasoning
        } else if prompt.ends_with(tags::END_THINK) {
            Self::Content
        } else {
            Self::Undecided
        }
    }
}

/// When a tool call is handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CallDelivery {
    /// As it comes. A call that turns out to be malformed is withdrawn ([`ReplyEvent::Malformed`]).
    #[default]
    Streamed,
    /// When it is whole, so that none is ever withdrawn.
    Whole,
    /// Never: calls are text like any other.
    AsText,
}

/// What a parser may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyLimits {
    /// Most calls in a reply. Further ones come as text with a flag.
    pub calls: usize,
    /// Longest source of one call, in bytes, from `<tool_call>` on. Of a longer one, all comes as text with a flag.
    pub call_bytes: usize,
}

impl Default for ReplyLimits {
    fn default() -> Self {
        Self { calls: 128, call_bytes: 1 << 20 }
    }
}

/// How a reply is read.
#[derive(Debug, Clone, Default)]
pub struct ReplyOptions {
    /// Where it begins; see [`ReplyStart::after`] and [`RenderedPrompt::reply_start`](crate::RenderedPrompt).
    pub start: ReplyStart,
    /// The tools that were offered: JSON objects in the OpenAI form, or only what is under their `function`. Their
    /// schemas give arguments their types; without them every argument is a string.
    pub tools: Vec<Value>,
    /// When calls are handed on.
    pub calls: CallDelivery,
    /// What may be held.
    pub limits: ReplyLimits,
}

/// A piece of a reply.
///
/// The `raw` texts of all pieces, in their order, are the reply: nothing is lost.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplyPiece {
    /// The piece of the reply that this was. It may be empty.
    pub raw: String,
    /// What it is.
    pub event: ReplyEvent,
}

/// What a piece of a reply is.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplyEvent {
    /// A part of the answer: the piece's `raw` text.
    Content,
    /// A part of the reasoning: the piece's `raw` text.
    Reasoning,
    /// Tags, and line breaks beside them: no part of what is said.
    Markup,
    /// A call begins.
    CallBegun {
        /// Its number in the reply, from zero.
        index: usize,
        /// The function's name.
        name: String,
        /// Whether the function was offered.
        tool: ToolMatch,
    },
    /// A part of a call's arguments.
    Arguments {
        /// The call's number.
        index: usize,
        /// Its JSON, which may be empty. The parts of a finished call together are a JSON object.
        json: String,
    },
    /// A call is whole.
    CallFinished {
        /// The call's number.
        index: usize,
        /// The call. It has no id: who hands it on gives it one.
        call: ToolCall,
        /// Whether the function was offered.
        tool: ToolMatch,
    },
    /// What looks like a call and is none. It counts as text of the answer.
    Malformed {
        /// A call that was begun and is now withdrawn.
        withdraws: Option<usize>,
        /// The text. Where a call is withdrawn it holds all of the call, so it is longer than the piece's `raw` text.
        text: String,
        /// Why it is none.
        reason: MalformedReason,
    },
}

/// Whether a called function was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToolMatch {
    /// It was.
    Offered,
    /// Tools were offered, and it is none of them.
    Unknown,
    /// The parser was given no tools.
    Unchecked,
}

/// Why something is not a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MalformedReason {
    /// No `<function=NAME>` follows `<tool_call>`.
    NoFunction,
    /// Other text stands where a parameter or the end of the call belongs.
    UnexpectedText,
    /// The same parameter stands twice.
    DuplicateParameter,
    /// The next call begins before a value has ended.
    UnfinishedValue,
    /// The reply ends within the call.
    Unfinished,
    /// It is longer than [`ReplyLimits::call_bytes`].
    TooLong,
    /// There are more than [`ReplyLimits::calls`].
    TooMany,
}

impl MalformedReason {
    /// The reason as a stable lower-case word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoFunction => "no_function",
            Self::UnexpectedText => "unexpected_text",
            Self::DuplicateParameter => "duplicate_parameter",
            Self::UnfinishedValue => "unfinished_value",
            Self::Unfinished => "unfinished",
            Self::TooLong => "too_long",
            Self::TooMany => "too_many",
        }
    }
}

/// Whether the reasoning came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ReasoningEnd {
    /// The reply does not reason.
    #[default]
    None,
    /// `</think>` was written.
    Closed,
    /// The reply ends without `</think>`: all of it is reasoning, and there is no answer.
    Unfinished,
}

/// The last pieces of a reply.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplyEnd {
    /// What was held back.
    pub pieces: Vec<ReplyPiece>,
    /// Whether the reasoning came to its end.
    pub reasoning: ReasoningEnd,
}

/// A whole reply, taken apart.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ParsedReply {
    /// The reasoning, unless it is empty.
    pub reasoning: Option<String>,
    /// Whether the reasoning came to its end.
    pub reasoning_end: ReasoningEnd,
    /// The answer, with the text of what is [`malformed`](Self::malformed) at its place.
    pub content: String,
    /// The calls, in their order.
    pub tool_calls: Vec<ToolCall>,
    /// Indices of those calls whose function was not offered, when tools were.
    pub unknown_tools: Vec<usize>,
    /// What looked like calls and was none: the text and why.
    pub malformed: Vec<(String, MalformedReason)>,
}

impl ParsedReply {
    /// The reply as a message of the conversation.
    #[must_use]
    pub fn into_message(self) -> ChatMessage {
        let content = if self.content.is_empty() { Vec::new() } else { vec![ContentPart::Text(self.content)] };
        ChatMessage {
            reasoning: self.reasoning,
            tool_calls: self.tool_calls,
            ..ChatMessage::new(Role::Assistant, content)
        }
    }
}

/// Takes a whole reply apart. [`ReplyOptions::calls`] of `Streamed` counts as `Whole` here.
///
/// ```
/// use consort_text::{ReplyOptions, ReplyStart, parse_reply};
/// use serde_json::json;
///
/// let tools = vec![json!({ "type": "function", "function": { "name": "move", "parameters": {
///     "type": "object", "properties": { "to": { "type": "string" }, "steps": { "type": "integer" } } } } })];
/// let options = ReplyOptions { start: ReplyStart::Reasoning, tools, ..ReplyOptions::default() };
/// let reply = parse_reply(
///     "The door is north.\n</think>\n\nI go.\n\n<tool_call>\n<function=move>\n<parameter=to>\nthe door\n</parameter>\n\
///      <parameter=steps>\n3\n</parameter>\n</function>\n</tool_call>",
///     &options,
/// );
/// assert_eq!((reply.reasoning.as_deref(), reply.content.as_str()), (Some("The door is north."), "I go."));
/// assert_eq!(reply.tool_calls[0].name, "move");
/// assert_eq!(reply.tool_calls[0].arguments, json!({ "to": "the door", "steps": 3 }));
/// ```
#[must_use]
pub fn parse_reply(text: &str, options: &ReplyOptions) -> ParsedReply {
    let calls = if options.calls == CallDelivery::Streamed { CallDelivery::Whole } else { options.calls };
    let mut parser = ReplyParser::new(&ReplyOptions { calls, ..options.clone() });
    let mut pieces = parser.push(text);
    let end = parser.finish();
    pieces.extend(end.pieces);
    let mut reply = ParsedReply { reasoning_end: end.reasoning, ..ParsedReply::default() };
    for ReplyPiece { raw, event } in pieces {
        match event {
            ReplyEvent::Content => reply.content.push_str(&raw),
            ReplyEvent::Reasoning => reply.reasoning.get_or_insert_default().push_str(&raw),
            ReplyEvent::Malformed { text, reason, .. } => {
                reply.content.push_str(&text);
                reply.malformed.push((text, reason));
            }
            ReplyEvent::CallFinished { call, tool, .. } => {
                if tool == ToolMatch::Unknown {
                    reply.unknown_tools.push(reply.tool_calls.len());
                }
                reply.tool_calls.push(call);
            }
            ReplyEvent::Markup | ReplyEvent::CallBegun { .. } | ReplyEvent::Arguments { .. } => {}
        }
    }
    reply
}
