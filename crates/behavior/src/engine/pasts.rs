//! Forks and parked pasts: what is shared stays shared until written, and nobody sees another's writes.

use consort_core::{AdapterSet, SeqId, Step, Want};

use super::List;
use crate::case::{Failure, Outcome, ensure};
use crate::fixture::{EngineFixture, Need};
use crate::rig::{Rig, differ, done, set};
use crate::script::Script;

/// Lengths of a shared past: an empty one, one token, and the borders of a chunk, a page and a window.
const PASTS: [usize; 8] = [0, 1, 3, 16, 31, 63, 64, 65];

pub(super) fn add(list: &mut List) {
    let fork = [Need::Logits, Need::Fork, Need::TwoSequences];
    let park = [Need::Logits, Need::Park, Need::TwoSequences];
    for length in PASTS {
        list.add(format!("fork_after_{length}"), &fork, move |fixture| isolation(fixture, length, Copy::Fork));
        list.add(format!("resume_after_{length}"), &park, move |fixture| isolation(fixture, length, Copy::Park));
    }
    list.add("a_fork_outlives_its_parent", &fork, |fixture| outlives(fixture, Copy::Fork));
    list.add("a_parked_past_outlives_its_parent", &park, |fixture| outlives(fixture, Copy::Park));
    list.add("a_parent_outlives_its_fork", &fork, parent_outlives);
    list.add("a_fork_of_a_fork", &[Need::Logits, Need::Fork, Need::EightSequences], grandchild);
    list.add("many_forks_in_one_batch", &[Need::Logits, Need::Fork, Need::EightSequences], many);
    list.add("a_past_is_as_it_was_when_parked", &park, parked_is_a_copy);
    list.add("two_parked_pasts_do_not_mix", &park, two_parked);
    list.add("resumed_twice_from_one_past", &[Need::Logits, Need::Park, Need::EightSequences], twice);
    list.add("a_resumed_past_can_be_parked_again", &park, parked_again);
    list.add("parked_pasts_take_no_slot", &[Need::Logits, Need::Park], no_slot);
    let fork_adapters = [Need::Logits, Need::Fork, Need::TwoSequences, Need::Adapters];
    let park_adapters = [Need::Logits, Need::Park, Need::TwoSequences, Need::Adapters];
    list.add("a_fork_keeps_its_adapters", &fork_adapters, |fixture| keeps_adapters(fixture, Copy::Fork));
    list.add("a_parked_past_keeps_its_adapters", &park_adapters, |fixture| keeps_adapters(fixture, Copy::Park));
    let fork_image = [Need::Logits, Need::Fork, Need::TwoSequences, Need::Images];
    let park_image = [Need::Logits, Need::Park, Need::TwoSequences, Need::Images];
    list.add("a_fork_has_seen_the_image", &fork_image, |fixture| has_seen(fixture, Copy::Fork));
    list.add("a_resumed_past_has_seen_the_image", &park_image, |fixture| has_seen(fixture, Copy::Park));
}

#[derive(Clone, Copy)]
enum Copy {
    Fork,
    Park,
}

impl Copy {
    fn of(self, rig: &mut Rig<'_>, seq: SeqId) -> Outcome<SeqId> {
        match self {
            Self::Fork => Ok(rig.engine.fork(seq)?),
            Self::Park => {
                let parked = rig.engine.park(seq)?;
                Ok(rig.engine.resume(&parked)?)
            }
        }
    }
}

/// What a lone sequence says after text that was read up to `border` and then in `steps`.
fn lone(fixture: &EngineFixture, tokens: &[u32], border: usize, steps: &[usize]) -> Outcome<Vec<Vec<f32>>> {
    let mut rig = Rig::new(fixture)?;
    let seq = rig.open()?;
    let script = Script::text(tokens);
    if border > 0 {
        rig.read_range(seq, &script, 0..border, usize::MAX / 2)?;
    }
    let mut from = border;
    let mut rows = Vec::new();
    for step in steps {
        rows.push(rig.read_range(seq, &script, from..from + step, usize::MAX / 2)?);
        from += step;
    }
    Ok(rows)
}

