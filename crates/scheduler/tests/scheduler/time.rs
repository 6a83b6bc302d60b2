//! The same rules as in the simulation, on the system's clock: the thread wakes when it should, and not only when it is asked.

use std::time::{Duration, Instant};

use consort_core::*;
use consort_scheduler::SchedulerConfig;

use crate::engine::Setup;
use crate::support::*;

fn slots(max_sequences: usize) -> Setup {
    Setup { capability: Capability { max_sequences, ..Setup::default().capability }, ..Setup::default() }
}

#[test]
fn a_deadline_wakes_a_worker_that_has_nothing_to_do() {
    let rig = Rig::new(slots(1), SchedulerConfig { event_buffer: 2, ..SchedulerConfig::default() });
    let allowed = Duration::from_millis(80);
    let deadlines = Deadlines { first_token: None, total: Some(allowed) };
    let begun = Instant::now();
    // Nobody reads: after two events the engine stands still, and no command comes any more.
    let stream = rig.backend.generate(GenerateRequest { deadlines, ..ask(&tokens(1, 5), 1000) }).unwrap();
    rig.idle();
    let took = begun.elapsed();
    assert!(took >= allowed && took < allowed + Duration::from_secs(5), "{took:?}");
    let mut events: Vec<_> = stream.blocking().collect();
    let error = events.pop().unwrap().unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::DeadlineExceeded, ErrorStatus::Temporary));
    assert!(error.to_string().contains("deadlines.total") && error.to_string().contains("allowed_ms: 80"), "{error}");
    assert!(events.len() >= 2 && events.into_iter().all(|event| event.is_ok()), "what was said before is delivered");
    let metrics = rig.backend.metrics();
    assert_eq!((metrics.failed, metrics.failures.deadline, metrics.missed_total), (1, 1, 1));
    rig.no_leak();
    // A deadline that is kept says nothing, and neither does one beyond the end of time.
    for total in [Duration::from_secs(3600), Duration::MAX] {
        let deadlines = Deadlines { first_token: Some(total), total: Some(total) };
        rig.say(GenerateRequest { deadlines, ..ask(&tokens(1, 5), 5) });
    }
}

