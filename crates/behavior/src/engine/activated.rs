//! Activated adapters: nothing before they act, everything after, and pasts that personas share.

use std::ops::Range;

use consort_core::{AdapterBinding, AdapterKey, AdapterSet, ErrorKind, SeqId, Step, StepInput, Want};

use super::List;
use crate::activation::{activated, edited, persona};
use crate::case::{Outcome, ensure};
use crate::fixture::{EngineFixture, Need};
use crate::rig::{Rig, differ, done, fails};
use crate::script::Script;

/// Where the adapter becomes active in most cases, and how long the prompt is.
const AT: usize = 20;
const LENGTH: usize = 40;

pub(super) fn add(list: &mut List) {
    let needs = [Need::Logits, Need::Activated];
    let all = [Need::AllLogits, Need::Activated];
    let two = [Need::Logits, Need::Activated, Need::TwoSequences];
    let park = [Need::Logits, Need::Activated, Need::Park, Need::TwoSequences];
    list.add("an_activated_adapter_tells_its_tokens", &needs, tells);
    list.add("an_invocation_that_is_none_is_refused", &needs, bad_invocations);
    list.add("before_it_acts_the_base_model_speaks", &all, before);
    list.add("an_adapter_that_acts_from_the_first_token", &needs, from_the_start);
    list.add("an_adapter_that_never_comes_to_act", &needs, never);
    for most in [1, 2, 7, 64] {
        list.add(format!("an_activation_in_chunks_of_{most}"), &needs, move |fixture| in_chunks(fixture, most));
    }
    list.add("an_activation_at_every_place_of_a_step", &needs, every_place);
    list.add("an_activation_on_the_last_token", &needs, last_token);
    list.add("an_activation_while_generating", &needs, generated);
    list.add("an_activated_adapter_has_a_scale", &needs, scale);
    list.add("activated_and_ordinary_adapters_at_once", &all, stacked);
    list.add("an_activation_after_an_image", &[Need::Logits, Need::Activated, Need::Images], after_image);
    list.add("eight_activations_in_one_batch", &[Need::AllLogits, Need::Activated, Need::EightSequences], batch);
    list.add("forking_into_personas", &two, personas);
    list.add("forking_into_a_persona_before_it_acts", &two, early_fork);
    list.add("forking_back_to_the_base_model", &two, back_to_base);
    list.add("forking_with_what_has_acted_is_refused", &two, illegal_forks);
    list.add("forking_with_the_same_adapters", &two, same_again);
    list.add(
        "a_fork_keeps_what_is_to_act",
        &[Need::Logits, Need::Activated, Need::Fork, Need::TwoSequences],
        fork_keeps,
    );
    list.add("a_parked_past_keeps_what_is_to_act", &park, park_keeps);
    list.add("one_parked_scene_for_two_personas", &park, one_scene);
    list.add("a_parked_scene_outlives_its_persona", &park, scene_outlives);
    list.add("resuming_with_what_has_acted_is_refused", &park, illegal_resume);
    list.add("a_rollback_over_an_activation", &[Need::Logits, Need::Activated, Need::Rollback], rolled_back);
}

fn script(fixture: &EngineFixture) -> Script {
    Script::text(&fixture.prompt(LENGTH, 700))
}

fn bound(bindings: &[(&AdapterKey, f32, usize)]) -> Outcome<AdapterSet> {
    let binding = |&(key, scale, active_from): &(&AdapterKey, f32, usize)| AdapterBinding {
        key: key.clone(),
        scale,
        active_from,
    };
    Ok(AdapterSet::new(bindings.iter().map(binding))?)
}

/// Loads the persona of this number.
fn load(rig: &mut Rig<'_>, number: usize) -> Outcome<AdapterKey> {
    let files = persona(&rig.fixture.adapters, number, &rig.fixture.prompt(2, 701))?;
    Ok(rig.load(&format!("persona-{number}"), &files)?.key)
}

