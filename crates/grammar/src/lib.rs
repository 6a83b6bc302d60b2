//! Holds replies to a form, token by token.
//!
//! A [`Compiler`] belongs to a model: it knows what each token stands for ([`Vocabulary`]), and makes a [`Matcher`] of a
//! [`Structure`](consort_core::Structure). The matcher tells which tokens may come next, and hears which came:
//!
//! ```
//! use consort_core::{Result, SpecialTokens, Structure};
//! use consort_grammar::{Compiler, GrammarLimits, Vocabulary};
//! use consort_text::Tokenizer;
//!
//! # fn main() -> Result<()> {
//! # let json = consort_text::doc_tokenizer_json();
//! let tokenizer = Tokenizer::from_json(&json, None)?;
//! let vocabulary = Vocabulary::new(&tokenizer, 300, tokenizer.end_tokens())?;
//! let compiler = Compiler::new(vocabulary, GrammarLimits::default());
//!
//! let mut matcher = compiler.compile(&Structure::Choice(vec!["yes".into(), "yellow".into()]))?;
//! for token in tokenizer.encode("yes", SpecialTokens::Plain)? {
//!     let mask = matcher.mask()?;
//!     assert!(mask.allows(token) && mask.count() <= 2);
//!     matcher.commit(token)?;
//! }
//! assert!(matcher.is_complete(), "nothing but the end can follow");
//!
//! let error = compiler.compile(&Structure::Regex("[a-z".into())).err();
//! assert_eq!(error.map(|error| error.kind()), Some(consort_core::ErrorKind::InvalidGrammar));
//! # Ok(())
//! # }
//! ```
//!
//! # The engine of it
//!
//! The automata are llguidance's (<https://github.com/guidance-ai/llguidance>): an Earley parser over lexemes that are matched
//! by derivatives of regular expressions, walked along a trie of the vocabulary. Compiling takes milliseconds, so compiled
//! grammars are kept, and each reply gets a copy of its own: no reply sees another one's caches or locks.
//!
//! # Limits
//!
//! Grammars come from strangers. What is given is bounded in size and in depth before it is looked at; it is compiled on a
//! thread of its own with a stack for that depth; the automata have bounds of their own, in work for each step and in states
//! ([`GrammarLimits`]). What passes them is refused as [`InvalidGrammar`](consort_core::ErrorKind::InvalidGrammar), while it
//! is compiled or, for a grammar that grows while it is matched, at the token where it does.
//!
//! JSON is written with at most one blank, or one line's end and some indentation, between two of its parts: a model that
//! draws blanks for ever would never come to an end.
#![forbid(unsafe_code)]

mod check;
mod compiler;
mod limits;
mod matcher;
mod vocabulary;

pub use compiler::Compiler;
pub use limits::GrammarLimits;
pub use matcher::Matcher;
pub use vocabulary::Vocabulary;
