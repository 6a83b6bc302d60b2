//! One stream at a time: how fast a prompt is read, cold and warm, and how fast one reply comes.

use serde::{Deserialize, Serialize};

use super::random::Random;
use super::words;
use super::workload::{Ask, Block, Lane, Message, Part, Phase, Speaker};

/// Words of a short turn.
const SHORT: usize = 12;

/// What `solo` asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoloConfig {
    /// Lengths of prompts to be read, in tokens, about. Each is asked twice: cold, when nothing of it is known, and warm,
    /// as the next turn of the same conversation.
    pub prompt_tokens: Vec<usize>,
    /// Length of the prompt before the reply that is timed, in tokens, about.
    pub decode_prompt: usize,
    /// Length of that reply, in tokens.
    pub decode_tokens: u32,
}

impl Default for SoloConfig {
    fn default() -> Self {
        Self { prompt_tokens: vec![128, 512, 2048], decode_prompt: 64, decode_tokens: 128 }
    }
}

impl SoloConfig {
    pub(super) fn block(&self, seed: u64, index: usize) -> Block {
        let mut random = Random::stream(seed, "solo", index as u64);
        let mut phases = Vec::new();
        for &length in &self.prompt_tokens {
            let mut messages = vec![Message::text(Speaker::User, words::text(&mut random, length.max(1)))];
            phases.push(alone(ask(format!("prefill {length}, cold"), messages.clone(), 2)));
            messages.push(Message::text(Speaker::Assistant, words::text(&mut random, SHORT)));
            messages.push(Message::text(Speaker::User, words::text(&mut random, SHORT)));
            phases.push(alone(ask(format!("prefill {length}, warm"), messages, 2)));
        }
        let prompt = vec![Message::text(Speaker::User, words::text(&mut random, self.decode_prompt.max(1)))];
        phases.push(alone(ask("decode".into(), prompt, self.decode_tokens.max(2))));
        Block { phases }
    }
}

/// A request that comes alone.
pub(super) fn ask(group: String, messages: Vec<Message>, max_tokens: u32) -> Ask {
    Ask { group, messages, max_tokens, cancel_after: None, adapter: None }
}

pub(super) fn alone(ask: Ask) -> Phase {
    Phase { beside: None, lanes: vec![Lane { asks: vec![ask], ..Lane::default() }] }
}

/// A short reply with each adapter and each of the first block's pictures: code, weights and adapters are paged in, and
/// nothing of it comes again.
pub(super) fn warm_up(seed: u64, adapters: usize, pictures: usize) -> Block {
    let mut random = Random::stream(seed, "warm-up", 0);
    let mut phases = Vec::new();
    for index in 0..adapters.max(pictures).max(1) {
        let mut message = Message::text(Speaker::User, words::text(&mut random, 64));
        if index < pictures {
            message.parts.insert(0, Part::Picture(index));
        }
        let adapter = (index < adapters).then_some(index);
        phases.push(alone(Ask { adapter, ..ask("warm-up".into(), vec![message], 16) }));
    }
    Block { phases }
}
