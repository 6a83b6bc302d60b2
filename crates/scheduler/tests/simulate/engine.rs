//! An engine that costs virtual time and memory: the next token is a function of the whole past, a step takes a fixed time
//! and some for each token, and every byte is counted.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use consort_core::*;
use consort_scheduler::VirtualClock;

pub const VOCAB: usize = 64;
pub const END: TokenId = 0;

pub fn mix(mut x: u64, y: u64) -> u64 {
    x = (x ^ y).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 32)
}

/// The state after one more token.
pub fn hear(state: u64, token: TokenId, adapters: u64) -> u64 {
    mix(mix(state, u64::from(token) + 1), adapters)
}

/// What a past says next: in one of 50 cases the end.
pub fn next(state: u64) -> TokenId {
    let throw = mix(state, 0x5eed);
    if throw.is_multiple_of(50) { END } else { (1 + throw % (VOCAB as u64 - 1)) as TokenId }
}

pub fn weights_of(name: &str) -> u64 {
    name.bytes().fold(11, |hash, byte| mix(hash, u64::from(byte)))
}

/// The state before the first token; `adapter`: its name.
pub fn adapted(adapter: Option<&str>) -> u64 {
    adapter.map_or(1, |name| mix(mix(1, weights_of(name)), u64::from(1f32.to_bits())))
}

/// What a step takes.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    pub step: Duration,
    pub token: Duration,
}

/// What goes wrong, in one of so many steps of a sequence. 0: never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    pub poison: u64,
    pub out_of_memory: u64,
    pub malformed_batch: u64,
    pub seed: u64,
}

#[derive(Debug, Clone, Copy)]
pub struct Machine {
    pub cost: Cost,
    pub slots: usize,
    /// Bytes over all sequences and parked pasts.
    pub budget: u64,
    pub token_bytes: u64,
    pub state_bytes: u64,
    pub park: bool,
    /// Parked pasts lie elsewhere: they cost none of the budget.
    pub offloads: bool,
    pub adapter_mode: AdapterMode,
    pub max_batch_tokens: usize,
    pub faults: Faults,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            cost: Cost { step: Duration::from_millis(10), token: Duration::from_micros(500) },
            slots: 8,
            budget: u64::MAX / 4,
            token_bytes: 100,
            state_bytes: 2000,
            park: true,
            offloads: false,
            adapter_mode: AdapterMode::MixedBatch,
            max_batch_tokens: 256,
            faults: Faults::default(),
        }
    }
}

/// One batch as the engine saw it.
#[derive(Debug, Clone)]
pub struct Batch {
    pub at: Duration,
    pub took: Duration,
    /// (sequence, tokens, adapter digest)
    pub steps: Vec<(SeqId, usize, u64)>,
}

/// What the engine holds, for the test to look at.
#[derive(Debug, Default)]
pub struct Ledger {
    pub sequences: usize,
    pub parked: usize,
    pub sequence_bytes: u64,
    pub parked_bytes: u64,
    pub batches: Vec<Batch>,
    /// The first tokens that each sequence heard when it was new.
    pub first_heard: Vec<TokenId>,
    pub poisoned: u64,
    pub opened: u64,
}

pub type Shared = Rc<RefCell<Ledger>>;

#[derive(Debug, Clone)]
struct State {
    hash: u64,
    tokens: usize,
    adapters: u64,
}

struct Sequence {
    state: State,
    /// Tokens that there is memory for.
    room: usize,
    poisoned: bool,
}

struct Kept {
    state: State,
    bytes: u64,
    ledger: Shared,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut ledger = self.ledger.borrow_mut();
        ledger.parked -= 1;
        ledger.parked_bytes -= self.bytes;
    }
}

pub struct CostEngine {
    machine: Machine,
    clock: VirtualClock,
    info: ModelInfo,
    ledger: Shared,
    sequences: BTreeMap<SeqId, Sequence>,
    adapters: BTreeMap<AdapterKey, u64>,
    outcomes: BTreeMap<u64, Vec<StepOutcome>>,
    next: u64,
    throws: u64,
}

impl CostEngine {
    pub fn new(machine: Machine, clock: VirtualClock, ledger: Shared) -> Self {
        let info = ModelInfo {
            name: "cost".into(),
            vocab_size: VOCAB,
            hidden_size: 1,
            context_length: 4096,
            stop_tokens: vec![END],
            ..ModelInfo::default()
        };
        Self {
            machine,
            clock,
            info,
            ledger,
            sequences: BTreeMap::new(),
            adapters: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            next: 0,
            throws: machine.faults.seed,
        }
    }

    fn bytes(&self, tokens: usize) -> u64 {
        self.machine.state_bytes + self.machine.token_bytes * tokens as u64
    }

