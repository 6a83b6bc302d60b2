//! A complete engine in one screen: a bigram model that repeats what it has heard.
//!
//! Its next-token logits depend on the last token alone: the token's successor in a fixed sentence stands out. It has no
//! images and no adapters, and says so; everything else of the contract holds, and the behaviour suite checks it.

use std::collections::HashMap;
use std::rc::Rc;

use consort_core::{
    AdapterSet, Capability, Device, DeviceEvidence, DevicePolicy, Engine, Error, ErrorKind, Logits, MemoryReport,
    ModelInfo, Parked, Placement, Proof, Result, SeqId, SequenceMemory, Step, StepInput, StepOutcome, StepOutput,
    Ticket, TokenId, Want,
};

/// A sequence of the parrot: all that it remembers.
#[derive(Clone)]
struct Past {
    last: Option<TokenId>,
    tokens: usize,
}

/// The engine.
pub struct Parrot {
    info: ModelInfo,
    /// `successors[token]` is what the parrot says after `token`.
    successors: Vec<TokenId>,
    sequences: HashMap<SeqId, Past>,
    finished: HashMap<u64, Vec<StepOutcome>>,
    next_id: u64,
}

impl Parrot {
    const MAX_SEQUENCES: usize = 8;
    const MAX_TOKENS: usize = 4096;

    /// A parrot over `vocab_size` tokens that learned its bigrams from `lesson`. Token 0 ends a reply.
    ///
    /// # Errors
    /// A token of the lesson beyond the vocabulary; a policy that does not admit the processor, where a parrot lives.
    pub fn new(vocab_size: usize, lesson: &[TokenId], policy: DevicePolicy) -> Result<Self> {
        let mut successors = vec![0; vocab_size];
        for pair in lesson.windows(2) {
            let (Some(slot), true) = (successors.get_mut(pair[0] as usize), (pair[1] as usize) < vocab_size) else {
                return Err(Error::new(ErrorKind::InvalidModel, "a token of the lesson is beyond the vocabulary")
                    .with_backend("parrot"));
            };
            *slot = pair[1];
        }
        let info = ModelInfo {
            name: "parrot".into(),
            architecture: "bigram".into(),
            vocab_size,
            context_length: Self::MAX_TOKENS,
            stop_tokens: vec![0],
            ..ModelInfo::default()
        };
        let parrot = Self { info, successors, sequences: HashMap::new(), finished: HashMap::new(), next_id: 0 };
        policy.admit(&parrot.evidence())?;
        Ok(parrot)
    }

    fn insert(&mut self, past: Past) -> Result<SeqId> {
        if self.sequences.len() >= Self::MAX_SEQUENCES {
            return Err(Error::new(ErrorKind::Overloaded, "every sequence slot is taken").with_backend("parrot"));
        }
        self.next_id += 1;
        let seq = SeqId(self.next_id);
        self.sequences.insert(seq, past);
        Ok(seq)
    }

    fn past(&self, seq: SeqId) -> Result<&Past> {
        self.sequences.get(&seq).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "no such sequence")
                .with_backend("parrot")
                .with_context("seq", seq.0.to_string())
        })
    }

    fn row(&self, token: TokenId) -> Vec<f32> {
        let mut row = vec![0.0; self.info.vocab_size];
        row[self.successors[token as usize] as usize] = 4.0;
        row
    }

    /// Everything is checked before the past changes, so a refusal leaves the sequence as it was.
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let StepInput::Tokens(tokens) = step.input else {
            return Err(Error::unsupported("parrot", "image input"));
        };
        if let Some(stranger) = tokens.iter().find(|&&token| token as usize >= self.info.vocab_size) {
            return Err(Error::new(ErrorKind::InvalidRequest, "a token is beyond the vocabulary")
                .with_context("token", stranger.to_string()));
        }
        if step.positions.len() != tokens.len() {
            return Err(Error::new(ErrorKind::InvalidRequest, "there must be one position per token"));
        }
        let past = self.past(step.seq)?.clone();
        if past.tokens + tokens.len() > Self::MAX_TOKENS {
            return Err(Error::new(ErrorKind::InvalidRequest, "the sequence would exceed max_sequence_tokens"));
        }
        let output = match step.want {
            Want::Nothing => StepOutput::Nothing,
            Want::Last => {
                let last = tokens.last().copied().unwrap_or(0);
                StepOutput::Logits(Logits::new(self.info.vocab_size, self.row(last))?)
            }
            Want::All => {
                let rows = tokens.iter().flat_map(|&token| self.row(token)).collect();
                StepOutput::Logits(Logits::new(self.info.vocab_size, rows)?)
            }
            Want::TopK { .. } => return Err(Error::unsupported("parrot", "top k on the device")),
            Want::Pooled(_) => return Err(Error::unsupported("parrot", "embeddings")),
        };
        let past = Past { last: tokens.last().copied().or(past.last), tokens: past.tokens + tokens.len() };
        self.sequences.insert(step.seq, past);
        Ok(output)
    }
}