/// Parent and child go different ways, in turns, and each says what it would say alone.
fn isolation(fixture: &EngineFixture, length: usize, copy: Copy) -> Outcome {
    let shared = fixture.prompt(length, 100);
    let steps = [1, 2, 33];
    let ways: Vec<Vec<u32>> = (0..2).map(|way| [shared.clone(), fixture.prompt(36, 101 + way)].concat()).collect();
    let expected = ways.iter().map(|way| lone(fixture, way, length, &steps)).collect::<Outcome<Vec<_>>>()?;
    if fixture.nature.remembers {
        differ(&expected[0][2], &expected[1][2], "the two ways")?;
    }
    let mut rig = Rig::new(fixture)?;
    let parent = rig.open()?;
    let scripts: Vec<_> = ways.iter().map(|way| Script::text(way)).collect();
    if length > 0 {
        rig.read_range(parent, &scripts[0], 0..length, usize::MAX / 2)?;
    }
    let child = copy.of(&mut rig, parent)?;
    ensure!(child != parent, "the copy has its parent's id");
    let mut from = length;
    for (round, step) in steps.into_iter().enumerate() {
        // The child first in one round, the parent first in the next.
        let mut order = [(1, child), (0, parent)];
        if round % 2 == 1 {
            order.reverse();
        }
        for (way, seq) in order {
            let row = rig.read_range(seq, &scripts[way], from..from + step, usize::MAX / 2)?;
            let who = if way == 0 { "the parent" } else { "the copy" };
            rig.same_steps(
                &row,
                &expected[way][round],
                &format!("{who}, round {round}, after {length} shared tokens"),
            )?;
        }
        from += step;
    }
    Ok(())
}

fn outlives(fixture: &EngineFixture, copy: Copy) -> Outcome {
    let tokens = fixture.prompt(50, 110);
    let expected = lone(fixture, &tokens, 40, &[10])?;
    let mut rig = Rig::new(fixture)?;
    let script = Script::text(&tokens);
    let parent = rig.open()?;
    rig.read_range(parent, &script, 0..40, usize::MAX / 2)?;
    let child = match copy {
        Copy::Fork => {
            let child = rig.engine.fork(parent)?;
            rig.engine.release(parent);
            overwrite(&mut rig)?;
            child
        }
        Copy::Park => {
            let parked = rig.engine.park(parent)?;
            rig.engine.release(parent);
            overwrite(&mut rig)?;
            ensure!(parked.tokens() == 40, "a past of 40 tokens says that it has {}", parked.tokens());
            rig.engine.resume(&parked)?
        }
    };
    let row = rig.read_range(child, &script, 40..50, usize::MAX / 2)?;
    rig.same_steps(&row, &expected[0], "after the parent was released and its room written by others")
}

/// Fills freed room with something else, so that a freed page that is still in use shows.
fn overwrite(rig: &mut Rig<'_>) -> Outcome {
    for seed in 0..3 {
        let other = rig.fixture.prompt(45, 111 + seed);
        rig.fresh_text(&other)?;
    }
    Ok(())
}

fn parent_outlives(fixture: &EngineFixture) -> Outcome {
    let tokens = fixture.prompt(50, 115);
    let expected = lone(fixture, &tokens, 40, &[10])?;
    let mut rig = Rig::new(fixture)?;
    let script = Script::text(&tokens);
    let parent = rig.open()?;
    rig.read_range(parent, &script, 0..40, usize::MAX / 2)?;
    let child = rig.engine.fork(parent)?;
    rig.read(child, &Script::at(40).then_text(&fixture.prompt(5, 116)))?;
    rig.engine.release(child);
    overwrite(&mut rig)?;
    let row = rig.read_range(parent, &script, 40..50, usize::MAX / 2)?;
    rig.same_steps(&row, &expected[0], "after the fork was released")
}

fn grandchild(fixture: &EngineFixture) -> Outcome {
    let tokens = fixture.prompt(60, 120);
    let script = Script::text(&tokens);
    let mut rig = Rig::new(fixture)?;
    let mut seq = rig.open()?;
    let mut from = 0;
    let mut line = vec![seq];
    for to in [20, 37, 48] {
        rig.read_range(seq, &script, from..to, usize::MAX / 2)?;
        seq = rig.engine.fork(seq)?;
        line.push(seq);
        from = to;
    }
    for ancestor in &line[..3] {
        rig.engine.release(*ancestor);
    }
    let row = rig.read_range(seq, &script, 48..60, usize::MAX / 2)?;
    let mut alone = Rig::new(fixture)?;
    let other = alone.open()?;
    for range in [0..20, 20..37, 37..48] {
        alone.read_range(other, &script, range, usize::MAX / 2)?;
    }
    let expected = alone.read_range(other, &script, 48..60, usize::MAX / 2)?;
    rig.same_steps(&row, &expected, "a fork of a fork of a fork")
}

