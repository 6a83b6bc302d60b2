//! Adapters behind a backend: each to its own, and none in another's cache.

use consort_core::{AdapterUse, ErrorKind, GenerateRequest, block_on};

use super::client::{Client, adapter, collect, engines_own, refusal, request, text};
use super::{BackendFixture, List, Need};
use crate::case::{Outcome, ensure};

pub(super) fn add(list: &mut List) {
    list.add("an_adapter_is_the_engines_own", &[Need::Adapters], own);
    list.add("adapters_never_reach_each_others_cache", &[Need::Adapters], never_mixed);
    list.add("personas_in_turns_over_one_prompt", &[Need::Adapters], in_turns);
    list.add("personas_at_once_over_one_prompt", &[Need::Adapters], at_once);
    list.add("the_same_name_with_new_weights", &[Need::HotSwap], new_weights);
    list.add("replacing_while_a_stream_runs", &[Need::HotSwap], replaced_while_running);
    list.add("unloading_while_a_stream_runs", &[Need::HotSwap], unloaded_while_running);
    list.add("adapters_are_listed", &[Need::Adapters], listed);
    list.add("an_adapter_has_its_own_cache", &[Need::Adapters, Need::Reuse], own_cache);
    list.add("a_refused_adapter_leaves_the_old_one", &[Need::HotSwap], refused);
}

fn with(fixture: &BackendFixture, seed: u64, adapters: Vec<AdapterUse>) -> GenerateRequest {
    GenerateRequest { adapters, ..request(text(&fixture.kept(60, seed)), 10) }
}

fn own(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let parts = text(&fixture.engine.prompt(20, 1000));
    let scales: &[f32] = if fixture.nature.scales_adapters { &[1.0, 0.5] } else { &[1.0] };
    for index in 0..2 {
        let id = format!("persona-{index}");
        client.load(&id, index)?;
        for &scale in scales {
            let asked = GenerateRequest { adapters: adapter(&id, scale), ..request(parts.clone(), 10) };
            let reply = client.ask(asked)?;
            engines_own(fixture, &parts, &[(index, scale)], (&reply, 10), &format!("adapter {index} at {scale}"))?;
        }
    }
    Ok(())
}

/// The base model, two adapters and, where the backend offers them, their mixtures. The last one is the base model again.
fn voices(fixture: &BackendFixture) -> Vec<Vec<AdapterUse>> {
    let mut voices = vec![Vec::new(), adapter("one", 1.0), adapter("two", 1.0)];
    if fixture.nature.scales_adapters {
        voices.push(adapter("one", 0.5));
    }
    if fixture.nature.stacks_adapters {
        voices.push([adapter("one", 1.0), adapter("two", 1.0)].concat());
    }
    voices.push(adapter("one", 0.0));
    voices
}

fn loaded(fixture: &BackendFixture) -> Outcome<Client<'_>> {
    let client = Client::new(fixture)?;
    client.load("one", 0)?;
    client.load("two", 1)?;
    Ok(client)
}

fn never_mixed(fixture: &BackendFixture) -> Outcome {
    let client = loaded(fixture)?;
    let mut expected = Vec::new();
    for voice in voices(fixture) {
        expected.push(client.anew(&with(fixture, 1010, voice))?);
    }
    for (index, one) in expected.iter().enumerate().take(expected.len() - 1) {
        for other in &expected[..index] {
            ensure!(
                one.ids != other.ids || one.logprobs != other.logprobs,
                "voice {index} says what another says: this case would not notice a mix-up"
            );
        }
    }
    // Twice round, so that each finds what all others left.
    for round in 0..2 {
        for (index, voice) in voices(fixture).into_iter().enumerate() {
            let reply = client.ask(with(fixture, 1010, voice))?;
            client.same(&reply, &expected[index], &format!("voice {index}, round {round}, cached against anew"))?;
            client.settle()?;
        }
    }
    Ok(())
}

fn in_turns(fixture: &BackendFixture) -> Outcome {
    let client = loaded(fixture)?;
    let scene = fixture.kept(70, 1020);
    let mut transcript = scene;
    for turn in 0..6_usize {
        let voice = voices(fixture).swap_remove(turn % 3);
        let asked = GenerateRequest { adapters: voice, ..request(text(&transcript), 7) };
        let reply = client.ask(asked.clone())?;
        let anew = client.anew(&asked)?;
        client.same(&reply, &anew, &format!("turn {turn} of a room, cached against anew"))?;
        let special = fixture.engine.tokens.end;
        transcript.extend(reply.ids.iter().filter(|id| **id < special));
        transcript.extend(fixture.engine.prompt(3, 1021 + turn as u64));
        client.settle()?;
    }
    Ok(())
}

