//! What an engine or a backend can do, declared.

use serde::Serialize;

use crate::{Error, Result};

/// How adapters can be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterMode {
    /// Not at all.
    #[default]
    None,
    /// One set for the whole engine at a time; changing it drops every sequence.
    Exclusive,
    /// One set per batch: sequences of one submit share it, and switching costs.
    Grouped,
    /// Each sequence of a batch has its own.
    MixedBatch,
}

/// What an engine or a backend declares that it can do.
///
/// Naming rules: a `bool` is named after the operation and is `true` when it works as documented on every input that the
/// other limits admit; a limit is a number with its unit in the name or in its documentation; an `Option` limit is `None`
/// when there is none. What is not declared is refused with [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported),
/// never emulated badly; what is declared is tested by the behaviour suites.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Capability {
    /// Images can be encoded and stand in a sequence.
    pub image_input: bool,
    /// How many sequences can be open at once.
    pub max_sequences: usize,
    /// The most tokens that one sequence can hold.
    pub max_sequence_tokens: usize,
    /// The most tokens over all steps of one submit: the bound on work per call.
    pub max_batch_tokens: usize,
    /// `fork` works.
    pub fork: bool,
    /// `fork` shares memory with its parent until one of them writes.
    pub fork_is_shallow: bool,
    /// `park` and `resume` work: pasts can be kept without a running slot.
    pub park: bool,
    /// How many tokens `rollback` can take back. 0: none.
    pub max_rollback: usize,
    /// How adapters apply.
    pub adapter_mode: AdapterMode,
    /// Adapters can be loaded, replaced and unloaded while sequences run.
    pub adapter_hot_swap: bool,
    /// Activated adapters (aLoRA) work: bindings act from their `active_from` on, `load_adapter` reads their invocation
    /// tokens, and `fork_with` and `resume_with` let pasts be shared before it.
    pub activated_adapters: bool,
    /// Logits of every position of a step can be had (`Want::All`), which prompt log probabilities need.
    pub prompt_logprobs: bool,
    /// Logits of the last position can be had, which sampling on our side and log probabilities need.
    pub logprobs: bool,
    /// Replies can be held to a [`Structure`](crate::Structure). An engine leaves it to the scheduler, which declares it
    /// where it knows the model's tokenizer.
    pub structured_output: bool,
    /// The engine can reduce logits to a top k on the device (`Want::TopK`).
    pub device_top_k: bool,
    /// Pooled hidden states can be had.
    pub embeddings: bool,
    /// `save` and `load` work.
    pub snapshot_to_disk: bool,
    /// The same sequence gives the same bits whatever shares its batch.
    pub batch_invariant: bool,
    /// Where the engine is not batch invariant, or computes chunks in another order: the largest difference of a logit
    /// (of unit scale) between two ways of computing the same thing. Two greedy choices may differ only where the top
    /// two logits are closer than this.
    pub logit_tolerance: f32,
}

impl Capability {
    /// Refuses `operation` unless `declared`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
    pub fn require(declared: bool, backend: &'static str, operation: &'static str) -> Result<()> {
        if declared { Ok(()) } else { Err(Error::unsupported(backend, operation)) }
    }
}
