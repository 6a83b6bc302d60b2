//! What a sequence says does not depend on who shares its batch.

use consort_core::{AdapterMode, AdapterSet, SeqId, Step, Want};

use super::List;
use crate::case::{Outcome, ensure};
use crate::fixture::{EngineFixture, Need};
use crate::rig::{Rig, differ, done, set};
use crate::script::{Chunk, Script};

pub(super) fn add(list: &mut List) {
    for (count, needs) in [(2, Need::TwoSequences), (3, Need::EightSequences), (8, Need::EightSequences)] {
        let needs = [Need::Logits, needs];
        list.add(format!("a_batch_of_{count}_against_each_alone"), &needs, move |fixture| of(fixture, count));
    }
    let eight = [Need::Logits, Need::EightSequences];
    list.add("a_batch_of_equal_prompts", &[Need::Logits, Need::TwoSequences], equal_prompts);
    list.add("a_batch_in_another_order", &eight, another_order);
    list.add("decoding_beside_a_prefill", &eight, beside_a_prefill);
    list.add("different_wants_in_one_batch", &eight, different_wants);
    list.add("a_late_joiner", &eight, late_joiner);
    let adapters = [Need::Logits, Need::EightSequences, Need::Adapters, Need::SeveralAdapterSets];
    list.add("eight_sequences_with_three_adapters", &adapters, three_adapters);
    list.add("eight_sequences_with_adapters_decode", &adapters, adapters_decode);
    list.add("an_image_beside_text", &[Need::Logits, Need::TwoSequences, Need::Images], image_beside_text);
}

/// What each chunk gives in a fresh engine, alone.
fn alone(fixture: &EngineFixture, chunks: &[Chunk]) -> Outcome<Vec<Vec<f32>>> {
    let mut rig = Rig::new(fixture)?;
    chunks
        .iter()
        .map(|chunk| {
            let seq = rig.open()?;
            let output = rig.step(chunk.step(seq, Want::Last))?;
            rig.engine.release(seq);
            rig.one_row(output)
        })
        .collect()
}

/// What they give in one batch.
fn together(rig: &mut Rig<'_>, seqs: &[SeqId], chunks: &[Chunk]) -> Outcome<Vec<Vec<f32>>> {
    let steps: Vec<Step<'_>> = seqs.iter().zip(chunks).map(|(seq, chunk)| chunk.step(*seq, Want::Last)).collect();
    let outcomes = rig.submit(&steps)?;
    outcomes.into_iter().map(|outcome| rig.one_row(done(outcome)?)).collect()
}

fn open(rig: &mut Rig<'_>, count: usize) -> Outcome<Vec<SeqId>> {
    (0..count).map(|_| rig.open()).collect()
}

fn compare(rig: &Rig<'_>, batch: &[Vec<f32>], alone: &[Vec<f32>]) -> Outcome {
    for (index, (one, other)) in batch.iter().zip(alone).enumerate() {
        rig.same_steps(one, other, &format!("sequence {index} of {} in a batch against alone", batch.len()))?;
    }
    Ok(())
}

/// Prompts of such lengths that each sequence of a batch is at another place of a chunk.
fn prompts(fixture: &EngineFixture, count: usize) -> Vec<Chunk> {
    let lengths = [5, 1, 24, 2, 65, 3, 17, 1];
    let text = |index: usize| Script::text(&fixture.prompt(lengths[index % lengths.len()], 40 + index as u64)).chunk();
    (0..count).map(text).collect()
}

fn of(fixture: &EngineFixture, count: usize) -> Outcome {
    let chunks = prompts(fixture, count);
    let alone = alone(fixture, &chunks)?;
    for (index, pair) in alone.windows(2).enumerate() {
        if fixture.nature.remembers {
            differ(&pair[0], &pair[1], &format!("prompts {index} and {}", index + 1))?;
        }
    }
    let mut rig = Rig::new(fixture)?;
    let seqs = open(&mut rig, count)?;
    let batch = together(&mut rig, &seqs, &chunks)?;
    compare(&rig, &batch, &alone)
}

fn equal_prompts(fixture: &EngineFixture) -> Outcome {
    let chunk = Script::text(&fixture.prompt(33, 41)).chunk();
    let alone = alone(fixture, std::slice::from_ref(&chunk))?;
    let mut rig = Rig::new(fixture)?;
    let seqs = open(&mut rig, 2)?;
    let batch = together(&mut rig, &seqs, &[chunk.clone(), chunk])?;
    compare(&rig, &batch, &[alone[0].clone(), alone[0].clone()])
}

