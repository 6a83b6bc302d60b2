//! From the queue to a sequence of the engine.

use std::collections::VecDeque;

use consort_core::{AdapterMode, AdapterSet, Engine, Error, Parked, Result, SeqId};

use super::adapters::AtHand;
use super::{Closing, Place, Worker, is_pressure};
use crate::front_end::{Border, BorderKind, choose_borders};
use crate::images::Audience;
use crate::metrics::add;
use crate::past::common_prefix;
use crate::sequence::{Job, Slot, Work};

/// What became of a job at the head of the queue.
enum Admission {
    /// It left the queue: it runs, or it ended.
    Left,
    /// It waits for something of its own; the next may come first.
    Waits,
    /// There is no room for it, and it has the precedence.
    Full,
}

impl<E: Engine> Worker<E> {
    /// Admits what fits. Whether something changed.
    pub(super) fn admit(&mut self) -> bool {
        let (mut changed, mut index) = (false, 0);
        self.adapters_wait = false;
        while index < self.queue.len() {
            match self.admit_one(index) {
                Admission::Left => changed = true,
                Admission::Waits => index += 1,
                Admission::Full => break,
            }
        }
        changed
    }

    fn admit_one(&mut self, mut index: usize) -> Admission {
        let Some(job) = self.queue.get(index) else { return Admission::Full };
        let (id, priority, is_keep) = (job.id, job.priority, job.is_keep());
        if !job.has_room() {
            return Admission::Waits;
        }
        match self.adapters_at_hand(index) {
            AtHand::Yes => {}
            AtHand::Waits => return Admission::Waits,
            AtHand::Left => return Admission::Left,
        }
        let Some(job) = self.queue.get(index) else { return Admission::Full };
        // One adapter set for the whole engine: the next one waits until the last sequence of the other has ended.
        let exclusive = self.shared.capability.adapter_mode == AdapterMode::Exclusive;
        if exclusive && self.running.iter().any(|other| other.adapters != job.adapters) {
            return Admission::Full;
        }
        if is_keep && job.past.key(job.past.len()).is_some_and(|key| self.cache.contains(key)) {
            let job = self.queue.remove(index);
            self.close(job, Place::Queued, Closing::Finished(None));
            return Admission::Left;
        }
        if matches!(job.work, Work::Reply(_)) && job.reads_cache() {
            self.overtake(index);
            if self.waits_for_sibling(id) {
                return Admission::Waits;
            }
        }
        if self.running.len() >= self.shared.config.max_running && (is_keep || !self.suspend_below(priority, true)) {
            return Admission::Full;
        }
        // Others may have left or entered the queue before it.
        let Some(found) = self.queue.iter().position(|job| job.id == id) else { return Admission::Left };
        index = found;
        let mut job = self.queue.remove(index);
        loop {
            match self.open(&mut job) {
                Ok(()) => {
                    self.enter(job);
                    return Admission::Left;
                }
                Err(error) if is_pressure(&error) => {
                    // Keeping a turn must not cost what is kept already.
                    if !is_keep && self.relieve(priority) {
                        continue;
                    }
                    // Its own parked past is the last thing to give up for it.
                    if self.running.is_empty() && job.parked.take().is_some() {
                        continue;
                    }
                    if self.running.is_empty() || is_keep {
                        self.close(job, Place::Queued, Closing::Failed(error));
                        return Admission::Left;
                    }
                    self.enqueue(job);
                    return Admission::Full;
                }
                Err(error) => {
                    self.close(job, Place::Queued, Closing::Failed(error));
                    return Admission::Left;
                }
            }
        }
    }

