//! One name for one adapter on both sides, whatever happens while it changes.
#![allow(clippy::unwrap_used)]

mod common;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Waker};

use common::{Act, Gate, Load, Play, Scripted, request, tokens, until, weights};
use consort_core::{
    AdapterMode, AdapterUse, ErrorKind, GenerateRequest, ModelBackend, PlacementRule, Residency, Result, block_on,
};
use consort_overflow::{Overflow, OverflowConfig, Reason, Side};

type Pair = (Arc<Scripted>, Arc<Scripted>, Overflow);

fn of(local: Scripted, remote: Scripted) -> Pair {
    let (local, remote) = (Arc::new(local), Arc::new(remote));
    let (near, far) = (Arc::clone(&local) as Arc<dyn ModelBackend>, Arc::clone(&remote) as Arc<dyn ModelBackend>);
    (local, remote, Overflow::new(near, far, OverflowConfig::default()).unwrap())
}

fn pair() -> Pair {
    of(Scripted::new("near"), Scripted::new("far"))
}

fn load(overflow: &Overflow, id: &str, number: u64) -> Result<u64> {
    block_on(overflow.load_adapter(id, weights(number))).map(|info| {
        assert_eq!(&*info.key.id, id);
        info.key.generation
    })
}

fn with(id: &str, placement: PlacementRule) -> GenerateRequest {
    GenerateRequest { adapters: vec![AdapterUse { id: id.into(), scale: 1.0 }], placement, ..request() }
}

/// With which weights each side answers.
fn said_with((local, remote, overflow): &Pair, id: &str) -> (Vec<u64>, Vec<u64>) {
    local.plays([Play::say(&[1])]);
    remote.plays([Play::say(&[2])]);
    tokens(overflow.generate(with(id, PlacementRule::Local)).unwrap()).unwrap();
    tokens(overflow.generate(with(id, PlacementRule::Remote)).unwrap()).unwrap();
    (local.last_weights(), remote.last_weights())
}

fn held(pair: &Pair) -> (Vec<u64>, Vec<u64>) {
    (pair.0.held().into_values().collect(), pair.1.held().into_values().collect())
}

