//! Engines that are wrong on purpose, to prove that the suite notices.

use std::collections::HashMap;
use std::sync::Arc;

use consort_core::{
    AdapterBinding, AdapterInfo, AdapterKey, AdapterSet, AdapterSource, Capability, Device, DeviceEvidence,
    DevicePolicy, Engine, ImageHandle, ImageJob, ImageProgress, ImageSource, MemoryReport, ModelInfo, Parked,
    Placement, Position, Proof, Result, SeqId, SequenceMemory, Step, StepInput, StepOutcome, StepOutput, Ticket,
    TokenId, Want,
};

use crate::fixture::{EngineFixture, MakeEngine, Setup};
use crate::picture::Picture;

/// One way of being wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Sequences are opened without their adapters.
    IgnoreAdapters,
    /// Every adapter acts at its own scale, whatever the binding says.
    IgnoreScale,
    /// Other weights under a known name are not loaded.
    KeepOldWeights,
    /// From a sequence's second step on, every position is one too far.
    ShiftPositions,
    /// Positions are counted token by token, whatever the caller says.
    CountPositions,
    /// `resume` gives the past that was parked last, whichever was asked for.
    LeakAnotherPast,
    /// `resume` gives the sequence as it is now, not as it was when it was parked.
    LeakStaleState,
    /// An image is replaced by as many tokens of text.
    DropImage,
    /// An image is replaced by a grey one.
    BlankImage,
    /// The first image that was ever encoded stands for all of its size.
    ReuseFirstImage,
    /// A part of an image is taken from the image's beginning.
    RestartImage,
    /// In a batch, each sequence gets the next one's logits.
    NeighbourLogits,
    /// The evidence tells of an accelerator that was not used.
    LieAboutDevice,
    /// A fork is its parent under another id.
    ForkSharesWrites,
    /// `release` frees nothing.
    ReleaseNothing,
    /// The last token of a chunk that wants nothing back is lost.
    LoseChunkEnd,
    /// A refused step leaves the tokens before the bad one in the past.
    RefusedStepAdvances,
    /// Unloading an adapter drops the sequences that use it.
    UnloadDropsRunning,
    /// Activated adapters act from the first token on.
    ActFromTheStart,
    /// A past goes on with other adapters as soon as it is forked or resumed with them, and not where they become active.
    ActAtOnce,
    /// A past that is forked or resumed with other adapters keeps its own.
    KeepOwnAdapters,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::IgnoreAdapters,
        Self::IgnoreScale,
        Self::KeepOldWeights,
        Self::ShiftPositions,
        Self::CountPositions,
        Self::LeakAnotherPast,
        Self::LeakStaleState,
        Self::DropImage,
        Self::BlankImage,
        Self::ReuseFirstImage,
        Self::RestartImage,
        Self::NeighbourLogits,
        Self::LieAboutDevice,
        Self::ForkSharesWrites,
        Self::ReleaseNothing,
        Self::LoseChunkEnd,
        Self::RefusedStepAdvances,
        Self::UnloadDropsRunning,
        Self::ActFromTheStart,
        Self::ActAtOnce,
        Self::KeepOwnAdapters,
    ];
}

/// The fixture with the same engine, wrong in one way.
#[must_use]
pub fn sabotaged(fixture: &EngineFixture, fault: Fault) -> EngineFixture {
    let inner: MakeEngine = Arc::clone(&fixture.make);
    let honest = DevicePolicy::Named(fixture.device);
    let make: MakeEngine = Arc::new(move |setup| {
        if fault != Fault::LieAboutDevice {
            return Ok(Box::new(Saboteur::new(inner(setup)?, fault)));
        }
        // What is asked for is what it says that it has.
        let claimed = match setup.policy {
            DevicePolicy::Named(device) => device,
            DevicePolicy::AcceleratedOnly => Device::Cuda(0),
        };
        let mut saboteur = Saboteur::new(inner(&Setup { policy: honest, ..*setup })?, fault);
        saboteur.claimed = claimed;
        setup.policy.admit(&saboteur.evidence())?;
        Ok(Box::new(saboteur))
    });
    EngineFixture { make, ..fixture.clone() }
}

