//! From f32 to the stored layouts and back: how much is lost, and what happens at the edges.
#![allow(clippy::unwrap_used)]

use consort_core::ErrorKind;
use consort_gguf::{TensorType, dequantize, quantize};
use proptest::prelude::*;

/// Every type that is written, with the error of the round trip relative to normally distributed numbers (the root of
/// Σ (x − y)² ÷ Σ x²), and the same error weighted by an importance that was given, in percent. Measured; the test
/// allows 1 %.
const TYPES: [(TensorType, f64, f64); 15] = [
    (TensorType::F32, 0.0, 0.0),
    (TensorType::F16, 0.0208, 0.0210),
    (TensorType::BF16, 0.1665, 0.1639),
    (TensorType::Q8_0, 0.5351, 0.5315),
    (TensorType::Q6K, 1.6803, 1.0926),
    (TensorType::Q5K, 3.4309, 2.2199),
    (TensorType::Q5_1, 3.7780, 2.0817),
    (TensorType::Q5_0, 4.2687, 2.8209),
    (TensorType::Q4K, 6.9829, 4.3599),
    (TensorType::Q4_1, 7.8182, 4.2913),
    (TensorType::Q4_0, 8.5865, 5.6862),
    (TensorType::IQ4NL, 7.2963, 4.7813),
    (TensorType::IQ4XS, 7.3436, 4.8438),
    (TensorType::Q3K, 14.2919, 9.5191),
    (TensorType::Q2K, 26.2981, 14.4306),
];

/// Numbers from a splitmix generator through the Box-Muller transform.
fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        ((mixed >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    };
    let mut draw = || ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32;
    (0..count).map(|_| draw()).collect()
}

fn round_trip(kind: TensorType, values: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let bytes = quantize(kind, values, importance).unwrap();
    assert_eq!(Some(bytes.len() as u64), kind.bytes_for(values.len() as u64), "{kind}");
    let mut back = vec![f32::NAN; values.len()];
    dequantize(kind, &bytes, &mut back).unwrap();
    back
}

/// The relative error in percent; `importance` repeats.
fn error(values: &[f32], back: &[f32], importance: &[f32]) -> f64 {
    let (mut lost, mut all) = (0.0, 0.0);
    for (at, (x, y)) in values.iter().zip(back).enumerate() {
        let (x, y, w) = (f64::from(*x), f64::from(*y), f64::from(importance[at % importance.len()]));
        lost += w * (x - y).powi(2);
        all += w * x * x;
    }
    100.0 * (lost / all).sqrt()
}

fn importance(columns: usize) -> Vec<f32> {
    normal(columns, 2).iter().map(|value| (2.0 * value).exp()).collect()
}

