//! Which side answers, what it is told, and what comes of refusals.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::task::Poll;

use common::{Act, Gate, Play, Scripted, of_length, poll_once, request, tokens};
use consort_core::{
    ChatMessage, ChatPrompt, EmbedRequest, ErrorKind, ErrorStatus, Event, GenerateRequest, MemoryReport, ModelBackend,
    PlacementRule, Pooling, Priority, Prompt, Role, SpecialTokens, Structure, block_on,
};
use consort_overflow::{Overflow, OverflowConfig, PriorityRules, Reason, RemoteFailure, Side};

struct Pair {
    local: Arc<Scripted>,
    remote: Arc<Scripted>,
    overflow: Overflow,
}

fn pair(config: OverflowConfig) -> Pair {
    of(Scripted::new("near"), Scripted::new("far"), config)
}

fn of(local: Scripted, remote: Scripted, config: OverflowConfig) -> Pair {
    let (local, remote) = (Arc::new(local), Arc::new(remote));
    let overflow = Overflow::new(
        Arc::clone(&local) as Arc<dyn ModelBackend>,
        Arc::clone(&remote) as Arc<dyn ModelBackend>,
        config,
    );
    Pair { local, remote, overflow: overflow.unwrap() }
}

impl Pair {
    fn ask(&self, request: GenerateRequest) -> consort_core::Result<Vec<u32>> {
        tokens(self.overflow.generate(request)?)
    }

    fn asked(&self) -> (usize, usize) {
        (self.local.asked(), self.remote.asked())
    }
}

fn placed(placement: PlacementRule) -> GenerateRequest {
    GenerateRequest { placement, ..request() }
}

#[test]
fn what_a_request_says_comes_before_its_priority() {
    let rules = PriorityRules {
        batch: PlacementRule::Remote,
        background: PlacementRule::PreferRemote,
        realtime: PlacementRule::Local,
        ..PriorityRules::default()
    };
    let pair = pair(OverflowConfig { priorities: rules, ..OverflowConfig::default() });
    pair.local.plays((0..4).map(|_| Play::say(&[1])));
    pair.remote.plays((0..4).map(|_| Play::say(&[2])));
    let ask = |placement, priority| pair.ask(GenerateRequest { priority, ..placed(placement) }).unwrap()[0];
    assert_eq!(ask(PlacementRule::Any, Priority::Interactive), 1);
    assert_eq!(ask(PlacementRule::Any, Priority::Realtime), 1);
    assert_eq!(ask(PlacementRule::Any, Priority::Background), 2);
    assert_eq!(ask(PlacementRule::Any, Priority::Batch), 2);
    assert_eq!(ask(PlacementRule::Local, Priority::Batch), 1);
    assert_eq!(ask(PlacementRule::Remote, Priority::Realtime), 2);
    assert_eq!(ask(PlacementRule::PreferRemote, Priority::Interactive), 2);
    let told = pair.overflow.overflow_metrics();
    assert_eq!((told.taken_for(Side::Local, Reason::First), told.taken_for(Side::Local, Reason::Priority)), (1, 1));
    assert_eq!(told.taken_for(Side::Remote, Reason::Priority), 2);
    assert_eq!(
        (told.taken_for(Side::Local, Reason::Placement), told.taken_for(Side::Remote, Reason::Placement)),
        (1, 2)
    );
    assert_eq!((told.requests, told.answered_local, told.answered_remote, told.pending), (7, 3, 4, 0));
}

/// Whatever goes wrong on the local side: what must stay there is not sent away.
#[test]
fn what_must_stay_never_leaves() {
    for kind in [ErrorKind::Overloaded, ErrorKind::OutOfMemory, ErrorKind::Unsupported, ErrorKind::Unexpected] {
        let pair = pair(OverflowConfig { local_queue: Some(0), ..OverflowConfig::default() });
        pair.local.plays([Play::Refuse(kind), Play::fail(kind)]);
        pair.remote.plays([Play::say(&[2])]);
        for _ in 0..2 {
            assert_eq!(pair.ask(placed(PlacementRule::Local)).unwrap_err().kind(), kind);
        }
        assert_eq!(pair.remote.asked(), 0);
        // And the other way.
        pair.remote.plays([]);
        let pair = super_remote(kind);
        assert_eq!(pair.ask(placed(PlacementRule::Remote)).unwrap_err().kind(), kind);
        assert_eq!(pair.local.asked(), 0);
    }
}

