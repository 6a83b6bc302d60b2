//! Situations that have a name.

use std::time::Duration;

use consort_core::*;
use consort_scheduler::SchedulerConfig;

use crate::engine::{Cost, Faults, Machine};
use crate::world::{End, Guest, Reader, World};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// The longest time between two tokens that somebody heard.
fn longest_gap(world: &World, number: usize) -> Duration {
    world.stories[number].heard.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
}

fn waited(world: &World, number: usize) -> Duration {
    world.stories[number].heard.first().copied().unwrap_or(Duration::MAX) - world.stories[number].came
}

/// Guests whose reply is at least so long.
fn talkative(count: usize, least: usize, mut make: impl FnMut(usize) -> Guest) -> Vec<Guest> {
    // The prompt depends on the number, and the reply on the prompt.
    let mut guests: Vec<Guest> = (0..count).map(&mut make).collect();
    for (number, guest) in guests.iter_mut().enumerate() {
        while guest.alone(number).0.len() < least {
            guest.own += 1;
        }
    }
    guests
}

#[test]
fn a_long_prompt_beside_live_voices_costs_them_no_more_than_the_budgeted_step() {
    // 10 ms and 0.5 ms a token: the whole batch of 256 tokens would take 138 ms.
    let limit = 40 * MILLI;
    let config = SchedulerConfig { max_step_time: Some(limit), step_tokens: 256, ..SchedulerConfig::default() };
    let mut world = World::new(Machine::default(), config.clone());
    let guests = talkative(4, 60, |number| match number {
        3 => Guest::new(100 * MILLI, Priority::Interactive, 2000, 60),
        _ => Guest::new(MILLI * 7 * number as u32, Priority::Realtime, 5, 60),
    });
    world.run(guests.clone());
    for voice in 0..3 {
        let gap = longest_gap(&world, voice);
        assert!(gap <= limit + MILLI, "a gap of {gap:?}");
    }
    // The time that there was is used: all but the first steps of the prompt are as long as they may be.
    let ledger = world.ledger.borrow();
    let long = ledger.batches.iter().filter(|batch| batch.took > limit - 2 * MILLI).count();
    assert!(long >= 25, "{long} of {} steps are full", ledger.batches.len());
    drop(ledger);
    // Without the limit they are as long as the token budget lets them be.
    let mut world = World::new(Machine::default(), SchedulerConfig { max_step_time: None, ..config });
    world.run(guests);
    assert!(longest_gap(&world, 0) > 3 * limit);
}

#[test]
fn a_flood_of_batch_work_never_reaches_a_voice() {
    let mut guests: Vec<Guest> =
        (0..400).map(|number| Guest::new(MILLI * 20 * number, Priority::Batch, 100, 50)).collect();
    guests.extend((0..8).map(|number| Guest::new(SECOND * number + 5 * MILLI, Priority::Realtime, 10, 30)));
    let config = SchedulerConfig { aging: Some(60 * SECOND), max_queued: 500, ..SchedulerConfig::default() };
    let mut world = World::new(Machine::default(), config);
    world.run(guests);
    for voice in 400..408 {
        // The step that runs when it comes, and the one of its own prompt's end; its past is kept in between.
        assert!(waited(&world, voice) <= 3 * world.longest_turn(), "{voice} waited {:?}", waited(&world, voice));
    }
    assert!(world.backend.metrics().preempted_parked > 0);
}

/// The bound: three times `aging`, then those before it of its rank and the next slot, then its own prompt.
#[test]
fn under_a_flood_of_voices_batch_work_waits_for_its_bound_and_no_longer() {
    let aging = 5 * SECOND;
    // Voices for five minutes, more than there are slots for: without aging nobody else ever comes in.
    let flood = |count: usize| {
        talkative(count, 0, |number| match number % 50 {
            49 => Guest::new(MILLI * 40 * number as u32, Priority::Batch, 30, 20),
            _ => Guest::new(MILLI * 40 * number as u32, Priority::Realtime, 10, 40),
        })
    };
    let machine = Machine { slots: 2, ..Machine::default() };
    let config = SchedulerConfig { aging: Some(aging), max_queued: 64, ..SchedulerConfig::default() };
    let mut world = World::new(machine, config.clone());
    world.run(flood(7500));
    // Then the next slot that is left is its own, and its prompt is read: less than two replies of forty steps.
    let bound = 3 * aging + 80 * world.longest_turn();
    let (mut served, mut worst) = (0, Duration::ZERO);
    for number in (49..7500).step_by(50) {
        if !world.stories[number].heard.is_empty() {
            served += 1;
            worst = worst.max(waited(&world, number));
        }
    }
    assert!(served > 20 && worst <= bound, "{served} served, the longest waited {worst:?} of {bound:?}");
    // Most waited for their rank: the flood was one.
    assert!(worst > 2 * aging, "{worst:?}");
    assert!(world.backend.metrics().refused > 1000);

    // Without aging the same load starves some of them for far longer.
    let mut world = World::new(machine, SchedulerConfig { aging: None, ..config });
    world.run(flood(7500));
    let starved = (49..7500).step_by(50).filter(|&number| {
        world.stories[number]
            .ended
            .as_ref()
            .is_some_and(|(end, at)| *end != End::Refused && *at - world.stories[number].came > 4 * bound)
    });
    assert!(starved.count() > 0, "it is no flood");
}