    fn afford(&self, bytes: u64) -> Result<()> {
        let ledger = self.ledger.borrow();
        let parked = if self.machine.offloads { 0 } else { ledger.parked_bytes };
        if ledger.sequence_bytes + parked + bytes > self.machine.budget {
            return Err(Error::new(ErrorKind::OutOfMemory, "the budget is spent"));
        }
        Ok(())
    }

    fn insert(&mut self, state: State) -> Result<SeqId> {
        if self.sequences.len() >= self.machine.slots {
            return Err(Error::new(ErrorKind::Overloaded, "no slot"));
        }
        let bytes = self.bytes(state.tokens);
        self.afford(bytes)?;
        self.next += 1;
        let mut ledger = self.ledger.borrow_mut();
        ledger.sequences += 1;
        ledger.opened += 1;
        ledger.sequence_bytes += bytes;
        drop(ledger);
        let room = state.tokens;
        self.sequences.insert(SeqId(self.next), Sequence { state, room, poisoned: false });
        Ok(SeqId(self.next))
    }

    fn grow(&mut self, seq: SeqId, tokens: usize) -> Result<()> {
        let sequence = self.sequences.get(&seq).ok_or_else(|| Error::new(ErrorKind::NotFound, "seq"))?;
        let more = (sequence.state.tokens + tokens).saturating_sub(sequence.room);
        let bytes = self.machine.token_bytes * more as u64;
        self.afford(bytes)?;
        self.ledger.borrow_mut().sequence_bytes += bytes;
        if let Some(sequence) = self.sequences.get_mut(&seq) {
            sequence.room += more;
        }
        Ok(())
    }

    fn hits(&mut self, one_of: u64) -> bool {
        self.throws = mix(self.throws, 0xfa17);
        one_of > 0 && self.throws.is_multiple_of(one_of)
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let StepInput::Tokens(tokens) = &step.input else { panic!("there are no images here") };
        self.grow(step.seq, tokens.len())?;
        let sequence = self.sequences.get_mut(&step.seq).ok_or_else(|| Error::new(ErrorKind::NotFound, "seq"))?;
        assert!(!sequence.poisoned, "a poisoned sequence is stepped");
        let state = &mut sequence.state;
        assert_eq!(step.positions.first(), Some(&Position::text(state.tokens as u32)), "positions follow the past");
        if state.tokens == 0 {
            self.ledger.borrow_mut().first_heard.push(tokens[0]);
        }
        for &token in *tokens {
            state.hash = hear(state.hash, token, state.adapters);
        }
        state.tokens += tokens.len();
        Ok(match step.want {
            Want::Nothing => StepOutput::Nothing,
            Want::Last => {
                let mut row = vec![0.0; VOCAB];
                row[next(state.hash) as usize] = 9.0;
                StepOutput::Logits(Logits::new(VOCAB, row)?)
            }
            _ => return Err(Error::unsupported("cost", "this")),
        })
    }
}

impl Engine for CostEngine {
    fn name(&self) -> &'static str {
        "cost"
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn capability(&self) -> Capability {
        Capability {
            max_sequences: self.machine.slots,
            max_sequence_tokens: 4096,
            max_batch_tokens: self.machine.max_batch_tokens,
            park: self.machine.park,
            adapter_mode: self.machine.adapter_mode,
            adapter_hot_swap: true,
            logprobs: true,
            batch_invariant: true,
            ..Capability::default()
        }
    }

    fn evidence(&self) -> DeviceEvidence {
        DeviceEvidence {
            backend: "cost".into(),
            device: Device::Cpu,
            device_name: "simulated".into(),
            placements: vec![],
            established_by: Proof::SingleDeviceKernels,
        }
    }

    fn memory(&self) -> MemoryReport {
        let ledger = self.ledger.borrow();
        let budget = (self.machine.budget < u64::MAX / 4).then_some(self.machine.budget);
        MemoryReport {
            kv_cache: ledger.sequence_bytes,
            recurrent_state: ledger.parked_bytes,
            sequence_budget: budget,
            ..MemoryReport::default()
        }
    }

    fn sequence_memory(&self, seq: SeqId) -> Result<SequenceMemory> {
        let sequence = self.sequences.get(&seq).ok_or_else(|| Error::new(ErrorKind::NotFound, "seq"))?;
        Ok(SequenceMemory { unique: self.bytes(sequence.room), shared: 0 })
    }

