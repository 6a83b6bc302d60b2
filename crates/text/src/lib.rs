//! Tokenizers, incremental detokenization, chat templates, and replies taken apart.
//!
//! Everything between a conversation and token ids, and back:
//!
//! - [`Tokenizer`]: byte-level BPE from a GGUF's metadata or from a `tokenizer.json`, the same ids as the reference.
//! - [`Detokenizer`]: tokens in, text out, and never half a character.
//! - [`ChatTemplate`]: the Jinja template that came with a model, rendered as transformers renders it, within limits:
//!   a template is a program from a stranger.
//! - [`PromptRenderer`]: the two together; what people write never becomes a special token; with the places in a prompt that a prefix cache keeps, and
//!   [`split_at_images`], which puts pictures where the template left room for them.
//! - [`ReplyParser`]: reasoning, text and tool calls, told apart while a reply streams; [`parse_reply`] for a whole one.
//!   What is malformed comes back as text with a flag, and nothing is ever lost. [`CallForm`] is the grammar of replies
//!   that must call.
//! - [`StopMatcher`]: stop strings, found across the borders of pieces.
//!
//! ```
//! use consort_core::{ChatMessage, ChatPrompt, Role, SpecialTokens};
//! use consort_text::{ChatTemplate, ChatTemplateInput, Detokenizer, SpecialText, Tokenizer};
//!
//! # fn main() -> consort_core::Result<()> {
//! let template = ChatTemplate::new(
//!     "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}\
//!      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
//! )?;
//! let chat = ChatPrompt { messages: vec![ChatMessage::text(Role::User, "Hi, 世界!")], ..ChatPrompt::default() };
//! let prompt = template.render(&ChatTemplateInput::from_prompt(&chat)?)?;
//! assert_eq!(prompt, "<|im_start|>user\nHi, 世界!<|im_end|>\n<|im_start|>assistant\n");
//!
//! # let json = consort_text::doc_tokenizer_json();
//! let tokenizer = Tokenizer::from_json(&json, None)?;
//! let ids = tokenizer.encode(&prompt, SpecialTokens::Parse)?;
//! assert_eq!(tokenizer.decode(&ids, SpecialText::Show), prompt);
//!
//! // A token at a time, as they come from a model: a character is shown once its last byte is there.
//! let mut detokenizer = Detokenizer::new(&tokenizer, SpecialText::Hide);
//! let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
//! text += &detokenizer.finish();
//! assert_eq!(text, "user\nHi, 世界!\nassistant\n");
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod detokenizer;
mod guard;
mod images;
mod renderer;
mod reply;
mod stop;
mod template;
mod tokenizer;

pub use detokenizer::{Detokenizer, SpecialText};
pub use images::{TokenPart, split_at_images};
pub use renderer::{PromptRenderer, RenderedPrompt};
pub use reply::{
    CallCount, CallDelivery, CallForm, MalformedReason, Otherwise, ParsedReply, ReasoningEnd, ReplyEnd, ReplyEvent,
    ReplyLimits, ReplyOptions, ReplyParser, ReplyPiece, ReplyStart, ToolMatch, parse_reply,
};
pub use stop::{Fed, StopMatcher};
pub use template::{ChatTemplate, ChatTemplateInput, TemplateLimits};
pub use tokenizer::{PreTokenizer, Tokenizer};

#[doc(hidden)]
pub use tokenizer::doc_tokenizer_json;
