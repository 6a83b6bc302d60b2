//! One step of the engine, and what comes of it.

use consort_core::{Engine, Error, ErrorKind, Step, StepOutcome, StepOutput};

use super::admit::failure;
use super::close::Meanwhile;
use super::{Closing, Place, Worker, repeated};
use crate::sequence::{End, Job, Said, Work};
use crate::step_plan::{Budget, Candidate, plan};

/// A sequence whose state was lost is computed anew this often.
const MOST_REPLAYS: u32 = 1;

impl<E: Engine> Worker<E> {
    /// Runs one batch. Whether there was one to run.
    pub(super) fn step(&mut self) -> bool {
        self.reserve_ahead();
        let now = self.shared.clock.now();
        let ready = |job: &&Job| job.end.is_none() && job.next_chunk(1) > 0 && job.has_room();
        let mut set = None;
        if self.is_grouped() {
            let groups: Vec<_> =
                self.running.iter().filter(ready).map(|job| (&job.adapters, self.rank(job, now), job.id)).collect();
            set = self.turns.choose(&groups, self.shared.config.group_steps);
        }
        let candidates = self
            .running
            .iter()
            .enumerate()
            .filter(|(_, job)| ready(job) && set.as_ref().is_none_or(|set| *set == job.adapters))
            .map(|(index, job)| Candidate {
                index,
                priority: job.priority,
                rank: self.rank(job, now),
                age: job.id,
                decoding: job.is_decoding(),
            })
            .collect();
        let config = &self.shared.config;
        let prompts = config.max_step_time.map_or(usize::MAX, |limit| self.step_times.tokens_within(limit));
        let budget = Budget { tokens: config.step_tokens, background: config.background_step_tokens, prompts };
        let steps = plan(candidates, budget, |index, limit| self.running[index].next_chunk(limit));
        if steps.is_empty() {
            // A job that ran out of memory is settled by the sweep, which may let it go on.
            return self.running.iter().any(|job| job.end.is_some());
        }
        for (index, tokens, outcome) in self.execute(&steps) {
            self.settle(index, tokens, outcome);
        }
        true
    }

    /// Submits and collects; one outcome per step that could be made.
    fn execute(&mut self, planned: &[(usize, usize)]) -> Vec<(usize, usize, StepOutcome)> {
        let begun = self.shared.clock.now();
        let Self { engine, running, .. } = self;
        let (mut made, mut prompts) = (Vec::with_capacity(planned.len()), 0);
        let mut steps: Vec<Step<'_>> = Vec::with_capacity(planned.len());
        for &(index, tokens) in planned {
            if let Some(step) = running[index].step(tokens) {
                made.push((index, tokens));
                steps.push(step);
                prompts += if running[index].is_decoding() { 0 } else { tokens };
            }
        }
        let outcomes = match run(engine, &steps) {
            Ok(outcomes) => outcomes,
            Err(error) if steps.len() == 1 => vec![StepOutcome::Refused(error)],
            // Something in the batch is malformed, and nothing was done: alone, each answers for itself.
            Err(_) => steps
                .iter()
                .map(|step| match run(engine, std::slice::from_ref(step)) {
                    Ok(mut outcomes) => outcomes.pop().unwrap_or_else(|| StepOutcome::Refused(lost())),
                    Err(error) => StepOutcome::Refused(error),
                })
                .collect(),
        };
        let took = self.worked(begun);
        self.step_times.learn(prompts, took);
        self.books(|books| {
            books.metrics.steps += 1;
            books.metrics.step_time.record(took);
        });
        made.into_iter().zip(outcomes).map(|((index, tokens), outcome)| (index, tokens, outcome)).collect()
    }

