//! The K-quants and IQ4_XS: super-blocks of 256 numbers, whose sub-blocks have small whole scales of a common f16 scale.
//!
//! Three steps. Each sub-block gets the scale (and minimum) that is best for it alone. The common scale is fitted to those
//! as if they were the numbers of a block, each with the weight by which the error grows when its scale is missed: so the
//! same search serves both levels. Then, in turns, each sub-block takes the best of the neighbouring whole scales, codes
//! follow, and the common scales are solved for anew, until nothing improves.

use half::f16;

use super::fit::{self, Base, Levels, NEGLIGIBLE, Nonlinear, Uniform};
use super::half;

/// How often the common scales are solved for anew.
const ROUNDS: usize = 3;

/// The f16 nearest to `scale`, but not zero unless `scale` is: the smallest f16 still serves as a common scale.
fn common(scale: f32) -> Option<f16> {
    let rounded = half(scale)?;
    if scale != 0.0 && rounded.to_f32() == 0.0 {
        return Some(if scale < 0.0 { -f16::MIN_POSITIVE_SUBNORMAL } else { f16::MIN_POSITIVE_SUBNORMAL });
    }
    Some(rounded)
}

fn quotient(of: f32, by: f32) -> f32 {
    if by == 0.0 { 0.0 } else { of / by }
}

fn is_negligible(x: &[f32; 256]) -> bool {
    x.iter().all(|x| x.abs() < NEGLIGIBLE)
}

/// x ≈ common × scale × level.
struct Scaled<const SUBS: usize> {
    common: f16,
    scales: [i16; SUBS],
}

impl<const SUBS: usize> Scaled<SUBS> {
    /// Fits `SUBS` sub-blocks of `LEN` numbers, whose whole scales are of the levels `S`, from `LOW` to `HIGH`.
    fn fit<L: Levels, const LOW: i16, const HIGH: i16, const LEN: usize>(
        x: &[[f32; LEN]; SUBS],
        w: &[[f32; LEN]; SUBS],
    ) -> Option<Self> {
        let mut ideal = [0.0; SUBS];
        let mut curvature = [0.0; SUBS];
        for sub in 0..SUBS {
            let found = fit::scale::<L, LEN>(&x[sub], &w[sub]);
            (ideal[sub], curvature[sub]) = (found.scale, found.curvature);
        }
        let mean = curvature.iter().sum::<f32>() / SUBS as f32;
        curvature = curvature.map(|curvature| quotient(curvature, mean));
        let mut shared = common(fit::scale::<Uniform<LOW, HIGH>, SUBS>(&ideal, &curvature).scale)?;
        let mut best = Self { common: f16::ZERO, scales: [0; SUBS] };
        let mut best_error = f32::INFINITY;
        for _ in 0..ROUNDS {
            let unit = shared.to_f32();
            let mut scales = [0; SUBS];
            let (mut error, mut products) = (0.0, [0.0; 2]);
            for sub in 0..SUBS {
                let (x, w) = (&x[sub], &w[sub]);
                let centre = quotient(ideal[sub], unit).clamp(f32::from(LOW), f32::from(HIGH)).round() as i16;
                let (mut chosen, mut least) = (centre, f32::INFINITY);
                for candidate in [centre, centre - 1, centre + 1] {
                    let error = fit::scale_error::<L, LEN>(x, w, unit * f32::from(candidate));
                    if (LOW..=HIGH).contains(&candidate) && error < least {
                        (chosen, least) = (candidate, error);
                    }
                }
                scales[sub] = chosen;
                error += least;
                let whole = f32::from(chosen);
                let [xl, ll] = fit::scale_products::<L, LEN>(x, w, unit * whole);
                products = [products[0] + whole * xl, products[1] + whole * whole * ll];
            }
            if error >= best_error {
                break;
            }
            best_error = error;
            best = Self { common: shared, scales };
            let next = common(quotient(products[0], products[1]))?;
            if next == shared {
                break;
            }
            shared = next;
        }
        Some(best)
    }

    /// The number by which those of sub-block `sub` are divided before they are rounded.
    fn inverse(&self, sub: usize) -> f32 {
        // As the reader computes it.
        quotient(1.0, self.common.to_f32() * f32::from(self.scales[sub]))
    }
}