fn at_once(fixture: &BackendFixture) -> Outcome {
    let client = loaded(fixture)?;
    let requests: Vec<_> = voices(fixture).into_iter().map(|voice| with(fixture, 1030, voice)).collect();
    let expected = requests.iter().map(|one| client.anew(one)).collect::<Outcome<Vec<_>>>()?;
    let streams = requests.iter().map(|one| client.start(one.clone())).collect::<Outcome<Vec<_>>>()?;
    for (index, (stream, expected)) in streams.into_iter().zip(&expected).enumerate() {
        let reply = collect(stream)?;
        client.same(&reply, expected, &format!("voice {index} of all at once, against alone"))?;
    }
    Ok(())
}

fn new_weights(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let asked = with(fixture, 1040, adapter("persona", 1.0));
    let first = client.load("persona", 0)?;
    let old = client.ask(asked.clone())?;
    client.settle()?;
    let second = client.load("persona", 1)?;
    ensure!(first.key.generation != second.key.generation, "other weights have the same generation");
    let new = client.ask(asked.clone())?;
    ensure!(new.usage.reused_tokens == 0, "{} tokens of the old weights were reused", new.usage.reused_tokens);
    let other = Client::new(fixture)?;
    other.load("persona", 1)?;
    let expected = other.anew(&asked)?;
    client.same(&new, &expected, "new weights under the old name against a fresh backend")?;
    ensure!(old.logprobs != new.logprobs, "the old weights say the same: this case would not notice");
    Ok(())
}

fn replaced_while_running(fixture: &BackendFixture) -> Outcome {
    swapped_while_running(fixture, |client| client.load("persona", 1).map(|_| ()))
}

fn unloaded_while_running(fixture: &BackendFixture) -> Outcome {
    swapped_while_running(fixture, |client| Ok(block_on(client.backend.unload_adapter("persona"))?))?;
    let client = Client::new(fixture)?;
    client.load("persona", 0)?;
    block_on(client.backend.unload_adapter("persona"))?;
    let asked = with(fixture, 1050, adapter("persona", 1.0));
    refusal(&client, asked, ErrorKind::NotFound, "an adapter that was unloaded")?;
    let again = block_on(client.backend.unload_adapter("persona"));
    ensure!(again.is_err_and(|error| error.kind() == ErrorKind::NotFound), "an adapter was unloaded twice");
    Ok(())
}

fn swapped_while_running(fixture: &BackendFixture, swap: impl Fn(&Client<'_>) -> Outcome) -> Outcome {
    let client = Client::new(fixture)?;
    client.load("persona", 0)?;
    let asked = GenerateRequest { max_tokens: Some(60), ..with(fixture, 1051, adapter("persona", 1.0)) };
    let expected = client.anew(&asked)?;
    // Started, and then the weights go: some of the reply comes after that in any case of a slow engine.
    let stream = client.start(asked)?;
    swap(&client)?;
    let reply = collect(stream)?;
    client.same(&reply, &expected, "a stream whose adapter was swapped against one that was left alone")
}

fn listed(fixture: &BackendFixture) -> Outcome {
    let client = loaded(fixture)?;
    let mut ids: Vec<_> = client.backend.adapters().into_iter().map(|status| status.info.key.id.to_string()).collect();
    ids.sort();
    ensure!(ids == ["one", "two"], "the adapters are {ids:?}");
    if fixture.capability.adapter_hot_swap {
        client.load("one", 1)?;
        ensure!(client.backend.adapters().len() == 2, "a replaced adapter is listed twice");
        block_on(client.backend.unload_adapter("two"))?;
        ensure!(client.backend.adapters().len() == 1, "an unloaded adapter is listed");
    }
    Ok(())
}

fn own_cache(fixture: &BackendFixture) -> Outcome {
    let client = loaded(fixture)?;
    let (one, two) = (with(fixture, 1060, adapter("one", 1.0)), with(fixture, 1060, adapter("two", 1.0)));
    client.ask(one.clone())?;
    client.settle()?;
    let stranger = client.ask(two)?;
    ensure!(stranger.usage.reused_tokens == 0, "an adapter reused {} tokens of another", stranger.usage.reused_tokens);
    let itself = client.ask(one)?;
    ensure!(itself.usage.reused_tokens > 0, "an adapter does not find its own past");
    Ok(())
}

fn refused(fixture: &BackendFixture) -> Outcome {
    let client = loaded(fixture)?;
    let asked = with(fixture, 1070, adapter("one", 1.0));
    let before = client.anew(&asked)?;
    for refused in fixture.engine.refused_adapters.iter().take(4) {
        let result = block_on(client.backend.load_adapter("one", refused.files.clone()));
        ensure!(
            result.is_err_and(|error| error.kind() == ErrorKind::InvalidAdapter),
            "an adapter with {} must be refused",
            refused.why
        );
    }
    let after = client.anew(&asked)?;
    client.same(&after, &before, "an adapter after refused replacements")
}
