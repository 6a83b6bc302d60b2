//! The engine: sequences, batches, and the seam's calls.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use consort_core::{
    AdapterBinding, AdapterInfo, AdapterKey, AdapterMode, AdapterSet, AdapterSource, Capability, DeviceEvidence,
    Engine, Error, ErrorKind, ErrorStatus, ImageHandle, ImageJob, ImageProgress, ImageSource, MemoryReport, ModelInfo,
    Parked, Result, SeqId, SequenceMemory, Step, StepOutcome, Ticket,
};

use crate::adapter::Adapter;
use crate::config::LlamacppConfig;
use crate::image::{Pending, begin};
use crate::load::{Loaded, load};
use crate::memory::{Counted, Kind, Ledger, Pool};
use crate::past::{Past, Returned, Slot};
use crate::step::{too_long, unknown};

pub(crate) const NAME: &str = "llamacpp";

/// llama.cpp behind the seam. See the [crate's front page](crate).
#[derive(Debug)]
pub struct LlamacppEngine {
    /// Tells this engine's handles from another's.
    pub(crate) id: u64,
    pub(crate) sequences: HashMap<SeqId, Sequence>,
    adapters: HashMap<AdapterKey, Rc<Adapter>>,
    images: HashMap<u64, Pending>,
    finished: HashMap<u64, Vec<StepOutcome>>,
    /// Slots of the context that nobody holds, lowest first: few are in use, and they lie together.
    free: BTreeSet<u32>,
    returned: Returned,
    pub(crate) pool: Pool,
    pub(crate) capability: Capability,
    max_image_patches: usize,
    next_id: u64,
    /// How often every past was lost: what was parked before the last time is gone.
    pub(crate) losses: u64,
    pub(crate) loaded: Loaded,
}

/// A sequence: its past, and the adapters that it opened with.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) past: Past,
    pub(crate) adapters: AdapterSet,
    /// The weights of each binding, in the same order.
    pub(crate) weights: Vec<Rc<Adapter>>,
    /// Its state is unknown after a failure.
    pub(crate) poisoned: bool,
}

/// What an [`ImageHandle`] holds.
#[derive(Debug)]
pub(crate) struct EncodedImage {
    pub(crate) engine: u64,
    /// `[tokens, hidden]`.
    pub(crate) embeddings: Vec<f32>,
    _counted: Counted,
}

/// What a [`Parked`] holds.
#[derive(Debug)]
struct ParkedPast {
    engine: u64,
    losses: u64,
    past: std::cell::RefCell<Past>,
    adapters: AdapterSet,
}

impl LlamacppEngine {
    /// Opens the model's files, checks them, and makes ready to compute.
    ///
    /// # Errors
    /// [`ErrorKind::DevicePolicy`] where no device of this build and this machine is what the policy asks for, or an operation
    /// was seen elsewhere; [`ErrorKind::NotFound`] and [`ErrorKind::Io`] for files; [`ErrorKind::InvalidModel`] and
    /// [`ErrorKind::Unsupported`], which name the tensor or key; [`ErrorKind::OutOfMemory`] where the context does not fit;
    /// [`ErrorKind::InvalidConfig`], also for a llama.cpp that was compiled without this processor's instructions.
    #[allow(clippy::needless_pass_by_value)] // A configuration is made for one engine.
    pub fn load(config: LlamacppConfig) -> Result<Self> {
        static ENGINES: AtomicU64 = AtomicU64::new(0);
        let loaded = load(&config).map_err(|error| error.with_backend(NAME).with_operation("llamacpp::load"))?;
        let (cells, slots) = (loaded.context.cells(), loaded.context.sequences());
        let (cell_bytes, state_bytes) = (loaded.shape.cell_bytes(config.cache), loaded.shape.state_bytes());
        let allocated =
            cell_bytes.saturating_mul(cells as u64).saturating_add(state_bytes.saturating_mul(u64::from(slots)));
        let pool = Pool {
            ledger: Rc::new(Ledger::default()),
            cell_bytes,
            state_bytes,
            max_cells: cells.min(config.max_total_tokens),
            budget: config.sequence_memory_budget.map_or(allocated, |budget| budget.min(allocated)),
        };
        let capability = Capability {
            image_input: loaded.vision.is_some(),
            max_sequences: config.max_sequences,
            max_sequence_tokens: config.max_sequence_tokens.min(loaded.shape.context).min(pool.max_cells),
            max_batch_tokens: config.max_batch_tokens.min(loaded.context.rows()),
            fork: true,
            fork_is_shallow: true,
            park: config.max_parked > 0,
            adapter_mode: AdapterMode::Grouped,
            adapter_hot_swap: true,
            activated_adapters: true,
            prompt_logprobs: true,
            logprobs: true,
            embeddings: true,
            logit_tolerance: tolerance(&loaded.info.weight_type, config.cache),
            ..Capability::default()
        };
        Ok(Self {
            id: ENGINES.fetch_add(1, Ordering::Relaxed),
            sequences: HashMap::new(),
            adapters: HashMap::new(),
            images: HashMap::new(),
            finished: HashMap::new(),
            free: (0..slots).collect(),
            returned: Returned::default(),
            pool,
            capability,
            max_image_patches: config.max_image_patches,
            next_id: 0,
            losses: 0,
            loaded,
        })
    }

