//! 64 people and 8 slots, on the real engine: arrivals, cancels, slow readers and deadlines at random. Afterwards memory is
//! what it was, nobody was starved, and the metrics say what the people themselves counted.
//!
//! `CONSORT_SOAK_SECONDS` says for how long; 10 where it is not set. The five minutes that a release must stand:
//!
//! ```console
//! $ cargo test -p consort-behavior --test soak -- --ignored --nocapture
//! ```
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::native;
use consort_behavior::fixture::{EngineFixture, Random, Setup};
use consort_core::{
    AdapterUse, Deadlines, ErrorKind, Event, GenerateRequest, MemoryReport, Metrics, ModelBackend, PrefixReuse,
    Priority, Prompt, PromptPart, Sampling, block_on,
};
use consort_native::NativeEngine;
use consort_scheduler::{FrontEnd, Scheduled, SchedulerConfig};

const PEOPLE: u64 = 64;
const AGING: Duration = Duration::from_secs(2);

/// Three times `aging`, until the request stands before all that came later; and then what those before it, and those who
/// hold the slots, may take at most: 63 replies over 8 slots.
const STARVED: Duration = Duration::from_secs(30);

type Backend = Scheduled<NativeEngine>;

/// What somebody saw.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    asked: u64,
    finished: u64,
    left: u64,
    late: u64,
    prompt_tokens: u64,
    said: u64,
    longest_wait: Duration,
}

impl Seen {
    fn and(self, other: Self) -> Self {
        Self {
            asked: self.asked + other.asked,
            finished: self.finished + other.finished,
            left: self.left + other.left,
            late: self.late + other.late,
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            said: self.said + other.said,
            longest_wait: self.longest_wait.max(other.longest_wait),
        }
    }
}

fn request(fixture: &EngineFixture, random: &mut Random) -> (GenerateRequest, u64) {
    let ladder = [Priority::Batch, Priority::Background, Priority::Interactive, Priority::Realtime];
    let long = random.below(8) == 0;
    // Some share a scene.
    let scene = random.below(6);
    let mut tokens = if scene < 3 { fixture.prompt(40 + 30 * scene, scene as u64) } else { Vec::new() };
    tokens.extend(fixture.prompt(1 + random.below(if long { 300 } else { 40 }), random.next()));
    let mut length = tokens.len();
    let mut parts = vec![PromptPart::Tokens(tokens)];
    if random.below(16) == 0 && !fixture.images.is_empty() {
        let image = &fixture.images[random.below(fixture.images.len())];
        length += image.grid().tokens();
        parts.extend([PromptPart::Image(image.clone()), PromptPart::Tokens(fixture.prompt(3, 7))]);
        length += 3;
    }
    let mut request = GenerateRequest::new(Prompt::Parts(parts));
    request.max_tokens = Some(1 + random.below(40) as u32);
    request.priority = ladder[random.below(4)];
    request.sampling = Sampling { temperature: 1.0, seed: random.next(), ..Sampling::default() };
    if random.below(3) == 0 && !fixture.adapters.is_empty() {
        let id = fixture.adapters[random.below(fixture.adapters.len())].name.clone();
        request.adapters = vec![AdapterUse { id, scale: 1.0 }];
    }
    if random.below(12) == 0 {
        let time = Some(Duration::from_millis(random.below(1500) as u64));
        request.deadlines = if random.below(2) == 0 {
            Deadlines { first_token: time, total: None }
        } else {
            Deadlines { first_token: None, total: time }
        };
    }
    if random.below(12) == 0 {
        request.prefix_reuse = PrefixReuse::Bypass;
    }
    (request, length as u64)
}

/// Asks again and again until the time is up.
fn person(backend: &Backend, fixture: &EngineFixture, number: u64, until: Instant) -> Seen {
    let mut random = Random::new(number);
    let mut seen = Seen::default();
    while Instant::now() < until {
        let (request, length) = request(fixture, &mut random);
        let leaves = (random.below(6) == 0).then(|| random.below(12));
        let slow = random.below(10) == 0;
        let begun = Instant::now();
        let stream = backend.generate(request).unwrap();
        seen.asked += 1;
        seen.prompt_tokens += length;
        let (mut ended, mut waiting) = (false, true);
        for (number, event) in stream.blocking().enumerate() {
            if std::mem::take(&mut waiting) {
                seen.longest_wait = seen.longest_wait.max(begun.elapsed());
            }
            match event {
                Ok(Event::Tokens { ids, .. }) => seen.said += ids.len() as u64,
                Ok(Event::Finished { .. }) => {
                    seen.finished += 1;
                    ended = true;
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::DeadlineExceeded => {
                    seen.late += 1;
                    ended = true;
                }
                Err(error) => panic!("{error:?}"),
            }
            if leaves.is_some_and(|after| number >= after) {
                break;
            }
            if slow {
                std::thread::sleep(Duration::from_millis(random.below(30) as u64));
            }
        }
        seen.left += u64::from(!ended);
        if random.below(4) == 0 {
            std::thread::sleep(Duration::from_millis(random.below(200) as u64));
        }
    }
    seen
}

fn everybody(backend: &Backend, fixture: &EngineFixture, time: Duration) -> Seen {
    let until = Instant::now() + time;
    let all = Mutex::new(Seen::default());
    std::thread::scope(|scope| {
        for number in 0..PEOPLE {
            let all = &all;
            scope.spawn(move || {
                let seen = person(backend, fixture, number, until);
                let mut all = all.lock().unwrap();
                *all = all.and(seen);
            });
        }
    });
    all.into_inner().unwrap()
}

/// When all is done and nothing is kept: what the engine holds, and the process.
fn at_rest(backend: &Backend) -> (MemoryReport, Option<u64>) {
    backend.wait_idle(Duration::from_secs(60)).unwrap();
    block_on(backend.clear_cache()).unwrap();
    (block_on(backend.memory()).unwrap(), resident())
}

/// Bytes of this process in memory, where the system tells.
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    // Pages of 4 KiB on every Linux that this is run on; where they are larger the figure is too small by that factor.
    statm.split_whitespace().nth(1)?.parse::<u64>().ok().map(|pages| pages * 4096)
}