fn super_remote(kind: ErrorKind) -> Pair {
    let pair = pair(OverflowConfig::default());
    pair.remote.plays([Play::fail(kind)]);
    pair.local.plays([Play::say(&[1])]);
    pair
}

#[test]
fn a_full_local_side_passes_it_on_at_once_and_in_the_stream() {
    for (kind, reason) in [
        (ErrorKind::Overloaded, Reason::Overloaded),
        (ErrorKind::OutOfMemory, Reason::OutOfMemory),
        (ErrorKind::Poisoned, Reason::Broken),
        (ErrorKind::Unexpected, Reason::Broken),
        (ErrorKind::Unsupported, Reason::Unable),
    ] {
        let pair = pair(OverflowConfig::default());
        // Also when it has said that it starts: nobody has heard it.
        let late = Play::Acts(vec![Act::Start, Act::Fail(kind)]);
        pair.local.plays([Play::Refuse(kind), Play::fail(kind), late]);
        pair.remote.plays((0..3).map(|_| Play::say(&[2, 3])));
        for _ in 0..3 {
            assert_eq!(pair.ask(request()).unwrap(), [2, 3], "{kind:?}");
        }
        let told = pair.overflow.overflow_metrics();
        assert_eq!((told.taken_for(Side::Remote, reason), told.moved(Side::Remote)), (3, 3), "{kind:?}");
        assert_eq!((told.answered_remote, told.answered_local, told.failed), (3, 0, 0), "{kind:?}");
        assert_eq!(pair.local.alive() + pair.remote.alive(), 0);
    }
}

#[test]
fn what_is_wrong_with_the_request_is_told_and_not_passed_on() {
    for kind in [ErrorKind::InvalidRequest, ErrorKind::InvalidImage, ErrorKind::InvalidGrammar, ErrorKind::Cancelled] {
        let pair = pair(OverflowConfig::default());
        pair.local.plays([Play::Refuse(kind), Play::fail(kind)]);
        for _ in 0..2 {
            assert_eq!(pair.ask(request()).unwrap_err().kind(), kind);
        }
        assert_eq!(pair.remote.asked(), 0, "{kind:?}");
    }
}

#[test]
fn after_the_first_token_the_side_stays() {
    for (kind, act) in
        [(ErrorKind::OutOfMemory, Act::Fail(ErrorKind::OutOfMemory)), (ErrorKind::Unexpected, Act::Vanish)]
    {
        let pair = pair(OverflowConfig::default());
        pair.local.plays([Play::Acts(vec![Act::Start, Act::Say(1), act])]);
        pair.remote.plays([Play::say(&[2])]);
        let mut events = pair.overflow.generate(request()).unwrap().blocking();
        assert!(matches!(events.next(), Some(Ok(Event::Started(_)))));
        assert!(matches!(events.next(), Some(Ok(Event::Tokens { .. }))));
        assert_eq!(events.next().unwrap().unwrap_err().kind(), kind);
        assert!(events.next().is_none());
        assert_eq!(pair.asked(), (1, 0));
        assert_eq!(pair.overflow.overflow_metrics().answered_local, 1);
    }
}

/// A stream that ends without an end before it said anything is a side that broke.
#[test]
fn a_stream_that_vanishes_early_is_passed_on() {
    let pair = pair(OverflowConfig::default());
    pair.local.plays([Play::Acts(vec![Act::Start, Act::Vanish])]);
    pair.remote.plays([Play::say(&[2])]);
    assert_eq!(pair.ask(request()).unwrap(), [2]);
    assert_eq!(pair.overflow.overflow_metrics().taken_for(Side::Remote, Reason::Broken), 1);
}

/// A reply of an end token alone has no token to wait for.
#[test]
fn a_reply_without_a_token_ends() {
    let pair = pair(OverflowConfig::default());
    pair.local.plays([Play::say(&[])]);
    let events: Vec<_> = pair.overflow.generate(request()).unwrap().blocking().map(Result::unwrap).collect();
    assert!(matches!(events[..], [Event::Started(_), Event::Finished { .. }]), "{events:?}");
    assert_eq!(pair.overflow.overflow_metrics().answered_local, 1);
}

