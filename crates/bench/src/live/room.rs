//! Personas in one conversation that grows: the workload this project is about.
//!
//! What all personas share comes first (the scene, the transcript), and what makes each one itself comes last, as a note in
//! the final user turn. In a round all of them answer at once. The transcript of the next round holds *scripted* replies and
//! not what a target said, so that every target reads the same words whatever it answers.

use serde::{Deserialize, Serialize};

use super::random::Random;
use super::words;
use super::workload::{Ask, Block, Lane, Message, Neighbour, Part, Phase, Speaker};

/// What a `room` is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoomConfig {
    /// How many personas answer in each round.
    pub personas: usize,
    /// How many rounds there are. The first reads the scene: it is counted as cold, the others as warm.
    pub rounds: usize,
    /// Length of the scene, in tokens, about.
    pub scene_tokens: usize,
    /// Length of what is said between two rounds, in tokens, about.
    pub turn_tokens: usize,
    /// Length of a reply, in tokens.
    pub reply_tokens: u32,
    /// How much later each persona begins than the one before it, in milliseconds.
    pub stagger_ms: u64,
    /// How many adapters there are: persona p speaks with the adapter p mod this. 0: none.
    pub adapters: usize,
    /// How many pictures the scene shows.
    pub pictures: usize,
    /// Width and height of a picture, in pixels.
    pub picture_side: u32,
}

impl Default for RoomConfig {
    fn default() -> Self {
        Self {
            personas: 4,
            rounds: 4,
            scene_tokens: 512,
            turn_tokens: 32,
            reply_tokens: 48,
            stagger_ms: 0,
            adapters: 0,
            pictures: 0,
            picture_side: 256,
        }
    }
}

impl RoomConfig {
    pub(super) fn block(&self, seed: u64, index: usize, name: &str, beside: Option<Neighbour>) -> Block {
        let mut random = Random::stream(seed, name, index as u64);
        let mut transcript = vec![Message::text(Speaker::System, words::text(&mut random, self.scene_tokens.max(1)))];
        // The family's template takes pictures from the user only.
        let mut shown: Vec<Part> =
            (0..self.pictures).map(|picture| Part::Picture(index * self.pictures + picture)).collect();
        let mut phases = Vec::new();
        for round in 0..self.rounds.max(1) {
            let mut said = std::mem::take(&mut shown);
            said.push(Part::Text(format!("Guest: {}", words::text(&mut random, self.turn_tokens.max(1)))));
            let temperature = if round == 0 { "cold" } else { "warm" };
            let lanes = (0..self.personas.max(1)).map(|persona| {
                let mut parts = said.clone();
                parts.push(Part::Text(format!("\n\nYou are persona {}. Answer as persona {0}.", persona + 1)));
                let mut messages = transcript.clone();
                messages.push(Message { role: Speaker::User, parts });
                let ask = Ask {
                    group: format!("{name}, {temperature}"),
                    messages,
                    max_tokens: self.reply_tokens.max(2),
                    cancel_after: None,
                    adapter: (self.adapters > 0).then(|| persona % self.adapters.max(1)),
                };
                Lane { start_ms: self.stagger_ms * persona as u64, pause_ms: 0, asks: vec![ask] }
            });
            phases.push(Phase { beside, lanes: lanes.collect() });
            transcript.push(Message { role: Speaker::User, parts: said });
            let replies: Vec<_> = (0..self.personas.max(1))
                .map(|persona| {
                    format!("Persona {}: {}", persona + 1, words::text(&mut random, self.reply_tokens as usize))
                })
                .collect();
            transcript.push(Message::text(Speaker::Assistant, replies.join("\n")));
        }
        Block { phases }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn personas_share_all_but_their_note_and_rounds_grow() {
        let config = RoomConfig { personas: 3, rounds: 2, adapters: 2, pictures: 1, ..RoomConfig::default() };
        let block = config.block(1, 1, "room", None);
        assert_eq!(block.phases.len(), 2);
        let asks: Vec<_> = block.phases[0].lanes.iter().map(|lane| &lane.asks[0]).collect();
        assert_eq!(asks.iter().map(|ask| ask.adapter).collect::<Vec<_>>(), [Some(0), Some(1), Some(0)]);
        assert_eq!(asks[0].messages[0], asks[2].messages[0]);
        let last = |ask: &Ask| ask.messages.last().unwrap().parts.clone();
        let (one, two) = (last(asks[0]), last(asks[1]));
        assert_eq!(one[..one.len() - 1], two[..two.len() - 1]);
        assert_ne!(one.last(), two.last());
        assert_eq!(one[0], Part::Picture(1));
        let second = &block.phases[1].lanes[0].asks[0];
        assert_eq!((second.messages.len(), second.group.as_str()), (4, "room, warm"));
        // The shared part of the first round stands unchanged in the second.
        assert_eq!(second.messages[1].parts[..], one[..one.len() - 1]);
    }
}
