//! Memory is counted, given back, and its end is foreseen.

use consort_core::{AdapterSet, ErrorKind, MemoryReport, StepOutcome, Want};

use super::List;
use crate::case::{Failure, Outcome, ensure};
use crate::fixture::{EngineFixture, Need, Setup};
use crate::rig::{Rig, fails};
use crate::script::Script;

pub(super) fn add(list: &mut List) {
    let logits = [Need::Logits];
    list.add("release_gives_memory_back", &logits, release);
    list.add("released_forks_and_pasts_give_memory_back", &[Need::Logits, Need::Fork, Need::Park], copies);
    list.add("nothing_is_lost_over_time", &logits, leak);
    list.add("a_sequence_tells_what_it_holds", &[Need::Logits, Need::Memory], sequence);
    list.add("a_shallow_fork_is_cheap", &[Need::Logits, Need::Fork, Need::ShallowFork], shallow);
    list.add("a_parked_past_costs_what_it_declares", &[Need::Logits, Need::Park], parked_cost);
    list.add("out_of_memory_is_foreseen", &[Need::Logits, Need::Budget], foreseen);
    list.add("what_was_reserved_fits", &[Need::Logits, Need::Budget], reserved);
    list.add("the_budget_is_kept", &[Need::Logits, Need::Budget], budget);
    list.add("room_comes_back_under_a_budget", &[Need::Logits, Need::Budget, Need::Fork, Need::Park], budget_returns);
}

/// What sequences, pasts and images hold. Scratch may stay: it is declared as such.
fn held(report: &MemoryReport) -> u64 {
    report.kv_cache + report.recurrent_state + report.images
}

/// Freed memory is back before the next submit returns, so one is made first.
fn settled(rig: &mut Rig<'_>) -> Outcome<u64> {
    let seq = rig.open()?;
    rig.read(seq, &Script::text(&rig.fixture.prompt(1, 200)))?;
    let report = rig.engine.memory();
    rig.engine.release(seq);
    Ok(held(&report))
}

fn equal(now: u64, start: u64, what: &str) -> Outcome {
    ensure!(now == start, "{what}: {now} bytes are held, and {start} were at the start");
    Ok(())
}

fn release(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let start = settled(&mut rig)?;
    let mut most = 0;
    let count = fixture.capability.max_sequences.clamp(2, 9) - 1;
    let mut seqs = Vec::new();
    for index in 0..count {
        let seq = rig.open()?;
        rig.read(seq, &Script::text(&fixture.prompt(40, 201 + index as u64)))?;
        most = held(&rig.engine.memory()).max(most);
        seqs.push(seq);
    }
    ensure!(
        most > start || count < 2,
        "{count} sequences of 40 tokens take no memory ({most} bytes, {start} at the start)"
    );
    for seq in seqs {
        rig.engine.release(seq);
    }
    let now = settled(&mut rig)?;
    equal(now, start, "after every sequence was released")
}

fn copies(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let start = settled(&mut rig)?;
    let seq = rig.open()?;
    rig.read(seq, &Script::text(&fixture.prompt(37, 210)))?;
    let fork = rig.engine.fork(seq)?;
    let parked = rig.engine.park(fork)?;
    rig.read(fork, &Script::at(37).then_text(&fixture.prompt(5, 211)))?;
    rig.engine.release(seq);
    rig.engine.release(fork);
    let again = rig.engine.resume(&parked)?;
    rig.read(again, &Script::at(37).then_text(&fixture.prompt(3, 212)))?;
    drop(parked);
    rig.engine.release(again);
    let now = settled(&mut rig)?;
    equal(now, start, "after a sequence, its fork and its parked past were gone")
}