    /// The embeddings of an encoded image, `[tokens, hidden]`: what stands in a sequence in place of token embeddings.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for an image that another engine encoded.
    pub fn image_embeddings<'a>(&self, image: &'a ImageHandle) -> Result<&'a [f32]> {
        self.image(image, &(0..image.tokens())).map_err(|error| error.with_backend(NAME))
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Clears the slots that were given back.
    fn reap(&mut self) {
        let returned = std::mem::take(&mut *self.returned.borrow_mut());
        for slot in returned {
            if self.loaded.context.clear(slot) {
                self.free.insert(slot);
            } else {
                tracing::error!(slot, "llama.cpp does not clear a sequence; its slot is lost");
            }
        }
        self.loaded.context.forget_unused_adapters();
    }

    /// A slot for a sequence. Parked pasts leave as many as may be open.
    fn slot_for_sequence(&mut self) -> Result<Slot> {
        self.reap();
        let overloaded = |open: usize| {
            Error::new(
                ErrorKind::Overloaded,
                format!("all {open} sequences are open: release one, or raise max_sequences"),
            )
            .with_backend(NAME)
        };
        if self.sequences.len() >= self.capability.max_sequences {
            return Err(overloaded(self.sequences.len()));
        }
        let number = self.free.pop_first().ok_or_else(|| overloaded(self.sequences.len()))?;
        Ok(Slot::new(number, &self.returned))
    }

    /// A slot for a parked past, from the other end.
    fn slot_for_past(&mut self) -> Result<Slot> {
        self.reap();
        let kept = self.capability.max_sequences - self.sequences.len();
        if self.free.len() <= kept {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                "as many pasts are parked as there is room for: drop one, or raise max_parked",
            )
            .with_backend(NAME)
            .with_operation("park"));
        }
        let full = || Error::new(ErrorKind::OutOfMemory, "no slot is free").with_backend(NAME);
        Ok(Slot::new(self.free.pop_last().ok_or_else(full)?, &self.returned))
    }

    fn insert(&mut self, sequence: Sequence) -> SeqId {
        let seq = SeqId(self.next_id());
        self.sequences.insert(seq, sequence);
        seq
    }

    pub(crate) fn sequence(&self, seq: SeqId) -> Result<&Sequence> {
        self.sequences.get(&seq).ok_or_else(|| unknown(seq))
    }

    /// The weights of a set's adapters. What `held` has of them it hands on, even if they are no longer loaded.
    fn resolve(&self, set: &AdapterSet, held: &[Rc<Adapter>]) -> Result<Vec<Rc<Adapter>>> {
        let find = |binding: &AdapterBinding| {
            let held = held.iter().find(|weights| weights.info.key == binding.key);
            held.or_else(|| self.adapters.get(&binding.key)).map(Rc::clone).ok_or_else(|| {
                Error::new(ErrorKind::NotFound, "this generation of the adapter is not loaded")
                    .with_backend(NAME)
                    .with_context("adapter", &*binding.key.id)
                    .with_context("generation", binding.key.generation.to_string())
            })
        };
        set.bindings().iter().map(find).collect()
    }

    /// The weights with which a past of these adapters can go on under `set`.
    fn agree(
        &self,
        (len, adapters, held): (usize, &AdapterSet, &[Rc<Adapter>]),
        set: &AdapterSet,
        operation: &'static str,
    ) -> Result<Vec<Rc<Adapter>>> {
        let agreement = adapters.agreement(set);
        if agreement < len {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "the past has {len} tokens, and its adapters and the new ones differ from token {agreement} on: share \
                     a shorter past, or open a new sequence"
                ),
            )
            .with_backend(NAME)
            .with_operation(operation));
        }
        self.resolve(set, held).map_err(|error| error.with_operation(operation))
    }

    /// A second sequence with the past of `seq` and these adapters.
    fn fork_as(&mut self, seq: SeqId, set: Option<&AdapterSet>, operation: &'static str) -> Result<SeqId> {
        let source = self.sequence(seq)?;
        if source.poisoned {
            return Err(Error::new(ErrorKind::Poisoned, "this sequence's state is unknown: release it"));
        }
        let (adapters, weights) = match set {
            None => (source.adapters.clone(), source.weights.clone()),
            Some(set) => {
                let held = (source.past.len(), &source.adapters, source.weights.as_slice());
                (set.clone(), self.agree(held, set, operation)?)
            }
        };
        self.pool.admit(0, 0).map_err(|error| error.with_backend(NAME))?;
        let slot = self.slot_for_sequence()?;
        let source = self.sequences.get_mut(&seq).ok_or_else(|| unknown(seq))?;
        self.loaded.context.copy(source.past.slot.number, slot.number);
        let past = source.past.share(slot, &self.pool);
        Ok(self.insert(Sequence { past, adapters, weights, poisoned: false }))
    }

    fn resume_as(&mut self, parked: &Parked, set: Option<&AdapterSet>, operation: &'static str) -> Result<SeqId> {
        let kept: &ParkedPast = parked.payload()?;
        if kept.engine != self.id {
            return Err(Error::new(ErrorKind::InvalidRequest, "this past was parked by another engine")
                .with_backend(NAME)
                .with_operation(operation));
        }
        if kept.losses != self.losses {
            return Err(Error::new(ErrorKind::Poisoned, "this past was lost when a batch failed: replay it")
                .with_backend(NAME)
                .with_operation(operation));
        }
        let set = set.unwrap_or(&kept.adapters);
        let len = kept.past.borrow().len();
        let weights = self.agree((len, &kept.adapters, &[]), set, operation)?;
        let slot = self.slot_for_sequence()?;
        let mut source = kept.past.borrow_mut();
        self.loaded.context.copy(source.slot.number, slot.number);
        let past = source.share(slot, &self.pool);
        drop(source);
        Ok(self.insert(Sequence { past, adapters: set.clone(), weights, poisoned: false }))
    }
}

