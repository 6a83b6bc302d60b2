//! The suite for any [`ModelBackend`].

mod adapters;
mod cache;
mod chat;
mod client;
mod fairness;
mod images;
mod limits;
mod paging;
mod rooms;
mod sampling;
mod streams;
mod structure;

use std::fmt;
use std::sync::Arc;

use consort_core::{AdapterMode, ModelBackend, Result};

use crate::case::{Case, Outcome};
use crate::fixture::EngineFixture;

/// How a backend is to be made.
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
    /// The engine within: its prompts, images, adapters and goldens, and what it says when it is asked directly.
    pub engine: EngineFixture,
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
    Park,
    Images,
    Adapters,
    HotSwap,
    Twins,
    Activated,
    EightSequences,
    Embeddings,
    Memory,
    Golden,
}

impl BackendFixture {
    fn missing(&self, needs: &[Need]) -> Option<&'static str> {
        let capability = &self.engine.capability;
        let adapters = capability.adapter_mode != AdapterMode::None && self.engine.adapters.len() >= 2;
        needs.iter().find_map(|need| {
            let (met, words) = match need {
                Need::Text => (self.user_turn.is_some(), "a tokenizer and a chat template"),
                Need::Park => (capability.park, "park"),
                Need::Images => (capability.image_input && self.engine.images.len() >= 3, "image_input"),
                Need::Adapters => (adapters, "adapter_mode"),
                Need::HotSwap => (adapters && capability.adapter_hot_swap, "adapter_hot_swap"),
                Need::Twins => (self.engine.adapter_twins.len() >= 2, "adapters in both forms"),
                Need::Activated => (adapters && capability.activated_adapters, "activated_adapters"),
                Need::EightSequences => (capability.max_sequences >= 8, "eight sequences"),
                Need::Embeddings => (capability.embeddings, "embeddings"),
                Need::Memory => (self.engine.nature.remembers, "a model with a memory"),
                Need::Golden => (self.engine.golden.is_some(), "goldens"),
            };
            (!met).then_some(words)
        })
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
    list.cases
}
