//! Adapters: they act, they add up, they keep to their sequence and to their generation.

use consort_core::{AdapterBinding, AdapterInfo, AdapterSet, AdapterSource, ErrorKind};

use super::List;
use crate::case::{Outcome, ensure};
use crate::fixture::{AdapterTwins, EngineFixture, Need};
use crate::rig::{Rig, differ, fails, set, within};
use crate::script::Script;

pub(super) fn add(list: &mut List) {
    let needs = [Need::Logits, Need::Adapters];
    let swap = [Need::Logits, Need::HotSwap, Need::TwoSequences];
    list.add("every_adapter_changes_the_logits", &needs, changes);
    list.add("adapters_differ", &needs, differ_from_each_other);
    list.add("an_adapter_tells_of_itself", &needs, tells);
    list.add("without_adapters_the_base_model_speaks", &needs, base);
    list.add("the_scale_matters", &needs, scale);
    list.add("a_scale_of_almost_nothing_is_almost_nothing", &[Need::Logits, Need::Adapters, Need::Golden], tiny_scale);
    list.add("two_adapters_at_once", &needs, stacked);
    list.add("an_adapter_in_chunks", &needs, in_chunks);
    list.add("an_adapter_touches_every_token", &needs, every_token);
    list.add("an_adapter_sees_the_image", &[Need::Logits, Need::Adapters, Need::Images], with_image);
    list.add("two_names_for_the_same_weights", &[Need::Logits, Need::HotSwap], two_names);
    list.add("the_same_name_with_new_weights", &swap, new_generation);
    list.add("the_same_name_after_unloading", &swap, reloaded);
    list.add("unloading_while_a_sequence_runs", &swap, unload_running);
    list.add("unloading_while_a_past_is_parked", &[Need::Logits, Need::HotSwap, Need::Park], unload_parked);
    list.add("a_parked_past_holds_no_weights", &[Need::Logits, Need::HotSwap, Need::Park], parked_without_weights);
    list.add("an_unloaded_adapter_gives_memory_back", &[Need::Logits, Need::HotSwap], unload_memory);
    list.add("a_refused_adapter_leaves_nothing", &[Need::Logits, Need::RefusedAdapters], refused_leaves_nothing);
    for twins in list.fixture.adapter_twins.clone() {
        let mut needs = vec![Need::Logits, Need::Adapters];
        needs.extend(twins.invocation.is_some().then_some(Need::Activated));
        list.add(format!("an_adapter_as_gguf_is_the_same::{}", twins.name), &needs, move |fixture| {
            as_gguf(fixture, &twins)
        });
    }
    for refused in list.fixture.refused_adapters.clone() {
        let name = format!("an_adapter_with_{}_is_refused", refused.why.replace(' ', "_"));
        list.add(name, &[Need::RefusedAdapters], move |fixture| {
            let mut rig = Rig::new(fixture)?;
            let Err(failure) = rig.load("refused", &refused.files) else {
                return Err(format!("an adapter with {} was loaded", refused.why).into());
            };
            let told = failure.to_string();
            ensure!(told.contains(ErrorKind::InvalidAdapter.as_str()), "it must be an invalid adapter: {told}");
            ensure!(told.contains(refused.names), "the error must name {:?}: {told}", refused.names);
            Ok(())
        });
    }
}

fn script(fixture: &EngineFixture) -> Script {
    Script::text(&fixture.prompt(24, 400))
}

fn changes(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = script(fixture);
    let base = rig.fresh(&script)?;
    for index in 0..fixture.adapters.len() {
        let key = rig.adapter(index)?;
        let row = rig.fresh_with(&set(&[(&key, 1.0)])?, &script)?;
        differ(&row, &base, &format!("the adapter {} against none", key.id))?;
        rig.engine.unload_adapter(&key)?;
    }
    Ok(())
}

fn differ_from_each_other(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = script(fixture);
    let mut rows: Vec<(String, Vec<f32>)> = Vec::new();
    for index in 0..fixture.adapters.len().min(4) {
        let key = rig.adapter(index)?;
        let row = rig.fresh_with(&set(&[(&key, 1.0)])?, &script)?;
        for (name, other) in &rows {
            differ(&row, other, &format!("the adapter {} against {name}", key.id))?;
        }
        rows.push((key.id.to_string(), row));
    }
    Ok(())
}

