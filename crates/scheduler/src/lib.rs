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
//! Each step first gives one token to every sequence that is generating, then chunks of prompts, the highest rank and of
//! these the oldest first; `step_tokens` bounds it. So a voice never waits for somebody's long prompt by more than one
//! step, and a stream that is dropped frees its slot within one. While somebody reads or listens, `max_step_time` bounds the
//! step in time as well: the scheduler learns from the steps of late how many prompt tokens fit. A picture is encoded in
//! parts between the steps. A reader that is too slow for its event buffer pauses its own sequence, and is the first to
//! give its slot up when somebody waits for one.
//!
//! With a `gpu_time_share` below 1 the engine rests after each step, so that others have the device for the rest of the
//! time. Commands, cancellations and deadlines are obeyed meanwhile.
//!
//! # Who waits
//!
//! A request that is neither admitted nor given a token for `aging` counts as one priority class higher, and so on up to
//! the highest: its *rank*. Admission and prefill go by rank, and in a rank by age, so **after three times `aging` a request
//! stands before every one that came later**. What it then still waits for is what stood before it, the next slot that
//! becomes free, and its own prompt. Once it is served it keeps its rank until its prompt is read and `min_progress` tokens
//! are said. A decoding voice has its token in each step, whoever else has aged. Keeping finished turns does not age, as
//! nobody waits for it; nor does a request age while its own reader is behind.
//!
//! A request's [`Deadlines`](consort_core::Deadlines) are watched in the queue and while it runs, also when there is nothing
//! else to do: the stream ends with `DeadlineExceeded`, and the slot is free within one step.
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
//! Room for them is bounded in bytes and by value: the past with the least tokens per byte, times 2^(−age / half-life),
//! is given up first, and one that is worth less than what it would cost is not kept. Bytes are what the engine declares
//! that giving a past up frees, so what shares its pages with others is cheap.
//!
//! # Adapters
//!
//! A request's adapters are bound to their current generation when it is accepted, activated ones (aLoRA) to the last place in
//! the prompt where their invocation tokens stand. One that the prompt does not invoke is not in effect. Up to where they
//! act, personas share kept pasts with each other and with the base model, and who comes while another still reads the scene
//! waits for it. Adapters beyond [`adapter_bytes`](SchedulerConfig::adapter_bytes) are paged out and in, between requests, by
//! [`Residency`](consort_core::Residency) and recency.
//!
//! # When it is too much
//!
//! A full queue refuses at once. A request of a higher priority takes the slot of a lower one, which is parked and goes on
//! later. When memory runs out, kept pasts, then parked ones, then kept pictures are given up, each by value; then sequences
//! are suspended: those whose reader is behind, then those of the lowest rank, of these the one that is cheapest to bring
//! back for what it frees. Where a past cannot be parked it is computed anew; randomness depends on the seed and the token's
//! index alone, so the reply is the same. Nobody who was suspended is suspended again before it has got further. What does
//! not fit even alone fails with `OutOfMemory` and the numbers.
//!
//! # When something breaks
//!
//! A sequence whose state the engine lost is computed anew, once; its neighbours notice nothing. A *panic* of the engine is
//! the end of the backend: it is not caught, because nothing is known of an engine's state (or its device's) after it, and
//! to serve on with such a state could give wrong replies. The thread ends, everything it held is freed, every stream and
//! every call ends with `Unexpected`, and so does each later one.
//!
//! # Time that does not pass
//!
//! All time is read from one clock. [`Simulation`] drives the same loop on a [`VirtualClock`], turn by turn on the caller's
//! thread: `tests/simulate` sends thousands of arrivals through it and checks the rules above at each turn.
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

mod aging;
mod chooser;
mod clock;
mod config;
mod events;
mod front_end;
mod images;
mod keeper;
mod library;
mod masks;
mod metrics;
mod pace;
mod past;
mod prefix_cache;
mod prompt_logprobs;
mod scheduled;
mod sequence;
mod shelf;
mod simulation;
mod step_plan;
mod value;
mod worker;

pub use clock::VirtualClock;
pub use config::SchedulerConfig;
pub use consort_prompt::FrontEnd;
pub use scheduled::Scheduled;
pub use simulation::{Simulation, Turned};
