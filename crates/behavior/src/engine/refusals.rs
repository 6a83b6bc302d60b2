//! What must be refused, and that nobody else notices.

use std::rc::Rc;
use std::sync::Arc;

use consort_core::{
    AdapterBinding, AdapterFiles, AdapterKey, AdapterMode, AdapterSet, AdapterSource, ErrorKind, ImageHandle, Parked,
    PatchGrid, Pooling, Position, SeqId, Step, StepInput, Ticket, TokenId, Want,
};

use super::List;
use crate::case::{Failure, Outcome, ensure};
use crate::fixture::{EngineFixture, Need};
use crate::picture::Picture;
use crate::rig::{Rig, done, fails, refused};
use crate::script::Script;

pub(super) fn add(list: &mut List) {
    let logits = [Need::Logits];
    let two = [Need::Logits, Need::TwoSequences];
    list.add("what_is_not_declared_is_refused", &[], undeclared);
    list.add("slots_are_bounded", &[], slots);
    list.add("a_released_id_is_stale", &two, stale);
    list.add("ids_are_never_reused", &[], never_reused);
    list.add("a_ticket_is_collected_once", &logits, ticket_once);
    list.add("a_ticket_that_never_was", &[], unknown_ticket);
    list.add("a_sequence_twice_in_a_batch", &logits, |fixture| malformed(fixture, &Malformed::Twice));
    list.add("an_empty_step", &logits, |fixture| malformed(fixture, &Malformed::Empty));
    list.add("too_many_tokens_in_a_batch", &logits, |fixture| malformed(fixture, &Malformed::TooMany));
    list.add("a_full_batch_is_taken", &logits, full_batch);
    for (name, fault) in [
        ("a_token_just_beyond_the_vocabulary", BadStep::NextToken),
        ("the_largest_token_id", BadStep::LargestToken),
        ("a_bad_token_at_the_end", BadStep::LastToken),
        ("too_few_positions", BadStep::FewPositions),
        ("too_many_positions", BadStep::ManyPositions),
        ("no_positions", BadStep::NoPositions),
        ("an_unknown_sequence", BadStep::UnknownSequence),
    ] {
        list.add(format!("{name}_is_refused_alone"), &two, move |fixture| refused_alone(fixture, fault));
    }
    list.add("a_refused_step_leaves_its_sequence", &logits, refusal_changes_nothing);
    list.add("a_sequence_is_bounded", &logits, bounded_sequence);
    list.add("an_adapter_that_is_not_loaded", &[Need::Adapters], unknown_adapter);
    list.add("anothers_image_is_refused", &[Need::Images], foreign_image);
    list.add("anothers_past_is_refused", &[Need::Park], foreign_past);
    list.add("an_image_range_beyond_its_end", &[Need::Images, Need::Logits], image_range);
}

fn undeclared(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let capability = fixture.capability;
    let seq = rig.open()?;
    let script = Script::text(&fixture.prompt(2, 20));
    rig.step(script.chunk().step(seq, Want::Nothing))?;
    let unsupported = ErrorKind::Unsupported;
    if !capability.fork {
        fails(rig.engine.fork(seq), unsupported, "fork")?;
    }
    if !capability.activated_adapters {
        let result = rig.engine.fork_with(seq, &AdapterSet::none());
        fails(result, unsupported, "fork_with")?;
    }
    if !capability.park {
        fails(rig.engine.park(seq), unsupported, "park")?;
    }
    fails(rig.engine.rollback(seq, capability.max_rollback + 1), unsupported, "a rollback beyond the limit")?;
    if !capability.image_input {
        fails(rig.engine.begin_image(Picture::seeded(4, 4, 1)), unsupported, "begin_image")?;
    }
    if capability.adapter_mode == AdapterMode::None {
        let key = AdapterKey { id: "someone".into(), generation: 1 };
        let files = AdapterFiles::Bytes { config: Arc::from(*b"{}"), weights: Arc::from(*b"") };
        let result = rig.engine.load_adapter(&AdapterSource { key: key.clone(), files });
        fails(result, unsupported, "load_adapter")?;
        let set = AdapterSet::new([AdapterBinding::new(key, 1.0)])?;
        ensure!(rig.engine.open(&set).is_err(), "a sequence was opened with an adapter, and none is supported");
    }
    if !capability.snapshot_to_disk {
        let parked = Parked::new(Rc::new(()), 0, 0);
        fails(rig.engine.save(&parked, &mut Vec::new()), unsupported, "save")?;
        let result = rig.engine.load(&mut &b""[..]);
        fails(result, unsupported, "load")?;
    }
    let wants = [
        (capability.device_top_k, Want::TopK { k: 1, mask: None, bias: &[] }, "a top k"),
        (capability.embeddings, Want::Pooled(Pooling::Last), "pooled states"),
        (capability.prompt_logprobs, Want::All, "the logits of every place"),
        (capability.logprobs, Want::Last, "logits"),
    ];
    for (declared, want, what) in wants {
        if !declared {
            let outcome = rig.submit(&[script.chunk().step(seq, want)])?.swap_remove(0);
            let error = refused(outcome, what)?;
            ensure!(error.kind() == unsupported, "{what} must be refused as unsupported: {error:?}");
        }
    }
    Ok(())
}

