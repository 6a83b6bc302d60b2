//! People come and go: what that does to those who are talking.

use serde::{Deserialize, Serialize};

use super::random::Random;
use super::solo::{alone, ask};
use super::words;
use super::workload::{Ask, Block, Lane, Message, Phase, Speaker};

/// Lanes that the cancelled requests share.
const CANCEL_LANES: usize = 4;

/// What `churn` does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChurnConfig {
    /// Voices that talk all the time, first alone, then beside the churn.
    pub voices: usize,
    /// Replies of each voice, in each of the two phases.
    pub turns: usize,
    /// Length of a voice's prompt, in tokens, about.
    pub voice_prompt: usize,
    /// Length of a voice's reply, in tokens.
    pub voice_tokens: u32,
    /// Long prompts that come while the voices talk.
    pub long_prompts: usize,
    /// Length of each, in tokens, about.
    pub long_tokens: usize,
    /// Requests that arrive and end while the voices talk. Every other one is cancelled in the middle.
    pub arrivals: usize,
    /// The mean time between two arrivals, in milliseconds; the times are exponentially distributed.
    pub arrival_ms: u64,
    /// At the end: how many requests are cancelled after their first token, between one that is timed and another that is.
    pub cancels: usize,
}

impl Default for ChurnConfig {
    fn default() -> Self {
        Self {
            voices: 2,
            turns: 3,
            voice_prompt: 64,
            voice_tokens: 48,
            long_prompts: 1,
            long_tokens: 1024,
            arrivals: 6,
            arrival_ms: 1000,
            cancels: 32,
        }
    }
}

impl ChurnConfig {
    pub(super) fn block(&self, seed: u64, index: usize) -> Block {
        let mut random = Random::stream(seed, "churn", index as u64);
        let mut phases = vec![Phase { beside: None, lanes: self.voices(&mut random, "voice, alone") }];
        let mut lanes = self.voices(&mut random, "voice, beside churn");
        for number in 0..self.long_prompts {
            let asks = vec![fresh(&mut random, "long prompt", self.long_tokens, 2)];
            lanes.push(Lane { start_ms: self.arrival_ms * (number as u64 + 1) / 2, pause_ms: 0, asks });
        }
        let mut at = 0.0;
        for number in 0..self.arrivals {
            at -= (1.0 - random.unit()).ln() * self.arrival_ms as f64;
            let mut ask = fresh(&mut random, "arrival", self.voice_prompt, self.voice_tokens);
            if number % 2 == 1 {
                ask.group = "arrival, cancelled".into();
                ask.cancel_after = Some((self.voice_tokens / 2).max(1));
            }
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Arrivals lie within minutes.
            lanes.push(Lane { start_ms: at as u64, pause_ms: 0, asks: vec![ask] });
        }
        phases.push(Phase { beside: None, lanes });
        if self.cancels > 0 {
            let probe = |random: &mut Random, group: String| {
                alone(ask(group, vec![turn(random, self.voice_prompt)], self.voice_tokens.max(2)))
            };
            phases.push(probe(&mut random, "request, before cancels".into()));
            let lanes = (0..CANCEL_LANES.min(self.cancels)).map(|lane| {
                let count = (self.cancels - lane).div_ceil(CANCEL_LANES);
                let asks = (0..count)
                    .map(|_| {
                        let ask = fresh(&mut random, "cancelled at once", self.voice_prompt, self.voice_tokens);
                        Ask { cancel_after: Some(1), ..ask }
                    })
                    .collect();
                Lane { start_ms: 0, pause_ms: 0, asks }
            });
            let lanes = lanes.collect();
            phases.push(Phase { beside: None, lanes });
            phases.push(probe(&mut random, format!("request, after {} cancels", self.cancels)));
        }
        Block { phases }
    }

    fn voices(&self, random: &mut Random, group: &str) -> Vec<Lane> {
        let lane = |_| Lane {
            start_ms: 0,
            pause_ms: 0,
            asks: (0..self.turns.max(1)).map(|_| fresh(random, group, self.voice_prompt, self.voice_tokens)).collect(),
        };
        (0..self.voices.max(1)).map(lane).collect()
    }
}

fn turn(random: &mut Random, words: usize) -> Message {
    Message::text(Speaker::User, words::text(random, words.max(1)))
}

fn fresh(random: &mut Random, group: &str, words: usize, tokens: u32) -> Ask {
    ask(group.to_owned(), vec![turn(random, words)], tokens.max(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_cancelled_as_asked_for() {
        for cancels in [1, 3, 4, 999] {
            let block = ChurnConfig { cancels, ..ChurnConfig::default() }.block(1, 1);
            let count = |group: &str| block.asks().filter(|ask| ask.group == group).count();
            assert_eq!(count("cancelled at once"), cancels);
            assert_eq!((count("request, before cancels"), count(&format!("request, after {cancels} cancels"))), (1, 1));
            assert_eq!((count("voice, alone"), count("voice, beside churn"), count("long prompt")), (6, 6, 1));
            assert_eq!((count("arrival"), count("arrival, cancelled")), (3, 3));
        }
        assert_eq!(ChurnConfig { cancels: 0, ..ChurnConfig::default() }.block(1, 1).phases.len(), 2);
    }
}