fn tells(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let start = rig.engine.memory().adapters;
    for adapter in &fixture.adapters {
        let info = rig.load(&adapter.name, &adapter.files)?;
        ensure!(info.rank > 0, "the adapter {} has rank 0", adapter.name);
        ensure!(info.layers > 0, "the adapter {} changes no layer", adapter.name);
        ensure!(info.bytes > 0, "the adapter {} takes no memory", adapter.name);
    }
    let now = rig.engine.memory().adapters;
    ensure!(now > start, "loaded adapters take no memory");
    Ok(())
}

/// How far logits may be apart where the same adapter's scale is rounded in another place.
const TWINS: f32 = 1e-4;

/// What an adapter says of itself and does is the same in both forms.
fn as_gguf(fixture: &EngineFixture, twins: &AdapterTwins) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let (peft, gguf) = (rig.load("peft", &twins.peft)?, rig.load("gguf", &twins.gguf)?);
    let told = |info: &AdapterInfo| (info.rank, info.layers, info.bytes, info.invocation_tokens.clone());
    ensure!(told(&peft) == told(&gguf), "in PEFT's format it is {peft:?}, as GGUF {gguf:?}");
    ensure!(gguf.invocation_tokens == twins.invocation, "its tokens are {:?}", gguf.invocation_tokens);
    let invocation = twins.invocation.clone().unwrap_or_default();
    let tokens = [fixture.prompt(12, 410), invocation, fixture.prompt(9, 411)].concat();
    let script = Script::text(&tokens);
    let base = rig.fresh(&script)?;
    let tolerance = TWINS.max(fixture.capability.logit_tolerance);
    for scale in [1.0, -0.5] {
        let mut row = |info: &AdapterInfo| -> Outcome<Vec<f32>> {
            let active_from = if twins.invocation.is_some() {
                info.invoked_at(&tokens).ok_or("its tokens are not found in the prompt")?
            } else {
                0
            };
            let binding = AdapterBinding { key: info.key.clone(), scale, active_from };
            rig.fresh_with(&AdapterSet::new([binding])?, &script)
        };
        let (one, other) = (row(&peft)?, row(&gguf)?);
        within(&one, &other, tolerance, &format!("PEFT's format against GGUF at {scale}"))?;
        differ(&one, &base, &format!("the adapter at {scale} against none"))?;
    }
    Ok(())
}

fn base(fixture: &EngineFixture) -> Outcome {
    let script = script(fixture);
    let mut bare = Rig::new(fixture)?;
    let before = bare.fresh(&script)?;
    let mut rig = Rig::new(fixture)?;
    let key = rig.adapter(0)?;
    rig.fresh_with(&set(&[(&key, 1.0)])?, &script)?;
    let after = rig.fresh(&script)?;
    rig.same_steps(&before, &after, "the base model beside a loaded adapter")?;
    let nothing = rig.fresh_with(&set(&[(&key, 0.0)])?, &script)?;
    rig.same_steps(&before, &nothing, "an adapter of scale zero")
}

fn scale(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = script(fixture);
    let key = rig.adapter(0)?;
    let mut rows = vec![rig.fresh(&script)?];
    for scale in [0.5, 1.0, 2.0, -1.0] {
        let row = rig.fresh_with(&set(&[(&key, scale)])?, &script)?;
        for (index, other) in rows.iter().enumerate() {
            differ(&row, other, &format!("the scale {scale} against the one before, number {index}"))?;
        }
        rows.push(row);
    }
    Ok(())
}

/// Holds for whatever is continuous, as every model with goldens is and a hash is not.
fn tiny_scale(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = script(fixture);
    let key = rig.adapter(0)?;
    let none = rig.fresh(&script)?;
    let little = rig.fresh_with(&set(&[(&key, 1e-6)])?, &script)?;
    crate::rig::within(&none, &little, 1e-3, "an adapter at a millionth of its scale against none")
}

