//! The types with blocks of 32: without importance as the format's reference writes them, to the bit; with it, fitted.

use half::f16;

use super::fit::{self, Base, Levels, NEGLIGIBLE, Nonlinear, Uniform};
use super::half;

/// The weights of a block's numbers, where there are any.
pub(super) type Weights<'a> = Option<&'a [f32; 32]>;

/// The number of largest magnitude, the first of several.
fn extreme(x: &[f32; 32]) -> f32 {
    x.iter().fold(0.0_f32, |extreme, &x| if x.abs() > extreme.abs() { x } else { extreme })
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Codes below 16, two a byte: number i below number i + 16.
fn put_halves(codes: &[u8; 32], out: &mut [u8]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = codes[i] & 15 | codes[i + 16] << 4;
    }
}

/// The fifth bits of codes, a bit each.
fn put_fifth_bits(codes: &[u8; 32], out: &mut [u8]) {
    for (codes, out) in codes.as_chunks::<8>().0.iter().zip(out) {
        *out = codes.iter().rev().fold(0, |bits, code| bits << 1 | code >> 4);
    }
}

/// A scale and codes for the levels `LOW..=HIGH`, coded from 0. The reference puts the number of largest magnitude, whatever
/// its sign, on `LOW`, and rounds with the scale as it was before it became f16.
fn symmetric<const LOW: i16, const HIGH: i16>(x: &[f32; 32], weights: Weights<'_>) -> Option<(f16, [u8; 32])> {
    let lowest = f32::from(LOW);
    let Some(weights) = weights else {
        let scale = extreme(x) / lowest;
        let inverse = inverse(scale);
        // The cast cuts, and makes 0 of what is no number (zero times an infinite inverse).
        let code = |x: f32| ((x * inverse + (0.5 - lowest)) as u8).min((HIGH - LOW) as u8);
        return Some((half(scale)?, x.map(code)));
    };
    let scale = half(fit::scale::<Uniform<LOW, HIGH>, 32>(x, weights).scale)?;
    let inverse = inverse(scale.to_f32());
    let code = |x: f32| (Uniform::<LOW, HIGH>::nearest(x * inverse) - lowest) as u8;
    Some((scale, x.map(code)))
}

/// A scale, a minimum and codes 0..=`TOP`. The reference spans the block from its smallest to its largest number.
fn affine<const TOP: i16>(x: &[f32; 32], weights: Weights<'_>) -> Option<(f16, f16, [u8; 32])> {
    let Some(weights) = weights else {
        let low = x.iter().fold(f32::INFINITY, |low, &x| low.min(x));
        let high = x.iter().fold(f32::NEG_INFINITY, |high, &x| high.max(x));
        let scale = (high - low) / f32::from(TOP);
        let inverse = inverse(scale);
        let code = |x: f32| (((x - low) * inverse + 0.5) as u8).min(TOP as u8);
        return Some((half(scale)?, half(low)?, x.map(code)));
    };
    let line = fit::line::<TOP, 32>(x, weights, Base::Free);
    let (scale, minimum) = (half(line.scale)?, half(line.base)?);
    let (inverse, base) = (inverse(scale.to_f32()), minimum.to_f32());
    let code = |x: f32| fit::round(((x - base) * inverse).clamp(0.0, f32::from(TOP))) as u8;
    Some((scale, minimum, x.map(code)))
}

pub(super) fn q4_0(x: &[f32; 32], weights: Weights<'_>, out: &mut [u8; 18]) -> Option<()> {
    let (scale, codes) = symmetric::<-8, 7>(x, weights)?;
    out[..2].copy_from_slice(&scale.to_le_bytes());
    put_halves(&codes, &mut out[2..]);
    Some(())
}

pub(super) fn q4_1(x: &[f32; 32], weights: Weights<'_>, out: &mut [u8; 20]) -> Option<()> {
    let (scale, minimum, codes) = affine::<15>(x, weights)?;
    out[..2].copy_from_slice(&scale.to_le_bytes());
    out[2..4].copy_from_slice(&minimum.to_le_bytes());
    put_halves(&codes, &mut out[4..]);
    Some(())
}

pub(super) fn q5_0(x: &[f32; 32], weights: Weights<'_>, out: &mut [u8; 22]) -> Option<()> {
    let (scale, codes) = symmetric::<-16, 15>(x, weights)?;
    out[..2].copy_from_slice(&scale.to_le_bytes());
    put_fifth_bits(&codes, &mut out[2..6]);
    put_halves(&codes, &mut out[6..]);
    Some(())
}

pub(super) fn q5_1(x: &[f32; 32], weights: Weights<'_>, out: &mut [u8; 24]) -> Option<()> {
    let (scale, minimum, codes) = affine::<31>(x, weights)?;
    out[..2].copy_from_slice(&scale.to_le_bytes());
    out[2..4].copy_from_slice(&minimum.to_le_bytes());
    put_fifth_bits(&codes, &mut out[4..8]);
    put_halves(&codes, &mut out[8..]);
    Some(())
}

/// Fitted always: the reference, too, searches here.
pub(super) fn iq4_nl(x: &[f32; 32], weights: Weights<'_>, out: &mut [u8; 18]) -> Option<()> {
    if extreme(x).abs() < NEGLIGIBLE {
        out.fill(0);
        // The level that is nearest to zero.
        out[2..].fill(Nonlinear::index(0.0) * 0x11);
        return Some(());
    }
    let scale = half(fit::scale::<Nonlinear, 32>(x, weights.unwrap_or(&[1.0; 32])).scale)?;
    let inverse = inverse(scale.to_f32());
    out[..2].copy_from_slice(&scale.to_le_bytes());
    put_halves(&x.map(|x| Nonlinear::index(x * inverse)), &mut out[2..]);
    Some(())
}
