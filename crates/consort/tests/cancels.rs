//! A thousand requests, of which 999 are given up: the last is served like the first, and nothing is left behind.
//!
//! How fast it is served is printed and not judged: the machine is shared. Memory is judged.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use consort::core::{
    ChatMessage, ChatPrompt, Device, DevicePolicy, Event, GenerateRequest, ModelBackend, Prompt, Role, Thinking,
};
use consort::{LoadConfig, ModelFiles, backends};

/// What a process may grow by: what allocators keep, and the prefix cache's first pasts.
const GROWTH: u64 = 24 << 20;

fn request(index: u32) -> GenerateRequest {
    let prompt = ChatPrompt {
        messages: vec![ChatMessage::text(Role::User, format!("Tell me story {index} about a fox and a bird."))],
        thinking: Thinking::Off,
        ..ChatPrompt::default()
    };
    GenerateRequest { max_tokens: Some(24), ..GenerateRequest::new(Prompt::Chat(prompt)) }
}

/// The time to the end of a whole reply.
fn served(backend: &dyn ModelBackend, index: u32) -> Duration {
    let begin = Instant::now();
    let mut finished = false;
    for event in backend.generate(request(index)).unwrap().blocking() {
        finished |= matches!(event.unwrap(), Event::Finished { .. });
    }
    assert!(finished);
    begin.elapsed()
}

fn median(backend: &dyn ModelBackend, from: u32) -> Duration {
    let mut times: Vec<_> = (from..from + 9).map(|index| served(backend, index)).collect();
    times.sort_unstable();
    times[times.len() / 2]
}

/// Resident bytes of this process, where the system tells.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

fn thousand(backend: &Arc<dyn ModelBackend>) {
    let name = backend.name();
    let before = median(&**backend, 0);
    // The cache fills first, so that what grows after it is a leak.
    for index in 0..100 {
        served(&**backend, 10 + index);
    }
    let start = resident();
    for index in 0..999u32 {
        let mut events = backend.generate(request(1000 + index)).unwrap().blocking();
        // At once, after the first event, or in the middle.
        for _ in 0..[0, 1, 4][index as usize % 3] {
            events.next().unwrap().unwrap();
        }
    }
    let after = median(&**backend, 5000);
    // Finished turns are still kept in the background.
    let deadline = Instant::now() + Duration::from_secs(20);
    while backend.metrics().running + backend.metrics().queued > 0 {
        assert!(Instant::now() < deadline, "{name}: {:?}", backend.metrics());
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("{name}: a reply took {before:?} before 999 cancelled requests and {after:?} after them");
    if let (Some(start), Some(end)) = (start, resident()) {
        println!("{name}: resident {} KiB before and {} KiB after", start >> 10, end >> 10);
        assert!(end < start + GROWTH, "{name}: {start} bytes became {end}");
    }
}

#[test]
fn the_thousandth_request_after_999_cancelled_ones_is_served_like_the_first() {
    for backend in backends() {
        let loaded = consort::load(LoadConfig {
            backend: Some(backend),
            policy: DevicePolicy::Named(Device::Cpu),
            ..LoadConfig::new(ModelFiles::Bundled)
        })
        .unwrap();
        thousand(&loaded);
    }
}