fn stacked(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = script(fixture);
    let (one, two) = (rig.adapter(0)?, rig.adapter(1)?);
    let both = rig.fresh_with(&set(&[(&one, 1.0), (&two, 1.0)])?, &script)?;
    let first = rig.fresh_with(&set(&[(&one, 1.0)])?, &script)?;
    let second = rig.fresh_with(&set(&[(&two, 1.0)])?, &script)?;
    differ(&both, &first, "two adapters against the first")?;
    differ(&both, &second, "two adapters against the second")?;
    let again = rig.fresh_with(&set(&[(&two, 1.0), (&one, 1.0)])?, &script)?;
    rig.same_steps(&both, &again, "two adapters, named in the other order")?;
    let half = rig.fresh_with(&set(&[(&one, 1.0), (&two, 0.5)])?, &script)?;
    differ(&both, &half, "two adapters against the second at half its scale")
}

fn in_chunks(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = Script::text(&fixture.prompt(70, 401));
    let key = rig.adapter(0)?;
    let adapters = set(&[(&key, 1.0)])?;
    let whole = rig.fresh_with(&adapters, &script)?;
    for most in [1, 9, 64] {
        let seq = rig.engine.open(&adapters)?;
        let row = rig.read_range(seq, &script, 0..70, most)?;
        rig.engine.release(seq);
        rig.same_tokens(&row, &whole, &format!("an adapter in chunks of {most}"))?;
    }
    Ok(())
}

/// An engine that adapts a prefill but not the decoding, or the reverse, is caught.
fn every_token(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let key = rig.adapter(0)?;
    let adapters = set(&[(&key, 1.0)])?;
    let script = Script::text(&fixture.prompt(6, 402));
    let (with, without) = (rig.engine.open(&adapters)?, rig.open()?);
    for (round, range) in [0..1, 1..2, 2..5, 5..6].into_iter().enumerate() {
        let one = rig.read_range(with, &script, range.clone(), usize::MAX / 2)?;
        let two = rig.read_range(without, &script, range, usize::MAX / 2)?;
        differ(&one, &two, &format!("step {round} with an adapter against none"))?;
    }
    Ok(())
}

fn with_image(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let key = rig.adapter(0)?;
    let adapters = set(&[(&key, 1.0)])?;
    let mut rows = Vec::new();
    for index in [0, 1] {
        let image = rig.image(index)?;
        let script = Script::text(&fixture.prompt(2, 403)).then_image(&image).then_text(&fixture.prompt(6, 404));
        rows.push(rig.fresh_with(&adapters, &script)?);
        let without = rig.fresh(&script)?;
        differ(&rows[index], &without, "an adapter after an image against none")?;
    }
    differ(&rows[0], &rows[1], "two images with one adapter")
}

fn two_names(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = script(fixture);
    let files = &fixture.adapters[0].files;
    let one = rig.load("one", files)?.key;
    let two = rig.load("two", files)?.key;
    let first = rig.fresh_with(&set(&[(&one, 1.0)])?, &script)?;
    let second = rig.fresh_with(&set(&[(&two, 1.0)])?, &script)?;
    rig.same_steps(&first, &second, "one adapter under two names")
}

fn new_generation(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = Script::text(&fixture.prompt(30, 405));
    let old = rig.load("persona", &fixture.adapters[0].files)?.key;
    let running = rig.engine.open(&set(&[(&old, 1.0)])?)?;
    rig.read_range(running, &script, 0..20, usize::MAX / 2)?;
    let new = rig.load("persona", &fixture.adapters[1].files)?.key;
    let fresh = rig.fresh_with(&set(&[(&new, 1.0)])?, &script)?;
    let row = rig.read_range(running, &script, 20..30, usize::MAX / 2)?;
    let mut alone = Rig::new(fixture)?;
    let (first, second) = (alone.adapter(0)?, alone.adapter(1)?);
    let expected = alone.fresh_with(&set(&[(&second, 1.0)])?, &script)?;
    rig.same_steps(&fresh, &expected, "the new weights under the old name")?;
    let seq = alone.engine.open(&set(&[(&first, 1.0)])?)?;
    alone.read_range(seq, &script, 0..20, usize::MAX / 2)?;
    let expected = alone.read_range(seq, &script, 20..30, usize::MAX / 2)?;
    rig.same_steps(&row, &expected, "a sequence that runs on with the old weights")
}

