//! Who gets how many tokens of the next step.

use consort_core::{AdapterSet, Priority};

/// What the plan needs to know of a sequence that can take part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    /// Which one, for the caller.
    pub(crate) index: usize,
    /// What it came with.
    pub(crate) priority: Priority,
    /// The same, raised by what it has waited.
    pub(crate) rank: Priority,
    /// Older is smaller.
    pub(crate) age: u64,
    /// Its next step is a reply's next token.
    pub(crate) decoding: bool,
}

/// The budget of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Tokens in all.
    pub(crate) tokens: usize,
    /// Tokens of `Background` and `Batch` prompts while somebody reads or listens.
    pub(crate) background: usize,
    /// Tokens of prompts while somebody reads or listens to a reply that is being generated.
    pub(crate) prompts: usize,
}

/// First one token for every sequence that is generating, by priority, then prompts with what is left: the highest rank
/// first and of these the oldest. A voice so never waits for a prompt longer than one step. `chunk(index, limit)` tells how
/// many tokens a prompt's next step can take.
pub(crate) fn plan(
    mut candidates: Vec<Candidate>,
    budget: Budget,
    mut chunk: impl FnMut(usize, usize) -> usize,
) -> Vec<(usize, usize)> {
    let order = |candidate: &Candidate| if candidate.decoding { candidate.priority } else { candidate.rank };
    candidates.sort_by(|a, b| b.decoding.cmp(&a.decoding).then(order(b).cmp(&order(a))).then(a.age.cmp(&b.age)));
    let somebody_waits = candidates.iter().any(|candidate| candidate.priority >= Priority::Interactive);
    let (mut left, mut background) = (budget.tokens, budget.background);
    let mut prompts = if listened_to(&candidates) { budget.prompts } else { usize::MAX };
    let mut steps = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let mut limit = if candidate.decoding { left.min(1) } else { left.min(prompts) };
        let quiet = !candidate.decoding && somebody_waits && candidate.rank < Priority::Interactive;
        if quiet {
            limit = limit.min(background);
        }
        if limit == 0 {
            continue;
        }
        let tokens = chunk(candidate.index, limit).min(limit);
        if tokens > 0 {
            steps.push((candidate.index, tokens));
            left -= tokens;
            if !candidate.decoding {
                prompts -= tokens;
            }
            if quiet {
                background -= tokens;
            }
        }
    }
    steps
}

/// Whether a reply that somebody reads or listens to is being generated.
fn listened_to(candidates: &[Candidate]) -> bool {
    candidates.iter().any(|candidate| candidate.decoding && candidate.priority >= Priority::Interactive)
}

/// Turns of adapter groups, for engines that apply adapters to a whole batch.
///
/// The group that waited longest comes next and stays for some steps, as each switch costs; a group without a sequence of
/// the highest priority at hand stays for one step only. So every group comes in turn, and a voice waits for at most one
/// step of each other group.
#[derive(Debug, Default)]
pub(crate) struct GroupTurns {
    current: Option<AdapterSet>,
    left: usize,
    /// Groups that were served, least recently first.
    served: Vec<AdapterSet>,
}

