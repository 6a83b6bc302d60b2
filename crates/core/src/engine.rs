//! The inner seam: what a local engine implements.

use std::any::Any;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use crate::{
    AdapterInfo, AdapterKey, AdapterSet, AdapterSource, Capability, DeviceEvidence, Error, ErrorKind, ImageSource,
    MemoryReport, ModelInfo, PatchGrid, Position, Result, SequenceMemory, TokenId,
};

/// A sequence that an engine holds. Ids are never reused, so that a stale one is an error and not another's sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

/// A submitted batch, to be collected once.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// An image that is being encoded.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct ImageJob(pub u64);

/// An encoded image: an engine-owned, counted handle. The last clone that is dropped frees it.
#[derive(Clone)]
pub struct ImageHandle {
    payload: Rc<dyn Any>,
    grid: PatchGrid,
}

impl ImageHandle {
    /// Wraps what the engine needs to find or to hold the embedding `[grid.tokens(), hidden]`.
    pub fn new(payload: Rc<dyn Any>, grid: PatchGrid) -> Self {
        Self { payload, grid }
    }

    /// The image's grid.
    #[must_use]
    pub fn grid(&self) -> PatchGrid {
        self.grid
    }

    /// How many tokens it takes.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.grid.tokens()
    }

    /// What the engine put in.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] when another engine made it.
    pub fn payload<T: 'static>(&self) -> Result<&T> {
        self.payload
            .downcast_ref()
            .ok_or_else(|| Error::new(ErrorKind::InvalidRequest, "this image was encoded by another engine"))
    }
}

impl fmt::Debug for ImageHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageHandle").field("grid", &self.grid).finish_non_exhaustive()
    }
}

/// A past that is kept without a running slot: how a prefix cache entry is held. The last clone that is dropped frees it.
#[derive(Clone)]
pub struct Parked {
    payload: Rc<dyn Any>,
    tokens: usize,
    bytes: u64,
}

impl Parked {
    /// Wraps what the engine needs to resume: a past of `tokens` tokens that costs `bytes` beyond what it shares.
    pub fn new(payload: Rc<dyn Any>, tokens: usize, bytes: u64) -> Self {
        Self { payload, tokens, bytes }
    }

    /// The past's length in tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// What it costs, in bytes: the copy of the states, and pages that only it would hold when its parent is gone.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the engine put in.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] when another engine made it.
    pub fn payload<T: 'static>(&self) -> Result<&T> {
        self.payload
            .downcast_ref()
            .ok_or_else(|| Error::new(ErrorKind::InvalidRequest, "this past was parked by another engine"))
    }
}

impl fmt::Debug for Parked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parked").field("tokens", &self.tokens).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// What a step appends.
#[derive(Debug, Clone)]
pub enum StepInput<'a> {
    /// Tokens of text.
    Tokens(&'a [TokenId]),
    /// A range of an encoded image's tokens, in order: a large image can be appended in several steps.
    Image {
        /// The image.
        image: &'a ImageHandle,
        /// Which of its tokens.
        tokens: Range<usize>,
    },
}

impl StepInput<'_> {
    /// How many positions it takes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.len(),
            Self::Image { tokens, .. } => tokens.len(),
        }
    }

    /// Whether it appends nothing, which engines refuse.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How hidden states are pooled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// The last position's.
    Last,
    /// The mean over the positions of the step.
    Mean,
}

/// What a step wants back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Want<'a> {
    /// Nothing: a chunk of a prompt.
    Nothing,
    /// The logits of the last position.
    Last,
    /// The logits of every position of the step.
    All,
    /// The k largest logits of the last position, reduced on the device. Needs `device_top_k`.
    TopK {
        /// How many.
        k: usize,
        /// One bit per token, least significant first; a cleared bit forbids the token. `None` allows all.
        mask: Option<&'a [u32]>,
        /// Added to logits before the choice.
        bias: &'a [(TokenId, f32)],
    },
    /// Pooled hidden states after the final norm, `[hidden]`. Needs `embeddings`.
    Pooled(Pooling),
}

/// One sequence's part of a batch. A batch holds at most one step per sequence.
#[derive(Debug, Clone)]
pub struct Step<'a> {
    /// Which sequence.
    pub seq: SeqId,
    /// What is appended.
    pub input: StepInput<'a>,
    /// Where: one position per appended token.
    pub positions: &'a [Position],
    /// What is wanted back.
    pub want: Want<'a>,
}