/// What a fresh sequence says when it reads up to each end in turn, in steps as large as the engine takes.
fn alone(rig: &mut Rig<'_>, adapters: &AdapterSet, script: &Script, ends: &[usize]) -> Outcome<Vec<Vec<f32>>> {
    let seq = rig.engine.open(adapters)?;
    let rows = on_from(rig, seq, script, 0, ends)?;
    rig.engine.release(seq);
    Ok(rows)
}

fn on_from(rig: &mut Rig<'_>, seq: SeqId, script: &Script, from: usize, ends: &[usize]) -> Outcome<Vec<Vec<f32>>> {
    let starts = std::iter::once(from).chain(ends.iter().copied());
    starts.zip(ends).map(|(from, end)| rig.read_range(seq, script, from..*end, usize::MAX / 2)).collect()
}

fn same(rig: &Rig<'_>, one: &[Vec<f32>], other: &[Vec<f32>], what: &str) -> Outcome {
    ensure!(one.len() == other.len(), "{what}: {} rows and {}", one.len(), other.len());
    for (index, (one, other)) in one.iter().zip(other).enumerate() {
        rig.same_steps(one, other, &format!("{what}, row {index}"))?;
    }
    Ok(())
}

fn tells(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let invocation = fixture.prompt(3, 702);
    for (number, adapter) in fixture.adapters.iter().enumerate() {
        let ordinary = rig.load(&adapter.name, &adapter.files)?;
        ensure!(ordinary.invocation_tokens.is_none(), "an ordinary adapter has invocation tokens");
        let info = rig.load(&format!("persona-{number}"), &activated(&adapter.files, &invocation)?)?;
        ensure!(
            info.invocation_tokens.as_deref() == Some(&invocation[..]),
            "the invocation {invocation:?} is told as {:?}",
            info.invocation_tokens
        );
        ensure!(info.bytes == ordinary.bytes, "activated, the adapter takes {} bytes", info.bytes);
    }
    Ok(())
}

fn bad_invocations(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let vocabulary = rig.engine.info().vocab_size as u64;
    let start = rig.engine.memory().adapters;
    for (what, tokens) in [
        ("no token", serde_json::json!([])),
        ("a token beyond the vocabulary", serde_json::json!([1, vocabulary])),
        ("a token that is no number", serde_json::json!(["hello"])),
        ("a negative token", serde_json::json!([-1])),
        ("a token of five bytes", serde_json::json!([1_u64 << 32])),
        ("no list", serde_json::json!("1, 2")),
    ] {
        let files = edited(&fixture.adapters[0].files, &[("alora_invocation_tokens", tokens)])?;
        let Err(failure) = rig.load("refused", &files) else {
            return Err(format!("an invocation of {what} was loaded").into());
        };
        let told = failure.to_string();
        ensure!(told.contains(ErrorKind::InvalidAdapter.as_str()), "{what}: it must be an invalid adapter: {told}");
        ensure!(told.contains("alora_invocation_tokens"), "{what}: the error must name the key: {told}");
    }
    ensure!(rig.engine.memory().adapters == start, "refused adapters hold memory");
    Ok(())
}

fn before(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = script(fixture);
    let key = load(&mut rig, 0)?;
    let all = |rig: &mut Rig<'_>, adapters: &AdapterSet| -> Outcome<Vec<Vec<f32>>> {
        let seq = rig.engine.open(adapters)?;
        let rows = rig.read_all(seq, &script)?;
        rig.engine.release(seq);
        Ok(rows)
    };
    let base = all(&mut rig, &AdapterSet::none())?;
    let ordinary = all(&mut rig, &bound(&[(&key, 1.0, 0)])?)?;
    let with = all(&mut rig, &bound(&[(&key, 1.0, AT)])?)?;
    for index in 0..LENGTH {
        if index < AT {
            rig.same_steps(&with[index], &base[index], &format!("token {index}, before the adapter acts"))?;
            differ(&ordinary[index], &base[index], &format!("token {index} of an ordinary adapter against none"))?;
        } else {
            differ(&with[index], &base[index], &format!("token {index}, after the adapter acts, against none"))?;
        }
        if fixture.nature.remembers {
            let what = format!("token {index}, against an adapter that acts from the first token");
            differ(&with[index], &ordinary[index], &what)?;
        }
    }
    Ok(())
}

