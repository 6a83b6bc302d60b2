//! When requests leave the engine here for the servers beside it, from the file.

#[cfg(feature = "vllm")]
pub use present::{describe, settings};

#[cfg(feature = "vllm")]
mod present {
    use std::time::Duration;

    use consort::overflow::{OverflowConfig, PriorityRules, RemoteFailure};
    use consort::server::{OverflowSettings, RemoteFailureRule};
    use consort_core::{PlacementRule, Priority};

    /// As the backend has it.
    pub fn settings(settings: &OverflowSettings) -> OverflowConfig {
        let priorities = settings.priorities;
        OverflowConfig {
            priorities: PriorityRules {
                batch: priorities.batch,
                background: priorities.background,
                interactive: priorities.interactive,
                realtime: priorities.realtime,
            },
            local_queue: settings.local_queue,
            local_wait: settings.local_wait_seconds.map(Duration::from_secs_f64),
            local_memory: settings.local_memory,
            remote_failure: match settings.remote_failure {
                RemoteFailureRule::LocalAnswers => RemoteFailure::LocalAnswers,
                RemoteFailureRule::Fails => RemoteFailure::Fails,
            },
        }
    }

    /// The rule, in lines for people.
    pub fn describe(config: &OverflowConfig) -> Vec<String> {
        let mut whens = vec!["the engine here has no room".to_owned()];
        whens.extend(config.local_queue.map(|most| format!("{most} requests wait for it")));
        whens.extend(
            config.local_wait.map(|most| format!("{} s have passed without a first token", most.as_secs_f64())),
        );
        whens.extend(config.local_memory.map(|most| format!("requests hold {:.0}% of its memory", 100.0 * most)));
        let mut lines = vec![format!("here first; on the servers when {}", whens.join(", or "))];
        for (name, priority) in [
            ("batch", Priority::Batch),
            ("background", Priority::Background),
            ("interactive", Priority::Interactive),
            ("realtime", Priority::Realtime),
        ] {
            let rule = config.priorities.get(priority);
            if rule != PlacementRule::Any {
                lines.push(format!("of priority {name}: {}", placement(rule)));
            }
        }
        lines.push(match config.remote_failure {
            RemoteFailure::LocalAnswers => "when the servers fail: here".to_owned(),
            RemoteFailure::Fails => "when the servers fail: the request fails".to_owned(),
        });
        lines
    }

    fn placement(rule: PlacementRule) -> &'static str {
        match rule {
            PlacementRule::Any => "wherever there is room",
            PlacementRule::Local => "here and nowhere else",
            PlacementRule::PreferRemote => "on the servers first",
            PlacementRule::Remote => "on the servers and nowhere else",
        }
    }

    #[cfg(test)]
    mod tests {
        #![allow(clippy::unwrap_used)]
        use consort::server::Config;

        use super::*;

        #[test]
        fn the_rule_is_told_in_words() {
            let config = Config::parse(
                "[overflow]\nlocal_queue = 8\nlocal_wait_seconds = 1.5\nlocal_memory = 0.5\nremote_failure = \"fails\"\n\
                 priorities = { batch = \"prefer_remote\", realtime = \"local\" }\n",
            );
            let rule = settings(&config.unwrap().overflow);
            assert_eq!((rule.local_queue, rule.local_wait), (Some(8), Some(Duration::from_millis(1500))));
            let lines = describe(&rule);
            assert_eq!(
                lines,
                [
                    "here first; on the servers when the engine here has no room, or 8 requests wait for it, or 1.5 s have \
                     passed without a first token, or requests hold 50% of its memory",
                    "of priority batch: on the servers first",
                    "of priority realtime: here and nowhere else",
                    "when the servers fail: the request fails",
                ]
            );
            assert_eq!(describe(&OverflowConfig::default()).len(), 2);
            assert_eq!(settings(&Config::default().overflow), OverflowConfig::default());
        }
    }
}