fn another_order(fixture: &EngineFixture) -> Outcome {
    let mut chunks = prompts(fixture, 6);
    let mut rig = Rig::new(fixture)?;
    let seqs = open(&mut rig, 6)?;
    let forward = together(&mut rig, &seqs, &chunks)?;
    chunks.reverse();
    let mut rig = Rig::new(fixture)?;
    let seqs = open(&mut rig, 6)?;
    let mut backward = together(&mut rig, &seqs, &chunks)?;
    backward.reverse();
    compare(&rig, &forward, &backward)
}

/// Four sequences decode while a fifth reads a long prompt in chunks.
fn beside_a_prefill(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let mut solo = Rig::new(fixture)?;
    let starts: Vec<_> = (0..4).map(|index| fixture.prompt(3 + 20 * index, 50 + index as u64)).collect();
    let (mut seqs, mut others) = (open(&mut rig, 5)?, open(&mut solo, 5)?);
    for (index, tokens) in starts.iter().enumerate() {
        rig.read(seqs[index], &Script::text(tokens))?;
        solo.read(others[index], &Script::text(tokens))?;
    }
    let long = Script::text(&fixture.prompt(70, 55));
    let reader = (seqs.pop().ok_or("no reader")?, others.pop().ok_or("no reader")?);
    for (round, part) in [0..16, 16..33, 33..65, 65..70].into_iter().enumerate() {
        let mut chunks: Vec<_> = starts
            .iter()
            .enumerate()
            .map(|(index, start)| {
                let token = fixture.prompt(1, 60 + (round * 4 + index) as u64);
                Script::at((start.len() + round) as u32).then_text(&token).chunk()
            })
            .collect();
        chunks.push(long.chunks(part, usize::MAX / 2).swap_remove(0));
        let all: Vec<_> = seqs.iter().copied().chain([reader.0]).collect();
        let batch = together(&mut rig, &all, &chunks)?;
        for (index, chunk) in chunks.iter().enumerate() {
            let seq = others.get(index).copied().unwrap_or(reader.1);
            let output = solo.step(chunk.step(seq, Want::Last))?;
            let expected = solo.one_row(output)?;
            rig.same_steps(&batch[index], &expected, &format!("round {round}, sequence {index}, beside a prefill"))?;
        }
    }
    Ok(())
}

fn different_wants(fixture: &EngineFixture) -> Outcome {
    let chunks = prompts(fixture, 4);
    let alone = alone(fixture, &chunks)?;
    let mut rig = Rig::new(fixture)?;
    let seqs = open(&mut rig, 4)?;
    let all = if fixture.capability.prompt_logprobs { Want::All } else { Want::Last };
    let wants = [Want::Nothing, all, Want::Nothing, Want::Last];
    let steps: Vec<_> =
        seqs.iter().zip(&chunks).zip(wants).map(|((seq, chunk), want)| chunk.step(*seq, want)).collect();
    for (index, outcome) in rig.submit(&steps)?.into_iter().enumerate() {
        let output = done(outcome)?;
        match (wants[index], output) {
            (Want::Nothing, consort_core::StepOutput::Nothing) => {}
            (Want::Last | Want::All, consort_core::StepOutput::Logits(logits)) => {
                let rows = if wants[index] == Want::All { chunks[index].len() } else { 1 };
                ensure!(logits.rows() == rows, "{} rows where {rows} were wanted", logits.rows());
                let row = logits.last().unwrap_or_default();
                rig.same_tokens(row, &alone[index], &format!("sequence {index} among other wants"))?;
            }
            (want, output) => return Err(format!("{want:?} was wanted, and {output:?} came").into()),
        }
    }
    Ok(())
}

fn late_joiner(fixture: &EngineFixture) -> Outcome {
    let chunks = prompts(fixture, 3);
    let expected = alone(fixture, &chunks)?;
    let mut rig = Rig::new(fixture)?;
    let first = open(&mut rig, 2)?;
    let rows = together(&mut rig, &first, &chunks[..2])?;
    compare(&rig, &rows, &expected[..2])?;
    rig.engine.release(first[0]);
    let late = rig.open()?;
    let next = Script::at(chunks[1].len() as u32).then_text(&fixture.prompt(1, 71)).chunk();
    let rows = together(&mut rig, &[late, first[1]], &[chunks[2].clone(), next])?;
    rig.same_steps(&rows[0], &expected[2], "a sequence that took a released one's place")
}

/// The base model and three adapter sets in turn.
fn adapter_sets(rig: &mut Rig<'_>) -> Outcome<Vec<AdapterSet>> {
    let (one, two) = (rig.adapter(0)?, rig.adapter(1)?);
    let three = if rig.fixture.adapters.len() > 2 { Some(rig.adapter(2)?) } else { None };
    let third = match &three {
        Some(key) => set(&[(key, 1.0)])?,
        None => set(&[(&one, 0.5), (&two, 1.0)])?,
    };
    Ok(vec![AdapterSet::none(), set(&[(&one, 1.0)])?, set(&[(&two, 1.0)])?, third])
}

