//! What can be set.

use std::time::Duration;

use consort_core::{Capability, Error, ErrorKind, Result};

/// How a [`Scheduled`](crate::Scheduled) schedules. The defaults suit an engine with a few slots on one device.
#[derive(Debug, Clone, PartialEq)]
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
    /// How long a step may take while somebody reads or listens: the prompts' part of it is made as small as the times of
    /// late steps tell. It is a goal and not a promise: one prompt token is always read, and a device may stumble. `None`:
    /// `step_tokens` alone bounds a step.
    pub max_step_time: Option<Duration>,
    /// After how long without being admitted or given a token a request counts as one priority class higher, and after
    /// twice as long as two. `None`: never, and whoever has a low priority may wait for ever.
    pub aging: Option<Duration>,
    /// How many tokens beyond its prompt, and beyond where it was, a request that was suspended or had to wait until it rose
    /// comes before it can be suspended (again).
    pub min_progress: usize,
    /// The share of the time that the engine may work, above 0 and at most 1, voices included. Below 1 it rests after each
    /// step, so that others who use the device have it regularly; all replies become slower by that factor.
    pub gpu_time_share: f32,
    /// Events that a reader may be behind before its sequence pauses.
    pub event_buffer: usize,
    /// Kept pasts, in bytes as the engine declares them. 0: no prefix cache.
    pub cache_bytes: u64,
    /// After how long without use a kept past is worth half. Where room is short, the past with the least tokens saved per
    /// byte, times 2^(−age / half-life), goes first.
    pub cache_half_life: Duration,
    /// Kept pasts, in number.
    pub cache_entries: usize,
    /// Parked pasts of requests that had to give their slot up, in bytes as the engine declares them. What goes beyond it
    /// is computed anew.
    pub parked_bytes: u64,
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
            max_step_time: Some(Duration::from_millis(200)),
            aging: Some(Duration::from_secs(10)),
            min_progress: 16,
            gpu_time_share: 1.0,
            event_buffer: 256,
            cache_bytes: 512 << 20,
            cache_half_life: Duration::from_secs(60),
            cache_entries: 256,
            parked_bytes: 512 << 20,
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
        let times = [("max_step_time", self.max_step_time), ("aging", self.aging)];
        if let Some((field, _)) = times.iter().find(|(_, value)| *value == Some(Duration::ZERO)) {
            return Err(Error::new(ErrorKind::InvalidConfig, "must be longer than 0; leave it out to do without")
                .with_context("field", *field));
        }
        if !(self.gpu_time_share > 0.0 && self.gpu_time_share <= 1.0) {
            return Err(Error::new(ErrorKind::InvalidConfig, "must be above 0 and at most 1")
                .with_context("field", "gpu_time_share")
                .with_context("gpu_time_share", self.gpu_time_share.to_string()));
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
