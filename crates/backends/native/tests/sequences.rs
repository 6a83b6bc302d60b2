//! Bit for bit, a sequence's logits depend on its own past alone; and what sequences hold is counted.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::num::NonZeroUsize;

use common::*;
use consort_core::*;
use consort_gguf::TensorType;
use consort_native::synthetic::{SyntheticConfig, SyntheticHead};
use consort_native::{ModelSource, NativeConfig, NativeEngine};

#[test]
fn chunks_are_the_whole_bit_for_bit() {
    let mut engine = engine();
    let prompt = tokens(1, 130);
    let seq = open(&mut engine);
    let whole = feed(&mut engine, seq, 0, &prompt);
    for chunk in [1, 2, 3, 31, 32, 33, 64, 129] {
        let seq = open(&mut engine);
        let mut parts = Vec::new();
        for part in prompt.chunks(chunk) {
            let past = parts.len() / 96;
            parts.extend(feed(&mut engine, seq, past, part));
        }
        assert_eq!(parts, whole, "chunks of {chunk}");
        engine.release(seq);
    }
}

#[test]
fn a_batch_is_each_alone_bit_for_bit() {
    let mut engine = engine();
    let prompts: Vec<_> = [1, 2, 40, 7, 63, 32, 5, 3].iter().zip(0..).map(|(&n, seed)| tokens(seed, n)).collect();
    let alone: Vec<_> = prompts
        .iter()
        .map(|prompt| {
            let seq = open(&mut engine);
            let first = feed(&mut engine, seq, 0, prompt);
            let second = feed(&mut engine, seq, prompt.len(), &[5]);
            engine.release(seq);
            (first, second)
        })
        .collect();
    let seqs: Vec<_> = prompts.iter().map(|_| open(&mut engine)).collect();
    let positions: Vec<_> = prompts.iter().map(|prompt| at(0, prompt.len())).collect();
    let steps: Vec<_> = (0..8)
        .map(|i| Step {
            seq: seqs[i],
            input: StepInput::Tokens(&prompts[i]),
            positions: &positions[i],
            want: Want::All,
        })
        .collect();
    for (outcome, (first, _)) in submit(&mut engine, &steps).into_iter().zip(&alone) {
        assert_eq!(&logits(outcome), first);
    }
    let positions: Vec<_> = prompts.iter().map(|prompt| at(prompt.len(), 1)).collect();
    let steps: Vec<_> = (0..8)
        .map(|i| Step { seq: seqs[i], input: StepInput::Tokens(&[5]), positions: &positions[i], want: Want::Last })
        .collect();
    for (outcome, (_, second)) in submit(&mut engine, &steps).into_iter().zip(&alone) {
        assert_eq!(&logits(outcome), second);
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    // Large enough that products are split.
    for weight_type in [TensorType::F32, TensorType::F16, TensorType::BF16, TensorType::Q8_0] {
        let model = SyntheticConfig {
            weight_type,
            hidden: 256,
            mlp: 1024,
            vocab: 1500,
            head: SyntheticHead::Untied,
            ..SyntheticConfig::tiny()
        };
        let file: &'static [u8] = model.text().unwrap().leak();
        let run = |threads: usize| {
            let config = NativeConfig {
                policy: DevicePolicy::Named(Device::Cpu),
                threads: NonZeroUsize::new(threads),
                ..NativeConfig::new(ModelSource::Static(file))
            };
            let mut engine = NativeEngine::load(config).unwrap();
            let seq = open(&mut engine);
            let mut all = feed(&mut engine, seq, 0, &tokens(3, 70));
            all.extend(feed(&mut engine, seq, 70, &tokens(4, 5)));
            all.extend(feed(&mut engine, seq, 75, &[1]));
            all
        };
        let one = run(1);
        assert!(one.iter().all(|x| x.is_finite()));
        assert_eq!(run(2), one);
        assert_eq!(run(5), one);
    }
}

#[test]
fn forks_and_parked_pasts_go_their_own_ways() {
    let mut engine = engine();
    let prompt = tokens(2, 45);
    let seq = open(&mut engine);
    let mut expected = |past: &[TokenId], next: &[TokenId]| {
        let seq = open(&mut engine);
        feed(&mut engine, seq, 0, past);
        let logits = feed(&mut engine, seq, past.len(), next);
        engine.release(seq);
        logits
    };
    let left = expected(&prompt, &tokens(8, 30));
    let right = expected(&prompt, &tokens(9, 30));
    feed(&mut engine, seq, 0, &prompt);
    let parked = engine.park(seq).unwrap();
    assert_eq!(parked.tokens(), 45);
    let twin = engine.fork(seq).unwrap();
    assert_eq!(feed(&mut engine, seq, 45, &tokens(8, 30)), left);
    assert_eq!(feed(&mut engine, twin, 45, &tokens(9, 30)), right);
    engine.release(seq);
    engine.release(twin);
    for _ in 0..2 {
        let again = engine.resume(&parked).unwrap();
        assert_eq!(feed(&mut engine, again, 45, &tokens(9, 30)), right);
        engine.release(again);
    }
    drop(parked);
    let memory = engine.memory();
    assert_eq!((memory.kv_cache, memory.recurrent_state), (0, 0));
}

#[test]
fn shared_memory_is_counted_once_and_freed_at_once() {
    let mut engine = engine();
    let seq = open(&mut engine);
    assert_eq!(engine.sequence_memory(seq).unwrap(), SequenceMemory::default());
    feed(&mut engine, seq, 0, &tokens(1, 40));
    let one = engine.memory();
    // Two pages of 32 tokens, one attention layer, keys and values of two heads of 32 numbers in f32.
    assert_eq!(one.kv_cache, 2 * 32 * 2 * 2 * 32 * 4);
    // Three layers: four heads of 32 × 32, and three rows of the convolution's 256 channels.
    assert_eq!(one.recurrent_state, 3 * 4 * (4 * 32 * 32 + 3 * 256));
    assert_eq!(engine.sequence_memory(seq).unwrap().unique, one.kv_cache + one.recurrent_state);

    let twin = engine.fork(seq).unwrap();
    assert_eq!(engine.memory(), one);
    assert_eq!(
        engine.sequence_memory(twin).unwrap(),
        SequenceMemory { unique: 0, shared: one.kv_cache + one.recurrent_state }
    );
    feed(&mut engine, twin, 40, &[1]);
    // The full page stays shared, the other one and the state were copied.
    assert_eq!(engine.memory().kv_cache, one.kv_cache / 2 * 3);
    assert_eq!(engine.memory().recurrent_state, one.recurrent_state * 2);
    assert_eq!(engine.sequence_memory(seq).unwrap().shared, one.kv_cache / 2);

    let parked = engine.park(twin).unwrap();
    // Both would hold the first page; the second and the state are the twin's.
    assert_eq!(parked.bytes(), one.kv_cache / 2 + one.recurrent_state);
    engine.release(twin);
    engine.release(seq);
    assert_eq!(engine.memory().kv_cache, one.kv_cache);
    drop(parked);
    assert_eq!(engine.memory().kv_cache + engine.memory().recurrent_state, 0);
}

#[test]
fn the_budget_is_kept_and_refusals_change_nothing() {
    let budget = {
        let mut engine = engine();
        let seq = open(&mut engine);
        feed(&mut engine, seq, 0, &tokens(1, 33));
        engine.memory().kv_cache + engine.memory().recurrent_state
    };
    let mut engine = NativeEngine::load(NativeConfig { sequence_memory_budget: Some(budget), ..config() }).unwrap();
    let seq = open(&mut engine);
    feed(&mut engine, seq, 0, &tokens(1, 33));
    assert_eq!(engine.open(&AdapterSet::none()).unwrap_err().kind(), ErrorKind::OutOfMemory);
    engine.reserve(seq, 31).unwrap();
    assert_eq!(engine.reserve(seq, 32).unwrap_err().kind(), ErrorKind::OutOfMemory);
    let positions = at(33, 32);
    let more = tokens(2, 32);
    let step = Step { seq, input: StepInput::Tokens(&more), positions: &positions, want: Want::Last };
    match submit(&mut engine, &[step]).pop().unwrap() {
        StepOutcome::Refused(error) => assert_eq!(error.kind(), ErrorKind::OutOfMemory),
        other => panic!("{other:?}"),
    }
    // As it was before: it goes on, up to the end of its page.
    feed(&mut engine, seq, 33, &more[..31]);
    assert_eq!(engine.memory().sequence_budget, Some(budget));
    engine.release(seq);
    engine.open(&AdapterSet::none()).unwrap();
}

#[test]
fn reserved_room_is_held_and_used() {
    let mut engine = engine();
    let seq = open(&mut engine);
    engine.reserve(seq, 100).unwrap();
    let held = engine.memory();
    feed(&mut engine, seq, 0, &tokens(1, 100));
    assert_eq!(engine.memory(), held);
    assert_eq!(engine.reserve(seq, 5000).unwrap_err().kind(), ErrorKind::OutOfMemory);
    // A fork shares the past, not the room.
    engine.reserve(seq, 100).unwrap();
    let twin = engine.fork(seq).unwrap();
    assert_eq!(engine.sequence_memory(twin).unwrap().unique, 0);
    assert!(engine.sequence_memory(seq).unwrap().unique > 0);
}

#[test]
fn bad_steps_are_refused_and_their_neighbours_are_not() {
    let mut engine = NativeEngine::load(NativeConfig { max_sequence_tokens: 64, ..config() }).unwrap();
    let good = open(&mut engine);
    let expected = {
        let seq = open(&mut engine);
        let logits = feed(&mut engine, seq, 0, &[1, 2]);
        engine.release(seq);
        logits
    };
    let (bad_token, bad_positions, long, top) =
        (open(&mut engine), open(&mut engine), open(&mut engine), open(&mut engine));
    feed(&mut engine, long, 0, &tokens(0, 63));
    let two = at(0, 2);
    let step = |seq, tokens: &'static [TokenId], positions, want| Step {
        seq,
        input: StepInput::Tokens(tokens),
        positions,
        want,
    };
    let top_k = Want::TopK { k: 1, mask: None, bias: &[] };
    let outcomes = submit(
        &mut engine,
        &[
            step(bad_token, &[1, 96], &two, Want::All),
            step(bad_positions, &[1, 2, 3], &two, Want::All),
            step(good, &[1, 2], &two, Want::All),
            step(SeqId(9999), &[1, 2], &two, Want::All),
            step(long, &[1, 2], &two, Want::All),
            step(top, &[1, 2], &two, top_k),
        ],
    );
    let kinds: Vec<_> = outcomes
        .iter()
        .map(|outcome| match outcome {
            StepOutcome::Refused(error) => Some(error.kind()),
            _ => None,
        })
        .collect();
    use ErrorKind::{InvalidRequest, NotFound, Unsupported};
    assert_eq!(
        kinds,
        [Some(InvalidRequest), Some(InvalidRequest), None, Some(NotFound), Some(InvalidRequest), Some(Unsupported)]
    );
    assert_eq!(logits(outcomes.into_iter().nth(2).unwrap()), expected);
    assert_eq!(feed(&mut engine, bad_token, 0, &[1, 2]), expected);

    // Malformed as a whole: an error, and nothing done.
    for steps in [
        vec![step(good, &[1, 2], &two, Want::Last), step(good, &[1, 2], &two, Want::Last)],
        vec![step(good, &[], &[], Want::Last)],
        vec![Step { seq: good, input: StepInput::Tokens(&[0; 513]), positions: &at(0, 513), want: Want::Nothing }],
    ] {
        assert_eq!(engine.submit(&steps).unwrap_err().kind(), InvalidRequest);
    }
    let ticket = engine.submit(&[]).unwrap();
    let again = Ticket(ticket.0);
    assert!(engine.collect(ticket).unwrap().is_empty());
    assert_eq!(engine.collect(again).unwrap_err().kind(), NotFound);
}