/// Steps of different adapter sets, in as many submits as the mode asks for.
fn grouped(rig: &mut Rig<'_>, seqs: &[SeqId], chunks: &[Chunk], kinds: &[usize]) -> Outcome<Vec<Vec<f32>>> {
    if rig.fixture.capability.adapter_mode == AdapterMode::MixedBatch {
        return together(rig, seqs, chunks);
    }
    let mut rows = vec![Vec::new(); seqs.len()];
    for kind in 0..4 {
        let members: Vec<usize> = (0..seqs.len()).filter(|index| kinds[*index] == kind).collect();
        if members.is_empty() {
            continue;
        }
        let some_seqs: Vec<_> = members.iter().map(|index| seqs[*index]).collect();
        let some_chunks: Vec<_> = members.iter().map(|index| chunks[*index].clone()).collect();
        for (index, row) in members.iter().zip(together(rig, &some_seqs, &some_chunks)?) {
            rows[*index] = row;
        }
    }
    Ok(rows)
}

const KINDS: [usize; 8] = [1, 0, 2, 3, 1, 3, 2, 0];

fn three_adapters(fixture: &EngineFixture) -> Outcome {
    // One prompt for all as well: only the adapters differ then.
    for same_prompt in [false, true] {
        let mut chunks = prompts(fixture, 8);
        if same_prompt {
            chunks = vec![chunks[2].clone(); 8];
        }
        let mut solo = Rig::new(fixture)?;
        let sets = adapter_sets(&mut solo)?;
        let mut expected = Vec::new();
        for (chunk, kind) in chunks.iter().zip(KINDS) {
            let seq = solo.engine.open(&sets[kind])?;
            let output = solo.step(chunk.step(seq, Want::Last))?;
            solo.engine.release(seq);
            expected.push(solo.one_row(output)?);
        }
        if same_prompt {
            differ(&expected[0], &expected[1], "the first adapter against none")?;
            differ(&expected[0], &expected[2], "the first adapter against the second")?;
            differ(&expected[2], &expected[3], "the second adapter against the third")?;
        }
        let mut rig = Rig::new(fixture)?;
        let sets = adapter_sets(&mut rig)?;
        let seqs = KINDS.iter().map(|kind| Ok(rig.engine.open(&sets[*kind])?)).collect::<Outcome<Vec<_>>>()?;
        let rows = grouped(&mut rig, &seqs, &chunks, &KINDS)?;
        compare(&rig, &rows, &expected)?;
    }
    Ok(())
}

fn adapters_decode(fixture: &EngineFixture) -> Outcome {
    let chunks = prompts(fixture, 8);
    let (mut rig, mut solo) = (Rig::new(fixture)?, Rig::new(fixture)?);
    let (sets, solo_sets) = (adapter_sets(&mut rig)?, adapter_sets(&mut solo)?);
    let mut seqs = Vec::new();
    let mut others = Vec::new();
    for (chunk, kind) in chunks.iter().zip(KINDS) {
        seqs.push(rig.engine.open(&sets[kind])?);
        others.push(solo.engine.open(&solo_sets[kind])?);
        if let (Some(seq), Some(other)) = (seqs.last(), others.last()) {
            rig.step(chunk.step(*seq, Want::Nothing))?;
            solo.step(chunk.step(*other, Want::Nothing))?;
        }
    }
    for round in 0..3_usize {
        let next: Vec<_> = chunks
            .iter()
            .enumerate()
            .map(|(index, chunk)| {
                let token = fixture.prompt(1, 80 + (8 * round + index) as u64);
                Script::at((chunk.len() + round) as u32).then_text(&token).chunk()
            })
            .collect();
        let rows = grouped(&mut rig, &seqs, &next, &KINDS)?;
        for (index, row) in rows.iter().enumerate() {
            let output = solo.step(next[index].step(others[index], Want::Last))?;
            let expected = solo.one_row(output)?;
            rig.same_steps(row, &expected, &format!("round {round}, sequence {index} with its adapter"))?;
        }
    }
    Ok(())
}

fn image_beside_text(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let text = Script::text(&fixture.prompt(9, 90)).chunk();
    let image = rig.image(0)?;
    let picture = Script::default().then_image(&image).chunk();
    let (a, b) = (rig.open()?, rig.open()?);
    let rows = together(&mut rig, &[a, b], &[text.clone(), picture.clone()])?;
    let expected = alone(fixture, &[text])?;
    rig.same_steps(&rows[0], &expected[0], "text beside an image")?;
    let seq = rig.open()?;
    let output = rig.step(picture.step(seq, Want::Last))?;
    let expected = rig.one_row(output)?;
    rig.same_steps(&rows[1], &expected, "an image beside text")
}
