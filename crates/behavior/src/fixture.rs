//! What the engine suite needs to know of an engine: how to make one, and what to ask it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use consort_core::{AdapterFiles, AdapterMode, Capability, Device, DevicePolicy, Engine, ImageSource, Result, TokenId};

use crate::golden::Golden;

/// How an engine is to be made.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Which devices may compute.
    pub policy: DevicePolicy,
    /// The most bytes that sequences may hold, for engines whose fixture says that they keep a budget.
    pub sequence_budget: Option<u64>,
}

/// Makes a fresh engine. Called on the thread that will own it.
pub type MakeEngine = Arc<dyn Fn(&Setup) -> Result<Box<dyn Engine>> + Send + Sync>;

/// Encodes an image in a fresh engine and reads the embedding.
pub type ReadEmbedding = Arc<dyn Fn(Arc<dyn ImageSource>) -> Result<Vec<f32>> + Send + Sync>;

/// What kind of model stands behind an engine, as far as cases depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Nature {
    /// The logits depend on the whole past and not on the last token alone.
    pub remembers: bool,
    /// The logits depend on the distances between positions.
    pub has_positions: bool,
    /// [`Setup::sequence_budget`] is kept.
    pub keeps_budget: bool,
}

/// A named set of adapter weights.
#[derive(Debug, Clone)]
pub struct NamedAdapter {
    /// Its name in the goldens.
    pub name: String,
    /// Its weights.
    pub files: AdapterFiles,
}

/// One adapter in both forms, with the same numbers.
#[derive(Debug, Clone)]
pub struct AdapterTwins {
    /// What tells it from the others.
    pub name: String,
    /// In PEFT's format.
    pub peft: AdapterFiles,
    /// As GGUF, in memory.
    pub gguf: AdapterFiles,
    /// The tokens from which it is active; `None` for an ordinary one.
    pub invocation: Option<Vec<TokenId>>,
}

/// Adapter files that must be refused.
#[derive(Debug, Clone)]
pub struct RefusedAdapter {
    /// What is wrong with them.
    pub why: &'static str,
    /// What the error must name.
    pub names: &'static str,
    /// The files.
    pub files: AdapterFiles,
}

/// What a case of the engine suite needs before it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Logits,
    AllLogits,
    TopK,
    Pooled,
    Fork,
    Park,
    Rollback,
    Snapshot,
    Images,
    Adapters,
    SeveralAdapterSets,
    Activated,
    HotSwap,
    RefusedAdapters,
    TwoSequences,
    EightSequences,
    Memory,
    Positions,
    Budget,
    ShallowFork,
    Golden,
}

/// An engine with one model, as the engine suite sees it.
#[derive(Clone)]
pub struct EngineFixture {
    /// The engine's short name: what counts and minimums are kept by.
    pub engine: String,
    /// The model's name; empty for an engine that has but one.
    pub model: String,
    /// Makes an engine.
    pub make: MakeEngine,
    /// What a fresh engine declares.
    pub capability: Capability,
    /// Tokens of ordinary text.
    pub tokens: Range<TokenId>,
    /// The device that is asked for by name.
    pub device: Device,
    /// What kind of model it is.
    pub nature: Nature,
    /// Images: the first two have one grid, the third a grid that is no square. None when the engine does not see.
    pub images: Vec<Arc<dyn ImageSource>>,
    /// The images' names in the goldens, in the same order.
    pub image_names: Vec<String>,
    /// Reads an image's embedding `[tokens, hidden]` out of a fresh engine, past the seam, where the engine offers it.
    pub embedding: Option<ReadEmbedding>,
    /// Adapters that can be loaded, at least two, each of which changes the logits.
    pub adapters: Vec<NamedAdapter>,
    /// Activated adapters of the goldens.
    pub activated_adapters: Vec<NamedAdapter>,
    /// Adapters that come in both forms, for engines that take GGUF. The first two are ordinary ones, with different numbers in
    /// the same layers.
    pub adapter_twins: Vec<AdapterTwins>,
    /// Adapters that must be refused.
    pub refused_adapters: Vec<RefusedAdapter>,
    /// What the reference implementation computed for this model.
    pub golden: Option<Arc<Golden>>,
    /// How many times further from the reference an image's embedding, and logits after an image, may be than what an engine
    /// computes in single precision: 1 unless the engine's vision tower is known to round.
    pub vision_rounding: f32,
}

