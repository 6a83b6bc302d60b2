//! Random arrivals, cancellations and slow readers: every stream ends as it should, and nothing leaks.

use consort_core::*;
use consort_scheduler::SchedulerConfig;
use proptest::prelude::*;

use crate::engine::{Fault, Setup};
use crate::support::*;

#[derive(Debug, Clone)]
struct Guest {
    scene: u64,
    length: usize,
    own: usize,
    colour: Option<u8>,
    adapter: Option<u8>,
    reply: u32,
    /// Events after which the reader goes away.
    leaves: Option<usize>,
    priority: u8,
    bypass: bool,
}

fn guest() -> impl Strategy<Value = Guest> {
    let place = (0u64..3, 0usize..90, 1usize..20, proptest::option::of(0u8..3), proptest::option::of(0u8..2));
    let manner = (0u32..12, proptest::option::weighted(0.2, 0usize..6), 0u8..4, proptest::bool::weighted(0.1));
    (place, manner).prop_map(|((scene, length, own, colour, adapter), (reply, leaves, priority, bypass))| Guest {
        scene,
        length,
        own,
        colour,
        adapter,
        reply,
        leaves,
        priority,
        bypass,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_stream_ends_and_nothing_leaks(
        guests in proptest::collection::vec(guest(), 1..14),
        slots in 1usize..5,
        step_tokens in prop_oneof![Just(5usize), Just(17), Just(64)],
        budget in prop_oneof![Just(300usize), Just(600), Just(usize::MAX / 4)],
        mode in prop_oneof![Just(AdapterMode::MixedBatch), Just(AdapterMode::Grouped), Just(AdapterMode::Exclusive)],
        event_buffer in 1usize..8,
        poison in proptest::option::of(1usize..10),
    ) {
        let capability = Capability { max_sequences: slots, adapter_mode: mode, ..Setup::default().capability };
        let setup = Setup { capability, budget, ..Setup::default() };
        let config = SchedulerConfig {
            step_tokens,
            event_buffer,
            min_border_gain: 4,
            reserve_ahead: 3,
            cache_entries: 6,
            ..SchedulerConfig::default()
        };
        let rig = Rig::new(setup, config);
        let weights: [&[u8]; 2] = [b"weights a", b"weights b"];
        rig.load("0", weights[0]);
        rig.load("1", weights[1]);
        rig.control.faults.lock().unwrap().extend(poison.map(Fault::Poison));
        std::thread::scope(|scope| {
            for guest in &guests {
                let mut prompt = vec![PromptPart::Tokens(tokens(guest.scene, guest.length))];
                prompt.extend(guest.colour.map(|colour| PromptPart::Image(image(colour))));
                prompt.push(PromptPart::Tokens(tokens(guest.own as u64 + 100, guest.own)));
                let prompt = Prompt::Parts(prompt);
                let mut request = request(prompt.clone(), guest.reply);
                let mut adapters = Vec::new();
                if let Some(adapter) = guest.adapter {
                    request = with_adapter(request, &adapter.to_string(), 1.0);
                    adapters.push((weights[adapter as usize], 1.0));
                }
                let priorities = [Priority::Batch, Priority::Background, Priority::Interactive, Priority::Realtime];
                request.priority = priorities[guest.priority as usize];
                request.prefix_reuse = if guest.bypass { PrefixReuse::Bypass } else { PrefixReuse::Shared };
                let stream = rig.backend.generate(request).unwrap();
                scope.spawn(move || match guest.leaves {
                    Some(events) => drop(stream.blocking().take(events).count()),
                    None => {
                        let reply = collect(stream).unwrap();
                        assert_eq!(reply.ids, expected(&prompt, &adapters, guest.reply as usize));
                    }
                });
            }
        });
        rig.no_leak();
        let metrics = rig.backend.metrics();
        prop_assert_eq!(metrics.finished + metrics.cancelled, guests.len() as u64);
        prop_assert_eq!(metrics.failed, 0);
        prop_assert_eq!(block_on(rig.backend.memory()).unwrap().kv_cache > 0, metrics.cached_pasts > 0);
        let control = rig.control.clone();
        drop(rig);
        prop_assert_eq!(control.counts(), (0, 0));
        prop_assert_eq!(control.images.load(std::sync::atomic::Ordering::SeqCst), 0);
    }
}