#[test]
fn the_error_is_what_was_measured() {
    let values = normal(256 * 256, 1);
    let importance = importance(1024);
    let mut wrong = Vec::new();
    for (kind, plain, weighted) in TYPES {
        let measured = error(&values, &round_trip(kind, &values, None), &[1.0]);
        let back = round_trip(kind, &values, Some(&importance));
        let measured_weighted = error(&values, &back, &importance);
        // Both ways, so that the figures stay true when the search becomes better.
        let off = |measured: f64, stated: f64| (measured - stated).abs() > 0.01 * stated;
        if off(measured, plain) || off(measured_weighted, weighted) {
            wrong.push(format!("(TensorType::{kind}, {measured:.4}, {measured_weighted:.4})"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join(",\n"));
}

/// Real weights have heavier tails than normal ones, and biases of sign.
#[test]
fn heavy_tails_and_one_sided_numbers_lose_little_more() {
    let mut values = normal(256 * 64, 3);
    for value in &mut values[..256 * 32] {
        *value *= value.abs();
    }
    for value in &mut values[256 * 48..] {
        *value = value.abs() + 0.5;
    }
    for (kind, plain, _) in TYPES {
        let measured = error(&values, &round_trip(kind, &values, None), &[1.0]);
        assert!(measured <= 1.35 * plain, "{kind}: {measured:.3} %");
    }
}

#[test]
fn importance_moves_the_error_to_where_it_matters_less() {
    let values = normal(256 * 64, 4);
    let importance = importance(512);
    for (kind, _, _) in TYPES {
        let without = error(&values, &round_trip(kind, &values, None), &importance);
        let with = error(&values, &round_trip(kind, &values, Some(&importance)), &importance);
        match kind {
            TensorType::F32 | TensorType::F16 | TensorType::BF16 | TensorType::Q8_0 => assert!(with == without),
            _ => assert!(with < 0.8 * without, "{kind}: {with:.3} % with importance, {without:.3} % without"),
        }
        // Only ratios count, and none at all is the same as all alike.
        let scaled: Vec<f32> = importance.iter().map(|value| value * 1024.0).collect();
        assert_eq!(
            quantize(kind, &values, Some(&importance)).unwrap(),
            quantize(kind, &values, Some(&scaled)).unwrap(),
            "{kind}"
        );
        assert_eq!(
            quantize(kind, &values, Some(&[0.0; 256])).unwrap(),
            quantize(kind, &values, Some(&[1.0; 512])).unwrap(),
            "{kind}"
        );
    }
}

#[test]
fn extreme_blocks() {
    for (kind, relative, _) in TYPES {
        let zeros = round_trip(kind, &[0.0; 512], None);
        assert!(zeros.iter().all(|&y| y == 0.0), "{kind}: zeros");

        let mut spike = [0.0; 256];
        spike[77] = -3.0;
        let back = round_trip(kind, &spike, None);
        assert!((back[77] + 3.0).abs() < 0.01, "{kind}: the spike became {}", back[77]);
        assert!(back.iter().enumerate().all(|(at, &y)| at == 77 || y.abs() < 0.03), "{kind}: around the spike");

        for constant in [0.37, -0.37] {
            let back = round_trip(kind, &[constant; 256], None);
            assert!(back.iter().all(|y| (y - constant).abs() < 0.003), "{kind}: {constant} became {}", back[0]);
        }

        // Small, yet with a scale that f16 still has.
        let small: Vec<f32> = normal(1024, 5).iter().map(|value| value * 0.01).collect();
        assert!(error(&small, &round_trip(kind, &small, None), &[1.0]) < 1.2 * relative + 0.1, "{kind}: small");

        // So small that the scale has few bits or none: off by what a code times half of f16's smallest step can be.
        let step = 127.0 * 2.0_f32.powi(-25);
        for factor in [1e-6, 1e-7, 1e-9, 1e-20, 1e-38, 1e-42] {
            let tiny: Vec<f32> = normal(1024, 6).iter().map(|value| value * factor).collect();
            for (x, y) in tiny.iter().zip(round_trip(kind, &tiny, None)) {
                assert!((x - y).abs() <= 4.0 * factor + step, "{kind}: {x} became {y}");
            }
        }
    }
}

/// The largest numbers that a type can hold survive, ten times that are refused by name: nothing becomes infinite.
#[test]
fn huge_numbers_are_kept_or_refused() {
    for (kind, relative, _) in TYPES {
        let mut kept = 0;
        for exponent in 0..=38 {
            let factor = 10.0_f32.powi(exponent) / 4.0;
            let huge: Vec<f32> = normal(1024, 7).iter().map(|value| value.clamp(-4.0, 4.0) * factor).collect();
            match quantize(kind, &huge, None) {
                Ok(_) => {
                    let measured = error(&huge, &round_trip(kind, &huge, None), &[1.0]);
                    assert!(measured < 1.2 * relative + 0.1, "{kind}: {measured:.3} % at 1e{exponent}");
                    assert_eq!(kept, exponent, "{kind}: refused what is smaller");
                    kept += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::InvalidModel);
                    assert!(error.to_string().contains(&format!("larger than {kind} can hold")), "{error}");
                }
            }
        }
        assert!(kept > 4, "{kind} keeps numbers up to 1e{kept}");
    }
}

#[test]
fn what_cannot_be_written_is_refused_by_name() {
    let refused = |kind, values: &[f32], importance: Option<&[f32]>| {
        let error = quantize(kind, values, importance).unwrap_err();
        (error.kind(), error.to_string())
    };
    for (kind, _, _) in TYPES {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = normal(256, 8);
            values[200] = bad;
            let (error, text) = refused(kind, &values, None);
            assert_eq!(error, ErrorKind::InvalidModel);
            assert!(text.contains(&format!("a number is {bad}")) && text.contains("200"), "{text}");
        }
        let values = normal(512, 9);
        for bad in [&[][..], &[1.0; 7], &[1.0; 1024], &[-1.0; 256], &[f32::NAN; 256], &[f32::INFINITY; 256]] {
            assert_eq!(refused(kind, &values, Some(bad)).0, ErrorKind::InvalidRequest, "{kind} {}", bad.len());
        }
        if kind.block_len() > 1 {
            assert_eq!(refused(kind, &values[..511], None).0, ErrorKind::InvalidRequest);
        }
        assert!(quantize(kind, &[], None).unwrap().is_empty());
    }
    for kind in [TensorType::Q8_1, TensorType::IQ2XS, TensorType::MXFP4, TensorType::I32, TensorType::F64] {
        let (error, text) = refused(kind, &[0.0; 256], None);
        assert_eq!(error, ErrorKind::Unsupported);
        assert!(text.contains(kind.name()), "{text}");
    }
}

/// A number of any size and sign, many of them zero or near the others.
fn number() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -1.0_f32..1.0,
        1 => Just(0.0),
        1 => (-1.0_f32..1.0, -40..5).prop_map(|(value, exponent)| value * 10.0_f32.powi(exponent)),
    ]
}

