//! Arrivals of every kind, in every mode of the engine.

use std::time::Duration;

use consort_core::*;
use consort_scheduler::SchedulerConfig;
use proptest::prelude::*;

use crate::engine::{Cost, Faults, Machine, mix};
use crate::world::{End, Guest, Reader, World};

const MILLI: Duration = Duration::from_millis(1);
const AGING: Duration = Duration::from_secs(2);

fn priority() -> impl Strategy<Value = Priority> {
    prop::sample::select(vec![Priority::Batch, Priority::Background, Priority::Interactive, Priority::Realtime])
}

fn reader() -> impl Strategy<Value = Reader> {
    prop_oneof![
        6 => Just(Reader::Eager),
        2 => (1..200_u32).prop_map(|ms| Reader::Every(MILLI * ms)),
        1 => Just(Reader::Last),
    ]
}

fn rarely(ms: std::ops::Range<u32>) -> impl Strategy<Value = Option<Duration>> {
    prop_oneof![5 => Just(None), 1 => ms.prop_map(|ms| Some(MILLI * ms))]
}

prop_compose! {
    fn guest()(
        gap in prop_oneof![3 => 0..5_u32, 2 => 5..400_u32],
        priority in priority(),
        scene in prop_oneof![Just((0, 0)), (1..3_u64, 20..120_usize)],
        own in prop_oneof![4 => 1..60_usize, 1 => 60..500_usize],
        max_tokens in prop_oneof![1 => Just(0_u32), 6 => 1..60_u32],
        adapter in prop_oneof![2 => Just(None), 1 => (0..3_usize).prop_map(Some)],
        reader in reader(),
        leaves in rarely(0..3000),
        first_token in rarely(0..4000),
        total in rarely(0..8000),
        bypass in prop::bool::weighted(0.1),
    ) -> Guest {
        let reuse = if bypass { PrefixReuse::Bypass } else { PrefixReuse::Shared };
        let deadlines = Deadlines { first_token, total };
        Guest { at: MILLI * gap, priority, scene, own, max_tokens, adapter, reader, leaves, deadlines, reuse }
    }
}

prop_compose! {
    fn machine()(
        slots in 1..6_usize,
        // A request of the largest size takes 70 kB.
        budget in prop_oneof![2 => Just(u64::MAX / 4), 1 => 20_000..60_000_u64, 1 => 75_000..200_000_u64],
        park in prop::bool::weighted(0.8),
        offloads in any::<bool>(),
        adapter_mode in prop::sample::select(vec![AdapterMode::MixedBatch, AdapterMode::Grouped, AdapterMode::Exclusive]),
        poison in prop_oneof![3 => Just(0_u64), 1 => 50..500_u64],
        out_of_memory in prop_oneof![3 => Just(0_u64), 1 => 20..200_u64],
        malformed_batch in prop_oneof![3 => Just(0_u64), 1 => 20..200_u64],
        seed in any::<u64>(),
        step in 1..30_u32,
    ) -> Machine {
        let faults = Faults { poison, out_of_memory, malformed_batch, seed };
        let cost = Cost { step: MILLI * step, token: Duration::from_micros(300) };
        Machine { cost, slots, budget, park, offloads, adapter_mode, faults, ..Machine::default() }
    }
}

prop_compose! {
    fn config()(
        max_queued in prop_oneof![1 => 1..5_usize, 4 => Just(64)],
        step_tokens in prop::sample::select(vec![6_usize, 40, 256]),
        max_step_time in prop_oneof![Just(None), (20..100_u32).prop_map(|ms| Some(MILLI * ms))],
        gpu_time_share in prop_oneof![4 => Just(1.0_f32), 1 => 0.2..0.9_f32],
        event_buffer in 1..12_usize,
        cache_bytes in prop_oneof![Just(0_u64), Just(1 << 30), 5_000..60_000_u64],
        parked_bytes in prop_oneof![Just(0_u64), Just(1 << 30), 5_000..60_000_u64],
        min_progress in 1..30_usize,
        aging in prop_oneof![4 => Just(Some(AGING)), 1 => Just(None)],
    ) -> SchedulerConfig {
        SchedulerConfig {
            max_queued, step_tokens, max_step_time, gpu_time_share, event_buffer, cache_bytes, parked_bytes, min_progress,
            aging, min_border_gain: 4, reserve_ahead: 8, group_steps: 4, ..SchedulerConfig::default()
        }
    }
}