fn slots(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let most = fixture.capability.max_sequences.min(4096);
    let mut open = Vec::new();
    for _ in 0..most {
        open.push(rig.open()?);
    }
    if fixture.capability.max_sequences == most {
        match rig.engine.open(&AdapterSet::none()) {
            Ok(_) => return Err(Failure::new(format!("{} sequences are open, and {most} is the most", most + 1))),
            Err(error) => ensure!(
                matches!(error.kind(), ErrorKind::Overloaded | ErrorKind::OutOfMemory),
                "a taken slot is an overload: {error:?}"
            ),
        }
        if fixture.capability.fork {
            ensure!(rig.engine.fork(open[0]).is_err(), "a fork needs a slot too");
        }
    }
    for seq in open.drain(..) {
        rig.engine.release(seq);
    }
    for _ in 0..most {
        open.push(rig.open().map_err(|failure| failure.during("after every sequence was released"))?);
    }
    Ok(())
}

fn stale(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = Script::text(&fixture.prompt(5, 21));
    let (gone, stays) = (rig.open()?, rig.open()?);
    rig.step(script.chunk().step(gone, Want::Nothing))?;
    rig.engine.release(gone);
    rig.engine.release(gone);
    fails(rig.engine.sequence_memory(gone), ErrorKind::NotFound, "the memory of a released sequence")?;
    ensure!(rig.engine.reserve(gone, 1).is_err(), "room was reserved for a released sequence");
    if fixture.capability.fork {
        ensure!(rig.engine.fork(gone).is_err(), "a released sequence was forked");
    }
    if fixture.capability.park {
        ensure!(rig.engine.park(gone).is_err(), "a released sequence was parked");
    }
    let row = rig.read(stays, &script)?;
    let alone = rig.fresh(&script)?;
    rig.same_steps(&row, &alone, "a sequence beside a released one")
}

fn never_reused(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let mut seen = Vec::new();
    for _ in 0..20 {
        let seq = rig.open()?;
        ensure!(!seen.contains(&seq), "the id {} came twice", seq.0);
        seen.push(seq);
        rig.engine.release(seq);
    }
    Ok(())
}

fn ticket_once(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let seq = rig.open()?;
    let chunk = Script::text(&fixture.prompt(2, 22)).chunk();
    let ticket = rig.engine.submit(&[chunk.step(seq, Want::Last)])?;
    let again = Ticket(ticket.0);
    done(rig.engine.collect(ticket)?.swap_remove(0))?;
    fails(rig.engine.collect(again).map(|_| ()), ErrorKind::NotFound, "collecting a ticket twice")?;
    Ok(())
}

fn unknown_ticket(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let result = rig.engine.collect(Ticket(u64::MAX)).map(|_| ());
    fails(result, ErrorKind::NotFound, "collecting a ticket that never was")?;
    Ok(())
}

enum Malformed {
    Twice,
    Empty,
    TooMany,
}

