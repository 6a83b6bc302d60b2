//! Exponentials and the activations made of them, in plain arithmetic that vectorizes and is equal on every processor.

/// e^x for |x| ≤ 87, within 2 units in the last place; clamped beyond, NaN stays NaN.
///
/// x is split into n·ln 2 + r with |r| ≤ ½·ln 2; e^r is its Taylor polynomial of degree 7 (the rest is below 2⁻²⁷), and
/// 2ⁿ is put into the exponent's bits.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // ln 2 in two parts: the first has few enough bits that n times it is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 · 2²³ rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    let p = (p * r * r + r) + 1.0;
    // A saturating cast would keep the loop from vectorizing; n lies within ±127, and NaN only disturbs the exponent of
    // a product that is NaN anyway.
    let biased = (n + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    p * f32::from_bits(biased << 23)
}

/// 1 / (1 + e^−x).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// x · sigmoid(x).
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The tanh form of GELU: ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))), by ½·(1 + tanh u) = sigmoid(2u).
#[inline(always)]
pub(super) fn gelu_tanh(x: f32) -> f32 {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769_2;
    x * sigmoid(TWICE_SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for step in -870_000..=870_000 {
            let x = step as f32 * 1e-4;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / exact - 1.0).abs() < 2.4e-7, "{x}: {ours} {exact}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn activations_match_their_definitions() {
        for step in -2000..=2000 {
            let x = f64::from(step) * 0.01;
            let close = |ours: f32, exact: f64| assert!((f64::from(ours) - exact).abs() < 2e-6, "{x}: {ours} {exact}");
            close(sigmoid(x as f32), 1.0 / (1.0 + (-x).exp()));
            close(silu(x as f32), x / (1.0 + (-x).exp()));
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            close(gelu_tanh(x as f32), 0.5 * x * (1.0 + u.tanh()));
        }
    }
}