/// Gaps become moments.
fn in_order(mut guests: Vec<Guest>) -> Vec<Guest> {
    let mut at = Duration::ZERO;
    for guest in &mut guests {
        at += guest.at;
        guest.at = at;
    }
    guests
}

/// Whoever reads at once and stays is not starved: three times `aging` after it came nobody who came later is admitted
/// before it, and what is then left to do is what was there when it came and what the slots hold. Each turn computes one
/// token of that at least; memory may make some of it be computed three times over, and pacing stretches everything.
fn nobody_starves(world: &World) {
    if world.config.aging.is_none() || world.machine.faults.poison + world.machine.faults.out_of_memory > 0 {
        return;
    }
    let largest = world.guests.iter().map(Guest::work).max().unwrap_or_default();
    let turn = world.longest_turn().div_f32(world.config.gpu_time_share);
    for (number, (guest, story)) in world.guests.iter().zip(&world.stories).enumerate() {
        let Some((End::Finished(_), at)) = &story.ended else { continue };
        if guest.reader == Reader::Eager {
            let work = story.ahead + largest * world.machine.slots + guest.work();
            let bound = 3 * AGING + turn * (3 * work) as u32;
            assert!(*at - story.came <= bound, "{number} waited {:?}, {bound:?} is the bound", *at - story.came);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_reply_is_as_alone_and_nothing_leaks(
        guests in prop::collection::vec(guest(), 1..32),
        machine in machine(),
        config in config(),
    ) {
        let mut world = World::new(machine, config);
        world.run(in_order(guests));
        nobody_starves(&world);
    }
}

/// Several thousand in one house, day and night.
#[test]
fn thousands_of_arrivals() {
    for (seed, adapter_mode) in [(1, AdapterMode::MixedBatch), (2, AdapterMode::Grouped), (3, AdapterMode::Exclusive)] {
        let mut throw = seed;
        let mut below = |sides: u64| {
            throw = mix(throw, 0xd1ce);
            (throw >> 20) % sides
        };
        let guests = (0..1500)
            .map(|_| {
                let ladder = [Priority::Batch, Priority::Background, Priority::Interactive, Priority::Realtime];
                let priority = ladder[below(4) as usize];
                let long = below(10) == 0;
                let own = 1 + below(if long { 400 } else { 40 }) as usize;
                let mut guest = Guest::new(MILLI * below(220) as u32, priority, own, below(40) as u32);
                guest.scene = if below(2) == 0 { (1 + below(3), 30 + 40 * below(3) as usize) } else { (0, 0) };
                guest.adapter = (below(3) == 0).then(|| below(3) as usize);
                guest.leaves = (below(8) == 0).then(|| MILLI * below(2000) as u32);
                guest.reader = match below(12) {
                    0 => Reader::Every(MILLI * (1 + below(100)) as u32),
                    1 if below(10) == 0 => Reader::Last,
                    _ => Reader::Eager,
                };
                guest.deadlines.total = (below(9) == 0).then(|| MILLI * below(6000) as u32);
                guest
            })
            .collect();
        let machine = Machine {
            budget: 250_000,
            adapter_mode,
            faults: Faults { poison: 900, out_of_memory: 700, malformed_batch: 500, seed },
            ..Machine::default()
        };
        let config = SchedulerConfig {
            aging: Some(AGING),
            cache_bytes: 120_000,
            parked_bytes: 60_000,
            event_buffer: 8,
            step_tokens: 128,
            ..SchedulerConfig::default()
        };
        let mut world = World::new(machine, config);
        world.run(in_order(guests));
        let metrics = world.backend.metrics();
        // It was a hard time: everything that can happen did.
        assert!(metrics.finished > 900 && metrics.cancelled > 0 && metrics.missed_total > 0, "{metrics:?}");
        assert!(metrics.preempted_parked + metrics.preempted_recomputed > 0 && metrics.replays > 0, "{metrics:?}");
        assert!(metrics.cache_hits > 0 && metrics.evicted_pasts > 0 && metrics.recomputed_tokens > 0, "{metrics:?}");
    }
}
