//! The engine's thread: who waits, who runs, and one turn of the loop after another.
//!
//! Each turn hears what was asked, drops what was cancelled or is too late, admits what fits, does a part of an image and
//! one step. If none of that was possible the thread sleeps until a command comes or a moment that it knows of: a deadline,
//! the end of a rest, a rank that rises.

mod adapters;
mod admit;
mod close;
mod deadlines;
mod give_way;
mod settle;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use consort_core::{AdapterKey, AdapterMode, Engine, Error, ErrorKind, MemoryReport, Priority};

use self::close::{Closing, Place};
use crate::aging::Aging;
use crate::events::Answerer;
use crate::images::{Advanced, Images, Wanted};
use crate::keeper::Keeper;
use crate::library::Library;
use crate::metrics::{Books, Ended};
use crate::pace::{Pacer, StepTimes};
use crate::prefix_cache::{Limits, PrefixCache};
use crate::scheduled::{Command, Shared};
use crate::sequence::{End, Job};
use crate::shelf::Shelf;
use crate::step_plan::GroupTurns;
use crate::value::Appraiser;

/// Whether a later release of memory or of a slot can help.
fn is_pressure(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::OutOfMemory | ErrorKind::Overloaded)
}

/// What a turn of the loop did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Something; the next may do more.
    Worked,
    /// Nothing. Nothing will change before a command comes, or this moment.
    Idle(Option<Instant>),
    /// It was told to shut down.
    Ended,
}

/// Everything that the engine's thread owns.
pub(crate) struct Worker<E: Engine> {
    engine: E,
    shared: Arc<Shared>,
    inbox: Receiver<Command>,
    /// Put in order before anybody is admitted.
    queue: Vec<Job>,
    running: Vec<Job>,
    cache: PrefixCache,
    images: Images,
    turns: GroupTurns,
    keeper: Option<Keeper>,
    aging: Aging,
    appraiser: Appraiser,
    step_times: StepTimes,
    pacer: Pacer,
    /// Time that the engine worked in this turn.
    busy: Duration,
    /// The last adapter generation that was given out.
    generation: u64,
    /// Adapters that no new request can name, to be unloaded when the last old one has ended.
    retiring: Vec<AdapterKey>,
    shelf: Shelf,
    library: Library,
    /// Who waits until an adapter is pinned.
    pinning: Vec<(AdapterKey, Answerer<()>)>,
    /// Somebody in the queue waits for adapters to give room to its own.
    adapters_wait: bool,
}

impl<E: Engine> Worker<E> {
    pub(crate) fn new(
        engine: E,
        shared: Arc<Shared>,
        inbox: Receiver<Command>,
        keeper: Option<Keeper>,
        library: Library,
    ) -> Self {
        let config = &shared.config;
        let limits = Limits {
            bytes: config.cache_bytes,
            entries: config.cache_entries,
            remembered: config.remembered_prompts,
            half_life: config.cache_half_life,
        };
        Self {
            engine,
            inbox,
            queue: Vec::new(),
            running: Vec::new(),
            cache: PrefixCache::new(limits, shared.clock.clone()),
            images: Images::new(config.image_cache_bytes, config.image_cache_entries, shared.info.hidden_size),
            turns: GroupTurns::default(),
            keeper,
            aging: Aging { after: config.aging, progress: config.min_progress },
            appraiser: Appraiser::new(shared.clock.now(), config.cache_half_life),
            step_times: StepTimes::default(),
            pacer: Pacer::new(config.gpu_time_share),
            busy: Duration::ZERO,
            generation: 0,
            retiring: Vec::new(),
            shelf: Shelf::new(config.adapter_bytes),
            library,
            pinning: Vec::new(),
            adapters_wait: false,
            shared,
        }
    }

    /// Serves until it is told to shut down.
    pub(crate) fn run(mut self) {
        loop {
            match self.turn() {
                Turn::Worked => {}
                Turn::Idle(until) => {
                    if !self.wait(until) {
                        break;
                    }
                }
                Turn::Ended => break,
            }
        }
        tracing::debug!(engine = self.shared.name, "shutting down");
    }

    /// One turn of the loop. It never waits, but for the engine.
    pub(crate) fn turn(&mut self) -> Turn {
        if !self.hear() {
            return Turn::Ended;
        }
        let now = self.shared.clock.now();
        self.drop_cancelled();
        self.expire(now);
        self.excuse(now);
        self.retire_adapters();
        if let Some(until) = self.pacer.resting(now) {
            self.publish();
            return Turn::Idle(earliest(Some(until), self.next_deadline()));
        }
        if let Some(rest) = self.pacer.rested(now)
            && !(self.queue.is_empty() && self.running.is_empty())
        {
            self.books(|books| books.metrics.paced += rest);
        }
        let mut worked = self.admit();
        worked |= self.advance_images();
        worked |= self.step();
        self.sweep();
        self.publish();
        let busy = std::mem::take(&mut self.busy);
        if !busy.is_zero() {
            self.pacer.worked(self.shared.clock.now(), busy);
        }
        if worked { Turn::Worked } else { Turn::Idle(earliest(self.next_deadline(), self.next_rise(now))) }
    }

    /// Waits for a command and obeys it, but not beyond `until`. `false`: shut down.
    fn wait(&mut self, until: Option<Instant>) -> bool {
        let Some(until) = until else {
            return self.inbox.recv().is_ok_and(|command| self.obey(command));
        };
        match self.inbox.recv_timeout(until.saturating_duration_since(self.shared.clock.now())) {
            Ok(command) => self.obey(command),
            Err(RecvTimeoutError::Timeout) => true,
            Err(RecvTimeoutError::Disconnected) => false,
        }
    }