fn malformed(fixture: &EngineFixture, how: &Malformed) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let tokens = fixture.prompt(9, 23);
    let script = Script::text(&tokens);
    let seq = rig.open()?;
    rig.read_range(seq, &script, 0..5, usize::MAX / 2)?;
    let good = Script::at(5).then_text(&tokens[5..]).chunk();
    let result = match how {
        Malformed::Twice => {
            let steps = [good.step(seq, Want::Last), good.step(seq, Want::Last)];
            rig.engine.submit(&steps).map(|_| ())
        }
        Malformed::Empty => {
            let other = if fixture.capability.max_sequences > 1 { rig.open()? } else { seq };
            let empty = Step { seq: other, input: StepInput::Tokens(&[]), positions: &[], want: Want::Nothing };
            let steps = if other == seq { vec![empty] } else { vec![good.step(seq, Want::Last), empty] };
            rig.engine.submit(&steps).map(|_| ())
        }
        Malformed::TooMany => {
            let most = fixture.capability.max_batch_tokens;
            ensure!(most < 1 << 24, "work per call is not bounded: a batch may hold {most} tokens");
            let long = Script::at(5).then_text(&fixture.prompt(most + 1, 24)).chunk();
            rig.engine.submit(&[long.step(seq, Want::Last)]).map(|_| ())
        }
    };
    fails(result, ErrorKind::InvalidRequest, "a malformed batch")?;
    let row = rig.read(seq, &Script::at(5).then_text(&tokens[5..]))?;
    let mut undisturbed = Rig::new(fixture)?;
    let other = undisturbed.open()?;
    undisturbed.read_range(other, &script, 0..5, usize::MAX / 2)?;
    let expected = undisturbed.read(other, &Script::at(5).then_text(&tokens[5..]))?;
    rig.same_steps(&row, &expected, "after a malformed batch, of which nothing may be done")
}

fn full_batch(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let most = fixture.capability.max_batch_tokens.min(fixture.capability.max_sequence_tokens);
    let tokens = fixture.prompt(most, 25);
    let seq = rig.open()?;
    let row = rig.step(Script::text(&tokens).chunk().step(seq, Want::Last))?;
    rig.one_row(row)?;
    Ok(())
}

#[derive(Clone, Copy)]
enum BadStep {
    NextToken,
    LargestToken,
    LastToken,
    FewPositions,
    ManyPositions,
    NoPositions,
    UnknownSequence,
}

impl BadStep {
    fn make(self, fixture: &EngineFixture, vocabulary: usize, start: u32) -> (Vec<TokenId>, Vec<Position>) {
        let mut tokens = fixture.prompt(4, 26);
        let mut positions: Vec<_> = (start..start + 4).map(Position::text).collect();
        match self {
            Self::NextToken => tokens[1] = vocabulary as TokenId,
            Self::LargestToken => tokens[0] = TokenId::MAX,
            Self::LastToken => tokens[3] = vocabulary as TokenId,
            Self::FewPositions => positions.truncate(3),
            Self::ManyPositions => positions.push(Position::text(start + 4)),
            Self::NoPositions => positions.clear(),
            Self::UnknownSequence => {}
        }
        (tokens, positions)
    }
}

/// A bad step in the middle of two good ones: it is refused, and they give what they would give without it.
fn refused_alone(fixture: &EngineFixture, fault: BadStep) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let vocabulary = rig.engine.info().vocab_size;
    let before = Script::text(&fixture.prompt(6, 27));
    let first = Script::text(&fixture.prompt(5, 28)).chunk();
    let third = Script::text(&fixture.prompt(3, 29)).chunk();
    let mut seqs = vec![rig.open()?, rig.open()?];
    if fixture.capability.max_sequences >= 3 {
        seqs.push(rig.open()?);
    }
    rig.read(seqs[1], &before)?;
    let (tokens, positions) = fault.make(fixture, vocabulary, before.next());
    let target = if matches!(fault, BadStep::UnknownSequence) { SeqId(u64::MAX) } else { seqs[1] };
    let bad = Step { seq: target, input: StepInput::Tokens(&tokens), positions: &positions, want: Want::Last };
    let mut steps = vec![first.step(seqs[0], Want::Last), bad];
    if let Some(&seq) = seqs.get(2) {
        steps.push(third.step(seq, Want::Last));
    }
    let mut outcomes = rig.submit(&steps)?;
    let last = if outcomes.len() == 3 { outcomes.pop() } else { None };
    let error = refused(outcomes.swap_remove(1), "the bad step")?;
    let kind = if matches!(fault, BadStep::UnknownSequence) { ErrorKind::NotFound } else { ErrorKind::InvalidRequest };
    ensure!(error.kind() == kind, "the bad step must be refused as {}: {error:?}", kind.as_str());
    let neighbours = [(Some(outcomes.swap_remove(0)), &first), (last, &third)];
    for (outcome, chunk) in neighbours {
        let Some(outcome) = outcome else { continue };
        let output = done(outcome).map_err(|failure| failure.during("the neighbour of a refused step"))?;
        let row = rig.one_row(output)?;
        let mut alone = Rig::new(fixture)?;
        let seq = alone.open()?;
        let output = alone.step(chunk.step(seq, Want::Last))?;
        let expected = alone.one_row(output)?;
        rig.same_steps(&row, &expected, "the neighbour of a refused step")?;
    }
    // And the refused sequence goes on as if nothing had been asked of it.
    let after = Script::at(before.next()).then_text(&fixture.prompt(2, 30));
    let row = rig.read(seqs[1], &after)?;
    let mut alone = Rig::new(fixture)?;
    let seq = alone.open()?;
    alone.read(seq, &before)?;
    let expected = alone.read(seq, &after)?;
    rig.same_steps(&row, &expected, "the sequence whose step was refused")
}

