//! Two files of one model: a quantized engine against the numbers that its own file holds.

use std::sync::Arc;

use crate::case::{Case, Outcome};
use crate::fixture::{EngineFixture, Need};
use crate::rig::{Rig, set, within};
use crate::script::Script;

/// Cases that hold `one` against `other`, which must be the same model: logits within `tolerance` for text, an image and an
/// adapter.
///
/// Random weights amplify what quantization loses, so a quantized engine is compared with its own dequantized file and
/// not with the original.
#[must_use]
pub fn pair_cases(one: &EngineFixture, other: &EngineFixture, tolerance: f32) -> Vec<Case> {
    let add = |name: &str, needs: &[Need], run: fn(&mut Rig<'_>) -> Outcome<Vec<Vec<f32>>>| {
        let (one, other) = (Arc::new(one.clone()), Arc::new(other.clone()));
        let missing = one.missing(needs).or_else(|| other.missing(needs));
        Case::new(name, missing, move || {
            let rows = run(&mut Rig::new(&one)?)?;
            let expected = run(&mut Rig::new(&other)?)?;
            for (index, (row, expected)) in rows.iter().zip(&expected).enumerate() {
                within(row, expected, tolerance, &format!("row {index}, {} against {}", one.name(), other.name()))?;
            }
            Ok(())
        })
    };
    vec![
        add("dequantized_text", &[Need::Logits, Need::AllLogits], text),
        add("dequantized_text_in_chunks", &[Need::Logits], in_chunks),
        add("dequantized_decoding", &[Need::Logits], decoding),
        add("dequantized_image", &[Need::Logits, Need::Images], image),
        add("dequantized_adapter", &[Need::Logits, Need::Adapters], adapter),
    ]
}

fn text(rig: &mut Rig<'_>) -> Outcome<Vec<Vec<f32>>> {
    let seq = rig.open()?;
    let script = Script::text(&rig.fixture.prompt(130, 600));
    rig.read_all(seq, &script)
}

fn in_chunks(rig: &mut Rig<'_>) -> Outcome<Vec<Vec<f32>>> {
    let seq = rig.open()?;
    let script = Script::text(&rig.fixture.prompt(100, 601));
    [0..1, 1..64, 64..65, 65..100]
        .into_iter()
        .map(|range| rig.read_range(seq, &script, range, usize::MAX / 2))
        .collect()
}

/// The same tokens for both, so that one near tie does not part their ways.
fn decoding(rig: &mut Rig<'_>) -> Outcome<Vec<Vec<f32>>> {
    let seq = rig.open()?;
    let script = Script::text(&rig.fixture.prompt(24, 602));
    (0..24).map(|index| rig.read_range(seq, &script, index..index + 1, 1)).collect()
}

fn image(rig: &mut Rig<'_>) -> Outcome<Vec<Vec<f32>>> {
    (0..rig.fixture.images.len().min(4))
        .map(|index| {
            let image = rig.image(index)?;
            let (before, after) = (rig.fixture.prompt(3, 603), rig.fixture.prompt(8, 604));
            rig.fresh(&Script::text(&before).then_image(&image).then_text(&after))
        })
        .collect()
}

fn adapter(rig: &mut Rig<'_>) -> Outcome<Vec<Vec<f32>>> {
    let script = Script::text(&rig.fixture.prompt(40, 605));
    (0..2)
        .map(|index| {
            let key = rig.adapter(index)?;
            rig.fresh_with(&set(&[(&key, 1.0)])?, &script)
        })
        .collect()
}