/// An engine that is right but for one fault.
pub struct Saboteur {
    inner: Box<dyn Engine>,
    fault: Fault,
    claimed: Device,
    /// Tokens that each sequence has read, for the faults that count.
    read: HashMap<SeqId, usize>,
    /// Ids of forks that are their parents.
    aliases: HashMap<SeqId, SeqId>,
    next_alias: u64,
    parked: Vec<Parked>,
    /// By a parked past's number, the sequence that it was parked from.
    origins: Vec<(Parked, SeqId)>,
    first_image: Option<ImageHandle>,
    first_generation: HashMap<Arc<str>, AdapterInfo>,
    users: HashMap<SeqId, AdapterSet>,
}

impl Saboteur {
    /// Wraps an engine.
    #[must_use]
    pub fn new(inner: Box<dyn Engine>, fault: Fault) -> Self {
        Self {
            inner,
            fault,
            claimed: Device::Cuda(0),
            read: HashMap::new(),
            aliases: HashMap::new(),
            // Beyond what an engine would count to.
            next_alias: 1 << 62,
            parked: Vec::new(),
            origins: Vec::new(),
            first_image: None,
            first_generation: HashMap::new(),
            users: HashMap::new(),
        }
    }

    /// The adapters that are handed on. `past`: the length of a past that is to go on with them.
    fn believed(&self, adapters: &AdapterSet, past: Option<usize>) -> Result<AdapterSet> {
        let bindings = adapters.bindings().iter().cloned();
        match (self.fault, past) {
            (Fault::IgnoreAdapters, _) => Ok(AdapterSet::none()),
            (Fault::IgnoreScale, _) => {
                AdapterSet::new(bindings.map(|binding| AdapterBinding { scale: 1.0, ..binding }))
            }
            (Fault::KeepOldWeights, _) => AdapterSet::new(bindings.map(|binding| {
                let key = self.first_generation.get(&binding.key.id).map(|info| info.key.clone());
                AdapterBinding { key: key.unwrap_or_else(|| binding.key.clone()), ..binding }
            })),
            (Fault::ActFromTheStart, None) => {
                AdapterSet::new(bindings.map(|binding| AdapterBinding { active_from: 0, ..binding }))
            }
            (Fault::ActFromTheStart | Fault::ActAtOnce, Some(past)) => AdapterSet::new(
                bindings.map(|binding| AdapterBinding { active_from: binding.active_from.min(past), ..binding }),
            ),
            _ => Ok(adapters.clone()),
        }
    }

    fn own(&self, seq: SeqId) -> SeqId {
        self.aliases.get(&seq).copied().unwrap_or(seq)
    }

    fn positions(&self, step: &Step<'_>) -> Vec<Position> {
        let read = self.read.get(&step.seq).copied().unwrap_or_default() as u32;
        match self.fault {
            Fault::ShiftPositions if read > 0 => step
                .positions
                .iter()
                .map(|position| Position { t: position.t + 1, h: position.h + 1, w: position.w + 1 })
                .collect(),
            Fault::CountPositions => {
                (0..step.positions.len()).map(|index| Position::text(read + index as u32)).collect()
            }
            _ => step.positions.to_vec(),
        }
    }

    /// What of a step is handed on: its tokens or its part of an image, and how many positions.
    fn content(&self, step: &Step<'_>) -> Content {
        match &step.input {
            StepInput::Tokens(tokens) => {
                let lost = self.fault == Fault::LoseChunkEnd && step.want == Want::Nothing && tokens.len() > 1;
                Content::Tokens(tokens[..tokens.len() - usize::from(lost)].to_vec())
            }
            StepInput::Image { image, tokens } => match self.fault {
                Fault::DropImage => Content::Tokens(vec![1; tokens.len()]),
                Fault::ReuseFirstImage => match &self.first_image {
                    Some(first) if first.grid() == image.grid() => Content::Image(first.clone(), tokens.clone()),
                    _ => Content::Image((*image).clone(), tokens.clone()),
                },
                Fault::RestartImage if tokens.end <= image.tokens() => {
                    Content::Image((*image).clone(), 0..tokens.len())
                }
                _ => Content::Image((*image).clone(), tokens.clone()),
            },
        }
    }

    /// Reads what comes before the first token that is refused.
    fn read_beginning(&mut self, step: &Step<'_>) -> Result<()> {
        let StepInput::Tokens(tokens) = step.input else { return Ok(()) };
        let vocabulary = self.inner.info().vocab_size;
        let good = tokens.iter().take_while(|token| (**token as usize) < vocabulary).count();
        if good == 0 || good == tokens.len() || step.positions.len() != tokens.len() {
            return Ok(());
        }
        let part = Step {
            seq: step.seq,
            input: StepInput::Tokens(&tokens[..good]),
            positions: &step.positions[..good],
            want: Want::Nothing,
        };
        let ticket = self.inner.submit(&[part])?;
        self.inner.collect(ticket).map(|_| ())
    }
}

