//! One bad sequence never fails its neighbours.

use consort_core::*;
use consort_scheduler::SchedulerConfig;

use crate::engine::{Fault, Setup};
use crate::support::*;

/// Runs a victim with a long prompt beside two neighbours, with a fault that hits the victim's prompt.
fn beside(fault: Fault) -> (Rig, Result<Reply>) {
    let rig = Rig::new(Setup::default(), SchedulerConfig { background_step_tokens: 64, ..SchedulerConfig::default() });
    rig.control.hold();
    let first = rig.backend.generate(ask(&tokens(1, 3), 30)).unwrap();
    let second = rig.backend.generate(ask(&tokens(2, 3), 30)).unwrap();
    rig.control.allow(3);
    rig.control.wait_begun(4);
    rig.control.faults.lock().unwrap().push_back(fault);
    let victim = GenerateRequest { prefix_reuse: PrefixReuse::Bypass, ..ask(&tokens(3, 40), 10) };
    let victim = rig.backend.generate(victim).unwrap();
    rig.control.release();
    assert_eq!(collect(first).unwrap().ids, expected(&parts(&tokens(1, 3)), &[], 30));
    assert_eq!(collect(second).unwrap().ids, expected(&parts(&tokens(2, 3)), &[], 30));
    let reply = collect(victim);
    rig.no_leak();
    (rig, reply)
}

#[test]
fn a_refused_step_fails_its_request_alone() {
    let (rig, reply) = beside(Fault::Refuse(10, ErrorKind::InvalidRequest));
    assert_eq!(reply.unwrap_err().kind(), ErrorKind::InvalidRequest);
    assert_eq!((rig.backend.metrics().failed, rig.backend.metrics().finished), (1, 2));
}

#[test]
fn logits_that_are_not_numbers_fail_their_request_alone() {
    let (rig, reply) = beside(Fault::Nan(10));
    assert_eq!(reply.unwrap_err().kind(), ErrorKind::Unexpected);
    assert_eq!(rig.backend.metrics().finished, 2);
}

#[test]
fn a_poisoned_sequence_is_replayed_once() {
    let (rig, reply) = beside(Fault::Poison(10));
    assert_eq!(reply.unwrap().ids, expected(&parts(&tokens(3, 40)), &[], 10));
    assert_eq!(rig.backend.metrics().failed, 0);
    // In the middle of a reply as well.
    let rig = Rig::new(Setup::default(), SchedulerConfig::default());
    rig.control.hold();
    let stream = rig.backend.generate(ask(&tokens(3, 40), 10)).unwrap();
    rig.control.allow(5);
    rig.control.wait_begun(6);
    rig.control.faults.lock().unwrap().push_back(Fault::Poison(1));
    rig.control.release();
    assert_eq!(collect(stream).unwrap().ids, expected(&parts(&tokens(3, 40)), &[], 10));
    // But not twice.
    rig.control.faults.lock().unwrap().extend([Fault::Poison(3), Fault::Poison(3)]);
    let error = collect(rig.backend.generate(ask(&tokens(4, 40), 10)).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poisoned);
    rig.no_leak();
}

#[test]
fn a_batch_that_is_refused_as_a_whole_is_tried_one_by_one() {
    let (rig, reply) = beside(Fault::Batch(10));
    assert_eq!(reply.unwrap_err().kind(), ErrorKind::InvalidRequest);
    assert_eq!(rig.backend.metrics().finished, 2);
}

#[test]
fn an_image_that_cannot_be_encoded_fails_its_request_alone() {
    let rig = Rig::new(Setup::default(), SchedulerConfig::default());
    let good = rig.backend.generate(request(seen(&[1], 7, &[2]), 5)).unwrap();
    let bad = rig.backend.generate(request(seen(&[1], 255, &[2]), 5)).unwrap();
    assert_eq!(collect(bad).unwrap_err().kind(), ErrorKind::InvalidImage);
    assert_eq!(collect(good).unwrap().ids, expected(&seen(&[1], 7, &[2]), &[], 5));
    rig.no_leak();
}

#[test]
fn memory_that_runs_out_costs_kept_pasts_first_and_then_time_but_no_reply() {
    // Room for two and a half of these at once.
    let setup = Setup { budget: 250, ..Setup::default() };
    let config = SchedulerConfig { reserve_ahead: 4, ..SchedulerConfig::default() };
    let rig = Rig::new(setup, config);
    for round in 0..3 {
        let prompts: Vec<_> = (0..6).map(|seed| parts(&tokens(round * 10 + seed, 60))).collect();
        let streams: Vec<_> =
            prompts.iter().map(|prompt| rig.backend.generate(request(prompt.clone(), 40)).unwrap()).collect();
        for (prompt, stream) in prompts.iter().zip(streams) {
            assert_eq!(collect(stream).unwrap().ids, expected(prompt, &[], 40));
        }
    }
    rig.no_leak();
    assert_eq!(rig.backend.metrics().failed, 0);
    // What can never fit fails, and does not wait for ever.
    let error = collect(rig.backend.generate(ask(&tokens(1, 300), 4)).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    rig.no_leak();
}