#[test]
fn a_deadline_passes_in_the_queue() {
    let rig = Rig::new(slots(1), SchedulerConfig::default());
    rig.control.hold();
    let running = rig.backend.generate(ask(&tokens(1, 5), 5)).unwrap();
    rig.control.wait_begun(1);
    let deadlines = Deadlines { first_token: Some(Duration::from_millis(1)), total: None };
    let late = rig.backend.generate(GenerateRequest { deadlines, ..ask(&tokens(2, 5), 5) }).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    rig.control.release();
    assert_eq!(collect(late).unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(collect(running).unwrap().ids.len(), 5);
    assert_eq!(rig.backend.metrics().missed_first_token, 1);
    rig.no_leak();
}

#[test]
fn a_share_of_the_time_leaves_the_rest_to_others_and_hears_commands_meanwhile() {
    let config = SchedulerConfig { gpu_time_share: 0.25, ..SchedulerConfig::default() };
    let setup = Setup { step_time: Duration::from_millis(8), ..Setup::default() };
    let rig = Rig::new(setup, config);
    let begun = Instant::now();
    let stream = rig.backend.generate(ask(&tokens(1, 5), 20)).unwrap();
    let asked = Instant::now();
    // It rests for 24 ms after each step, and answers at once.
    block_on(rig.backend.memory()).unwrap();
    assert!(asked.elapsed() < Duration::from_secs(2));
    assert_eq!(collect(stream).unwrap().ids.len(), 20);
    rig.idle();
    let (metrics, took) = (rig.backend.metrics(), begun.elapsed());
    // 21 steps, of which the last owes its rest to whoever comes next. A busy machine makes the share smaller, never larger.
    let share = metrics.busy.as_secs_f64() / took.as_secs_f64();
    assert!(share < 0.30, "{share} of {took:?}");
    assert!(metrics.busy >= Duration::from_millis(21 * 8) && metrics.paced >= 2 * metrics.busy, "{metrics:?}");
}

#[test]
fn an_engine_that_panics_ends_every_stream_with_a_clear_error() {
    let rig = Rig::new(Setup { panics_at: Some(6), ..slots(1) }, SchedulerConfig::default());
    let running = rig.backend.generate(ask(&tokens(1, 5), 50)).unwrap();
    let queued = rig.backend.generate(ask(&tokens(2, 5), 50)).unwrap();
    for stream in [running, queued] {
        let error = collect(stream).unwrap_err();
        assert_eq!((error.kind(), error.status()), (ErrorKind::Unexpected, ErrorStatus::Permanent));
        assert!(error.message().contains("panicked"), "{error}");
    }
    // What comes later is told the same, at once, and nothing hangs.
    while rig.backend.generate(ask(&tokens(3, 5), 5)).is_ok() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let error = rig.backend.generate(ask(&tokens(3, 5), 5)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unexpected);
    assert_eq!(block_on(rig.backend.memory()).unwrap_err().kind(), ErrorKind::Unexpected);
    rig.backend.wait_idle(Duration::from_secs(5)).unwrap();
    let metrics = rig.backend.metrics();
    assert_eq!(metrics.requests, metrics.cancelled + metrics.finished + metrics.failed);
    let control = rig.control.clone();
    drop(rig);
    assert_eq!(control.counts(), (0, 0), "what the engine held is freed");
}

#[test]
fn a_cache_that_is_cleared_holds_nothing_and_what_runs_goes_on() {
    let rig = Rig::new(Setup::default(), SchedulerConfig::default());
    rig.say(request(seen(&tokens(1, 50), 3, &tokens(2, 20)), 5));
    let memory = block_on(rig.backend.memory()).unwrap();
    let metrics = rig.backend.metrics();
    assert!(metrics.cached_pasts > 0 && metrics.image_cache_bytes > 0);
    assert_eq!((memory.kept_pasts, memory.suspended_pasts), (metrics.cached_bytes, 0));
    let running = rig.backend.generate(ask(&tokens(5, 30), 300)).unwrap();
    block_on(rig.backend.clear_cache()).unwrap();
    assert_eq!(collect(running).unwrap().ids, expected(&parts(&tokens(5, 30)), &[], 300));
    block_on(rig.backend.clear_cache()).unwrap();
    let metrics = rig.backend.metrics();
    assert_eq!((metrics.cached_pasts, metrics.cached_bytes, metrics.image_cache_bytes), (0, 0, 0));
    assert_eq!(block_on(rig.backend.memory()).unwrap().kv_cache, 0);
    assert_eq!((rig.control.counts(), rig.control.images.load(std::sync::atomic::Ordering::SeqCst)), ((0, 0), 0));
    assert!(metrics.evicted_pasts > 0);
}

#[test]
fn settings_without_meaning_are_refused_by_name() {
    let refused = |config: SchedulerConfig| {
        let control = std::sync::Arc::default();
        let make = move || Ok(crate::engine::HashEngine::new(Setup::default(), control));
        let error =
            consort_scheduler::Scheduled::spawn(make, consort_scheduler::FrontEnd::default(), config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        error.to_string()
    };
    let default = SchedulerConfig::default;
    for share in [0.0, -1.0, 1.01, f32::NAN, f32::INFINITY] {
        assert!(refused(SchedulerConfig { gpu_time_share: share, ..default() }).contains("gpu_time_share"));
    }
    assert!(refused(SchedulerConfig { aging: Some(Duration::ZERO), ..default() }).contains("aging"));
    assert!(refused(SchedulerConfig { max_step_time: Some(Duration::ZERO), ..default() }).contains("max_step_time"));
}