/// An importance, often none.
fn weight() -> impl Strategy<Value = f32> {
    prop_oneof![Just(0.0_f32), 0.0_f32..1e3, 0.0_f32..1e-30]
}

fn kinds() -> impl Strategy<Value = TensorType> {
    proptest::sample::select(TYPES.map(|(kind, _, _)| kind).to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// No block comes back worse than if zeros had been written, up to the smallest steps of an f16 scale.
    #[test]
    fn whatever_is_written_is_better_than_zeros(
        kind in kinds(),
        values in proptest::collection::vec(number(), 256),
        importance in proptest::option::of(proptest::collection::vec(weight(), 256)),
    ) {
        let back = round_trip(kind, &values, importance.as_deref());
        let squares = |numbers: &mut dyn Iterator<Item = f32>| numbers.map(|v| f64::from(v).powi(2)).sum::<f64>();
        for (x, y) in values.chunks(256).zip(back.chunks(256)) {
            prop_assert!(y.iter().all(|y| y.is_finite()));
            let zeros = squares(&mut x.iter().copied());
            let lost = squares(&mut x.iter().zip(y).map(|(x, y)| x - y));
            // With importance, what does not matter may pay; still within the range of the block.
            let largest = x.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            let allowed = if importance.is_some() { 256.0 * f64::from(2.0 * largest).powi(2) } else { zeros };
            prop_assert!(lost <= allowed + 256.0 * 1e-6_f64.powi(2), "{kind}: lost {lost} of {zeros}");
        }
    }

    /// Any bits at all: an error, or finite numbers.
    #[test]
    fn any_bits_are_written_or_refused(kind in kinds(), bits in proptest::collection::vec(any::<u32>(), 256)) {
        let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        if let Ok(bytes) = quantize(kind, &values, None) {
            let mut back = vec![f32::NAN; 256];
            dequantize(kind, &bytes, &mut back).unwrap();
            prop_assert!(back.iter().all(|y| y.is_finite()));
        }
    }

    /// The same for numbers that are all in a range of exponents, where most types do write.
    #[test]
    fn any_magnitude_is_written_or_refused(
        kind in kinds(),
        exponent in 0_u32..255,
        bits in proptest::collection::vec(any::<u32>(), 256),
    ) {
        let values: Vec<f32> = bits.into_iter().map(|bits| f32::from_bits(bits & 0x807F_FFFF | exponent << 23)).collect();
        if let Ok(bytes) = quantize(kind, &values, None) {
            let mut back = vec![f32::NAN; 256];
            dequantize(kind, &bytes, &mut back).unwrap();
            let largest = values.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            // The least f16 above zero is 6e-8: a scale is off by up to half of it, 128 times over.
            prop_assert!(back.iter().all(|y| y.abs() <= 1.5 * largest + 4e-6), "{kind}");
        }
    }
}
