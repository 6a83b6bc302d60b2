//! A fresh engine with what cases do to it.

use std::ops::Range;
use std::sync::Arc;

use consort_core::{
    AdapterBinding, AdapterFiles, AdapterInfo, AdapterKey, AdapterSet, AdapterSource, Engine, Error, ErrorKind,
    ImageHandle, ImageProgress, ImageSource, Logits, SeqId, Step, StepOutcome, StepOutput, TokenId, Want,
};

use crate::case::{Failure, Outcome, ensure};
use crate::fixture::{EngineFixture, Setup};
use crate::script::Script;

/// A logit that must differ differs by more than this: ten times what the goldens allow.
pub(crate) const DIFFERS: f32 = 0.02;

/// A hanging image encoder is a failure, not a hanging suite.
const MOST_ADVANCES: usize = 1_000_000;

pub(crate) struct Rig<'f> {
    pub(crate) fixture: &'f EngineFixture,
    pub(crate) engine: Box<dyn Engine>,
    generation: u64,
}

impl<'f> Rig<'f> {
    pub(crate) fn new(fixture: &'f EngineFixture) -> Outcome<Self> {
        Self::with(fixture, &fixture.setup())
    }

    pub(crate) fn with(fixture: &'f EngineFixture, setup: &Setup) -> Outcome<Self> {
        Ok(Self { fixture, engine: (fixture.make)(setup)?, generation: 0 })
    }

    pub(crate) fn open(&mut self) -> Outcome<SeqId> {
        Ok(self.engine.open(&AdapterSet::none())?)
    }

    // Adapters.

    /// Loads files under `id` with a generation that was never used.
    pub(crate) fn load(&mut self, id: &str, files: &AdapterFiles) -> Outcome<AdapterInfo> {
        self.generation += 1;
        let key = AdapterKey { id: Arc::from(id), generation: self.generation };
        let info = self.engine.load_adapter(&AdapterSource { key: key.clone(), files: files.clone() })?;
        ensure!(info.key == key, "loaded as {key:?}, and the engine calls it {:?}", info.key);
        Ok(info)
    }

    /// Loads the fixture's adapter of this index under its own name.
    pub(crate) fn adapter(&mut self, index: usize) -> Outcome<AdapterKey> {
        let adapter = self.fixture.adapters.get(index).ok_or("the fixture has too few adapters")?;
        Ok(self.load(&adapter.name, &adapter.files)?.key)
    }

    /// Loads the fixture's adapter of this name.
    pub(crate) fn named(&mut self, name: &str) -> Outcome<AdapterInfo> {
        let fixture = self.fixture;
        let mut all = fixture.adapters.iter().chain(&fixture.activated_adapters);
        let adapter = all.find(|adapter| adapter.name == name);
        let adapter = adapter.ok_or_else(|| Failure::new(format!("the fixture has no adapter {name}")))?;
        self.load(name, &adapter.files)
    }

    // Images.

    pub(crate) fn encode(&mut self, image: &Arc<dyn ImageSource>) -> Outcome<ImageHandle> {
        let mut job = self.engine.begin_image(Arc::clone(image))?;
        for _ in 0..MOST_ADVANCES {
            match self.engine.advance_image(job)? {
                ImageProgress::Pending(again) => job = again,
                ImageProgress::Ready(handle) => {
                    ensure!(
                        handle.grid() == image.grid(),
                        "an image of the grid {:?} was encoded with the grid {:?}",
                        image.grid(),
                        handle.grid()
                    );
                    return Ok(handle);
                }
            }
        }
        Err("an image is never ready".into())
    }

    /// Encodes an image that may be refused at any point.
    pub(crate) fn encode_hostile(&mut self, image: &Arc<dyn ImageSource>) -> consort_core::Result<()> {
        let mut job = self.engine.begin_image(Arc::clone(image))?;
        loop {
            match self.engine.advance_image(job)? {
                ImageProgress::Pending(again) => job = again,
                ImageProgress::Ready(_) => return Ok(()),
            }
        }
    }

    /// Encodes the fixture's image of this index.
    pub(crate) fn image(&mut self, index: usize) -> Outcome<ImageHandle> {
        let fixture = self.fixture;
        self.encode(fixture.images.get(index).ok_or("the fixture has too few images")?)
    }

    // Steps.