impl EngineFixture {
    /// A fixture without images, adapters and goldens; makes an engine once to read its capability.
    ///
    /// # Errors
    /// When the engine cannot be made.
    pub fn new(engine: &str, model: &str, device: Device, tokens: Range<TokenId>, make: MakeEngine) -> Result<Self> {
        let capability = make(&Setup { policy: DevicePolicy::Named(device), sequence_budget: None })?.capability();
        Ok(Self {
            engine: engine.into(),
            model: model.into(),
            make,
            capability,
            tokens,
            device,
            nature: Nature::default(),
            images: Vec::new(),
            image_names: Vec::new(),
            embedding: None,
            adapters: Vec::new(),
            activated_adapters: Vec::new(),
            adapter_twins: Vec::new(),
            refused_adapters: Vec::new(),
            golden: None,
            vision_rounding: 1.0,
        })
    }

    /// `engine` or `engine::model`, before every case's name.
    #[must_use]
    pub fn name(&self) -> String {
        if self.model.is_empty() { self.engine.clone() } else { format!("{}::{}", self.engine, self.model) }
    }

    /// A fresh engine on the fixture's device.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn engine(&self) -> Result<Box<dyn Engine>> {
        (self.make)(&self.setup())
    }

    /// How the suite makes engines when nothing else is said.
    #[must_use]
    pub fn setup(&self) -> Setup {
        Setup { policy: DevicePolicy::Named(self.device), sequence_budget: None }
    }

    /// `length` ordinary tokens that depend on `seed` alone.
    #[must_use]
    pub fn prompt(&self, length: usize, seed: u64) -> Vec<TokenId> {
        let count = u64::from(self.tokens.end.saturating_sub(self.tokens.start)).max(1);
        let mut random = Random::new(seed);
        (0..length).map(|_| self.tokens.start + (random.next() % count) as TokenId).collect()
    }

    /// The first of `needs` that is not met, in words.
    pub(crate) fn missing(&self, needs: &[Need]) -> Option<&'static str> {
        let capability = &self.capability;
        let adapters = capability.adapter_mode != AdapterMode::None && self.adapters.len() >= 2;
        needs.iter().find_map(|need| {
            let (met, words) = match need {
                Need::Logits => (capability.logprobs, "logprobs"),
                Need::AllLogits => (capability.prompt_logprobs, "prompt_logprobs"),
                Need::TopK => (capability.device_top_k, "device_top_k"),
                Need::Pooled => (capability.embeddings, "embeddings"),
                Need::Fork => (capability.fork, "fork"),
                Need::Park => (capability.park, "park"),
                Need::Rollback => (capability.max_rollback > 0, "max_rollback"),
                Need::Snapshot => (capability.snapshot_to_disk, "snapshot_to_disk"),
                Need::Images => (capability.image_input && self.images.len() >= 3, "image_input"),
                Need::Adapters => (adapters, "adapter_mode"),
                Need::SeveralAdapterSets => {
                    let sets = matches!(capability.adapter_mode, AdapterMode::Grouped | AdapterMode::MixedBatch);
                    (adapters && sets, "adapter_mode of several sets")
                }
                Need::Activated => (adapters && capability.activated_adapters, "activated_adapters"),
                Need::HotSwap => (adapters && capability.adapter_hot_swap, "adapter_hot_swap"),
                Need::RefusedAdapters => (adapters && !self.refused_adapters.is_empty(), "adapters to refuse"),
                Need::TwoSequences => (capability.max_sequences >= 2, "two sequences"),
                Need::EightSequences => (capability.max_sequences >= 8, "eight sequences"),
                Need::Memory => (self.nature.remembers, "a model with a memory"),
                Need::Positions => (self.nature.has_positions, "a model with positions"),
                Need::Budget => (self.nature.keeps_budget, "a sequence budget"),
                Need::ShallowFork => (capability.fork_is_shallow, "fork_is_shallow"),
                Need::Golden => (self.golden.is_some(), "goldens"),
            };
            (!met).then_some(words)
        })
    }
}

impl fmt::Debug for EngineFixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineFixture").field("name", &self.name()).finish_non_exhaustive()
    }
}

/// SplitMix64 (Steele et al. 2014): small, seeded, and the same everywhere.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator that depends on `seed` alone.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ 0xA076_1D64_78BD_642F)
    }

    /// The next number.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// The next number below `bound`, or 0 when `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % (bound.max(1) as u64)) as usize
    }
}

/// SplitMix64's finalizer: every bit of the result depends on every bit of the input.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}
