//! What can be set.

use consort_core::{Capability, Error, ErrorKind, Result};

/// How a [`Scheduled`](crate::Scheduled) schedules. The defaults suit an engine with a few slots on one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// How many requests may wait for a slot. One more is refused at once as `Overloaded`.
    pub max_queued: usize,
    /// How many sequences run at once; never more than the engine's `max_sequences`.
    pub max_running: usize,
    /// Tokens in one engine batch; never more than the engine's `max_batch_tokens`. It bounds how long a step takes, and
    /// so how promptly a request is cancelled and how long a voice waits for somebody's long prompt.
    pub step_tokens: usize,
    /// Of these, how many may be prompts of `Background` and `Batch` work while somebody reads or listens.
    pub background_step_tokens: usize,
    /// Events that a reader may be behind before its sequence pauses.
    pub event_buffer: usize,
    /// Kept pasts, in bytes as the engine declares them. 0: no prefix cache.
    pub cache_bytes: u64,
    /// Kept pasts, in number.
    pub cache_entries: usize,
    /// At how many places of one prompt its past may be kept. Each costs a whole recurrent state.
    pub max_borders: usize,
    /// Tokens that a place must save beyond the one before it to be worth keeping. The place before the generation prompt
    /// is kept regardless.
    pub min_border_gain: usize,
    /// Prompts that are remembered to find what personas of one room share.
    pub remembered_prompts: usize,
    /// Finished turns that may wait to be kept; beyond it they are not.
    pub max_background: usize,
    /// Encoded images that are kept, in bytes of `f32` embeddings.
    pub image_cache_bytes: u64,
    /// Encoded images that are kept, in number.
    pub image_cache_entries: usize,
    /// Adapters that the engine holds, in bytes. Beyond it the least valuable that nobody needs is paged out, and is loaded
    /// again from its files when a request needs it. One that is loaded for the first time has no size yet and may exceed
    /// it for that moment.
    pub adapter_bytes: u64,
    /// Tokens of memory that are made sure of ahead of generation.
    pub reserve_ahead: usize,
    /// How many steps an adapter group stays, where the engine applies adapters to whole batches.
    pub group_steps: usize,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            max_queued: 64,
            max_running: 16,
            step_tokens: 512,
            background_step_tokens: 128,
            event_buffer: 256,
            cache_bytes: 512 << 20,
            cache_entries: 256,
            max_borders: 4,
            min_border_gain: 16,
            remembered_prompts: 32,
            max_background: 32,
            image_cache_bytes: 64 << 20,
            image_cache_entries: 32,
            adapter_bytes: 2 << 30,
            reserve_ahead: 64,
            group_steps: 16,
        }
    }
}

impl SchedulerConfig {
    /// The configuration within what the engine can do.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] that names a field which must not be 0, or an engine that can hold nothing.
    pub(crate) fn within(mut self, capability: &Capability) -> Result<Self> {
        let fields = [
            ("max_queued", self.max_queued),
            ("max_running", self.max_running),
            ("step_tokens", self.step_tokens),
            ("background_step_tokens", self.background_step_tokens),
            ("event_buffer", self.event_buffer),
            ("group_steps", self.group_steps),
        ];
        if let Some((field, _)) = fields.iter().find(|(_, value)| *value == 0) {
            return Err(Error::new(ErrorKind::InvalidConfig, "must be at least 1").with_context("field", *field));
        }
        if capability.max_sequences == 0 || capability.max_batch_tokens == 0 || capability.max_sequence_tokens < 2 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "the engine declares no room: max_sequences, max_batch_tokens or max_sequence_tokens is too small",
            ));
        }
        self.step_tokens = self.step_tokens.min(capability.max_batch_tokens);
        // Each running sequence must get its token in each step.
        self.max_running = self.max_running.min(capability.max_sequences).min(self.step_tokens);
        if !capability.park || self.cache_entries == 0 {
            self.cache_bytes = 0;
        }
        Ok(self)
    }
}