impl Step<'_> {
    /// Checks what every engine demands of one step, but for what lies in its own keeping: that tokens are of the vocabulary
    /// and that each has a position.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] that names the stranger.
    pub fn check(&self, vocab_size: usize) -> Result<()> {
        let invalid = |message: String| Error::new(ErrorKind::InvalidRequest, message);
        if let StepInput::Tokens(tokens) = &self.input
            && let Some(stranger) = tokens.iter().find(|&&token| token as usize >= vocab_size)
        {
            let error = invalid(format!("a token is beyond the vocabulary of {vocab_size}"));
            return Err(error.with_context("token", stranger.to_string()));
        }
        let (places, count) = (self.positions.len(), self.input.len());
        if places != count {
            return Err(invalid(format!("{places} positions were given for {count} tokens")));
        }
        Ok(())
    }

    /// Checks the shape of a batch, for [`Engine::submit`]: each step appends something, each sequence has one step, and
    /// together they are no more tokens than [`Capability::max_batch_tokens`].
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] that names the sequence.
    pub fn check_batch(steps: &[Step<'_>], max_batch_tokens: usize) -> Result<()> {
        let mut seen = HashSet::with_capacity(steps.len());
        let mut total = 0_usize;
        for step in steps {
            total = total.saturating_add(step.input.len());
            let message = if step.input.is_empty() {
                "a step appends nothing"
            } else if !seen.insert(step.seq) {
                "a sequence has two steps in one batch"
            } else if total > max_batch_tokens {
                "the batch has more tokens than max_batch_tokens"
            } else {
                continue;
            };
            return Err(Error::new(ErrorKind::InvalidRequest, message)
                .with_operation("submit")
                .with_context("seq", step.seq.0.to_string()));
        }
        Ok(())
    }
}

/// Rows of logits.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Logits {
    vocab_size: usize,
    values: Vec<f32>,
}

impl Logits {
    /// `values` is `[rows, vocab_size]`.
    ///
    /// # Errors
    /// [`ErrorKind::Unexpected`] when the length is no multiple of `vocab_size`.
    pub fn new(vocab_size: usize, values: Vec<f32>) -> Result<Self> {
        if vocab_size == 0 || !values.len().is_multiple_of(vocab_size) {
            return Err(Error::new(ErrorKind::Unexpected, "logits are not whole rows of the vocabulary"));
        }
        Ok(Self { vocab_size, values })
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.values.len().checked_div(self.vocab_size).unwrap_or(0)
    }

    /// One row, `[vocab_size]`, if there is such a row.
    #[must_use]
    pub fn row(&self, index: usize) -> Option<&[f32]> {
        let start = index.checked_mul(self.vocab_size)?;
        self.values.get(start..start.checked_add(self.vocab_size)?).filter(|row| !row.is_empty())
    }

    /// The last row, `[vocab_size]`.
    #[must_use]
    pub fn last(&self) -> Option<&[f32]> {
        self.row(self.rows().checked_sub(1)?)
    }

    /// All rows, `[rows, vocab_size]`.
    #[must_use]
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }
}

/// What a step that was done gives.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum StepOutput {
    /// For [`Want::Nothing`].
    Nothing,
    /// For [`Want::Last`] (one row) and [`Want::All`] (one row per position).
    Logits(Logits),
    /// For [`Want::TopK`]: tokens and their biased logits, best first.
    TopK(Vec<(TokenId, f32)>),
    /// For [`Want::Pooled`]: `[hidden]`.
    Pooled(Vec<f32>),
}

/// How one step of a batch ended. One bad sequence never fails its neighbours.
#[derive(Debug)]
pub enum StepOutcome {
    /// The step is part of the sequence's past.
    Done(StepOutput),
    /// The sequence is as it was before.
    Refused(Error),
    /// The sequence's state is unknown. The caller releases it and, if it can, replays it.
    Poisoned(Error),
}

/// How far an image is.
#[derive(Debug)]
pub enum ImageProgress {
    /// Call again.
    Pending(ImageJob),
    /// Done.
    Ready(ImageHandle),
}

/// A local engine: tokens in, logits out, over sequences that it holds.
///
/// One thread builds an engine and owns it; it need not be `Send`. It decides nothing: who runs when, what is cached,
/// how tokens are chosen is the scheduler's. The caller keeps to the [`Capability`]; what it does not declare may be
/// answered by the default methods, which refuse.
///
/// The [crate's front page](crate) tells how to write one.
pub trait Engine {
    /// A short, stable name (`native`, `llamacpp`).
    fn name(&self) -> &'static str;

    /// What the model is.
    fn info(&self) -> &ModelInfo;

    /// What the engine can do.
    fn capability(&self) -> Capability;

    /// What ran where, and how that is known.
    fn evidence(&self) -> DeviceEvidence;

    /// What it holds, by kind.
    fn memory(&self) -> MemoryReport;

    /// What one sequence holds.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an unknown sequence.
    fn sequence_memory(&self, seq: SeqId) -> Result<SequenceMemory>;

    /// A new, empty sequence with an effective adapter set, which it keeps even if an adapter is unloaded or replaced.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] when every slot is taken, [`ErrorKind::OutOfMemory`] when the budget is spent,
    /// [`ErrorKind::NotFound`] for an adapter that is not loaded.
    fn open(&mut self, adapters: &AdapterSet) -> Result<SeqId>;

    /// Makes sure that `tokens` more tokens will fit into the sequence, so that running out of memory is foreseen.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`]; nothing changed.
    fn reserve(&mut self, seq: SeqId, tokens: usize) -> Result<()>;

