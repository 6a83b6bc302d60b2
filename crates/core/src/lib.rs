//! The two seams of Consort and the types that cross them.
//!
//! Consort runs one language model, which also sees, for many personas at once, on whatever inference engine a device has.
//! This crate is what all its parts agree on. It has no engine, no files, no threads, and hardly a dependency.
//!
//! # Two seams
//!
//! [`ModelBackend`] is what an application holds: a [`GenerateRequest`] goes in, an [`EventStream`] comes out, and dropping
//! the stream cancels. A *remote* engine that schedules for itself implements it directly.
//!
//! [`Engine`] is what a *local* engine implements, and it is much smaller: tokens in, logits out, over sequences that it
//! holds. `Scheduled<E>` of the crate `consort-scheduler` turns any `Engine` into a `ModelBackend`; batching, the prefix
//! cache, sampling, stop strings, chat templates, priorities and cancellation are written once, there.
//!
//! # What may cross
//!
//! **No engine's type crosses a seam.** Token ids, positions, image patches and logits cross it, as plain slices; what an
//! engine must remember crosses as an opaque handle that it alone can open ([`ImageHandle`], [`Parked`]). The first trait of
//! this kind in our field took one engine's tensor, and no other engine could ever implement it.
//!
//! # Writing an engine
//!
//! 1. **Declare, then do.** [`Capability`] says what works. The behaviour suites (`consort-behavior`) read it, run every case
//!    that applies, and fail closed; the default methods refuse the rest by name. An honest `false` is better than emulation.
//! 2. **A sequence is a past.** [`open`](Engine::open) makes an empty one with its adapters fixed; steps append to it;
//!    [`release`](Engine::release) ends it. There is no other state: positions come from the caller, randomness is not yours.
//! 3. **Outcomes are per step.** A step is [`Done`](StepOutcome::Done), or [`Refused`](StepOutcome::Refused) and its sequence
//!    is as it was, or [`Poisoned`](StepOutcome::Poisoned) and its sequence is to be dropped. The neighbours never notice.
//!    `submit` itself fails only for a batch that is malformed as a whole, and then nothing was done.
//! 4. **Keeping a past** is what makes many personas cheap. [`park`](Engine::park) keeps it as it is, without ending the
//!    sequence; [`resume`](Engine::resume) makes a sequence of it as often as one likes. A recurrent state cannot be cut in
//!    the middle, so the scheduler chooses the places *before* it passes them. Share what you can, and declare what it costs.
//! 5. **Adapters belong to a sequence**, by id *and generation*. Weights that are replaced are another generation; whoever
//!    opened with the old ones keeps them. A binding acts from its `active_from` on, so that personas with activated
//!    adapters share what comes before ([`fork_with`](Engine::fork_with), [`resume_with`](Engine::resume_with)); only an
//!    engine that declares `activated_adapters` is given another value than 0. Weights may leave and come back under
//!    their key, which always means the same: keep none in a parked past.
//! 6. **Evidence, not requests.** [`evidence`](Engine::evidence) tells where things were *seen* to run and how that is known,
//!    and loading ends with [`DevicePolicy::admit`]. Nothing falls back in silence.
//! 7. **Bounded calls.** `max_batch_tokens` bounds a submit and [`advance_image`](Engine::advance_image) does a part of the
//!    work, so that cancelling is prompt and a picture never stalls a voice.
//! 8. **Hostile input** ends in a typed [`Error`] that names the offending thing: never a panic, never an abort.
//!
//! # The smallest engine
//!
//! This one is whole. It passes every case of the engine suite that its capability admits
//! (`cargo test -p consort-behavior --test engines`).
//!
//! ```
#![doc = include_str!("../examples/parrot.rs")]
//! ```
#![forbid(unsafe_code)]

mod adapter;
mod backend;
mod blocking;
mod capability;
mod device;
mod engine;
mod error;
mod event;
mod image;
mod memory;
mod message;
mod metrics;
mod model;
mod request;
mod sampling;
mod sides;
mod structure;
mod token;

pub use adapter::{
    AdapterBinding, AdapterFiles, AdapterInfo, AdapterKey, AdapterSet, AdapterSource, AdapterStatus, AdapterUse,
    Residency,
};
pub use backend::{BoxFuture, EmbedRequest, ModelBackend, SpecialTokens};
pub use blocking::block_on;
pub use capability::{AdapterMode, Capability};
pub use device::{Device, DeviceEvidence, DevicePolicy, Placement, Proof};
pub use engine::{
    Engine, ImageHandle, ImageJob, ImageProgress, Logits, Parked, Pooling, SeqId, Step, StepInput, StepOutcome,
    StepOutput, Ticket, Want,
};
pub use error::{Error, ErrorKind, ErrorStatus, Result};
pub use event::{BlockingEvents, Event, EventStream, FinishReason, PositionLogprobs, TokenLogprob, Usage};
pub use image::{ContentHash, ImageInput, ImageSource, PatchGrid, RgbView};
pub use memory::{MemoryReport, SequenceMemory};
pub use message::{ChatMessage, ChatPrompt, ContentPart, Role, Thinking, ToolCall};
pub use metrics::{ByPriority, Failures, Histogram, Metrics};
pub use model::ModelInfo;
pub use request::{Deadlines, GenerateRequest, PlacementRule, PrefixReuse, Priority, Prompt, PromptPart};
pub use sampling::{Dry, DynamicTemperature, EndTokens, Penalties, Sampling, StopRules, Xtc};
pub use sides::{SideRoute, SidesReport};
pub use structure::{Structure, StructureScope};
pub use token::{Position, TokenId};
