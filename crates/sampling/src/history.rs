//! What was said, counted.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use consort_core::{Penalties, TokenId};

/// Where a token was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    InPrompt,
    InReply,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    anywhere: u32,
    in_reply: u32,
}

/// The tokens of prompt and reply, counted within the window, kept up one token at a time.
#[derive(Debug, Clone)]
pub(crate) struct History {
    penalties: Penalties,
    counts: HashMap<TokenId, Counts>,
    /// The tokens in the window, oldest first. Empty without a window: then nothing ever leaves.
    window: VecDeque<(TokenId, Said)>,
}

impl History {
    pub(crate) fn new(penalties: Penalties) -> Self {
        Self { penalties, counts: HashMap::new(), window: VecDeque::new() }
    }

    pub(crate) fn push(&mut self, token: TokenId, said: Said) {
        let counts = self.counts.entry(token).or_default();
        counts.anywhere += 1;
        counts.in_reply += u32::from(said == Said::InReply);
        let Some(length) = self.penalties.window else { return };
        self.window.push_back((token, said));
        if self.window.len() > length as usize
            && let Some((token, said)) = self.window.pop_front()
            && let Entry::Occupied(mut entry) = self.counts.entry(token)
        {
            let counts = entry.get_mut();
            counts.anywhere -= 1;
            counts.in_reply -= u32::from(said == Said::InReply);
            if counts.anywhere == 0 {
                entry.remove();
            }
        }
    }

    /// Repetition first, then frequency and presence. Nothing rises beyond the largest finite number.
    pub(crate) fn penalise(&self, row: &mut [f32]) {
        let Penalties { repetition, presence, frequency, .. } = self.penalties;
        for (&token, counts) in &self.counts {
            let Some(logit) = row.get_mut(token as usize) else { continue };
            let mut value = *logit;
            if value == f32::NEG_INFINITY {
                continue;
            }
            value = if value > 0.0 { value / repetition } else { value * repetition };
            if counts.in_reply > 0 {
                value -= frequency * counts.in_reply as f32 + presence;
            }
            *logit = value.min(f32::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counting_as_one_goes_equals_counting_anew(
            prompt in proptest::collection::vec(0u32..12, 0..30),
            reply in proptest::collection::vec(0u32..12, 0..30),
            window in proptest::option::of(1u32..40),
            repetition in 0.5f32..2.0, presence in -2.0f32..2.0, frequency in -2.0f32..2.0,
        ) {
            let mut history = History::new(Penalties { repetition, presence, frequency, window });
            prompt.iter().for_each(|&token| history.push(token, Said::InPrompt));
            reply.iter().for_each(|&token| history.push(token, Said::InReply));
            let row: Vec<f32> = (0..12u8).map(|i| f32::from(i) - 6.0).collect();
            let mut got = row.clone();
            history.penalise(&mut got);

            let said: Vec<(u32, bool)> =
                prompt.iter().map(|&t| (t, false)).chain(reply.iter().map(|&t| (t, true))).collect();
            let seen = &said[said.len().saturating_sub(window.map_or(usize::MAX, |w| w as usize))..];
            for (token, &logit) in row.iter().enumerate() {
                let anywhere = seen.iter().any(|&(t, _)| t as usize == token);
                let in_reply = seen.iter().filter(|&&(t, reply)| t as usize == token && reply).count();
                let mut expected = f64::from(logit);
                if anywhere {
                    expected = if expected > 0.0 { expected / f64::from(repetition) } else { expected * f64::from(repetition) };
                }
                if in_reply > 0 {
                    expected -= f64::from(presence) + in_reply as f64 * f64::from(frequency);
                }
                prop_assert!((f64::from(got[token]) - expected).abs() < 1e-3, "{token}: {} {expected}", got[token]);
            }
        }
    }
}