fn soak(time: Duration) -> String {
    let files = native::etude_files(consort_forge::OutputType::F32).unwrap();
    let fixture = native::etude().unwrap().unwrap();
    // Room for some of eight large requests and what is kept: memory runs out now and then.
    let setup = Setup { sequence_budget: Some(12 << 20), ..fixture.setup() };
    let config = SchedulerConfig {
        max_running: 8,
        max_queued: PEOPLE as usize,
        aging: Some(AGING),
        event_buffer: 8,
        cache_bytes: 6 << 20,
        parked_bytes: 2 << 20,
        ..SchedulerConfig::default()
    };
    let backend = Scheduled::spawn(move || native::load(&files, 2, &setup), FrontEnd::default(), config).unwrap();
    for adapter in &fixture.adapters {
        block_on(backend.load_adapter(&adapter.name, adapter.files.clone())).unwrap();
    }
    let warm = everybody(&backend, &fixture, (time / 4).max(Duration::from_secs(3)));
    let before = at_rest(&backend);
    let seen = everybody(&backend, &fixture, time).and(warm);
    let after = at_rest(&backend);
    let metrics = backend.metrics();

    assert_eq!(before.0, after.0, "the engine holds something: {metrics:?}");
    if let (Some(before), Some(after)) = (before.1, after.1) {
        // The allocator keeps some of what it was given; a leak of one past a request would be hundreds of megabytes.
        assert!(after <= before + (24 << 20), "the process grew from {before} to {after} bytes");
    }
    adds_up(&metrics, &seen);
    assert!(seen.longest_wait < STARVED, "somebody waited {:?}", seen.longest_wait);
    assert!(metrics.queue_wait.max < STARVED, "somebody waited {:?}", metrics.queue_wait.max);
    let mib = |bytes: Option<u64>| bytes.map_or(0.0, |bytes| bytes as f64 / f64::from(1 << 20));
    format!(
        "{seen:?}\nresident: {:.1} MiB before, {:.1} MiB after\nengine: {:?}\n{metrics:?}",
        mib(before.1),
        mib(after.1),
        after.0
    )
}

fn adds_up(metrics: &Metrics, seen: &Seen) {
    assert_eq!((metrics.queued, metrics.running, metrics.background), (0, 0, 0));
    assert_eq!((metrics.parked_pasts, metrics.parked_bytes, metrics.cached_pasts), (0, 0, 0));
    assert_eq!((metrics.requests, metrics.prompt_tokens), (seen.asked, seen.prompt_tokens));
    // Who left in the moment of the end may have finished, or been late, for the scheduler.
    assert_eq!(metrics.requests, metrics.finished + metrics.cancelled + metrics.failed);
    assert_eq!(metrics.failed, metrics.failures.deadline, "{metrics:?}");
    assert!(metrics.finished >= seen.finished && metrics.failed >= seen.late && metrics.cancelled <= seen.left);
    assert_eq!(seen.asked, seen.finished + seen.left + seen.late);
    assert!(metrics.generated_tokens >= seen.said);
    let computed = metrics.prefilled_tokens + metrics.recomputed_tokens + metrics.decoded_tokens;
    assert_eq!(metrics.step_tokens, computed);
    assert_eq!(metrics.refused, 0);
}

fn seconds() -> u64 {
    std::env::var("CONSORT_SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(10)
}

#[test]
fn sixty_four_people_and_eight_slots() {
    soak(Duration::from_secs(seconds()));
}

#[test]
#[ignore = "takes six minutes"]
#[allow(clippy::print_stdout)]
fn sixty_four_people_and_eight_slots_for_five_minutes() {
    println!("{}", soak(Duration::from_secs(300)));
}