#[test]
fn both_sides_have_what_was_loaded_and_nothing_else() {
    let pair = pair();
    let first = load(&pair.2, "ada", 1).unwrap();
    let second = load(&pair.2, "ada", 2).unwrap();
    load(&pair.2, "bob", 3).unwrap();
    assert!(first < second, "other weights have another generation");
    assert_eq!(said_with(&pair, "ada"), (vec![2], vec![2]));
    assert_eq!(said_with(&pair, "bob"), (vec![3], vec![3]));
    let mut both = held(&pair);
    both.0.sort_unstable();
    both.1.sort_unstable();
    assert_eq!(both, (vec![2, 3], vec![2, 3]), "the old weights are gone");
    let listed: Vec<_> =
        pair.2.adapters().into_iter().map(|one| (one.info.key.id.to_string(), one.info.key.generation)).collect();
    assert_eq!(listed, [("ada".to_owned(), second), ("bob".to_owned(), second + 1)]);
    block_on(pair.2.unload_adapter("ada")).unwrap();
    assert_eq!(held(&pair), (vec![3], vec![3]));
    for error in [
        block_on(pair.2.unload_adapter("ada")).unwrap_err(),
        pair.2.generate(with("ada", PlacementRule::Any)).unwrap_err(),
        block_on(pair.2.set_adapter_residency("ada", Residency::Pinned)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}

#[test]
fn both_have_it_or_neither() {
    for (side, kind) in [(Side::Local, ErrorKind::InvalidAdapter), (Side::Remote, ErrorKind::Remote)] {
        let pair = pair();
        load(&pair.2, "ada", 1).unwrap();
        let refuses = if side == Side::Local { &pair.0 } else { &pair.1 };
        refuses.loads([Load::Fail(kind)]);
        let error = load(&pair.2, "ada", 2).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.context().any(|(key, value)| key == "side" && value == side.as_str()), "{error}");
        assert_eq!(held(&pair), (vec![1], vec![1]), "the old weights are left, alone");
        assert_eq!(said_with(&pair, "ada"), (vec![1], vec![1]));
        // A name that never came to be.
        refuses.loads([Load::Fail(kind)]);
        load(&pair.2, "bob", 3).unwrap_err();
        assert_eq!(pair.2.generate(with("bob", PlacementRule::Any)).unwrap_err().kind(), ErrorKind::NotFound);
        load(&pair.2, "bob", 4).unwrap();
        assert_eq!(said_with(&pair, "bob"), (vec![4], vec![4]));
    }
}

#[test]
fn what_a_side_does_not_give_up_is_taken_later_and_named_by_nobody() {
    let pair = pair();
    load(&pair.2, "ada", 1).unwrap();
    pair.1.unloads_fail(1);
    load(&pair.2, "ada", 2).unwrap();
    assert_eq!(held(&pair).1.len(), 2, "the remote side keeps the old weights");
    assert_eq!(said_with(&pair, "ada"), (vec![2], vec![2]));
    load(&pair.2, "bob", 3).unwrap();
    block_on(pair.2.unload_adapter("bob")).unwrap();
    assert_eq!(held(&pair), (vec![2], vec![2]));
}

#[test]
fn a_load_that_nobody_awaits_is_undone() {
    let pair = pair();
    load(&pair.2, "ada", 1).unwrap();
    pair.1.loads([Load::Slow(Gate::default())]);
    {
        let mut load = pin!(pair.2.load_adapter("ada", weights(2)));
        assert!(load.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(said_with(&pair, "ada"), (vec![1], vec![1]), "until both have the new weights it means the old");
    }
    assert_eq!(said_with(&pair, "ada"), (vec![1], vec![1]));
    load(&pair.2, "bob", 3).unwrap();
    let mut both = held(&pair);
    both.0.sort_unstable();
    both.1.sort_unstable();
    assert_eq!(both, (vec![1, 3], vec![1, 3]));
}

#[test]
fn a_side_without_adapters_is_left_out() {
    let mut local = Scripted::new("near");
    local.capability.adapter_mode = AdapterMode::None;
    let (local, remote, overflow) = of(local, Scripted::new("far"));
    load(&overflow, "ada", 1).unwrap();
    remote.plays([Play::say(&[2])]);
    assert_eq!(tokens(overflow.generate(with("ada", PlacementRule::Any)).unwrap()).unwrap(), [2]);
    assert_eq!((local.asked(), remote.last_weights()), (0, vec![1]));
    assert_eq!(overflow.overflow_metrics().taken_for(Side::Remote, Reason::Ability), 1);
    assert_eq!(overflow.capability().adapter_mode, AdapterMode::MixedBatch);
    assert_eq!(overflow.adapters().len(), 1);

    // One that a side does not support is the other's alone; one that nobody supports is nobody's.
    let pair = pair();
    pair.1.loads([Load::Fail(ErrorKind::Unsupported)]);
    load(&pair.2, "ada", 1).unwrap();
    assert_eq!(held(&pair), (vec![1], vec![]));
    pair.0.loads([Load::Fail(ErrorKind::Unsupported)]);
    pair.1.loads([Load::Fail(ErrorKind::Unsupported)]);
    assert_eq!(load(&pair.2, "bob", 2).unwrap_err().kind(), ErrorKind::Unsupported);
    // The only side that has it is full: that is the answer, and the other is not asked.
    pair.0.plays([Play::Refuse(ErrorKind::Overloaded)]);
    assert_eq!(pair.2.generate(with("ada", PlacementRule::Any)).unwrap_err().kind(), ErrorKind::Overloaded);
    assert_eq!(pair.1.asked(), 0);

    let none = || {
        let mut none = Scripted::new("none");
        none.capability.adapter_mode = AdapterMode::None;
        none
    };
    let (_, _, neither) = of(none(), none());
    assert_eq!(load(&neither, "ada", 1).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(neither.generate(with("ada", PlacementRule::Any)).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn an_activated_adapter_goes_where_it_is_understood() {
    let mut local = Scripted::new("near");
    local.capability.activated_adapters = true;
    let pair = of(local, Scripted::new("far"));
    pair.0.loads([Load::Activated(vec![5, 6])]);
    let info = block_on(pair.2.load_adapter("ada", weights(1))).unwrap();
    assert_eq!(info.invocation_tokens, Some(vec![5, 6]));
    assert_eq!(held(&pair), (vec![1], vec![]), "the remote side would apply it to every token");

    let mut both = (Scripted::new("near"), Scripted::new("far"));
    both.0.capability.activated_adapters = true;
    both.1.capability.activated_adapters = true;
    let pair = of(both.0, both.1);
    pair.0.loads([Load::Activated(vec![5, 6])]);
    pair.1.loads([Load::Activated(vec![5])]);
    assert_eq!(load(&pair.2, "ada", 1).unwrap_err().kind(), ErrorKind::InvalidAdapter);
    assert_eq!(held(&pair), (vec![], vec![]));
}

#[test]
fn residency_survives_a_replacement() {
    let pair = pair();
    load(&pair.2, "ada", 1).unwrap();
    for residency in [Residency::Pinned, Residency::Paged { priority: 7 }] {
        block_on(pair.2.set_adapter_residency("ada", residency)).unwrap();
        load(&pair.2, "ada", 2).unwrap();
        assert_eq!(pair.2.adapters()[0].residency, residency);
        let name = pair.0.held().into_keys().next().unwrap();
        assert_eq!(pair.0.residency(&name), residency);
    }
}

/// A request that was accepted with the old weights begins anew with the old weights, although new ones have come since.
#[test]
fn who_begins_anew_keeps_the_weights() {
    let pair = pair();
    load(&pair.2, "ada", 1).unwrap();
    let gate = Gate::default();
    pair.0.plays([Play::Acts(vec![Act::Wait(gate.clone()), Act::Fail(ErrorKind::OutOfMemory)])]);
    pair.1.plays([Play::say(&[2])]);
    block_on(pair.2.set_adapter_residency("ada", Residency::Pinned)).unwrap();
    let stream = pair.2.generate(with("ada", PlacementRule::Any)).unwrap();
    load(&pair.2, "ada", 2).unwrap();
    assert_eq!(pair.0.residency("ada"), Residency::default(), "old weights pin no room");
    assert_eq!(pair.2.adapters()[0].residency, Residency::Pinned);
    block_on(pair.2.unload_adapter("ada")).unwrap();
    assert_eq!(held(&pair), (vec![1], vec![1]), "what nobody needs is gone");
    gate.open();
    assert_eq!(tokens(stream).unwrap(), [2]);
    assert_eq!(pair.1.last_weights(), [1]);
    assert_eq!(held(&pair), (vec![], vec![]), "the reply that needed them last has tidied up");
}

#[test]
fn what_was_loaded_before_can_be_named() {
    let (local, remote) = (Scripted::new("near"), Scripted::new("far"));
    block_on(local.load_adapter("both", weights(1))).unwrap();
    block_on(remote.load_adapter("both", weights(1))).unwrap();
    block_on(remote.load_adapter("far alone", weights(2))).unwrap();
    let pair = of(local, remote);
    assert_eq!(said_with(&pair, "both"), (vec![1], vec![1]));
    pair.1.plays([Play::say(&[2])]);
    assert_eq!(tokens(pair.2.generate(with("far alone", PlacementRule::Any)).unwrap()).unwrap(), [2]);

    let (local, remote) = (Scripted::new("near"), Scripted::new("far"));
    block_on(local.load_adapter("both", weights(1))).unwrap();
    block_on(remote.load_adapter("both", weights(2))).unwrap();
    let error = Overflow::new(Arc::new(local), Arc::new(remote), OverflowConfig::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("both"), "{error}");
}

/// Whoever asks one side and then the other, while weights are replaced again and again, never sees older ones than before,
/// nor older ones than those whose load had returned.
#[test]
fn no_side_ever_goes_back() {
    const LOADS: u64 = 300;
    let pair = Arc::new(pair());
    load(&pair.2, "ada", 1).unwrap();
    let (returned, done) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicBool::new(false)));
    let loader = {
        let (pair, returned, done) = (Arc::clone(&pair), Arc::clone(&returned), Arc::clone(&done));
        std::thread::spawn(move || {
            for number in 2..=LOADS {
                // Some fail on the way, and must leave no trace.
                if number % 7 == 0 {
                    pair.1.loads([Load::Fail(ErrorKind::Remote)]);
                    load(&pair.2, "ada", 1_000_000 + number).unwrap_err();
                }
                load(&pair.2, "ada", number).unwrap();
                returned.store(number, Ordering::SeqCst);
            }
            done.store(true, Ordering::SeqCst);
        })
    };
    let (mut newest, mut asked) = (0, 0_u64);
    while !done.load(Ordering::SeqCst) || asked < 100 {
        let least = returned.load(Ordering::SeqCst).max(newest);
        let (placement, side) =
            if asked.is_multiple_of(2) { (PlacementRule::Local, &pair.0) } else { (PlacementRule::Remote, &pair.1) };
        side.plays([Play::say(&[1])]);
        tokens(pair.2.generate(with("ada", placement)).unwrap()).unwrap();
        newest = side.last_weights()[0];
        assert!(newest >= least && newest <= LOADS, "weights {newest} after {least}");
        asked += 1;
    }
    loader.join().unwrap();
    assert_eq!(said_with(&pair, "ada"), (vec![LOADS], vec![LOADS]));
    until("one version is left on each side", || held(&pair) == (vec![LOADS], vec![LOADS]));
}
