//! An engine whose logits are a hash of the whole past: tokens, positions, image pixels and adapter weights. Whatever is
//! reused wrongly changes what it says.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use consort_core::*;

pub const VOCAB: usize = 97;
pub const END: TokenId = 0;
pub const IMAGE: TokenId = 96;

pub fn mix(mut x: u64, y: u64) -> u64 {
    x = (x ^ y).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 32)
}

pub fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |hash, &byte| mix(hash, u64::from(byte)))
}

#[derive(Clone, Copy)]
pub enum Fault {
    /// The step of this many tokens or more is refused.
    Refuse(usize, ErrorKind),
    Poison(usize),
    /// The whole batch fails if it has a step of this many tokens or more.
    Batch(usize),
    Nan(usize),
}

#[derive(Clone)]
pub struct Setup {
    pub capability: Capability,
    /// Tokens over all sequences and parked pasts.
    pub budget: usize,
    /// Calls that an image takes.
    pub image_calls: usize,
    /// Bytes that a parked past declares.
    pub parked_bytes: u64,
    /// What the engine says whatever it heard, then the end token.
    pub script: Option<Vec<TokenId>>,
    pub vocab: usize,
    pub image_token: Option<TokenId>,
    /// How long a batch takes at least.
    pub step_time: std::time::Duration,
    /// The batch at which the engine panics.
    pub panics_at: Option<usize>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            capability: Capability {
                image_input: true,
                max_sequences: 8,
                max_sequence_tokens: 2048,
                max_batch_tokens: 64,
                park: true,
                adapter_mode: AdapterMode::MixedBatch,
                adapter_hot_swap: true,
                logprobs: true,
                embeddings: true,
                batch_invariant: true,
                ..Capability::default()
            },
            budget: usize::MAX / 4,
            image_calls: 3,
            parked_bytes: 100,
            script: None,
            vocab: VOCAB,
            image_token: Some(IMAGE),
            step_time: std::time::Duration::ZERO,
            panics_at: None,
        }
    }
}

/// What a test sees of the engine, and how it holds it up.
#[derive(Default)]
pub struct Control {
    /// Each batch: (sequence, tokens appended, adapter digest).
    pub log: Mutex<Vec<Vec<(SeqId, usize, u64)>>>,
    pub sequences: AtomicUsize,
    pub parked: AtomicUsize,
    pub images: AtomicUsize,
    pub adapters: AtomicUsize,
    pub faults: Mutex<VecDeque<Fault>>,
    /// Batches that may begin; `None`: as many as one likes.
    permits: Mutex<Option<usize>>,
    changed: Condvar,
    /// Batches that have begun.
    pub begun: AtomicUsize,
}

impl Control {
    pub fn hold(&self) {
        *self.permits.lock().unwrap() = Some(0);
    }

    pub fn allow(&self, batches: usize) {
        let mut permits = self.permits.lock().unwrap();
        *permits = Some(permits.unwrap_or(0) + batches);
        self.changed.notify_all();
    }

    pub fn release(&self) {
        *self.permits.lock().unwrap() = None;
        self.changed.notify_all();
    }

    /// Waits until the engine stands before a batch that it may not begin.
    pub fn wait_begun(&self, batches: usize) {
        let begin = std::time::Instant::now();
        while self.begun.load(Ordering::SeqCst) < batches {
            assert!(begin.elapsed().as_secs() < 10, "the engine does not come to batch {batches}");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    fn enter(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let mut permits = self.permits.lock().unwrap();
        loop {
            match &mut *permits {
                None => return,
                Some(0) => permits = self.changed.wait(permits).unwrap(),
                Some(left) => {
                    *left -= 1;
                    return;
                }
            }
        }
    }

    pub fn counts(&self) -> (usize, usize) {
        (self.sequences.load(Ordering::SeqCst), self.parked.load(Ordering::SeqCst))
    }
}

struct Counted(Arc<Control>, fn(&Control) -> &AtomicUsize);

impl Counted {
    fn new(control: &Arc<Control>, which: fn(&Control) -> &AtomicUsize) -> Self {
        which(control).fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(control), which)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.1)(&self.0).fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Clone)]