fn from_the_start(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let (script, key) = (script(fixture), load(&mut rig, 0)?);
    let ordinary = rig.load("ordinary", &edited(&persona(&fixture.adapters, 0, &[1])?, &[no_invocation()])?)?;
    let with = rig.fresh_with(&bound(&[(&key, 1.0, 0)])?, &script)?;
    let expected = rig.fresh_with(&bound(&[(&ordinary.key, 1.0, 0)])?, &script)?;
    rig.same_steps(&with, &expected, "from the first token on, against an ordinary adapter")
}

fn no_invocation() -> (&'static str, serde_json::Value) {
    ("alora_invocation_tokens", serde_json::Value::Null)
}

fn never(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let (script, key) = (script(fixture), load(&mut rig, 0)?);
    let base = rig.fresh(&script)?;
    for active_from in [LENGTH, LENGTH + 1, usize::MAX] {
        let with = rig.fresh_with(&bound(&[(&key, 1.0, active_from)])?, &script)?;
        rig.same_steps(&with, &base, &format!("an adapter that acts from token {active_from} on, of {LENGTH}"))?;
    }
    Ok(())
}

fn in_chunks(fixture: &EngineFixture, most: usize) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = Script::text(&fixture.prompt(70, 703));
    let key = load(&mut rig, 0)?;
    for at in [1, 31, 32, 33, 63, 64, 65, 69] {
        let adapters = bound(&[(&key, 1.0, at)])?;
        let whole = rig.fresh_with(&adapters, &script)?;
        let seq = rig.engine.open(&adapters)?;
        let row = rig.read_range(seq, &script, 0..70, most)?;
        rig.engine.release(seq);
        rig.same_tokens(&row, &whole, &format!("active from {at} on, in chunks of {most}"))?;
    }
    Ok(())
}

/// One step of ten tokens, with the activation before, on each of, and after them.
fn every_place(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let (script, key) = (script(fixture), load(&mut rig, 0)?);
    let mut rows: Vec<Vec<f32>> = Vec::new();
    for at in 14..=26 {
        let adapters = bound(&[(&key, 1.0, at)])?;
        let row = alone(&mut rig, &adapters, &script, &[15, 25])?.swap_remove(1);
        let seq = rig.engine.open(&adapters)?;
        let each: Vec<usize> = (1..=25).collect();
        let one_by_one = on_from(&mut rig, seq, &script, 0, &each)?.pop().unwrap_or_default();
        rig.engine.release(seq);
        rig.same_tokens(&row, &one_by_one, &format!("active from {at} on, in one step against one by one"))?;
        if at > 25 {
            rig.same_steps(&row, &rows[rows.len() - 1], "an activation after the step against one at its end")?;
        } else if fixture.nature.remembers {
            for (before, other) in rows.iter().enumerate() {
                differ(&row, other, &format!("an activation at {at} against one at {}", 14 + before))?;
            }
        }
        rows.push(row);
    }
    Ok(())
}

fn last_token(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let (script, key) = (script(fixture), load(&mut rig, 0)?);
    let base = rig.fresh(&script)?;
    let with = rig.fresh_with(&bound(&[(&key, 1.0, LENGTH - 1)])?, &script)?;
    differ(&with, &base, "an adapter that touches the last token alone against none")
}

