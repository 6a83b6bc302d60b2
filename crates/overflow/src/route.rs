//! Which side, and why.

use consort_core::{ContentPart, GenerateRequest, Metrics, PlacementRule, Prompt, PromptPart};
use serde::Serialize;

use crate::config::OverflowConfig;

/// One of the two backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The one that is asked first.
    Local,
    /// The one that takes what the local side cannot.
    Remote,
}

impl Side {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Local => Self::Remote,
            Self::Remote => Self::Local,
        }
    }

    /// `local` or `remote`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }
}

/// Why a request was sent to a side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// Nothing spoke against the local side.
    First,
    /// The request says so.
    Placement,
    /// The configuration says so of its priority.
    Priority,
    /// The other side does not declare what the request needs, or does not have its adapters.
    Ability,
    /// As many wait for a local slot as [`local_queue`](OverflowConfig::local_queue) allows.
    Queue,
    /// Somebody has been waiting for a local slot for [`local_wait`](OverflowConfig::local_wait).
    Wait,
    /// Running requests hold the share of memory that [`local_memory`](OverflowConfig::local_memory) allows.
    Memory,
    /// The other side was asked before and is overloaded.
    Overloaded,
    /// The other side was asked before and has not the memory.
    OutOfMemory,
    /// The local side was asked before and gave no token within [`local_wait`](OverflowConfig::local_wait).
    Slow,
    /// The other side was asked before and cannot do it, or the prompt is too long for it.
    Unable,
    /// The other side was asked before and failed.
    Broken,
}

impl Reason {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 12] = [
        Self::First,
        Self::Placement,
        Self::Priority,
        Self::Ability,
        Self::Queue,
        Self::Wait,
        Self::Memory,
        Self::Overloaded,
        Self::OutOfMemory,
        Self::Slow,
        Self::Unable,
        Self::Broken,
    ];

    /// In one word, as it stands in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Placement => "placement",
            Self::Priority => "priority",
            Self::Ability => "ability",
            Self::Queue => "queue",
            Self::Wait => "wait",
            Self::Memory => "memory",
            Self::Overloaded => "overloaded",
            Self::OutOfMemory => "out_of_memory",
            Self::Slow => "slow",
            Self::Unable => "unable",
            Self::Broken => "broken",
        }
    }

    /// Whether the other side was asked before.
    #[must_use]
    pub fn is_move(self) -> bool {
        matches!(self, Self::Overloaded | Self::OutOfMemory | Self::Slow | Self::Unable | Self::Broken)
    }
}

/// Where a request is sent, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Route {
    /// To this side.
    pub side: Side,
    /// For this reason.
    pub reason: Reason,
}

/// What a request needs that a side may not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Needs {
    pub(crate) images: bool,
    pub(crate) structure: bool,
    pub(crate) logprobs: bool,
    pub(crate) prompt_logprobs: bool,
    pub(crate) embeddings: bool,
    /// Of the prompt, where it can be told without a tokenizer.
    pub(crate) tokens: usize,
}

impl Needs {
    pub(crate) fn of(request: &GenerateRequest) -> Self {
        Self {
            structure: request.structure.is_some(),
            logprobs: request.logprobs.is_some(),
            prompt_logprobs: request.prompt_logprobs.is_some(),
            ..Self::of_prompt(&request.prompt)
        }
    }

    pub(crate) fn of_prompt(prompt: &Prompt) -> Self {
        match prompt {
            Prompt::Chat(chat) => {
                let mut content = chat.messages.iter().flat_map(|message| &message.content);
                Self { images: content.any(|part| matches!(part, ContentPart::Image(_))), ..Self::default() }
            }
            Prompt::Parts(parts) => {
                let tokens = |part: &PromptPart| match part {
                    PromptPart::Tokens(tokens) => tokens.len(),
                    PromptPart::Image(image) => image.grid().tokens(),
                };
                Self {
                    images: parts.iter().any(|part| matches!(part, PromptPart::Image(_))),
                    tokens: parts.iter().map(tokens).fold(0, usize::saturating_add),
                    ..Self::default()
                }
            }
        }
    }
}

/// What is known when a request comes.
pub(crate) struct Situation<'a> {
    pub(crate) config: &'a OverflowConfig,
    /// What the request says.
    pub(crate) placement: PlacementRule,
    /// What is configured for its priority.
    pub(crate) by_priority: PlacementRule,
    /// Whether the sides can do what it needs.
    pub(crate) able: (bool, bool),
    /// Asked for only when a bound is set.
    pub(crate) local_load: &'a dyn Fn() -> Metrics,
}

/// Where a request goes first, and what may come then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) route: Route,
    /// Whether the other side may be asked too.
    pub(crate) both: bool,
    /// Whether the local memory decides: it is asked before the request goes to the local side.
    pub(crate) by_memory: bool,
}

