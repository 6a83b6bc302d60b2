//! The engine: sequences, batches, and the seam's calls.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use consort_core::{
    AdapterBinding, AdapterInfo, AdapterKey, AdapterMode, AdapterSet, AdapterSource, Capability, DeviceEvidence,
    Engine, Error, ErrorKind, ImageHandle, ImageJob, ImageProgress, ImageSource, MemoryReport, ModelInfo, Parked,
    Result, SeqId, SequenceMemory, Step, StepOutcome, Ticket,
};

use crate::config::NativeConfig;
use crate::evidence::evidence;
use crate::kernels::KernelSet;
use crate::kv::PageShape;
use crate::load::{Loaded, load};
use crate::lora::Adapter;
use crate::memory::{Counted, Kind, Ledger};
use crate::model::vision::Encoding;
use crate::sequence::{Pool, Sequence};
use crate::state::StateShape;
use crate::step::{Accepted, too_long, unknown};
use crate::weights::Compute;

pub(crate) const NAME: &str = "native";
/// Above this many threads a processor's memory is busy anyway; it also bounds what a configuration can ask for.
const MAX_THREADS: usize = 64;

/// The reference engine. See the [crate's front page](crate).
pub struct NativeEngine {
    /// Tells this engine's handles from another's.
    pub(crate) id: u64,
    pub(crate) model: Loaded,
    pub(crate) capability: Capability,
    max_image_patches: usize,
    evidence: DeviceEvidence,
    pub(crate) compute: Compute,
    /// The threads, when there are several.
    pub(crate) threads: Option<rayon::ThreadPool>,
    pub(crate) pool: Pool,
    pub(crate) sequences: HashMap<SeqId, Sequence>,
    adapters: HashMap<AdapterKey, Arc<Adapter>>,
    images: HashMap<u64, Encoding>,
    finished: HashMap<u64, Vec<StepOutcome>>,
    next_id: u64,
}

/// What an [`ImageHandle`] holds.
pub(crate) struct EncodedImage {
    pub(crate) engine: u64,
    /// `[tokens, hidden]`.
    pub(crate) embeddings: Vec<f32>,
    _counted: Counted,
}

/// What a [`Parked`] holds.
struct ParkedPast {
    engine: u64,
    sequence: Sequence,
}