/// Tokens that are appended one by one pass the place where it acts.
fn generated(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let (script, key) = (script(fixture), load(&mut rig, 0)?);
    let ends: Vec<usize> = std::iter::once(AT - 3).chain(AT - 2..AT + 4).collect();
    let base = alone(&mut rig, &AdapterSet::none(), &script, &ends)?;
    let with = alone(&mut rig, &bound(&[(&key, 1.0, AT)])?, &script, &ends)?;
    for (index, end) in ends.iter().enumerate() {
        if *end <= AT {
            rig.same_steps(&with[index], &base[index], &format!("after {end} tokens"))?;
        } else {
            differ(&with[index], &base[index], &format!("after {end} tokens, against none"))?;
        }
    }
    Ok(())
}

fn scale(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let (script, key) = (script(fixture), load(&mut rig, 0)?);
    let mut rows = vec![rig.fresh(&script)?];
    for scale in [0.5, 1.0, -1.0] {
        let row = rig.fresh_with(&bound(&[(&key, scale, AT)])?, &script)?;
        for other in &rows {
            differ(&row, other, &format!("the scale {scale} against another"))?;
        }
        rows.push(row);
    }
    Ok(())
}

/// An ordinary adapter, and two that come to act one after the other.
fn stacked(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = script(fixture);
    let (ordinary, one, two) = (rig.adapter(1)?, load(&mut rig, 0)?, load(&mut rig, 1)?);
    let mut rows = Vec::new();
    for bindings in [
        &[(&ordinary, 0.5, 0)][..],
        &[(&ordinary, 0.5, 0), (&one, 1.0, 12)],
        &[(&two, 0.7, 25), (&ordinary, 0.5, 0), (&one, 1.0, 12)],
    ] {
        let seq = rig.engine.open(&bound(bindings)?)?;
        rows.push(rig.read_all(seq, &script)?);
        rig.engine.release(seq);
    }
    for (fewer, more, at) in [(0, 1, 12), (1, 2, 25)] {
        for (index, (fewer, more)) in rows[fewer].iter().zip(&rows[more]).enumerate() {
            let what = format!("token {index}, with one adapter more that acts from {at} on");
            if index < at {
                rig.same_steps(fewer, more, &what)?;
            } else {
                differ(fewer, more, &what)?;
            }
        }
    }
    Ok(())
}

/// Places are counted in tokens, of which an image has several, and not in positions.
fn after_image(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let (image, key) = (rig.image(0)?, load(&mut rig, 0)?);
    let script = Script::text(&fixture.prompt(3, 704)).then_image(&image).then_text(&fixture.prompt(10, 705));
    let at = 3 + image.tokens() + 4;
    let ends = [at, at + 1, script.len()];
    let base = alone(&mut rig, &AdapterSet::none(), &script, &ends)?;
    let with = alone(&mut rig, &bound(&[(&key, 1.0, at)])?, &script, &ends)?;
    rig.same_steps(&with[0], &base[0], "before the adapter acts")?;
    differ(&with[1], &base[1], "on the first token that it touches")?;
    differ(&with[2], &base[2], "after the adapter acts")?;
    // In the middle of the image, too.
    let seq = rig.engine.open(&bound(&[(&key, 1.0, 4)])?)?;
    let whole = rig.read(seq, &script)?;
    rig.engine.release(seq);
    let seq = rig.engine.open(&bound(&[(&key, 1.0, 4)])?)?;
    let parts = rig.read_range(seq, &script, 0..script.len(), 1)?;
    rig.same_tokens(&parts, &whole, "active within an image, token by token against whole")?;
    differ(&whole, &with[2], "active within an image against after it")
}