/// How far two ways of computing the same thing may be apart. Products in F32 differ by the order of their sums; where
/// weights are quantized, activations are rounded to eight bits, and small differences move them to the next step.
fn tolerance(weights: &str, cache: crate::config::CacheType) -> f32 {
    match (weights, cache) {
        ("F32", crate::config::CacheType::F32) => 1e-3,
        ("F32" | "F16" | "BF16", _) => 0.02,
        _ => 1.0,
    }
}

impl Engine for LlamacppEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn info(&self) -> &ModelInfo {
        &self.loaded.info
    }

    fn capability(&self) -> Capability {
        self.capability
    }

    fn evidence(&self) -> DeviceEvidence {
        self.loaded.evidence.clone()
    }

    /// What was allocated and is not used counts as scratch. The buffers of the library's graphs are not told by it.
    fn memory(&self) -> MemoryReport {
        let (pool, ledger) = (&self.pool, &self.pool.ledger);
        let (kv_cache, recurrent_state) = (pool.cache(ledger.cells()), pool.states(ledger.states()));
        let context = &self.loaded.context;
        let allocated = pool.cache(context.cells()).saturating_add(pool.states(context.sequences() as usize));
        MemoryReport {
            weights: self.loaded.bytes,
            kv_cache,
            recurrent_state,
            adapters: ledger.adapters(),
            images: ledger.images(),
            scratch: allocated.saturating_sub(kv_cache + recurrent_state),
            sequence_budget: Some(pool.budget),
            ..MemoryReport::default()
        }
    }

    fn sequence_memory(&self, seq: SeqId) -> Result<SequenceMemory> {
        Ok(self.sequence(seq)?.past.memory(&self.pool))
    }

    fn open(&mut self, adapters: &AdapterSet) -> Result<SeqId> {
        let weights = self.resolve(adapters, &[])?;
        self.pool.admit(1, 1).map_err(|error| error.with_backend(NAME).with_operation("open"))?;
        let slot = self.slot_for_sequence()?;
        let past = Past::empty(slot, &self.pool);
        Ok(self.insert(Sequence { past, adapters: adapters.clone(), weights, poisoned: false }))
    }

    fn reserve(&mut self, seq: SeqId, tokens: usize) -> Result<()> {
        self.reap();
        let limit = self.capability.max_sequence_tokens;
        let sequence = self.sequences.get_mut(&seq).ok_or_else(|| unknown(seq))?;
        let len = sequence.past.len();
        if len.saturating_add(tokens) > limit {
            return Err(Error::new(ErrorKind::OutOfMemory, "the sequence cannot hold that many tokens")
                .with_backend(NAME)
                .with_status(ErrorStatus::Permanent)
                .with_source(too_long(len, tokens, limit)));
        }
        sequence.past.grow(&self.pool, tokens).map_err(|error| error.with_backend(NAME))
    }

    fn submit(&mut self, steps: &[Step<'_>]) -> Result<Ticket> {
        self.reap();
        Step::check_batch(steps, self.capability.max_batch_tokens).map_err(|error| error.with_backend(NAME))?;
        let mut outcomes: Vec<Option<StepOutcome>> = Vec::with_capacity(steps.len());
        let mut running = Vec::with_capacity(steps.len());
        for (index, step) in steps.iter().enumerate() {
            outcomes.push(match self.prepare(index, step) {
                Ok(one) => {
                    running.push(one);
                    None
                }
                Err(error) if error.kind() == ErrorKind::Poisoned => {
                    Some(StepOutcome::Poisoned(error.with_backend(NAME)))
                }
                Err(error) => Some(StepOutcome::Refused(error.with_backend(NAME))),
            });
        }
        for (index, outcome) in self.run(running) {
            outcomes[index] = Some(match outcome {
                StepOutcome::Refused(error) => StepOutcome::Refused(error.with_backend(NAME)),
                StepOutcome::Poisoned(error) => StepOutcome::Poisoned(error.with_backend(NAME)),
                done @ StepOutcome::Done(_) => done,
            });
        }
        let ticket = self.next_id();
        self.finished.insert(ticket, outcomes.into_iter().flatten().collect());
        Ok(Ticket(ticket))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<StepOutcome>> {
        self.finished.remove(&ticket.0).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "this ticket was collected already, or never given")
                .with_backend(NAME)
                .with_operation("collect")
        })
    }

    fn fork(&mut self, seq: SeqId) -> Result<SeqId> {
        self.fork_as(seq, None, "fork")
    }

    fn fork_with(&mut self, seq: SeqId, adapters: &AdapterSet) -> Result<SeqId> {
        self.fork_as(seq, Some(adapters), "fork_with")
    }

    fn park(&mut self, seq: SeqId) -> Result<Parked> {
        if !self.capability.park {
            return Err(Error::unsupported(NAME, "park"));
        }
        if self.sequence(seq)?.poisoned {
            return Err(Error::new(ErrorKind::Poisoned, "this sequence's state is unknown: release it"));
        }
        let slot = self.slot_for_past()?;
        let source = self.sequences.get_mut(&seq).ok_or_else(|| unknown(seq))?;
        let (bytes, tokens) = (source.past.copy_bytes(&self.pool), source.past.len());
        self.loaded.context.copy(source.past.slot.number, slot.number);
        let past = source.past.share(slot, &self.pool);
        let adapters = source.adapters.clone();
        let kept = ParkedPast { engine: self.id, losses: self.losses, past: past.into(), adapters };
        Ok(Parked::new(Rc::new(kept), tokens, bytes))
    }

    fn resume(&mut self, parked: &Parked) -> Result<SeqId> {
        self.resume_as(parked, None, "resume")
    }

    fn resume_with(&mut self, parked: &Parked, adapters: &AdapterSet) -> Result<SeqId> {
        self.resume_as(parked, Some(adapters), "resume_with")
    }

    fn release(&mut self, seq: SeqId) {
        self.sequences.remove(&seq);
    }

    fn begin_image(&mut self, image: Arc<dyn ImageSource>) -> Result<ImageJob> {
        let Some((_, shape)) = &self.loaded.vision else {
            return Err(Error::unsupported(NAME, "image input without a vision tower"));
        };
        let pending = begin(shape, image.as_ref(), self.max_image_patches)
            .map_err(|error| error.with_backend(NAME).with_operation("begin_image"))?;
        let job = self.next_id();
        self.images.insert(job, pending);
        Ok(ImageJob(job))
    }

    /// Encodes the whole image: the library does not stop on the way.
    fn advance_image(&mut self, job: ImageJob) -> Result<ImageProgress> {
        let (Some((vision, shape)), Some(pending)) = (&mut self.loaded.vision, self.images.remove(&job.0)) else {
            return Err(Error::new(ErrorKind::NotFound, "this image is done or was given up").with_backend(NAME));
        };
        let told = |error: Error| error.with_backend(NAME).with_operation("advance_image");
        let (embeddings, made) = vision.encode(&pending.frames, pending.size).map_err(told)?;
        let grid = pending.grid;
        let merge = shape.merge as u32;
        if made != [grid.w / merge, grid.h / merge] || embeddings.len() != grid.tokens() * self.loaded.shape.hidden {
            return Err(told(Error::new(
                ErrorKind::InvalidImage,
                format!("llama.cpp makes {made:?} columns and rows of tokens of this image, whose grid is {grid:?}"),
            )));
        }
        let counted = Counted::new(&self.pool.ledger, Kind::Image, 4 * embeddings.len() as u64);
        let payload = EncodedImage { engine: self.id, embeddings, _counted: counted };
        Ok(ImageProgress::Ready(ImageHandle::new(Rc::new(payload), grid)))
    }

    fn cancel_image(&mut self, job: ImageJob) {
        self.images.remove(&job.0);
    }

    fn load_adapter(&mut self, source: &AdapterSource) -> Result<AdapterInfo> {
        if self.adapters.contains_key(&source.key) {
            return Err(Error::new(ErrorKind::InvalidRequest, "this generation of the adapter is loaded already")
                .with_backend(NAME)
                .with_operation("load_adapter")
                .with_context("adapter", &*source.key.id));
        }
        let adapter =
            Adapter::load(source, &self.loaded.model, &self.loaded.shape, &self.pool.ledger).map_err(|error| {
                error.with_backend(NAME).with_operation("load_adapter").with_context("adapter", &*source.key.id)
            })?;
        let info = adapter.info.clone();
        self.adapters.insert(source.key.clone(), Rc::new(adapter));
        Ok(info)
    }

    fn unload_adapter(&mut self, key: &AdapterKey) -> Result<()> {
        self.adapters.remove(key).map(drop).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "this generation of the adapter is not loaded")
                .with_backend(NAME)
                .with_operation("unload_adapter")
                .with_context("adapter", &*key.id)
        })
    }
}
