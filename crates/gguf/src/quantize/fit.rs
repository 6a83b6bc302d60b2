//! The search for scales: weighted least squares over codes and scale, which depend on each other.
//!
//! For given codes the best scale is a quotient of two sums; for a given scale the best codes are the nearest levels. The
//! error as a function of the scale has many local minima, so a grid of scales is tried, each with the best scale for the
//! codes that it implies, and the winner is polished by alternating between the two until nothing improves.

use crate::dequantize::NONLINEAR_LEVELS;

/// Sums run in this many lanes of fixed order, which a compiler may turn into vectors without changing a bit.
const LANES: usize = 8;
/// A block whose numbers are all below this is zero in every type: no f16 scale is small enough for it.
pub(super) const NEGLIGIBLE: f32 = 1e-9;
/// How often codes and scale are brought in line with each other after the grid.
const POLISH: usize = 3;

/// The values that a code can stand for, in units of the scale.
pub(super) trait Levels {
    /// The level of largest magnitude.
    const EXTREME: f32;
    /// The largest number of a block is tried at this distance, at most, from the extreme level.
    const REACH: f32;
    /// How many scales are tried on either side of the one that puts the largest number on the extreme level.
    const STEPS: i16;
    /// Whether a negative scale is worth trying: the levels have both signs, but not the same reach.
    const SIGNED: bool;
    /// The level nearest to `value`.
    fn nearest(value: f32) -> f32;
}

/// The whole numbers `LOW..=HIGH`.
pub(super) struct Uniform<const LOW: i16, const HIGH: i16>;

impl<const LOW: i16, const HIGH: i16> Levels for Uniform<LOW, HIGH> {
    const EXTREME: f32 = if -LOW > HIGH { LOW as f32 } else { HIGH as f32 };
    const REACH: f32 = if HIGH - LOW < 8 { 1.5 } else { 2.0 };
    const STEPS: i16 = match HIGH - LOW {
        ..16 => 8,
        16..32 => 16,
        _ => 6,
    };
    const SIGNED: bool = LOW < 0 && HIGH - LOW < 32;

    fn nearest(value: f32) -> f32 {
        round(value.clamp(f32::from(LOW), f32::from(HIGH)))
    }
}

/// The 16 levels of IQ4_NL and IQ4_XS.
pub(super) struct Nonlinear;

impl Nonlinear {
    /// The index of the nearest level. Borders between levels are multiples of a half, so the table has two entries a unit.
    pub(super) fn index(value: f32) -> u8 {
        const TABLE: [u8; 512] = {
            let mut table = [0; 512];
            let mut at = 0;
            while at < 512 {
                // The entry holds for values from (at − 256) ÷ 2 to half a unit more.
                let twice = at as i32 - 256;
                let mut index = 0;
                while index < 15 && NONLINEAR_LEVELS[index] as i32 + NONLINEAR_LEVELS[index + 1] as i32 <= twice {
                    index += 1;
                }
                table[at] = index as u8;
                at += 1;
            }
            table
        };
        // Within ±128 and so within the table; the cast cuts, which for what is not negative means rounding down.
        TABLE[((value.clamp(-128.0, 127.75) + 128.0) * 2.0) as usize & 511]
    }
}

impl Levels for Nonlinear {
    const EXTREME: f32 = -127.0;
    const REACH: f32 = 26.0;
    const STEPS: i16 = 7;
    const SIGNED: bool = true;

    fn nearest(value: f32) -> f32 {
        f32::from(NONLINEAR_LEVELS[usize::from(Self::index(value))])
    }
}

/// The nearest whole number, ties to even, for magnitudes below 2²²: adding a number whose last place is worth one leaves
/// no fraction. Unlike `f32::round` it needs no call on the oldest machines.
pub(super) fn round(value: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (value + SHIFT) - SHIFT
}

fn sum(lanes: [f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The sums Σ w f₀(x), Σ w f₁(x), … over a block.
#[inline(always)]
fn sums<const K: usize, const N: usize>(x: &[f32; N], w: &[f32; N], terms: impl Fn(f32) -> [f32; K]) -> [f32; K] {
    let mut lanes = [[0.0; LANES]; K];
    for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            let terms = terms(x[lane]);
            for k in 0..K {
                lanes[k][lane] += w[lane] * terms[k];
            }
        }
    }
    lanes.map(sum)
}

/// A scale and how much the error grows when one departs from it: by `curvature` times the square of the distance.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    pub(super) scale: f32,
    pub(super) curvature: f32,
}

