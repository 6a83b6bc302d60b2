//! The chain against its definitions, written as slowly and plainly as can be: double precision, everything sorted.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use consort_core::{DynamicTemperature, ErrorKind, Penalties, Sampling, TokenId, Xtc};
use consort_sampling::{Allowed, Sampler, TokenMask, Workspace};
use proptest::prelude::*;

/// Token, logit.
type List = Vec<(usize, f64)>;

fn probabilities(list: &List) -> Vec<f64> {
    let top = list.iter().map(|c| c.1).fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = list.iter().map(|c| (c.1 - top).exp()).sum();
    list.iter().map(|c| (c.1 - top).exp() / total).collect()
}

fn sort_best_first(list: &mut List) {
    list.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
}

/// The head of a sorted list that reaches a mass, and how near the last decisions were.
fn head(list: List, p: f64, near: &mut f64) -> List {
    let all = probabilities(&list);
    let (mut mass, mut kept) = (0.0, Vec::new());
    for (candidate, probability) in list.into_iter().zip(all) {
        if mass >= p {
            break;
        }
        kept.push(candidate);
        mass += probability;
        *near = near.min((mass - p).abs());
    }
    kept
}

/// Who is left by the filters, with the probabilities of the draw; and how near the nearest decision was.
fn expected(row: &[f32], sampling: &Sampling, coin: bool) -> (BTreeMap<usize, f64>, f64) {
    let mut near = f64::INFINITY;
    let mut list: List =
        row.iter().enumerate().filter(|c| *c.1 > f32::NEG_INFINITY).map(|(i, &l)| (i, f64::from(l))).collect();
    sort_best_first(&mut list);
    let top = list[0].1;
    if let Some(sigmas) = sampling.top_n_sigma {
        let mean = list.iter().map(|c| c.1).sum::<f64>() / list.len() as f64;
        let variance = list.iter().map(|c| (c.1 - mean).powi(2)).sum::<f64>() / list.len() as f64;
        let floor = top - f64::from(sigmas) * variance.sqrt();
        near = list.iter().fold(near, |near, c| near.min((c.1 - floor).abs() / 10.0));
        list.retain(|c| c.1 >= floor);
    }
    if sampling.top_k > 0 {
        list.truncate(sampling.top_k as usize);
    }
    if sampling.typical_p < 1.0 {
        let all = probabilities(&list);
        let entropy: f64 = all.iter().map(|p| -p * p.ln()).sum();
        let mut by: Vec<(f64, (usize, f64))> =
            all.iter().zip(&list).map(|(p, c)| ((-p.ln() - entropy).abs(), *c)).collect();
        by.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.1.total_cmp(&a.1.1)).then(a.1.0.cmp(&b.1.0)));
        // Two that are equally far, one likelier and one less likely than expected, may be swapped by rounding.
        for pair in by.windows(2) {
            if pair[0].1.1 != pair[1].1.1 {
                near = near.min(pair[1].0 - pair[0].0);
            }
        }
        let kept = {
            let all: BTreeMap<usize, f64> = list.iter().map(|c| c.0).zip(all).collect();
            let (mut mass, mut kept) = (0.0, Vec::new());
            for (_, candidate) in by {
                if mass >= f64::from(sampling.typical_p) {
                    break;
                }
                mass += all[&candidate.0];
                near = near.min((mass - f64::from(sampling.typical_p)).abs());
                kept.push(candidate);
            }
            kept
        };
        list = kept;
        sort_best_first(&mut list);
    }
    if sampling.top_p < 1.0 {
        list = head(list, f64::from(sampling.top_p), &mut near);
    }
    if sampling.min_p > 0.0 {
        let floor = list[0].1 + f64::from(sampling.min_p).ln();
        near = list.iter().skip(1).fold(near, |near, c| near.min((c.1 - floor).abs()));
        list.retain(|c| c.1 >= floor);
    }
    if let Some(xtc) = sampling.xtc.filter(|_| coin) {
        let all = probabilities(&list);
        near = all.iter().fold(near, |near, p| near.min((p - f64::from(xtc.threshold)).abs()));
        let likely = all.iter().filter(|p| **p >= f64::from(xtc.threshold)).count();
        if likely >= 2 {
            list.drain(..likely - 1);
        }
    }
    let mut temperature = f64::from(sampling.temperature);
    if let Some(dynamic) = sampling.dynamic_temperature.filter(|_| list.len() > 1) {
        let entropy: f64 = probabilities(&list).iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        let share = (entropy / (list.len() as f64).ln()).powf(f64::from(dynamic.exponent));
        let low = (temperature - f64::from(dynamic.range)).max(0.0);
        temperature = low + (temperature + f64::from(dynamic.range) - low) * share;
    }
    let scaled: List = list.iter().map(|c| (c.0, c.1 / temperature)).collect();
    (list.iter().map(|c| c.0).zip(probabilities(&scaled)).collect(), near)
}