#[test]
fn a_room_of_eight_reads_its_scene_once() {
    let guests = (0..8)
        .map(|number| Guest { scene: (7, 600), ..Guest::new(MILLI * number, Priority::Interactive, 30, 20) })
        .collect();
    let mut world = World::new(Machine::default(), SchedulerConfig::default());
    world.run(guests);
    let metrics = world.backend.metrics();
    assert_eq!((metrics.prefilled_tokens, metrics.reused_tokens), (600 + 8 * 30, 7 * 600));
    assert_eq!((metrics.cache_hits, metrics.cache_misses, metrics.recomputed_tokens), (7, 1, 0));
    assert_eq!(metrics.prompt_tokens, metrics.prefilled_tokens + metrics.reused_tokens);
}

#[test]
fn of_one_priority_the_first_to_come_is_the_first_to_be_admitted() {
    let guests: Vec<Guest> = (0..40)
        .map(|number| {
            let priority = if number % 4 == 0 { Priority::Interactive } else { Priority::Batch };
            Guest { reuse: PrefixReuse::Bypass, ..Guest::new(MILLI * number as u32, priority, 20 + number % 7, 12) }
        })
        .collect();
    let machine = Machine { slots: 1, ..Machine::default() };
    let config = SchedulerConfig { aging: None, ..SchedulerConfig::default() };
    let mut world = World::new(machine, config);
    world.run(guests.clone());
    let order = |priority: Priority| {
        let mut order: Vec<_> = (0..40).filter(|&number| guests[number].priority == priority).collect();
        order.sort_by_key(|&number| world.stories[number].ended.as_ref().unwrap().1);
        order
    };
    assert!(order(Priority::Interactive).is_sorted() && order(Priority::Batch).is_sorted());
    let ended = |number: usize| world.stories[number].ended.as_ref().unwrap().1;
    assert!(ended(36) < ended(3), "the higher priority comes first");
}

#[test]
fn a_share_of_the_time_is_kept_and_cancels_are_obeyed_in_between() {
    for share in [0.1_f32, 0.5, 0.8] {
        let config = SchedulerConfig { gpu_time_share: share, ..SchedulerConfig::default() };
        let mut world = World::new(Machine::default(), config);
        let mut guests = talkative(7, 50, |number| Guest::new(MILLI * number as u32, Priority::Realtime, 30, 50));
        guests[6].leaves = Some(333 * MILLI);
        world.run(guests);
        let metrics = world.backend.metrics();
        let end = world.stories.iter().map(|story| story.ended.as_ref().unwrap().1).max().unwrap();
        let busy = metrics.busy.as_secs_f64() / end.as_secs_f64();
        assert!((busy - f64::from(share)).abs() < 0.03, "{busy} of {share}");
        let rested = (metrics.busy + metrics.paced).as_secs_f64();
        assert!((rested / end.as_secs_f64() - 1.0).abs() < 0.03, "what was neither worked nor rested: {rested}");
        // Over short windows too: any second holds that share of work, give or take a step at its ends.
        let ledger = world.ledger.borrow();
        let step = ledger.batches.iter().map(|batch| batch.took).max().unwrap();
        for from in (0..end.as_millis() as u32 / 500).map(|half| half * 500 * MILLI) {
            let within = ledger.batches.iter().filter(|batch| batch.at >= from && batch.at < from + SECOND);
            let busy: Duration = within.map(|batch| batch.took).sum();
            assert!(busy <= SECOND.mul_f32(share) + 2 * step, "{busy:?} in a second of {share}");
        }
        // The engine rests for up to nine steps' length after each; who leaves is gone at once.
        let (end, at) = world.stories[6].ended.clone().unwrap();
        assert_eq!(end, End::Left);
        assert!(at <= world.stories[6].came + 333 * MILLI + step);
        assert_eq!(metrics.cancelled, 1);
    }
}