    fn settle(&mut self, index: usize, tokens: usize, outcome: StepOutcome) {
        let output = match outcome {
            StepOutcome::Done(output) => output,
            StepOutcome::Refused(error) => {
                self.running[index].end = Some(failure(error));
                return;
            }
            StepOutcome::Poisoned(error) => {
                self.running[index].end = Some(End::Replay(error));
                return;
            }
        };
        let now = self.shared.clock.now();
        let job = &mut self.running[index];
        job.is_owed_memory = false;
        let again = tokens.min(job.furthest.saturating_sub(job.done()));
        let is_keep = job.is_keep();
        let (total, length) = (job.prompt_len, job.past.len());
        // What lies beyond the prompt was generated, also where it comes with what is computed again.
        let generated = (job.done() + tokens).saturating_sub(total.max(job.done() + again));
        job.furthest = job.furthest.max(job.done() + tokens);
        job.standing.served(now, self.aging, job.furthest, job.prompt_len);
        self.shared.board.update(|books| {
            let prefilled = (tokens - again - generated) as u64;
            let metrics = &mut books.metrics;
            metrics.step_sequences += 1;
            metrics.step_tokens += tokens as u64;
            metrics.recomputed_tokens += again as u64;
            metrics.decoded_tokens += generated as u64;
            metrics.prefilled_tokens += prefilled;
            metrics.background_tokens += if is_keep { prefilled } else { 0 };
        });
        let Some(slot) = &mut job.slot else { return };
        slot.done += tokens;
        let done = slot.done;
        let mut border = false;
        while slot.borders.front().is_some_and(|&border| border <= done) {
            border |= slot.borders.pop_front() == Some(done);
        }
        job.drop_used_images();
        if border || (done == length && job.is_keep()) {
            self.keep_past(index);
        }
        let job = &mut self.running[index];
        if let (Work::Reply(reply), StepOutput::Logits(logits)) = (&mut job.work, &output)
            && let Some(prompt) = &mut reply.prompt_logprobs
            && let Err(error) = prompt.hear(done - tokens..done, logits, &job.past)
        {
            job.end = Some(End::Failed(error.with_backend(self.shared.name)));
            return;
        }
        match &mut job.work {
            Work::Embed(embed) => {
                if let StepOutput::Pooled(pooled) = &output {
                    embed.hear(pooled, tokens, total);
                }
                if done == length {
                    job.end = Some(End::Finished(None));
                }
            }
            Work::Keep if done == length => job.end = Some(End::Finished(None)),
            Work::Reply(reply) if done == length => {
                let row = match &output {
                    StepOutput::Logits(logits) => logits.last(),
                    _ => None,
                };
                let said = match row.filter(|row| row.len() == self.shared.info.vocab_size) {
                    Some(row) => {
                        let before = reply.usage.completion_tokens;
                        let said = reply.hear(row, now);
                        if reply.usage.completion_tokens > before {
                            let last = reply.last_token.replace(now);
                            let arrived = reply.arrived;
                            self.shared.board.update(|books| {
                                let metrics = &mut books.metrics;
                                metrics.generated_tokens += 1;
                                if before == 0 {
                                    metrics.time_to_first_token.record(now.saturating_duration_since(arrived));
                                } else if let Some(last) = last {
                                    metrics.inter_token.record(now.saturating_duration_since(last));
                                }
                            });
                        }
                        said
                    }
                    None => Err(lost()),
                };
                let ended = match said {
                    Ok(Said::Token(token)) => job.past.push(token).err().map(End::Failed),
                    Ok(Said::Ended(reason)) => Some(End::Finished(Some(reason))),
                    Err(error) => Some(End::Failed(error.with_backend(self.shared.name))),
                };
                job.end = ended;
            }
            Work::Keep | Work::Reply(_) => {}
        }
    }

    /// Deals with jobs that came to an end of some kind.
    pub(super) fn sweep(&mut self) {
        // What one job gave up may be all that the others lacked: they try again first.
        let mut relieved = false;
        // Suspending moves others about, so each is looked for anew.
        while let Some(index) = self.running.iter().position(|job| job.end.is_some()) {
            match self.running[index].end.take() {
                Some(End::Finished(reason)) => self.close_running(index, Closing::Finished(reason)),
                Some(End::Failed(error)) => self.close_running(index, Closing::Failed(error)),
                Some(End::Replay(error)) => self.replay(index, error),
                Some(End::Pressed(error)) if !relieved => relieved = self.press(index, error),
                Some(End::Pressed(_)) | None => {}
            }
        }
    }

    pub(super) fn close_running(&mut self, index: usize, closing: Closing) {
        let job = self.running.swap_remove(index);
        self.close(job, Place::Running, closing);
    }

    /// The engine lost a sequence: its tokens are known, so it is computed anew, once.
    fn replay(&mut self, index: usize, error: Error) {
        let job = &mut self.running[index];
        job.replays += 1;
        let embeds = matches!(&job.work, Work::Embed(_));
        if job.replays > MOST_REPLAYS || embeds || job.is_keep() {
            self.close_running(index, Closing::Failed(error));
            return;
        }
        tracing::warn!(%error, id = job.id, "a sequence was lost and is computed anew");
        self.suspend(index, Meanwhile::Replay);
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::Unexpected, "the engine did not give the logits that were wanted")
}

/// One batch. An error means that nothing was done.
fn run(engine: &mut impl Engine, steps: &[Step<'_>]) -> Result<Vec<StepOutcome>, Error> {
    let ticket = engine.submit(steps)?;
    // What was submitted may have been done in part: when its outcomes are lost, so are the sequences.
    let poison = |error: &Error| steps.iter().map(|_| StepOutcome::Poisoned(repeated(error))).collect();
    Ok(match engine.collect(ticket) {
        Ok(outcomes) if outcomes.len() == steps.len() => outcomes,
        Ok(_) => poison(&lost()),
        Err(error) => poison(&error),
    })
}