    /// The next turn has come before the last one was kept: what was to be kept is now the next turn's own prompt. If it
    /// was begun, its sequence is taken over.
    fn overtake(&mut self, index: usize) {
        let Some(job) = self.queue.get(index) else { return };
        let keys = job.past.keys();
        let overtaken = |other: &Job| {
            let length = other.past.len();
            other.is_keep() && length <= keys.len() && other.past.key(length) == keys.get(length.wrapping_sub(1))
        };
        let queued: Vec<u64> = self.queue.iter().filter(|other| overtaken(other)).map(|other| other.id).collect();
        let running = self.running.iter().position(|other| other.end.is_none() && overtaken(other));
        let cached = self.cache.longest(keys, keys.len().saturating_sub(1));
        let id = job.id;
        if let Some(running) = running {
            let mut keep = self.running.swap_remove(running);
            let taken = keep.slot.take_if(|slot| slot.done > cached);
            if let (Some(slot), Some(job)) = (taken, self.queue.get_mut(index)) {
                // Keeping is never further than the prompt's last token: it has at most as many, and the last is rendered
                // anew by the generation prompt.
                let wanted = slot.done < job.prompt_len && job.parked.is_none() && job.slot.is_none();
                if wanted && keep.adapters == job.adapters {
                    job.slot = Some(slot);
                } else {
                    // Adapters that act later in the prompt than what was kept goes.
                    let forked = wanted.then(|| self.engine.fork_with(slot.seq, &job.adapters)).and_then(Result::ok);
                    self.engine.release(slot.seq);
                    job.slot = forked.map(|seq| Slot { seq, ..slot }).or(job.slot.take());
                }
            }
            self.close(keep, Place::Running, Closing::Finished(None));
        }
        for other in queued {
            if let Some(place) = self.queue.iter().position(|job| job.id == other && job.id != id) {
                let keep = self.queue.remove(place);
                self.close(keep, Place::Queued, Closing::Finished(None));
            }
        }
    }

    /// Whether a running sequence is about to read what this job shares with it. Then it keeps its past where they part,
    /// and the job waits for that instead of reading the same once more.
    fn waits_for_sibling(&mut self, id: u64) -> bool {
        if !self.cache.is_enabled() {
            return false;
        }
        let Some(job) = self.queue.iter().find(|job| job.id == id) else { return false };
        if job.slot.is_some() || job.parked.is_some() {
            return false;
        }
        let keys = job.past.keys();
        let limit = job.prompt_len.saturating_sub(1);
        let worth = self.cache.longest(keys, limit) + self.shared.config.min_border_gain.max(1);
        let mut found = None;
        for (place, other) in self.running.iter().enumerate() {
            let Some(slot) = &other.slot else { continue };
            let shared = common_prefix(keys, other.past.keys()).min(limit);
            if other.end.is_none() && other.priority >= job.priority && shared >= worth && slot.done <= shared {
                found = Some((place, shared));
                break;
            }
        }
        let Some((place, border)) = found else { return false };
        let Some(slot) = self.running.get_mut(place).and_then(|other| other.slot.as_mut()) else { return false };
        if slot.done == border {
            // It stands there now.
            self.keep_past(place);
            return false;
        }
        if let Err(at) = slot.borders.binary_search(&border) {
            slot.borders.insert(at, border);
        }
        true
    }

    /// Gives a job a sequence: its own parked past, the longest kept one, or an empty one.
    fn open(&mut self, job: &mut Job) -> Result<()> {
        let (seq, done) = match job.slot.take() {
            Some(slot) => (slot.seq, slot.done),
            None => self.begin(job)?,
        };
        let length = job.past.len();
        let ahead = match &job.work {
            Work::Reply(reply) => {
                let left = reply.max_tokens.saturating_sub(reply.usage.completion_tokens);
                left.min(self.shared.config.reserve_ahead)
            }
            Work::Keep | Work::Embed(_) => 0,
        };
        if let Err(error) = self.engine.reserve(seq, length - done + ahead) {
            self.engine.release(seq);
            return Err(error);
        }
        let mut borders = VecDeque::new();
        if self.cache.is_enabled() && job.reads_cache() && matches!(job.work, Work::Reply(_)) {
            let parting = Border { at: self.cache.parting(job.past.keys()), kind: BorderKind::Parting };
            let config = &self.shared.config;
            let places = job.borders.iter().copied().chain([parting]);
            borders = choose_borders(places, done, job.prompt_len, config.max_borders, config.min_border_gain).into();
        }
        job.slot = Some(Slot { seq, done, borders, reserved: length + ahead });
        Ok(())
    }