/// A shared scene, then each persona's own note, all in one batch.
fn many(fixture: &EngineFixture) -> Outcome {
    let scene = fixture.prompt(37, 125);
    let notes: Vec<_> = (0..7).map(|index| fixture.prompt(1 + 3 * index, 126 + index as u64)).collect();
    let mut rig = Rig::new(fixture)?;
    let parent = rig.open()?;
    rig.read(parent, &Script::text(&scene))?;
    let mut seqs = Vec::new();
    for _ in &notes {
        seqs.push(rig.engine.fork(parent)?);
    }
    let chunks: Vec<_> = notes.iter().map(|note| Script::at(37).then_text(note).chunk()).collect();
    let steps: Vec<Step<'_>> = seqs.iter().zip(&chunks).map(|(seq, chunk)| chunk.step(*seq, Want::Last)).collect();
    let outcomes = rig.submit(&steps)?;
    for (index, outcome) in outcomes.into_iter().enumerate() {
        let row = rig.one_row(done(outcome)?)?;
        let whole = [scene.clone(), notes[index].clone()].concat();
        let expected = lone(fixture, &whole, 37, &[notes[index].len()])?;
        rig.same_steps(&row, &expected[0], &format!("fork {index} of 7"))?;
    }
    Ok(())
}

fn parked_is_a_copy(fixture: &EngineFixture) -> Outcome {
    let tokens = fixture.prompt(30, 130);
    let script = Script::text(&tokens);
    let expected = lone(fixture, &tokens, 20, &[10])?;
    let mut rig = Rig::new(fixture)?;
    let parent = rig.open()?;
    rig.read_range(parent, &script, 0..20, usize::MAX / 2)?;
    let parked = rig.engine.park(parent)?;
    // The parent goes elsewhere before anybody resumes.
    rig.read(parent, &Script::at(20).then_text(&fixture.prompt(25, 131)))?;
    let child = rig.engine.resume(&parked)?;
    let row = rig.read_range(child, &script, 20..30, usize::MAX / 2)?;
    rig.same_steps(&row, &expected[0], "a past that was parked before its sequence went on")
}

fn two_parked(fixture: &EngineFixture) -> Outcome {
    let ways: Vec<_> = (0..2).map(|way| fixture.prompt(30, 135 + way)).collect();
    let mut rig = Rig::new(fixture)?;
    let mut parked = Vec::new();
    for way in &ways {
        let seq = rig.open()?;
        rig.read_range(seq, &Script::text(way), 0..20, usize::MAX / 2)?;
        parked.push(rig.engine.park(seq)?);
        rig.engine.release(seq);
    }
    for round in 0..2 {
        for (way, parked) in ways.iter().zip(&parked) {
            let seq = rig.engine.resume(parked)?;
            let row = rig.read_range(seq, &Script::text(way), 20..30, usize::MAX / 2)?;
            rig.engine.release(seq);
            let expected = lone(fixture, way, 20, &[10])?;
            rig.same_steps(&row, &expected[0], &format!("one of two parked pasts, round {round}"))?;
        }
    }
    Ok(())
}

fn twice(fixture: &EngineFixture) -> Outcome {
    let shared = fixture.prompt(33, 140);
    let mut rig = Rig::new(fixture)?;
    let parent = rig.open()?;
    rig.read(parent, &Script::text(&shared))?;
    let parked = rig.engine.park(parent)?;
    rig.engine.release(parent);
    let clone = parked.clone();
    let first = rig.engine.resume(&parked)?;
    drop(parked);
    let second = rig.engine.resume(&clone)?;
    drop(clone);
    for (seed, seq) in [(141, first), (142, second)] {
        let more = fixture.prompt(4, seed);
        let row = rig.read(seq, &Script::at(33).then_text(&more))?;
        let expected = lone(fixture, &[shared.clone(), more].concat(), 33, &[4])?;
        rig.same_steps(&row, &expected[0], "resumed twice")?;
    }
    Ok(())
}

