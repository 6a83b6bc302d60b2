//! Turns any [`Engine`](consort_core::Engine) into a [`ModelBackend`](consort_core::ModelBackend).
//!
//! An engine takes tokens and gives logits, over sequences that it holds. [`Scheduled`] does the rest, once for all of
//! them: it renders and tokenizes conversations, batches whoever runs, keeps pasts that later prompts will share, samples,
//! finds stop strings, and decides who waits.
//!
//! ```
//! use std::sync::Arc;
//!
//! use consort_core::{Engine, Event, GenerateRequest, ModelBackend, Prompt, PromptPart, Result};
//! use consort_scheduler::{FrontEnd, Scheduled, SchedulerConfig};
//!
//! /// The engine is built on a thread of its own and need not be `Send`.
//! fn serve<E: Engine + 'static>(load: impl FnOnce() -> Result<E> + Send + 'static) -> Result<Arc<dyn ModelBackend>> {
//!     Ok(Arc::new(Scheduled::spawn(load, FrontEnd::default(), SchedulerConfig::default())?))
//! }
//!
//! fn reply(backend: &dyn ModelBackend) -> Result<Vec<u32>> {
//!     let prompt = Prompt::Parts(vec![PromptPart::Tokens(vec![1, 2, 3])]);
//!     let mut tokens = Vec::new();
//!     for event in backend.generate(GenerateRequest::new(prompt))?.blocking() {
//!         if let Event::Tokens { ids, .. } = event? {
//!             tokens.extend(ids);
//!         }
//!     }
//!     Ok(tokens)
//! }
//! ```
//!
//! # Steps
//!
//! Each step first gives one token to every sequence that is generating, then chunks of prompts, the highest priority and
//! of these the oldest first; `step_tokens` bounds it. So a voice never waits for somebody's long prompt by more than one
//! step, and a stream that is dropped frees its slot within one. A picture is encoded in parts between the steps. A reader
//! that is too slow for its event buffer pauses its own sequence, and gives its slot up when somebody waits for it.
//!
//! # Kept pasts
//!
//! A past is reused only under a key that chains, token by token, the model's digest, the effective adapters with
//! generation and scale, token ids, image content hashes and positions. A recurrent state cannot be cut later, so the
//! places are chosen before they are passed:
//!
//! - before the generation prompt of each turn;
//! - after an image, and before the last message;
//! - where two prompts of late were seen to part: the second persona of a room leaves the shared part there for the third,
//!   and personas that come while the first still reads wait for it and read only what is their own;
//! - at the end of the last turn. The family's template drops the reasoning of earlier turns, so what was generated is not
//!   what the next prompt contains: the reply is rendered as the next prompt will contain it, prefilled at background
//!   priority and kept ([`Scheduled::wait_idle`] waits for that).
//!
//! A prompt of token parts whose messages the tokenizer does not know is kept before its last token.
//!
//! # When it is too much
//!
//! A full queue refuses at once. A request of a higher priority takes the slot of a lower one, which goes on later. When
//! memory runs out, pasts of those that wait, kept pasts and kept images are given up first, then the youngest sequence of
//! the lowest priority, which is computed anew when there is room; randomness depends on the seed and the token's index
//! alone, so its reply is the same. What can never fit fails with `OutOfMemory`.
//!
//! # Choosing
//!
//! Tokens are chosen by `consort-sampling`, on the engine's thread: a step of it costs a fraction of a millisecond. A reply
//! that has a structure is held to it by `consort-grammar`. Its grammar is compiled on the caller's thread, inside
//! [`generate`](consort_core::ModelBackend::generate); what it allows next is worked out on other threads while the model
//! computes the next logits. Where the prompt leaves the model's reasoning open, the structure begins after `</think>`: the
//! model may reason freely before, but not end there. Sampler and matcher belong to the reply, so one that was suspended and
//! computed anew goes on where it was.
//!
//! Log probabilities of a prompt are read off as it is prefilled, without the prefix cache, in steps so small that few rows of
//! the vocabulary are in memory at a time.
//!
//! # Replies
//!
//! The ids in `Tokens` events do not include the token that ended the reply; it stands in the `FinishReason` and counts in
//! the usage. Text that was held back may come in a last `Tokens` event without ids.
#![forbid(unsafe_code)]

mod chooser;
mod config;
mod events;
mod front_end;
mod images;
mod keeper;
mod masks;
mod metrics;
mod past;
mod prefix_cache;
mod prompt_logprobs;
mod scheduled;
mod sequence;
mod step_plan;
mod stop;
mod worker;

pub use config::SchedulerConfig;
pub use front_end::FrontEnd;
pub use scheduled::Scheduled;