impl GroupTurns {
    /// Chooses the group of the next step. `ready` is (adapters, priority, age) of every sequence that can take part.
    pub(crate) fn choose(&mut self, ready: &[(&AdapterSet, Priority, u64)], steps: usize) -> Option<AdapterSet> {
        let stays = |set: &AdapterSet| ready.iter().any(|(other, ..)| *other == set);
        if let Some(current) = self.current.clone().filter(|set| self.left > 0 && stays(set)) {
            self.left -= 1;
            return Some(current);
        }
        self.served.retain(stays);
        let turn = |set: &AdapterSet| self.served.iter().position(|other| other == set).map_or(0, |place| place + 1);
        let (next, ..) =
            ready.iter().min_by(|a, b| turn(a.0).cmp(&turn(b.0)).then(b.1.cmp(&a.1)).then(a.2.cmp(&b.2)))?;
        let next = (*next).clone();
        let best = |ready: &mut dyn Iterator<Item = Priority>| ready.max();
        let highest = best(&mut ready.iter().map(|(_, priority, _)| *priority));
        let own = best(&mut ready.iter().filter(|(set, ..)| **set == next).map(|(_, priority, _)| *priority));
        self.left = if own == highest { steps.saturating_sub(1) } else { 0 };
        self.served.retain(|set| *set != next);
        self.served.push(next.clone());
        self.current = Some(next.clone());
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use consort_core::{AdapterBinding, AdapterKey};

    use super::*;

    fn candidate(index: usize, priority: Priority, decoding: bool) -> Candidate {
        Candidate { index, priority, rank: priority, age: index as u64, decoding }
    }

    #[test]
    fn generating_sequences_come_first_then_the_highest_priority_then_the_oldest() {
        let candidates = vec![
            candidate(0, Priority::Batch, false),
            candidate(1, Priority::Interactive, false),
            candidate(2, Priority::Realtime, false),
            candidate(3, Priority::Batch, true),
            candidate(4, Priority::Realtime, true),
        ];
        let budget = Budget { tokens: 20, background: 4, prompts: usize::MAX };
        let steps = plan(candidates.clone(), budget, |_, limit| limit.min(8));
        assert_eq!(steps, [(4, 1), (3, 1), (2, 8), (1, 8), (0, 2)]);
        let steps = plan(candidates.clone(), Budget { tokens: 100, ..budget }, |_, limit| limit.min(50));
        assert_eq!(steps, [(4, 1), (3, 1), (2, 50), (1, 48)]);
        let steps = plan(candidates.clone(), Budget { tokens: 100, ..budget }, |_, limit| limit.min(30));
        assert_eq!(steps.last(), Some(&(0, 4)));
        let alone = plan(vec![candidates[0]], Budget { tokens: 100, ..budget }, |_, limit| limit.min(30));
        assert_eq!(alone, [(0, 30)]);
        assert!(plan(candidates.clone(), budget, |_, _| 0).is_empty());
        // A batch prompt that has waited comes before one that has not, and is no longer held back.
        let mut aged = candidates.clone();
        aged[0].rank = Priority::Realtime;
        let steps = plan(aged, Budget { tokens: 100, ..budget }, |_, limit| limit.min(50));
        assert_eq!(steps, [(4, 1), (3, 1), (0, 50), (2, 48)]);
        // What may take only so long: voices first, prompts share what is left of the time.
        let steps = plan(candidates.clone(), Budget { tokens: 100, prompts: 12, ..budget }, |_, limit| limit.min(8));
        assert_eq!(steps, [(4, 1), (3, 1), (2, 8), (1, 4)]);
        // Nobody listens: a batch reply that is being generated holds no prompt up.
        let quiet = vec![candidates[1], candidates[3]];
        let steps = plan(quiet, Budget { tokens: 100, prompts: 12, ..budget }, |_, limit| limit.min(50));
        assert_eq!(steps, [(3, 1), (1, 50)]);
    }

    #[test]
    fn groups_take_turns() {
        let set = |id: &str| {
            let key = AdapterKey { id: id.into(), generation: 1 };
            AdapterSet::new([AdapterBinding::new(key, 1.0)]).unwrap_or_default()
        };
        let (a, b, c) = (set("a"), set("b"), set("c"));
        let ready = [
            (&a, Priority::Interactive, 0),
            (&b, Priority::Interactive, 1),
            (&c, Priority::Batch, 2),
            (&a, Priority::Batch, 3),
        ];
        let mut turns = GroupTurns::default();
        let order: Vec<_> = (0..8).filter_map(|_| turns.choose(&ready, 3)).collect();
        let expected: Vec<_> = [&a, &a, &a, &b, &b, &b, &c, &a].into_iter().cloned().collect();
        assert_eq!(order, expected);
        // A group that has nothing more to do gives its turn up.
        assert_eq!(turns.choose(&ready[1..2], 3), Some(b));
        assert_eq!(turns.choose(&[], 3), None);
    }
}