struct State {
    hash: u64,
    tokens: usize,
    adapters: u64,
    /// Tokens generated so far, for a script: single-token steps that wanted logits.
    said: usize,
}

struct Sequence {
    state: State,
    _counted: Counted,
}

struct Kept {
    state: State,
    budget: Rc<std::cell::Cell<usize>>,
    _counted: Counted,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.budget.set(self.budget.get() - self.state.tokens);
    }
}

struct Picture {
    hash: u64,
    _counted: Counted,
}

pub struct HashEngine {
    setup: Setup,
    info: ModelInfo,
    control: Arc<Control>,
    sequences: HashMap<SeqId, Sequence>,
    adapters: HashMap<AdapterKey, u64>,
    jobs: HashMap<u64, (Arc<dyn ImageSource>, usize)>,
    done: HashMap<u64, Vec<StepOutcome>>,
    parked_tokens: Rc<std::cell::Cell<usize>>,
    next: u64,
}

impl HashEngine {
    pub fn new(setup: Setup, control: Arc<Control>) -> Self {
        let info = ModelInfo {
            name: "hash".into(),
            vocab_size: setup.vocab,
            hidden_size: 4,
            context_length: setup.capability.max_sequence_tokens,
            stop_tokens: vec![END],
            image_token: setup.image_token,
            digest: [7; 32],
            ..ModelInfo::default()
        };
        Self {
            setup,
            info,
            control,
            sequences: HashMap::new(),
            adapters: HashMap::new(),
            jobs: HashMap::new(),
            done: HashMap::new(),
            parked_tokens: Rc::default(),
            next: 0,
        }
    }

    fn insert(&mut self, state: State) -> Result<SeqId> {
        if self.sequences.len() >= self.setup.capability.max_sequences {
            return Err(Error::new(ErrorKind::Overloaded, "no slot"));
        }
        if self.used() + state.tokens > self.setup.budget {
            return Err(Error::new(ErrorKind::OutOfMemory, "no memory"));
        }
        self.next += 1;
        let _counted = Counted::new(&self.control, |c| &c.sequences);
        self.sequences.insert(SeqId(self.next), Sequence { state, _counted });
        Ok(SeqId(self.next))
    }

    fn used(&self) -> usize {
        self.parked_tokens.get() + self.sequences.values().map(|sequence| sequence.state.tokens).sum::<usize>()
    }

    fn row(&self, state: &State) -> Vec<f32> {
        let mut row: Vec<f32> = (0..self.setup.vocab as u64)
            .map(|token| (mix(state.hash, token ^ 0x5555) >> 40) as f32 / (1 << 24) as f32 * 4.0)
            .collect();
        row[END as usize] = -10.0;
        if let Some(image) = self.setup.image_token {
            row[image as usize] = -10.0;
        }
        if let Some(script) = &self.setup.script {
            row[script.get(state.said).copied().unwrap_or(END) as usize] = 50.0;
        }
        row
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let state = &self.sequences.get(&step.seq).ok_or_else(|| Error::new(ErrorKind::NotFound, "seq"))?.state;
        let mut state = state.clone();
        assert_eq!(step.positions.len(), step.input.len(), "one position per token");
        let items: Vec<u64> = match &step.input {
            StepInput::Tokens(tokens) => tokens.iter().map(|&token| u64::from(token)).collect(),
            StepInput::Image { image, tokens } => {
                let hash = image.payload::<Picture>()?.hash;
                tokens.clone().map(|index| mix(hash, index as u64) | 1 << 63).collect()
            }
        };
        if self.used() + items.len() > self.setup.budget {
            return Err(Error::new(ErrorKind::OutOfMemory, "no memory"));
        }
        for (item, position) in items.iter().zip(step.positions) {
            let place = (u64::from(position.t) << 40) ^ (u64::from(position.h) << 20) ^ u64::from(position.w);
            state.hash = mix(mix(mix(state.hash, *item), place), state.adapters);
        }
        state.tokens += items.len();
        assert!(state.tokens <= self.setup.capability.max_sequence_tokens);
        let output = match step.want {
            Want::Nothing => StepOutput::Nothing,
            Want::Pooled(_) => StepOutput::Pooled(vec![items.len() as f32, state.tokens as f32, 0.0, 1.0]),
            _ => {
                let row = self.row(&state);
                state.said += 1;
                StepOutput::Logits(Logits::new(self.setup.vocab, row)?)
            }
        };
        if let Some(sequence) = self.sequences.get_mut(&step.seq) {
            sequence.state = state;
        }
        Ok(output)
    }
}

