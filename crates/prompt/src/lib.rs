//! From a conversation with pictures to the parts that an engine reads.
//!
//! Template, tokenizer and image processor belong to a model's files, not to an engine. A [`FrontEnd`] holds them, and a
//! [`Prompter`] uses them for one backend: the scheduler has one for every engine of ours, and a remote backend has one
//! for a server that takes tokens.
//!
//! ```
//! use consort_core::{ChatMessage, ChatPrompt, PromptPart, Role};
//! use consort_prompt::{FrontEnd, Prompter};
//! use consort_text::{ChatTemplate, Tokenizer};
//!
//! # fn main() -> consort_core::Result<()> {
//! let template = ChatTemplate::new(
//!     "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
//!      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
//! )?;
//! # let json = consort_text::doc_tokenizer_json();
//! let tokenizer = Tokenizer::from_json(&json, None)?;
//! let front_end = FrontEnd { tokenizer: Some(tokenizer), template: Some(template), image_processor: None };
//! let prompter = Prompter::new(front_end, "native", None);
//! let chat = ChatPrompt { messages: vec![ChatMessage::text(Role::User, "Hi")], ..ChatPrompt::default() };
//! let written = prompter.write(&chat, |_| Ok(()))?;
//! assert!(matches!(written.parts.as_slice(), [PromptPart::Tokens(tokens)] if tokens.len() > written.turn));
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod prompter;

pub use prompter::{FrontEnd, Prompter, Written};
