//! Two real schedulers as the two sides.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::until;
use consort_behavior::fixture::Setup;
use consort_behavior::toy::HashEngine;
use consort_core::{
    Device, DevicePolicy, EndTokens, Event, EventStream, GenerateRequest, ModelBackend, PlacementRule,
    PositionLogprobs, PrefixReuse, Prompt, PromptPart, StopRules, TokenId,
};
use consort_overflow::{Overflow, OverflowConfig, Reason, Side};
use consort_scheduler::{FrontEnd, Scheduled, SchedulerConfig};

type Toy = Scheduled<HashEngine>;

fn toy(config: SchedulerConfig) -> Arc<Toy> {
    let setup = Setup { policy: DevicePolicy::Named(Device::Cpu), sequence_budget: None };
    Arc::new(Scheduled::spawn(move || HashEngine::new(97, &setup), FrontEnd::default(), config).unwrap())
}

fn pair(local: SchedulerConfig) -> (Arc<Toy>, Arc<Toy>, Overflow) {
    let (local, remote) = (toy(local), toy(SchedulerConfig { event_buffer: 8, ..SchedulerConfig::default() }));
    let overflow = Overflow::new(
        Arc::clone(&local) as Arc<dyn ModelBackend>,
        Arc::clone(&remote) as Arc<dyn ModelBackend>,
        OverflowConfig::default(),
    );
    (local, remote, overflow.unwrap())
}

/// Two slots, two places in the queue, and a buffer that is full long before a reply ends.
fn small() -> SchedulerConfig {
    SchedulerConfig { max_running: 2, max_queued: 2, event_buffer: 8, ..SchedulerConfig::default() }
}

fn ask(number: u32, placement: PlacementRule) -> GenerateRequest {
    let prompt = (0..20).map(|index| 1 + (number * 31 + index * 7) % 89).collect();
    GenerateRequest {
        max_tokens: Some(60),
        logprobs: Some(3),
        stop: StopRules { end_tokens: EndTokens::Ignore, ..StopRules::default() },
        prefix_reuse: PrefixReuse::Bypass,
        placement,
        ..GenerateRequest::new(Prompt::Parts(vec![PromptPart::Tokens(prompt)]))
    }
}

fn read(stream: EventStream) -> (Vec<TokenId>, Vec<PositionLogprobs>) {
    let (mut tokens, mut scores, mut ended) = (Vec::new(), Vec::new(), false);
    for event in stream.blocking() {
        match event.unwrap() {
            Event::Tokens { ids, logprobs, .. } => {
                tokens.extend(ids);
                scores.extend(logprobs);
            }
            Event::Finished { usage, .. } => {
                assert_eq!((usage.prompt_tokens, usage.completion_tokens), (20, 60));
                ended = true;
            }
            _ => {}
        }
    }
    assert!(ended);
    (tokens, scores)
}

#[test]
fn the_same_reply_whichever_side_answers() {
    let (local, remote, overflow) = pair(SchedulerConfig::default());
    for number in 0..8 {
        let direct = read(local.generate(ask(number, PlacementRule::Any)).unwrap());
        let near = read(overflow.generate(ask(number, PlacementRule::Local)).unwrap());
        let far = read(overflow.generate(ask(number, PlacementRule::Remote)).unwrap());
        assert_eq!(direct, near);
        assert_eq!(near, far);
        assert_eq!(near.0.len(), 60);
    }
    assert_eq!((local.metrics().requests, remote.metrics().requests), (16, 8));
    let sums = overflow.metrics();
    assert_eq!((sums.requests, sums.time_to_first_token.count), (24, 24));
    assert_eq!(sums.generated_tokens, 24 * 60);
}

fn toy_reply(toy: &Toy, number: u32) -> EventStream {
    toy.generate(ask(number, PlacementRule::Any)).unwrap()
}

/// 64 at once over two slots and a queue of two: who goes where is chance, and every request is somewhere exactly once.
#[test]
fn a_flood_is_answered_and_nothing_is_lost() {
    let (local, remote, overflow) = pair(small());
    let overflow = Arc::new(overflow);
    let expected: Vec<_> = (0..64).map(|number| read(toy_reply(&remote, number))).collect();
    let before = remote.metrics().requests;
    let readers: Vec<_> = (0..64)
        .map(|number| {
            let overflow = Arc::clone(&overflow);
            std::thread::spawn(move || {
                loop {
                    match overflow.generate(ask(number, PlacementRule::Any)) {
                        Ok(stream) => return read(stream),
                        // The remote queue can be full for a moment too.
                        Err(error) => {
                            assert_eq!(error.kind(), consort_core::ErrorKind::Overloaded, "{error}");
                            std::thread::sleep(Duration::from_millis(5));
                        }
                    }
                }
            })
        })
        .collect();
    for (number, reader) in readers.into_iter().enumerate() {
        assert_eq!(reader.join().unwrap(), expected[number], "request {number}");
    }
    let told = overflow.overflow_metrics();
    assert_eq!((told.requests, told.answered_local + told.answered_remote), (64, 64));
    assert!(told.answered_local >= 2 && told.answered_remote > 0, "{told:?}");
    assert_eq!(told.taken_for(Side::Local, Reason::First), told.answered_local);
    assert_eq!(local.metrics().requests, told.taken(Side::Local));
    assert_eq!(remote.metrics().requests - before, told.taken(Side::Remote));
    assert_eq!(told.moved(Side::Remote), told.taken(Side::Remote));
    assert_eq!(local.metrics().refused, told.moved(Side::Remote) + told.refused);
}

#[test]
fn dropping_frees_the_slots_of_both() {
    let (local, remote, overflow) = pair(small());
    let ask = |number| GenerateRequest { max_tokens: Some(4000), ..ask(number, PlacementRule::Any) };
    // Nobody reads, so none of them ends.
    let streams: Vec<_> = (0..12).map(|number| overflow.generate(ask(number)).unwrap()).collect();
    until("both sides are busy", || local.metrics().running > 0 && remote.metrics().running > 0);
    assert_eq!(local.metrics().requests + remote.metrics().requests, 12);
    drop(streams);
    for side in [&local, &remote] {
        side.wait_idle(Duration::from_secs(60)).unwrap();
        let metrics = side.metrics();
        assert_eq!((metrics.running, metrics.queued, metrics.cancelled), (0, 0, metrics.requests));
    }
    assert_eq!(overflow.overflow_metrics().cancelled, 12);
}
