//! Measures a sampling step over the family's vocabulary: `cargo run --release -p consort-sampling --example bench`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use consort_core::{Dry, DynamicTemperature, Penalties, Sampling, TokenId, Xtc};
use consort_sampling::{Allowed, Sampler, TokenMask, Workspace, logprobs};

const VOCABULARY: usize = 248_320;
const REPEATS: usize = 400;

/// Numbers in [0, 1) that look random.
fn noise(index: u64) -> f64 {
    let mut x = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Like a model's: normal around 0 with a deviation of 2.5, and some tokens far ahead of the others.
fn row(lead: f64) -> Vec<f32> {
    let mut row: Vec<f32> = (0..VOCABULARY as u64)
        .map(|i| {
            let radius = (-2.0 * noise(2 * i + 1).max(1e-12).ln()).sqrt();
            (2.5 * radius * (std::f64::consts::TAU * noise(2 * i)).cos()) as f32
        })
        .collect();
    for place in 0..40u64 {
        let token = (noise(900 + place) * VOCABULARY as f64) as usize;
        row[token] = (12.0 + lead - 0.4 * place as f64) as f32;
    }
    row
}

fn measure(name: &str, mut step: impl FnMut(usize)) {
    for index in 0..20 {
        step(index);
    }
    let mut times: Vec<Duration> = (0..REPEATS)
        .map(|index| {
            let begin = Instant::now();
            step(index);
            begin.elapsed()
        })
        .collect();
    times.sort_unstable();
    let micros = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!("| {name} | {:.0} | {:.0} | {:.0} |", micros(0.0), micros(0.5), micros(0.99));
}

fn main() {
    let (sharp, flat) = (row(6.0), row(-4.0));
    let prompt: Vec<TokenId> = (0..4000).map(|i| (noise(5_000_000 + i) * 3000.0) as TokenId).collect();
    let base = Sampling { temperature: 1.0, ..Sampling::default() };
    let chat = Sampling {
        temperature: 0.7,
        top_k: 20,
        top_p: 0.8,
        penalties: Penalties { repetition: 1.05, presence: 1.5, ..Penalties::default() },
        ..base.clone()
    };
    let creative = Sampling {
        dry: Some(Dry::default()),
        xtc: Some(Xtc { probability: 0.5, threshold: 0.1 }),
        min_p: 0.02,
        ..base.clone()
    };
    let everything = Sampling {
        top_n_sigma: Some(3.0),
        typical_p: 0.95,
        dynamic_temperature: Some(DynamicTemperature { range: 0.4, exponent: 1.0 }),
        dry: Some(Dry::default()),
        ..chat.clone()
    };
    println!("{VOCABULARY} logits, prompt of {} tokens, {REPEATS} steps each, microseconds\n", prompt.len());
    println!("| step | best | median | 99th percentile |\n|---|---:|---:|---:|");
    let mut workspace = Workspace::default();
    let mut run = |name: &str, row: &[f32], sampling: Sampling, mask: Option<&TokenMask>| {
        let mut sampler = Sampler::new(sampling, prompt.iter().map(|&token| (token, &b" word"[..]))).unwrap();
        measure(name, |index| {
            let allowed = Allowed { mask, ..Allowed::default() };
            let token = sampler.sample(black_box(row), allowed, &mut workspace).unwrap();
            black_box(token);
            sampler.accept((index % 50) as TokenId, b" word");
        });
    };
    run("greedy", &sharp, Sampling::default(), None);
    run("chat: temperature 0.7, top k 20, top p 0.8, repetition and presence", &sharp, chat, None);
    let (mut few, mut many) = (TokenMask::none(VOCABULARY), TokenMask::none(VOCABULARY));
    (0..40).for_each(|i| few.allow((noise(77 + i) * VOCABULARY as f64) as TokenId));
    (0..VOCABULARY as u64).filter(|&i| noise(7 * i) < 0.8).for_each(|i| many.allow(i as TokenId));
    run("grammar mask of 40 tokens, temperature 1", &sharp, base.clone(), Some(&few));
    run("grammar mask of 4 in 5 tokens, temperature 1", &sharp, base.clone(), Some(&many));
    run("DRY, min p 0.02, XTC", &sharp, creative, None);
    run("temperature 1 alone", &sharp, base.clone(), None);
    run("top p 0.9 alone", &sharp, Sampling { top_p: 0.9, ..base.clone() }, None);
    run("top p 0.9 alone, flat distribution", &flat, Sampling { top_p: 0.9, ..base.clone() }, None);
    run("typical 0.9 alone, flat distribution", &flat, Sampling { typical_p: 0.9, ..base.clone() }, None);
    run("top-n-sigma 1", &sharp, Sampling { top_n_sigma: Some(1.0), ..base.clone() }, None);
    run("everything at once", &sharp, everything, None);
    measure("log probabilities, top 20", |index| {
        black_box(logprobs(black_box(&sharp), index as TokenId, 20, &mut workspace).unwrap());
    });
}
