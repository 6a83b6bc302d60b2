//! A request on its way: what it wants, how far it is, and what it says.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use consort_core::{
    AdapterSet, Deadlines, Error, Event, FinishReason, ImageHandle, Parked, Pooling, PrefixReuse, Priority, Result,
    SeqId, Step, TokenId, Usage, Want,
};
use consort_text::{Detokenizer, StopMatcher};

use crate::aging::Standing;
use crate::chooser::{Choice, Chooser};
use crate::events::{Answerer, EventSender};
use crate::front_end::{Border, BorderKind, Conversation};
use crate::images::{Audience, ImageKey, Wanted};
use crate::past::Past;
use crate::prompt_logprobs::{MOST_ROWS, PromptLogprobs};

/// What a sequence is for.
pub(crate) enum Work {
    /// Somebody waits for a reply.
    Reply(Box<Reply>),
    /// A finished turn is to be kept.
    Keep,
    /// Somebody waits for hidden states.
    Embed(Embed),
}

/// A reply as it grows.
pub(crate) struct Reply {
    pub(crate) chooser: Chooser,
    /// Until they are delivered, before the first token.
    pub(crate) prompt_logprobs: Option<PromptLogprobs>,
    pub(crate) stopper: StopMatcher,
    pub(crate) detokenizer: Option<Detokenizer>,
    pub(crate) events: EventSender,
    /// The most tokens it may have.
    pub(crate) max_tokens: usize,
    pub(crate) logprobs: Option<usize>,
    pub(crate) conversation: Option<Arc<Conversation>>,
    pub(crate) arrived: Instant,
    pub(crate) deadlines: Deadlines,
    pub(crate) started: bool,
    pub(crate) usage: Usage,
    pub(crate) first_token: Option<Instant>,
    /// When its last token came, unless its reader has held it up since.
    pub(crate) last_token: Option<Instant>,
    /// All text that was delivered, while it may be needed to keep the turn.
    pub(crate) text: String,
}

/// A reply's next token, or its end.
pub(crate) enum Said {
    /// The token is to be appended to the past.
    Token(TokenId),
    /// It ended by itself; its reader learns of it when the books are closed.
    Ended(FinishReason),
}

impl Reply {
    /// Takes the logits of the next token, which came at `now`.
    pub(crate) fn hear(&mut self, row: &[f32], now: Instant) -> Result<Said> {
        if !self.started {
            self.started = true;
            if let Some(prompt) = self.prompt_logprobs.take() {
                self.events.send(Event::PromptLogprobs(prompt.into_entries()));
            }
            self.events.send(Event::Started(self.usage));
        }
        if self.usage.completion_tokens >= self.max_tokens {
            return Ok(self.end(FinishReason::Length));
        }
        let choice = self.chooser.choose(row)?;
        let (token, ended) = match choice {
            Choice::Token(token) => (token, None),
            Choice::End(token) => (token, Some(FinishReason::EndToken(token))),
            Choice::Stop(token) => (token, Some(FinishReason::StopToken(token))),
            Choice::Complete => return Ok(self.end(FinishReason::StructureComplete)),
        };
        let first = *self.first_token.get_or_insert(now);
        self.usage.time_to_first_token = Some(first.saturating_duration_since(self.arrived));
        self.usage.decode_time = now.saturating_duration_since(first);
        self.usage.completion_tokens += 1;
        if let Some(reason) = ended {
            return Ok(self.end(reason));
        }
        let logprobs = match self.logprobs {
            Some(count) => vec![self.chooser.logprobs(row, token, count)?],
            None => Vec::new(),
        };
        let text = self.detokenizer.as_mut().map(|detokenizer| detokenizer.push(token)).unwrap_or_default();
        let fed = self.stopper.feed(&text);
        self.deliver(vec![token], fed.text, logprobs);
        if let Some(string) = fed.stopped_by {
            return Ok(Said::Ended(FinishReason::StopString(string)));
        }
        if self.usage.completion_tokens >= self.max_tokens {
            return Ok(self.end(FinishReason::Length));
        }
        Ok(Said::Token(token))
    }

    fn deliver(&mut self, ids: Vec<TokenId>, text: String, logprobs: Vec<consort_core::PositionLogprobs>) {
        if self.conversation.is_some() {
            self.text.push_str(&text);
        }
        self.events.send(Event::Tokens { ids, text, logprobs });
    }