impl NativeEngine {
    /// Opens the model's files and makes ready to compute. Weights stay in the files' mappings.
    ///
    /// # Errors
    /// [`ErrorKind::DevicePolicy`] unless the policy names the processor; [`ErrorKind::NotFound`] and [`ErrorKind::Io`] for
    /// files; [`ErrorKind::InvalidModel`], which names the tensor or key, and [`ErrorKind::Unsupported`], which does
    /// too, for what this engine does not compute: other architectures, rotary scaling, sliding windows, routers that are no
    /// softmax, more than one multi-token prediction block, weight types that there are no kernels for;
    /// [`ErrorKind::InvalidConfig`].
    #[allow(clippy::needless_pass_by_value)] // A configuration is made for one engine.
    pub fn load(config: NativeConfig) -> Result<Self> {
        static ENGINES: AtomicU64 = AtomicU64::new(0);
        let model = load(&config).map_err(|error| error.with_backend(NAME).with_operation("native::load"))?;
        let kernels = KernelSet::detect()?;
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = config.threads.map_or_else(cores, NonZeroUsize::get).clamp(1, MAX_THREADS);
        let evidence = evidence(kernels, threads, &model.text.shape, model.vision.is_some());
        config.policy.admit(&evidence)?;

        let pool = Pool {
            page: PageShape::new(&model.text.shape),
            state: StateShape::new(&model.text.shape),
            ledger: Arc::new(Ledger::default()),
            budget: config.sequence_memory_budget,
        };
        let capability = Capability {
            image_input: model.vision.is_some(),
            max_sequences: config.max_sequences,
            max_sequence_tokens: config.max_sequence_tokens.min(model.text.shape.context),
            max_batch_tokens: config.max_batch_tokens,
            fork: true,
            fork_is_shallow: true,
            park: true,
            adapter_mode: AdapterMode::MixedBatch,
            adapter_hot_swap: true,
            activated_adapters: true,
            prompt_logprobs: true,
            logprobs: true,
            embeddings: true,
            batch_invariant: true,
            ..Capability::default()
        };
        let pool_of_threads = |count| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(count)
                .thread_name(|index| format!("consort-native-{index}"))
                .build()
                .map_err(|source| {
                    Error::new(ErrorKind::Unexpected, "the threads could not be started")
                        .with_backend(NAME)
                        .with_operation("native::load")
                        .with_source(source)
                })
        };
        Ok(Self {
            id: ENGINES.fetch_add(1, Ordering::Relaxed),
            model,
            capability,
            max_image_patches: config.max_image_patches,
            evidence,
            compute: Compute { kernels, threads, activations: config.activations },
            threads: (threads > 1).then(|| pool_of_threads(threads)).transpose()?,
            pool,
            sequences: HashMap::new(),
            adapters: HashMap::new(),
            images: HashMap::new(),
            finished: HashMap::new(),
            next_id: 0,
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

    fn insert(&mut self, sequence: Sequence) -> Result<SeqId> {
        self.admit_sequence()?;
        let seq = SeqId(self.next_id());
        self.sequences.insert(seq, sequence);
        Ok(seq)
    }

    /// Whether one more sequence may be open.
    fn admit_sequence(&self) -> Result<()> {
        if self.sequences.len() >= self.capability.max_sequences {
            return Err(Error::new(
                ErrorKind::Overloaded,
                format!("all {} sequences are open: release one, or raise max_sequences", self.sequences.len()),
            )
            .with_backend(NAME));
        }
        self.pool.admit(1).map_err(|error| error.with_backend(NAME))
    }

    pub(crate) fn sequence(&self, seq: SeqId) -> Result<&Sequence> {
        self.sequences.get(&seq).ok_or_else(|| unknown(seq))
    }

    /// The weights of a set's adapters. What `source` has of them it hands on, even if they are no longer loaded.
    fn resolve(&self, set: &AdapterSet, source: Option<&Sequence>) -> Result<Vec<Arc<Adapter>>> {
        let held = |key: &AdapterKey| source?.weights().iter().find(|weights| weights.info.key == *key);
        let find = |binding: &AdapterBinding| match held(&binding.key).or_else(|| self.adapters.get(&binding.key)) {
            Some(adapter) => Ok(Arc::clone(adapter)),
            None => Err(Error::new(ErrorKind::NotFound, "this generation of the adapter is not loaded")
                .with_backend(NAME)
                .with_context("adapter", &*binding.key.id)
                .with_context("generation", binding.key.generation.to_string())),
        };
        set.bindings().iter().map(find).collect()
    }

    /// A sequence with the past of `source` and other adapters.
    fn continue_with(&self, source: &Sequence, set: &AdapterSet, operation: &'static str) -> Result<Sequence> {
        let (length, agreement) = (source.len(), source.adapters().agreement(set));
        if agreement < length {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "the past has {length} tokens, and its adapters and the new ones differ from token {agreement} on: \
                     share a shorter past, or open a new sequence"
                ),
            )
            .with_backend(NAME)
            .with_operation(operation));
        }
        let weights = self.resolve(set, Some(source)).map_err(|error| error.with_operation(operation))?;
        Ok(source.share_with(set.clone(), weights))
    }

    fn parked<'a>(&self, parked: &'a Parked, operation: &'static str) -> Result<&'a Sequence> {
        let past: &ParkedPast = parked.payload()?;
        if past.engine != self.id {
            return Err(Error::new(ErrorKind::InvalidRequest, "this past was parked by another engine")
                .with_backend(NAME)
                .with_operation(operation));
        }
        Ok(&past.sequence)
    }
}

