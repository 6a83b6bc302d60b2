//! A toy model that notices everything: its logits are a hash of all that it was told.
//!
//! Another token, position, image, adapter or scale anywhere in the past gives other logits, and the same past gives the
//! same bits whatever shares its batch. It declares nearly every capability and costs nothing, so the suite can be
//! tried on it, and the saboteurs can be tried on the suite, without a model.

mod held;
mod image;
mod past;

use std::collections::HashMap;
use std::io::Read;
use std::rc::Rc;
use std::sync::Arc;

use consort_core::{
    AdapterInfo, AdapterKey, AdapterMode, AdapterSet, AdapterSource, Capability, Device, DeviceEvidence, Engine, Error,
    ErrorKind, ImageHandle, ImageJob, ImageProgress, ImageSource, Logits, MemoryReport, ModelInfo, Parked, Placement,
    Pooling, Position, Proof, Result, SeqId, SequenceMemory, Step, StepInput, StepOutcome, StepOutput, Ticket, TokenId,
    Want,
};

use self::held::{Counter, Held};
use self::image::{Encoded, Job};
use self::past::{NODE_BYTES, Past, STATE_BYTES};
use crate::activation::contents;
use crate::fixture::{Setup, mix};

const NAME: &str = "hash";
const MAX_SEQUENCES: usize = 12;
const MAX_TOKENS: usize = 4096;
const HIDDEN: usize = 16;

fn error(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(kind, message).with_backend(NAME)
}

/// The toy engine.
pub struct HashEngine {
    info: ModelInfo,
    budget: Option<u64>,
    sequences: HashMap<SeqId, Past>,
    finished: HashMap<u64, Vec<StepOutcome>>,
    adapters: HashMap<AdapterKey, Rc<Weights>>,
    jobs: HashMap<u64, Job>,
    next_id: u64,
    kv: Counter,
    states: Counter,
    images: Counter,
    adapter_bytes: Counter,
}

/// A loaded adapter: what it does to the hash.
struct Weights {
    key: AdapterKey,
    hash: u64,
    _held: Held,
}

impl HashEngine {
    /// A toy over `vocab_size` tokens, the first of which ends a reply and the last of which stands for images.
    ///
    /// # Errors
    /// A vocabulary of fewer than four tokens; a policy that does not admit the processor.
    pub fn new(vocab_size: usize, setup: &Setup) -> Result<Self> {
        if vocab_size < 4 {
            return Err(error(ErrorKind::InvalidModel, "the vocabulary is too small"));
        }
        let info = ModelInfo {
            name: "hash".into(),
            architecture: "hash".into(),
            vocab_size,
            hidden_size: HIDDEN,
            layers: 1,
            context_length: MAX_TOKENS,
            stop_tokens: vec![0],
            image_token: Some((vocab_size - 1) as TokenId),
            ..ModelInfo::default()
        };
        let engine = Self {
            info,
            budget: setup.sequence_budget,
            sequences: HashMap::new(),
            finished: HashMap::new(),
            adapters: HashMap::new(),
            jobs: HashMap::new(),
            next_id: 0,
            kv: Counter::default(),
            states: Counter::default(),
            images: Counter::default(),
            adapter_bytes: Counter::default(),
        };
        setup.policy.admit(&engine.evidence())?;
        Ok(engine)
    }

