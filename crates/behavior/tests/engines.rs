//! The engine suite, for every engine that this workspace builds.

mod common;

use std::process::ExitCode;

use common::{hostile, native};
use consort_behavior::fixture::EngineFixture;
use consort_behavior::harness::{Registered, SuiteKind, run};
use consort_behavior::{Case, LOGITS, engine_cases, pair_cases};
use consort_core::Result;
use consort_forge::OutputType;
use consort_gguf::TensorType;
use consort_native::Activations;

/// The largest difference of one of the study model's logits where activations are rounded to eight bits: for prompts of random
/// tokens, which it never learned to continue, 0.74 was seen. On text, `divergence` bounds what it means.
const ROUNDED_LOGITS: f32 = 1.0;

fn registered(fixture: &EngineFixture, cases: Vec<Case>) -> Registered {
    Registered { subject: fixture.engine.clone(), model: fixture.model.clone(), capability: fixture.capability, cases }
}

fn whole(fixture: Result<EngineFixture>) -> Result<Registered> {
    let fixture = fixture?;
    let cases = engine_cases(&fixture);
    Ok(registered(&fixture, cases))
}

/// A configuration of the goldens with exact weights: the whole suite. Two of them compute with two threads.
fn configuration(model: &str) -> Result<Registered> {
    let files = native::converted(model, OutputType::F32)?;
    let threads = if ["plain", "moe"].contains(&model) { 2 } else { 1 };
    let mut all = whole(native::fixture(model, model, &files, threads))?;
    if ["grouped2", "moe"].contains(&model) {
        all.cases.extend(hostile::cases(&native::converted(model, OutputType::BF16)?, |files| native::make(files, 1)));
    }
    Ok(all)
}

/// A file of another type: the goldens where it holds the same numbers, and always its own dequantized file.
fn stored_as((model, kind): (&str, OutputType)) -> Result<Registered> {
    let files = native::converted(model, kind)?;
    let fixture = native::fixture(model, &format!("{model}-{kind}").to_lowercase(), &files, 1)?;
    let reference = native::fixture(model, "dequantized", &native::dequantized(&files)?, 1)?;
    let mut cases = pair_cases(&fixture, &reference, LOGITS);
    if kind != OutputType::Q8_0 {
        cases.extend(engine_cases(&fixture).into_iter().filter(|case| case.name().starts_with("golden::")));
    }
    Ok(registered(&fixture, cases))
}

/// The study model quantized, against its own dequantized file: with exact activations, and with activations of eight bits.
fn etude_as(kind: TensorType, activations: Activations) -> Result<Registered> {
    let files = native::quantized(&native::etude_files(OutputType::F32)?, kind)?;
    let files = native::Files { activations, ..files };
    let (name, tolerance) = match activations {
        Activations::F32 => (format!("etude-{kind}-f32"), LOGITS),
        Activations::Int8 => (format!("etude-{kind}"), ROUNDED_LOGITS),
    };
    let fixture = native::etude_of(&name.to_lowercase(), &files)?;
    let reference = native::etude_of("dequantized", &native::dequantized(&files)?)?;
    let mut cases = pair_cases(&fixture, &reference, tolerance);
    // Batches and chunks, which may not change a bit.
    let of_interest = ["a_batch_of_8", "chunks_of", "fork_after", "a_past_is_as_it_was"];
    cases.extend(
        engine_cases(&fixture).into_iter().filter(|case| of_interest.iter().any(|name| case.name().starts_with(name))),
    );
    Ok(registered(&fixture, cases))
}

/// The study model: larger than the others, so it is held against its goldens and not put through everything else.
fn etude() -> Option<Result<Registered>> {
    let fixture = match native::etude()? {
        Ok(fixture) => fixture,
        Err(error) => return Some(Err(error)),
    };
    let golden = engine_cases(&fixture).into_iter().filter(|case| case.name().starts_with("golden::")).collect();
    Some(Ok(registered(&fixture, golden)))
}

/// llama.cpp, which sees the files that our own converter and quantizer write.
#[cfg(feature = "llamacpp")]
mod llamacpp {
    use super::{
        EngineFixture, OutputType, Registered, Result, TensorType, engine_cases, hostile, native, pair_cases,
        registered, whole,
    };
    use crate::common::llamacpp::{MODELS, fixture, make, study};