impl Engine for NativeEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn info(&self) -> &ModelInfo {
        &self.model.info
    }

    fn capability(&self) -> Capability {
        self.capability
    }

    fn evidence(&self) -> DeviceEvidence {
        self.evidence.clone()
    }

    fn memory(&self) -> MemoryReport {
        let ledger = &self.pool.ledger;
        MemoryReport {
            weights: self.model.bytes,
            kv_cache: ledger.held(Kind::Cache),
            recurrent_state: ledger.held(Kind::State),
            adapters: ledger.held(Kind::Adapter),
            images: ledger.held(Kind::Image),
            scratch: 0,
            sequence_budget: self.pool.budget,
            ..MemoryReport::default()
        }
    }

    fn sequence_memory(&self, seq: SeqId) -> Result<SequenceMemory> {
        Ok(self.sequence(seq)?.memory(&self.pool))
    }

    fn open(&mut self, adapters: &AdapterSet) -> Result<SeqId> {
        let weights = self.resolve(adapters, None)?;
        self.insert(Sequence::new(adapters.clone(), weights))
    }

    fn reserve(&mut self, seq: SeqId, tokens: usize) -> Result<()> {
        let limit = self.capability.max_sequence_tokens;
        let sequence = self.sequences.get_mut(&seq).ok_or_else(|| unknown(seq))?;
        if sequence.len().saturating_add(tokens) > limit {
            let error = too_long(sequence.len(), tokens, limit);
            return Err(Error::new(ErrorKind::OutOfMemory, "the sequence cannot hold that many tokens")
                .with_backend(NAME)
                .with_status(consort_core::ErrorStatus::Permanent)
                .with_source(error));
        }
        sequence.grow(&self.pool, tokens).map_err(|error| error.with_backend(NAME))
    }

    fn submit(&mut self, steps: &[Step<'_>]) -> Result<Ticket> {
        Step::check_batch(steps, self.capability.max_batch_tokens).map_err(|error| error.with_backend(NAME))?;
        let mut outcomes: Vec<Option<StepOutcome>> = Vec::with_capacity(steps.len());
        let mut accepted = Vec::with_capacity(steps.len());
        for (index, step) in steps.iter().enumerate() {
            outcomes.push(match self.prepare(step) {
                Ok(()) => {
                    accepted.push(Accepted { index, step });
                    None
                }
                Err(error) => Some(StepOutcome::Refused(error.with_backend(NAME))),
            });
        }
        if !accepted.is_empty() {
            let outputs = self.run(&accepted)?;
            for (Accepted { index, .. }, output) in accepted.iter().zip(outputs) {
                outcomes[*index] = Some(StepOutcome::Done(output));
            }
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
        let twin = self.sequence(seq)?.share();
        self.insert(twin)
    }

    fn fork_with(&mut self, seq: SeqId, adapters: &AdapterSet) -> Result<SeqId> {
        let twin = self.continue_with(self.sequence(seq)?, adapters, "fork_with")?;
        self.insert(twin)
    }

    fn park(&mut self, seq: SeqId) -> Result<Parked> {
        let sequence = self.sequence(seq)?;
        let bytes = sequence.parked_bytes(&self.pool);
        let (sequence, tokens) = (sequence.share_with(sequence.adapters().clone(), Vec::new()), sequence.len());
        Ok(Parked::new(Rc::new(ParkedPast { engine: self.id, sequence }), tokens, bytes))
    }

    fn resume(&mut self, parked: &Parked) -> Result<SeqId> {
        let past = self.parked(parked, "resume")?;
        let twin = self.continue_with(past, past.adapters(), "resume")?;
        self.insert(twin)
    }

    fn resume_with(&mut self, parked: &Parked, adapters: &AdapterSet) -> Result<SeqId> {
        let twin = self.continue_with(self.parked(parked, "resume_with")?, adapters, "resume_with")?;
        self.insert(twin)
    }

    fn release(&mut self, seq: SeqId) {
        self.sequences.remove(&seq);
    }

    fn begin_image(&mut self, image: Arc<dyn ImageSource>) -> Result<ImageJob> {
        let Some(vision) = &self.model.vision else {
            return Err(Error::unsupported(NAME, "image input without a vision tower"));
        };
        let encoding = vision
            .begin(image.as_ref(), self.max_image_patches)
            .map_err(|error| error.with_backend(NAME).with_operation("begin_image"))?;
        let job = self.next_id();
        self.images.insert(job, encoding);
        Ok(ImageJob(job))
    }

    fn advance_image(&mut self, job: ImageJob) -> Result<ImageProgress> {
        let missing = || Error::new(ErrorKind::NotFound, "this image is done or was given up").with_backend(NAME);
        let (Some(vision), Some(mut encoding)) = (&self.model.vision, self.images.remove(&job.0)) else {
            return Err(missing());
        };
        let compute = self.compute;
        let mut advance = || vision.advance(compute, &mut encoding);
        let done = match &self.threads {
            Some(threads) => threads.install(advance),
            None => advance(),
        };
        Ok(match done {
            None => {
                self.images.insert(job.0, encoding);
                ImageProgress::Pending(job)
            }
            Some(embeddings) => {
                let counted = Counted::new(&self.pool.ledger, Kind::Image, 4 * embeddings.len() as u64);
                let payload = EncodedImage { engine: self.id, embeddings, _counted: counted };
                ImageProgress::Ready(ImageHandle::new(Rc::new(payload), encoding.grid()))
            }
        })
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
        let adapter = Adapter::load(source, &self.model.text.shape, &self.pool.ledger).map_err(|error| {
            error.with_backend(NAME).with_operation("load_adapter").with_context("adapter", &*source.key.id)
        })?;
        let info = adapter.info.clone();
        self.adapters.insert(source.key.clone(), Arc::new(adapter));
        Ok(info)
    }

    fn unload_adapter(&mut self, key: &AdapterKey) -> Result<()> {
        let missing = || {
            Error::new(ErrorKind::NotFound, "this generation of the adapter is not loaded")
                .with_backend(NAME)
                .with_operation("unload_adapter")
                .with_context("adapter", &*key.id)
        };
        self.adapters.remove(key).map(drop).ok_or_else(missing)
    }
}
