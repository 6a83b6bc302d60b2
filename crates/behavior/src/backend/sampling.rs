//! Choosing tokens: by seed and index alone, whoever else is served.

use consort_core::{
    Dry, EndTokens, ErrorKind, FinishReason, GenerateRequest, Penalties, Sampling, StopRules, TokenId, Xtc,
};

use super::client::{Client, collect, refusal, request, text};
use super::{BackendFixture, List, Need};
use crate::case::{Outcome, ensure};
use crate::rig::{Rig, first_maximum};
use crate::script::Script;

pub(super) fn add(list: &mut List) {
    list.add("a_seed_repeats_itself", &[], repeats);
    list.add("seeds_differ", &[Need::Remembers], seeds_differ);
    list.add("a_seed_does_not_hear_its_neighbours", &[], neighbours);
    list.add("top_k_of_one_is_greedy", &[], top_one);
    list.add("a_tiny_top_p_is_greedy", &[], tiny_top_p);
    list.add("a_min_p_of_one_is_greedy", &[], min_p_one);
    list.add("top_k_keeps_to_the_best", &[], top_k);
    list.add("a_high_temperature_spreads", &[Need::Remembers], spreads);
    list.add("a_logit_bias_forbids_and_forces", &[Need::Bias], bias);
    list.add("penalties_change_a_repetition", &[Need::AnyBias], penalties);
    list.add("presence_and_frequency_count_the_reply_alone", &[Need::AnyBias], reply_alone);
    list.add("penalties_are_those_of_the_engines_own_logits", &[Need::Remembers], mild_penalties);
    list.add("exclude_top_choices_excludes_the_top", &[Need::AllSamplers], xtc);
    list.add("every_filter_repeats_itself_by_its_seed", &[Need::AllSamplers], all_filters);
    list.add("min_tokens_hold_the_end_back", &[Need::Bias], min_tokens);
    list.add("ignored_end_tokens_are_tokens_like_others", &[Need::Bias], ignored_ends);
    list.add("sampling_without_meaning_is_refused", &[], nonsense);
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
    equals_greedy(
        fixture,
        Sampling { top_k: 1, temperature: fixture.nature.hottest.min(3.0), ..warm(9) },
        "the best one alone",
    )
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
        let sampling = Sampling { temperature: fixture.nature.hottest.min(4.0), ..warm(seed) };
        let reply = client.ask(GenerateRequest { max_tokens: Some(1), ..asked(fixture, sampling) })?;
        first.extend(reply.all());
    }
    first.sort_unstable();
    first.dedup();
    ensure!(first.len() >= 8, "a high temperature chose only {} different tokens of 24", first.len());
    Ok(())
}

fn bias(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let free = client.ask(asked(fixture, Sampling::default()))?;
    let first = *free.all().first().ok_or("a reply without tokens")?;
    let strongest = fixture.nature.largest_bias;
    let forbid = Sampling { logit_bias: vec![(first, -strongest)], ..Sampling::default() };
    let without = client.ask(asked(fixture, forbid))?;
    ensure!(!without.all().contains(&first), "the forbidden token {first} was chosen");
    // A token that is not what the model says.
    let wanted = fixture.engine.tokens.clone().find(|token| !free.all().contains(token)).ok_or("no other token")?;
    let force = Sampling { logit_bias: vec![(wanted, strongest.min(1e6))], ..warm(3) };
    let forced = client.ask(asked(fixture, force))?;
    ensure!(forced.all().iter().all(|&token| token == wanted), "{:?} is not {wanted} alone", forced.all());
    Ok(())
}

/// A prompt and a bias that make every model say one token again and again.
fn stuck(fixture: &BackendFixture, penalties: Penalties, dry: Option<Dry>) -> GenerateRequest {
    let token = fixture.engine.tokens.start + 1;
    let sampling = Sampling { logit_bias: vec![(token, 1e4)], penalties, dry, ..Sampling::default() };
    GenerateRequest { sampling, ..request(text(&[token, token, token]), 6) }
}