impl Engine for Parrot {
    fn name(&self) -> &'static str {
        "parrot"
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn capability(&self) -> Capability {
        Capability {
            max_sequences: Self::MAX_SEQUENCES,
            max_sequence_tokens: Self::MAX_TOKENS,
            max_batch_tokens: 512,
            fork: true,
            park: true,
            logprobs: true,
            prompt_logprobs: true,
            batch_invariant: true,
            ..Capability::default()
        }
    }

    fn evidence(&self) -> DeviceEvidence {
        DeviceEvidence {
            backend: "parrot".into(),
            device: Device::Cpu,
            device_name: "the host's processor".into(),
            placements: vec![Placement { component: "bigram".into(), device: Device::Cpu, allowed: false }],
            established_by: Proof::SingleDeviceKernels,
        }
    }

    fn memory(&self) -> MemoryReport {
        MemoryReport {
            weights: (self.successors.len() * size_of::<TokenId>()) as u64,
            recurrent_state: (self.sequences.len() * size_of::<Past>()) as u64,
            ..MemoryReport::default()
        }
    }

    fn sequence_memory(&self, seq: SeqId) -> Result<SequenceMemory> {
        self.past(seq)?;
        Ok(SequenceMemory { unique: size_of::<Past>() as u64, shared: 0 })
    }

    fn open(&mut self, adapters: &AdapterSet) -> Result<SeqId> {
        if !adapters.is_empty() {
            return Err(Error::unsupported("parrot", "adapters"));
        }
        self.insert(Past { last: None, tokens: 0 })
    }

    fn reserve(&mut self, seq: SeqId, tokens: usize) -> Result<()> {
        if tokens > Self::MAX_TOKENS.saturating_sub(self.past(seq)?.tokens) {
            return Err(Error::new(ErrorKind::OutOfMemory, "the sequence cannot hold that many tokens"));
        }
        Ok(())
    }

    fn submit(&mut self, steps: &[Step<'_>]) -> Result<Ticket> {
        let total: usize = steps.iter().map(|step| step.input.len()).sum();
        let malformed = steps
            .iter()
            .enumerate()
            .any(|(index, step)| step.input.is_empty() || steps[..index].iter().any(|earlier| earlier.seq == step.seq));
        if malformed || total > self.capability().max_batch_tokens {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "a batch holds one step per sequence, none of them empty, and at most max_batch_tokens tokens",
            ));
        }
        let outcomes = steps.iter().map(|step| match self.step(step) {
            Ok(output) => StepOutcome::Done(output),
            Err(error) => StepOutcome::Refused(error.with_backend("parrot")),
        });
        let outcomes = outcomes.collect();
        self.next_id += 1;
        self.finished.insert(self.next_id, outcomes);
        Ok(Ticket(self.next_id))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<StepOutcome>> {
        let missing = || Error::new(ErrorKind::NotFound, "this ticket was collected already").with_backend("parrot");
        self.finished.remove(&ticket.0).ok_or_else(missing)
    }

    fn fork(&mut self, seq: SeqId) -> Result<SeqId> {
        let past = self.past(seq)?.clone();
        self.insert(past)
    }

    fn park(&mut self, seq: SeqId) -> Result<Parked> {
        let past = self.past(seq)?.clone();
        let tokens = past.tokens;
        Ok(Parked::new(Rc::new(past), tokens, size_of::<Past>() as u64))
    }

    fn resume(&mut self, parked: &Parked) -> Result<SeqId> {
        let past = parked.payload::<Past>()?.clone();
        self.insert(past)
    }

    fn release(&mut self, seq: SeqId) {
        self.sequences.remove(&seq);
    }
}

fn main() -> Result<()> {
    use consort_core::Position;

    // The parrot lives on the processor, so it must be named.
    assert!(Parrot::new(8, &[], DevicePolicy::default()).is_err());
    let mut parrot = Parrot::new(8, &[1, 2, 3, 0], DevicePolicy::Named(Device::Cpu))?;

    // Greedy decoding: prefill the prompt, then append the first maximum until the end token comes.
    let seq = parrot.open(&AdapterSet::none())?;
    let (mut input, mut reply) = (vec![1], Vec::new());
    for position in 0.. {
        let positions = [Position::text(position)];
        let step = Step { seq, input: StepInput::Tokens(&input), positions: &positions, want: Want::Last };
        let ticket = parrot.submit(&[step])?;
        let Some(StepOutcome::Done(StepOutput::Logits(logits))) = parrot.collect(ticket)?.pop() else {
            return Err(Error::new(ErrorKind::Unexpected, "the step was not done"));
        };
        let row = logits.last().unwrap_or_default();
        let best = (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0);
        reply.push(best as TokenId);
        if parrot.info().stop_tokens.contains(&(best as TokenId)) {
            break;
        }
        input = vec![best as TokenId];
    }
    assert_eq!(reply, [2, 3, 0]);
    Ok(())
}