    fn begin(&mut self, job: &mut Job) -> Result<(SeqId, usize)> {
        if let Some(parked) = job.parked.take() {
            match self.resume(&parked, &job.adapters) {
                Ok(seq) => return Ok((seq, parked.tokens())),
                // Recomputing needs no less memory; it waits with what it has.
                Err(error) if is_pressure(&error) => {
                    job.parked = Some(parked);
                    return Err(error);
                }
                Err(error) => tracing::warn!(%error, "a suspended past is lost"),
            }
        }
        if job.reads_cache() {
            // At least one token must be run to have logits; what is kept for later needs none.
            let limit = job.prompt_len.saturating_sub(usize::from(!job.is_keep()));
            if let Some(parked) = self.cache.find(job.past.keys(), limit) {
                match self.resume(&parked, &job.adapters) {
                    Ok(seq) => return Ok((seq, parked.tokens())),
                    Err(error) if is_pressure(&error) => return Err(error),
                    Err(error) => tracing::warn!(%error, "a kept past cannot be resumed"),
                }
            }
        }
        Ok((self.engine.open(&job.adapters)?, 0))
    }

    /// A sequence with a past that was computed with the same adapters, which others may join from here on.
    fn resume(&mut self, parked: &Parked, adapters: &AdapterSet) -> Result<SeqId> {
        match self.shared.capability.activated_adapters {
            true => self.engine.resume_with(parked, adapters),
            false => self.engine.resume(parked),
        }
    }

    /// Makes the books of a job that has a sequence now.
    fn enter(&mut self, mut job: Job) {
        let done = job.done();
        if !job.is_keep() {
            self.shared.board.update(|gauges| {
                gauges.queued = gauges.queued.saturating_sub(1);
                gauges.running += 1;
            });
        }
        if !job.admitted_before {
            job.admitted_before = true;
            if let Work::Reply(reply) = &mut job.work {
                reply.usage.reused_tokens = done;
                add(&self.shared.board.counters.reused_tokens, done as u64);
                if job.reads_cache() {
                    self.cache.remember(job.past.keys());
                }
            }
        }
        if job.audience() == Audience::Shared {
            let wanted: Vec<_> = job.wanted().collect();
            for wanted in wanted {
                if let Some(handle) = self.images.get(wanted.hash) {
                    job.images.insert(wanted.hash.0, handle);
                }
            }
        }
        tracing::trace!(id = job.id, done, length = job.past.len(), "admitted");
        self.running.push(job);
    }

    /// Keeps the past of a running job as it is now. What cannot be kept is not: nothing depends on it.
    pub(super) fn keep_past(&mut self, index: usize) {
        let Some(job) = self.running.get(index) else { return };
        let Some(slot) = &job.slot else { return };
        let Some(key) = job.past.key(slot.done).copied() else { return };
        if !self.cache.is_enabled() || !job.reads_cache() || self.cache.contains(&key) {
            return;
        }
        loop {
            match self.engine.park(slot.seq) {
                Ok(parked) if parked.tokens() == slot.done => {
                    self.cache.insert(key, parked, job.adapters.within(slot.done));
                    return;
                }
                Ok(parked) => {
                    tracing::warn!(expected = slot.done, got = parked.tokens(), "the engine parked another length");
                    return;
                }
                Err(error) if is_pressure(&error) && self.cache.evict() => {}
                Err(error) => {
                    tracing::debug!(%error, "a past was not kept");
                    return;
                }
            }
        }
    }

    /// Makes sure that replies have memory for their next token.
    pub(super) fn reserve_ahead(&mut self) {
        for index in 0..self.running.len() {
            let job = &mut self.running[index];
            let Work::Reply(reply) = &job.work else { continue };
            let left = reply.max_tokens.saturating_sub(reply.usage.completion_tokens).max(1);
            let length = job.past.len();
            let Some(slot) = &mut job.slot else { continue };
            if length <= slot.reserved || job.end.is_some() {
                continue;
            }
            let ahead = left.min(self.shared.config.reserve_ahead);
            match self.engine.reserve(slot.seq, length - slot.done + ahead) {
                Ok(()) => slot.reserved = length + ahead,
                Err(error) => job.end = Some(failure(error)),
            }
        }
    }
}

/// How a job ends with an error of the engine.
pub(super) fn failure(error: Error) -> crate::sequence::End {
    if is_pressure(&error) { crate::sequence::End::Pressed(error) } else { crate::sequence::End::Failed(error) }
}