    /// Starts a batch: at most one step per sequence and `max_batch_tokens` tokens in all. A lazy or asynchronous engine
    /// returns before it is computed; a simple one does all the work here.
    ///
    /// # Errors
    /// When the batch as a whole is malformed (a sequence twice, too many tokens, an empty step): nothing was done.
    fn submit(&mut self, steps: &[Step<'_>]) -> Result<Ticket>;

    /// Waits for a batch; one outcome per step, in order.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a ticket that was collected already. A failure of the device poisons each step.
    fn collect(&mut self, ticket: Ticket) -> Result<Vec<StepOutcome>>;

    /// A second sequence with the same past and adapters. What is shared stays shared until written.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    fn fork(&mut self, seq: SeqId) -> Result<SeqId> {
        let _ = seq;
        Err(Error::unsupported(self.name(), "fork"))
    }

    /// The same with other adapters; legal only when every binding that differs becomes active at or after the current
    /// length ([`AdapterSet::agreement`]). Needs `activated_adapters`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] when it is not legal, else as [`open`](Self::open).
    fn fork_with(&mut self, seq: SeqId, adapters: &AdapterSet) -> Result<SeqId> {
        let _ = (seq, adapters);
        Err(Error::unsupported(self.name(), "fork_with"))
    }

    /// Keeps the sequence's past as it is now. The sequence goes on.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`] when the copy does not fit.
    fn park(&mut self, seq: SeqId) -> Result<Parked> {
        let _ = seq;
        Err(Error::unsupported(self.name(), "park"))
    }

    /// A new sequence with a parked past, which stays parked, and with the adapters that it was parked with.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    fn resume(&mut self, parked: &Parked) -> Result<SeqId> {
        let _ = parked;
        Err(Error::unsupported(self.name(), "resume"))
    }

    /// The same with other adapters, by the rule of [`fork_with`](Self::fork_with): how personas that share a scene
    /// continue it. Needs `park` and `activated_adapters`.
    ///
    /// This way takes a second slot for a moment, and needs the adapters that the past was parked with. An engine that
    /// can do without both overrides it.
    ///
    /// # Errors
    /// As [`fork_with`](Self::fork_with).
    fn resume_with(&mut self, parked: &Parked, adapters: &AdapterSet) -> Result<SeqId> {
        let resumed = self.resume(parked)?;
        let forked = self.fork_with(resumed, adapters);
        self.release(resumed);
        forked
    }

    /// Takes back the last `tokens` tokens, at most `max_rollback`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] beyond the limit; a recurrent state cannot be cut anywhere.
    fn rollback(&mut self, seq: SeqId, tokens: usize) -> Result<()> {
        let _ = (seq, tokens);
        Err(Error::unsupported(self.name(), "rollback"))
    }

    /// Ends a sequence; its memory is back before the next submit returns. An unknown id is ignored.
    fn release(&mut self, seq: SeqId);

    /// Begins to encode an image.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidImage`] when it does not fit the model.
    fn begin_image(&mut self, image: Arc<dyn ImageSource>) -> Result<ImageJob> {
        let _ = image;
        Err(Error::unsupported(self.name(), "begin_image"))
    }

    /// Does a bounded part of the work, so that running sequences are never stalled by a picture.
    ///
    /// # Errors
    /// When encoding fails; the job is gone.
    fn advance_image(&mut self, job: ImageJob) -> Result<ImageProgress> {
        let _ = job;
        Err(Error::unsupported(self.name(), "advance_image"))
    }

    /// Gives an image up before it is ready.
    fn cancel_image(&mut self, job: ImageJob) {
        let _ = job;
    }

    /// Loads an adapter under a key that is not loaded now. The same key always means the same weights: one that was
    /// unloaded can be loaded again, and what was parked with it goes on.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidAdapter`] for what is malformed, does not fit, or is not supported (by name: `use_dora`,
    /// `modules_to_save`, ...).
    fn load_adapter(&mut self, source: &AdapterSource) -> Result<AdapterInfo> {
        let _ = source;
        Err(Error::unsupported(self.name(), "load_adapter"))
    }

    /// Forgets an adapter's weights. Sequences keep what they opened with. Parked pasts keep the key alone, so that they
    /// hold no weights: [`resume`](Self::resume) is [`ErrorKind::NotFound`] until the key is loaded again.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    fn unload_adapter(&mut self, key: &AdapterKey) -> Result<()> {
        let _ = key;
        Err(Error::unsupported(self.name(), "unload_adapter"))
    }

    /// Writes a parked past, to be read by the same engine, version and model.
    ///
    /// # Errors
    /// Those of writing.
    fn save(&self, parked: &Parked, to: &mut dyn std::io::Write) -> Result<()> {
        let _ = (parked, to);
        Err(Error::unsupported(self.name(), "save"))
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidModel`] when it belongs to another engine, version or model, or is damaged.
    fn load(&mut self, from: &mut dyn std::io::Read) -> Result<Parked> {
        let _ = from;
        Err(Error::unsupported(self.name(), "load"))
    }
}