#[test]
fn the_start_is_held_back_until_nothing_can_change() {
    let gate = Gate::default();
    let play = || Play::Acts(vec![Act::Start, Act::Wait(gate.clone()), Act::Say(1), Act::Finish]);
    let pair = pair(OverflowConfig::default());
    pair.local.plays([play(), play()]);
    let mut open = pair.overflow.generate(request()).unwrap();
    assert!(poll_once(&mut open).is_pending(), "another side could answer yet");
    // With nowhere else to go there is nothing to hold back.
    let mut bound = pair.overflow.generate(placed(PlacementRule::Local)).unwrap();
    assert!(matches!(poll_once(&mut bound), Poll::Ready(Some(Ok(Event::Started(_))))));
    assert_eq!(pair.overflow.overflow_metrics().pending, 1);
    gate.open();
    assert_eq!(tokens(open).unwrap(), [1]);
}

#[test]
fn a_remote_side_that_fails_for_a_time_gives_way_to_the_local_one() {
    let setups = [(RemoteFailure::LocalAnswers, true), (RemoteFailure::Fails, false)];
    for (remote_failure, answers) in setups {
        for kind in [ErrorKind::Remote, ErrorKind::Overloaded, ErrorKind::Poisoned] {
            let pair = pair(OverflowConfig { remote_failure, ..OverflowConfig::default() });
            pair.remote.plays([Play::Refuse(kind), Play::fail(kind)]);
            pair.local.plays([Play::say(&[1]), Play::say(&[1])]);
            for _ in 0..2 {
                match pair.ask(placed(PlacementRule::PreferRemote)) {
                    Ok(said) => assert!(answers && said == [1]),
                    Err(error) => assert!(!answers && error.kind() == kind, "{error}"),
                }
            }
            assert_eq!(pair.overflow.overflow_metrics().moved(Side::Local), if answers { 2 } else { 0 });
        }
    }
    // What will fail again, and what came too late, is told.
    for kind in [ErrorKind::NotFound, ErrorKind::DeadlineExceeded, ErrorKind::InvalidRequest] {
        let pair = super_remote(kind);
        assert_eq!(pair.ask(placed(PlacementRule::PreferRemote)).unwrap_err().kind(), kind);
        assert_eq!(pair.local.asked(), 0);
    }
}

#[test]
fn a_local_side_that_was_full_is_asked_once_more() {
    let pair = pair(OverflowConfig::default());
    pair.local.plays([Play::Refuse(ErrorKind::Overloaded), Play::say(&[1])]);
    pair.remote.plays([Play::fail(ErrorKind::Remote)]);
    assert_eq!(pair.ask(request()).unwrap(), [1]);
    let told = pair.overflow.overflow_metrics();
    assert_eq!((told.taken_for(Side::Remote, Reason::Overloaded), told.taken_for(Side::Local, Reason::Broken)), (1, 1));
    assert_eq!((told.requests, told.answered_local), (1, 1));

    // Full again, it ends with both reasons, and goes round no more.
    pair.local.plays([Play::fail(ErrorKind::OutOfMemory), Play::fail(ErrorKind::Overloaded), Play::say(&[1])]);
    pair.remote.plays([Play::fail(ErrorKind::Remote), Play::say(&[2])]);
    let error = pair.ask(request()).unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Overloaded, ErrorStatus::Temporary));
    assert!(error.context().any(|(side, said)| side == "remote" && said.starts_with("remote")), "{error}");
    assert_eq!(pair.overflow.overflow_metrics().failed, 1);
}

#[test]
fn both_refuse_and_both_reasons_are_told() {
    let pair = pair(OverflowConfig::default());
    pair.local.plays([Play::Refuse(ErrorKind::Overloaded)]);
    pair.remote.plays([Play::Refuse(ErrorKind::Remote)]);
    let error = pair.overflow.generate(request()).unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Overloaded, "near refuses, as the script has it"));
    assert!(error.context().any(|(key, value)| key == "remote" && value.contains("far refuses")), "{error}");
    let told = pair.overflow.overflow_metrics();
    assert_eq!((told.refused, told.requests, told.failed), (1, 0, 0));
    assert_eq!(pair.overflow.metrics().refused, 1, "what a side refused and the other took is not among these");
}