fn reloaded(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = script(fixture);
    let old = rig.load("persona", &fixture.adapters[0].files)?.key;
    let before = rig.fresh_with(&set(&[(&old, 1.0)])?, &script)?;
    rig.engine.unload_adapter(&old)?;
    let new = rig.load("persona", &fixture.adapters[1].files)?.key;
    let after = rig.fresh_with(&set(&[(&new, 1.0)])?, &script)?;
    differ(&before, &after, "other weights under the same name")?;
    fails(rig.engine.open(&set(&[(&old, 1.0)])?), ErrorKind::NotFound, "opening with the generation that is gone")?;
    Ok(())
}

fn unload_running(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = Script::text(&fixture.prompt(30, 406));
    let key = rig.adapter(0)?;
    let adapters = set(&[(&key, 1.0)])?;
    let (one, two) = (rig.engine.open(&adapters)?, rig.engine.open(&adapters)?);
    rig.read_range(one, &script, 0..20, usize::MAX / 2)?;
    rig.read_range(two, &script, 0..20, usize::MAX / 2)?;
    let expected = rig.read_range(one, &script, 20..30, usize::MAX / 2)?;
    rig.engine.unload_adapter(&key)?;
    fails(rig.engine.open(&adapters), ErrorKind::NotFound, "opening with an unloaded adapter")?;
    let row = rig.read_range(two, &script, 20..30, usize::MAX / 2)?;
    rig.same_steps(&row, &expected, "a sequence whose adapter was unloaded")
}

fn unload_parked(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = Script::text(&fixture.prompt(30, 407));
    let key = rig.adapter(0)?;
    let seq = rig.engine.open(&set(&[(&key, 1.0)])?)?;
    rig.read_range(seq, &script, 0..20, usize::MAX / 2)?;
    let parked = rig.engine.park(seq)?;
    let expected = rig.read_range(seq, &script, 20..30, usize::MAX / 2)?;
    rig.engine.release(seq);
    rig.engine.unload_adapter(&key)?;
    fails(rig.engine.resume(&parked), ErrorKind::NotFound, "resuming without the past's adapter")?;
    // Other weights under the same name do not serve it.
    rig.load(&key.id, &fixture.adapters[1].files)?;
    fails(rig.engine.resume(&parked), ErrorKind::NotFound, "resuming with another generation of the past's adapter")?;
    let files = fixture.adapters[0].files.clone();
    rig.engine.load_adapter(&AdapterSource { key, files })?;
    let seq = rig.engine.resume(&parked)?;
    let row = rig.read_range(seq, &script, 20..30, usize::MAX / 2)?;
    rig.same_steps(&row, &expected, "a parked past whose adapter was unloaded and came back")
}

/// What pages adapters out relies on it.
fn parked_without_weights(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let start = rig.engine.memory().adapters;
    let key = rig.adapter(0)?;
    let seq = rig.engine.open(&set(&[(&key, 1.0)])?)?;
    rig.read_range(seq, &script(fixture), 0..20, usize::MAX / 2)?;
    let parked = rig.engine.park(seq)?;
    rig.engine.release(seq);
    rig.engine.unload_adapter(&key)?;
    rig.fresh_with(&AdapterSet::none(), &Script::text(&fixture.prompt(1, 409)))?;
    let now = rig.engine.memory().adapters;
    ensure!(now == start, "with a past of {} tokens parked, adapters hold {now} bytes", parked.tokens());
    Ok(())
}

fn unload_memory(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let start = rig.engine.memory().adapters;
    for round in 0..3 {
        let key = rig.adapter(0)?;
        rig.fresh_with(&set(&[(&key, 1.0)])?, &script(fixture))?;
        rig.engine.unload_adapter(&key)?;
        rig.fresh_with(&AdapterSet::none(), &Script::text(&fixture.prompt(1, 408)))?;
        let now = rig.engine.memory().adapters;
        ensure!(now == start, "round {round}: an unloaded adapter still holds {now} bytes ({start} at the start)");
    }
    Ok(())
}

fn refused_leaves_nothing(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = script(fixture);
    let before = rig.fresh(&script)?;
    let start = rig.engine.memory().adapters;
    for refused in &fixture.refused_adapters {
        ensure!(rig.load("refused", &refused.files).is_err(), "an adapter with {} was loaded", refused.why);
    }
    ensure!(rig.engine.memory().adapters == start, "refused adapters hold memory");
    let after = rig.fresh(&script)?;
    rig.same_steps(&before, &after, "the base model after refused adapters")
}