/// x ≈ scale of scales × scale × code − scale of minima × minimum.
struct Lines<const SUBS: usize> {
    scale: f16,
    minimum: f16,
    scales: [u8; SUBS],
    minima: [u8; SUBS],
}

impl<const SUBS: usize> Lines<SUBS> {
    /// Fits `SUBS` sub-blocks of `LEN` numbers with codes 0..=`TOP` and whole scales and minima 0..=`WHOLE`.
    fn fit<const TOP: i16, const WHOLE: i16, const LEN: usize>(
        x: &[[f32; LEN]; SUBS],
        w: &[[f32; LEN]; SUBS],
    ) -> Option<Self> {
        let ideal: [fit::Line; SUBS] =
            std::array::from_fn(|sub| fit::line::<TOP, LEN>(&x[sub], &w[sub], Base::NotPositive));
        let shared = |values: [f32; SUBS], curvature: [f32; SUBS]| {
            let mean = curvature.iter().sum::<f32>() / SUBS as f32;
            let weights = curvature.map(|curvature| quotient(curvature, mean));
            common(fit::scale::<Uniform<0, WHOLE>, SUBS>(&values, &weights).scale)
        };
        let mut scale = shared(ideal.map(|line| line.scale), ideal.map(|line| line.scale_curvature))?;
        let mut minimum = shared(ideal.map(|line| -line.base), ideal.map(|line| line.base_curvature))?;
        let mut best = Self { scale: f16::ZERO, minimum: f16::ZERO, scales: [0; SUBS], minima: [0; SUBS] };
        let mut best_error = f32::INFINITY;
        for _ in 0..ROUNDS {
            let (unit, minimum_unit) = (scale.to_f32(), minimum.to_f32());
            let (mut scales, mut minima) = ([0; SUBS], [0; SUBS]);
            let mut error = 0.0;
            let mut normal = Normal::default();
            for sub in 0..SUBS {
                let (x, w) = (&x[sub], &w[sub]);
                let whole = |value: f32, unit: f32| quotient(value, unit).clamp(0.0, f32::from(WHOLE)).round() as i16;
                let (s, m) = (whole(ideal[sub].scale, unit), whole(-ideal[sub].base, minimum_unit));
                let (mut chosen, mut least) = ((s, m), f32::INFINITY);
                for s in [s, s - 1, s + 1] {
                    for m in [m, m - 1, m + 1] {
                        if !(0..=WHOLE).contains(&s) || !(0..=WHOLE).contains(&m) {
                            continue;
                        }
                        let base = -minimum_unit * f32::from(m);
                        let error = fit::line_error::<TOP, LEN>(x, w, unit * f32::from(s), base);
                        if error < least {
                            (chosen, least) = ((s, m), error);
                        }
                    }
                }
                (scales[sub], minima[sub]) = (chosen.0 as u8, chosen.1 as u8);
                error += least;
                let (s, m) = (f32::from(chosen.0), f32::from(chosen.1));
                let products = fit::line_products::<TOP, LEN>(x, w, unit * s, -minimum_unit * m);
                normal.add(s, m, ideal[sub].base_curvature, products);
            }
            if error >= best_error {
                break;
            }
            best_error = error;
            best = Self { scale, minimum, scales, minima };
            let Some((next_scale, next_minimum)) = normal.solve() else { break };
            let next = (common(next_scale)?, common(next_minimum)?);
            if next == (scale, minimum) {
                break;
            }
            (scale, minimum) = next;
        }
        Some(best)
    }

    fn code<const TOP: i16>(&self, sub: usize, x: f32) -> u8 {
        let scale = self.scale.to_f32() * f32::from(self.scales[sub]);
        let minimum = self.minimum.to_f32() * f32::from(self.minima[sub]);
        fit::round((x + minimum) * quotient(1.0, scale)).clamp(0.0, f32::from(TOP)) as u8
    }
}

/// The normal equations of the two common scales d and m: x ≈ d s q − m t, over all sub-blocks.
#[derive(Default)]
struct Normal {
    /// Σ w s² q², Σ w s q t, Σ w t².
    matrix: [f64; 3],
    /// Σ w x s q, Σ w x t.
    right: [f64; 2],
}