#[test]
fn slots_are_bounded_and_policies_obeyed() {
    let mut engine = NativeEngine::load(NativeConfig { max_sequences: 2, ..config() }).unwrap();
    let (one, _two) = (open(&mut engine), open(&mut engine));
    assert_eq!(engine.open(&AdapterSet::none()).unwrap_err().kind(), ErrorKind::Overloaded);
    assert_eq!(engine.fork(one).unwrap_err().kind(), ErrorKind::Overloaded);
    engine.release(one);
    open(&mut engine);
    let error = NativeEngine::load(NativeConfig { policy: DevicePolicy::default(), ..config() }).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::DevicePolicy);
    assert!(error.to_string().contains("--device cpu"), "{error}");
    let error = NativeEngine::load(NativeConfig { max_sequences: 0, ..config() }).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
}

#[test]
fn pooled_states_are_those_of_the_positions() {
    let mut engine = engine();
    let pooled = |engine: &mut NativeEngine, tokens: &[TokenId], pooling| {
        let seq = open(engine);
        let positions = at(0, tokens.len());
        let step = Step { seq, input: StepInput::Tokens(tokens), positions: &positions, want: Want::Pooled(pooling) };
        match submit(engine, &[step]).pop().unwrap() {
            StepOutcome::Done(StepOutput::Pooled(pooled)) => pooled,
            other => panic!("{other:?}"),
        }
    };
    let one = pooled(&mut engine, &[4], Pooling::Last);
    let two = pooled(&mut engine, &[4, 5], Pooling::Last);
    let mean = pooled(&mut engine, &[4, 5], Pooling::Mean);
    assert_eq!(one.len(), 32);
    for ((one, two), mean) in one.iter().zip(&two).zip(&mean) {
        assert!(((one + two) / 2.0 - mean).abs() < 1e-6);
    }
}
