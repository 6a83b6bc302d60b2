//! What can be set.

use std::time::Duration;

use consort_core::{Error, ErrorKind, PlacementRule, Priority, Result};
use serde::{Deserialize, Serialize};

/// When a request leaves the local side, and when it comes back.
///
/// Whatever is set, a request goes to the remote side when the local one refuses it for want of room. The bounds send it
/// there earlier, and are off by default: what is too long a queue depends on the device.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OverflowConfig {
    /// What holds for requests that do not say themselves where they may be answered.
    pub priorities: PriorityRules,
    /// With so many requests waiting for a local slot, the next goes to the remote side. `None`: until the local queue is full.
    pub local_queue: Option<u64>,
    /// For how long a request may wait for its first token on the local side. After that it begins anew on the remote one;
    /// and while somebody has been waiting for a local slot for as long, new requests do not try. `None`: as long as its own
    /// deadlines allow.
    pub local_wait: Option<Duration>,
    /// Which share of the local memory for sequences running requests may hold, above 0 and at most 1, before new ones go to
    /// the remote side. What the prefix cache holds does not count, as it is given up for room. The memory report is awaited
    /// in the stream, so a request then begins when its stream is first polled. `None`: until the local side refuses. It is
    /// without effect where the local side has no such bound.
    pub local_memory: Option<f32>,
    /// What happens when the remote side fails before it has said anything.
    pub remote_failure: RemoteFailure,
}

/// Where requests of each priority may be answered; `Any` is local first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PriorityRules {
    /// [`Priority::Batch`].
    pub batch: PlacementRule,
    /// [`Priority::Background`].
    pub background: PlacementRule,
    /// [`Priority::Interactive`], and texts that are embedded.
    pub interactive: PlacementRule,
    /// [`Priority::Realtime`].
    pub realtime: PlacementRule,
}

impl PriorityRules {
    /// The same for all.
    #[must_use]
    pub fn all(rule: PlacementRule) -> Self {
        Self { batch: rule, background: rule, interactive: rule, realtime: rule }
    }

    /// What holds for one priority.
    #[must_use]
    pub fn get(&self, priority: Priority) -> PlacementRule {
        match priority {
            Priority::Batch => self.batch,
            Priority::Background => self.background,
            Priority::Interactive => self.interactive,
            Priority::Realtime => self.realtime,
        }
    }
}

/// What happens to a request when the remote side fails, for a time only, before it has said anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemoteFailure {
    /// The local side answers, if it takes the request (again).
    #[default]
    LocalAnswers,
    /// The request fails.
    Fails,
}

impl OverflowConfig {
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |field: &str, value: String, message: &str| {
            Err(Error::new(ErrorKind::InvalidConfig, message)
                .with_operation("overflow::new")
                .with_context("field", field)
                .with_context("value", value))
        };
        if let Some(share) = self.local_memory.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
            return wrong("local_memory", share.to_string(), "a share of memory is above 0 and at most 1");
        }
        if self.local_wait == Some(Duration::ZERO) {
            return wrong(
                "local_wait",
                "0".into(),
                "no local side answers in no time; to ask the remote one first, set `priorities`",
            );
        }
        Ok(())
    }
}
