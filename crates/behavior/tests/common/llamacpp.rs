//! llama.cpp, on the goldens' models in the form that our own converter gives them.

use std::num::NonZeroUsize;
use std::sync::Arc;

use consort_behavior::fixture::{EngineFixture, MakeEngine, ReadEmbedding, Setup};
use consort_core::{Device, Engine, ImageProgress, Result};
use consort_llamacpp::{CacheType, LlamacppConfig, LlamacppEngine};

use super::native::{Files, fixture_of, study_of};

/// The engine's name, and its device in every build.
pub const ON_PROCESSOR: (&str, Device) = ("llamacpp", Device::Cpu);

/// The configurations in `golden/`.
pub const MODELS: [&str; 7] = super::native::MODELS;

/// Room for what the suite keeps at once; the models are tiny, but all of it is allocated with each engine.
const TOTAL_TOKENS: usize = 8192;

/// ggml takes GELU from a table in half precision (`GGML_GELU_FP16`). Of embeddings 2.2e-3 of their root mean square was seen,
/// of logits after an image 1.7e-2, with small random models, which amplify it.
const VISION_ROUNDING: f32 = 10.0;

/// An engine of these files.
pub fn load(files: &Files, threads: usize, setup: &Setup) -> Result<LlamacppEngine> {
    LlamacppEngine::load(LlamacppConfig {
        vision: files.vision.clone().map(Into::into),
        policy: setup.policy,
        threads: NonZeroUsize::new(threads),
        // As the goldens were computed.
        cache: CacheType::F32,
        max_total_tokens: TOTAL_TOKENS,
        sequence_memory_budget: setup.sequence_budget,
        ..LlamacppConfig::new(files.text.clone())
    })
}

/// Makes engines of these files.
pub fn make(files: &Files, threads: usize) -> MakeEngine {
    let files = files.clone();
    Arc::new(move |setup| Ok(Box::new(load(&files, threads, setup)?) as Box<dyn Engine>))
}

/// Reads embeddings out of the engine.
fn embedding(files: &Files, setup: Setup) -> ReadEmbedding {
    let files = files.clone();
    Arc::new(move |image| {
        let mut engine = load(&files, 1, &setup)?;
        let mut job = engine.begin_image(image)?;
        loop {
            match engine.advance_image(job)? {
                ImageProgress::Pending(again) => job = again,
                ImageProgress::Ready(handle) => return Ok(engine.image_embeddings(&handle)?.to_vec()),
            }
        }
    })
}

/// The engine with a configuration of the goldens.
pub fn fixture(model: &str, name: &str, files: &Files, threads: usize) -> Result<EngineFixture> {
    on(ON_PROCESSOR, model, name, files, threads)
}

/// The same under another name, on another device.
pub fn on(engine: (&str, Device), model: &str, name: &str, files: &Files, threads: usize) -> Result<EngineFixture> {
    let fixture = fixture_of(engine, model, name, make(files, threads), |setup| embedding(files, setup))?;
    Ok(EngineFixture { vision_rounding: VISION_ROUNDING, ..fixture })
}

/// The engine with the study model in these files.
pub fn study(name: &str, files: &Files) -> Result<EngineFixture> {
    let fixture = study_of(ON_PROCESSOR, name, make(files, 1), |setup| embedding(files, setup))?;
    Ok(EngineFixture { vision_rounding: VISION_ROUNDING, ..fixture })
}
