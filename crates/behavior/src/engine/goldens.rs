//! The engine against the reference implementation, number by number.

use std::sync::Arc;

use consort_core::{AdapterBinding, AdapterSet, ImageHandle};

use super::List;
use crate::case::{Failure, Outcome, ensure};
use crate::fixture::{EngineFixture, Need};
use crate::golden::{Golden, GoldenCase};
use crate::rig::{Rig, differ, first_maximum, within};
use crate::script::Script;

/// The largest difference of a logit of unit scale to the reference.
pub const LOGITS: f32 = 2e-3;
/// The largest difference of an image's embedding to the reference, relative to its root mean square.
const EMBEDDINGS: f32 = 1e-3;

pub(super) fn add(list: &mut List) {
    let Some(golden) = list.fixture.golden.clone() else { return };
    for case in golden.cases() {
        let mut needs = vec![Need::Logits];
        if !case.images.is_empty() {
            needs.push(Need::Images);
        }
        if !case.adapters.is_empty() {
            needs.push(Need::Adapters);
        }
        if case.adapters.iter().any(|adapter| adapter.active_from != Some(0)) {
            needs.push(Need::Activated);
        }
        let (name, shared) = (case.name.clone(), Arc::clone(&golden));
        list.add(format!("golden::{name}::logits"), &needs, move |fixture| {
            let case = find(&shared, &name)?;
            logits(fixture, &shared, case)
        });
        if case.greedy.is_some() {
            let (name, shared) = (case.name.clone(), Arc::clone(&golden));
            list.add(format!("golden::{name}::greedy"), &needs, move |fixture| {
                let case = find(&shared, &name)?;
                greedy(fixture, &shared, case)
            });
        }
    }
    if list.fixture.embedding.is_some() {
        for name in golden.images() {
            let (name, shared) = (name.to_owned(), Arc::clone(&golden));
            list.add(format!("golden::image::{name}::embedding"), &[Need::Images], move |fixture| {
                embedding(fixture, &shared, &name)
            });
        }
    }
}

fn find<'g>(golden: &'g Golden, name: &str) -> Outcome<&'g GoldenCase> {
    golden.case(name).ok_or_else(|| Failure::new(format!("the goldens have no case {name}")))
}

/// The prompt of a case, with its own positions, held against those that the suite computes.
fn script(rig: &mut Rig<'_>, case: &GoldenCase) -> Outcome<Script> {
    let mut script = Script::default();
    let mut from = 0;
    for shown in &case.images {
        let source = rig.fixture.images.iter().zip(&rig.fixture.image_names).find(|(_, name)| **name == shown.image);
        let source = Arc::clone(source.ok_or_else(|| format!("the fixture has no image {}", shown.image))?.0);
        let handle: ImageHandle = rig.encode(&source)?;
        ensure!(
            handle.tokens() == shown.tokens,
            "{} takes {} tokens, {} in the goldens",
            shown.image,
            handle.tokens(),
            shown.tokens
        );
        if shown.at > from {
            script = script.then_text(&case.tokens[from..shown.at]);
        }
        script = script.then_image(&handle);
        from = shown.at + shown.tokens;
    }
    if case.tokens.len() > from {
        script = script.then_text(&case.tokens[from..]);
    }
    let positions = case.positions();
    ensure!(script.positions() == positions, "the positions of the goldens are not those of the family's rule");
    ensure!(script.next() == case.next_position, "the next position is {}, not {}", case.next_position, script.next());
    Ok(script)
}

fn adapters(rig: &mut Rig<'_>, case: &GoldenCase) -> Outcome<AdapterSet> {
    let mut bindings = Vec::new();
    for adapter in &case.adapters {
        let info = rig.named(&adapter.name)?;
        if info.invocation_tokens.is_some() {
            let found = info.invoked_at(&case.tokens);
            let expected = adapter.active_from;
            ensure!(found == expected, "{} is invoked at {found:?}, for PEFT at {expected:?}", adapter.name);
        }
        let binding = |active_from| AdapterBinding { key: info.key, scale: adapter.scale, active_from };
        bindings.extend(adapter.active_from.map(binding));
    }
    Ok(AdapterSet::new(bindings)?)
}

