//! How far quantization moves the study model's predictions: for each weight type the divergence from the original, and from
//! the numbers that the quantized file itself holds, with activations in f32 and in eight bits.
//!
//! `cargo test -p consort-behavior --test divergence -- --nocapture` prints the table of the model's card.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod common;

use std::fs;

use common::native::{self, Files};
use consort_behavior::fixture::Setup;
use consort_core::{
    AdapterSet, Device, DevicePolicy, Engine, Position, SpecialTokens, Step, StepInput, StepOutcome, StepOutput, Want,
};
use consort_forge::OutputType;
use consort_gguf::TensorType;
use consort_native::Activations;
use consort_text::Tokenizer;
use serde_json::Value;

const KINDS: [TensorType; 13] = [
    TensorType::F16,
    TensorType::Q8_0,
    TensorType::Q6K,
    TensorType::Q5_1,
    TensorType::Q5_0,
    TensorType::Q5K,
    TensorType::Q4_1,
    TensorType::Q4_0,
    TensorType::IQ4NL,
    TensorType::Q4K,
    TensorType::IQ4XS,
    TensorType::Q3K,
    TensorType::Q2K,
];

/// The conversations of the small evaluation set as the model's own template writes them, without their pictures.
fn texts() -> Vec<Vec<u32>> {
    let folder = native::etude_folder();
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let tokenizer = Tokenizer::from_json(&read("tokenizer.json"), Some(&read("tokenizer_config.json"))).unwrap();
    let questions = String::from_utf8(read("eval-small/questions.jsonl")).unwrap();
    let text_of = |content: &Value| match content.as_array() {
        Some(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        None => content.as_str().unwrap_or_default().to_owned(),
    };
    questions
        .lines()
        .map(|line| {
            let question: Value = serde_json::from_str(line).unwrap();
            let mut text = String::new();
            for message in question["messages"].as_array().unwrap() {
                let role = message["role"].as_str().unwrap();
                text += &format!("<|im_start|>{role}\n{}<|im_end|>\n", text_of(&message["content"]));
            }
            let thought = if question["thinking"] == true { question["thought"].as_str().unwrap() } else { "" };
            let answer = question["expected"].as_str().unwrap();
            text += &format!("<|im_start|>assistant\n<think>\n{thought}\n</think>\n\n{answer}<|im_end|>\n");
            tokenizer.encode(&text, SpecialTokens::Parse).unwrap()
        })
        .collect()
}

/// The log probabilities of every next token, one row after the other.
fn predictions(files: &Files, texts: &[Vec<u32>]) -> Vec<Vec<f64>> {
    let setup = Setup { policy: DevicePolicy::Named(Device::Cpu), sequence_budget: None };
    let mut engine = native::load(files, 1, &setup).unwrap();
    let mut rows = Vec::new();
    for text in texts {
        let seq = engine.open(&AdapterSet::none()).unwrap();
        let positions: Vec<_> = (0..text.len() as u32).map(Position::text).collect();
        let step = Step { seq, input: StepInput::Tokens(text), positions: &positions, want: Want::All };
        let ticket = engine.submit(&[step]).unwrap();
        let StepOutcome::Done(StepOutput::Logits(logits)) = engine.collect(ticket).unwrap().remove(0) else { panic!() };
        for row in (0..logits.rows()).filter_map(|index| logits.row(index)) {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
            rows.push(row.iter().map(|x| f64::from(x - largest) - total.ln()).collect());
        }
        engine.release(seq);
    }
    rows
}

/// Mean of the divergences D(p‖q) over all rows, and what 99.9% of them do not exceed.
fn divergence(p: &[Vec<f64>], q: &[Vec<f64>]) -> (f64, f64) {
    assert_eq!(p.len(), q.len());
    let of_row = |(p, q): (&Vec<f64>, &Vec<f64>)| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.0);
    let mut rows: Vec<f64> = p.iter().zip(q).map(of_row).collect();
    rows.sort_by(f64::total_cmp);
    let at = ((rows.len() as f64 * 0.999).ceil() as usize).clamp(1, rows.len()) - 1;
    (rows.iter().sum::<f64>() / rows.len() as f64, rows[at])
}

#[test]
fn each_quantization_is_near_the_numbers_that_it_holds() {
    let texts = texts();
    let original = native::etude_files(OutputType::F32).unwrap();
    let expected = predictions(&original, &texts);
    println!("{} positions of {} texts; mean and 99.9% divergence in nats", expected.len(), texts.len());
    println!("| type | from the original | 99.9% | from its own numbers | 99.9% | with f32 activations | 99.9% |");
    let mut problems = Vec::new();
    for kind in KINDS {
        let files = native::quantized(&original, kind).unwrap();
        let own = predictions(&native::dequantized(&files).unwrap(), &texts);
        let rounded = predictions(&Files { activations: Activations::Int8, ..files.clone() }, &texts);
        let exact = predictions(&Files { activations: Activations::F32, ..files }, &texts);
        let (from_original, rounding, widening) =
            (divergence(&expected, &rounded), divergence(&own, &rounded), divergence(&own, &exact));
        println!(
            "| {kind} | {:.2e} | {:.2e} | {:.2e} | {:.2e} | {:.2e} | {:.2e} |",
            from_original.0, from_original.1, rounding.0, rounding.1, widening.0, widening.1
        );
        if rounding.0 > 1e-3 {
            problems.push(format!("{kind}: with activations in eight bits the mean is {:.2e}", rounding.0));
        }
        if widening.0 > 1e-5 {
            problems.push(format!("{kind}: with activations in f32 the mean is {:.2e}", widening.0));
        }
        // Something was quantized at all.
        if kind.block_len() > 1 && from_original.0 <= 0.0 {
            problems.push(format!("{kind} is the original"));
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}