fn leak(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let start = settled(&mut rig)?;
    let mut total = None;
    for round in 0..60 {
        let seq = rig.open()?;
        rig.read(seq, &Script::text(&fixture.prompt(1 + round % 20, 220)))?;
        if fixture.capability.fork {
            let fork = rig.engine.fork(seq)?;
            rig.read(fork, &Script::at(30).then_text(&fixture.prompt(2, 221)))?;
            rig.engine.release(fork);
        }
        if fixture.capability.park {
            let parked = rig.engine.park(seq)?;
            let again = rig.engine.resume(&parked)?;
            rig.engine.release(again);
        }
        // A refused step and an uncollected memory of it are places to leak too.
        let vocabulary = rig.engine.info().vocab_size as u32;
        let bad = Script::at(40).then_text(&[vocabulary]).chunk();
        rig.submit(&[bad.step(seq, Want::Last)])?;
        rig.engine.release(seq);
        let now = settled(&mut rig)?;
        equal(now, start, &format!("after round {round}"))?;
        let all = rig.engine.memory().total();
        if round == 30 {
            total = Some(all);
        } else if let Some(total) = total {
            ensure!(all <= total, "memory grows from round to round: {total} bytes, then {all}");
        }
    }
    Ok(())
}

fn sequence(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let seq = rig.open()?;
    let mut before = 0;
    for (round, range) in [0..1, 1..100, 100..260].into_iter().enumerate() {
        let script = Script::text(&fixture.prompt(260, 230));
        rig.read_range(seq, &script, range, usize::MAX / 2)?;
        let memory = rig.engine.sequence_memory(seq)?;
        let now = memory.unique + memory.shared;
        ensure!(now > 0, "a sequence with tokens holds nothing");
        ensure!(now > before || round < 2, "260 tokens hold no more ({now} bytes) than 100 ({before})");
        ensure!(memory.shared == 0, "a lone sequence shares {} bytes", memory.shared);
        ensure!(
            now <= held(&rig.engine.memory()),
            "one sequence holds more ({now} bytes) than the engine tells of ({} bytes)",
            held(&rig.engine.memory())
        );
        before = now;
    }
    Ok(())
}

fn shallow(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let seq = rig.open()?;
    rig.read(seq, &Script::text(&fixture.prompt(250, 235)))?;
    let before = held(&rig.engine.memory());
    let alone = rig.engine.sequence_memory(seq)?;
    let fork = rig.engine.fork(seq)?;
    let grown = held(&rig.engine.memory()).saturating_sub(before);
    let whole = alone.unique + alone.shared;
    ensure!(grown < whole, "a shallow fork took {grown} bytes, and a whole copy would take {whole}");
    let shared = rig.engine.sequence_memory(fork)?.shared;
    ensure!(shared > 0, "a shallow fork shares nothing");
    Ok(())
}

fn parked_cost(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let start = settled(&mut rig)?;
    for length in [1, 40, 130] {
        let seq = rig.open()?;
        rig.read(seq, &Script::text(&fixture.prompt(length, 240)))?;
        let parked = rig.engine.park(seq)?;
        rig.engine.release(seq);
        let now = settled(&mut rig)?;
        let cost = now.saturating_sub(start);
        ensure!(
            cost <= parked.bytes(),
            "a parked past of {length} tokens declares {} bytes and costs {cost}",
            parked.bytes()
        );
        drop(parked);
        let now = settled(&mut rig)?;
        equal(now, start, "after a parked past was dropped")?;
    }
    Ok(())
}

/// A budget that holds a few sequences of some tokens.
fn tight(fixture: &EngineFixture) -> Outcome<Setup> {
    let mut rig = Rig::new(fixture)?;
    let seq = rig.open()?;
    rig.read(seq, &Script::text(&fixture.prompt(200, 245)))?;
    let memory = rig.engine.sequence_memory(seq)?;
    Ok(Setup { sequence_budget: Some(2 * (memory.unique + memory.shared)), ..fixture.setup() })
}

