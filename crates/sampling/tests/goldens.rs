//! The chain against transformers' logits processors (`golden/make_goldens.py`).
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use consort_core::{Penalties, Sampling, TokenId};
use consort_sampling::{Allowed, Sampler, Workspace};
use serde_json::Value;

const DRAWS: usize = 20_000;

#[test]
fn draws_follow_what_transformers_leaves() {
    let goldens: Value = serde_json::from_str(include_str!("../golden/processors.json")).unwrap();
    let cases = goldens["cases"].as_array().unwrap();
    assert!(cases.len() >= 20);
    for case in cases {
        let setting = |name: &str, default: f32| case["settings"][name].as_f64().map_or(default, |value| value as f32);
        let sampling = Sampling {
            temperature: setting("temperature", 1.0),
            top_k: setting("top_k", 0.0) as u32,
            typical_p: setting("typical_p", 1.0),
            top_p: setting("top_p", 1.0),
            min_p: setting("min_p", 0.0),
            seed: 3,
            ..Sampling::default()
        };
        let repetition = setting("repetition", 1.0);
        let row: Vec<f32> = case["row"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        let prompt: Vec<TokenId> =
            case["prompt"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as TokenId).collect();
        let expected: BTreeMap<TokenId, f64> = case["probabilities"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(token, value)| (token.parse().unwrap(), value.as_f64().unwrap()))
            .collect();
        // Each draw is the first of a reply of another seed, so that the repetition penalty sees the prompt alone.
        let (mut counts, mut workspace) = (BTreeMap::new(), Workspace::default());
        for seed in 0..DRAWS as u64 {
            let penalties = Penalties { repetition, ..Penalties::default() };
            let sampling = Sampling { penalties, seed, ..sampling.clone() };
            let sampler = Sampler::new(sampling, prompt.iter().map(|&token| (token, &b""[..]))).unwrap();
            let token = sampler.sample(&row, Allowed::default(), &mut workspace).unwrap();
            assert!(expected.contains_key(&token), "{token} was dropped by transformers: {}", case["settings"]);
            *counts.entry(token).or_insert(0usize) += 1;
        }
        for (token, probability) in expected {
            let got = counts.get(&token).copied().unwrap_or(0) as f64 / DRAWS as f64;
            let bound = 5.0 * (probability * (1.0 - probability) / DRAWS as f64).sqrt() + 1e-9;
            assert!((got - probability).abs() <= bound, "{token}: {got} of {probability}: {}", case["settings"]);
        }
    }
}