#[test]
fn a_queue_that_is_long_enough_is_left_alone() {
    let local = Scripted { slots: 1, ..Scripted::new("near") };
    let pair = of(local, Scripted::new("far"), OverflowConfig { local_queue: Some(2), ..OverflowConfig::default() });
    let gate = Gate::default();
    let held = || Play::Acts(vec![Act::Wait(gate.clone()), Act::Start, Act::Say(1), Act::Finish]);
    pair.local.plays((0..3).map(|_| held()));
    pair.remote.plays([Play::say(&[2])]);
    let local: Vec<_> = (0..3).map(|_| pair.overflow.generate(request()).unwrap()).collect();
    assert_eq!(pair.local.metrics().queued, 2);
    assert_eq!(pair.ask(request()).unwrap(), [2]);
    assert_eq!(pair.overflow.overflow_metrics().taken_for(Side::Remote, Reason::Queue), 1);
    gate.open();
    for stream in local {
        assert_eq!(tokens(stream).unwrap(), [1]);
    }
    // The remote side fails: the long local queue is better than nothing.
    pair.local.load(|metrics| metrics.queued = 9);
    pair.local.plays([Play::say(&[1])]);
    pair.remote.plays([Play::fail(ErrorKind::Remote)]);
    assert_eq!(pair.ask(request()).unwrap(), [1]);
}

/// 64 come at once; two run, two wait, and sixty go elsewhere.
#[test]
fn a_flood_is_answered_and_counted() {
    let local = Scripted { slots: 2, queue: 2, ..Scripted::new("near") };
    let remote = Scripted { slots: 8, queue: 52, ..Scripted::new("far") };
    let pair = of(local, remote, OverflowConfig::default());
    pair.local.plays((0..4).map(|_| Play::say(&[1, 1])));
    pair.remote.plays((0..60).map(|_| Play::say(&[2, 2])));
    let streams: Vec<_> = (0..64).map(|_| pair.overflow.generate(request()).unwrap()).collect();
    let sums = pair.overflow.metrics();
    assert_eq!((sums.running, sums.queued, sums.refused), (10, 54, 0));
    // Both are full to the brim.
    let error = pair.overflow.generate(request()).unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Overloaded, "the queue of near is full"));
    assert!(error.to_string().contains("the queue of far is full"), "{error}");
    let said: Vec<_> = streams.into_iter().map(|stream| tokens(stream).unwrap()).collect();
    assert_eq!(said[..4], vec![vec![1, 1]; 4]);
    assert_eq!(said[4..], vec![vec![2, 2]; 60]);
    let told = pair.overflow.overflow_metrics();
    assert_eq!((told.taken_for(Side::Local, Reason::First), told.taken_for(Side::Remote, Reason::Overloaded)), (4, 60));
    assert_eq!((told.requests, told.answered_local, told.answered_remote, told.refused), (64, 4, 60, 1));
    assert_eq!((pair.local.metrics().refused, pair.overflow.metrics().refused), (61, 1));
}

#[test]
fn memory_decides_in_the_stream() {
    let pair = pair(OverflowConfig { local_memory: Some(0.5), ..OverflowConfig::default() });
    let report =
        |held| MemoryReport { kv_cache: held, kept_pasts: 10, sequence_budget: Some(100), ..MemoryReport::default() };
    let gate = Gate::default();
    pair.local.memory_is(gate.clone(), report(60));
    pair.remote.plays([Play::say(&[2])]);
    let mut stream = pair.overflow.generate(request()).unwrap();
    assert!(poll_once(&mut stream).is_pending());
    assert_eq!(pair.asked(), (0, 0), "nobody is asked before memory is known");
    gate.open();
    assert_eq!(tokens(stream).unwrap(), [2]);
    assert_eq!(pair.overflow.overflow_metrics().taken_for(Side::Remote, Reason::Memory), 1);
    pair.local.memory_is(gate, report(59));
    pair.local.plays([Play::say(&[1])]);
    assert_eq!(pair.ask(request()).unwrap(), [1]);

    // Dropped while it waits for the answer, it leaves nothing behind.
    pair.local.memory_is(Gate::default(), report(1));
    let mut stream = pair.overflow.generate(request()).unwrap();
    assert!(poll_once(&mut stream).is_pending());
    assert_eq!(pair.local.memory_waiters(), 1);
    drop(stream);
    assert_eq!((pair.local.memory_waiters(), pair.asked()), (0, (1, 1)));
    assert_eq!(pair.overflow.overflow_metrics().cancelled, 1);
}

#[test]
fn dropping_drops_whichever_side_is_alive() {
    let pair = pair(OverflowConfig::default());
    let gate = Gate::default();
    let held = || Play::Acts(vec![Act::Wait(gate.clone()), Act::Start, Act::Say(1), Act::Finish]);
    pair.local.plays([held(), Play::fail(ErrorKind::OutOfMemory)]);
    pair.remote.plays([held()]);
    let mut near = pair.overflow.generate(request()).unwrap();
    let mut far = pair.overflow.generate(request()).unwrap();
    assert!(poll_once(&mut near).is_pending() && poll_once(&mut far).is_pending());
    assert_eq!((pair.local.alive(), pair.remote.alive()), (1, 1), "a side that gave up holds nothing");
    drop(near);
    assert_eq!((pair.local.alive(), pair.remote.alive()), (0, 1));
    drop(far);
    assert_eq!((pair.local.alive(), pair.remote.alive()), (0, 0));
    let told = pair.overflow.overflow_metrics();
    assert_eq!((told.requests, told.cancelled, told.pending), (2, 2, 0));
}

