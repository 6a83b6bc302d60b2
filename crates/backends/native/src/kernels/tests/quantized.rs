//! The quantized formats: widening against `consort_gguf::dequantize` to the bit, products against f64, and every way of
//! computing a product against every other.

use consort_gguf::{dequantize, f32_to_f16};

use super::*;

/// Widths of rows: of one block, of blocks that do not fill a chunk, of whole chunks, of real models.
const WIDTHS: [u64; 7] = [32, 64, 224, 256, 288, 512, 3584];

/// The quantized formats, with the bytes of a block at which f16 scales stand.
const QUANTS: [(TensorType, Quant, &[usize]); 12] = [
    (TensorType::Q4_0, Quant::Q4_0, &[0]),
    (TensorType::Q4_1, Quant::Q4_1, &[0, 2]),
    (TensorType::Q5_0, Quant::Q5_0, &[0]),
    (TensorType::Q5_1, Quant::Q5_1, &[0, 2]),
    (TensorType::Q8_0, Quant::Q8_0, &[0]),
    (TensorType::IQ4NL, Quant::IQ4NL, &[0]),
    (TensorType::Q2K, Quant::Q2K, &[80, 82]),
    (TensorType::Q3K, Quant::Q3K, &[108]),
    (TensorType::Q4K, Quant::Q4K, &[0, 2]),
    (TensorType::Q5K, Quant::Q5K, &[0, 2]),
    (TensorType::Q6K, Quant::Q6K, &[208]),
    (TensorType::IQ4XS, Quant::IQ4XS, &[0]),
];

/// Bytes that look random, from a seed.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    numbers(seed, count).into_iter().map(|x| (x.to_bits() >> 9) as u8 ^ (x.to_bits() >> 3) as u8).collect()
}

/// Rows of any bytes, but with scales around one hundredth of either sign.
fn blocks(seed: u64, kind: TensorType, scales: &[usize], count: u64) -> Vec<u8> {
    let mut bytes = noise(seed, kind.bytes_for(count).unwrap() as usize);
    let drawn = numbers(seed ^ 7, bytes.len());
    for (block, values) in bytes.chunks_exact_mut(kind.block_bytes() as usize).zip(drawn.chunks(2)) {
        for (&at, value) in scales.iter().zip(values) {
            block[at..at + 2].copy_from_slice(&f32_to_f16(0.01 * value).to_le_bytes());
        }
    }
    bytes
}

fn dequantized(kind: TensorType, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; bytes.len() / kind.block_bytes() as usize * kind.block_len() as usize];
    dequantize(kind, bytes, &mut out).unwrap();
    out
}

/// Each format at each width that it allows.
fn cases() -> impl Iterator<Item = (TensorType, Quant, &'static [usize], u64)> {
    QUANTS.into_iter().flat_map(|(kind, quant, scales)| {
        WIDTHS.into_iter().filter(move |width| width % kind.block_len() == 0).map(move |w| (kind, quant, scales, w))
    })
}

fn product(set: KernelSet, quant: Quant, weights: &[u8], rows: usize, x: &[f32], cols: usize) -> Vec<f32> {
    let tokens = x.len() / cols;
    let quantized = set.quantize(quant, x, cols, tokens);
    let mut out = vec![0.0; tokens * rows];
    let mut outs: Vec<&mut [f32]> = out.chunks_exact_mut(rows).collect();
    let row_bytes = weights.len() / rows;
    set.product(quant, Product { weights, row_bytes, x: &quantized, out: &mut outs });
    out
}

