//! The suite for any [`ModelBackend`].

mod adapters;
mod cache;
mod chat;
mod client;
mod distance;
mod fairness;
mod images;
mod limits;
mod nature;
mod offers;
mod paging;
mod rooms;
mod sampling;
mod streams;
mod structure;

use std::fmt;
use std::sync::Arc;

use consort_core::{AdapterMode, Capability, ModelBackend, Result};

use crate::case::{Case, Outcome};
use crate::fixture::EngineFixture;
pub use distance::{Distance, distances};
pub use nature::{BackendNature, Bounds, Kept};

/// How a backend is to be made. What a backend leaves to others, its [`BackendNature`] says, and it ignores here.
#[derive(Debug, Clone, Copy, Default)]
pub struct BackendSetup {
    /// How many requests may wait.
    pub max_queued: Option<usize>,
    /// How many sequences may run at once.
    pub max_running: Option<usize>,
    /// The most bytes of adapters that the engine may hold.
    pub adapter_bytes: Option<u64>,
}

/// A backend that was made for a case.
#[derive(Clone)]
pub struct Made {
    /// The backend.
    pub backend: Arc<dyn ModelBackend>,
    /// Waits until nothing runs and every finished turn was kept.
    pub settle: Arc<dyn Fn() -> Result<()> + Send + Sync>,
}

/// Makes a fresh backend.
pub type MakeBackend = Arc<dyn Fn(&BackendSetup) -> Result<Made> + Send + Sync>;

/// How the model's chat template writes a user's turn and what comes before the reply to it.
pub type UserTurn = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// A backend with one model, as the backend suite sees it.
#[derive(Clone)]
pub struct BackendFixture {
    /// Makes a backend.
    pub make: MakeBackend,
    /// What a fresh backend declares.
    pub capability: Capability,
    /// What kind of backend it is.
    pub nature: BackendNature,
    /// An engine with the same model: its prompts, images, adapters and goldens, and what it says when it is asked directly.
    pub engine: EngineFixture,
    /// How far a log probability of the backend may be from what `engine` computes for the same tokens.
    pub oracle_tolerance: f32,
    /// Tokens of the model's vocabulary.
    pub vocabulary: usize,
    /// Given when the backend has a tokenizer and a chat template.
    pub user_turn: Option<UserTurn>,
}

impl fmt::Debug for BackendFixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendFixture").field("engine", &self.engine).finish_non_exhaustive()
    }
}

/// What a case of the backend suite needs before it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Text,
    /// Pasts that the backend keeps itself, and reuses to the token.
    Pasts,
    /// Prefixes that are reused, and told.
    Reuse,
    /// Numbers of the work that the engine did.
    Counters,
    Memory,
    /// Slots and a queue, which the backend keeps itself.
    Queue,
    Paging,
    AllSamplers,
    Bias,
    AnyBias,
    SmallVocabulary,
    Images,
    Adapters,
    HotSwap,
    Twins,
    Activated,
    EightSequences,
    Embeddings,
    /// A model whose logits depend on the whole past.
    Remembers,
    Golden,
    /// That it does not offer what another need names.
    Lacks(Lack),
}

/// What a backend may not offer and must then refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    OneToken,
    Scales,
    Stacks,
    AllSamplers,
    AnyBias,
    Paging,
    Logprobs,
    Memory,
    Bypass,
}

impl BackendFixture {
    /// A fixture without a tokenizer; makes a backend once to read what it declares.
    ///
    /// # Errors
    /// When the backend cannot be made.
    pub fn new(make: MakeBackend, nature: BackendNature, engine: EngineFixture) -> Result<Self> {
        let made = make(&BackendSetup::default())?;
        let capability = made.backend.capability();
        // A log probability is a difference of logits; and both sides round.
        let oracle_tolerance = 2.0 * capability.logit_tolerance + 1e-5;
        let vocabulary = made.backend.info().vocab_size;
        Ok(Self { make, capability, nature, engine, oracle_tolerance, vocabulary, user_turn: None })
    }