fn foreseen(fixture: &EngineFixture) -> Outcome {
    let setup = tight(fixture)?;
    let mut rig = Rig::with(fixture, &setup)?;
    let script = Script::text(&fixture.prompt(30, 246));
    let seq = rig.open()?;
    rig.read_range(seq, &script, 0..20, usize::MAX / 2)?;
    let before = rig.engine.memory();
    let most = fixture.capability.max_sequence_tokens - 20;
    fails(rig.engine.reserve(seq, most), ErrorKind::OutOfMemory, "reserving beyond the budget")?;
    ensure!(rig.engine.memory() == before, "a reservation that failed changed what is held");
    let row = rig.read_range(seq, &script, 20..30, usize::MAX / 2)?;
    let mut alone = Rig::new(fixture)?;
    let other = alone.open()?;
    alone.read_range(other, &script, 0..20, usize::MAX / 2)?;
    let expected = alone.read_range(other, &script, 20..30, usize::MAX / 2)?;
    rig.same_steps(&row, &expected, "after a reservation that failed")
}

fn reserved(fixture: &EngineFixture) -> Outcome {
    let setup = tight(fixture)?;
    let mut rig = Rig::with(fixture, &setup)?;
    let keeper = rig.open()?;
    rig.engine.reserve(keeper, 100)?;
    // Others take what they can get.
    let mut others = Vec::new();
    while let Ok(seq) = rig.engine.open(&AdapterSet::none()) {
        let chunk = Script::text(&fixture.prompt(60, 247)).chunk();
        let outcome = rig.submit(&[chunk.step(seq, Want::Nothing)])?.swap_remove(0);
        others.push(seq);
        if !matches!(outcome, StepOutcome::Done(_)) || others.len() > 64 {
            break;
        }
    }
    let script = Script::text(&fixture.prompt(100, 248));
    rig.read(keeper, &script).map_err(|failure| failure.during("reading what was reserved"))?;
    Ok(())
}

fn budget(fixture: &EngineFixture) -> Outcome {
    let setup = tight(fixture)?;
    let limit = setup.sequence_budget.unwrap_or(u64::MAX);
    let mut rig = Rig::with(fixture, &setup)?;
    ensure!(
        rig.engine.memory().sequence_budget.is_some_and(|told| told <= limit),
        "the budget of {limit} bytes is told as {:?}",
        rig.engine.memory().sequence_budget
    );
    let first = rig.open()?;
    let script = Script::text(&fixture.prompt(1000, 249));
    let mut refused = false;
    for (index, chunk) in script.chunks(0..1000, 20).iter().enumerate() {
        match rig.submit(&[chunk.step(first, Want::Nothing)])?.swap_remove(0) {
            StepOutcome::Done(_) => {}
            StepOutcome::Refused(error) => {
                ensure!(error.kind() == ErrorKind::OutOfMemory, "a spent budget is out of memory: {error:?}");
                refused = true;
                break;
            }
            StepOutcome::Poisoned(error) => {
                return Err(Failure::from(error).during(&format!("chunk {index}: a spent budget must refuse")));
            }
        }
        let memory = rig.engine.memory();
        ensure!(
            memory.kv_cache + memory.recurrent_state <= limit,
            "{} bytes are held under a budget of {limit}",
            memory.kv_cache + memory.recurrent_state
        );
    }
    ensure!(refused, "1000 tokens fitted into the budget of two times 200");
    rig.engine.release(first);
    let row = rig.fresh(&Script::text(&fixture.prompt(50, 250)))?;
    let mut alone = Rig::new(fixture)?;
    let expected = alone.fresh(&Script::text(&fixture.prompt(50, 250)))?;
    rig.same_steps(&row, &expected, "after a budget was spent and given back")
}

fn budget_returns(fixture: &EngineFixture) -> Outcome {
    let setup = tight(fixture)?;
    let mut rig = Rig::with(fixture, &setup)?;
    for round in 0..20 {
        let seq = rig.open().map_err(|failure| failure.during(&format!("round {round}")))?;
        rig.read(seq, &Script::text(&fixture.prompt(90, 251)))
            .map_err(|failure| failure.during(&format!("round {round}")))?;
        // Whatever of these still fits: none of it may be lost.
        let fork = rig.engine.fork(seq);
        let parked = rig.engine.park(seq);
        let resumed = parked.as_ref().ok().and_then(|parked| rig.engine.resume(parked).ok());
        drop(parked);
        for seq in [Some(seq), fork.ok(), resumed].into_iter().flatten() {
            rig.engine.release(seq);
        }
    }
    Ok(())
}