fn batch(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let tokens = fixture.prompt(LENGTH, 706);
    let script = Script::text(&tokens);
    let mut sets = vec![AdapterSet::none()];
    for number in 0..7 {
        let key = load(&mut rig, number)?;
        sets.push(bound(&[(&key, 1.0, [0, 5, 11, 12, 20, 23, 24][number])])?);
    }
    if fixture.missing(&[Need::SeveralAdapterSets]).is_some() {
        return Ok(());
    }
    let mut expected = Vec::new();
    for set in &sets {
        expected.push(alone(&mut rig, set, &script, &[12, 24])?);
    }
    let seqs = sets.iter().map(|set| rig.engine.open(set)).collect::<consort_core::Result<Vec<_>>>()?;
    for (round, range) in [0..12, 12..24].into_iter().enumerate() {
        let steps: Vec<Step<'_>> = seqs
            .iter()
            .map(|&seq| Step {
                seq,
                input: StepInput::Tokens(&tokens[range.clone()]),
                positions: &script.positions()[range.clone()],
                want: Want::Last,
            })
            .collect();
        for (index, outcome) in rig.submit(&steps)?.into_iter().enumerate() {
            let row = rig.one_row(done(outcome)?)?;
            rig.same_steps(&row, &expected[index][round], &format!("sequence {index} of eight, round {round}"))?;
        }
    }
    Ok(())
}

/// A sequence that has read `range` of the script with these adapters.
fn having_read(rig: &mut Rig<'_>, adapters: &AdapterSet, script: &Script, range: Range<usize>) -> Outcome<SeqId> {
    let seq = rig.engine.open(adapters)?;
    rig.read_range(seq, script, range, usize::MAX / 2)?;
    Ok(seq)
}

fn personas(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = script(fixture);
    let keys = [load(&mut rig, 0)?, load(&mut rig, 1)?];
    let scene = having_read(&mut rig, &AdapterSet::none(), &script, 0..AT)?;
    let mut said = Vec::new();
    for key in &keys {
        let adapters = bound(&[(key, 1.0, AT)])?;
        let expected = alone(&mut rig, &adapters, &script, &[AT, AT + 1, LENGTH])?;
        let fork = rig.engine.fork_with(scene, &adapters)?;
        let rows = on_from(&mut rig, fork, &script, AT, &[AT + 1, LENGTH])?;
        rig.engine.release(fork);
        same(&rig, &rows, &expected[1..], &format!("{} on a shared scene against alone", key.id))?;
        said.push(rows);
    }
    differ(&said[0][1], &said[1][1], "two personas on one scene")?;
    let base = on_from(&mut rig, scene, &script, AT, &[AT + 1, LENGTH])?;
    let expected = alone(&mut rig, &AdapterSet::none(), &script, &[AT, AT + 1, LENGTH])?;
    same(&rig, &base, &expected[1..], "the scene itself, after personas left it")
}

fn early_fork(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let (script, key) = (script(fixture), load(&mut rig, 0)?);
    let adapters = bound(&[(&key, 1.0, AT)])?;
    for length in [0, 1, 7, AT - 1] {
        let ends: Vec<usize> = [length, LENGTH].into_iter().filter(|end| *end > 0).collect();
        let expected = alone(&mut rig, &adapters, &script, &ends)?;
        let seq = rig.open()?;
        if length > 0 {
            rig.read_range(seq, &script, 0..length, usize::MAX / 2)?;
        }
        let fork = rig.engine.fork_with(seq, &adapters)?;
        let row = rig.read_range(fork, &script, length..LENGTH, usize::MAX / 2)?;
        rig.engine.release(seq);
        rig.engine.release(fork);
        rig.same_steps(&row, &expected[expected.len() - 1], &format!("forked after {length} tokens"))?;
    }
    Ok(())
}