    /// The largest difference of one of the study model's logits where activations are rounded to eight bits, for prompts of
    /// random tokens: 1.3 was seen, with Q4_K.
    const ROUNDED_LOGITS: f32 = 2.0;
    /// The same for a small random model, which amplifies it, where activations are rounded as weights are, to sixteen bits:
    /// 0.031 was seen with F16, 0.29 with BF16, which keeps eight of them.
    const HALF: [(OutputType, f32); 2] = [(OutputType::F16, 0.15), (OutputType::BF16, 0.6)];
    /// Batches and chunks, which may change a logit by what the engine declares.
    const OF_INTEREST: [&str; 4] = ["a_batch_of_8", "chunks_of", "fork_after", "a_past_is_as_it_was"];

    pub(crate) fn all() -> Vec<Result<Registered>> {
        let mut all: Vec<_> = MODELS.iter().map(|model| configuration(model)).collect();
        all.extend(HALF.map(stored_as));
        all.push(etude());
        all.extend([TensorType::Q8_0, TensorType::Q4K, TensorType::Q6K, TensorType::Q4_0].map(etude_as));
        all
    }

    /// A configuration of the goldens with exact weights: the whole suite, and damaged files.
    fn configuration(model: &str) -> Result<Registered> {
        let files = native::converted(model, OutputType::F32)?;
        let mut all = whole(fixture(model, model, &files, 1))?;
        if ["grouped2", "moe"].contains(&model) {
            let files = native::converted(model, OutputType::BF16)?;
            all.cases.extend(hostile::cases(&files, |files| make(files, 1)));
        }
        Ok(all)
    }

    /// A file of half the size against its own widened file in the native engine.
    fn stored_as((kind, tolerance): (OutputType, f32)) -> Result<Registered> {
        let files = native::converted("plain", kind)?;
        let one = fixture("plain", &format!("plain-{kind}").to_lowercase(), &files, 1)?;
        let reference = native::fixture("plain", "dequantized", &native::dequantized(&files)?, 1)?;
        let mut cases = pair_cases(&one, &reference, tolerance);
        cases.extend(of_interest(&one));
        Ok(registered(&one, cases))
    }

    /// The study model: its goldens.
    fn etude() -> Result<Registered> {
        let one = study("etude", &native::etude_files(OutputType::F32)?)?;
        Ok(registered(&one, goldens(&one)))
    }

    fn of_interest(fixture: &EngineFixture) -> impl Iterator<Item = consort_behavior::Case> {
        let wanted = |case: &consort_behavior::Case| OF_INTEREST.iter().any(|name| case.name().starts_with(name));
        engine_cases(fixture).into_iter().filter(wanted)
    }

    fn goldens(fixture: &EngineFixture) -> Vec<consort_behavior::Case> {
        engine_cases(fixture).into_iter().filter(|case| case.name().starts_with("golden::")).collect()
    }

    /// The study model as our quantizer writes it, against its own dequantized file in the native engine.
    fn etude_as(kind: TensorType) -> Result<Registered> {
        let files = native::quantized(&native::etude_files(OutputType::F32)?, kind)?;
        let one = study(&format!("etude-{kind}").to_lowercase(), &files)?;
        let reference = native::etude_of("dequantized", &native::dequantized(&files)?)?;
        let mut cases = pair_cases(&one, &reference, ROUNDED_LOGITS);
        cases.extend(of_interest(&one));
        Ok(registered(&one, cases))
    }
}

fn main() -> ExitCode {
    let profile = common::profile();
    let mut engines = vec![whole(common::parrot()), whole(common::hash())];
    engines.extend(native::MODELS.map(configuration));
    let stored = [OutputType::F16, OutputType::BF16, OutputType::Q8_0].map(|kind| ("plain", kind));
    engines.extend(stored.into_iter().chain([("moe", OutputType::BF16)]).map(stored_as));
    for kind in [TensorType::Q4K, TensorType::Q6K, TensorType::Q4_0, TensorType::IQ4XS] {
        engines.extend([Activations::Int8, Activations::F32].map(|activations| etude_as(kind, activations)));
    }
    engines.extend(etude());
    #[cfg(feature = "llamacpp")]
    engines.extend(llamacpp::all());
    let engines = engines.into_iter().map(|engine| engine.map_err(|error| error.to_string())).collect();
    run(SuiteKind::Engines, profile, engines)
}