    /// Obeys the commands that have come. `false`: shut down.
    fn hear(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(command) => {
                    if !self.obey(command) {
                        return false;
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Accept(request) | Command::Keep(request) => self.queue.push(Job::from(*request)),
            Command::Wake => {}
            Command::Memory(answer) => answer.answer(Ok(self.memory())),
            Command::ClearCache(answer) => {
                self.cache.clear();
                while self.images.evict() {}
                self.publish();
                answer.answer(Ok(()));
            }
            Command::Adapter(delivery) => self.receive(*delivery),
            Command::Shutdown => return false,
        }
        true
    }

    /// What the engine says, and whose some of it is.
    fn memory(&self) -> MemoryReport {
        MemoryReport { kept_pasts: self.cache.counts().1, suspended_pasts: self.parked().1, ..self.engine.memory() }
    }

    fn drop_cancelled(&mut self) {
        for index in (0..self.queue.len()).rev() {
            if self.queue[index].is_cancelled() {
                let job = self.queue.remove(index);
                self.close(job, Place::Queued, Closing::Cancelled);
            }
        }
        for index in (0..self.running.len()).rev() {
            if self.running[index].is_cancelled() {
                let job = self.running.swap_remove(index);
                self.close(job, Place::Running, Closing::Cancelled);
            }
        }
    }

    /// Who waits for its own reader does not age meanwhile, and its next token is not late.
    fn excuse(&mut self, now: Instant) {
        for job in self.queue.iter_mut().chain(&mut self.running) {
            if !job.has_room() {
                job.standing.excused(now);
                job.forget_last_token();
            }
        }
    }

    fn rank(&self, job: &Job, now: Instant) -> Priority {
        job.standing.rank(now, self.aging)
    }

    /// When somebody who waits rises in rank, which may make others give way.
    fn next_rise(&self, now: Instant) -> Option<Instant> {
        let waits = self.queue.iter().filter(|job| job.has_room());
        waits.filter_map(|job| job.standing.next_change(now, self.aging)).min()
    }

    /// Encodes a part of an image that a running sequence waits for.
    fn advance_images(&mut self) -> bool {
        let now = self.shared.clock.now();
        let mut waiting: Vec<_> = self.running.iter().filter(|job| job.wanted().next().is_some()).collect();
        waiting.sort_by_key(|job| (std::cmp::Reverse(self.rank(job, now)), job.id));
        let wanted: Vec<Wanted> = waiting.into_iter().flat_map(Job::wanted).collect();
        let advanced = self.images.advance(&mut self.engine, &wanted);
        if !matches!(advanced, Advanced::Idle) {
            self.worked(now);
        }
        match advanced {
            Advanced::Idle => return false,
            Advanced::Worked => {}
            Advanced::Ready(key, handle) => {
                let takers = self.running.iter_mut().map(|job| u64::from(job.take_image(key, &handle))).sum::<u64>();
                self.images.reused += takers.saturating_sub(1);
            }
            Advanced::Failed(key, error) => {
                for job in &mut self.running {
                    if job.wanted().any(|wanted| wanted.key() == key) {
                        job.end = Some(End::Failed(repeated(&error)));
                    }
                }
                self.sweep();
            }
        }
        true
    }

    /// The engine worked since `begun`; for how long.
    fn worked(&mut self, begun: Instant) -> Duration {
        let took = self.shared.clock.now().saturating_duration_since(begun);
        self.busy += took;
        self.books(|books| books.metrics.busy += took);
        took
    }

    /// Whether adapters are applied to whole batches.
    fn is_grouped(&self) -> bool {
        matches!(self.shared.capability.adapter_mode, AdapterMode::Grouped | AdapterMode::Exclusive)
    }

    fn books<T>(&self, change: impl FnOnce(&mut Books) -> T) -> T {
        self.shared.board.update(|books| {
            books.unsettled = true;
            change(books)
        })
    }

    /// Brings the gauges up to date.
    fn publish(&self) {
        let (pasts, bytes, evicted) = self.cache.counts();
        let (parked, parked_bytes) = self.parked();
        let (adapters, adapter_bytes) = self.shelf.held();
        let oldest = self.queue.iter().filter(|job| !job.is_keep()).map(|job| job.queued_since).min();
        self.shared.board.update(|books| {
            books.oldest = oldest;
            // What an unloaded adapter leaves behind goes in the next turn.
            books.unsettled = !self.retiring.is_empty();
            let metrics = &mut books.metrics;
            (metrics.cached_pasts, metrics.cached_bytes, metrics.evicted_pasts) = (pasts, bytes, evicted);
            (metrics.parked_pasts, metrics.parked_bytes) = (parked, parked_bytes);
            (metrics.adapters, metrics.adapter_bytes) = (adapters, adapter_bytes);
            (metrics.adapter_page_ins, metrics.adapter_page_outs) = (self.shelf.page_ins, self.shelf.page_outs);
            (metrics.images_encoded, metrics.images_reused) = (self.images.encoded, self.images.reused);
            metrics.image_cache_bytes = self.images.bytes();
        });
    }
}

impl<E: Engine> Drop for Worker<E> {
    /// Also when the engine panics: whoever waits must learn that nobody will answer.
    fn drop(&mut self) {
        self.shared.board.end(if std::thread::panicking() { Ended::Panicked } else { Ended::ShutDown });
    }
}

/// The earlier of two moments.
fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

/// The same error for another reader.
fn repeated(error: &Error) -> Error {
    let mut copy = Error::new(error.kind(), error.message())
        .with_status(error.status())
        .with_operation(error.operation())
        .with_backend(error.backend());
    for (key, value) in error.context() {
        copy = copy.with_context(key, value);
    }
    copy
}