    fn open(&mut self, adapters: &AdapterSet) -> Result<SeqId> {
        let mut hash = 1;
        for binding in adapters.bindings() {
            let weights = self.adapters.get(&binding.key).ok_or_else(|| Error::new(ErrorKind::NotFound, "adapter"))?;
            hash = mix(mix(hash, *weights), u64::from(binding.scale.to_bits()));
        }
        if self.machine.adapter_mode == AdapterMode::Exclusive {
            assert!(self.sequences.values().all(|other| other.state.adapters == hash), "one adapter set at a time");
        }
        self.insert(State { hash: 3, tokens: 0, adapters: hash })
    }

    fn reserve(&mut self, seq: SeqId, tokens: usize) -> Result<()> {
        self.grow(seq, tokens)
    }

    fn submit(&mut self, steps: &[Step<'_>]) -> Result<Ticket> {
        let tokens: usize = steps.iter().map(|step| step.input.len()).sum();
        assert!(!steps.is_empty() && tokens <= self.machine.max_batch_tokens, "{tokens} tokens");
        assert!(steps.iter().all(|step| !step.input.is_empty()), "an empty step");
        if steps.len() > 1 && self.hits(self.machine.faults.malformed_batch) {
            return Err(Error::new(ErrorKind::InvalidRequest, "malformed batch"));
        }
        let adapters: Vec<u64> = steps.iter().map(|step| self.sequences[&step.seq].state.adapters).collect();
        if self.machine.adapter_mode != AdapterMode::MixedBatch {
            assert!(adapters.windows(2).all(|pair| pair[0] == pair[1]), "one adapter set a batch");
        }
        let took = self.machine.cost.step + self.machine.cost.token * tokens as u32;
        let record =
            steps.iter().zip(adapters).map(|(step, adapters)| (step.seq, step.input.len(), adapters)).collect();
        self.ledger.borrow_mut().batches.push(Batch { at: self.clock.elapsed(), took, steps: record });
        self.clock.advance(took);
        let mut outcomes = Vec::new();
        for step in steps {
            outcomes.push(if self.hits(self.machine.faults.poison) {
                self.ledger.borrow_mut().poisoned += 1;
                if let Some(sequence) = self.sequences.get_mut(&step.seq) {
                    sequence.poisoned = true;
                }
                StepOutcome::Poisoned(Error::new(ErrorKind::Poisoned, "poisoned by chance"))
            } else if self.hits(self.machine.faults.out_of_memory) {
                StepOutcome::Refused(Error::new(ErrorKind::OutOfMemory, "refused by chance"))
            } else {
                match self.step(step) {
                    Ok(output) => StepOutcome::Done(output),
                    Err(error) => StepOutcome::Refused(error),
                }
            });
        }
        self.next += 1;
        self.outcomes.insert(self.next, outcomes);
        Ok(Ticket(self.next))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<StepOutcome>> {
        self.outcomes.remove(&ticket.0).ok_or_else(|| Error::new(ErrorKind::NotFound, "ticket"))
    }

    fn park(&mut self, seq: SeqId) -> Result<Parked> {
        if !self.machine.park {
            return Err(Error::unsupported("cost", "park"));
        }
        let sequence = self.sequences.get(&seq).ok_or_else(|| Error::new(ErrorKind::NotFound, "seq"))?;
        assert!(!sequence.poisoned, "a poisoned past is parked");
        let state = sequence.state.clone();
        let (tokens, bytes) = (state.tokens, self.bytes(state.tokens));
        if !self.machine.offloads {
            self.afford(bytes)?;
        }
        let mut ledger = self.ledger.borrow_mut();
        ledger.parked += 1;
        ledger.parked_bytes += bytes;
        drop(ledger);
        Ok(Parked::new(Rc::new(Kept { state, bytes, ledger: Rc::clone(&self.ledger) }), tokens, bytes))
    }

    fn resume(&mut self, parked: &Parked) -> Result<SeqId> {
        let state = parked.payload::<Kept>()?.state.clone();
        self.insert(state)
    }

    fn release(&mut self, seq: SeqId) {
        if let Some(sequence) = self.sequences.remove(&seq) {
            let bytes = self.bytes(sequence.room);
            let mut ledger = self.ledger.borrow_mut();
            ledger.sequences -= 1;
            ledger.sequence_bytes -= bytes;
        }
    }

    fn load_adapter(&mut self, source: &AdapterSource) -> Result<AdapterInfo> {
        self.adapters.insert(source.key.clone(), weights_of(&source.key.id));
        Ok(AdapterInfo { key: source.key.clone(), rank: 1, layers: 1, bytes: 1, invocation_tokens: None })
    }

    fn unload_adapter(&mut self, key: &AdapterKey) -> Result<()> {
        self.adapters.remove(key).map(|_| ()).ok_or_else(|| Error::new(ErrorKind::NotFound, "adapter"))
    }
}
