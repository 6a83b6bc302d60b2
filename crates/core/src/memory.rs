//! Memory by kind, so that running out of it is foreseen and not met.

use serde::Serialize;

/// What an engine holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct MemoryReport {
    /// Model weights, memory-mapped ones included.
    pub weights: u64,
    /// Attention keys and values of running sequences and parked pasts; shared pages count once.
    pub kv_cache: u64,
    /// Recurrent and convolution states of running sequences and parked pasts.
    pub recurrent_state: u64,
    /// Adapters.
    pub adapters: u64,
    /// Encoded images.
    pub images: u64,
    /// Buffers that live between calls.
    pub scratch: u64,
    /// Of `kv_cache` and `recurrent_state`, what pasts in the prefix cache cost, as the engine declared each when it was
    /// parked. The scheduler fills it in; an engine cannot know, and says 0.
    pub kept_pasts: u64,
    /// The same of pasts that waiting requests have parked.
    pub suspended_pasts: u64,
    /// The most that `kv_cache` + `recurrent_state` may reach; `None` when unbounded.
    pub sequence_budget: Option<u64>,
}

impl MemoryReport {
    /// All kinds together. `kept_pasts` and `suspended_pasts` say whose some of it is, and are not counted again.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.kv_cache + self.recurrent_state + self.adapters + self.images + self.scratch
    }
}

/// What one sequence holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct SequenceMemory {
    /// Freed when this sequence alone is released.
    pub unique: u64,
    /// Shared with forks or parked pasts.
    pub shared: u64,
}
