//! Every kernel set against exact sums in f64, and against itself under other tilings.

#![allow(clippy::unwrap_used)]

mod quantized;

use consort_gguf::{f32_to_bf16, f32_to_f16};
use proptest::prelude::*;

use super::*;

/// Numbers of unit scale that look random, from a seed.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn encode(format: Format, row: &[f32]) -> Vec<u8> {
    match format {
        Format::F32 => row.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Format::F16 => row.iter().flat_map(|v| f32_to_f16(*v).to_le_bytes()).collect(),
        Format::Bf16 => row.iter().flat_map(|v| f32_to_bf16(*v).to_le_bytes()).collect(),
    }
}

fn kind(format: Format) -> TensorType {
    match format {
        Format::F32 => TensorType::F32,
        Format::F16 => TensorType::F16,
        Format::Bf16 => TensorType::BF16,
    }
}

fn format() -> impl Strategy<Value = Format> {
    prop_oneof![Just(Format::F32), Just(Format::F16), Just(Format::Bf16)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn matmul_is_right_and_does_not_depend_on_its_neighbours(
        seed: u64, format in format(), rows in 1_usize..6, cols in 1_usize..150, tokens in 1_usize..9,
    ) {
        let weights = numbers(seed, rows * cols);
        let x = numbers(seed ^ 1, tokens * cols);
        let bytes: Vec<u8> = weights.chunks(cols).flat_map(|row| encode(format, row)).collect();
        let mut stored = vec![0.0; rows * cols];
        consort_gguf::dequantize(kind(format), &bytes, &mut stored).unwrap();
        let row_bytes = bytes.len() / rows;
        for set in KernelSet::available() {
            let (stride, offset) = (rows + 3, 2);
            let mut out = vec![0.0; tokens * stride];
            set.matmul(format, Matmul { weights: &bytes, row_bytes, x: &x, cols, out: &mut out, stride, offset });
            for t in 0..tokens {
                for r in 0..rows {
                    let (w, x) = (&stored[r * cols..][..cols], &x[t * cols..][..cols]);
                    let exact: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                    let ours = out[t * stride + offset + r];
                    prop_assert!((f64::from(ours) - exact).abs() < 1e-5, "{} {ours} {exact}", set.name());
                    // Alone, and from widened weights: the same bits.
                    let mut alone = [0.0];
                    let row = &bytes[r * row_bytes..][..row_bytes];
                    set.matmul(format, Matmul {
                        weights: row, row_bytes, x, cols, out: &mut alone, stride: 1, offset: 0,
                    });
                    prop_assert_eq!(alone[0].to_bits(), ours.to_bits());
                    let mut wide = vec![0.0; cols];
                    set.widen(Storage::Float(format), row, &mut wide);
                    prop_assert_eq!(&wide, w);
                    prop_assert_eq!(set.dot(&wide, x).to_bits(), ours.to_bits());
                }
            }
        }
    }

    #[test]
    fn attention_is_right_and_does_not_depend_on_where_pages_end(
        seed: u64, count in 1_usize..70, width in 1_usize..80, cut in 0_usize..70,
    ) {
        let (q, keys, values) = (numbers(seed, width), numbers(seed ^ 1, count * width), numbers(seed ^ 2, count * width));
        let cut = cut.min(count);
        for set in KernelSet::available() {
            let mut weights = vec![0.0; count];
            set.attention_scores(&q, &keys, 0.5, &mut weights);
            set.softmax(&mut weights);
            let exact: Vec<f64> = keys.chunks(width).map(|key| {
                (key.iter().zip(&q).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>() * 0.5).exp()
            }).collect();
            let total: f64 = exact.iter().sum();
            for (ours, exact) in weights.iter().zip(&exact) {
                prop_assert!((f64::from(*ours) - exact / total).abs() < 1e-5);
            }
            let (mut whole, mut parts) = (vec![0.0; width], vec![0.0; width]);
            set.attention_values(&weights, &values, &mut whole);
            set.attention_values(&weights[..cut], &values[..cut * width], &mut parts);
            set.attention_values(&weights[cut..], &values[cut * width..], &mut parts);
            prop_assert_eq!(&whole, &parts);
            for (c, ours) in whole.iter().enumerate() {
                let exact: f64 =
                    weights.iter().zip(values.chunks(width)).map(|(w, v)| f64::from(*w) * f64::from(v[c])).sum();
                prop_assert!((f64::from(*ours) - exact).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn the_delta_rule_is_right(seed: u64, dk in 1_usize..70, dv in 1_usize..40) {
        let norm = |mut x: Vec<f32>| {
            let length = x.iter().map(|x| x * x).sum::<f32>().sqrt() + 1e-6;
            x.iter_mut().for_each(|x| *x /= length);
            x
        };
        let (q, k, v) = (norm(numbers(seed, dk)), norm(numbers(seed ^ 1, dk)), numbers(seed ^ 2, dv));
        let before = numbers(seed ^ 3, dk * dv);
        let (decay, beta) = (0.9_f32, 0.6_f32);
        for set in KernelSet::available() {
            let (mut state, mut out) = (before.clone(), vec![0.0; dv]);
            set.delta_step(DeltaStep { state: &mut state, q: &q, k: &k, v: &v, decay, beta, out: &mut out });
            for j in 0..dv {
                let old = |i: usize| f64::from(before[j * dk + i]) * f64::from(decay);
                let known: f64 = (0..dk).map(|i| old(i) * f64::from(k[i])).sum();
                let delta = f64::from(beta) * (f64::from(v[j]) - known);
                let new = |i: usize| old(i) + delta * f64::from(k[i]);
                for i in 0..dk {
                    prop_assert!((f64::from(state[j * dk + i]) - new(i)).abs() < 1e-5);
                }
                let read: f64 = (0..dk).map(|i| new(i) * f64::from(q[i])).sum();
                prop_assert!((f64::from(out[j]) - read).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn elementwise_kernels_are_equal_on_every_set(seed: u64, count in 1_usize..100) {
        let (a, b) = (numbers(seed, count), numbers(seed ^ 1, count));
        let run = |set: KernelSet| {
            let mut out = vec![a.clone(); 4];
            set.silu_times(&mut out[0], &b);
            set.times_sigmoid(&mut out[1], &b);
            set.silu(&mut out[2]);
            set.gelu_tanh(&mut out[3]);
            out
        };
        let portable = run(KernelSet::available()[0]);
        for set in KernelSet::available() {
            prop_assert_eq!(&run(set), &portable);
            let (mut sum, mut product) = (a.clone(), a.clone());
            set.add_scaled(&mut sum, 0.5, &b);
            set.add_product(&mut product, &b, &a);
            for i in 0..count {
                prop_assert!((sum[i] - (a[i] + 0.5 * b[i])).abs() < 1e-6);
                prop_assert!((product[i] - (a[i] + b[i] * a[i])).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn halves_widen_exactly() {
    for bits in 0..=u16::MAX {
        let bytes = bits.to_le_bytes();
        let mut exact = [0.0];
        consort_gguf::dequantize(consort_gguf::TensorType::F16, &bytes, &mut exact).unwrap();
        let ours = lanes::f16_to_f32(bits);
        assert!(ours.to_bits() == exact[0].to_bits() || (ours.is_nan() && exact[0].is_nan()), "{bits:#x}");
    }
}
