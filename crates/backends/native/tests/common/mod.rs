//! What the tests share: a tiny model, and short ways to say things.
#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]

use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};

use consort_core::*;
use consort_gguf::TensorType;
use consort_native::synthetic::SyntheticConfig;
use consort_native::{ModelSource, NativeConfig, NativeEngine};

/// The tiny model's files.
pub fn files() -> (&'static [u8], &'static [u8]) {
    static FILES: OnceLock<(&[u8], &[u8])> = OnceLock::new();
    *FILES.get_or_init(|| {
        let config = SyntheticConfig::tiny();
        (config.text().unwrap().leak(), config.vision().unwrap().unwrap().leak())
    })
}

/// The quantized types that there are kernels for.
pub const QUANTIZED: [TensorType; 12] = [
    TensorType::Q8_0,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::IQ4NL,
    TensorType::IQ4XS,
    TensorType::Q2K,
    TensorType::Q3K,
    TensorType::Q4K,
    TensorType::Q5K,
    TensorType::Q6K,
];

/// A model whose rows are whole blocks of every type, but for those of its MLP, which fall back to others.
pub fn wide() -> SyntheticConfig {
    SyntheticConfig {
        hidden: 256,
        mlp: 288,
        heads: 8,
        vision: None,
        layers: 2,
        full_attention_interval: 2,
        ..SyntheticConfig::tiny()
    }
}

pub fn config() -> NativeConfig {
    let (text, vision) = files();
    NativeConfig {
        vision: Some(ModelSource::Static(vision)),
        policy: DevicePolicy::Named(Device::Cpu),
        threads: NonZeroUsize::new(1),
        ..NativeConfig::new(text)
    }
}

pub fn engine() -> NativeEngine {
    NativeEngine::load(config()).unwrap()
}

/// Text positions from `start` on.
pub fn at(start: usize, count: usize) -> Vec<Position> {
    (start..start + count).map(|index| Position::text(index as u32)).collect()
}

/// `count` tokens, different for each seed.
pub fn tokens(seed: u32, count: usize) -> Vec<TokenId> {
    (0..count as u32).map(|index| (index * 37 + seed * 11 + index * index) % 96).collect()
}

pub fn submit(engine: &mut NativeEngine, steps: &[Step<'_>]) -> Vec<StepOutcome> {
    let ticket = engine.submit(steps).unwrap();
    engine.collect(ticket).unwrap()
}

pub fn logits(outcome: StepOutcome) -> Vec<f32> {
    match outcome {
        StepOutcome::Done(StepOutput::Logits(logits)) => logits.into_values(),
        other => panic!("{other:?}"),
    }
}

/// Appends tokens after `past` tokens of text; the logits of each.
pub fn feed(engine: &mut NativeEngine, seq: SeqId, past: usize, tokens: &[TokenId]) -> Vec<f32> {
    let positions = at(past, tokens.len());
    let step = Step { seq, input: StepInput::Tokens(tokens), positions: &positions, want: Want::All };
    logits(submit(engine, &[step]).pop().unwrap())
}

pub fn open(engine: &mut NativeEngine) -> SeqId {
    engine.open(&AdapterSet::none()).unwrap()
}

/// A picture of made-up patches.
#[derive(Debug)]
pub struct Picture {
    pub grid: PatchGrid,
    pub patch: usize,
    pub seed: u32,
}

impl ImageSource for Picture {
    fn content_hash(&self) -> ContentHash {
        ContentHash([self.seed as u8; 32])
    }

    fn encoded(&self) -> Option<&[u8]> {
        None
    }

    fn rgb(&self) -> RgbView<'_> {
        RgbView { width: 0, height: 0, pixels: &[] }
    }

    fn grid(&self) -> PatchGrid {
        self.grid
    }

    fn patches(&self) -> Result<Vec<f32>> {
        let count = self.grid.patches() * 6 * self.patch * self.patch;
        Ok((0..count as u32).map(|index| ((index * 31 + self.seed * 7) % 255) as f32 / 127.5 - 1.0).collect())
    }
}

pub fn picture(h: u32, w: u32, seed: u32) -> Arc<Picture> {
    Arc::new(Picture { grid: PatchGrid { t: 1, h, w, merge: 2 }, patch: 4, seed })
}

pub fn encode(engine: &mut NativeEngine, picture: Arc<Picture>) -> ImageHandle {
    let mut job = engine.begin_image(picture).unwrap();
    loop {
        match engine.advance_image(job).unwrap() {
            ImageProgress::Pending(next) => job = next,
            ImageProgress::Ready(image) => return image,
        }
    }
}