fn sampler(sampling: Sampling, index: u64) -> Sampler {
    let mut sampler = Sampler::new(sampling, []).unwrap();
    (0..index).for_each(|_| sampler.accept(0, b""));
    sampler
}

fn sample(row: &[f32], sampling: &Sampling, index: u64) -> TokenId {
    sampler(sampling.clone(), index).sample(row, Allowed::default(), &mut Workspace::default()).unwrap()
}

fn hot() -> Sampling {
    Sampling { temperature: 1.0, ..Sampling::default() }
}

/// Draws often, and compares with the probabilities.
fn frequencies_are(row: &[f32], sampling: &Sampling, expected: &BTreeMap<usize, f64>, draws: usize) {
    let (mut counts, mut workspace) = (BTreeMap::new(), Workspace::default());
    let mut sampler = sampler(sampling.clone(), 0);
    for _ in 0..draws {
        let token = sampler.sample(row, Allowed::default(), &mut workspace).unwrap();
        *counts.entry(token as usize).or_insert(0usize) += 1;
        sampler.accept(token, b"");
    }
    for token in counts.keys() {
        assert!(expected.contains_key(token), "{token} was dropped: {sampling:?}");
    }
    for (token, probability) in expected {
        let got = counts.get(token).copied().unwrap_or(0) as f64 / draws as f64;
        // Five standard deviations.
        let bound = 5.0 * (probability * (1.0 - probability) / draws as f64).sqrt() + 1e-9;
        assert!((got - probability).abs() <= bound, "{token}: {got} of {probability} with {sampling:?}");
    }
}

#[test]
fn frequencies_follow_the_distribution_and_each_filter() {
    // Probabilities 0.4, 0.25, 0.125, 0.125, 0.06, 0.04.
    let row: Vec<f32> = [0.4f32, 0.25, 0.125, 0.125, 0.06, 0.04].iter().map(|p| p.ln() + 7.0).collect();
    let dynamic = |range, exponent| Some(DynamicTemperature { range, exponent });
    for sampling in [
        hot(),
        Sampling { top_k: 2, ..hot() },
        // Equal logits: the lower id stays.
        Sampling { top_k: 3, ..hot() },
        Sampling { top_p: 0.7, ..hot() },
        Sampling { min_p: 0.3, ..hot() },
        Sampling { typical_p: 0.5, ..hot() },
        Sampling { typical_p: 0.2, ..hot() },
        Sampling { top_n_sigma: Some(0.7), ..hot() },
        Sampling { temperature: 0.5, top_k: 2, ..hot() },
        Sampling { temperature: 2.0, top_p: 0.5, ..hot() },
        Sampling { xtc: Some(Xtc { probability: 1.0, threshold: 0.1 }), ..hot() },
        Sampling { xtc: Some(Xtc { probability: 1.0, threshold: 0.3 }), ..hot() },
        Sampling { dynamic_temperature: dynamic(0.5, 2.0), ..hot() },
        Sampling { dynamic_temperature: dynamic(0.9, 0.5), temperature: 0.6, top_k: 4, ..hot() },
    ] {
        let sampling = Sampling { seed: 11, ..sampling };
        frequencies_are(&row, &sampling, &expected(&row, &sampling, true).0, 20_000);
    }
    // The coin falls as often as it should.
    let half = Sampling { xtc: Some(Xtc { probability: 0.25, threshold: 0.2 }), ..hot() };
    let (with, without) = (expected(&row, &half, true).0, expected(&row, &half, false).0);
    let mixed = without.iter().map(|(t, p)| (*t, 0.75 * p + 0.25 * with.get(t).copied().unwrap_or(0.0))).collect();
    frequencies_are(&row, &half, &mixed, 40_000);
}

