//! Random arrivals, cancellations and slow readers: every stream ends as it should, and nothing leaks.

use consort_core::*;
use consort_scheduler::SchedulerConfig;

use crate::engine::{Fault, Setup, mix};
use crate::support::*;

/// Seeded throws, so that a failure names the round that repeats it.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 = mix(self.0, 0xd1ce);
        (self.0 >> 20) as usize % sides
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Something in one of `sides` cases.
    fn rarely(&mut self, sides: usize, below: usize) -> Option<usize> {
        (self.below(sides) == 0).then(|| self.below(below))
    }
}

struct Guest {
    prompt: Prompt,
    request: GenerateRequest,
    weights: Vec<(&'static [u8], f32)>,
    /// Events after which the reader goes away.
    leaves: Option<usize>,
}

const WEIGHTS: [&[u8]; 2] = [b"weights a", b"weights b"];

fn guest(dice: &mut Dice) -> Guest {
    let mut prompt = vec![PromptPart::Tokens(tokens(dice.below(3) as u64, dice.below(90)))];
    if dice.below(2) == 0 {
        prompt.push(PromptPart::Image(image(dice.below(3) as u8)));
    }
    let own = 1 + dice.below(20);
    prompt.push(PromptPart::Tokens(tokens(own as u64 + 100, own)));
    let prompt = Prompt::Parts(prompt);
    let mut request = request(prompt.clone(), dice.below(12) as u32);
    let mut weights = Vec::new();
    if let Some(adapter) = dice.rarely(2, 2) {
        request = with_adapter(request, &adapter.to_string(), 1.0);
        weights.push((WEIGHTS[adapter], 1.0));
    }
    request.priority = dice.pick(&[Priority::Batch, Priority::Background, Priority::Interactive, Priority::Realtime]);
    request.prefix_reuse = if dice.below(10) == 0 { PrefixReuse::Bypass } else { PrefixReuse::Shared };
    Guest { prompt, request, weights, leaves: dice.rarely(5, 6) }
}

fn round(seed: u64) {
    let mut dice = Dice(seed);
    let capability = Capability {
        max_sequences: 1 + dice.below(4),
        adapter_mode: dice.pick(&[AdapterMode::MixedBatch, AdapterMode::Grouped, AdapterMode::Exclusive]),
        ..Setup::default().capability
    };
    let setup = Setup { capability, budget: dice.pick(&[300, 600, usize::MAX / 4]), ..Setup::default() };
    let config = SchedulerConfig {
        step_tokens: dice.pick(&[5, 17, 64]),
        event_buffer: 1 + dice.below(7),
        min_border_gain: 4,
        reserve_ahead: 3,
        cache_entries: 6,
        ..SchedulerConfig::default()
    };
    let rig = Rig::new(setup, config);
    rig.load("0", WEIGHTS[0]);
    rig.load("1", WEIGHTS[1]);
    let poison = dice.rarely(2, 9).map(|tokens| Fault::Poison(tokens + 1));
    rig.control.faults.lock().unwrap().extend(poison);
    let guests: Vec<_> = (0..1 + dice.below(13)).map(|_| guest(&mut dice)).collect();
    std::thread::scope(|scope| {
        for guest in &guests {
            let stream = rig.backend.generate(guest.request.clone()).unwrap();
            scope.spawn(move || match guest.leaves {
                Some(events) => drop(stream.blocking().take(events).count()),
                None => {
                    let reply = collect(stream).unwrap();
                    let count = guest.request.max_tokens.unwrap() as usize;
                    assert_eq!(reply.ids, expected(&guest.prompt, &guest.weights, count), "round {seed}");
                }
            });
        }
    });
    rig.no_leak();
    let metrics = rig.backend.metrics();
    assert_eq!(metrics.finished + metrics.cancelled, guests.len() as u64, "round {seed}");
    assert_eq!(metrics.failed, 0, "round {seed}");
    assert_eq!(block_on(rig.backend.memory()).unwrap().kv_cache > 0, metrics.cached_pasts > 0, "round {seed}");
    let control = rig.control.clone();
    drop(rig);
    assert_eq!(control.counts(), (0, 0), "round {seed}");
    assert_eq!(control.images.load(std::sync::atomic::Ordering::SeqCst), 0, "round {seed}");
}

#[test]
fn every_stream_ends_and_nothing_leaks() {
    (0..400).for_each(round);
}
