//! What kind of backend it is, as far as cases depend on it: facts that no capability declares.

/// Who keeps the pasts of finished requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The backend itself: it reuses them to the token, counts them, and gives them up.
    Here,
    /// A server, which tells how many tokens it reused, in whole blocks of so many.
    Elsewhere {
        /// Tokens of a block.
        block: usize,
    },
    /// A server, which says nothing of it.
    Untold,
}

impl Kept {
    /// Tokens of the blocks in which reuse is told.
    pub(super) fn block(self) -> Option<usize> {
        match self {
            Self::Here | Self::Untold => None,
            Self::Elsewhere { block } => Some(block),
        }
    }

    /// How much longer than for the backend itself a prompt must be for something of it to be kept: two blocks, as the last one
    /// of a prompt may be left out.
    pub(super) fn room(self) -> usize {
        2 * self.block().unwrap_or(0)
    }
}

/// What of [`BackendSetup`](super::BackendSetup)'s bounds is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bounds {
    /// So many run, so many wait, and priorities order who waits.
    SlotsAndQueue,
    /// Their sum: beyond it a request is refused. Who runs and who waits is a server's affair.
    Together,
}

/// What a backend does itself, what it leaves to a server, and what it offers. What it does not offer it must refuse, and cases of
/// their own ask that of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BackendNature {
    /// The fixture's engine is what computes here; else it is another one with the same weights, for comparison.
    pub engine_within: bool,
    /// How many requests it takes.
    pub bounds: Bounds,
    /// Metrics count the engine's work: batches, images, pasts.
    pub counts_work: bool,
    /// [`ModelBackend::memory`](consort_core::ModelBackend::memory) tells what the engine holds.
    pub tells_memory: bool,
    /// Who keeps pasts.
    pub pasts: Kept,
    /// [`BackendSetup::adapter_bytes`](super::BackendSetup::adapter_bytes) is kept, and adapters are pinned and paged.
    pub pages_adapters: bool,
    /// A request may use an adapter at another scale than 1.
    pub scales_adapters: bool,
    /// A request may use several adapters at once.
    pub stacks_adapters: bool,
    /// Every field of [`Sampling`](consort_core::Sampling) has its effect.
    pub every_sampler: bool,
    /// The largest logit bias, by size: infinite where a bias of −∞ forbids a token; 0 where there is none. Penalties beyond 2 come
    /// with the infinite one.
    pub largest_bias: f32,
    /// The hottest temperature.
    pub hottest: f32,
    /// The most log probabilities at each position.
    pub most_logprobs: u32,
    /// Tokens of the shortest prompt.
    pub shortest_prompt: usize,
}

impl BackendNature {
    /// An engine of this workspace behind this workspace's scheduler, which offers everything.
    pub const SCHEDULED: Self = Self {
        engine_within: true,
        bounds: Bounds::SlotsAndQueue,
        counts_work: true,
        tells_memory: true,
        pasts: Kept::Here,
        pages_adapters: true,
        scales_adapters: true,
        stacks_adapters: true,
        every_sampler: true,
        largest_bias: f32::INFINITY,
        hottest: f32::INFINITY,
        most_logprobs: 1024,
        shortest_prompt: 1,
    };
}
