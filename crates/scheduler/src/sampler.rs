//! How the next token is chosen from a row of logits.
//!
//! Filters as [`Sampling`] documents them: top k, then top p over what is left, then min p, all on the unscaled
//! distribution; the temperature comes last. Of equal logits the lower id is the more probable one, so a greedy choice is
//! the first maximum.
//!
//! Randomness is a function of the request's seed and the token's index in the reply, and of nothing else: whatever shares
//! the batch, however often a sequence was preempted and replayed, the same numbers are drawn.

use std::cmp::Ordering;

use consort_core::{Error, ErrorKind, PositionLogprobs, Result, Sampling, TokenId, TokenLogprob};

/// A token and its logit.
type Candidate = (TokenId, f32);

/// Descending logit, then ascending id. Logits are checked to hold no NaN.
fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

/// A number in [0, 1) for a draw: the finaliser of SplitMix64 (Steele et al. 2014) over the seed and the index, twice.
pub(crate) fn uniform(seed: u64, index: u64) -> f64 {
    fn mix(mut x: u64) -> u64 {
        x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    let bits = mix(mix(seed) ^ mix(index.wrapping_mul(0xd129_42f8_5a3d_70f5)));
    // The 53 highest bits fill a double's mantissa exactly.
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The first maximum of a row.
///
/// # Errors
/// [`ErrorKind::Unexpected`] when the row is empty, holds a NaN or +∞, or nothing but −∞.
fn maximum(row: &[f32]) -> Result<Candidate> {
    // Eight lanes, so that the compiler can use vectors: a NaN makes its lane's `sane` false.
    const LANES: usize = 8;
    let mut best = [f32::NEG_INFINITY; LANES];
    let mut sane = [true; LANES];
    let chunks = row.chunks_exact(LANES);
    for (lane, &value) in chunks.remainder().iter().enumerate() {
        sane[lane] &= value < f32::INFINITY;
        best[lane] = if value > best[lane] { value } else { best[lane] };
    }
    for chunk in chunks {
        for lane in 0..LANES {
            let value = chunk[lane];
            // False for a NaN as well.
            sane[lane] &= value < f32::INFINITY;
            best[lane] = if value > best[lane] { value } else { best[lane] };
        }
    }
    let top = best.into_iter().fold(f32::NEG_INFINITY, f32::max);
    if !sane.into_iter().all(|lane| lane) || top == f32::NEG_INFINITY {
        return Err(Error::new(ErrorKind::Unexpected, "the engine gave logits that are not numbers")
            .with_operation("sampler::sample")
            .with_context("vocab_size", row.len().to_string()));
    }
    let index = row.iter().position(|&value| value == top).unwrap_or(0);
    Ok((index as TokenId, top))
}

/// The `k` best of a row, best first, in one pass that mostly only compares.
fn top_k(row: &[f32], k: usize) -> Vec<Candidate> {
    let k = k.min(row.len());
    if k == 0 {
        return Vec::new();
    }
    // Keeps up to 2k candidates and halves them when full: linear on average, without a heap's bookkeeping.
    let mut kept: Vec<Candidate> = Vec::with_capacity(2 * k);
    let mut floor = f32::NEG_INFINITY;
    for (index, &value) in row.iter().enumerate() {
        // An equal value with a higher id never displaces one of the k best.
        if value > floor || (kept.len() < k && value == floor) {
            kept.push((index as TokenId, value));
            if kept.len() == 2 * k {
                kept.select_nth_unstable_by(k - 1, best_first);
                kept.truncate(k);
                floor = kept[k - 1].1;
            }
        }
    }
    kept.sort_unstable_by(best_first);
    kept.truncate(k);
    kept
}

/// The smallest set of the best candidates whose share of `total` mass reaches `p`. `mass(logit)` is relative to `total`.
fn nucleus(sorted: &[Candidate], p: f64, total: f64, top: f32) -> Option<usize> {
    let mut mass = 0.0;
    for (index, &(_, logit)) in sorted.iter().enumerate() {
        mass += f64::from((logit - top).exp());
        if mass >= p * total {
            return Some(index + 1);
        }
    }
    None
}

/// Who may still be chosen.
fn survivors(row: &[f32], sampling: &Sampling, top: f32) -> Vec<Candidate> {
    let mut kept: Option<Vec<Candidate>> = None;
    if sampling.top_k > 0 && (sampling.top_k as usize) < row.len() {
        kept = Some(top_k(row, sampling.top_k as usize));
    }
    if sampling.top_p < 1.0 {
        let p = f64::from(sampling.top_p);
        if let Some(kept) = &mut kept {
            let total = kept.iter().map(|&(_, logit)| f64::from((logit - top).exp())).sum();
            let length = nucleus(kept, p, total, top).unwrap_or(kept.len());
            kept.truncate(length);
        } else {
            let total = mass(row, top);
            // The nucleus is small as a rule: widen the search only as far as needed.
            let mut width = 64;
            kept = Some(loop {
                let mut best = top_k(row, width);
                let length = nucleus(&best, p, total, top);
                if length.is_some() || width >= row.len() {
                    best.truncate(length.unwrap_or(best.len()));
                    break best;
                }
                width = width.saturating_mul(16);
            });
        }
    }
    if sampling.min_p > 0.0 {
        let floor = top + sampling.min_p.ln();
        kept = Some(match kept {
            Some(mut kept) => {
                kept.retain(|&(_, logit)| logit >= floor);
                kept
            }
            None => all(row).filter(|&(_, logit)| logit >= floor).collect(),
        });
    }
    let mut kept = kept.unwrap_or_else(|| all(row).filter(|&(_, logit)| logit > f32::NEG_INFINITY).collect());
    // The draw walks the ids upwards, whichever filter let them through: a filter that drops nothing changes nothing.
    kept.sort_unstable_by_key(|&(token, _)| token);
    kept
}

fn all(row: &[f32]) -> impl Iterator<Item = Candidate> + '_ {
    row.iter().enumerate().map(|(index, &logit)| (index as TokenId, logit))
}

/// Σ exp(logit − top).
fn mass(row: &[f32], top: f32) -> f64 {
    row.chunks(256).map(|chunk| f64::from(chunk.iter().map(|&logit| (logit - top).exp()).sum::<f32>())).sum()
}

/// Chooses the `index`-th token of a reply from `row`, `[vocab_size]` raw logits.
///
/// # Errors
/// [`ErrorKind::Unexpected`] when the logits are not numbers.
pub(crate) fn sample(row: &[f32], sampling: &Sampling, index: u64) -> Result<TokenId> {
    let (first, top) = maximum(row)?;
    if sampling.temperature == 0.0 {
        return Ok(first);
    }
    let kept = survivors(row, sampling, top);
    let weights: Vec<f32> = kept.iter().map(|&(_, logit)| ((logit - top) / sampling.temperature).exp()).collect();
    let mut left = uniform(sampling.seed, index) * weights.iter().copied().map(f64::from).sum::<f64>();
    let mut choice = first;
    for (&(token, _), &weight) in kept.iter().zip(&weights) {
        // Rounding may leave a little at the end; then it is the last one that can be chosen at all.
        if weight > 0.0 {
            choice = token;
        }
        left -= f64::from(weight);
        if left < 0.0 {
            break;
        }
    }
    Ok(choice)
}

/// Log probabilities under the model's own distribution: log softmax of the raw logits.
///
/// # Errors
/// [`ErrorKind::Unexpected`] when the logits are not numbers.
pub(crate) fn logprobs(row: &[f32], chosen: TokenId, count: usize) -> Result<PositionLogprobs> {
    let (_, top) = maximum(row)?;
    let log_total = mass(row, top).ln();
    let of = |logit: f32| (f64::from(logit - top) - log_total) as f32;
    let logit = row.get(chosen as usize).copied().unwrap_or(f32::NEG_INFINITY);
    Ok(PositionLogprobs {
        chosen: TokenLogprob { token: chosen, logprob: of(logit) },
        top: top_k(row, count).into_iter().map(|(token, logit)| TokenLogprob { token, logprob: of(logit) }).collect(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stderr)]
    use proptest::prelude::*;

    use super::*;

    fn hot(sampling: Sampling) -> Sampling {
        Sampling { temperature: 1.0, ..sampling }
    }

    #[test]
    fn greedy_takes_the_first_maximum() {
        for length in [1, 3, 8, 9, 63, 64, 65] {
            for place in 0..length {
                let mut row = vec![0.5; length];
                row[place] = 2.0;
                if place + 1 < length {
                    row[length - 1] = 2.0;
                }
                assert_eq!(sample(&row, &Sampling::default(), 0).unwrap() as usize, place);
            }
        }
        assert_eq!(sample(&[f32::NEG_INFINITY, -1.0], &Sampling::default(), 0).unwrap(), 1);
    }

    #[test]
    fn what_is_not_a_number_is_an_error_wherever_it_stands() {
        for bad in [f32::NAN, f32::INFINITY] {
            for place in 0..19 {
                let mut row = vec![0.0; 19];
                row[place] = bad;
                assert!(sample(&row, &Sampling::default(), 0).is_err());
                assert!(logprobs(&row, 0, 1).is_err());
            }
        }
        assert!(sample(&[], &Sampling::default(), 0).is_err());
        assert!(sample(&[f32::NEG_INFINITY; 9], &Sampling::default(), 0).is_err());
    }

    #[test]
    fn frequencies_follow_the_distribution_and_the_filters() {
        // Probabilities 0.5, 0.25, 0.125, 0.125.
        let row: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect();
        let count = |sampling: Sampling| {
            let mut counts = [0; 4];
            for index in 0..8000 {
                counts[sample(&row, &sampling, index).unwrap() as usize] += 1;
            }
            counts
        };
        let near = |counts: [i32; 4], expected: [f64; 4]| {
            for (count, share) in counts.iter().zip(expected) {
                assert!((f64::from(*count) / 8000.0 - share).abs() < 0.02, "{counts:?} {expected:?}");
            }
        };
        let base = hot(Sampling::default());
        near(count(base.clone()), [0.5, 0.25, 0.125, 0.125]);
        near(count(Sampling { top_k: 2, ..base.clone() }), [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
        // Equal logits: the lower id stays.
        near(count(Sampling { top_k: 3, ..base.clone() }), [4.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0, 0.0]);
        near(count(Sampling { top_p: 0.7, ..base.clone() }), [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
        near(count(Sampling { min_p: 0.4, ..base.clone() }), [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
        // Half the temperature squares the ratios; filters are on the unscaled distribution.
        near(count(Sampling { temperature: 0.5, top_k: 2, ..base.clone() }), [0.8, 0.2, 0.0, 0.0]);
        near(count(Sampling { temperature: 2.0, top_p: 0.5, ..base }), [1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_draw_depends_on_seed_and_index_alone() {
        let row: Vec<f32> = (0..100).map(|i| (i % 7) as f32 * 0.1).collect();
        let sampling = hot(Sampling { seed: 9, ..Sampling::default() });
        let draws: Vec<_> = (0..50).map(|index| sample(&row, &sampling, index).unwrap()).collect();
        let backwards: Vec<_> = (0..50).rev().map(|index| sample(&row, &sampling, index).unwrap()).collect();
        assert!(draws.iter().eq(backwards.iter().rev()));
        let other = Sampling { seed: 10, ..sampling.clone() };
        assert!((0..50).any(|index| sample(&row, &other, index).unwrap() != draws[index as usize]));
    }

    #[test]
    fn logprobs_are_the_log_softmax() {
        let row: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln() + 3.0).collect();
        let got = logprobs(&row, 1, 3).unwrap();
        assert!((got.chosen.logprob - 0.25f32.ln()).abs() < 1e-5);
        let top: Vec<_> = got.top.iter().map(|t| t.token).collect();
        assert_eq!(top, [0, 1, 2]);
        assert!(logprobs(&row, 0, 0).unwrap().top.is_empty());
        assert_eq!(logprobs(&row, 0, 99).unwrap().top.len(), 4);
    }

    /// What it costs with the family's vocabulary: the best of several, as the machine may have other work. The bound is
    /// loose, as tests are not fully optimised.
    #[test]
    fn a_large_vocabulary_is_cheap() {
        // As sharp as a model's: the first of a hundred thousand candidates are far ahead of the others.
        let row: Vec<f32> = (0..248_320u64).map(|i| (-uniform(1, i).ln() * 2.5) as f32).collect();
        let base = hot(Sampling::default());
        for (name, sampling) in [
            ("greedy", Sampling::default()),
            ("top_k 20", Sampling { top_k: 20, ..base.clone() }),
            ("top_k 20, top_p 0.8", Sampling { top_k: 20, top_p: 0.8, ..base.clone() }),
            ("min_p 0.05", Sampling { min_p: 0.05, ..base.clone() }),
            ("top_p 0.9", Sampling { top_p: 0.9, ..base.clone() }),
            ("all", base),
        ] {
            let mut best = std::time::Duration::MAX;
            for index in 0..10 {
                let begin = std::time::Instant::now();
                std::hint::black_box(sample(std::hint::black_box(&row), &sampling, index).unwrap());
                best = best.min(begin.elapsed());
            }
            eprintln!("{name}: {best:?}");
            assert!(best.as_millis() < 250, "{name}: {best:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn top_k_is_the_head_of_the_full_sort(values in proptest::collection::vec(0u8..20, 1..300), k in 0usize..40) {
            let row: Vec<f32> = values.iter().map(|&v| f32::from(v)).collect();
            let mut sorted: Vec<Candidate> = all(&row).collect();
            sorted.sort_by(best_first);
            sorted.truncate(k);
            prop_assert_eq!(top_k(&row, k), sorted);
        }

        #[test]
        fn filters_that_drop_nothing_change_nothing(
            values in proptest::collection::vec(-5.0f32..5.0, 1..200), seed: u64, index in 0u64..9,
        ) {
            let base = hot(Sampling { seed, ..Sampling::default() });
            let choice = sample(&values, &base, index).unwrap();
            let wide = Sampling { top_k: 200, min_p: 1e-30, ..base };
            prop_assert_eq!(sample(&values, &wide, index).unwrap(), choice);
        }
    }
}