/// How far the logits of a case may be from the reference.
fn tolerance(fixture: &EngineFixture, case: &GoldenCase) -> f32 {
    if case.images.is_empty() { LOGITS } else { LOGITS * fixture.vision_rounding }
}

fn logits(fixture: &EngineFixture, golden: &Golden, case: &GoldenCase) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let tolerance = tolerance(fixture, case);
    let script = script(&mut rig, case)?;
    let adapters = adapters(&mut rig, case)?;
    let rows = golden.logits(case).ok_or("the goldens lack a tensor")?;
    // Whole, where every place can be had.
    if fixture.capability.prompt_logprobs {
        let seq = rig.engine.open(&adapters)?;
        let all = rig.read_all(seq, &script)?;
        rig.engine.release(seq);
        for (at, expected) in case.logits.at.iter().zip(rows.iter()) {
            within(&all[*at], expected, tolerance, &format!("token {at} of {} against the reference", all.len()))?;
        }
    }
    // And in chunks that end where the reference was asked.
    let seq = rig.engine.open(&adapters)?;
    let mut from = 0;
    let mut last = Vec::new();
    for (at, expected) in case.logits.at.iter().zip(rows.iter()) {
        last = rig.read_range(seq, &script, from..at + 1, usize::MAX / 2)?;
        within(&last, expected, tolerance, &format!("token {at}, in chunks, against the reference"))?;
        from = at + 1;
    }
    if let Some(base) = &case.base {
        let base = find(golden, &base.case)?;
        let at = case.logits.at.last().and_then(|last| base.logits.at.iter().position(|at| at == last));
        let expected = golden.logits(base).and_then(|rows| rows.iter().nth(at?)).ok_or("the base has no such row")?;
        differ(&last, expected, "with the adapter against the reference without")?;
    }
    Ok(())
}

fn greedy(fixture: &EngineFixture, golden: &Golden, case: &GoldenCase) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = script(&mut rig, case)?;
    let adapters = adapters(&mut rig, case)?;
    let continuation = case.greedy.as_ref().ok_or("the case has no continuation")?;
    let seq = rig.engine.open(&adapters)?;
    let row = rig.read(seq, &script)?;
    let (tokens, last) = rig.greedy(seq, row, script.next(), continuation.tokens.len())?;
    ensure!(tokens == continuation.tokens, "greedy tokens {tokens:?}, of the reference {:?}", continuation.tokens);
    let expected = golden.last_logits(continuation).ok_or("the goldens lack a tensor")?;
    within(&last, expected, tolerance(fixture, case), "the logits at the continuation's end against the reference")?;
    ensure!(first_maximum(expected) == tokens[tokens.len() - 1], "the goldens contradict themselves");
    Ok(())
}

fn embedding(fixture: &EngineFixture, golden: &Golden, name: &str) -> Outcome {
    let read = fixture.embedding.as_ref().ok_or("the fixture cannot read embeddings")?;
    let index = fixture.image_names.iter().position(|image| image == name);
    let image = index.and_then(|index| fixture.images.get(index));
    let values = read(Arc::clone(image.ok_or_else(|| format!("the fixture has no image {name}"))?))?;
    let expected = golden.embeddings(name).ok_or("the goldens lack a tensor")?.values();
    ensure!(values.len() == expected.len(), "an embedding of {} numbers, not {}", values.len(), expected.len());
    let square: f64 = expected.iter().map(|value| f64::from(*value).powi(2)).sum();
    let scale = (square / expected.len().max(1) as f64).sqrt() as f32;
    let tolerance = EMBEDDINGS * fixture.vision_rounding * scale;
    within(&values, expected, tolerance, &format!("the embedding (root mean square {scale})"))
}