impl Normal {
    fn add(&mut self, s: f32, t: f32, weight: f32, [q, q2, x, xq]: [f32; 4]) {
        let [s, t, weight] = [s, t, weight].map(f64::from);
        let [q, q2, x, xq] = [q, q2, x, xq].map(f64::from);
        self.matrix[0] += s * s * q2;
        self.matrix[1] += s * t * q;
        self.matrix[2] += t * t * weight;
        self.right[0] += s * xq;
        self.right[1] += t * x;
    }

    /// The solution where there is one without a negative scale.
    #[allow(clippy::cast_possible_truncation)] // Rounded to f16 next.
    fn solve(&self) -> Option<(f32, f32)> {
        let [ss, st, tt] = self.matrix;
        let [xs, xt] = self.right;
        let determinant = ss * tt - st * st;
        if determinant <= 1e-12 * ss * tt {
            // All minima are zero, or the two columns are one.
            return (ss > 0.0 && tt == 0.0).then(|| ((xs / ss) as f32, 0.0));
        }
        let scale = (xs * tt - xt * st) / determinant;
        let minimum = (xs * st - xt * ss) / determinant;
        (scale > 0.0 && minimum >= 0.0).then_some((scale as f32, minimum as f32))
    }
}

/// The 256 numbers as `SUBS` sub-blocks of `LEN`, which is what all of them are.
fn subs<const LEN: usize, const SUBS: usize>(x: &[f32; 256]) -> Option<&[[f32; LEN]; SUBS]> {
    x.as_chunks::<LEN>().0.try_into().ok()
}

/// Puts number `n` of the 2-bit layout that Q2_K and Q3_K share into `bits`, which start as zero.
fn put_two_bits(bits: &mut [u8], n: usize, code: u8) {
    let (run, plane, lane) = (n / 128, n % 128 / 32, n % 32);
    bits[run * 32 + lane] |= code << (2 * plane);
}

pub(super) fn q2(x: &[f32; 256], w: &[f32; 256], out: &mut [u8; 84]) -> Option<()> {
    out.fill(0);
    if is_negligible(x) {
        return Some(());
    }
    let lines = Lines::<16>::fit::<3, 15, 16>(subs(x)?, subs(w)?)?;
    for (out, (scale, minimum)) in out.iter_mut().zip(lines.scales.iter().zip(&lines.minima)) {
        *out = scale | minimum << 4;
    }
    for (n, &x) in x.iter().enumerate() {
        put_two_bits(&mut out[16..80], n, lines.code::<3>(n / 16, x));
    }
    out[80..82].copy_from_slice(&lines.scale.to_le_bytes());
    out[82..].copy_from_slice(&lines.minimum.to_le_bytes());
    Some(())
}

pub(super) fn q3(x: &[f32; 256], w: &[f32; 256], out: &mut [u8; 110]) -> Option<()> {
    out.fill(0);
    if is_negligible(x) {
        return Some(());
    }
    let fitted = Scaled::<16>::fit::<Uniform<-4, 3>, -32, 31, 16>(subs(x)?, subs(w)?)?;
    for (n, &x) in x.iter().enumerate() {
        let code = (Uniform::<-4, 3>::nearest(x * fitted.inverse(n / 16)) + 4.0) as u8;
        // A set high bit is a code of 4 or more: the reader then does not subtract 4.
        out[n % 32] |= code >> 2 << (n / 32);
        put_two_bits(&mut out[32..96], n, code & 3);
    }
    for (sub, &scale) in fitted.scales.iter().enumerate() {
        let scale = (scale + 32) as u8;
        out[96 + sub % 8] |= (scale & 15) << (4 * (sub / 8));
        out[104 + sub % 4] |= scale >> 4 << (2 * (sub / 4));
    }
    out[108..].copy_from_slice(&fitted.common.to_le_bytes());
    Some(())
}