#[test]
fn a_deadline_frees_the_slot_within_a_step_also_while_the_engine_has_nothing_to_do() {
    // The reader never reads: the sequence pauses, the engine idles, and the deadline passes all the same.
    let mut guests = talkative(3, 60, |number| Guest::new(MILLI * number as u32, Priority::Interactive, 20, 60));
    guests[0].reader = Reader::Last;
    guests[0].deadlines.total = Some(3 * SECOND);
    // This one waits for the only slot in vain.
    guests[1].deadlines.first_token = Some(5 * MILLI);
    guests[2].at = 2 * SECOND;
    guests[2].reader = Reader::Last;
    let machine = Machine { slots: 1, ..Machine::default() };
    let config = SchedulerConfig { event_buffer: 4, aging: None, ..SchedulerConfig::default() };
    let mut world = World::new(machine, config);
    world.run(guests);
    let end = |number: usize| world.stories[number].ended.clone().unwrap();
    assert_eq!(end(0).0, End::Failed(ErrorKind::DeadlineExceeded));
    assert_eq!(end(1).0, End::Failed(ErrorKind::DeadlineExceeded));
    assert!(matches!(end(2).0, End::Finished(_)));
    let metrics = world.backend.metrics();
    assert_eq!((metrics.missed_first_token, metrics.missed_total, metrics.failures.deadline), (1, 1, 2));
    // What was generated before it passed was delivered.
    assert!(!world.stories[0].ids.is_empty());
}

#[test]
fn who_never_reads_is_the_first_to_be_parked_and_holds_no_memory_under_pressure() {
    // The one who never reads has a past of 300 tokens: 32 kB of 60.
    let mut guests = talkative(9, 40, |number| Guest::new(SECOND * number as u32, Priority::Interactive, 300, 40));
    guests[0].priority = Priority::Realtime;
    guests[0].reader = Reader::Last;
    let machine = Machine { budget: 60_000, ..Machine::default() };
    let config = SchedulerConfig { event_buffer: 4, cache_bytes: 0, aging: None, ..SchedulerConfig::default() };
    let mut world = World::new(machine, config);
    world.run(guests);
    let metrics = world.backend.metrics();
    assert_eq!(metrics.finished, 9);
    // It gave way once, whatever its priority, and came back when its reader did.
    assert_eq!(metrics.preempted_parked + metrics.preempted_recomputed, 1, "{metrics:?}");
    for number in 1..9 {
        assert!(waited(&world, number) < SECOND, "{number} waited {:?}", waited(&world, number));
    }
}

#[test]
fn memory_that_is_short_costs_time_and_no_reply_and_nobody_thrashes() {
    for (park, offloads) in [(true, true), (true, false), (false, false)] {
        // Room for two and a half of twelve.
        let guests = talkative(12, 60, |number| {
            let priority = if number % 3 == 0 { Priority::Interactive } else { Priority::Batch };
            Guest::new(MILLI * 30 * number as u32, priority, 200, 60)
        });
        let machine = Machine { budget: 70_000, park, offloads, ..Machine::default() };
        let config = SchedulerConfig { aging: Some(SECOND), reserve_ahead: 8, ..SchedulerConfig::default() };
        let mut world = World::new(machine, config);
        world.run(guests);
        let metrics = world.backend.metrics();
        assert_eq!(metrics.finished, 12, "{metrics:?}");
        let turned_out = metrics.preempted_parked + metrics.preempted_recomputed;
        assert!(turned_out > 0 && turned_out <= 40, "{turned_out} of twelve requests");
        assert!(metrics.preempted_parked > 0 || !(park && offloads), "{metrics:?}");
        // At worst each was computed twice over.
        assert!(metrics.recomputed_tokens <= 2 * 12 * 260, "{metrics:?}");
    }
}

/// Found by chance: a step of few tokens, nothing parked, and two who have had to give way before. Whoever was turned out for
/// the other's next token came back for its memory before that token was computed, was the cheapest to turn out again, and so on.
#[test]
fn memory_that_was_given_up_for_a_token_is_there_when_it_is_computed() {
    let machine = Machine {
        cost: Cost { step: 3 * MILLI, token: Duration::from_micros(300) },
        slots: 5,
        budget: 31_927,
        adapter_mode: AdapterMode::Grouped,
        faults: Faults { malformed_batch: 25, seed: 13_452_903_795_387_254_715, ..Faults::default() },
        ..Machine::default()
    };
    let config = SchedulerConfig {
        step_tokens: 6,
        aging: Some(2 * SECOND),
        min_progress: 29,
        event_buffer: 7,
        cache_bytes: 1 << 30,
        parked_bytes: 0,
        min_border_gain: 4,
        reserve_ahead: 8,
        group_steps: 4,
        ..SchedulerConfig::default()
    };
    let slow = Guest {
        reader: Reader::Every(186 * MILLI),
        deadlines: Deadlines { first_token: Some(1734 * MILLI), total: None },
        ..Guest::new(232 * MILLI, Priority::Interactive, 28, 0)
    };
    let batch = Guest { scene: (1, 114), adapter: Some(0), ..Guest::new(232 * MILLI, Priority::Batch, 31, 9) };
    let background = Guest { scene: (1, 76), ..Guest::new(236 * MILLI, Priority::Background, 33, 27) };
    let voice = Guest::new(344 * MILLI, Priority::Realtime, 12, 56);
    let mut world = World::new(machine, config);
    world.run(vec![slow, batch, background, voice]);
    assert_eq!(world.backend.metrics().finished, 4);
    assert!(world.turns < 2_000, "{} turns", world.turns);
}

