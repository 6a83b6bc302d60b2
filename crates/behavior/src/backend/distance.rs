//! How far a backend is from the fixture's engine, and from itself: what tolerances are made of.

use std::fmt;

use consort_core::{AdapterSet, GenerateRequest, PromptPart};

use super::BackendFixture;
use super::client::{Client, adapter, along, around, collect, request, text};
use crate::case::Outcome;
use crate::rig::{Rig, set};

/// Differences of log probabilities over the replies to some requests.
#[derive(Debug, Clone)]
pub struct Distance {
    /// Of what.
    pub name: String,
    /// Every difference, the least first.
    pub differences: Vec<f32>,
    /// Tokens that the other side would not have chosen.
    pub turned: usize,
    /// Of these, the largest difference of logits between both choices.
    pub largest_lead: f32,
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |share: f64| {
            let index = (share * self.differences.len().saturating_sub(1) as f64) as usize;
            self.differences.get(index).copied().unwrap_or_default()
        };
        write!(
            f,
            "{}: {} log probabilities, median {:.5}, 99 of 100 {:.4}, largest {:.4}; {} choices turned, by {:.4} at most",
            self.name,
            self.differences.len(),
            at(0.5),
            at(0.99),
            at(1.0),
            self.turned,
            self.largest_lead
        )
    }
}

impl Distance {
    fn new(name: String) -> Self {
        Self { name, differences: Vec::new(), turned: 0, largest_lead: 0.0 }
    }

    fn sorted(mut self) -> Self {
        self.differences.sort_by(f32::total_cmp);
        self
    }
}

/// Lengths of the prompts.
const LENGTHS: [usize; 12] = [2, 3, 5, 9, 17, 33, 70, 120, 250, 400, 700, 1300];
/// Tokens of each reply, and log probabilities at each of its places.
const REPLY: u32 = 16;
const TOP: u32 = 5;

/// Greedy replies to texts, to texts around each picture, and to both with each adapter, against the fixture's engine; then all texts at
/// once against each alone.
///
/// # Errors
/// What a request gives.
pub fn distances(fixture: &BackendFixture) -> Result<Vec<Distance>, crate::case::Failure> {
    let client = Client::new(fixture)?;
    let engine = &fixture.engine;
    let texts: Vec<Vec<PromptPart>> =
        LENGTHS.iter().map(|length| text(&engine.prompt(*length, 4000 + *length as u64))).collect();
    let pictures: Vec<Vec<PromptPart>> = (0..2 * engine.images.len())
        .map(|index| {
            let image = &engine.images[index / 2];
            around(&engine.prompt(5 + 20 * (index % 2), 4100), image, &engine.prompt(6, 4101 + index as u64))
        })
        .collect();
    let mut found = Vec::new();
    for voice in std::iter::once(None).chain((0..engine.adapters.len()).map(Some)) {
        let mut rig = Rig::new(engine)?;
        let (name, adapters) = match voice {
            None => ("the model".to_owned(), AdapterSet::none()),
            Some(index) => {
                client.load(&engine.adapters[index].name, index)?;
                let key = rig.adapter(index)?;
                (engine.adapters[index].name.clone(), set(&[(&key, 1.0)])?)
            }
        };
        let uses = voice.map(|_| adapter(&name, 1.0)).unwrap_or_default();
        for (kind, prompts) in [("texts", &texts), ("pictures", &pictures)] {
            let mut distance = Distance::new(format!("{name}, {kind}"));
            for parts in prompts {
                let reply = client.ask(GenerateRequest { adapters: uses.clone(), ..asked(parts) })?;
                for place in along(&mut rig, &adapters, parts, &reply)? {
                    distance.differences.extend(place.distances.iter().map(|(_, distance)| *distance));
                    distance.turned += usize::from(place.token != place.own);
                    distance.largest_lead = distance.largest_lead.max(place.lead);
                }
            }
            found.push(distance.sorted());
        }
    }
    found.push(together(&client, &texts)?);
    Ok(found)
}

fn asked(parts: &[PromptPart]) -> GenerateRequest {
    GenerateRequest { logprobs: Some(TOP), ..request(parts.to_vec(), REPLY) }
}

/// Each text alone, and all of them at once, three times.
fn together(client: &Client<'_>, texts: &[Vec<PromptPart>]) -> Outcome<Distance> {
    let alone = texts.iter().map(|parts| client.anew(&asked(parts))).collect::<Outcome<Vec<_>>>()?;
    let mut distance = Distance::new("at once against alone".into());
    for _ in 0..3 {
        let streams = texts.iter().map(|parts| client.start(asked(parts))).collect::<Outcome<Vec<_>>>()?;
        for (stream, alone) in streams.into_iter().zip(&alone) {
            let reply = collect(stream)?;
            for (one, other) in reply.logprobs.iter().zip(&alone.logprobs) {
                if one.chosen.token != other.chosen.token {
                    distance.turned += 1;
                    let second = other.top.iter().find(|top| top.token == one.chosen.token);
                    let lead = second.map_or(f32::INFINITY, |second| other.chosen.logprob - second.logprob);
                    distance.largest_lead = distance.largest_lead.max(lead);
                    break;
                }
                distance.differences.push((one.chosen.logprob - other.chosen.logprob).abs());
            }
        }
    }
    Ok(distance.sorted())
}