    /// The same toy with other special tokens: `stop` ends a reply, `image` stands for images.
    #[must_use]
    pub fn with_special_tokens(mut self, stop: TokenId, image: TokenId) -> Self {
        self.info.stop_tokens = vec![stop];
        self.info.image_token = Some(image);
        self
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn past(&self, seq: SeqId) -> Result<&Past> {
        self.sequences
            .get(&seq)
            .ok_or_else(|| error(ErrorKind::NotFound, "no such sequence").with_context("seq", seq.0.to_string()))
    }

    /// Refuses what would exceed the budget.
    fn afford(&self, bytes: u64) -> Result<()> {
        match self.budget {
            Some(budget) if self.kv.total().saturating_add(self.states.total()).saturating_add(bytes) > budget => {
                Err(error(ErrorKind::OutOfMemory, "the sequence budget is spent"))
            }
            _ => Ok(()),
        }
    }

    fn insert(&mut self, past: Past) -> Result<SeqId> {
        if self.sequences.len() >= MAX_SEQUENCES {
            return Err(error(ErrorKind::Overloaded, "every sequence slot is taken"));
        }
        let seq = SeqId(self.id());
        self.sequences.insert(seq, past);
        Ok(seq)
    }

    /// The weights of each binding; those of a past that goes on are handed on.
    fn weights(&self, adapters: &AdapterSet, held: &[Rc<Weights>]) -> Result<Vec<Rc<Weights>>> {
        let find =
            |key: &AdapterKey| held.iter().find(|weights| weights.key == *key).or_else(|| self.adapters.get(key));
        let missing =
            |key: &AdapterKey| error(ErrorKind::NotFound, "no such adapter").with_context("adapter", &*key.id);
        let bindings = adapters.bindings().iter();
        bindings.map(|binding| find(&binding.key).map(Rc::clone).ok_or_else(|| missing(&binding.key))).collect()
    }

    /// Another sequence with this past.
    fn twin(&self, past: &Past, adapters: &AdapterSet) -> Result<Past> {
        if past.adapters().agreement(adapters) < past.tokens() {
            return Err(error(ErrorKind::InvalidRequest, "the past was read with other adapters"));
        }
        Ok(past.share(adapters.clone(), self.weights(adapters, past.weights())?, self.state()?))
    }

    fn state(&self) -> Result<Held> {
        self.afford(STATE_BYTES)?;
        Ok(self.states.hold(STATE_BYTES))
    }

    fn row(&self, state: u64) -> Vec<f32> {
        (0..self.info.vocab_size as u64).map(|token| unit(mix(state ^ mix(token))) * 2.0).collect()
    }

    /// What a step appends, as numbers, or why not.
    fn content(&self, input: &StepInput<'_>) -> Result<Vec<u64>> {
        match input {
            StepInput::Tokens(tokens) => tokens
                .iter()
                .map(|&token| {
                    if (token as usize) < self.info.vocab_size {
                        Ok(u64::from(token) + 1)
                    } else {
                        Err(error(ErrorKind::InvalidRequest, "a token is beyond the vocabulary")
                            .with_context("token", token.to_string()))
                    }
                })
                .collect(),
            StepInput::Image { image, tokens } => {
                let rows = image.payload::<Encoded>()?;
                let rows = rows.tokens().get(tokens.clone());
                Ok(rows.ok_or_else(|| error(ErrorKind::InvalidRequest, "the range is beyond the image"))?.to_vec())
            }
        }
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let past = self.past(step.seq)?;
        let content = self.content(&step.input)?;
        if step.positions.len() != content.len() {
            return Err(error(ErrorKind::InvalidRequest, "there must be one position per token"));
        }
        if past.tokens() + content.len() > MAX_TOKENS {
            return Err(error(ErrorKind::InvalidRequest, "the sequence would exceed max_sequence_tokens"));
        }
        let bytes = content.len() as u64 * NODE_BYTES;
        self.afford(bytes.saturating_sub(past.reserved()))?;
        let kv = self.kv.clone();
        let past = self.sequences.get_mut(&step.seq).ok_or_else(|| error(ErrorKind::NotFound, "no such sequence"))?;
        past.use_reserved(bytes);
        let mut states = Vec::with_capacity(content.len());
        for (content, position) in content.into_iter().zip(step.positions) {
            states.push(past.push(content, place(*position), &kv));
        }
        let last = states.last().copied().unwrap_or_default();
        let vocabulary = self.info.vocab_size;
        Ok(match step.want {
            Want::Nothing => StepOutput::Nothing,
            Want::Last => StepOutput::Logits(Logits::new(vocabulary, self.row(last))?),
            Want::All => {
                let rows = states.iter().flat_map(|state| self.row(*state)).collect();
                StepOutput::Logits(Logits::new(vocabulary, rows)?)
            }
            Want::TopK { k, mask, bias } => StepOutput::TopK(top_k(self.row(last), k, mask, bias)),
            Want::Pooled(Pooling::Last) => StepOutput::Pooled(hidden(&[last])),
            Want::Pooled(Pooling::Mean) => StepOutput::Pooled(hidden(&states)),
        })
    }
}

/// A number from −1 to 1.
fn unit(hash: u64) -> f32 {
    (hash >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
}

fn place(position: Position) -> u64 {
    mix(u64::from(position.t) ^ mix(u64::from(position.h) ^ mix(u64::from(position.w))))
}

fn hidden(states: &[u64]) -> Vec<f32> {
    let of = |index: usize| -> f32 { states.iter().map(|state| unit(mix(state ^ mix(1 << 40 | index as u64)))).sum() };
    (0..HIDDEN).map(|index| of(index) / states.len().max(1) as f32).collect()
}

fn top_k(mut row: Vec<f32>, k: usize, mask: Option<&[u32]>, bias: &[(TokenId, f32)]) -> Vec<(TokenId, f32)> {
    for (token, bias) in bias {
        if let Some(logit) = row.get_mut(*token as usize) {
            *logit += bias;
        }
    }
    let allowed =
        |token: usize| mask.is_none_or(|mask| mask.get(token / 32).is_some_and(|word| word >> (token % 32) & 1 == 1));
    let mut pairs: Vec<_> = row.into_iter().enumerate().filter(|(token, _)| allowed(*token)).collect();
    pairs.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    pairs.into_iter().take(k).map(|(token, logit)| (token as TokenId, logit)).collect()
}

impl Engine for HashEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn capability(&self) -> Capability {
        Capability {
            image_input: true,
            max_sequences: MAX_SEQUENCES,
            max_sequence_tokens: MAX_TOKENS,
            max_batch_tokens: 512,
            fork: true,
            fork_is_shallow: true,
            park: true,
            max_rollback: 16,
            adapter_mode: AdapterMode::MixedBatch,
            adapter_hot_swap: true,
            activated_adapters: true,
            prompt_logprobs: true,
            logprobs: true,
            structured_output: false,
            device_top_k: true,
            embeddings: true,
            snapshot_to_disk: true,
            batch_invariant: true,
            logit_tolerance: 0.0,
        }
    }

    fn evidence(&self) -> DeviceEvidence {
        DeviceEvidence {
            backend: NAME.into(),
            device: Device::Cpu,
            device_name: "the host's processor".into(),
            placements: vec![Placement { component: "hash".into(), device: Device::Cpu, allowed: false }],
            established_by: Proof::SingleDeviceKernels,
        }
    }

    fn memory(&self) -> MemoryReport {
        MemoryReport {
            weights: size_of::<Self>() as u64,
            kv_cache: self.kv.total(),
            recurrent_state: self.states.total(),
            adapters: self.adapter_bytes.total(),
            images: self.images.total(),
            scratch: 0,
            sequence_budget: self.budget,
            ..MemoryReport::default()
        }
    }

    fn sequence_memory(&self, seq: SeqId) -> Result<SequenceMemory> {
        Ok(self.past(seq)?.memory())
    }

    fn open(&mut self, adapters: &AdapterSet) -> Result<SeqId> {
        let weights = self.weights(adapters, &[])?;
        let state = self.state()?;
        self.insert(Past::new(adapters.clone(), weights, state))
    }

    fn reserve(&mut self, seq: SeqId, tokens: usize) -> Result<()> {
        let past = self.past(seq)?;
        if tokens > MAX_TOKENS.saturating_sub(past.tokens()) {
            return Err(error(ErrorKind::OutOfMemory, "the sequence cannot hold that many tokens"));
        }
        let missing = (tokens as u64 * NODE_BYTES).saturating_sub(past.reserved());
        self.afford(missing)?;
        let held = self.kv.hold(missing);
        if let Some(past) = self.sequences.get_mut(&seq) {
            past.reserve(held);
        }
        Ok(())
    }

    fn submit(&mut self, steps: &[Step<'_>]) -> Result<Ticket> {
        let total = steps.iter().fold(0_usize, |total, step| total.saturating_add(step.input.len()));
        let malformed = steps
            .iter()
            .enumerate()
            .any(|(index, step)| step.input.is_empty() || steps[..index].iter().any(|earlier| earlier.seq == step.seq));
        if malformed || total > self.capability().max_batch_tokens {
            return Err(error(
                ErrorKind::InvalidRequest,
                "a batch holds one step per sequence, none of them empty, and at most max_batch_tokens tokens",
            ));
        }
        let mut outcomes = Vec::with_capacity(steps.len());
        for step in steps {
            outcomes.push(match self.step(step) {
                Ok(output) => StepOutcome::Done(output),
                Err(error) => StepOutcome::Refused(error),
            });
        }
        let ticket = self.id();
        self.finished.insert(ticket, outcomes);
        Ok(Ticket(ticket))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<StepOutcome>> {
        self.finished.remove(&ticket.0).ok_or_else(|| error(ErrorKind::NotFound, "this ticket was collected already"))
    }

    fn fork(&mut self, seq: SeqId) -> Result<SeqId> {
        let past = self.past(seq)?;
        let twin = self.twin(past, past.adapters())?;
        self.insert(twin)
    }

    fn fork_with(&mut self, seq: SeqId, adapters: &AdapterSet) -> Result<SeqId> {
        let twin = self.twin(self.past(seq)?, adapters)?;
        self.insert(twin)
    }

    fn park(&mut self, seq: SeqId) -> Result<Parked> {
        let past = self.past(seq)?;
        let past = past.share(past.adapters().clone(), Vec::new(), self.state()?);
        let tokens = past.tokens();
        Ok(Parked::new(Rc::new(past), tokens, STATE_BYTES + tokens as u64 * NODE_BYTES))
    }

    fn resume(&mut self, parked: &Parked) -> Result<SeqId> {
        let past = parked.payload::<Past>()?;
        let twin = self.twin(past, past.adapters())?;
        self.insert(twin)
    }

    fn resume_with(&mut self, parked: &Parked, adapters: &AdapterSet) -> Result<SeqId> {
        let twin = self.twin(parked.payload::<Past>()?, adapters)?;
        self.insert(twin)
    }

    fn rollback(&mut self, seq: SeqId, tokens: usize) -> Result<()> {
        if tokens > self.capability().max_rollback {
            return Err(Error::unsupported(NAME, "a rollback of that many tokens"));
        }
        let past = self.sequences.get_mut(&seq).ok_or_else(|| error(ErrorKind::NotFound, "no such sequence"))?;
        past.rollback(tokens)
    }

    fn release(&mut self, seq: SeqId) {
        self.sequences.remove(&seq);
    }

    fn begin_image(&mut self, image: Arc<dyn ImageSource>) -> Result<ImageJob> {
        let job = Job::new(&*image, &self.images)?;
        let id = self.id();
        self.jobs.insert(id, job);
        Ok(ImageJob(id))
    }

    fn advance_image(&mut self, job: ImageJob) -> Result<ImageProgress> {
        let missing = || error(ErrorKind::NotFound, "no such image job");
        let work = self.jobs.get_mut(&job.0).ok_or_else(missing)?;
        if !work.advance() {
            return Ok(ImageProgress::Pending(job));
        }
        let work = self.jobs.remove(&job.0).ok_or_else(missing)?;
        let (encoded, grid) = work.finish();
        Ok(ImageProgress::Ready(ImageHandle::new(Rc::new(encoded), grid)))
    }

    fn cancel_image(&mut self, job: ImageJob) {
        self.jobs.remove(&job.0);
    }

    fn load_adapter(&mut self, source: &AdapterSource) -> Result<AdapterInfo> {
        let invalid =
            |message: String| error(ErrorKind::InvalidAdapter, message).with_context("adapter", &*source.key.id);
        let (config, weights) = contents(&source.files)?;
        let config: serde_json::Value = serde_json::from_slice(&config).map_err(|error| invalid(error.to_string()))?;
        for field in ["use_dora", "modules_to_save"] {
            let value = config.get(field).unwrap_or(&serde_json::Value::Null);
            if !value.is_null() && *value != serde_json::Value::Bool(false) {
                return Err(invalid(format!("{field} is not supported")));
            }
        }
        let rank = config.get("r").and_then(serde_json::Value::as_u64).unwrap_or_default() as usize;
        if rank == 0 || weights.is_empty() {
            return Err(invalid("r is missing, or there are no weights".into()));
        }
        let invocation_tokens = match config.get("alora_invocation_tokens") {
            None | Some(serde_json::Value::Null) => None,
            Some(value) => {
                let token = |value: &serde_json::Value| {
                    let token = TokenId::try_from(value.as_u64()?).ok()?;
                    ((token as usize) < self.info.vocab_size).then_some(token)
                };
                let tokens: Option<Vec<_>> = value.as_array().and_then(|tokens| tokens.iter().map(token).collect());
                let tokens = tokens.filter(|tokens| !tokens.is_empty());
                Some(tokens.ok_or_else(|| invalid("alora_invocation_tokens are no tokens of the model".into()))?)
            }
        };
        if self.adapters.contains_key(&source.key) {
            return Err(error(ErrorKind::InvalidRequest, "this generation of the adapter is loaded already"));
        }
        let hash = blake3::hash(&weights);
        let (bytes, key) = (weights.len() as u64, source.key.clone());
        let strength = config.get("lora_alpha").and_then(serde_json::Value::as_f64).unwrap_or_default();
        let hash = mix(head(&hash) ^ strength.to_bits());
        let loaded = Weights { key: key.clone(), hash, _held: self.adapter_bytes.hold(bytes) };
        self.adapters.insert(key.clone(), Rc::new(loaded));
        Ok(AdapterInfo { key, rank, layers: 1, bytes, invocation_tokens })
    }

    fn unload_adapter(&mut self, key: &AdapterKey) -> Result<()> {
        let missing = || error(ErrorKind::NotFound, "no such adapter").with_context("adapter", &*key.id);
        self.adapters.remove(key).map(|_| ()).ok_or_else(missing)
    }

    fn save(&self, parked: &Parked, to: &mut dyn std::io::Write) -> Result<()> {
        let bytes = parked.payload::<Past>()?.to_bytes();
        let digest = blake3::hash(&bytes);
        let written = to.write_all(digest.as_bytes()).and_then(|()| to.write_all(&bytes));
        written.map_err(|source| error(ErrorKind::Io, source.to_string()).with_source(source))
    }

    fn load(&mut self, from: &mut dyn std::io::Read) -> Result<Parked> {
        // As many words for the names of adapters as for the past itself.
        const MOST: u64 = 32 + 16 * MAX_TOKENS as u64;
        let mut bytes = Vec::new();
        from.take(MOST + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| error(ErrorKind::Io, source.to_string()).with_source(source))?;
        let damaged = || error(ErrorKind::InvalidModel, "the snapshot is damaged");
        let (digest, rest) = bytes.split_at_checked(32).ok_or_else(damaged)?;
        if bytes.len() as u64 > MOST || blake3::hash(rest).as_bytes() != digest {
            return Err(damaged());
        }
        let past = Past::from_bytes(rest, &self.kv, self.state()?).ok_or_else(damaged)?;
        let tokens = past.tokens();
        Ok(Parked::new(Rc::new(past), tokens, STATE_BYTES + tokens as u64 * NODE_BYTES))
    }
}

/// The first eight bytes of a digest.
fn head(hash: &blake3::Hash) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}