#[test]
fn what_does_not_fit_even_alone_is_told_the_numbers() {
    let machine = Machine { budget: 20_000, ..Machine::default() };
    let mut world = World::new(machine, SchedulerConfig::default());
    let guest = Guest::new(Duration::ZERO, Priority::Realtime, 300, 5);
    let prompt = Prompt::Parts(vec![PromptPart::Tokens(guest.prompt(0))]);
    let stream = world.backend.generate(GenerateRequest::new(prompt)).unwrap();
    for _ in 0..4 {
        world.simulation.turn();
    }
    let error = stream.blocking().find_map(Result::err).unwrap();
    assert_eq!((error.kind(), error.status()), (ErrorKind::OutOfMemory, ErrorStatus::Permanent));
    let said = error.to_string();
    for number in ["prompt_tokens: 300", "sequence_budget: 20000", "held_bytes: "] {
        assert!(said.contains(number), "{said}");
    }
}

#[test]
fn groups_switch_no_more_often_than_their_turns_last() {
    let guests = talkative(12, 50, |number| Guest {
        adapter: Some(number % 3),
        ..Guest::new(Duration::ZERO, Priority::Interactive, 20, 50)
    });
    let machine = Machine { adapter_mode: AdapterMode::Grouped, slots: 12, ..Machine::default() };
    let config = SchedulerConfig { group_steps: 10, ..SchedulerConfig::default() };
    let mut world = World::new(machine, config);
    world.run(guests);
    let ledger = world.ledger.borrow();
    let groups: Vec<u64> = ledger.batches.iter().map(|batch| batch.steps[0].2).collect();
    let switches = groups.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!((6..=groups.len() / 10 + 3).contains(&switches), "{switches} switches in {} steps", groups.len());
    drop(ledger);
    // Each group comes in turn: nobody waits for longer than the turns of the two others.
    let turn = 10 * (world.machine.cost.step + world.machine.cost.token * 80);
    assert!((0..12).all(|number| longest_gap(&world, number) <= 2 * turn));
}

#[test]
fn an_exclusive_engine_gives_a_voice_its_adapter_at_once() {
    let mut guests = talkative(5, 200, |_| Guest::new(Duration::ZERO, Priority::Batch, 20, 300));
    let voice = Guest { adapter: Some(1), ..Guest::new(SECOND, Priority::Realtime, 20, 5) };
    guests.push(voice);
    let machine = Machine { adapter_mode: AdapterMode::Exclusive, ..Machine::default() };
    let mut world = World::new(machine, SchedulerConfig::default());
    world.run(guests);
    assert!(waited(&world, 5) <= 3 * world.longest_turn(), "it waited {:?}", waited(&world, 5));
    assert_eq!(world.backend.metrics().preempted_parked, 5);
}

#[test]
fn a_slow_device_is_noticed() {
    // Ten times slower than the last, and the same limit: the prompt's part shrinks until the voice has what it was promised.
    let cost = Cost { step: 20 * MILLI, token: 5 * MILLI };
    let limit = 100 * MILLI;
    let config = SchedulerConfig { max_step_time: Some(limit), ..SchedulerConfig::default() };
    let mut world = World::new(Machine { cost, ..Machine::default() }, config);
    let guests = talkative(2, 80, |number| match number {
        0 => Guest::new(Duration::ZERO, Priority::Realtime, 5, 90),
        _ => Guest::new(200 * MILLI, Priority::Interactive, 400, 90),
    });
    world.run(guests);
    let heard = &world.stories[0].heard;
    let over = heard.windows(2).filter(|pair| pair[1] - pair[0] > limit + MILLI).count();
    // The first chunk is of a size that nobody has measured.
    assert!(over <= 1, "{over} gaps beyond the limit: {:?}", longest_gap(&world, 0));
}