/// Whoever opened for a persona that has not acted yet has read the scene for everybody.
fn back_to_base(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = script(fixture);
    let (one, two) = (load(&mut rig, 0)?, load(&mut rig, 1)?);
    let scene = having_read(&mut rig, &bound(&[(&one, 1.0, AT)])?, &script, 0..AT)?;
    for adapters in [AdapterSet::none(), bound(&[(&two, 0.5, AT + 3)])?, bound(&[(&one, 1.0, AT + 5)])?] {
        let expected = alone(&mut rig, &adapters, &script, &[AT, LENGTH])?;
        let fork = rig.engine.fork_with(scene, &adapters)?;
        let row = rig.read_range(fork, &script, AT..LENGTH, usize::MAX / 2)?;
        rig.engine.release(fork);
        rig.same_steps(&row, &expected[1], "other adapters on what was read for a persona")?;
    }
    Ok(())
}

fn illegal_forks(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = script(fixture);
    let (one, two) = (load(&mut rig, 0)?, load(&mut rig, 1)?);
    let own = bound(&[(&one, 1.0, AT)])?;
    let expected = alone(&mut rig, &own, &script, &[AT + 1, LENGTH])?;
    let seq = having_read(&mut rig, &own, &script, 0..AT + 1)?;
    for (what, adapters) in [
        ("none", AdapterSet::none()),
        ("an ordinary one more", bound(&[(&one, 1.0, AT), (&two, 1.0, 0)])?),
        ("one more that acts on the last token", bound(&[(&one, 1.0, AT), (&two, 1.0, AT)])?),
        ("another scale", bound(&[(&one, 0.5, AT)])?),
        ("another place", bound(&[(&one, 1.0, AT + 5)])?),
        ("another persona", bound(&[(&two, 1.0, AT)])?),
    ] {
        fails(rig.engine.fork_with(seq, &adapters), ErrorKind::InvalidRequest, what)?;
    }
    let stranger = AdapterKey { id: "nobody".into(), generation: 99 };
    let unknown = bound(&[(&one, 1.0, AT), (&stranger, 1.0, LENGTH)])?;
    fails(rig.engine.fork_with(seq, &unknown), ErrorKind::NotFound, "one that is not loaded")?;
    fails(rig.engine.fork_with(SeqId(u64::MAX), &own), ErrorKind::NotFound, "an unknown sequence")?;
    let row = rig.read_range(seq, &script, AT + 1..LENGTH, usize::MAX / 2)?;
    rig.same_steps(&row, &expected[1], "a sequence after forks of it were refused")
}

fn same_again(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let (script, key) = (script(fixture), load(&mut rig, 0)?);
    let adapters = bound(&[(&key, 1.0, AT)])?;
    let expected = alone(&mut rig, &adapters, &script, &[AT + 4, LENGTH])?;
    let seq = having_read(&mut rig, &adapters, &script, 0..AT + 4)?;
    let fork = rig.engine.fork_with(seq, &adapters)?;
    rig.engine.release(seq);
    let row = rig.read_range(fork, &script, AT + 4..LENGTH, usize::MAX / 2)?;
    rig.same_steps(&row, &expected[1], "forked with its own adapters")
}

fn fork_keeps(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let (script, key) = (script(fixture), load(&mut rig, 0)?);
    let adapters = bound(&[(&key, 1.0, AT)])?;
    let expected = alone(&mut rig, &adapters, &script, &[AT - 2, LENGTH])?;
    let seq = having_read(&mut rig, &adapters, &script, 0..AT - 2)?;
    let fork = rig.engine.fork(seq)?;
    let row = rig.read_range(fork, &script, AT - 2..LENGTH, usize::MAX / 2)?;
    rig.same_steps(&row, &expected[1], "a fork passes the place where its adapter acts")
}

fn park_keeps(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let (script, key) = (script(fixture), load(&mut rig, 0)?);
    let adapters = bound(&[(&key, 1.0, AT)])?;
    for length in [AT - 2, AT + 2] {
        let expected = alone(&mut rig, &adapters, &script, &[length, LENGTH])?;
        let seq = having_read(&mut rig, &adapters, &script, 0..length)?;
        let parked = rig.engine.park(seq)?;
        rig.engine.release(seq);
        for with in [false, true] {
            let seq = if with { rig.engine.resume_with(&parked, &adapters)? } else { rig.engine.resume(&parked)? };
            let row = rig.read_range(seq, &script, length..LENGTH, usize::MAX / 2)?;
            rig.engine.release(seq);
            rig.same_steps(&row, &expected[1], &format!("resumed after {length} tokens"))?;
        }
    }
    Ok(())
}