fn refusal_changes_nothing(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let vocabulary = rig.engine.info().vocab_size as TokenId;
    let tokens = fixture.prompt(70, 31);
    let script = Script::text(&tokens);
    let mut expected = Rig::new(fixture)?;
    let (seq, other) = (rig.open()?, expected.open()?);
    let mut from = 0;
    for to in [1, 4, 63, 65, 70] {
        for length in [1, 3, 66] {
            let mut bad = fixture.prompt(length, 32);
            bad[length - 1] = vocabulary;
            let bad = Script::at(from as u32).then_text(&bad).chunk();
            refused(rig.submit(&[bad.step(seq, Want::Last)])?.swap_remove(0), "a bad token")?;
        }
        let row = rig.read_range(seq, &script, from..to, usize::MAX / 2)?;
        let undisturbed = expected.read_range(other, &script, from..to, usize::MAX / 2)?;
        rig.same_steps(&row, &undisturbed, "after refused steps")?;
        from = to;
    }
    Ok(())
}

fn bounded_sequence(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let most = fixture.capability.max_sequence_tokens;
    let seq = rig.open()?;
    rig.read(seq, &Script::text(&fixture.prompt(4, 33)))?;
    ensure!(rig.engine.reserve(seq, most).is_err(), "{most} more tokens cannot fit after four");
    ensure!(rig.engine.reserve(seq, usize::MAX).is_err(), "that many tokens cannot fit");
    let row = rig.read(seq, &Script::at(4).then_text(&fixture.prompt(1, 34)))?;
    ensure!(!row.is_empty(), "the sequence is dead after a reservation that failed");
    Ok(())
}

fn unknown_adapter(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let key = rig.adapter(0)?;
    let strangers = [
        AdapterKey { id: "nobody".into(), generation: key.generation },
        AdapterKey { id: key.id.clone(), generation: key.generation + 7 },
    ];
    for stranger in strangers {
        let set = AdapterSet::new([AdapterBinding::new(stranger.clone(), 1.0)])?;
        fails(rig.engine.open(&set), ErrorKind::NotFound, "opening with an adapter that is not loaded")?;
        fails(rig.engine.unload_adapter(&stranger), ErrorKind::NotFound, "unloading an adapter that is not loaded")?;
    }
    Ok(())
}

fn foreign_image(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let image = ImageHandle::new(Rc::new("someone else's"), PatchGrid { t: 1, h: 4, w: 4, merge: 2 });
    let seq = rig.open()?;
    let script = Script::default().then_image(&image);
    let outcome = rig.submit(&[script.chunk().step(seq, Want::Last)])?.swap_remove(0);
    let error = refused(outcome, "another engine's image")?;
    ensure!(error.kind() == ErrorKind::InvalidRequest, "another engine's image is an invalid request: {error:?}");
    Ok(())
}

fn foreign_past(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let parked = Parked::new(Rc::new("someone else's"), 3, 0);
    fails(rig.engine.resume(&parked), ErrorKind::InvalidRequest, "resuming another engine's past")?;
    Ok(())
}

fn image_range(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let image = rig.image(0)?;
    let tokens = image.tokens();
    let seq = rig.open()?;
    for range in [0..tokens + 1, tokens..tokens + 2, usize::MAX - 1..usize::MAX] {
        let positions = vec![Position::text(0); range.len()];
        let input = StepInput::Image { image: &image, tokens: range.clone() };
        let outcome = rig.submit(&[Step { seq, input, positions: &positions, want: Want::Last }])?.swap_remove(0);
        let error = refused(outcome, "a range beyond the image")?;
        ensure!(error.kind() == ErrorKind::InvalidRequest, "a range beyond the image is an invalid request: {error:?}");
    }
    let script = Script::default().then_image(&image);
    let row = rig.read(seq, &script)?;
    let expected = rig.fresh(&script)?;
    rig.same_steps(&row, &expected, "after refused ranges")
}
