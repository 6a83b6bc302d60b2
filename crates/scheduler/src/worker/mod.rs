//! The engine's thread: who waits, who runs, and one turn of the loop after another.
//!
//! Each turn hears what was asked, drops what was cancelled, admits what fits, does a part of an image and one step. If
//! none of that was possible the thread sleeps until a command comes: whatever can change its mind is a command.

mod adapters;
mod admit;
mod settle;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use consort_core::{AdapterKey, AdapterMode, Engine, Error, ErrorKind, Event, FinishReason, PrefixReuse};

use crate::events::Answerer;
use crate::images::{Advanced, Images, Wanted};
use crate::keeper::{Keeper, Order};
use crate::library::Library;
use crate::metrics::add;
use crate::prefix_cache::PrefixCache;
use crate::scheduled::{Command, Shared};
use crate::sequence::{End, Job, Work};
use crate::shelf::Shelf;
use crate::step_plan::GroupTurns;

/// Whether a later release of memory or of a slot can help.
fn is_pressure(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::OutOfMemory | ErrorKind::Overloaded)
}

/// Where a job is when it ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Queued,
    Running,
}

/// How a job leaves the books.
enum Closing {
    Finished(Option<FinishReason>),
    Cancelled,
    Failed(Error),
}

/// Everything that the engine's thread owns.
pub(crate) struct Worker<E: Engine> {
    engine: E,
    shared: Arc<Shared>,
    inbox: Receiver<Command>,
    /// The highest priority first, then the oldest.
    queue: Vec<Job>,
    running: Vec<Job>,
    cache: PrefixCache,
    images: Images,
    turns: GroupTurns,
    keeper: Option<Keeper>,
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
        commands: Sender<Command>,
        library: Library,
    ) -> Self {
        let config = &shared.config;
        let cache = PrefixCache::new(config.cache_bytes, config.cache_entries, config.remembered_prompts);
        let images = Images::new(config.image_cache_bytes, config.image_cache_entries, shared.info.hidden_size);
        let keeper = cache.is_enabled().then(|| Keeper::new(Arc::clone(&shared), commands));
        Self {
            engine,
            inbox,
            queue: Vec::new(),
            running: Vec::new(),
            cache,
            images,
            turns: GroupTurns::default(),
            keeper,
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
        let mut worked = false;
        while self.hear(!worked) {
            self.drop_cancelled();
            self.retire_adapters();
            worked = self.admit();
            worked |= self.advance_images();
            worked |= self.step();
            self.sweep();
            self.publish();
        }
        tracing::debug!(engine = self.shared.name, "shutting down");
    }

    /// Takes commands; waits for one if there is nothing else to do. `false`: shut down.
    fn hear(&mut self, wait: bool) -> bool {
        if wait {
            let Ok(command) = self.inbox.recv() else { return false };
            if !self.obey(command) {
                return false;
            }
        }
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
            Command::Accept(request) | Command::Keep(request) => self.enqueue(Job::from(*request)),
            Command::Wake => {}
            Command::Memory(answer) => answer.answer(Ok(self.engine.memory())),
            Command::Adapter(delivery) => self.receive(*delivery),
            Command::Shutdown => return false,
        }
        true
    }

    fn enqueue(&mut self, job: Job) {
        let at = self.queue.partition_point(|other| other.comes_before(&job));
        self.queue.insert(at, job);
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

    /// Encodes a part of an image that a running sequence waits for.
    fn advance_images(&mut self) -> bool {
        let mut waiting: Vec<_> = self.running.iter().filter(|job| job.wanted().next().is_some()).collect();
        waiting.sort_by(|a, b| b.priority.cmp(&a.priority).then(a.id.cmp(&b.id)));
        let wanted: Vec<Wanted> = waiting.into_iter().flat_map(Job::wanted).collect();
        match self.images.advance(&mut self.engine, &wanted) {
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

    /// Writes a job off: its memory is given back, the books are made, and then its reader learns of it.
    fn close(&mut self, mut job: Job, place: Place, closing: Closing) {
        if let Some(slot) = job.slot.take() {
            self.engine.release(slot.seq);
        }
        job.parked = None;
        job.images.clear();
        let lasting = job.lasting_adapters();
        let order = match (&closing, &mut job.work) {
            (Closing::Finished(_), Work::Reply(reply)) if job.reuse == PrefixReuse::Shared => {
                let text = std::mem::take(&mut reply.text);
                let order = |conversation| Order { conversation, reply: text, adapters: lasting };
                reply.conversation.take().map(order)
            }
            _ => None,
        };
        let counters = &self.shared.board.counters;
        if !job.is_keep() {
            match &closing {
                Closing::Finished(_) => add(&counters.finished, 1),
                Closing::Cancelled => add(&counters.cancelled, 1),
                Closing::Failed(_) => add(&counters.failed, 1),
            }
        }
        // Before the gauges: whoever waits for them reads these next.
        self.publish();
        let most = self.shared.config.max_background as u64;
        let order = order.filter(|_| self.keeper.is_some());
        let keep = self.shared.board.update(|gauges| {
            let gauge = match (job.is_keep(), place) {
                (true, _) => &mut gauges.background,
                (false, Place::Queued) => &mut gauges.queued,
                (false, Place::Running) => &mut gauges.running,
            };
            *gauge = gauge.saturating_sub(1);
            let keep = order.is_some() && gauges.background < most;
            gauges.background += u64::from(keep);
            keep
        });
        let refused = |order: Order| !self.keeper.as_ref().is_some_and(|keeper| keeper.order(order));
        if order.filter(|_| keep).is_some_and(refused) {
            self.shared.board.update(|gauges| gauges.background = gauges.background.saturating_sub(1));
        }
        match (job.work, closing) {
            (Work::Reply(reply), Closing::Finished(reason)) => {
                let reason = reason.unwrap_or(FinishReason::Length);
                reply.events.send(Event::Finished { reason, usage: reply.usage });
            }
            (Work::Reply(reply), Closing::Failed(error)) => reply.events.fail(error),
            (Work::Embed(embed), Closing::Finished(_)) => embed.answer.answer(Ok(embed.sum)),
            (Work::Embed(embed), Closing::Failed(error)) => embed.answer.answer(Err(error)),
            (Work::Keep, Closing::Failed(error)) => tracing::debug!(%error, "a finished turn was not kept"),
            (_, Closing::Cancelled) | (Work::Keep, Closing::Finished(_)) => {}
        }
    }

    /// Puts a running job back into the queue. `park`: its past is kept meanwhile, where the engine can.
    fn suspend(&mut self, index: usize, park: bool) {
        let mut job = self.running.swap_remove(index);
        if let Some(slot) = job.slot.take() {
            if park && self.shared.capability.park && slot.done > 0 {
                job.parked = self.engine.park(slot.seq).ok();
            }
            self.engine.release(slot.seq);
        }
        if !job.is_keep() {
            self.shared.board.update(|gauges| {
                gauges.running = gauges.running.saturating_sub(1);
                gauges.queued += 1;
            });
        }
        self.enqueue(job);
    }

    /// Makes room of memory for somebody of this priority: pasts of suspended jobs, kept pasts and kept images are given
    /// up first, then the youngest sequence of a lower priority is suspended. `false`: there is nothing to give up.
    fn relieve(&mut self, priority: consort_core::Priority) -> bool {
        let mut freed = false;
        for job in &mut self.queue {
            freed |= job.parked.take().is_some();
        }
        freed || self.cache.evict() || self.images.evict() || self.suspend_below(priority, false)
    }

    /// Suspends the youngest of the running jobs with the lowest priority, if that is lower than `priority`; a job whose
    /// reader is behind gives way to its equals as well. Whether there was one.
    fn suspend_below(&mut self, priority: consort_core::Priority, park: bool) -> bool {
        let gives_way = |job: &Job| job.priority < priority || (job.priority == priority && !job.has_room());
        let victim = self
            .running
            .iter()
            .enumerate()
            .filter(|(_, job)| job.end.is_none() && gives_way(job))
            .min_by_key(|(_, job)| (job.priority, std::cmp::Reverse(job.id)))
            .map(|(index, _)| index);
        if let Some(index) = victim {
            self.suspend(index, park);
        }
        victim.is_some()
    }

    /// Whether adapters are applied to whole batches.
    fn is_grouped(&self) -> bool {
        matches!(self.shared.capability.adapter_mode, AdapterMode::Grouped | AdapterMode::Exclusive)
    }

    fn publish(&self) {
        let counters = &self.shared.board.counters;
        let (pasts, bytes, evicted) = self.cache.counts();
        let (adapters, adapter_bytes) = self.shelf.held();
        for (counter, value) in [
            (&counters.cached_pasts, pasts),
            (&counters.cached_bytes, bytes),
            (&counters.evicted_pasts, evicted),
            (&counters.adapters, adapters),
            (&counters.adapter_bytes, adapter_bytes),
            (&counters.adapter_page_ins, self.shelf.page_ins),
            (&counters.adapter_page_outs, self.shelf.page_outs),
            (&counters.images_encoded, self.images.encoded),
            (&counters.images_reused, self.images.reused),
        ] {
            counter.store(value, Ordering::Relaxed);
        }
    }
}

impl<E: Engine> Drop for Worker<E> {
    /// Also when the engine panics: whoever waits must learn that nobody will answer.
    fn drop(&mut self) {
        self.shared.board.update(|gauges| {
            *gauges = crate::metrics::Gauges { dead: true, ..Default::default() };
        });
    }
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
