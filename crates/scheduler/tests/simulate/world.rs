//! People who ask, read, wait and leave on virtual time, and what must be true at every moment.

use std::cell::RefCell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use consort_core::*;
use consort_scheduler::{FrontEnd, Scheduled, SchedulerConfig, Simulation, Turned};
use futures_core::Stream;

use crate::engine::{self, CostEngine, Ledger, Machine, Shared, adapted, hear, mix};

/// The adapters that are loaded.
pub const ADAPTERS: [&str; 3] = ["alto", "basso", "canto"];

/// How somebody reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// Whatever there is.
    Eager,
    /// One event each time that so long has passed.
    Every(Duration),
    /// Nothing until everybody else is done, and then everything.
    Last,
}

/// Somebody who asks.
#[derive(Debug, Clone)]
pub struct Guest {
    /// When, from the beginning.
    pub at: Duration,
    pub priority: Priority,
    /// Tokens of what several have in common: which, and how many.
    pub scene: (u64, usize),
    /// Tokens of its own.
    pub own: usize,
    pub max_tokens: u32,
    pub adapter: Option<usize>,
    pub reader: Reader,
    /// It leaves this long after it came.
    pub leaves: Option<Duration>,
    pub deadlines: Deadlines,
    pub reuse: PrefixReuse,
}

impl Guest {
    pub fn new(at: Duration, priority: Priority, own: usize, max_tokens: u32) -> Self {
        Self {
            at,
            priority,
            scene: (0, 0),
            own,
            max_tokens,
            adapter: None,
            reader: Reader::Eager,
            leaves: None,
            deadlines: Deadlines::default(),
            reuse: PrefixReuse::Shared,
        }
    }

    fn adapter(&self) -> Option<&'static str> {
        self.adapter.map(|index| ADAPTERS[index % ADAPTERS.len()])
    }

    pub fn prompt(&self, number: usize) -> Vec<TokenId> {
        let words = |seed: u64, count: usize| {
            (0..count as u64).map(move |place| (1 + mix(seed, place) % (engine::VOCAB as u64 - 1)) as TokenId)
        };
        words(self.scene.0, self.scene.1).chain(words(1000 + number as u64, self.own.max(1))).collect()
    }

    /// What it is told when nobody else is there, worked out without a scheduler.
    pub fn alone(&self, number: usize) -> (Vec<TokenId>, FinishReason) {
        let adapters = adapted(self.adapter());
        let mut state = self.prompt(number).into_iter().fold(3, |state, token| hear(state, token, adapters));
        let mut ids = Vec::new();
        while (ids.len() as u32) < self.max_tokens {
            let token = engine::next(state);
            if token == engine::END {
                return (ids, FinishReason::EndToken(engine::END));
            }
            ids.push(token);
            state = hear(state, token, adapters);
        }
        (ids, FinishReason::Length)
    }

    /// Tokens that its request takes at most.
    pub fn work(&self) -> usize {
        self.scene.1 + self.own + self.max_tokens as usize
    }
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Finished(FinishReason),
    Failed(ErrorKind),
    Left,
    Refused,
}

/// What became of a guest.
#[derive(Debug, Default)]
pub struct Story {
    pub ids: Vec<TokenId>,
    /// When each token was read.
    pub heard: Vec<Duration>,
    pub came: Duration,
    pub usage: Usage,
    pub ended: Option<(End, Duration)>,
    /// Tokens of all who were there when it came.
    pub ahead: usize,
}

pub struct World {
    pub simulation: Simulation<CostEngine>,
    pub backend: Arc<Scheduled<CostEngine>>,
    pub ledger: Shared,
    pub config: SchedulerConfig,
    pub machine: Machine,
    pub guests: Vec<Guest>,
    pub stories: Vec<Story>,
    streams: Vec<Option<EventStream>>,
    due: Vec<Duration>,
    /// Readers of the last hour read now.
    late: bool,
    pub turns: u64,
}

