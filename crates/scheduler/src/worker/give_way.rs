//! Who gives way when slots or memory are short. Nobody is killed: what gives way is parked or computed anew.
//!
//! Memory is made room of in this order, one thing at a time, until it suffices:
//!
//! 1. kept pasts, the [least valuable](crate::value) first: nobody may ever ask for them;
//! 2. parked pasts of jobs that wait: of those whose reader is behind first, then the least valuable;
//! 3. kept pictures, the least recently used first;
//! 4. running jobs whose reader is behind, as they cannot go on anyway;
//! 5. running jobs whose rank is lower than the priority of who lacks it and that are not [held](crate::aging): the lowest
//!    rank first, of these the one that is cheapest to bring back for the memory that it frees (tokens to compute per
//!    byte), of these the youngest.
//!
//! A running job for which even that is not enough takes from its equals by the same rule, or gives way itself. A slot is
//! found by 4 and 5 alone, and there the youngest goes: with its past parked, each costs the same.
//!
//! Who has waited long comes before others, but turns nobody out for that: whoever runs comes to its end, and to trade one
//! batch job for another at each rise would be work for nothing.

use std::cmp::Reverse;
use std::time::Instant;

use consort_core::{Engine, Error, ErrorKind, ErrorStatus, Priority};

use super::Worker;
use super::close::{Closing, Meanwhile};
use crate::sequence::Job;
use crate::value::Value;

/// What somebody lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    Slot,
    Memory,
}

/// What it costs to turn a job out: tokens to compute per byte that is freed. Ordered as numbers are.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cost(f64);

impl Eq for Cost {}

impl PartialOrd for Cost {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Cost {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl<E: Engine> Worker<E> {
    /// Makes room of memory for somebody of this priority. `false`: there is nothing to give up.
    pub(super) fn relieve(&mut self, priority: Priority) -> bool {
        self.cache.evict() || self.give_up_parked() || self.images.evict() || self.turn_out(priority, Lack::Memory)
    }

    /// Whether a running job gives way to this priority.
    pub(super) fn gives_way(&self, job: &Job, priority: Priority, now: Instant) -> bool {
        job.end.is_none() && (!job.has_room() || (self.rank(job, now) < priority && !job.standing.is_held()))
    }

    /// Suspends somebody who gives way to this priority. Whether there was one.
    pub(super) fn turn_out(&mut self, priority: Priority, lack: Lack) -> bool {
        let now = self.shared.clock.now();
        let candidates = (0..self.running.len()).filter(|&index| self.gives_way(&self.running[index], priority, now));
        let victim = candidates.min_by_key(|&index| self.precedence(index, now, lack));
        if let Some(index) = victim {
            self.suspend(index, Meanwhile::Park);
        }
        victim.is_some()
    }

    /// The least goes first.
    fn precedence(&self, index: usize, now: Instant, lack: Lack) -> (bool, Priority, Cost, Reverse<u64>) {
        let job = &self.running[index];
        let cost = match lack {
            Lack::Slot => Cost(0.0),
            Lack::Memory => self.cost(job),
        };
        (job.has_room(), self.rank(job, now), cost, Reverse(job.id))
    }

    fn cost(&self, job: &Job) -> Cost {
        let Some(slot) = &job.slot else { return Cost(0.0) };
        let kept = if job.reads_cache() { self.cache.longest(job.past.keys(), slot.done) } else { 0 };
        let bytes = self.engine.sequence_memory(slot.seq).map_or(0, |memory| memory.unique);
        Cost((slot.done - kept) as f64 / bytes.max(1) as f64)
    }

    /// Gives up a parked past of a job that waits. `false` when there is none.
    fn give_up_parked(&mut self) -> bool {
        let value = |job: &Job| -> Option<(bool, Value, Reverse<u64>)> {
            let parked = job.parked.as_ref()?;
            let value = self.appraiser.value(parked.tokens(), parked.bytes(), job.queued_since);
            Some((job.has_room(), value, Reverse(job.id)))
        };
        let least = self.queue.iter().enumerate().filter_map(|(index, job)| Some((value(job)?, index))).min();
        let Some((_, index)) = least else { return false };
        self.queue[index].parked = None;
        self.books(|books| books.metrics.parked_given_up += 1);
        true
    }

    /// Keeps what is parked for jobs that wait within its bytes.
    pub(super) fn cap_parked(&mut self) {
        while self.parked().1 > self.shared.config.parked_bytes && self.give_up_parked() {}
    }

    /// Parked pasts of jobs that wait, and their bytes.
    pub(super) fn parked(&self) -> (u64, u64) {
        let parked = self.queue.iter().filter_map(|job| job.parked.as_ref());
        parked.fold((0, 0), |(count, bytes), parked| (count + 1, bytes + parked.bytes()))
    }

    /// Memory ran out under a job that runs. Whether somebody gave something up.
    pub(super) fn press(&mut self, index: usize, error: Error) -> bool {
        let now = self.shared.clock.now();
        let Some(job) = self.running.get(index) else { return false };
        if job.is_keep() {
            self.close_running(index, Closing::Failed(error));
            return true;
        }
        let (id, priority, rank) = (job.id, job.priority, self.rank(job, now));
        if self.relieve(priority) {
            self.owe_memory(id);
            return true;
        }
        if self.running.len() <= 1 {
            let error = self.too_large(index, error);
            self.close_running(index, Closing::Failed(error));
            return false;
        }
        // It may be itself, which then waits until others have ended. Who is held goes last, but goes.
        let equals = (0..self.running.len())
            .filter(|&other| self.running[other].end.is_none() && self.rank(&self.running[other], now) <= rank);
        let victim = equals
            .min_by_key(|&other| (self.running[other].standing.is_held(), self.precedence(other, now, Lack::Memory)));
        self.suspend(victim.unwrap_or(index), Meanwhile::Park);
        self.owe_memory(id);
        true
    }

    /// Something was given up for this job, unless it gave way itself.
    fn owe_memory(&mut self, id: u64) {
        if let Some(job) = self.running.iter_mut().find(|job| job.id == id) {
            job.is_owed_memory = true;
        }
    }

    /// Whether what was given up is waited for by a running job of this rank or a higher one. Without this, who was turned out
    /// could come back for its memory before that job's next step, and lose it again, for ever.
    pub(super) fn memory_is_owed(&self, rank: Priority, now: Instant) -> bool {
        self.running.iter().any(|job| job.is_owed_memory && job.has_room() && self.rank(job, now) >= rank)
    }

    fn too_large(&self, index: usize, error: Error) -> Error {
        match self.running.get(index) {
            Some(job) => self.unfit(job, error),
            None => error,
        }
    }

    /// What somebody is told who does not fit although nothing else is left: the numbers.
    pub(super) fn unfit(&self, job: &Job, error: Error) -> Error {
        if error.kind() != ErrorKind::OutOfMemory {
            return error;
        }
        let memory = self.engine.memory();
        let budget = memory.sequence_budget.map_or_else(|| "none".to_owned(), |bytes| bytes.to_string());
        let message = "the request does not fit into memory even alone; shorten it, or allow sequences more memory";
        Error::new(ErrorKind::OutOfMemory, message)
            .with_status(ErrorStatus::Permanent)
            .with_operation("scheduler::generate")
            .with_backend(self.shared.name)
            .with_context("prompt_tokens", job.prompt_len.to_string())
            .with_context("tokens", job.past.len().to_string())
            .with_context("held_bytes", memory.kv_cache.saturating_add(memory.recurrent_state).to_string())
            .with_context("sequence_budget", budget)
            .with_source(error)
    }
}
