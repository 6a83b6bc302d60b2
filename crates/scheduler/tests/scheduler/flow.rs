//! Who runs when, and what a reader can do to others.

use std::time::{Duration, Instant};

use consort_core::*;
use consort_scheduler::{FrontEnd, Scheduled, SchedulerConfig};

use crate::engine::{HashEngine, Setup};
use crate::support::*;

fn slots(max_sequences: usize) -> Setup {
    Setup { capability: Capability { max_sequences, ..Setup::default().capability }, ..Setup::default() }
}

#[test]
fn replies_are_what_the_model_says_however_many_run() {
    let rig = Rig::new(slots(5), SchedulerConfig::default());
    let prompts: Vec<_> = (0..12).map(|seed| parts(&tokens(seed, 1 + 13 * seed as usize))).collect();
    let streams: Vec<_> =
        prompts.iter().map(|prompt| rig.backend.generate(request(prompt.clone(), 20)).unwrap()).collect();
    for (prompt, stream) in prompts.iter().zip(streams) {
        assert_eq!(collect(stream).unwrap().ids, expected(prompt, &[], 20));
    }
    let metrics = rig.backend.metrics();
    assert_eq!((metrics.requests, metrics.finished, metrics.generated_tokens), (12, 12, 240));
    rig.no_leak();
}

#[test]
fn a_dropped_stream_frees_its_slot_within_one_step() {
    let rig = Rig::new(slots(1), SchedulerConfig::default());
    rig.control.hold();
    let first = rig.backend.generate(ask(&tokens(1, 5), 1000)).unwrap();
    let second = rig.backend.generate(ask(&tokens(2, 5), 3)).unwrap();
    let third = rig.backend.generate(ask(&tokens(3, 5), 3)).unwrap();
    rig.control.allow(3);
    rig.control.wait_begun(4);
    // The engine stands in the fourth step. One that waits is cancelled as well.
    drop(first);
    drop(third);
    rig.control.allow(2);
    rig.control.wait_begun(6);
    let log = rig.control.log.lock().unwrap().clone();
    assert!(log[..4].iter().all(|batch| batch[0].0 == log[0][0].0));
    assert_ne!(log[4][0].0, log[0][0].0, "the fifth step is the second request's");
    rig.control.release();
    assert_eq!(collect(second).unwrap().ids.len(), 3);
    rig.no_leak();
    assert_eq!(rig.backend.metrics().cancelled, 2);
}

#[test]
fn a_slow_reader_pauses_itself_alone() {
    let rig = Rig::new(Setup::default(), SchedulerConfig { event_buffer: 4, ..SchedulerConfig::default() });
    let slow = rig.backend.generate(ask(&tokens(1, 5), 100)).unwrap().blocking();
    let quick = rig.backend.generate(ask(&tokens(2, 5), 200)).unwrap();
    assert_eq!(collect(quick).unwrap().ids.len(), 200);
    let metrics = rig.backend.metrics();
    assert!(metrics.generated_tokens <= 200 + 5, "{metrics:?}");
    assert_eq!(metrics.running, 1);
    let mut ids = Vec::new();
    for event in slow {
        if let Event::Tokens { ids: more, .. } = event.unwrap() {
            ids.extend(more);
        }
    }
    assert_eq!(ids, expected(&parts(&tokens(1, 5)), &[], 100));
    rig.no_leak();
}

#[test]
fn a_reader_that_is_behind_gives_its_slot_to_others_and_goes_on_later() {
    let rig = Rig::new(slots(1), SchedulerConfig { event_buffer: 4, ..SchedulerConfig::default() });
    let slow = rig.backend.generate(ask(&tokens(1, 5), 50)).unwrap();
    for seed in 2..5 {
        assert_eq!(rig.say(ask(&tokens(seed, 5), 30)).ids, expected(&parts(&tokens(seed, 5)), &[], 30));
    }
    assert_eq!(collect(slow).unwrap().ids, expected(&parts(&tokens(1, 5)), &[], 50));
    rig.no_leak();
}

#[test]
fn a_full_queue_refuses_at_once() {
    let rig = Rig::new(slots(1), SchedulerConfig { max_queued: 2, ..SchedulerConfig::default() });
    rig.control.hold();
    let mut streams = vec![rig.backend.generate(ask(&tokens(1, 5), 3)).unwrap()];
    rig.control.wait_begun(1);
    streams.extend((0..2).map(|_| rig.backend.generate(ask(&tokens(1, 5), 3)).unwrap()));
    let begin = Instant::now();
    let refused = rig.backend.generate(ask(&tokens(1, 5), 3)).unwrap_err();
    assert_eq!((refused.kind(), refused.status()), (ErrorKind::Overloaded, ErrorStatus::Temporary));
    assert!(begin.elapsed() < Duration::from_secs(1));
    let metrics = rig.backend.metrics();
    assert_eq!((metrics.queued, metrics.running, metrics.refused), (2, 1, 1));
    rig.control.release();
    streams.into_iter().for_each(|stream| drop(collect(stream).unwrap()));
    rig.no_leak();
    rig.say(ask(&tokens(1, 5), 3));
}