impl Plan {
    pub(crate) fn of(situation: &Situation<'_>) -> Self {
        let (rule, why) = match situation.placement {
            PlacementRule::Any => (situation.by_priority, Reason::Priority),
            said => (said, Reason::Placement),
        };
        let plan = |side, reason, both| Self { route: Route { side, reason }, both, by_memory: false };
        match (rule, situation.able) {
            (PlacementRule::Local, _) => plan(Side::Local, why, false),
            (PlacementRule::Remote, _) => plan(Side::Remote, why, false),
            (PlacementRule::PreferRemote, (_, true)) => plan(Side::Remote, why, situation.able.0),
            (PlacementRule::PreferRemote, (true, false)) => plan(Side::Local, Reason::Ability, false),
            // Neither can: the side that would be asked refuses in its own words.
            (PlacementRule::PreferRemote, (false, false)) => plan(Side::Remote, why, true),
            (PlacementRule::Any, (true, false)) => plan(Side::Local, Reason::First, false),
            (PlacementRule::Any, (false, true)) => plan(Side::Remote, Reason::Ability, false),
            (PlacementRule::Any, (false, false)) => plan(Side::Local, Reason::First, true),
            (PlacementRule::Any, (true, true)) => match Self::too_much(situation) {
                Some(reason) => plan(Side::Remote, reason, true),
                None => Self {
                    by_memory: situation.config.local_memory.is_some(),
                    ..plan(Side::Local, Reason::First, true)
                },
            },
        }
    }

    /// What speaks against the local side, as far as its counters tell.
    fn too_much(situation: &Situation<'_>) -> Option<Reason> {
        let OverflowConfig { local_queue, local_wait, .. } = *situation.config;
        if local_queue.is_none() && local_wait.is_none() {
            return None;
        }
        let load = (situation.local_load)();
        if local_queue.is_some_and(|most| load.queued >= most) {
            Some(Reason::Queue)
        } else if local_wait.is_some_and(|most| load.oldest_waiting >= most) {
            Some(Reason::Wait)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn plan(config: &OverflowConfig, placement: PlacementRule, by_priority: PlacementRule, able: (bool, bool)) -> Plan {
        let load = || Metrics { queued: 3, oldest_waiting: Duration::from_secs(2), ..Metrics::default() };
        Plan::of(&Situation { config, placement, by_priority, able, local_load: &load })
    }

    /// Every combination of what a request says, what its priority says and what the sides can: nothing that must stay
    /// leaves, and whoever can do it is asked.
    #[test]
    fn what_must_stay_stays_whatever_the_sides_can() {
        use PlacementRule::{Any, Local, PreferRemote, Remote};
        let bounds = [
            OverflowConfig::default(),
            OverflowConfig { local_queue: Some(3), ..OverflowConfig::default() },
            OverflowConfig { local_memory: Some(0.5), ..OverflowConfig::default() },
        ];
        for config in &bounds {
            for placement in [Any, Local, PreferRemote, Remote] {
                for by_priority in [Any, Local, PreferRemote, Remote] {
                    for able in [(true, true), (true, false), (false, true), (false, false)] {
                        let plan = plan(config, placement, by_priority, able);
                        let rule = if placement == Any { by_priority } else { placement };
                        match rule {
                            Local => assert!(plan.route.side == Side::Local && !plan.both, "{plan:?}"),
                            Remote => assert!(plan.route.side == Side::Remote && !plan.both, "{plan:?}"),
                            Any | PreferRemote => {
                                let can = |side| if side == Side::Local { able.0 } else { able.1 };
                                assert!(can(plan.route.side) || able == (false, false), "{able:?} {plan:?}");
                                assert_eq!(plan.both, able.0 == able.1, "{able:?} {plan:?}");
                            }
                        }
                        assert!(!plan.route.reason.is_move());
                        assert!(!plan.by_memory || (plan.both && plan.route.side == Side::Local));
                    }
                }
            }
        }
    }

    #[test]
    fn each_bound_is_reached_and_not_before() {
        let route = |config| plan(&config, PlacementRule::Any, PlacementRule::Any, (true, true)).route;
        let (local, default) = (Route { side: Side::Local, reason: Reason::First }, OverflowConfig::default());
        assert_eq!(route(default.clone()), local);
        assert_eq!(route(OverflowConfig { local_queue: Some(4), ..default.clone() }), local);
        let queue = route(OverflowConfig { local_queue: Some(3), ..default.clone() });
        assert_eq!(queue, Route { side: Side::Remote, reason: Reason::Queue });
        assert_eq!(route(OverflowConfig { local_wait: Some(Duration::from_secs(3)), ..default.clone() }), local);
        let wait = route(OverflowConfig { local_wait: Some(Duration::from_secs(2)), ..default });
        assert_eq!(wait, Route { side: Side::Remote, reason: Reason::Wait });
    }

    #[test]
    fn all_reasons_are_in_order() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