impl Engine for HashEngine {
    fn name(&self) -> &'static str {
        "hash"
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn capability(&self) -> Capability {
        self.setup.capability
    }

    fn evidence(&self) -> DeviceEvidence {
        DeviceEvidence {
            backend: "hash".into(),
            device: Device::Cpu,
            device_name: "test".into(),
            placements: vec![],
            established_by: Proof::SingleDeviceKernels,
        }
    }

    fn memory(&self) -> MemoryReport {
        MemoryReport { kv_cache: self.used() as u64, ..MemoryReport::default() }
    }

    fn sequence_memory(&self, _: SeqId) -> Result<SequenceMemory> {
        Ok(SequenceMemory::default())
    }

    fn open(&mut self, adapters: &AdapterSet) -> Result<SeqId> {
        let mut hash = 1;
        for binding in adapters.bindings() {
            let weights = self.adapters.get(&binding.key).ok_or_else(|| Error::new(ErrorKind::NotFound, "adapter"))?;
            hash = mix(mix(hash, *weights), u64::from(binding.scale.to_bits()));
        }
        self.insert(State { hash: 3, tokens: 0, adapters: hash, said: 0 })
    }

    fn reserve(&mut self, _: SeqId, tokens: usize) -> Result<()> {
        if self.used() + tokens > self.setup.budget {
            return Err(Error::new(ErrorKind::OutOfMemory, "no memory to reserve"));
        }
        Ok(())
    }

