//! Deadlines over both sides, patience with the local one, and times in the usage.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Act, Gate, Play, Scripted, poll_once, request, tokens};
use consort_core::{Deadlines, ErrorKind, Event, GenerateRequest, ModelBackend};
use consort_overflow::{Overflow, OverflowConfig, Reason, Side};

fn pair(config: OverflowConfig) -> (Arc<Scripted>, Arc<Scripted>, Overflow) {
    let (local, remote) = (Arc::new(Scripted::new("near")), Arc::new(Scripted::new("far")));
    let overflow = Overflow::new(
        Arc::clone(&local) as Arc<dyn ModelBackend>,
        Arc::clone(&remote) as Arc<dyn ModelBackend>,
        config,
    );
    (local, remote, overflow.unwrap())
}

fn within(first_token: Option<Duration>, total: Option<Duration>) -> GenerateRequest {
    GenerateRequest { deadlines: Deadlines { first_token, total }, ..request() }
}

#[test]
fn the_second_side_gets_what_is_left() {
    let (local, remote, overflow) = pair(OverflowConfig::default());
    let gate = Gate::default();
    local.plays([Play::Acts(vec![Act::Wait(gate.clone()), Act::Fail(ErrorKind::OutOfMemory)])]);
    remote.plays([Play::say(&[2])]);
    let (first_token, total) = (Duration::from_secs(500), Duration::from_secs(900));
    let before = Instant::now();
    let mut stream = overflow.generate(within(Some(first_token), Some(total))).unwrap();
    let after = Instant::now();
    assert!(poll_once(&mut stream).is_pending());
    assert_eq!(local.seen()[0].deadlines.total, Some(total), "the first side has all of it");
    std::thread::sleep(Duration::from_millis(30));
    let least = after.elapsed();
    gate.open();
    let mut events = stream.blocking();
    let Some(Ok(Event::Started(usage))) = events.next() else { panic!("the reply does not start") };
    let most = before.elapsed();
    let given = remote.seen()[0].deadlines;
    for (given, whole) in [(given.first_token.unwrap(), first_token), (given.total.unwrap(), total)] {
        assert!(given <= whole - least && given >= whole - most, "{given:?} of {whole:?} after {least:?} to {most:?}");
    }
    // The remote side's own clock started when it was asked.
    let first = usage.time_to_first_token.unwrap();
    assert!(first >= least && first <= most, "{first:?} is not within {least:?} and {most:?}");
    let Some(Ok(Event::Finished { usage, .. })) = events.last() else { panic!("the reply does not end") };
    assert!(usage.time_to_first_token.unwrap() >= least);
}

#[test]
fn a_deadline_that_passed_asks_nobody_else() {
    let (local, remote, overflow) = pair(OverflowConfig::default());
    local.plays([Play::Refuse(ErrorKind::Overloaded)]);
    // As every deadline, it is told in the stream.
    let stream = overflow.generate(within(Some(Duration::ZERO), None)).unwrap();
    let error = tokens(stream).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(error.context().any(|(side, said)| side == "local" && said.starts_with("overloaded")), "{error}");
    assert_eq!(remote.asked(), 0);

    // One that the local side itself tells is no reason to go on either.
    local.plays([Play::Acts(vec![Act::Wait(Gate::default())])]);
    let stream = overflow.generate(within(None, Some(Duration::from_millis(20)))).unwrap();
    assert_eq!(tokens(stream).unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert_eq!((remote.asked(), local.alive()), (0, 0));
    assert_eq!(overflow.overflow_metrics().failed, 2);
}

#[test]
fn who_waits_too_long_begins_anew_on_the_remote_side() {
    let wait = Duration::from_millis(20);
    let (local, remote, overflow) = pair(OverflowConfig { local_wait: Some(wait), ..OverflowConfig::default() });
    let never = || Play::Acts(vec![Act::Start, Act::Wait(Gate::default())]);
    local.plays([never()]);
    remote.plays([Play::say(&[2])]);
    let day = Duration::from_secs(86_400);
    assert_eq!(tokens(overflow.generate(within(Some(day), Some(day))).unwrap()).unwrap(), [2]);
    assert_eq!(local.seen()[0].deadlines, Deadlines { first_token: Some(wait), total: Some(day) });
    assert!(remote.seen()[0].deadlines.first_token.unwrap() <= day - wait);
    assert_eq!(overflow.overflow_metrics().taken_for(Side::Remote, Reason::Slow), 1);
    assert_eq!(local.alive(), 0);

    // The request's own deadline is shorter: it was too late, and that is all.
    local.plays([never()]);
    let own = Duration::from_millis(5);
    let error = tokens(overflow.generate(within(Some(own), None)).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!((local.seen()[1].deadlines.first_token, remote.asked()), (Some(own), 1));

    // Somebody has been waiting for as long already: nobody tries.
    local.load(|metrics| metrics.oldest_waiting = wait);
    remote.plays([Play::say(&[2])]);
    assert_eq!(tokens(overflow.generate(request()).unwrap()).unwrap(), [2]);
    assert_eq!(overflow.overflow_metrics().taken_for(Side::Remote, Reason::Wait), 1);
}

/// The bound is on the first token alone: the rest may take as long as it likes.
#[test]
fn who_has_begun_takes_the_time() {
    let wait = Duration::from_secs(2);
    let (local, _, overflow) = pair(OverflowConfig { local_wait: Some(wait), ..OverflowConfig::default() });
    let gate = Gate::default();
    local.plays([Play::Acts(vec![Act::Start, Act::Say(1), Act::Wait(gate.clone()), Act::Say(1), Act::Finish])]);
    let mut events = overflow.generate(within(None, None)).unwrap().blocking();
    assert!(matches!(events.next(), Some(Ok(Event::Started(_)))));
    std::thread::sleep(wait + Duration::from_millis(50));
    gate.open();
    assert_eq!(events.filter(|event| matches!(event, Ok(Event::Tokens { .. }))).count(), 2);
}

/// Back on the local side there is nowhere else to go, so patience is without bound.
#[test]
fn who_came_back_waits() {
    let wait = Duration::from_millis(20);
    let (local, remote, overflow) = pair(OverflowConfig { local_wait: Some(wait), ..OverflowConfig::default() });
    local.plays([Play::Acts(vec![Act::Wait(Gate::default())]), Play::say(&[1])]);
    remote.plays([Play::fail(ErrorKind::Remote)]);
    assert_eq!(tokens(overflow.generate(request()).unwrap()).unwrap(), [1]);
    let asked: Vec<_> = local.seen().iter().map(|request| request.deadlines.first_token).collect();
    assert_eq!(asked, [Some(wait), None]);
}