fn penalties(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let token = fixture.engine.tokens.start + 1;
    let plain = client.ask(stuck(fixture, Penalties::default(), None))?.all();
    ensure!(plain == vec![token; 6], "a bias of ten thousand gave {plain:?}");
    let none = Penalties::default();
    let dry = Dry { multiplier: 1e6, breakers: Vec::new(), ..Dry::default() };
    let cases = [
        ("a repetition penalty", Penalties { repetition: 1e5, ..none }, None, 0),
        ("a presence penalty", Penalties { presence: 1e5, ..none }, None, 1),
        ("a frequency penalty", Penalties { frequency: 4e3, ..none }, None, 3),
        ("DRY", none, Some(dry), 0),
    ];
    for (what, penalties, dry, spared) in cases {
        let reply = client.ask(stuck(fixture, penalties, dry))?.all();
        let before = reply.iter().take_while(|&&other| other == token).count();
        ensure!(before == spared, "{what}: the token came {before} times before another, not {spared}: {reply:?}");
    }
    Ok(())
}

/// The logits with penalties on what was said, as their inventors define them.
fn penalised(row: &[f32], penalties: &Penalties, prompt: &[TokenId], said: &[TokenId]) -> Vec<f32> {
    let mut row = row.to_vec();
    for (id, logit) in row.iter_mut().enumerate() {
        let id = id as TokenId;
        let count = said.iter().filter(|said| **said == id).count();
        if count > 0 || prompt.contains(&id) {
            *logit = if *logit > 0.0 { *logit / penalties.repetition } else { *logit * penalties.repetition };
        }
        if count > 0 {
            *logit -= penalties.presence + penalties.frequency * count as f32;
        }
    }
    row
}

/// Penalties of a size that every server takes: each token is the best one under the engine's own logits, less what the
/// penalties take from them. Each of them must have turned a choice.
fn mild_penalties(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let none = Penalties::default();
    for (what, penalties) in [
        ("a repetition penalty", Penalties { repetition: 1.5, ..none }),
        ("a presence penalty", Penalties { presence: 2.0, ..none }),
        ("a frequency penalty", Penalties { frequency: 1.5, ..none }),
        ("all three", Penalties { repetition: 1.2, presence: 1.0, frequency: 0.5, window: None }),
    ] {
        let mut turned = 0;
        for seed in 720..728 {
            let prompt = fixture.engine.prompt(9, seed);
            let sampling = Sampling { penalties, ..Sampling::default() };
            let reply = client.ask(GenerateRequest { sampling, ..request(text(&prompt), 24) })?.all();
            let mut rig = Rig::new(&fixture.engine)?;
            let seq = rig.open()?;
            let mut row = rig.read(seq, &Script::text(&prompt))?;
            for (index, &token) in reply.iter().enumerate() {
                let lowered = penalised(&row, &penalties, &prompt, &reply[..index]);
                let best = first_maximum(&lowered);
                let lead = lowered[best as usize] - lowered[token as usize];
                let is_best = token == best || (!fixture.is_exact() && lead <= fixture.oracle_tolerance);
                ensure!(is_best, "{what}: token {index} is {token}, and {best} leads by {lead}: {reply:?}");
                turned += u32::from(token != first_maximum(&row) && token == best);
                if index + 1 < reply.len() {
                    row = rig.read(seq, &Script::at((prompt.len() + index) as u32).then_text(&[token]))?;
                }
            }
        }
        ensure!(turned > 0, "{what} turned no choice of eight replies: this case would not notice it");
    }
    Ok(())
}

fn reply_alone(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let token = fixture.engine.tokens.start + 1;
    let penalties = Penalties { presence: 1e5, frequency: 1e5, ..Penalties::default() };
    let first = client.ask(stuck(fixture, penalties, None))?.all().first().copied();
    ensure!(first == Some(token), "a token of the prompt counts: {first:?} came");
    Ok(())
}

fn xtc(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let tokens = fixture.engine.tokens.clone();
    let (best, second) = (tokens.start + 1, tokens.start + 2);
    let sampling = Sampling {
        // Two likely ones, far above the others.
        logit_bias: vec![(best, 1e4), (second, 1e4)],
        xtc: Some(Xtc { probability: 1.0, threshold: 1e-6 }),
        ..Sampling::default()
    };
    let plain = client.ask(asked(fixture, Sampling { xtc: None, ..sampling.clone() }))?.all();
    let excluded = client.ask(GenerateRequest { max_tokens: Some(1), ..asked(fixture, sampling) })?.all();
    let likely = |token: &TokenId| [best, second].contains(token);
    ensure!(plain.iter().chain(&excluded).all(likely), "{plain:?} and {excluded:?}");
    // Of the two likely ones only the less likely may stay, and without the filter the other one is chosen.
    ensure!(excluded.first().is_some_and(|token| plain.first() != Some(token)), "{plain:?} and {excluded:?}");
    Ok(())
}