    /// Ends otherwise than by a stop string, which may yet be found in what was held back.
    fn end(&mut self, reason: FinishReason) -> Said {
        let rest = self.detokenizer.as_mut().map(Detokenizer::finish).unwrap_or_default();
        let fed = self.stopper.feed(&rest);
        let mut text = fed.text;
        let reason = match fed.stopped_by {
            Some(string) => FinishReason::StopString(string),
            None => {
                text.push_str(&self.stopper.flush());
                reason
            }
        };
        if !text.is_empty() {
            self.deliver(Vec::new(), text, Vec::new());
        }
        Said::Ended(reason)
    }
}

/// Pooled hidden states as they add up.
pub(crate) struct Embed {
    pub(crate) pooling: Pooling,
    pub(crate) answer: Answerer<Vec<f32>>,
    /// Sum over positions, for a mean over several steps.
    pub(crate) sum: Vec<f32>,
}

impl Embed {
    /// Adds a step's pooled states, which stand for `tokens` of `total` positions.
    pub(crate) fn hear(&mut self, pooled: &[f32], tokens: usize, total: usize) {
        match self.pooling {
            Pooling::Last => self.sum = pooled.to_vec(),
            Pooling::Mean => {
                self.sum.resize(pooled.len(), 0.0);
                let share = tokens as f32 / total.max(1) as f32;
                self.sum.iter_mut().zip(pooled).for_each(|(sum, value)| *sum += value * share);
            }
        }
    }
}

/// A sequence that the engine holds for a job.
pub(crate) struct Slot {
    pub(crate) seq: SeqId,
    /// Tokens of the past that the engine has.
    pub(crate) done: usize,
    /// Where to keep the past, ascending, all beyond `done`.
    pub(crate) borders: VecDeque<usize>,
    /// The length up to which memory was made sure of.
    pub(crate) reserved: usize,
}

/// How a job ended.
pub(crate) enum End {
    /// By itself; a reply with its reason.
    Finished(Option<FinishReason>),
    /// With an error, which its reader has yet to learn.
    Failed(Error),
    /// Its state was lost: from the beginning, without the cache.
    Replay(Error),
    /// Memory ran out under it.
    Pressed(Error),
}

/// A request as it goes to the engine's thread.
pub(crate) struct Request {
    /// Counts acceptances: older is smaller.
    pub(crate) id: u64,
    pub(crate) priority: Priority,
    pub(crate) reuse: PrefixReuse,
    pub(crate) adapters: AdapterSet,
    pub(crate) past: Past,
    pub(crate) borders: Vec<Border>,
    pub(crate) work: Work,
    pub(crate) arrived: Instant,
}

/// A request on the engine's thread, to its end.
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) priority: Priority,
    pub(crate) reuse: PrefixReuse,
    pub(crate) adapters: AdapterSet,
    pub(crate) past: Past,
    pub(crate) prompt_len: usize,
    pub(crate) borders: Vec<Border>,
    pub(crate) work: Work,
    pub(crate) slot: Option<Slot>,
    /// Encoded images that it has yet to append.
    pub(crate) images: BTreeMap<[u8; 32], ImageHandle>,
    /// Its past, when it had to give its slot up.
    pub(crate) parked: Option<Parked>,
    pub(crate) admitted_before: bool,
    pub(crate) replays: u32,
    pub(crate) end: Option<End>,
    /// How its turn comes nearer.
    pub(crate) standing: Standing,
    /// Since when it has waited for a slot.
    pub(crate) queued_since: Instant,
    /// How many of its tokens an engine's sequence ever held: what it computes before is computed again.
    pub(crate) furthest: usize,
    /// Memory ran out under it, and others gave some up for its next step. Until it has made that, what they gave is not theirs
    /// to take again.
    pub(crate) is_owed_memory: bool,
}

impl From<Request> for Job {
    fn from(request: Request) -> Self {
        let Request { id, priority, reuse, adapters, past, borders, work, arrived } = request;
        // Nobody waits for a turn that is kept.
        let ages = !matches!(work, Work::Keep);
        Self {
            standing: Standing::new(priority, ages, arrived),
            queued_since: arrived,
            furthest: 0,
            id,
            priority,
            reuse,
            adapters,
            prompt_len: past.len(),
            past,
            borders,
            work,
            slot: None,
            images: BTreeMap::new(),
            parked: None,
            admitted_before: false,
            replays: 0,
            end: None,
            is_owed_memory: false,
        }
    }
}

impl Job {
    /// Whether it reads from the prefix cache. What was lost once is computed anew.
    pub(crate) fn reads_cache(&self) -> bool {
        self.reuse == PrefixReuse::Shared && self.replays == 0
    }

