//! Prompts of every length that borders on something, whole and in chunks.

use consort_core::{Position, StepOutput, Want};

use super::List;
use crate::case::{Outcome, ensure};
use crate::fixture::{EngineFixture, Need};
use crate::rig::{Rig, differ};
use crate::script::Script;

/// One window of the convolution and one less, the chunk of the delta rule and its neighbours.
pub(super) const LENGTHS: [usize; 6] = [1, 2, 3, 63, 64, 65];

pub(super) fn add(list: &mut List) {
    let logits = [Need::Logits];
    for length in LENGTHS {
        list.add(format!("prompt_of_{length}"), &logits, move |fixture| prompt(fixture, length));
        list.add(format!("prompt_of_{length}_at_every_place"), &[Need::Logits, Need::AllLogits], move |fixture| {
            every_place(fixture, length)
        });
    }
    for (length, splits) in splits() {
        for split in splits {
            let name = split.iter().map(usize::to_string).collect::<Vec<_>>().join("_");
            list.add(format!("chunks_of_{length}_after_{name}"), &logits, move |fixture| {
                chunked(fixture, length, &split)
            });
        }
    }
    list.add("token_by_token", &logits, token_by_token);
    list.add("chunks_of_seven", &logits, chunks_of_seven);
    list.add("what_was_heard_first_matters", &[Need::Logits, Need::Memory], first_matters);
    list.add("order_matters", &[Need::Logits, Need::Memory], order_matters);
    list.add("positions_matter", &[Need::Logits, Need::Positions], positions_matter);
    list.add("positions_are_taken_from_the_caller", &[Need::Logits, Need::Positions], gap_in_positions);
    list.add("two_engines_agree", &logits, two_engines);
}

/// Where prompts are cut: at, before and after each border, and several times.
fn splits() -> Vec<(usize, Vec<Vec<usize>>)> {
    vec![
        (2, vec![vec![1]]),
        (3, vec![vec![1], vec![2], vec![1, 2]]),
        (63, vec![vec![1], vec![62], vec![31]]),
        (64, vec![vec![63], vec![32], vec![1, 63]]),
        (65, vec![vec![64], vec![63], vec![1], vec![1, 2, 3, 64]]),
        (130, vec![vec![63], vec![64], vec![65], vec![128], vec![1, 64, 65, 129], vec![3, 66]]),
    ]
}

fn prompt(fixture: &EngineFixture, length: usize) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = Script::text(&fixture.prompt(length, 10));
    let first = rig.fresh(&script)?;
    let second = rig.fresh(&script)?;
    rig.same_steps(&first, &second, "the same prompt twice")
}

fn every_place(fixture: &EngineFixture, length: usize) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let tokens = fixture.prompt(length, 11);
    let seq = rig.open()?;
    let rows = rig.read_all(seq, &Script::text(&tokens))?;
    rig.engine.release(seq);
    for place in [0, length / 2, length.saturating_sub(2), length - 1] {
        let alone = rig.fresh_text(&tokens[..=place])?;
        rig.same_tokens(&rows[place], &alone, &format!("row {place} against the prompt that ends there"))?;
    }
    Ok(())
}

fn chunked(fixture: &EngineFixture, length: usize, split: &[usize]) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = Script::text(&fixture.prompt(length, 12));
    let whole = rig.fresh(&script)?;
    let seq = rig.open()?;
    let mut from = 0;
    for &border in split {
        rig.read_range(seq, &script, from..border, usize::MAX / 2)?;
        from = border;
    }
    let row = rig.read_range(seq, &script, from..length, usize::MAX / 2)?;
    rig.same_tokens(&row, &whole, "in chunks against whole")?;
    // What a chunk leaves behind shows in the next token too.
    let next = Script::at(script.next()).then_text(&fixture.prompt(1, 13));
    let after = rig.read(seq, &next)?;
    rig.engine.release(seq);
    let mut tokens = fixture.prompt(length, 12);
    tokens.extend(fixture.prompt(1, 13));
    let whole = rig.fresh_text(&tokens)?;
    rig.same_tokens(&after, &whole, "a token after the chunks")
}

fn stepwise(fixture: &EngineFixture, length: usize, most: usize) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = Script::text(&fixture.prompt(length, 14));
    let whole = rig.fresh(&script)?;
    let seq = rig.open()?;
    // Wanting nothing, so that a chunk is what it is in a prefill.
    let row = rig.read_range(seq, &script, 0..length, most)?;
    rig.same_tokens(&row, &whole, "in steps against whole")
}

fn token_by_token(fixture: &EngineFixture) -> Outcome {
    stepwise(fixture, 66, 1)
}

fn chunks_of_seven(fixture: &EngineFixture) -> Outcome {
    stepwise(fixture, 131, 7)
}

fn first_matters(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let tokens = fixture.prompt(12, 15);
    let mut other = tokens.clone();
    other[0] =
        fixture.tokens.start + (other[0] - fixture.tokens.start + 1) % (fixture.tokens.end - fixture.tokens.start);
    let (one, two) = (rig.fresh_text(&tokens)?, rig.fresh_text(&other)?);
    differ(&one, &two, "another first token of twelve")
}

fn order_matters(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let tokens = fixture.prompt(24, 16);
    let mut other = tokens.clone();
    other[..20].reverse();
    let (one, two) = (rig.fresh_text(&tokens)?, rig.fresh_text(&other)?);
    differ(&one, &two, "the first twenty tokens backwards")
}

fn positions_matter(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = Script::text(&fixture.prompt(130, 17));
    let right = rig.fresh(&script)?;
    let shifted = |index: usize| Position::text(if index < 65 { index } else { index + 32 } as u32);
    let shifted = script.with_positions((0..130).map(shifted).collect());
    let wrong = rig.fresh(&shifted)?;
    differ(&right, &wrong, "the second half 32 positions further")
}

/// An engine that counts for itself would not notice the gap after an image, whose tokens share positions.
fn gap_in_positions(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let tokens = fixture.prompt(80, 18);
    let gap = |index: usize| Position::text(if index < 40 { index } else { index + 57 } as u32);
    let script = Script::text(&tokens).with_positions((0..80).map(gap).collect());
    let whole = rig.fresh(&script)?;
    let seq = rig.open()?;
    rig.read_range(seq, &script, 0..40, usize::MAX / 2)?;
    let row = rig.read_range(seq, &script, 40..80, usize::MAX / 2)?;
    rig.same_tokens(&row, &whole, "a gap in the positions, in chunks against whole")?;
    let without = rig.fresh_text(&tokens)?;
    differ(&row, &without, "a gap of 57 positions")
}

fn two_engines(fixture: &EngineFixture) -> Outcome {
    let script = Script::text(&fixture.prompt(20, 19));
    let mut rows = Vec::new();
    for _ in 0..2 {
        let mut rig = Rig::new(fixture)?;
        let seq = rig.open()?;
        let chunks = script.chunks(0..13, usize::MAX / 2);
        let nothing = rig.step(chunks[0].step(seq, Want::Nothing))?;
        ensure!(nothing == StepOutput::Nothing, "a step that wanted nothing gave something");
        rows.push(rig.read_range(seq, &script, 13..20, usize::MAX / 2)?);
    }
    let rig = Rig::new(fixture)?;
    rig.same_steps(&rows[0], &rows[1], "two engines")
}