    fn missing(&self, needs: &[Need]) -> Option<&'static str> {
        let (capability, nature) = (&self.capability, &self.nature);
        let adapters = capability.adapter_mode != AdapterMode::None && self.engine.adapters.len() >= 2;
        let own_pasts = capability.park && nature.pasts == Kept::Here;
        needs.iter().find_map(|need| {
            let (met, words) = match need {
                Need::Text => (self.user_turn.is_some(), "a tokenizer and a chat template"),
                Need::Pasts => (own_pasts, "pasts of its own"),
                Need::Reuse => (own_pasts || nature.pasts.block().is_some(), "prefixes that are reused and told"),
                Need::Counters => (nature.counts_work, "numbers of the engine's work"),
                Need::Memory => (nature.tells_memory, "memory that is told"),
                Need::Queue => (nature.bounds == Bounds::SlotsAndQueue, "a queue of its own"),
                Need::Paging => (adapters && nature.pages_adapters, "adapters that are paged here"),
                Need::AllSamplers => (nature.every_sampler, "every sampler"),
                Need::Bias => (nature.largest_bias > 0.0, "logit bias"),
                Need::AnyBias => (nature.largest_bias == f32::INFINITY, "logit bias and penalties of any size"),
                Need::SmallVocabulary => (self.tells_all_logprobs(), "log probabilities of the whole vocabulary"),
                Need::Images => (capability.image_input && self.engine.images.len() >= 3, "image_input"),
                Need::Adapters => (adapters, "adapter_mode"),
                Need::HotSwap => (adapters && capability.adapter_hot_swap, "adapter_hot_swap"),
                Need::Twins => (self.engine.adapter_twins.len() >= 2, "adapters in both forms"),
                Need::Activated => (adapters && capability.activated_adapters, "activated_adapters"),
                Need::EightSequences => (capability.max_sequences >= 8, "eight sequences"),
                Need::Embeddings => (capability.embeddings, "embeddings"),
                Need::Remembers => (self.engine.nature.remembers, "a model with a memory"),
                Need::Golden => (self.engine.golden.is_some(), "goldens"),
                Need::Lacks(lack) => (self.lacks(*lack, adapters), "something that it does not offer"),
            };
            (!met).then_some(words)
        })
    }

    fn lacks(&self, lack: Lack, adapters: bool) -> bool {
        let nature = &self.nature;
        match lack {
            Lack::OneToken => nature.shortest_prompt > 1,
            Lack::Scales => adapters && !nature.scales_adapters,
            Lack::Stacks => adapters && !nature.stacks_adapters,
            Lack::AllSamplers => !nature.every_sampler,
            Lack::AnyBias => nature.largest_bias < f32::INFINITY,
            Lack::Paging => adapters && !nature.pages_adapters,
            Lack::Logprobs => !self.tells_all_logprobs(),
            Lack::Memory => !nature.tells_memory,
            Lack::Bypass => nature.pasts != Kept::Here,
        }
    }

    fn tells_all_logprobs(&self) -> bool {
        self.vocabulary <= self.nature.most_logprobs as usize
    }

    /// Whether the backend gives the same bits as `engine`, so that every token must be the engine's own.
    fn is_exact(&self) -> bool {
        self.nature.engine_within && self.capability.batch_invariant
    }

    /// How far two log probabilities of the backend may be apart that were computed in two ways. A log probability is a
    /// difference of logits, so it can be off by twice their tolerance.
    fn tolerance(&self) -> f32 {
        2.0 * self.capability.logit_tolerance + 1e-6
    }

    /// A prompt that is long enough for the backend to keep something of its first `length` tokens.
    fn kept(&self, length: usize, seed: u64) -> Vec<consort_core::TokenId> {
        self.engine.prompt(length + self.nature.pasts.room(), seed)
    }
}

/// Collects cases for one fixture.
struct List {
    fixture: Arc<BackendFixture>,
    cases: Vec<Case>,
}

impl List {
    fn add(
        &mut self,
        name: impl Into<String>,
        needs: &[Need],
        run: impl Fn(&BackendFixture) -> Outcome + Send + Sync + 'static,
    ) {
        let fixture = Arc::clone(&self.fixture);
        let missing = fixture.missing(needs);
        self.cases.push(Case::new(name, missing, move || run(&fixture)));
    }
}

/// Every case of the backend suite for one fixture, those that do not apply included ([`Case::missing`]).
#[must_use]
pub fn backend_cases(fixture: &BackendFixture) -> Vec<Case> {
    let mut list = List { fixture: Arc::new(fixture.clone()), cases: Vec::new() };
    streams::add(&mut list);
    sampling::add(&mut list);
    structure::add(&mut list);
    limits::add(&mut list);
    fairness::add(&mut list);
    cache::add(&mut list);
    adapters::add(&mut list);
    rooms::add(&mut list);
    paging::add(&mut list);
    images::add(&mut list);
    chat::add(&mut list);
    offers::add(&mut list);
    list.cases
}