/// The scale s that minimises Σ w (x − s l)², where l is the level nearest to x ÷ s.
///
/// `N` is a multiple of 8; magnitudes are below 10¹⁵ and weights of order one, so that no sum overflows.
pub(super) fn scale<L: Levels, const N: usize>(x: &[f32; N], w: &[f32; N]) -> Scale {
    let extreme = x.iter().fold(0.0_f32, |extreme, &x| if x.abs() > extreme.abs() { x } else { extreme });
    let mut best = Scale { scale: 0.0, curvature: 0.0 };
    if extreme.abs() < 1e-20 {
        return best;
    }
    // The error is Σ w x² less the gain (Σ w x l)² ÷ Σ w l².
    let mut best_gain = 0.0;
    let mut attempt = |inverse: f32| {
        let [xl, ll] = sums(x, w, |x| {
            let level = L::nearest(x * inverse);
            [x * level, level * level]
        });
        let gain = xl * xl / ll;
        let better = ll > 0.0 && gain > best_gain;
        if better {
            best_gain = gain;
            best = Scale { scale: xl / ll, curvature: ll };
        }
        (better, best.scale)
    };
    let mut found = 0.0;
    for step in -L::STEPS..=L::STEPS {
        let inverse = (L::EXTREME + L::REACH * f32::from(step) / f32::from(L::STEPS)) / extreme;
        found = attempt(inverse).1;
        if L::SIGNED {
            found = attempt(-inverse).1;
        }
    }
    for _ in 0..POLISH {
        let inverse = 1.0 / found;
        if !inverse.is_finite() {
            break;
        }
        let (better, scale) = attempt(inverse);
        if !better {
            break;
        }
        found = scale;
    }
    best
}

/// Σ w (x − s l)² with l the level nearest to x ÷ s.
pub(super) fn scale_error<L: Levels, const N: usize>(x: &[f32; N], w: &[f32; N], scale: f32) -> f32 {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let [error] = sums(x, w, |x| {
        let rest = x - scale * L::nearest(x * inverse);
        [rest * rest]
    });
    error
}

/// Σ w x l and Σ w l² at a given scale, with which a scale that several blocks share is found anew.
pub(super) fn scale_products<L: Levels, const N: usize>(x: &[f32; N], w: &[f32; N], scale: f32) -> [f32; 2] {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    sums(x, w, |x| {
        let level = L::nearest(x * inverse);
        [x * level, level * level]
    })
}

/// Which base a line scale × code + base may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    /// Any.
    Free,
    /// Zero or less: the format subtracts a minimum that has no sign.
    NotPositive,
}

/// x ≈ scale × code + base, with codes from 0.
#[derive(Clone, Copy)]
pub(super) struct Line {
    pub(super) scale: f32,
    pub(super) base: f32,
    /// Σ w code²: how much the error grows with the square of a change of the scale.
    pub(super) scale_curvature: f32,
    /// Σ w: the same for the base.
    pub(super) base_curvature: f32,
}

/// The line that minimises Σ w (x − a q − b)², where q in 0..=`TOP` is the code nearest to (x − b) ÷ a. Limits as for
/// [`scale`].
pub(super) fn line<const TOP: i16, const N: usize>(x: &[f32; N], w: &[f32; N], base: Base) -> Line {
    let top = f32::from(TOP);
    let start = if base == Base::Free { x[0] } else { 0.0 };
    let low = x.iter().fold(start, |low, &x| low.min(x));
    let high = x.iter().fold(x[0], |high, &x| high.max(x));
    let range = high - low;
    let [weight] = sums(x, w, |_| [1.0]);
    let mut best = Line { scale: 0.0, base: low, scale_curvature: 0.0, base_curvature: weight };
    // What is below the last place of the numbers themselves has no shape to follow.
    if range < 1e-20 || range <= 1e-7 * low.abs() {
        return best;
    }
    let mut best_error = f32::INFINITY;
    let mut attempt = |scale: f32, offset: f32| {
        // In y = x − low, so that the sums do not cancel when the numbers lie far from zero.
        let inverse = 1.0 / scale;
        let [q1, q2, y1, yq, y2] = sums(x, w, |x| {
            let y = x - low;
            let code = round(((y - offset) * inverse).clamp(0.0, top));
            [code, code * code, y, y * code, y * y]
        });
        let determinant = weight * q2 - q1 * q1;
        let (mut scale, mut offset) = if determinant > 1e-6 * weight * q2 {
            ((weight * yq - y1 * q1) / determinant, (q2 * y1 - q1 * yq) / determinant)
        } else {
            // One code for all: a line through one point. It keeps its base.
            ((yq - offset * q1) / q2, offset)
        };
        if base == Base::NotPositive && offset + low > 0.0 {
            offset = -low;
            scale = (yq - offset * q1) / q2;
        }
        let error = y2 - 2.0 * (scale * yq + offset * y1)
            + scale * scale * q2
            + 2.0 * scale * offset * q1
            + offset * offset * weight;
        // Codes rise with the numbers, so the scale is positive; a base pinned to zero can leave none.
        if scale <= 0.0 || scale.is_nan() || error >= best_error {
            return None;
        }
        best_error = error;
        best = Line { scale, base: offset + low, scale_curvature: q2, base_curvature: weight };
        Some((scale, offset))
    };
    let (reach, steps) = if TOP < 8 { (1.2, 6_i16) } else { (1.0, 6) };
    let mut found = None;
    for step in -steps..=steps {
        found = attempt(range / (top + reach * f32::from(step) / f32::from(steps)), 0.0).or(found);
    }
    for _ in 0..POLISH {
        let Some((scale, offset)) = found else { break };
        found = attempt(scale, offset);
    }
    best
}