fn one_scene(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = script(fixture);
    let keys = [load(&mut rig, 0)?, load(&mut rig, 1)?];
    let seq = having_read(&mut rig, &AdapterSet::none(), &script, 0..AT)?;
    let scene = rig.engine.park(seq)?;
    rig.engine.release(seq);
    let mut said = Vec::new();
    // Each twice, so that each comes after the other too.
    for round in 0..2 {
        for key in &keys {
            let adapters = bound(&[(key, 1.0, AT)])?;
            let expected = alone(&mut rig, &adapters, &script, &[AT, AT + 1, LENGTH])?;
            let seq = rig.engine.resume_with(&scene, &adapters)?;
            let rows = on_from(&mut rig, seq, &script, AT, &[AT + 1, LENGTH])?;
            rig.engine.release(seq);
            same(
                &rig,
                &rows,
                &expected[1..],
                &format!("{} in round {round}, on a parked scene against alone", key.id),
            )?;
            said.push(rows);
        }
    }
    differ(&said[0][1], &said[1][1], "two personas on one parked scene")
}

/// The persona for which a scene was read leaves, with its weights; the scene stays for the others.
fn scene_outlives(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = script(fixture);
    let (one, two) = (load(&mut rig, 0)?, load(&mut rig, 1)?);
    let adapters = bound(&[(&two, 1.0, AT)])?;
    let expected = alone(&mut rig, &adapters, &script, &[AT, LENGTH])?;
    let seq = having_read(&mut rig, &bound(&[(&one, 1.0, AT)])?, &script, 0..AT)?;
    let scene = rig.engine.park(seq)?;
    rig.engine.release(seq);
    if fixture.capability.adapter_hot_swap {
        rig.engine.unload_adapter(&one)?;
    }
    let seq = rig.engine.resume_with(&scene, &adapters)?;
    let row = rig.read_range(seq, &script, AT..LENGTH, usize::MAX / 2)?;
    rig.same_steps(&row, &expected[1], "a persona on the scene that another read")
}

fn illegal_resume(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = script(fixture);
    let (one, two) = (load(&mut rig, 0)?, load(&mut rig, 1)?);
    let own = bound(&[(&one, 1.0, AT)])?;
    let seq = having_read(&mut rig, &own, &script, 0..AT + 1)?;
    let parked = rig.engine.park(seq)?;
    rig.engine.release(seq);
    for adapters in [AdapterSet::none(), bound(&[(&two, 1.0, AT)])?, bound(&[(&one, 2.0, AT)])?] {
        fails(rig.engine.resume_with(&parked, &adapters), ErrorKind::InvalidRequest, "resuming with others")?;
    }
    // Refused ones take no slot.
    let mut seqs = Vec::new();
    for _ in 0..fixture.capability.max_sequences {
        seqs.push(rig.engine.resume_with(&parked, &own)?);
    }
    Ok(())
}

fn rolled_back(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let (script, key) = (script(fixture), load(&mut rig, 0)?);
    let adapters = bound(&[(&key, 1.0, AT)])?;
    let most = fixture.capability.max_rollback.min(6);
    let whole = rig.fresh_with(&adapters, &script)?;
    let seq = having_read(&mut rig, &adapters, &script, 0..AT + 3)?;
    rig.engine.rollback(seq, most)?;
    let row = rig.read_range(seq, &script, AT + 3 - most..LENGTH, usize::MAX / 2)?;
    rig.same_tokens(&row, &whole, "after tokens before and behind the activation were taken back")
}