enum Content {
    Tokens(Vec<TokenId>),
    Image(ImageHandle, std::ops::Range<usize>),
}

impl Content {
    fn input(&self) -> StepInput<'_> {
        match self {
            Self::Tokens(tokens) => StepInput::Tokens(tokens),
            Self::Image(image, tokens) => StepInput::Image { image, tokens: tokens.clone() },
        }
    }
}

impl Engine for Saboteur {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn info(&self) -> &ModelInfo {
        self.inner.info()
    }

    fn capability(&self) -> Capability {
        self.inner.capability()
    }

    fn evidence(&self) -> DeviceEvidence {
        let evidence = self.inner.evidence();
        if self.fault != Fault::LieAboutDevice || self.claimed == evidence.device {
            return evidence;
        }
        DeviceEvidence {
            device: self.claimed,
            device_name: "an accelerator".into(),
            placements: vec![Placement { component: "every op".into(), device: self.claimed, allowed: false }],
            established_by: Proof::ProviderAssignment,
            ..evidence
        }
    }

    fn memory(&self) -> MemoryReport {
        self.inner.memory()
    }

    fn sequence_memory(&self, seq: SeqId) -> Result<SequenceMemory> {
        self.inner.sequence_memory(self.own(seq))
    }

    fn open(&mut self, adapters: &AdapterSet) -> Result<SeqId> {
        let adapters = self.believed(adapters, None)?;
        let seq = self.inner.open(&adapters)?;
        self.users.insert(seq, adapters);
        Ok(seq)
    }

    fn reserve(&mut self, seq: SeqId, tokens: usize) -> Result<()> {
        self.inner.reserve(self.own(seq), tokens)
    }