/// Σ w (x − a q − b)², with q in 0..=`TOP` the code nearest to (x − b) ÷ a.
pub(super) fn line_error<const TOP: i16, const N: usize>(x: &[f32; N], w: &[f32; N], scale: f32, base: f32) -> f32 {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let [error] = sums(x, w, |x| {
        let y = x - base;
        let rest = y - scale * round((y * inverse).clamp(0.0, f32::from(TOP)));
        [rest * rest]
    });
    error
}

/// At a given line: Σ w q, Σ w q², Σ w x, Σ w x q.
pub(super) fn line_products<const TOP: i16, const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    scale: f32,
    base: f32,
) -> [f32; 4] {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    sums(x, w, |x| {
        let code = round(((x - base) * inverse).clamp(0.0, f32::from(TOP)));
        [code, code * code, x, x * code]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonlinear_levels_are_the_nearest() {
        for step in -140 * 8..140 * 8 {
            let value = (step as f32 + 0.5) / 8.0;
            let distance = |level: i8| (f32::from(level) - value).abs();
            let nearest =
                NONLINEAR_LEVELS.iter().copied().fold(f32::INFINITY, |least, level| least.min(distance(level)));
            let ours = NONLINEAR_LEVELS[usize::from(Nonlinear::index(value))];
            assert_eq!(distance(ours), nearest, "{value}");
        }
        assert_eq!(Nonlinear::nearest(f32::INFINITY), 113.0);
        assert_eq!(Nonlinear::nearest(f32::NEG_INFINITY), -127.0);
    }

    /// Blocks of whole numbers from a small generator, with weights from 0.25 to 4.
    fn blocks(count: u32) -> impl Iterator<Item = ([f32; 16], [f32; 16])> {
        let mut state = 12_345_u32;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as f32 / 65_536.0
        };
        (0..count).map(move |_| {
            // The sum of several is bell-shaped.
            (
                std::array::from_fn(|_| next() + next() + next() - 1.5),
                std::array::from_fn(|_| 0.25 * 16.0_f32.powf(next())),
            )
        })
    }

    /// Against a search of ten thousand scales, which finds the best to four digits.
    #[test]
    fn the_grid_finds_nearly_the_best_scale() {
        fn lost<L: Levels>() -> f32 {
            let (mut ours, mut best) = (0.0, 0.0);
            for (x, w) in blocks(40) {
                ours += scale_error::<L, 16>(&x, &w, scale::<L, 16>(&x, &w).scale);
                let largest = x.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                best += (-5000_i16..=5000)
                    .map(|step| scale_error::<L, 16>(&x, &w, f32::from(step) / 2500.0 * largest / L::EXTREME))
                    .fold(f32::INFINITY, f32::min);
            }
            ours / best - 1.0
        }
        let lost =
            [lost::<Uniform<-4, 3>>(), lost::<Uniform<-8, 7>>(), lost::<Uniform<-16, 15>>(), lost::<Nonlinear>()];
        assert!(lost.iter().all(|lost| *lost < 0.03), "{lost:?}");
    }
}