    /// Submits and collects, one outcome a step.
    pub(crate) fn submit(&mut self, steps: &[Step<'_>]) -> Outcome<Vec<StepOutcome>> {
        let ticket = self.engine.submit(steps)?;
        let outcomes = self.engine.collect(ticket)?;
        ensure!(outcomes.len() == steps.len(), "{} steps gave {} outcomes", steps.len(), outcomes.len());
        Ok(outcomes)
    }

    /// One step that must be done.
    pub(crate) fn step(&mut self, step: Step<'_>) -> Outcome<StepOutput> {
        done(self.submit(&[step])?.swap_remove(0))
    }

    /// Reads `range` of a script in chunks of at most `most` tokens and gives the logits after the last.
    pub(crate) fn read_range(
        &mut self,
        seq: SeqId,
        script: &Script,
        range: Range<usize>,
        most: usize,
    ) -> Outcome<Vec<f32>> {
        let most = most.min(self.fixture.capability.max_batch_tokens);
        let chunks = script.chunks(range, most);
        let mut row = Err(Failure::new("nothing was read"));
        for (index, chunk) in chunks.iter().enumerate() {
            let want = if index + 1 == chunks.len() { Want::Last } else { Want::Nothing };
            let output = self.step(chunk.step(seq, want))?;
            if want == Want::Last {
                row = self.one_row(output);
            } else {
                ensure!(output == StepOutput::Nothing, "a step that wanted nothing gave something");
            }
        }
        row
    }

    /// Reads a script in steps as large as the engine takes.
    pub(crate) fn read(&mut self, seq: SeqId, script: &Script) -> Outcome<Vec<f32>> {
        self.read_range(seq, script, 0..script.len(), usize::MAX / 2)
    }

    /// Reads a script and gives the logits at every place.
    pub(crate) fn read_all(&mut self, seq: SeqId, script: &Script) -> Outcome<Vec<Vec<f32>>> {
        let mut rows = Vec::new();
        for chunk in script.chunks(0..script.len(), self.fixture.capability.max_batch_tokens) {
            let logits = logits(self.step(chunk.step(seq, Want::All))?)?;
            ensure!(logits.rows() == chunk.len(), "{} tokens gave {} rows", chunk.len(), logits.rows());
            for index in 0..logits.rows() {
                rows.push(self.checked(logits.row(index).unwrap_or_default())?);
            }
        }
        Ok(rows)
    }

    /// What a fresh sequence with these adapters says after a script. The sequence is released.
    pub(crate) fn fresh_with(&mut self, adapters: &AdapterSet, script: &Script) -> Outcome<Vec<f32>> {
        let seq = self.engine.open(adapters)?;
        let row = self.read(seq, script);
        self.engine.release(seq);
        row
    }

    /// What a fresh sequence of the base model says after a script. The sequence is released.
    pub(crate) fn fresh(&mut self, script: &Script) -> Outcome<Vec<f32>> {
        self.fresh_with(&AdapterSet::none(), script)
    }

    /// What a fresh sequence says after text.
    pub(crate) fn fresh_text(&mut self, tokens: &[TokenId]) -> Outcome<Vec<f32>> {
        self.fresh(&Script::text(tokens))
    }

    /// Greedy tokens after `row`, and the logits after the last but one of them.
    pub(crate) fn greedy(
        &mut self,
        seq: SeqId,
        mut row: Vec<f32>,
        mut next: u32,
        count: usize,
    ) -> Outcome<(Vec<TokenId>, Vec<f32>)> {
        let mut tokens = Vec::new();
        while tokens.len() < count {
            let token = first_maximum(&row);
            tokens.push(token);
            if tokens.len() < count {
                row = self.read(seq, &Script::at(next).then_text(&[token]))?;
                next += 1;
            }
        }
        Ok((tokens, row))
    }

    /// The one row of a step that wanted the last.
    pub(crate) fn one_row(&self, output: StepOutput) -> Outcome<Vec<f32>> {
        let logits = logits(output)?;
        ensure!(logits.rows() == 1, "the last position's logits were wanted, and {} rows came", logits.rows());
        self.checked(logits.last().unwrap_or_default())
    }

    fn checked(&self, row: &[f32]) -> Outcome<Vec<f32>> {
        let vocabulary = self.engine.info().vocab_size;
        ensure!(row.len() == vocabulary, "a row has {} logits, the vocabulary {vocabulary} tokens", row.len());
        ensure!(row.iter().all(|logit| logit.is_finite()), "a logit is not finite");
        Ok(row.to_vec())
    }

    // Comparisons.

    /// Two rows of the same steps: equal bits where the engine is batch invariant, else within its tolerance.
    pub(crate) fn same_steps(&self, one: &[f32], other: &[f32], what: &str) -> Outcome {
        let tolerance =
            if self.fixture.capability.batch_invariant { 0.0 } else { self.fixture.capability.logit_tolerance };
        within(one, other, tolerance, what)
    }

    /// Two rows of the same tokens, read in other steps.
    pub(crate) fn same_tokens(&self, one: &[f32], other: &[f32], what: &str) -> Outcome {
        within(one, other, self.fixture.capability.logit_tolerance, what)
    }
}

/// The set of one adapter at one scale.
pub(crate) fn set(bindings: &[(&AdapterKey, f32)]) -> Outcome<AdapterSet> {
    Ok(AdapterSet::new(bindings.iter().map(|(key, scale)| AdapterBinding::new((*key).clone(), *scale)))?)
}

/// The output of a step that was done.
pub(crate) fn done(outcome: StepOutcome) -> Outcome<StepOutput> {
    match outcome {
        StepOutcome::Done(output) => Ok(output),
        StepOutcome::Refused(error) => Err(Failure::from(error).during("a step was refused")),
        StepOutcome::Poisoned(error) => Err(Failure::from(error).during("a step was poisoned")),
    }
}

/// The error of a step that must be refused.
pub(crate) fn refused(outcome: StepOutcome, what: &str) -> Outcome<Error> {
    match outcome {
        StepOutcome::Refused(error) => Ok(error),
        StepOutcome::Done(_) => Err(Failure::new(format!("{what} must be refused, and was done"))),
        StepOutcome::Poisoned(error) => {
            Err(Failure::from(error).during(&format!("{what} must be refused, and poisoned its sequence")))
        }
    }
}

/// The error of a call that must fail with `kind`.
pub(crate) fn fails<T>(result: consort_core::Result<T>, kind: ErrorKind, what: &str) -> Outcome<Error> {
    match result {
        Ok(_) => Err(Failure::new(format!("{what} must fail as {}, and did not", kind.as_str()))),
        Err(error) if error.kind() == kind => Ok(error),
        Err(error) => Err(Failure::from(error).during(&format!("{what} must fail as {}", kind.as_str()))),
    }
}

fn logits(output: StepOutput) -> Outcome<Logits> {
    match output {
        StepOutput::Logits(logits) => Ok(logits),
        other => Err(Failure::new(format!("logits were wanted, and {} came", kind_of(&other)))),
    }
}

fn kind_of(output: &StepOutput) -> &'static str {
    match output {
        StepOutput::Nothing => "nothing",
        StepOutput::Logits(_) => "logits",
        StepOutput::TopK(_) => "a top k",
        StepOutput::Pooled(_) => "pooled states",
        _ => "something else",
    }
}

/// Index of the first maximum.
pub(crate) fn first_maximum(row: &[f32]) -> TokenId {
    let mut best = 0;
    for (index, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = index;
        }
    }
    best as TokenId
}

/// The largest difference of two rows; infinite when they cannot be compared.
pub(crate) fn distance(one: &[f32], other: &[f32]) -> f32 {
    if one.len() != other.len() {
        return f32::INFINITY;
    }
    one.iter().zip(other).fold(0.0, |worst: f32, (a, b)| {
        let difference = (a - b).abs();
        if difference.is_nan() { f32::INFINITY } else { worst.max(difference) }
    })
}

/// Two rows that must not be further apart than `tolerance`.
pub(crate) fn within(one: &[f32], other: &[f32], tolerance: f32, what: &str) -> Outcome {
    let distance = distance(one, other);
    ensure!(distance <= tolerance, "{what}: logits differ by {distance}, and {tolerance} is allowed");
    Ok(())
}

/// Two rows that must be further apart than noise.
pub(crate) fn differ(one: &[f32], other: &[f32], what: &str) -> Outcome {
    let distance = distance(one, other);
    ensure!(distance > DIFFERS, "{what}: logits differ by only {distance}");
    Ok(())
}