/// Streams must not keep an `Overflow` alive, else no backend would ever shut down under them.
#[test]
fn streams_outlive_the_overflow_and_hold_no_backend() {
    let Pair { local, remote, overflow } = pair(OverflowConfig::default());
    local.plays([Play::fail(ErrorKind::OutOfMemory)]);
    let stream = overflow.generate(request()).unwrap();
    drop(overflow);
    assert_eq!((Arc::strong_count(&local), Arc::strong_count(&remote)), (1, 1));
    assert_eq!(tokens(stream).unwrap_err().kind(), ErrorKind::OutOfMemory);
    assert_eq!(remote.asked(), 0);
}

#[test]
fn a_side_is_asked_for_what_it_can() {
    let mut local = Scripted::new("near");
    local.capability.prompt_logprobs = true;
    local.capability.max_sequence_tokens = 32;
    let mut remote = Scripted::new("far");
    remote.capability.structured_output = true;
    let pair = of(local, remote, OverflowConfig::default());
    pair.local.plays((0..3).map(|_| Play::say(&[1])));
    pair.remote.plays((0..3).map(|_| Play::say(&[2])));
    let can = pair.overflow.capability();
    assert!(can.prompt_logprobs && can.structured_output && !can.image_input);
    assert_eq!((can.max_sequences, can.max_sequence_tokens), (8, 64));

    let structured = GenerateRequest { structure: Some(Structure::Regex("a".into())), ..request() };
    assert_eq!(pair.ask(structured.clone()).unwrap(), [2]);
    assert_eq!(pair.ask(of_length(40)).unwrap(), [2]);
    let scored = GenerateRequest { prompt_logprobs: Some(1), ..placed(PlacementRule::PreferRemote) };
    assert_eq!(pair.ask(scored).unwrap(), [1]);
    let told = pair.overflow.overflow_metrics();
    assert_eq!((told.taken_for(Side::Remote, Reason::Ability), told.taken_for(Side::Local, Reason::Ability)), (2, 1));

    // Nobody else can, so its refusal is the answer, and the other is not bothered.
    pair.remote.plays([]);
    let asked = pair.asked();
    pair.remote.plays([Play::say(&[2])]);
    let longest = of_length(64);
    assert_eq!(pair.ask(longest).unwrap_err().kind(), ErrorKind::InvalidRequest);
    assert_eq!(pair.asked(), asked);
    // How long a conversation is, its side knows: the shorter one refuses it, and the longer one is asked.
    let chat = ChatPrompt {
        messages: vec![ChatMessage::text(Role::User, "Eight and twenty letters")],
        ..ChatPrompt::default()
    };
    assert_eq!(pair.ask(GenerateRequest::new(Prompt::Chat(chat))).unwrap(), [2]);
    assert_eq!(pair.overflow.overflow_metrics().taken_for(Side::Remote, Reason::Unable), 1);
}

#[test]
fn texts_are_embedded_where_they_can_be() {
    let pair = pair(OverflowConfig::default());
    let ask = || {
        let prompt = request().prompt;
        block_on(pair.overflow.embed(EmbedRequest {
            prompt,
            adapters: Vec::new(),
            pooling: Pooling::Last,
            placement: PlacementRule::Any,
        }))
    };
    pair.local.embeds([
        Ok(vec![1.0]),
        Err(ErrorKind::OutOfMemory),
        Err(ErrorKind::InvalidRequest),
        Err(ErrorKind::Overloaded),
    ]);
    pair.remote.embeds([Ok(vec![2.0]), Err(ErrorKind::Remote)]);
    assert_eq!(ask().unwrap(), [1.0]);
    assert_eq!(ask().unwrap(), [2.0]);
    assert_eq!(ask().unwrap_err().kind(), ErrorKind::InvalidRequest);
    let both = ask().unwrap_err();
    assert_eq!(both.kind(), ErrorKind::Overloaded);
    assert!(both.context().any(|(key, _)| key == "remote"), "{both}");
    let told = pair.overflow.overflow_metrics();
    assert_eq!((told.embeds_local, told.embeds_remote), (4, 2));

    let mut local = Scripted::new("near");
    local.capability.embeddings = false;
    let blind = of(local, Scripted::new("far"), OverflowConfig::default());
    blind.remote.embeds([Ok(vec![3.0])]);
    let prompt = request().prompt;
    let asked = EmbedRequest { prompt, adapters: Vec::new(), pooling: Pooling::Last, placement: PlacementRule::Any };
    assert_eq!(block_on(blind.overflow.embed(asked)).unwrap(), [3.0]);
}