#[test]
fn at_temperature_zero_the_best_of_what_is_left_is_chosen() {
    let row = [1.0, 3.0, 3.0, 2.9];
    assert_eq!(sample(&row, &Sampling::default(), 0), 1);
    let xtc = Some(Xtc { probability: 1.0, threshold: 0.2 });
    assert_eq!(sample(&row, &Sampling { xtc, ..Sampling::default() }, 0), 3, "the likelier ones are excluded");
    let forbidden = Sampling { logit_bias: vec![(1, f32::NEG_INFINITY), (3, 0.2)], ..Sampling::default() };
    assert_eq!(sample(&row, &forbidden, 0), 3);
}

#[test]
fn what_leaves_nothing_or_lies_outside_is_refused() {
    let refused = |sampling: Sampling, allowed: Allowed<'_>| {
        let sampler = Sampler::new(sampling, []).unwrap();
        sampler.sample(&[0.0, 1.0], allowed, &mut Workspace::default()).unwrap_err().kind()
    };
    let none = TokenMask::none(2);
    let masked = Allowed { mask: Some(&none), ..Allowed::default() };
    assert_eq!(refused(hot(), masked), ErrorKind::InvalidRequest);
    let forbidden = Allowed { forbidden: &[0, 1, 99], ..Allowed::default() };
    assert_eq!(refused(hot(), forbidden), ErrorKind::InvalidRequest);
    let outside = Sampling { logit_bias: vec![(2, 1.0)], ..hot() };
    assert_eq!(refused(outside, Allowed::default()), ErrorKind::InvalidRequest);
    assert!(Sampler::new(Sampling { top_p: 0.0, ..hot() }, []).is_err());
}

#[test]
fn extreme_settings_stay_finite() {
    let row = [f32::MAX, f32::MIN, 1.0, -1.0, f32::NEG_INFINITY];
    let penalties = Penalties { repetition: 1e-30, presence: f32::MIN, frequency: f32::MIN, window: None };
    let mut harsh = Sampler::new(
        Sampling { penalties, logit_bias: vec![(0, f32::MAX), (1, f32::MIN)], ..hot() },
        [(0, &b""[..]), (1, b""), (2, b"")],
    )
    .unwrap();
    for _ in 0..5 {
        let token = harsh.sample(&row, Allowed::default(), &mut Workspace::default()).unwrap();
        assert!(token < 4);
        harsh.accept(token, b"");
    }
    for temperature in [1e-30, 1e-6, 1e30, f32::MAX] {
        let dynamic_temperature = Some(DynamicTemperature { range: f32::MAX, exponent: 1e-30 });
        for sampling in [Sampling { temperature, ..hot() }, Sampling { temperature, dynamic_temperature, ..hot() }] {
            assert!(sample(&row, &sampling, 3) < 4);
        }
    }
}

#[test]
fn a_draw_depends_on_seed_and_index_alone() {
    let row: Vec<f32> = (0..100u8).map(|i| f32::from(i % 7) * 0.1).collect();
    let xtc = Some(Xtc { probability: 0.5, threshold: 0.01 });
    let sampling = Sampling { seed: 9, xtc, ..hot() };
    let draws: Vec<_> = (0..50).map(|index| sample(&row, &sampling, index)).collect();
    let backwards: Vec<_> = (0..50).rev().map(|index| sample(&row, &sampling, index)).collect();
    assert!(draws.iter().eq(backwards.iter().rev()));
    let other = Sampling { seed: 10, ..sampling };
    assert!((0..50).any(|index| sample(&row, &other, index) != draws[index as usize]));
}

fn settings() -> impl Strategy<Value = Sampling> {
    (
        prop_oneof![Just(0u32), 1..20u32, 250..320u32],
        prop_oneof![Just(1.0f32), 0.05..1.0f32],
        prop_oneof![Just(0.0f32), 0.0..0.5f32],
        prop_oneof![Just(1.0f32), 0.05..1.0f32],
        proptest::option::of(0.3..3.0f32),
        proptest::option::of(0.02..0.4f32),
        0.2..2.0f32,
        any::<u64>(),
    )
        .prop_map(|(top_k, top_p, min_p, typical_p, top_n_sigma, threshold, temperature, seed)| Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            typical_p,
            top_n_sigma,
            xtc: threshold.map(|threshold| Xtc { probability: 1.0, threshold }),
            seed,
            ..Sampling::default()
        })
}