    fn submit(&mut self, steps: &[Step<'_>]) -> Result<Ticket> {
        if self.fault == Fault::RefusedStepAdvances {
            for step in steps {
                self.read_beginning(step)?;
            }
        }
        let contents: Vec<_> = steps.iter().map(|step| (self.content(step), self.positions(step))).collect();
        let changed: Vec<_> = steps
            .iter()
            .zip(&contents)
            .map(|(step, (content, positions))| {
                let input = content.input();
                // A length that was wrong stays wrong.
                let kept = positions.len().min(positions.len() + input.len() - step.input.len());
                Step { seq: self.own(step.seq), input, positions: &positions[..kept], want: step.want }
            })
            .collect();
        let ticket = self.inner.submit(&changed)?;
        for step in steps {
            *self.read.entry(step.seq).or_default() += step.input.len();
        }
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<StepOutcome>> {
        let mut outcomes = self.inner.collect(ticket)?;
        if self.fault == Fault::NeighbourLogits {
            let rows = |outcome: &StepOutcome| match outcome {
                StepOutcome::Done(StepOutput::Logits(logits)) => Some(logits.rows()),
                _ => None,
            };
            for index in 1..outcomes.len() {
                if rows(&outcomes[index]).is_some() && rows(&outcomes[index]) == rows(&outcomes[index - 1]) {
                    outcomes.swap(index - 1, index);
                }
            }
        }
        Ok(outcomes)
    }

    fn fork(&mut self, seq: SeqId) -> Result<SeqId> {
        if self.fault == Fault::ForkSharesWrites {
            self.inner.sequence_memory(self.own(seq))?;
            self.next_alias += 1;
            let alias = SeqId(self.next_alias);
            self.aliases.insert(alias, self.own(seq));
            return Ok(alias);
        }
        let fork = self.inner.fork(seq)?;
        let read = self.read.get(&seq).copied().unwrap_or_default();
        self.read.insert(fork, read);
        if let Some(adapters) = self.users.get(&seq).cloned() {
            self.users.insert(fork, adapters);
        }
        Ok(fork)
    }

    fn fork_with(&mut self, seq: SeqId, adapters: &AdapterSet) -> Result<SeqId> {
        if self.fault == Fault::KeepOwnAdapters {
            return self.fork(seq);
        }
        let read = self.read.get(&seq).copied().unwrap_or_default();
        let adapters = self.believed(adapters, Some(read))?;
        let fork = self.inner.fork_with(self.own(seq), &adapters)?;
        self.read.insert(fork, read);
        self.users.insert(fork, adapters);
        Ok(fork)
    }

    fn park(&mut self, seq: SeqId) -> Result<Parked> {
        let parked = self.inner.park(self.own(seq))?;
        match self.fault {
            Fault::LeakAnotherPast => self.parked.push(parked.clone()),
            Fault::LeakStaleState => self.origins.push((parked.clone(), seq)),
            _ => {}
        }
        Ok(parked)
    }

    fn resume(&mut self, parked: &Parked) -> Result<SeqId> {
        if self.fault == Fault::LeakAnotherPast
            && let Some(last) = self.parked.last()
        {
            return self.inner.resume(last);
        }
        if self.fault == Fault::LeakStaleState {
            let origin = self.origins.iter().rev().find(|(past, _)| past.tokens() == parked.tokens());
            if let Some((_, seq)) = origin
                && let Ok(now) = self.inner.fork(*seq)
            {
                return Ok(now);
            }
        }
        let seq = self.inner.resume(parked)?;
        self.read.insert(seq, parked.tokens());
        Ok(seq)
    }

    fn resume_with(&mut self, parked: &Parked, adapters: &AdapterSet) -> Result<SeqId> {
        // Behind a scheduler all pasts are resumed so.
        if matches!(self.fault, Fault::KeepOwnAdapters | Fault::LeakAnotherPast | Fault::LeakStaleState) {
            return self.resume(parked);
        }
        let adapters = self.believed(adapters, Some(parked.tokens()))?;
        let seq = self.inner.resume_with(parked, &adapters)?;
        self.read.insert(seq, parked.tokens());
        self.users.insert(seq, adapters);
        Ok(seq)
    }

    fn rollback(&mut self, seq: SeqId, tokens: usize) -> Result<()> {
        self.inner.rollback(self.own(seq), tokens)
    }

    fn release(&mut self, seq: SeqId) {
        if self.fault == Fault::ReleaseNothing || self.aliases.remove(&seq).is_some() {
            return;
        }
        self.users.remove(&seq);
        self.read.remove(&seq);
        self.inner.release(seq);
    }

    fn begin_image(&mut self, image: Arc<dyn ImageSource>) -> Result<ImageJob> {
        let honest = image.patches().is_ok_and(|patches| patches.iter().all(|value| value.is_finite()));
        if self.fault == Fault::BlankImage && honest && image.grid().h <= 64 && image.grid().w <= 64 {
            return self.inner.begin_image(Picture::blank(image.grid()));
        }
        self.inner.begin_image(image)
    }

    fn advance_image(&mut self, job: ImageJob) -> Result<ImageProgress> {
        let progress = self.inner.advance_image(job)?;
        if let ImageProgress::Ready(handle) = &progress
            && self.fault == Fault::ReuseFirstImage
            && self.first_image.is_none()
        {
            self.first_image = Some(handle.clone());
        }
        Ok(progress)
    }

    fn cancel_image(&mut self, job: ImageJob) {
        self.inner.cancel_image(job);
    }

    fn load_adapter(&mut self, source: &AdapterSource) -> Result<AdapterInfo> {
        if self.fault == Fault::KeepOldWeights {
            if let Some(info) = self.first_generation.get(&source.key.id) {
                return Ok(AdapterInfo { key: source.key.clone(), ..info.clone() });
            }
            let info = self.inner.load_adapter(source)?;
            self.first_generation.insert(Arc::clone(&source.key.id), info.clone());
            return Ok(info);
        }
        self.inner.load_adapter(source)
    }

    fn unload_adapter(&mut self, key: &AdapterKey) -> Result<()> {
        match self.fault {
            Fault::KeepOldWeights => {
                self.first_generation.get(&key.id);
                return Ok(());
            }
            Fault::UnloadDropsRunning => {
                let users = self.users.iter();
                let of = users.filter(|(_, set)| set.bindings().iter().any(|binding| binding.key == *key));
                let dropped: Vec<_> = of.map(|(seq, _)| *seq).collect();
                for seq in dropped {
                    self.inner.release(seq);
                }
            }
            _ => {}
        }
        self.inner.unload_adapter(key)
    }

    fn save(&self, parked: &Parked, to: &mut dyn std::io::Write) -> Result<()> {
        self.inner.save(parked, to)
    }

    fn load(&mut self, from: &mut dyn std::io::Read) -> Result<Parked> {
        self.inner.load(from)
    }
}