/// The 12 bytes of eight six-bit scales and minima of Q4_K and Q5_K; the reader's `scale_and_minimum` describes them.
fn put_scales_and_minima(lines: &Lines<8>, packed: &mut [u8]) {
    for sub in 0..4 {
        let (scale, minimum) = (lines.scales[sub + 4], lines.minima[sub + 4]);
        packed[sub] = lines.scales[sub] | scale >> 4 << 6;
        packed[sub + 4] = lines.minima[sub] | minimum >> 4 << 6;
        packed[sub + 8] = scale & 15 | (minimum & 15) << 4;
    }
}

pub(super) fn q4(x: &[f32; 256], w: &[f32; 256], out: &mut [u8; 144]) -> Option<()> {
    out.fill(0);
    if is_negligible(x) {
        return Some(());
    }
    let lines = Lines::<8>::fit::<15, 63, 32>(subs(x)?, subs(w)?)?;
    out[..2].copy_from_slice(&lines.scale.to_le_bytes());
    out[2..4].copy_from_slice(&lines.minimum.to_le_bytes());
    put_scales_and_minima(&lines, &mut out[4..16]);
    for (n, &x) in x.iter().enumerate() {
        let sub = n / 32;
        out[16 + sub / 2 * 32 + n % 32] |= lines.code::<15>(sub, x) << (4 * (sub % 2));
    }
    Some(())
}

pub(super) fn q5(x: &[f32; 256], w: &[f32; 256], out: &mut [u8; 176]) -> Option<()> {
    out.fill(0);
    if is_negligible(x) {
        return Some(());
    }
    let lines = Lines::<8>::fit::<31, 63, 32>(subs(x)?, subs(w)?)?;
    out[..2].copy_from_slice(&lines.scale.to_le_bytes());
    out[2..4].copy_from_slice(&lines.minimum.to_le_bytes());
    put_scales_and_minima(&lines, &mut out[4..16]);
    for (n, &x) in x.iter().enumerate() {
        let (sub, code) = (n / 32, lines.code::<31>(n / 32, x));
        out[16 + n % 32] |= code >> 4 << sub;
        out[48 + sub / 2 * 32 + n % 32] |= (code & 15) << (4 * (sub % 2));
    }
    Some(())
}

pub(super) fn q6(x: &[f32; 256], w: &[f32; 256], out: &mut [u8; 210]) -> Option<()> {
    out.fill(0);
    if is_negligible(x) {
        return Some(());
    }
    let fitted = Scaled::<16>::fit::<Uniform<-32, 31>, -128, 127, 16>(subs(x)?, subs(w)?)?;
    for (n, &x) in x.iter().enumerate() {
        let code = (Uniform::<-32, 31>::nearest(x * fitted.inverse(n / 16)) + 32.0) as u8;
        let (half, i) = (n / 128, n % 128);
        out[half * 64 + i % 64] |= (code & 15) << (4 * (i / 64));
        out[128 + half * 32 + i % 32] |= code >> 4 << (2 * (i / 32));
    }
    for (out, &scale) in out[192..208].iter_mut().zip(&fitted.scales) {
        *out = (scale as i8).cast_unsigned();
    }
    out[208..].copy_from_slice(&fitted.common.to_le_bytes());
    Some(())
}

pub(super) fn iq4_xs(x: &[f32; 256], w: &[f32; 256], out: &mut [u8; 136]) -> Option<()> {
    out.fill(0);
    if is_negligible(x) {
        return Some(());
    }
    let fitted = Scaled::<8>::fit::<Nonlinear, -32, 31, 32>(subs(x)?, subs(w)?)?;
    out[..2].copy_from_slice(&fitted.common.to_le_bytes());
    let mut top = 0_u16;
    for (sub, &scale) in fitted.scales.iter().enumerate() {
        let scale = (scale + 32) as u8;
        out[4 + sub / 2] |= (scale & 15) << (4 * (sub % 2));
        top |= u16::from(scale >> 4) << (2 * sub);
    }
    out[2..4].copy_from_slice(&top.to_le_bytes());
    for (n, &x) in x.iter().enumerate() {
        let (sub, i) = (n / 32, n % 32);
        out[8 + sub * 16 + i % 16] |= Nonlinear::index(x * fitted.inverse(sub)) << (4 * (i / 16));
    }
    Some(())
}
