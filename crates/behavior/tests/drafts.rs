//! The multi-token prediction block of the native engine, against what transformers' own layers make of the same weights.
//!
//! No scheduler drafts yet, so no case of the suites reaches it.
#![allow(clippy::unwrap_used)]

mod common;

use common::{folder, native};
use consort_behavior::fixture::Setup;
use consort_core::{Device, DevicePolicy, ErrorKind, Logits};
use consort_forge::OutputType;
use safetensors::SafeTensors;
use serde_json::Value;

/// How far a logit may be from the reference's, in logits of unit scale: the suite's tolerance.
const TOLERANCE: f32 = 2e-4;

fn setup() -> Setup {
    Setup { policy: DevicePolicy::Named(Device::Cpu), sequence_budget: None }
}

fn golden() -> (Value, Vec<u8>) {
    let folder = folder("golden/drafts");
    let data = serde_json::from_slice(&std::fs::read(folder.join("drafts.json")).unwrap()).unwrap();
    (data, std::fs::read(folder.join("drafts.safetensors")).unwrap())
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as u32).collect()
}

fn rows(tensors: &SafeTensors<'_>, name: &Value) -> Vec<f32> {
    let view = tensors.tensor(name.as_str().unwrap()).unwrap();
    view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn furthest(one: &[f32], other: &[f32]) -> f32 {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn largest(row: &[f32]) -> u32 {
    let best = row
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (index, value)| if *value > best.1 { (index, *value) } else { best });
    best.0 as u32
}

#[test]
fn drafts_are_what_the_reference_makes_of_the_weights() {
    let (golden, bytes) = golden();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for model in ["untied", "moe"] {
        let entry = &golden["models"][model];
        let (tokens, expected) = (numbers(&entry["tokens"]), rows(&tensors, &entry["drafts"]));
        for threads in [1, 2] {
            let files = native::converted(model, OutputType::F32).unwrap();
            let engine = native::load(&files, threads, &setup()).unwrap();
            assert!(engine.drafts_tokens());
            let drafts = engine.drafts(&tokens).unwrap();
            assert_eq!(drafts.drafts.rows(), tokens.len() - 1);
            let (model_rows, draft_rows) = (drafts.model.into_values(), drafts.drafts.into_values());
            let far = furthest(&draft_rows, &expected);
            assert!(far <= TOLERANCE, "{model}: {far} from the reference");
            // A draft depends on its own past alone: a shorter text gives the same bits.
            let vocab = draft_rows.len() / (tokens.len() - 1);
            let short = engine.drafts(&tokens[..40]).unwrap();
            assert!(short.drafts.into_values() == draft_rows[..39 * vocab], "{model}");
            assert!(short.model.into_values() == model_rows[..40 * vocab], "{model}");
        }
    }
}

#[test]
fn the_model_accepts_most_drafts_of_the_study_model() {
    let (golden, bytes) = golden();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let engine = native::load(&native::etude_files(OutputType::F32).unwrap(), 1, &setup()).unwrap();
    let entry = &golden["models"]["etude"];
    let (mut accepted, mut counted, mut clear, mut whole) = (0_u32, 0_u32, 0_u32, 0_u32);
    for text in entry["texts"].as_array().unwrap() {
        let made = engine.drafts(&numbers(&text["tokens"])).unwrap();
        let row = |logits: &Logits, at: u32| largest(logits.row(at as usize).unwrap());
        let (places, drafts) = (numbers(&text["counted"]), numbers(&text["drafts"]));
        for ((place, draft), is_clear) in places.iter().zip(drafts).zip(numbers(&text["clear"])) {
            let own = row(&made.drafts, *place);
            if is_clear == 1 {
                assert_eq!(own, draft, "the draft at token {place}");
                clear += 1;
            }
            counted += 1;
            accepted += u32::from(own == row(&made.model, place + 1));
        }
        if let Some(kept) = text.get("rows") {
            let (at, expected) = (numbers(&kept["at"]), rows(&tensors, &kept["tensor"]));
            for (at, expected) in at.iter().zip(expected.chunks(expected.len() / at.len())) {
                let own = made.drafts.row(*at as usize).unwrap();
                let scale = expected.iter().fold(1.0_f32, |most, logit| most.max(logit.abs()));
                let far = furthest(own, expected) / scale;
                assert!(far <= TOLERANCE, "{far} of {scale} from the reference");
                whole += 1;
            }
        }
    }
    assert!(clear > counted * 9 / 10 && whole >= 30, "{clear} of {counted} drafts are clear, {whole} kept whole");
    let (reference, of) = (entry["accepted"].as_u64().unwrap(), entry["of"].as_u64().unwrap());
    assert_eq!(u64::from(counted), of);
    assert!(
        u64::from(accepted).abs_diff(reference) <= 3,
        "{accepted} of {counted} accepted, by the reference {reference}"
    );
    assert!(f64::from(accepted) / f64::from(counted) > 0.86, "{accepted} of {counted} accepted");
}

#[test]
fn what_cannot_be_drafted_is_refused() {
    let engine = native::load(&native::converted("plain", OutputType::F32).unwrap(), 1, &setup()).unwrap();
    assert!(!engine.drafts_tokens());
    assert_eq!(engine.drafts(&[1, 2]).unwrap_err().kind(), ErrorKind::Unsupported);
    let files = native::converted("untied", OutputType::F32).unwrap();
    let engine = native::load(&files, 1, &setup()).unwrap();
    for tokens in [&[][..], &[1], &[1; 5000], &[1, 320], &[u32::MAX, 1]] {
        assert_eq!(engine.drafts(tokens).unwrap_err().kind(), ErrorKind::InvalidRequest, "{}", tokens.len());
    }
    let poor = native::load(&files, 1, &Setup { sequence_budget: Some(100), ..setup() }).unwrap();
    assert_eq!(poor.drafts(&[1, 2]).unwrap_err().kind(), ErrorKind::OutOfMemory);
}