fn rows() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![9 => (-160i16..80).prop_map(|v| f32::from(v) / 16.0), 1 => Just(f32::NEG_INFINITY)];
    prop_oneof![proptest::collection::vec(logit.clone(), 1..40), proptest::collection::vec(logit, 200..900)].prop_map(
        |mut row| {
            row[0] = 0.5;
            row
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn every_draw_is_one_that_the_definition_leaves(row in rows(), sampling in settings(), index in 0u64..5) {
        let (kept, near) = expected(&row, &sampling, true);
        // Where single precision decides otherwise than double, both are right.
        prop_assume!(near > 1e-4);
        let token = sample(&row, &sampling, index) as usize;
        prop_assert!(kept.contains_key(&token), "{token} of {} left", kept.len());
        // The best one that is left is what a cold draw chooses.
        let cold = sample(&row, &Sampling { temperature: 0.0, ..sampling.clone() }, index) as usize;
        let best = kept.keys().copied().max_by(|a, b| row[*a].total_cmp(&row[*b]).then(b.cmp(a))).unwrap();
        prop_assert_eq!(cold, best);
    }

    #[test]
    fn every_token_that_is_left_can_be_drawn(row in rows(), sampling in settings()) {
        let (kept, near) = expected(&row, &Sampling { temperature: 1.0, ..sampling.clone() }, true);
        prop_assume!(near > 1e-4 && kept.len() <= 8);
        let mut seen = std::collections::BTreeSet::new();
        let mut sampler = sampler(Sampling { temperature: 1.0, ..sampling }, 0);
        let mut workspace = Workspace::default();
        let least = kept.values().copied().fold(1.0, f64::min).max(1e-3);
        for _ in 0..(12.0 / least) as usize {
            let token = sampler.sample(&row, Allowed::default(), &mut workspace).unwrap();
            seen.insert(token as usize);
            sampler.accept(token, b"");
        }
        for (token, probability) in kept {
            prop_assert!(seen.contains(&token) || probability < 1e-3, "{token} ({probability}) was never drawn");
        }
    }

    #[test]
    fn filters_that_drop_nothing_change_nothing(
        row in proptest::collection::vec(-5.0f32..5.0, 1..2000), seed: u64, index in 0u64..9,
    ) {
        let base = Sampling { seed, ..hot() };
        let choice = sample(&row, &base, index);
        let wide = Sampling { min_p: 1e-30, top_n_sigma: Some(1e6), typical_p: 0.999_999_94, ..base.clone() };
        let listed = Sampling { top_k: row.len() as u32 - 1, ..base.clone() };
        prop_assert_eq!(sample(&row, &wide, index), choice);
        // A list that lacks the last one alone draws the same wherever that is not drawn.
        let worst = (0..row.len()).min_by(|a, b| row[*a].total_cmp(&row[*b]).then(b.cmp(a))).unwrap();
        let again = sample(&row, &listed, index);
        let without = {
            let mut row = row.clone();
            row[worst] = f32::NEG_INFINITY;
            if row.len() > 1 { sample(&row, &base, index) } else { again }
        };
        prop_assert_eq!(again, without);
    }

    #[test]
    fn a_mask_admits_its_tokens_alone(row in rows(), bits in proptest::collection::vec(any::<u32>(), 30), sampling in settings()) {
        let mut mask = TokenMask::from_words(bits);
        mask.allow(0);
        mask.forbid(1);
        let sampler = Sampler::new(Sampling { logit_bias: vec![(0, 0.25)], ..sampling }, []).unwrap();
        let allowed = Allowed { mask: Some(&mask), forbidden: &[2] };
        let token = sampler.sample(&row, allowed, &mut Workspace::default()).unwrap();
        prop_assert!(mask.allows(token) && token != 2 && row[token as usize] > f32::NEG_INFINITY);
    }
}