impl World {
    pub fn new(machine: Machine, config: SchedulerConfig) -> Self {
        let ledger: Shared = Rc::new(RefCell::new(Ledger::default()));
        let inner = Rc::clone(&ledger);
        let make = |clock| Ok(CostEngine::new(machine, clock, inner));
        let simulation = Simulation::new(make, FrontEnd::default(), config.clone()).unwrap();
        let backend = simulation.backend();
        let mut world = Self {
            simulation,
            backend,
            ledger,
            config,
            machine,
            guests: vec![],
            stories: vec![],
            streams: vec![],
            due: vec![],
            late: false,
            turns: 0,
        };
        if machine.adapter_mode != AdapterMode::None {
            for name in ADAPTERS {
                let files = AdapterFiles::Bytes { config: Arc::from(&b"{}"[..]), weights: Arc::from(name.as_bytes()) };
                let backend = Arc::clone(&world.backend);
                world.answer(backend.load_adapter(name, files));
            }
        }
        world
    }

    pub fn now(&self) -> Duration {
        self.simulation.clock().elapsed()
    }

    /// Waits for an answer, turn by turn.
    pub fn answer<T>(&mut self, future: impl Future<Output = Result<T>>) -> T {
        let mut future = pin!(future);
        for _ in 0..100 {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return value.unwrap();
            }
            self.simulation.turn();
        }
        panic!("no answer");
    }

    /// Lets everybody come, and time pass until all are gone.
    pub fn run(&mut self, guests: Vec<Guest>) {
        let mut order: Vec<usize> = (0..guests.len()).collect();
        order.sort_by_key(|&index| guests[index].at);
        self.stories = guests.iter().map(|_| Story::default()).collect();
        self.streams = guests.iter().map(|_| None).collect();
        self.due = guests.iter().map(|guest| guest.at).collect();
        self.guests = guests;
        let mut coming = order.into_iter().peekable();
        loop {
            let now = self.now();
            while let Some(number) = coming.next_if(|&number| self.guests[number].at <= now) {
                self.ask(number);
            }
            for number in 0..self.guests.len() {
                self.attend(number, now);
            }
            let turned = self.simulation.turn();
            self.turns += 1;
            assert!(self.turns < 3_000_000, "it never ends");
            self.check();
            let Turned::Idle(after) = turned else { continue };
            // Whoever can read does, before time passes.
            if (0..self.guests.len()).any(|number| self.attend(number, now)) {
                continue;
            }
            let people = (0..self.guests.len()).filter_map(|number| self.wakes(number));
            let next = after.map(|after| now + after).into_iter().chain(people);
            let next = next.chain(coming.peek().map(|&number| self.guests[number].at)).min();
            match next {
                Some(next) => self.simulation.clock().advance(next.saturating_sub(now).max(Duration::from_nanos(1))),
                None if !self.late && self.streams.iter().any(Option::is_some) => self.late = true,
                None => break,
            }
        }
        assert!(self.streams.iter().all(Option::is_none), "somebody waits for ever: {:?}", self.backend.metrics());
        self.rest();
    }

    fn ask(&mut self, number: usize) {
        let guest = &self.guests[number];
        let prompt = Prompt::Parts(vec![PromptPart::Tokens(guest.prompt(number))]);
        let adapters = guest.adapter().map(|id| AdapterUse { id: id.into(), scale: 1.0 }).into_iter().collect();
        let request = GenerateRequest {
            max_tokens: Some(guest.max_tokens),
            priority: guest.priority,
            deadlines: guest.deadlines,
            prefix_reuse: guest.reuse,
            adapters,
            ..GenerateRequest::new(prompt)
        };
        let now = self.now();
        let there = (0..self.guests.len()).filter(|&other| self.streams[other].is_some());
        let ahead = there.map(|other| self.guests[other].work()).sum();
        let story = &mut self.stories[number];
        (story.came, story.ahead) = (now, ahead);
        match self.backend.generate(request) {
            Ok(stream) => self.streams[number] = Some(stream),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
                assert!(self.backend.metrics().queued >= self.config.max_queued as u64);
                story.ended = Some((End::Refused, now));
            }
        }
    }

    /// When somebody does something of its own accord.
    fn wakes(&self, number: usize) -> Option<Duration> {
        self.streams[number].as_ref()?;
        let guest = &self.guests[number];
        let leaves = guest.leaves.map(|after| self.stories[number].came + after);
        let reads = matches!(guest.reader, Reader::Every(_)).then_some(self.due[number]);
        leaves.into_iter().chain(reads).min()
    }

    /// Leaves or reads, if it is time. Whether something came of it.
    fn attend(&mut self, number: usize, now: Duration) -> bool {
        if self.streams[number].is_none() {
            return false;
        }
        let guest = &self.guests[number];
        if guest.leaves.is_some_and(|after| self.stories[number].came + after <= now) {
            self.streams[number] = None;
            self.stories[number].ended = Some((End::Left, now));
            return true;
        }
        let events = match guest.reader {
            Reader::Eager => usize::MAX,
            Reader::Every(time) if self.due[number] <= now => {
                self.due[number] = now + time;
                1
            }
            Reader::Last if self.late => usize::MAX,
            Reader::Every(_) | Reader::Last => 0,
        };
        let mut read = 0;
        while read < events && self.read(number, now) {
            read += 1;
        }
        read > 0
    }

    fn read(&mut self, number: usize, now: Duration) -> bool {
        let Some(stream) = &mut self.streams[number] else { return false };
        let event = match Pin::new(&mut *stream).poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => return false,
            Poll::Ready(event) => event.expect("a stream ends with an end or an error"),
        };
        let story = &mut self.stories[number];
        let end = match event {
            Ok(Event::Tokens { ids, .. }) => {
                story.heard.extend(ids.iter().map(|_| now));
                story.ids.extend(ids);
                None
            }
            Ok(Event::Finished { reason, usage }) => {
                story.usage = usage;
                Some(End::Finished(reason))
            }
            Ok(_) => None,
            Err(error) => Some(End::Failed(error.kind())),
        };
        if let Some(end) = end {
            let next = Pin::new(stream).poll_next(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(next, Poll::Ready(None)), "something follows the end");
            story.ended = Some((end, now));
            self.streams[number] = None;
        }
        true
    }

    /// What is true at every moment.
    fn check(&self) {
        let (metrics, ledger) = (self.backend.metrics(), self.ledger.borrow());
        adds_up(&metrics);
        let accepted = self.streams.iter().filter(|stream| stream.is_some()).count() as u64;
        assert!(metrics.queued + metrics.running <= accepted + metrics.background, "{metrics:?}");
        assert!(metrics.running as usize <= self.config.max_running.min(self.machine.slots));
        assert_eq!(ledger.sequences as u64, metrics.running, "sequences without a request, or the other way round");
        assert_eq!(ledger.parked as u64, metrics.cached_pasts + metrics.parked_pasts, "{metrics:?}");
        assert_eq!(ledger.parked_bytes, metrics.cached_bytes + metrics.parked_bytes);
        assert!(metrics.cached_bytes <= self.config.cache_bytes && metrics.parked_bytes <= self.config.parked_bytes);
        let parked = if self.machine.offloads { 0 } else { ledger.parked_bytes };
        assert!(ledger.sequence_bytes + parked <= self.machine.budget);
        if let Some(batch) = ledger.batches.last() {
            let tokens: usize = batch.steps.iter().map(|step| step.1).sum();
            assert!(tokens <= self.config.step_tokens, "{tokens} tokens in a step");
        }
    }

    /// What is true when everybody is gone.
    fn rest(&mut self) {
        let backend = Arc::clone(&self.backend);
        let memory = self.answer(backend.memory());
        let metrics = self.backend.metrics();
        adds_up(&metrics);
        assert_eq!((metrics.queued, metrics.running, metrics.parked_pasts, metrics.background), (0, 0, 0, 0));
        assert_eq!((metrics.oldest_waiting, memory.suspended_pasts), (Duration::ZERO, 0));
        assert_eq!(memory.kept_pasts, metrics.cached_bytes);
        let count = |wanted: fn(&End) -> bool| {
            self.stories.iter().filter(|story| story.ended.as_ref().is_some_and(|(end, _)| wanted(end))).count() as u64
        };
        // Who left in the moment of the end may have finished for the scheduler.
        let left = count(|end| *end == End::Left);
        assert_eq!(metrics.refused, count(|end| *end == End::Refused));
        assert_eq!(metrics.requests + metrics.refused, self.guests.len() as u64);
        assert!(metrics.cancelled <= left);
        let mut rest = left - metrics.cancelled;
        for (counted, told) in [
            (metrics.finished, count(|end| matches!(end, End::Finished(_)))),
            (metrics.failures.deadline, count(|end| *end == End::Failed(ErrorKind::DeadlineExceeded))),
            (metrics.failures.poisoned, count(|end| *end == End::Failed(ErrorKind::Poisoned))),
            (metrics.failures.memory, count(|end| *end == End::Failed(ErrorKind::OutOfMemory))),
        ] {
            assert!(counted >= told && counted - told <= rest, "{metrics:?}");
            rest -= counted - told;
        }
        assert_eq!((metrics.failures.invalid, metrics.failures.engine), (0, 0));
        for number in 0..self.guests.len() {
            self.check_story(number);
        }
        self.answer(backend.clear_cache());
        let ledger = self.ledger.borrow();
        assert_eq!((ledger.sequences, ledger.parked, ledger.sequence_bytes, ledger.parked_bytes), (0, 0, 0, 0));
        let metrics = self.backend.metrics();
        assert_eq!((metrics.cached_pasts, metrics.cached_bytes), (0, 0));
    }

    /// Whatever happened beside it, it is told what it would be told alone, in order and without a gap.
    fn check_story(&self, number: usize) {
        let (guest, story) = (&self.guests[number], &self.stories[number]);
        let (ids, reason) = guest.alone(number);
        let (end, at) = story.ended.as_ref().expect("every story ends");
        assert!(ids.starts_with(&story.ids), "{number}: {guest:?} was told {:?}, and alone {ids:?}", story.ids);
        match end {
            End::Finished(told) => assert_eq!((&story.ids, told), (&ids, &reason), "{number}"),
            End::Failed(ErrorKind::DeadlineExceeded) => {
                let first = guest.deadlines.first_token.filter(|_| story.ids.is_empty());
                let deadline = first.into_iter().chain(guest.deadlines.total).min().expect("it had one");
                // An eager reader hears of it after the step in which it passed, and never before. (Here after one more: the
                // turn that ends it makes another step before anybody can look.)
                assert!(*at >= story.came + deadline, "{number}: too early");
                if guest.reader == Reader::Eager {
                    let step = 2 * self.longest_turn();
                    assert!(*at <= story.came + deadline + step, "{number}: {:?} late", *at - story.came - deadline);
                }
            }
            End::Failed(kind) => assert!(
                (*kind == ErrorKind::Poisoned && self.machine.faults.poison > 0)
                    || (*kind == ErrorKind::OutOfMemory && self.machine.budget < u64::MAX / 4)
                    || (*kind == ErrorKind::OutOfMemory && self.machine.faults.out_of_memory > 0),
                "{number}: {kind:?}"
            ),
            End::Left | End::Refused => {}
        }
    }

    /// The longest step, with each of its sequences tried alone where the batch was refused.
    pub fn longest_turn(&self) -> Duration {
        let alone = self.machine.cost.step * self.config.max_running.min(self.machine.slots) as u32;
        self.machine.cost.step + alone + self.machine.cost.token * self.config.step_tokens as u32
    }
}

/// What the documentation of `Metrics` says.
pub fn adds_up(metrics: &Metrics) {
    let ended = metrics.finished + metrics.cancelled + metrics.failed;
    assert_eq!(metrics.requests, ended + metrics.queued + metrics.running, "{metrics:?}");
    assert_eq!((metrics.queued, metrics.failed), (metrics.queued_by.total(), metrics.failures.total()), "{metrics:?}");
    assert_eq!(metrics.failures.deadline, metrics.missed_first_token + metrics.missed_total);
    let tokens = metrics.prefilled_tokens + metrics.recomputed_tokens + metrics.decoded_tokens;
    assert_eq!(metrics.step_tokens, tokens, "{metrics:?}");
    assert!(metrics.background_tokens <= metrics.prefilled_tokens && metrics.steps == metrics.step_time.count);
    for histogram in [metrics.time_to_first_token, metrics.inter_token, metrics.queue_wait, metrics.step_time] {
        assert_eq!(histogram.buckets.iter().sum::<u64>(), histogram.count);
    }
}
