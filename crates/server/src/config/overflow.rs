//! When requests leave the engine here for the servers beside it.

use consort_core::PlacementRule;
use serde::{Deserialize, Serialize};

/// When a request goes to the servers, where an engine computes here as well. Whatever is set, it goes there when the engine
/// here has no room for it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OverflowSettings {
    /// With so many requests waiting here, the next goes to the servers. None: until the queue here is full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_queue: Option<u64>,
    /// For how long a request may wait here for its first token, in seconds, before it begins anew on the servers. None: as long
    /// as its own time limits allow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_wait_seconds: Option<f64>,
    /// Which share of the memory for sequences running requests may hold here before new ones go to the servers, above 0 and at
    /// most 1. None: until the engine refuses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_memory: Option<f32>,
    /// What happens when the servers fail before they have said anything.
    pub remote_failure: RemoteFailureRule,
    /// Where requests of each priority are answered, where their persona does not say it.
    pub priorities: PriorityPlacements,
}

/// What happens when the servers fail before they have said anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemoteFailureRule {
    /// The engine here answers, if it has room.
    #[default]
    LocalAnswers,
    /// The request fails.
    Fails,
}

/// Where requests of each priority are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PriorityPlacements {
    /// Of `batch`.
    pub batch: PlacementRule,
    /// Of `background`.
    pub background: PlacementRule,
    /// Of `interactive`, and texts that are embedded.
    pub interactive: PlacementRule,
    /// Of `realtime`.
    pub realtime: PlacementRule,
}

/// The longest time that may be waited here: beyond a day, leave it out.
const LONGEST_WAIT: f64 = 86_400.0;

impl OverflowSettings {
    /// Which key is wrong, and why.
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.local_wait_seconds.is_some_and(|seconds| !(0.001..=LONGEST_WAIT).contains(&seconds)) {
            return Err(("local_wait_seconds", "must be a millisecond at least, and a day at most"));
        }
        if self.local_memory.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
            return Err(("local_memory", "must be above 0 and at most 1"));
        }
        Ok(())
    }
}