#[test]
fn a_long_prompt_never_delays_a_voice_by_more_than_one_step() {
    let config = SchedulerConfig { background_step_tokens: 64, ..SchedulerConfig::default() };
    let rig = Rig::new(Setup::default(), config);
    rig.control.hold();
    let priority = |priority, request| GenerateRequest { priority, ..request };
    let voice = rig.backend.generate(priority(Priority::Realtime, ask(&tokens(1, 3), 40))).unwrap();
    rig.control.allow(1);
    rig.control.wait_begun(2);
    let batch = rig.backend.generate(priority(Priority::Batch, ask(&tokens(2, 1500), 3))).unwrap();
    let reader = rig.backend.generate(priority(Priority::Interactive, ask(&tokens(3, 200), 3))).unwrap();
    rig.control.release();
    let voice_ids = collect(voice).unwrap().ids;
    assert_eq!(voice_ids.len(), 40);
    collect(batch).unwrap();
    collect(reader).unwrap();
    let log = rig.control.log.lock().unwrap().clone();
    let seq = log[0][0].0;
    let last = log.iter().rposition(|batch| batch.iter().any(|step| step.0 == seq)).unwrap();
    // Two steps for its prompt, as its past is kept before the last token, and thirty-nine more.
    assert_eq!(last, 40, "the voice has its token in each of the first steps");
    // The reader's prompt goes before the batch's.
    let first_of = |tokens: usize| log.iter().position(|b| b.iter().any(|s| s.0 != seq && s.1 >= tokens)).unwrap();
    assert_eq!(log[first_of(20)].len(), 2);
    rig.no_leak();
}

#[test]
fn a_voice_takes_the_slot_of_batch_work_which_goes_on_later() {
    let rig = Rig::new(slots(1), SchedulerConfig::default());
    rig.control.hold();
    let prompt = tokens(1, 20);
    let batch = rig.backend.generate(GenerateRequest { priority: Priority::Batch, ..ask(&prompt, 30) }).unwrap();
    rig.control.allow(10);
    rig.control.wait_begun(11);
    let voice =
        rig.backend.generate(GenerateRequest { priority: Priority::Realtime, ..ask(&tokens(2, 5), 5) }).unwrap();
    rig.control.release();
    assert_eq!(collect(voice).unwrap().ids, expected(&parts(&tokens(2, 5)), &[], 5));
    let reply = collect(batch).unwrap();
    assert_eq!(reply.ids, expected(&parts(&prompt), &[], 30));
    let log = rig.control.log.lock().unwrap().clone();
    let voice_at = log.iter().position(|batch| batch[0].0 != log[0][0].0).unwrap();
    assert_eq!(voice_at, 11, "in the next step");
    rig.no_leak();
}

#[test]
fn sampling_is_the_same_after_a_preemption_and_in_company() {
    let sampling = Sampling { temperature: 1.0, top_k: 40, top_p: 0.9, min_p: 0.01, seed: 5, ..Sampling::default() };
    let hot = |seed| GenerateRequest { sampling: sampling.clone(), ..ask(&tokens(seed, 20), 30) };
    let alone: Vec<_> =
        (0..4).map(|seed| Rig::new(Setup::default(), SchedulerConfig::default()).say(hot(seed)).ids).collect();
    let rig = Rig::new(slots(2), SchedulerConfig { event_buffer: 3, ..SchedulerConfig::default() });
    let streams: Vec<_> = (0..4).map(|seed| rig.backend.generate(hot(seed)).unwrap()).collect();
    for (ids, stream) in alone.iter().zip(streams) {
        assert_eq!(collect(stream).unwrap().ids, *ids);
    }
    rig.no_leak();
}