    fn submit(&mut self, steps: &[Step<'_>]) -> Result<Ticket> {
        self.control.enter();
        std::thread::sleep(self.setup.step_time);
        let begun = self.control.begun.load(Ordering::SeqCst);
        assert!(self.setup.panics_at.is_none_or(|at| begun < at), "the engine panics, by test");
        let most = self.setup.capability.max_batch_tokens;
        assert!(!steps.is_empty() && steps.iter().map(|s| s.input.len()).sum::<usize>() <= most, "too many tokens");
        assert!(steps.iter().all(|s| !s.input.is_empty()));
        let adapters: Vec<u64> = steps.iter().map(|s| self.sequences[&s.seq].state.adapters).collect();
        if self.setup.capability.adapter_mode == AdapterMode::Grouped {
            assert!(adapters.windows(2).all(|pair| pair[0] == pair[1]), "one adapter set a batch");
        }
        let fault = self.control.faults.lock().unwrap().front().copied();
        let hits = |least: usize| steps.iter().any(|s| s.input.len() >= least);
        let mut least = usize::MAX;
        if let Some(fault) = fault {
            if matches!(fault, Fault::Batch(tokens) if hits(tokens)) {
                // It stays while the batch has neighbours, as a malformed step would.
                if steps.len() == 1 {
                    self.control.faults.lock().unwrap().pop_front();
                }
                return Err(Error::new(ErrorKind::InvalidRequest, "malformed batch"));
            }
            least = match fault {
                Fault::Refuse(tokens, _) | Fault::Poison(tokens) | Fault::Nan(tokens) => tokens,
                Fault::Batch(_) => usize::MAX,
            };
            if hits(least) {
                self.control.faults.lock().unwrap().pop_front();
            }
        }
        let mut record = Vec::new();
        let mut outcomes = Vec::new();
        for (step, adapters) in steps.iter().zip(adapters) {
            record.push((step.seq, step.input.len(), adapters));
            let hit = step.input.len() >= least;
            if hit {
                least = usize::MAX;
            }
            outcomes.push(match (hit, fault) {
                (true, Some(Fault::Refuse(_, kind))) => StepOutcome::Refused(Error::new(kind, "refused by test")),
                (true, Some(Fault::Poison(_))) => {
                    if let Some(sequence) = self.sequences.get_mut(&step.seq) {
                        sequence.state.hash ^= 1;
                    }
                    StepOutcome::Poisoned(Error::new(ErrorKind::Poisoned, "poisoned by test"))
                }
                (hit, _) => match self.step(step) {
                    Ok(StepOutput::Logits(_)) if hit => {
                        let row = vec![f32::NAN; self.setup.vocab];
                        StepOutcome::Done(StepOutput::Logits(Logits::new(self.setup.vocab, row)?))
                    }
                    Ok(output) => StepOutcome::Done(output),
                    Err(error) => StepOutcome::Refused(error),
                },
            });
        }
        self.control.log.lock().unwrap().push(record);
        self.next += 1;
        self.done.insert(self.next, outcomes);
        Ok(Ticket(self.next))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<StepOutcome>> {
        self.done.remove(&ticket.0).ok_or_else(|| Error::new(ErrorKind::NotFound, "ticket"))
    }

    fn park(&mut self, seq: SeqId) -> Result<Parked> {
        if !self.setup.capability.park {
            return Err(Error::unsupported("hash", "park"));
        }
        let state = self.sequences[&seq].state.clone();
        if self.used() + state.tokens > self.setup.budget {
            return Err(Error::new(ErrorKind::OutOfMemory, "no memory to park"));
        }
        let tokens = state.tokens;
        self.parked_tokens.set(self.parked_tokens.get() + tokens);
        let _counted = Counted::new(&self.control, |c| &c.parked);
        let kept = Kept { state, budget: Rc::clone(&self.parked_tokens), _counted };
        Ok(Parked::new(Rc::new(kept), tokens, self.setup.parked_bytes))
    }

    fn resume(&mut self, parked: &Parked) -> Result<SeqId> {
        let state = parked.payload::<Kept>()?.state.clone();
        self.insert(state)
    }

    fn release(&mut self, seq: SeqId) {
        self.sequences.remove(&seq);
    }

    fn begin_image(&mut self, image: Arc<dyn ImageSource>) -> Result<ImageJob> {
        if image.rgb().pixels.first() == Some(&255) {
            return Err(Error::new(ErrorKind::InvalidImage, "this picture is refused by test"));
        }
        self.next += 1;
        self.jobs.insert(self.next, (image, self.setup.image_calls));
        Ok(ImageJob(self.next))
    }

    fn advance_image(&mut self, job: ImageJob) -> Result<ImageProgress> {
        let (image, left) = self.jobs.get_mut(&job.0).ok_or_else(|| Error::new(ErrorKind::NotFound, "job"))?;
        *left = left.saturating_sub(1);
        if *left > 0 {
            return Ok(ImageProgress::Pending(job));
        }
        let (hash, grid) = (digest(image.rgb().pixels), image.grid());
        self.jobs.remove(&job.0);
        let _counted = Counted::new(&self.control, |c| &c.images);
        Ok(ImageProgress::Ready(ImageHandle::new(Rc::new(Picture { hash, _counted }), grid)))
    }

    fn cancel_image(&mut self, job: ImageJob) {
        self.jobs.remove(&job.0);
    }

    fn load_adapter(&mut self, source: &AdapterSource) -> Result<AdapterInfo> {
        // Whoever reads files, it is not the engine.
        let (AdapterFiles::Bytes { weights, .. } | AdapterFiles::Gguf(weights)) = &source.files else {
            return Err(Error::new(ErrorKind::InvalidAdapter, "bytes, please"));
        };
        if weights.is_empty() {
            return Err(Error::new(ErrorKind::InvalidAdapter, "no weights"));
        }
        assert!(self.adapters.insert(source.key.clone(), digest(weights)).is_none(), "a generation was reused");
        self.control.adapters.store(self.adapters.len(), Ordering::SeqCst);
        let invocation_tokens = weights.starts_with(b"activated").then(|| vec![1, 2]);
        Ok(AdapterInfo { key: source.key.clone(), rank: 1, layers: 1, bytes: 1, invocation_tokens })
    }

    fn unload_adapter(&mut self, key: &AdapterKey) -> Result<()> {
        let gone = self.adapters.remove(key).map(|_| ());
        self.control.adapters.store(self.adapters.len(), Ordering::SeqCst);
        gone.ok_or_else(|| Error::new(ErrorKind::NotFound, "adapter"))
    }
}