fn parked_again(fixture: &EngineFixture) -> Outcome {
    let tokens = fixture.prompt(70, 145);
    let script = Script::text(&tokens);
    let mut rig = Rig::new(fixture)?;
    let mut seq = rig.open()?;
    let mut from = 0;
    for to in [10, 27, 64] {
        rig.read_range(seq, &script, from..to, usize::MAX / 2)?;
        let parked = rig.engine.park(seq)?;
        ensure!(parked.tokens() == to, "a past of {to} tokens says that it has {}", parked.tokens());
        rig.engine.release(seq);
        seq = rig.engine.resume(&parked)?;
        from = to;
    }
    let row = rig.read_range(seq, &script, 64..70, usize::MAX / 2)?;
    let mut alone = Rig::new(fixture)?;
    let other = alone.open()?;
    for range in [0..10, 10..27, 27..64] {
        alone.read_range(other, &script, range, usize::MAX / 2)?;
    }
    let expected = alone.read_range(other, &script, 64..70, usize::MAX / 2)?;
    rig.same_steps(&row, &expected, "parked and resumed three times")
}

fn no_slot(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let most = fixture.capability.max_sequences.min(32);
    let mut parked = Vec::new();
    for index in 0..most + 2 {
        let seq = rig.open().map_err(|failure| failure.during(&format!("with {index} parked pasts")))?;
        rig.read(seq, &Script::text(&fixture.prompt(5, 150 + index as u64)))?;
        parked.push(rig.engine.park(seq)?);
        rig.engine.release(seq);
    }
    for (index, past) in parked.iter().enumerate() {
        let seq = rig.engine.resume(past)?;
        let more = fixture.prompt(2, 149);
        let row = rig.read(seq, &Script::at(5).then_text(&more))?;
        rig.engine.release(seq);
        let whole = [fixture.prompt(5, 150 + index as u64), more].concat();
        let expected = lone(fixture, &whole, 5, &[2])?;
        rig.same_steps(&row, &expected[0], &format!("parked past {index}"))?;
    }
    Ok(())
}

fn keeps_adapters(fixture: &EngineFixture, copy: Copy) -> Outcome {
    let tokens = fixture.prompt(24, 160);
    let script = Script::text(&tokens);
    let mut rig = Rig::new(fixture)?;
    let key = rig.adapter(0)?;
    let adapters = set(&[(&key, 1.0)])?;
    let read = |rig: &mut Rig<'_>, adapters: &AdapterSet| -> Outcome<Vec<f32>> {
        let seq = rig.engine.open(adapters)?;
        rig.read_range(seq, &script, 0..16, usize::MAX / 2)?;
        let child = copy.of(rig, seq)?;
        rig.engine.release(seq);
        let row = rig.read_range(child, &script, 16..24, usize::MAX / 2);
        rig.engine.release(child);
        row
    };
    let with = read(&mut rig, &adapters)?;
    let without = read(&mut rig, &AdapterSet::none())?;
    differ(&with, &without, "a copy with an adapter against one without")?;
    let seq = rig.engine.open(&adapters)?;
    rig.read_range(seq, &script, 0..16, usize::MAX / 2)?;
    let expected = rig.read_range(seq, &script, 16..24, usize::MAX / 2)?;
    rig.same_steps(&with, &expected, "a copy with an adapter against the sequence itself")
}

fn has_seen(fixture: &EngineFixture, copy: Copy) -> Outcome {
    let mut rows = Vec::new();
    let mut rig = Rig::new(fixture)?;
    for index in [0, 1] {
        let image = rig.image(index)?;
        let script = Script::text(&fixture.prompt(3, 165)).then_image(&image);
        let whole = script.clone().then_text(&fixture.prompt(6, 166));
        let seq = rig.open()?;
        rig.read(seq, &script)?;
        let child = copy.of(&mut rig, seq)?;
        rig.engine.release(seq);
        drop(image);
        let row = rig.read_range(child, &whole, script.len()..whole.len(), usize::MAX / 2)?;
        let expected = rig.fresh(&whole)?;
        rig.same_tokens(&row, &expected, "a copy after an image against the whole")?;
        rows.push(row);
    }
    differ(&rows[0], &rows[1], "copies that have seen different images")
        .map_err(|failure: Failure| failure.during("an image that a copy has seen"))
}