fn all_filters(fixture: &BackendFixture) -> Outcome {
    let (client, other) = (Client::new(fixture)?, Client::new(fixture)?);
    let sampling = Sampling {
        top_k: 40,
        typical_p: 0.95,
        top_p: 0.95,
        min_p: 0.01,
        top_n_sigma: Some(3.0),
        xtc: Some(Xtc { probability: 0.5, threshold: 0.05 }),
        penalties: Penalties { repetition: 1.1, presence: 0.3, frequency: 0.1, window: Some(20) },
        dry: Some(Dry { breakers: Vec::new(), ..Dry::default() }),
        ..warm(77)
    };
    let one = client.ask(asked(fixture, sampling.clone()))?;
    let two = client.anew(&asked(fixture, sampling.clone()))?;
    let three = other.ask(asked(fixture, sampling))?;
    client.same(&one, &two, "every filter, twice")?;
    client.same(&one, &three, "every filter, in another backend")
}

fn min_tokens(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let Some(&end) = client.backend.info().stop_tokens.first() else { return Ok(()) };
    let strong = fixture.nature.largest_bias.min(1e4);
    let sampling = Sampling { logit_bias: vec![(end, strong)], ..Sampling::default() };
    let at_once = client.ask(asked(fixture, sampling.clone()))?;
    ensure!(at_once.reason == FinishReason::EndToken(end) && at_once.ids.is_empty(), "{:?}", at_once.reason);
    let stop = StopRules { min_tokens: 5, ..StopRules::default() };
    let later = client.ask(GenerateRequest { stop, ..asked(fixture, sampling) })?;
    ensure!(later.ids.len() == 5, "the end came after {} tokens, not after 5", later.ids.len());
    ensure!(later.reason == FinishReason::EndToken(end), "{:?}", later.reason);
    Ok(())
}

fn ignored_ends(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let Some(&end) = client.backend.info().stop_tokens.first() else { return Ok(()) };
    let strong = fixture.nature.largest_bias.min(1e4);
    let sampling = Sampling { logit_bias: vec![(end, strong)], ..Sampling::default() };
    let stop = StopRules { end_tokens: EndTokens::Ignore, ..StopRules::default() };
    let reply = client.ask(GenerateRequest { stop, ..asked(fixture, sampling) })?;
    ensure!(reply.reason == FinishReason::Length, "{:?}", reply.reason);
    ensure!(reply.ids == vec![end; 16], "{:?} is not the end token sixteen times", reply.ids);
    Ok(())
}

fn nonsense(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let vocabulary = client.backend.info().vocab_size as TokenId;
    let none = Sampling::default;
    let cases = [
        ("a typical p of 0", Sampling { typical_p: 0.0, ..none() }),
        ("a negative sigma", Sampling { top_n_sigma: Some(-1.0), ..none() }),
        ("a probability of 2", Sampling { xtc: Some(Xtc { probability: 2.0, threshold: 0.1 }), ..none() }),
        (
            "a repetition penalty of 0",
            Sampling { penalties: Penalties { repetition: 0.0, ..Penalties::default() }, ..none() },
        ),
        ("DRY of a base below 1", Sampling { dry: Some(Dry { base: 0.5, ..Dry::default() }), ..none() }),
        ("a bias of infinity", Sampling { logit_bias: vec![(1, f32::INFINITY)], ..none() }),
        ("a bias beyond the vocabulary", Sampling { logit_bias: vec![(vocabulary, 1.0)], ..none() }),
    ];
    for (what, sampling) in cases {
        let error = refusal(&client, asked(fixture, sampling), ErrorKind::InvalidRequest, what)?;
        ensure!(error.context().any(|(key, _)| key == "field"), "{what}: the error names no field: {error}");
    }
    Ok(())
}
