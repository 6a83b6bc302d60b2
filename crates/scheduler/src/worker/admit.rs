//! From the queue to a sequence of the engine.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Instant;

use consort_core::{AdapterMode, AdapterSet, Engine, Error, Parked, Priority, Result, SeqId};

use super::adapters::AtHand;
use super::close::Meanwhile;
use super::give_way::Lack;
use super::{Closing, Place, Worker, is_pressure};
use crate::front_end::{Border, BorderKind, choose_borders};
use crate::images::Audience;
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
    /// Admits what fits, the highest rank first and of these the oldest. Whether something changed.
    ///
    /// Nobody overtakes one of its own rank, or of a higher one, that waits for room. Who waits for its own reader, or for a
    /// sibling that is about to read what it shares, holds nobody up.
    pub(super) fn admit(&mut self) -> bool {
        let now = self.shared.clock.now();
        let aging = self.aging;
        let mut changed = false;
        'pass: loop {
            self.adapters_wait = false;
            // Whoever left may have put others into the queue.
            self.queue.sort_by_key(|job| (Reverse(job.standing.rank(now, aging)), job.id));
            for index in 0..self.queue.len() {
                match self.admit_one(index, now) {
                    Admission::Left => {
                        changed = true;
                        continue 'pass;
                    }
                    Admission::Waits => {}
                    Admission::Full => return changed,
                }
            }
            return changed;
        }
    }

    fn admit_one(&mut self, mut index: usize, now: Instant) -> Admission {
        let Some(job) = self.queue.get(index) else { return Admission::Full };
        let (id, priority, is_keep) = (job.id, job.priority, job.is_keep());
        let rank = self.rank(job, now);
        if !job.has_room() {
            return Admission::Waits;
        }
        if self.memory_is_owed(rank, now) {
            return Admission::Full;
        }
        match self.adapters_at_hand(index) {
            AtHand::Yes => {}
            AtHand::Waits => return Admission::Waits,
            AtHand::Left => return Admission::Left,
        }
        let Some(job) = self.queue.get(index) else { return Admission::Full };
        // One adapter set for the whole engine: the next one waits until the last sequence of the other has ended, or
        // all of them give way.
        if self.shared.capability.adapter_mode == AdapterMode::Exclusive {
            let adapters = job.adapters.clone();
            if (is_keep && self.others_run(&adapters)) || !self.clear_of_others(&adapters, priority, now) {
                return Admission::Full;
            }
            // Those who gave way are behind it now, or before it if their reader is behind.
            let Some(found) = self.queue.iter().position(|job| job.id == id) else { return Admission::Left };
            index = found;
        }
        let Some(job) = self.queue.get(index) else { return Admission::Full };
        if is_keep && job.past.key(job.past.len()).is_some_and(|key| self.cache.contains(key)) {
            let job = self.queue.remove(index);
            self.close(job, Place::Queued, Closing::Finished(None));
            return Admission::Left;
        }
        if matches!(job.work, Work::Reply(_)) && job.reads_cache() {
            self.overtake(index);
            if self.waits_for_sibling(id, rank, now) {
                return Admission::Waits;
            }
        }
        if self.running.len() >= self.shared.config.max_running && (is_keep || !self.turn_out(priority, Lack::Slot)) {
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
                        self.books(|books| books.metrics.parked_given_up += 1);
                        continue;
                    }
                    if self.running.is_empty() || is_keep {
                        let error = self.unfit(&job, error);
                        self.close(job, Place::Queued, Closing::Failed(error));
                        return Admission::Left;
                    }
                    self.queue.push(job);
                    return Admission::Full;
                }
                Err(error) => {
                    self.close(job, Place::Queued, Closing::Failed(error));
                    return Admission::Left;
                }
            }
        }
    }

    /// Whether sequences with other adapters run.
    fn others_run(&self, adapters: &AdapterSet) -> bool {
        self.running.iter().any(|other| other.adapters != *adapters)
    }

    /// Turns out everybody who runs with other adapters, if all of them give way to this priority. Whether nobody is left.
    fn clear_of_others(&mut self, adapters: &AdapterSet, priority: Priority, now: Instant) -> bool {
        if self.running.iter().any(|job| job.adapters != *adapters && !self.gives_way(job, priority, now)) {
            return false;
        }
        while let Some(index) = self.running.iter().position(|job| job.adapters != *adapters) {
            self.suspend(index, Meanwhile::Park);
        }
        true
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
    fn waits_for_sibling(&mut self, id: u64, rank: Priority, now: Instant) -> bool {
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
            // One whose reader is behind may never get there.
            let gets_there = other.end.is_none() && other.has_room() && slot.done <= shared;
            if gets_there && shared >= worth && self.rank(other, now) >= rank {
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
        let mut ahead = ahead;
        let mut reserved = self.engine.reserve(seq, length - done + ahead);
        if ahead > 0 && self.running.is_empty() && reserved.as_ref().is_err_and(is_pressure) {
            // Alone, it can go as far as it can go.
            ahead = 0;
            reserved = self.engine.reserve(seq, length - done);
        }
        if let Err(error) = reserved {
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
        let (done, now) = (job.done(), self.shared.clock.now());
        let first = !std::mem::replace(&mut job.admitted_before, true);
        let reads = job.reads_cache() && self.cache.is_enabled();
        let (is_reply, is_keep, priority) = (matches!(job.work, Work::Reply(_)), job.is_keep(), job.priority);
        // What it had before and computes again is no gift.
        let reused = if is_reply { done.saturating_sub(job.furthest) } else { 0 };
        job.furthest = job.furthest.max(done);
        job.standing.served(now, self.aging, job.furthest, job.prompt_len);
        let waited = now.saturating_duration_since(job.queued_since);
        self.books(|books| {
            if !is_keep {
                books.leave_queue(priority);
                books.metrics.running += 1;
                books.metrics.queue_wait.record(waited);
            }
            books.metrics.reused_tokens += reused as u64;
            if first && is_reply {
                let metrics = &mut books.metrics;
                metrics.cache_hits += u64::from(reads && done > 0);
                metrics.cache_misses += u64::from(reads && done == 0);
            }
        });
        if let Work::Reply(reply) = &mut job.work {
            reply.usage.reused_tokens += reused;
            if first && reads {
                self.cache.remember(job.past.keys());
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
            // Where there is no room for what may come, what is sure to come is enough for now.
            let reserved = [ahead, 0].into_iter().find_map(|ahead| {
                let reserved = self.engine.reserve(slot.seq, length - slot.done + ahead);
                (ahead == 0 || !reserved.as_ref().is_err_and(is_pressure)).then(|| reserved.map(|()| length + ahead))
            });
            match reserved {
                Some(Ok(reserved)) => slot.reserved = reserved,
                Some(Err(error)) => job.end = Some(failure(error)),
                None => {}
            }
        }
    }
}

/// How a job ends with an error of the engine.
pub(super) fn failure(error: Error) -> crate::sequence::End {
    if is_pressure(&error) { crate::sequence::End::Pressed(error) } else { crate::sequence::End::Failed(error) }
}