#[test]
fn a_grouped_engine_is_given_one_adapter_set_a_batch_and_all_come_in_turn() {
    let setup = Setup {
        capability: Capability { adapter_mode: AdapterMode::Grouped, ..Setup::default().capability },
        ..Setup::default()
    };
    let rig = Rig::new(setup, SchedulerConfig { group_steps: 4, ..SchedulerConfig::default() });
    rig.load("a", b"a");
    rig.load("b", b"b");
    rig.control.hold();
    let streams: Vec<_> = (0..6)
        .map(|n| {
            let request = ask(&tokens(n, 10), 20);
            rig.backend
                .generate(match n % 3 {
                    0 => request,
                    1 => with_adapter(request, "a", 1.0),
                    _ => with_adapter(request, "b", 1.0),
                })
                .unwrap()
        })
        .collect();
    rig.control.release();
    for (n, stream) in streams.into_iter().enumerate() {
        let adapters: Vec<(&[u8], f32)> = match n % 3 {
            0 => vec![],
            1 => vec![(b"a", 1.0)],
            _ => vec![(b"b", 1.0)],
        };
        assert_eq!(collect(stream).unwrap().ids, expected(&parts(&tokens(n as u64, 10)), &adapters, 20));
    }
    let log = rig.control.log.lock().unwrap().clone();
    let switches = log.windows(2).filter(|pair| pair[0][0].2 != pair[1][0].2).count();
    assert!((10..=22).contains(&switches), "{switches} switches in {} steps", log.len());
    rig.no_leak();
}

#[test]
fn an_exclusive_engine_changes_adapters_when_nobody_runs() {
    let setup = Setup {
        capability: Capability { adapter_mode: AdapterMode::Exclusive, ..Setup::default().capability },
        ..Setup::default()
    };
    let rig = Rig::new(setup, SchedulerConfig::default());
    rig.load("a", b"a");
    let plain = rig.backend.generate(ask(&tokens(1, 10), 20)).unwrap();
    let adapted = rig.backend.generate(with_adapter(ask(&tokens(1, 10), 20), "a", 1.0)).unwrap();
    assert_eq!(collect(plain).unwrap().ids, expected(&parts(&tokens(1, 10)), &[], 20));
    assert_eq!(collect(adapted).unwrap().ids, expected(&parts(&tokens(1, 10)), &[(b"a", 1.0)], 20));
    rig.no_leak();
}

#[test]
fn pictures_never_hold_up_a_voice() {
    let rig = Rig::new(Setup { image_calls: 30, ..Setup::default() }, SchedulerConfig::default());
    rig.control.hold();
    let voice = rig.backend.generate(ask(&tokens(1, 3), 60)).unwrap();
    rig.control.allow(2);
    rig.control.wait_begun(3);
    let seeing = rig.backend.generate(request(seen(&[1, 2], 4, &[3]), 2)).unwrap();
    rig.control.release();
    collect(voice).unwrap();
    assert_eq!(collect(seeing).unwrap().ids, expected(&seen(&[1, 2], 4, &[3]), &[], 2));
    let log = rig.control.log.lock().unwrap().clone();
    let picture = log.iter().position(|batch| batch.iter().any(|step| step.1 == 24)).unwrap();
    assert!((20..45).contains(&picture), "the picture comes at step {picture}, amid the voice's");
    rig.no_leak();
    // Nobody waits for a picture any more: it is given up.
    drop(rig.backend.generate(request(seen(&[1, 2], 5, &[3]), 2)).unwrap());
    rig.no_leak();
}

#[test]
fn stops_ends_and_limits() {
    let script = |ids: &[TokenId]| Setup { script: Some(ids.to_vec()), ..Setup::default() };
    let rig = Rig::new(script(&[5, 6, 7]), SchedulerConfig::default());
    let reply = rig.say(ask(&[1, 2], 100));
    assert_eq!((reply.ids, reply.reason), (vec![5, 6, 7], FinishReason::EndToken(0)));
    assert_eq!((reply.usage.prompt_tokens, reply.usage.completion_tokens), (2, 4));
    assert!(reply.usage.time_to_first_token.is_some());
    let mut request = ask(&[1, 2], 100);
    request.stop.tokens = vec![7];
    let reply = rig.say(request);
    assert_eq!((reply.ids, reply.reason), (vec![5, 6], FinishReason::StopToken(7)));
    let reply = rig.say(ask(&[1, 2], 2));
    assert_eq!((reply.ids, reply.reason), (vec![5, 6], FinishReason::Length));
    let reply = rig.say(ask(&[1, 2], 0));
    assert_eq!((reply.ids.len(), reply.reason, reply.usage.completion_tokens), (0, FinishReason::Length, 0));
    // The context ends.
    let endless = Rig::new(Setup::default(), SchedulerConfig::default());
    let reply = endless.say(GenerateRequest::new(parts(&tokens(1, 2000))));
    assert_eq!((reply.ids.len(), reply.reason), (48, FinishReason::Length));
    let reply = rig.say(GenerateRequest { logprobs: Some(2), ..ask(&[1, 2], 2) });
    assert_eq!(reply.logprobs.len(), 2);
    assert!(reply.logprobs[0].chosen.token == 5 && reply.logprobs[0].top.len() == 2);
    assert!(reply.logprobs[0].chosen.logprob <= 0.0);
}

