//! Choosing tokens: by seed and index alone, whoever else is served.

use consort_core::{GenerateRequest, Sampling};

use super::client::{Client, collect, request, text};
use super::{BackendFixture, List, Need};
use crate::case::{Outcome, ensure};

pub(super) fn add(list: &mut List) {
    list.add("a_seed_repeats_itself", &[], repeats);
    list.add("seeds_differ", &[Need::Memory], seeds_differ);
    list.add("a_seed_does_not_hear_its_neighbours", &[], neighbours);
    list.add("top_k_of_one_is_greedy", &[], top_one);
    list.add("a_tiny_top_p_is_greedy", &[], tiny_top_p);
    list.add("a_min_p_of_one_is_greedy", &[], min_p_one);
    list.add("top_k_keeps_to_the_best", &[], top_k);
    list.add("a_high_temperature_spreads", &[Need::Memory], spreads);
}

fn warm(seed: u64) -> Sampling {
    Sampling { temperature: 1.0, seed, ..Sampling::default() }
}

fn asked(fixture: &BackendFixture, sampling: Sampling) -> GenerateRequest {
    GenerateRequest { sampling, ..request(text(&fixture.engine.prompt(9, 700)), 16) }
}

fn repeats(fixture: &BackendFixture) -> Outcome {
    let (client, other) = (Client::new(fixture)?, Client::new(fixture)?);
    for seed in [0, 1, u64::MAX] {
        let one = client.ask(asked(fixture, warm(seed)))?;
        let two = client.ask(asked(fixture, warm(seed)))?;
        let three = other.ask(asked(fixture, warm(seed)))?;
        client.same(&one, &two, "one seed, twice")?;
        client.same(&one, &three, "one seed, in another backend")?;
    }
    Ok(())
}

fn seeds_differ(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let mut seen = Vec::new();
    for seed in 0..8 {
        let ids = client.ask(asked(fixture, warm(seed)))?.all();
        if !seen.contains(&ids) {
            seen.push(ids);
        }
    }
    ensure!(seen.len() >= 6, "eight seeds gave only {} different replies", seen.len());
    Ok(())
}

fn neighbours(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let alone = client.anew(&asked(fixture, warm(5)))?;
    let crowd: Vec<_> = (0..4)
        .map(|seed| {
            let prompt = fixture.engine.prompt(5 + 9 * seed as usize, 710 + seed);
            client.start(GenerateRequest { sampling: warm(seed), ..request(text(&prompt), 30) })
        })
        .collect::<Outcome<_>>()?;
    let beside = client.ask(asked(fixture, warm(5)))?;
    for stream in crowd {
        collect(stream)?;
    }
    client.same(&beside, &alone, "beside four others against alone")
}

fn equals_greedy(fixture: &BackendFixture, sampling: Sampling, what: &str) -> Outcome {
    let client = Client::new(fixture)?;
    let greedy = client.ask(asked(fixture, Sampling::default()))?;
    let other = client.ask(asked(fixture, sampling))?;
    client.same(&greedy, &other, what)
}

fn top_one(fixture: &BackendFixture) -> Outcome {
    equals_greedy(fixture, Sampling { top_k: 1, temperature: 3.0, ..warm(9) }, "the best one alone")
}

fn tiny_top_p(fixture: &BackendFixture) -> Outcome {
    equals_greedy(fixture, Sampling { top_p: 1e-6, ..warm(9) }, "a millionth of the probability")
}

fn min_p_one(fixture: &BackendFixture) -> Outcome {
    equals_greedy(fixture, Sampling { min_p: 1.0, ..warm(9) }, "as probable as the best")
}

fn top_k(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    for seed in 0..6 {
        let sampling = Sampling { top_k: 3, temperature: 2.0, ..warm(seed) };
        let reply = client.ask(GenerateRequest { logprobs: Some(3), ..asked(fixture, sampling) })?;
        for entry in &reply.logprobs {
            // A tie may put an equal one in its place.
            let worst = entry.top.last().map_or(f32::NEG_INFINITY, |last| last.logprob);
            ensure!(entry.chosen.logprob >= worst, "{} is not among the best three", entry.chosen.token);
        }
    }
    Ok(())
}

fn spreads(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let mut first = Vec::new();
    for seed in 0..24 {
        let sampling = Sampling { temperature: 4.0, ..warm(seed) };
        let reply = client.ask(GenerateRequest { max_tokens: Some(1), ..asked(fixture, sampling) })?;
        first.extend(reply.all());
    }
    first.sort_unstable();
    first.dedup();
    ensure!(first.len() >= 8, "a high temperature chose only {} different tokens of 24", first.len());
    Ok(())
}