#[test]
fn a_text_that_is_bound_to_a_side_is_embedded_there_or_nowhere() {
    let pair = pair(OverflowConfig::default());
    let ask = |placement| {
        let prompt = request().prompt;
        let asked = EmbedRequest { prompt, adapters: Vec::new(), pooling: Pooling::Last, placement };
        block_on(pair.overflow.embed(asked)).map_err(|error| error.kind())
    };
    pair.local.embeds([Err(ErrorKind::Overloaded), Ok(vec![1.0])]);
    pair.remote.embeds([Err(ErrorKind::Remote), Ok(vec![2.0])]);
    assert_eq!(ask(PlacementRule::Local), Err(ErrorKind::Overloaded), "it stays");
    assert_eq!(ask(PlacementRule::Remote), Err(ErrorKind::Remote), "it stays there");
    assert_eq!(ask(PlacementRule::PreferRemote), Ok(vec![2.0]));
    assert_eq!(ask(PlacementRule::Local), Ok(vec![1.0]));
    let told = pair.overflow.overflow_metrics();
    assert_eq!((told.embeds_local, told.embeds_remote), (2, 2));
}

#[test]
fn whoever_holds_it_as_a_backend_sees_its_sides() {
    let config = OverflowConfig { local_queue: Some(0), ..OverflowConfig::default() };
    let pair = pair(config);
    pair.local.plays([Play::say(&[1])]);
    pair.remote.plays([Play::say(&[2])]);
    assert_eq!(pair.ask(placed(PlacementRule::Local)).unwrap(), [1]);
    assert_eq!(pair.ask(request()).unwrap(), [2]);
    let backend: &dyn ModelBackend = &pair.overflow;
    let sides = backend.sides().unwrap();
    assert_eq!((sides.answered_local, sides.answered_remote, sides.pending), (1, 1, 0));
    assert_eq!((sides.local, sides.remote), (pair.local.name(), pair.remote.name()));
    let mut routes: Vec<_> = sides.routes.iter().map(|route| (route.side, route.reason, route.requests)).collect();
    routes.sort_unstable();
    assert_eq!(routes, [("local", "placement", 1), ("remote", "queue", 1)]);
    assert!(pair.local.sides().is_none());
}

#[test]
fn two_models_are_not_one() {
    let refuse = |local: Scripted, remote: Scripted, field: &str| {
        let error = Overflow::new(Arc::new(local), Arc::new(remote), OverflowConfig::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains(field), "{error}");
    };
    let plain = || Scripted::new("one");
    let mut other = plain();
    other.info.vocab_size = 101;
    refuse(plain(), other, "vocab_size");
    let with = |tokenizer: fn(&str) -> Vec<u32>| Scripted { tokenizer: Some(tokenizer), ..plain() };
    let bytes: fn(&str) -> Vec<u32> = |text| text.bytes().map(u32::from).collect();
    let chars: fn(&str) -> Vec<u32> = |text| text.chars().map(u32::from).collect();
    refuse(with(bytes), with(chars), "tokenizer");
    // Who cannot tell is believed, and asked last.
    let pair = of(plain(), with(bytes), OverflowConfig::default());
    assert_eq!(pair.overflow.tokenize("ab", SpecialTokens::Plain).unwrap(), [97, 98]);
    let one: Arc<dyn ModelBackend> = Arc::new(plain());
    let error = Overflow::new(Arc::clone(&one), one, OverflowConfig::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    for wrong in [
        OverflowConfig { local_memory: Some(0.0), ..OverflowConfig::default() },
        OverflowConfig { local_memory: Some(f32::NAN), ..OverflowConfig::default() },
        OverflowConfig { local_wait: Some(std::time::Duration::ZERO), ..OverflowConfig::default() },
    ] {
        let error = Overflow::new(Arc::new(plain()), Arc::new(plain()), wrong).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    }
}