    /// The adapters with which this turn is kept for the next one. What becomes active in the generation prompt, or after
    /// it, will be invoked anew there; the finished turn is read without it.
    pub(crate) fn lasting_adapters(&self) -> AdapterSet {
        let turn = self.borders.iter().find(|border| border.kind == BorderKind::Turn);
        self.adapters.within(turn.map_or(self.prompt_len, |turn| turn.at))
    }

    pub(crate) fn is_keep(&self) -> bool {
        matches!(self.work, Work::Keep)
    }

    pub(crate) fn done(&self) -> usize {
        self.slot.as_ref().map_or(0, |slot| slot.done)
    }

    pub(crate) fn remaining(&self) -> usize {
        self.past.len() - self.done()
    }

    /// Whether its next step is a reply's next token, and not a prompt or a replay.
    pub(crate) fn is_decoding(&self) -> bool {
        matches!(&self.work, Work::Reply(reply) if reply.started) && self.remaining() == 1
    }

    /// Whether its reader keeps up. Only a reply that has begun can be behind.
    pub(crate) fn has_room(&self) -> bool {
        match &self.work {
            Work::Reply(reply) => reply.events.has_room(),
            Work::Keep | Work::Embed(_) => true,
        }
    }

    /// Whether nobody waits for it any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        match &self.work {
            Work::Reply(reply) => reply.events.is_cancelled(),
            Work::Embed(embed) => embed.answer.is_abandoned(),
            Work::Keep => false,
        }
    }

    /// The next token comes late, and the engine is not to blame.
    pub(crate) fn forget_last_token(&mut self) {
        if let Work::Reply(reply) = &mut self.work {
            reply.last_token = None;
        }
    }

    pub(crate) fn audience(&self) -> Audience {
        match self.reuse {
            PrefixReuse::Shared => Audience::Shared,
            PrefixReuse::Bypass => Audience::Private(self.id),
        }
    }

    /// Images that it needs from here on and that are not encoded yet.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = Wanted> + '_ {
        self.past.images(self.done()).filter(|image| !self.images.contains_key(&image.hash.0)).map(|image| Wanted {
            audience: self.audience(),
            hash: image.hash,
            source: image.source,
        })
    }

    /// Takes an image if it is one that this job waits for; whether it did.
    pub(crate) fn take_image(&mut self, key: ImageKey, handle: &ImageHandle) -> bool {
        let wants = self.wanted().any(|wanted| wanted.key() == key);
        if wants {
            self.images.insert(key.1, handle.clone());
        }
        wants
    }

    /// How many tokens its next step can take, up to `limit`: never beyond a stretch of the past or a border. 0 while an
    /// image is not encoded.
    pub(crate) fn next_chunk(&self, limit: usize) -> usize {
        let Some(slot) = &self.slot else { return 0 };
        if self.past.image_at(slot.done).is_some_and(|hash| !self.images.contains_key(&hash.0)) {
            return 0;
        }
        let to_border = slot.borders.front().map_or(usize::MAX, |border| border.saturating_sub(slot.done));
        let limit = if self.wants_prompt_logprobs() { limit.min(MOST_ROWS) } else { limit };
        self.past.chunk(slot.done, limit.min(to_border))
    }

    /// Whether what it reads is to be reported.
    fn wants_prompt_logprobs(&self) -> bool {
        matches!(&self.work, Work::Reply(reply) if reply.prompt_logprobs.is_some())
    }

    /// The step that appends the next `tokens` tokens.
    pub(crate) fn step(&self, tokens: usize) -> Option<Step<'_>> {
        let slot = self.slot.as_ref()?;
        let range = slot.done..slot.done + tokens;
        let last = range.end == self.past.len();
        let want = match &self.work {
            Work::Reply(_) if self.wants_prompt_logprobs() && self.past.token_at(range.start).is_some() => Want::All,
            // The last of an image's positions tells of what follows it.
            Work::Reply(_) if last || self.wants_prompt_logprobs() => Want::Last,
            Work::Embed(Embed { pooling: Pooling::Mean, .. }) => Want::Pooled(Pooling::Mean),
            Work::Embed(_) if last => Want::Pooled(Pooling::Last),
            _ => Want::Nothing,
        };
        let input = self.past.input(range.clone(), |hash| self.images.get(&hash.0))?;
        Some(Step { seq: slot.seq, input, positions: self.past.positions(range), want })
    }

    /// Forgets encoded images that are wholly in the engine's past.
    pub(crate) fn drop_used_images(&mut self) {
        if self.images.is_empty() {
            return;
        }
        let done = self.done();
        let Self { past, images, .. } = self;
        images.retain(|hash, _| past.images(done).any(|image| image.hash.0 == *hash));
    }
}