/// What eight bits are defined to be: the nearest multiples of a 127th of a block's largest magnitude.
fn rounded(x: &[f32]) -> Vec<f64> {
    x.chunks(32)
        .flat_map(|block| {
            let largest = block.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            let (scale, inverse) = (f64::from(largest / 127.0), 127.0 / largest);
            block
                .iter()
                .map(move |x| if largest > 0.0 { f64::from((x * inverse).round_ties_even()) * scale } else { 0.0 })
        })
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_type_of_the_list_has_its_bytes() {
    for (kind, quant, scales, width) in cases() {
        assert_eq!(Storage::of(kind), Some(Storage::Quant(quant)));
        assert_eq!(blocks(1, kind, scales, width).len() as u64, kind.bytes_for(width).unwrap());
    }
    assert_eq!(Storage::ALL.len(), QUANTS.len() + 3);
    assert_eq!(Storage::of(TensorType::IQ2XXS), None);
}

#[test]
fn widened_weights_are_the_dequantized_ones() {
    for (kind, quant, scales, width) in cases() {
        for seed in 0..20 {
            let row = blocks(seed, kind, scales, width);
            let exact = dequantized(kind, &row);
            for set in KernelSet::available() {
                let mut wide = vec![0.0; width as usize];
                set.widen(Storage::Quant(quant), &row, &mut wide);
                assert_eq!(bits(&wide), bits(&exact), "{kind} of {width}, {}", set.name());
            }
        }
    }
}

#[test]
fn products_are_those_of_the_dequantized_weights() {
    let (rows, tokens) = (19, 11);
    for (kind, quant, scales, width) in cases() {
        let cols = width as usize;
        let weights = blocks(width, kind, scales, width * rows as u64);
        let exact = dequantized(kind, &weights);
        let mut x = numbers(width ^ 99, tokens * cols);
        // A block of zeros, and one of large numbers.
        x[..32].fill(0.0);
        x[cols..cols + 32].iter_mut().for_each(|x| *x *= 1000.0);
        for set in KernelSet::available() {
            let out = product(set, quant, &weights, rows, &x, cols);
            for (t, x) in x.chunks_exact(cols).enumerate() {
                let eight = rounded(x);
                for (r, w) in exact.chunks_exact(cols).enumerate() {
                    let ours = f64::from(out[t * rows + r]);
                    let terms = || w.iter().zip(&eight).map(|(w, x)| f64::from(*w) * x);
                    let (sum, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                    // Minima and offsets cancel: what rounds is larger than what is left.
                    assert!((ours - sum).abs() <= 1e-5 * size + 1e-9, "{kind} {cols} {}: {ours} {sum}", set.name());
                    // And against exact activations: half a step of each.
                    let steps: f64 = w
                        .chunks(32)
                        .zip(x.chunks(32))
                        .map(|(w, x)| {
                            let largest = x.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                            let weight: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
                            weight * f64::from(largest) / 127.0 / 2.0
                        })
                        .sum();
                    let whole: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                    assert!((ours - whole).abs() <= steps * 1.001 + 1e-5 * size, "{kind} {cols} {ours} {whole}");
                }
            }
        }
    }
}

#[test]
fn a_product_depends_on_its_row_and_its_vector_alone() {
    let (rows, tokens) = (37, 21);
    for (kind, quant, scales, width) in cases() {
        let cols = width as usize;
        let weights = blocks(width ^ 3, kind, scales, width * rows as u64);
        let row_bytes = weights.len() / rows;
        let x = numbers(width ^ 5, tokens * cols);
        for set in KernelSet::available() {
            let all = product(set, quant, &weights, rows, &x, cols);
            for count in 1..tokens {
                let first = tokens - count;
                let some = product(set, quant, &weights, rows, &x[first * cols..], cols);
                assert_eq!(bits(&some), bits(&all[first * rows..]), "{kind} {cols} {} of {count}", set.name());
            }
            for first in [1, 7, 16, 36] {
                let some = product(set, quant, &weights[first * row_bytes..], rows - first, &x, cols);
                for (some, all) in some.chunks_exact(rows - first).zip(all.chunks_exact(rows)) {
                    assert_eq!(bits(some), bits(&all[first..]), "{kind} {cols} {} from {first}", set.name());
                }
            }
            // Vectors that are made ready in parts.
            let parts = x.chunks(8 * cols).map(|x| set.quantize(quant, x, cols, tokens)).collect();
            let mut out = vec![0.0; tokens * rows];
            let mut outs: Vec<&mut [f32]> = out.chunks_exact_mut(rows).collect();
            let joined = Quantized::joined(parts);
            set.product(quant, Product { weights: &weights, row_bytes, x: &joined, out: &mut outs });
            assert_eq!(bits(&out), bits(&all), "{kind} {cols} {} in parts", set.name());
        }
    }
}

#[test]
fn kernel_sets_agree() {
    let (rows, tokens) = (17, 9);
    for (kind, quant, scales, width) in cases() {
        let cols = width as usize;
        let weights = blocks(width ^ 31, kind, scales, width * rows as u64);
        let x = numbers(width ^ 51, tokens * cols);
        let sets = KernelSet::available();
        let each: Vec<_> = sets.iter().map(|set| product(*set, quant, &weights, rows, &x, cols)).collect();
        // Those that multiply and add at once agree to the bit: the order is one.
        for pair in each[1..].windows(2) {
            assert_eq!(bits(&pair[0]), bits(&pair[1]), "{kind} {cols}");
        }
        let exact = dequantized(kind, &weights);
        for other in &each[1..] {
            for (index, (ours, portable)) in other.iter().zip(&each[0]).enumerate() {
                let (w, x) = (&exact[index % rows * cols..][..cols], &x[index / rows * cols..][..cols]);
                let size: f32 = w.iter().zip(x).map(|(w, x)| (w * x).abs()).sum();
                assert!((ours - portable).abs() <= 2e-6 * size, "{kind} {cols}: {ours} {portable}");
            }
        }
    }
}

#[test]
fn any_bytes_multiply() {
    for (kind, quant, _, width) in cases() {
        let cols = width as usize;
        for seed in 0..10 {
            let weights = noise(seed, kind.bytes_for(width * 5).unwrap() as usize);
            let x = numbers(seed, 9 * cols);
            for set in KernelSet::available() {
                let all = product(set, quant, &weights, 5, &x, cols);
                let alone = product(set, quant, &weights, 5, &x[8 * cols..], cols);
                for (all, alone) in all[40..].iter().zip(&alone) {
                    assert!(all.to_bits() == alone.to_bits() || all.is_nan() && alone.is_nan());
                }
                let mut wide = vec![0.0; cols];
                set.widen(Storage::Quant(quant), &weights[..weights.len() / 5], &mut wide);
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    for (kind, quant, scales, width) in cases() {
        let cols = width as usize;
        let weights = blocks(8, kind, scales, width * 3);
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = numbers(2, 6 * cols);
            x[2 * cols + 5] = value;
            // So small that its reciprocal would be infinite.
            x[4 * cols..5 * cols].fill(1e-39);
            for set in KernelSet::available() {
                let out = product(set, quant, &weights, 3, &x, cols);
                for (t, out) in out.chunks_exact(3).enumerate() {
                    assert!(out.iter().all(|out| out.is_nan() == (t == 2)), "{kind} {} {t} {out:?}", set.name());
                }
            }
        }
    }
}