#[test]
fn nonsense_is_refused_at_once_and_harms_nobody() {
    let rig = Rig::new(Setup::default(), SchedulerConfig::default());
    let refused = |request: GenerateRequest| rig.backend.generate(request).unwrap_err().kind();
    assert_eq!(refused(ask(&[], 3)), ErrorKind::InvalidRequest);
    assert_eq!(refused(ask(&[97], 3)), ErrorKind::InvalidRequest);
    assert_eq!(refused(ask(&[96], 3)), ErrorKind::InvalidRequest);
    assert_eq!(refused(ask(&tokens(1, 2048), 3)), ErrorKind::InvalidRequest);
    assert_eq!(refused(with_adapter(ask(&[1], 3), "none", 1.0)), ErrorKind::NotFound);
    let sampling = Sampling { temperature: f32::NAN, ..Sampling::default() };
    assert_eq!(refused(GenerateRequest { sampling, ..ask(&[1], 3) }), ErrorKind::InvalidRequest);
    assert_eq!(refused(GenerateRequest { logprobs: Some(9999), ..ask(&[1], 3) }), ErrorKind::InvalidRequest);
    let stop = StopRules { strings: vec![String::new()], ..StopRules::default() };
    assert_eq!(refused(GenerateRequest { stop, ..ask(&[1], 3) }), ErrorKind::InvalidRequest);
    assert_eq!(refused(request(Prompt::Chat(ChatPrompt::default()), 3)), ErrorKind::Unsupported);
    assert_eq!(rig.backend.tokenize("a", SpecialTokens::Plain).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(rig.backend.detokenize(&[1]).unwrap_err().kind(), ErrorKind::Unsupported);
    rig.no_leak();
    assert_eq!(rig.backend.metrics().queued, 0);

    let blind =
        Setup { capability: Capability { image_input: false, ..Setup::default().capability }, ..Setup::default() };
    let blind = Rig::new(blind, SchedulerConfig::default());
    let refused = blind.backend.generate(request(seen(&[1], 1, &[2]), 3)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let config = SchedulerConfig { step_tokens: 0, ..SchedulerConfig::default() };
    let control = std::sync::Arc::default();
    let error = Scheduled::spawn(move || Ok(HashEngine::new(Setup::default(), control)), FrontEnd::default(), config);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidConfig);
    let factory = || -> Result<HashEngine> { Err(Error::new(ErrorKind::InvalidModel, "no model")) };
    let error = Scheduled::spawn(factory, FrontEnd::default(), SchedulerConfig::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidModel);
}

#[test]
fn embeddings_pool_over_steps() {
    let rig = Rig::new(Setup::default(), SchedulerConfig { step_tokens: 10, ..SchedulerConfig::default() });
    let embed = |pooling| {
        let request =
            EmbedRequest { prompt: parts(&tokens(1, 25)), adapters: vec![], pooling, placement: PlacementRule::Any };
        block_on(rig.backend.embed(request)).unwrap()
    };
    // The engine gives [tokens of the step, tokens so far, 0, 1].
    assert_eq!(embed(Pooling::Last), [5.0, 25.0, 0.0, 1.0]);
    let mean = embed(Pooling::Mean);
    assert!((mean[0] - (10.0 * 10.0 + 10.0 * 10.0 + 5.0 * 5.0) / 25.0).abs() < 1e-4 && (mean[3] - 1.0).abs() < 1e-6);
    rig.no_leak();
}

#[test]
fn dropping_the_backend_ends_all_streams_promptly() {
    let rig = Rig::new(slots(1), SchedulerConfig { event_buffer: 2, ..SchedulerConfig::default() });
    let running = rig.backend.generate(ask(&tokens(1, 5), 1000)).unwrap();
    let queued = rig.backend.generate(ask(&tokens(2, 1000), 1000)).unwrap();
    let memory = block_on(rig.backend.memory()).unwrap();
    assert!(memory.total() < 5000);
    let control = rig.control.clone();
    let begin = Instant::now();
    drop(rig);
    assert!(begin.elapsed() < Duration::from_secs(2));
    for stream in [running, queued] {
        assert_eq!(collect(stream).unwrap_err().kind(), ErrorKind::Cancelled);
    }
    assert_eq!(control.counts(), (0, 0));
}
