//! Replies that come too late.

use std::time::{Duration, Instant};

use consort_core::{Engine, Error, ErrorKind};

use super::Worker;
use super::close::{Closing, Deadline, Place};
use crate::sequence::{Job, Reply, Work};

/// The deadlines that can still pass, as moments.
fn pending(reply: &Reply) -> impl Iterator<Item = (Deadline, Duration, Instant)> + '_ {
    let first_token = reply.deadlines.first_token.filter(|_| reply.first_token.is_none());
    let all = [(Deadline::FirstToken, first_token), (Deadline::Total, reply.deadlines.total)];
    // What lies beyond the clock's end never comes.
    all.into_iter().filter_map(|(deadline, after)| Some((deadline, after?, reply.arrived.checked_add(after?)?)))
}

fn reply(job: &Job) -> Option<&Reply> {
    match &job.work {
        Work::Reply(reply) => Some(reply),
        Work::Keep | Work::Embed(_) => None,
    }
}

/// The deadline that has passed, if one has.
fn passed(job: &Job, now: Instant) -> Option<(Deadline, Error)> {
    let reply = reply(job)?;
    let (deadline, after, _) = pending(reply).find(|(.., moment)| *moment <= now)?;
    let (field, message) = match deadline {
        Deadline::FirstToken => {
            ("deadlines.first_token", "the first token did not come in time; ask again later, or allow more time")
        }
        Deadline::Total => ("deadlines.total", "the reply did not end in time; ask for less, or allow more time"),
    };
    let error = Error::new(ErrorKind::DeadlineExceeded, message)
        .with_operation("scheduler::generate")
        .with_context("field", field)
        .with_context("allowed_ms", after.as_millis().to_string())
        .with_context("completion_tokens", reply.usage.completion_tokens.to_string())
        .with_context("was", if job.slot.is_some() { "running" } else { "waiting" });
    Some((deadline, error))
}

impl<E: Engine> Worker<E> {
    /// Ends what is too late.
    pub(super) fn expire(&mut self, now: Instant) {
        for index in (0..self.queue.len()).rev() {
            if let Some((deadline, error)) = passed(&self.queue[index], now) {
                let job = self.queue.remove(index);
                self.close(job, Place::Queued, Closing::Late(deadline, error));
            }
        }
        for index in (0..self.running.len()).rev() {
            if let Some((deadline, error)) = passed(&self.running[index], now) {
                let job = self.running.swap_remove(index);
                self.close(job, Place::Running, Closing::Late(deadline, error));
            }
        }
    }

    /// When the next deadline passes.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let jobs = self.queue.iter().chain(&self.running);
        jobs.filter_map(reply).flat_map(pending).map(|(.., moment)| moment).min()
    }
}
