//! Passes over a whole row of logits, `[vocab_size]`, written so that the compiler makes vectors of them.

use std::cmp::Ordering;

use consort_core::{Error, ErrorKind, Result, TokenId};

/// A token and its logit.
pub(crate) type Candidate = (TokenId, f32);

/// Accumulators of a pass.
pub(crate) const LANES: usize = 16;
/// Sums are taken over so many tokens in single precision, then in double.
pub(crate) const BLOCK: usize = 256;

/// Runs a pass compiled for the widest vectors that this processor has. No operation is contracted or reordered, so the bits
/// are the same on all of them.
#[inline(always)]
pub(crate) fn wide<R>(pass: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(pass)
}

/// The same for a pass over a row and some numbers. A closure of some size is compiled before it is known for which vectors;
/// what is called here is not.
macro_rules! wide_pass {
    ($pass:ident($row:ident $(, $number:ident)*) -> $output:ty) => {{
        struct Pass<'a> {
            $row: &'a [f32],
            $($number: f32,)*
        }
        impl pulp::WithSimd for Pass<'_> {
            type Output = $output;

            #[inline(always)]
            fn with_simd<S: pulp::Simd>(self, _: S) -> $output {
                $pass(self.$row $(, self.$number)*)
            }
        }
        pulp::Arch::new().dispatch(Pass { $row $(, $number)* })
    }};
}

/// Descending logit, then ascending id. Logits are checked to hold no NaN.
pub(crate) fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

/// eˣ for x ≤ 0, to a relative error of 3e-7; 0 below −87, for −∞ and for a NaN.
///
/// 2ⁿ·eʳ with n the nearest integer to x/ln 2, which comes out of the mantissa of a number to which 1.5·2²³ was added, and r
/// split off in two steps; the polynomial is that of Cephes' `expf` (Moshier 1992). The standard library's function is a call
/// for each number.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + coefficient;
    }
    let mantissa = p * (r * r) + r + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x > -87.0 { mantissa * scale } else { 0.0 }
}

/// The highest logit.
///
/// # Errors
/// [`ErrorKind::Unexpected`] when the row is empty, or holds a NaN or +∞.
pub(crate) fn checked_top(row: &[f32]) -> Result<f32> {
    let (sane, top) = wide_pass!(top_of(row) -> (bool, f32));
    if row.is_empty() || !sane {
        return Err(Error::new(ErrorKind::Unexpected, "the engine gave logits that are not numbers")
            .with_operation("sampling::sample")
            .with_context("vocab_size", row.len().to_string()));
    }
    Ok(top)
}

/// Whether all are numbers or −∞, and the highest.
#[inline(always)]
fn top_of(row: &[f32]) -> (bool, f32) {
    let mut best = [f32::NEG_INFINITY; LANES];
    let mut strange = [0u32; LANES];
    let mut look = |lane: usize, value: f32| {
        let sane = value < f32::INFINITY;
        strange[lane] |= u32::from(!sane);
        best[lane] = if value > best[lane] { value } else { best[lane] };
    };
    let chunks = row.chunks_exact(LANES);
    for (lane, &value) in chunks.remainder().iter().enumerate() {
        look(lane, value);
    }
    for chunk in chunks {
        for (lane, &value) in chunk.iter().enumerate() {
            look(lane, value);
        }
    }
    (strange.into_iter().all(|lane| lane == 0), best.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

/// The first place of a value that is known to be in the row.
pub(crate) fn place_of(row: &[f32], value: f32) -> TokenId {
    let start = wide(|| {
        let has = |chunk: &[f32]| chunk.iter().fold(false, |found, &logit| found | (logit == value));
        row.chunks(BLOCK).position(has).unwrap_or(0) * BLOCK
    });
    let rest = row.get(start..).unwrap_or_default();
    (start + rest.iter().position(|&logit| logit == value).unwrap_or(0)) as TokenId
}

/// Whether a value is in the row.
pub(crate) fn holds(row: &[f32], value: f32) -> bool {
    wide(|| row.chunks(BLOCK).any(|chunk| chunk.iter().fold(false, |found, &logit| found | (logit == value))))
}

/// Calls `visit` for every token whose logit is at least `floor`, in ascending order.
pub(crate) fn at_least(row: &[f32], floor: f32, mut visit: impl FnMut(Candidate)) {
    // −∞ is forbidden, whatever the floor.
    let floor = floor.max(f32::MIN);
    wide(|| {
        for (index, chunk) in row.chunks(2 * LANES).enumerate() {
            if chunk.iter().fold(false, |found, &logit| found | (logit >= floor)) {
                for (offset, &logit) in chunk.iter().enumerate() {
                    if logit >= floor {
                        visit(((index * 2 * LANES + offset) as TokenId, logit));
                    }
                }
            }
        }
    });
}

/// The `k` best of a row, in no order, in one pass that mostly only compares. −∞ is taken only where nothing better is left.
pub(crate) fn best(row: &[f32], k: usize, kept: &mut Vec<Candidate>) {
    wide(|| best_of(row, k, kept));
}

#[inline(always)]
fn best_of(row: &[f32], k: usize, kept: &mut Vec<Candidate>) {
    kept.clear();
    let k = k.min(row.len());
    if k == 0 {
        return;
    }
    // Keeps up to 2k candidates and halves them when full: linear on average, without a heap's bookkeeping.
    let mut floor = f32::NEG_INFINITY;
    for (index, chunk) in row.chunks(2 * LANES).enumerate() {
        if kept.len() >= k && !chunk.iter().fold(false, |found, &logit| found | (logit > floor)) {
            continue;
        }
        for (offset, &value) in chunk.iter().enumerate() {
            // An equal value with a higher id never displaces one of the k best.
            if value > floor || (kept.len() < k && value == floor) {
                kept.push(((index * 2 * LANES + offset) as TokenId, value));
                if kept.len() == 2 * k {
                    kept.select_nth_unstable_by(k - 1, best_first);
                    kept.truncate(k);
                    floor = kept[k - 1].1;
                }
            }
        }
    }
    if kept.len() > k {
        kept.select_nth_unstable_by(k - 1, best_first);
        kept.truncate(k);
    }
}

/// Sums over the tokens whose logit is at least `floor`: Σ eᵈ and Σ d·eᵈ with d = logit − `top`.
pub(crate) fn moments(row: &[f32], top: f32, floor: f32) -> (f64, f64) {
    wide_pass!(moments_of(row, top, floor) -> (f64, f64))
}

#[inline(always)]
fn moments_of(row: &[f32], top: f32, floor: f32) -> (f64, f64) {
    let (mut mass, mut moment) = (0.0, 0.0);
    for block in row.chunks(BLOCK) {
        let (mut masses, mut moments) = ([0.0f32; LANES], [0.0f32; LANES]);
        let mut add = |lane: usize, logit: f32| {
            let distance = logit - top;
            let weight = if logit >= floor { exp(distance) } else { 0.0 };
            masses[lane] += weight;
            // Not −∞ times 0.
            moments[lane] += weight * if distance > -88.0 { distance } else { 0.0 };
        };
        let chunks = block.chunks_exact(LANES);
        for (lane, &logit) in chunks.remainder().iter().enumerate() {
            add(lane, logit);
        }
        for chunk in chunks {
            for (lane, &logit) in chunk.iter().enumerate() {
                add(lane, logit);
            }
        }
        mass += f64::from(masses.iter().sum::<f32>());
        moment += f64::from(moments.iter().sum::<f32>());
    }
    (mass, moment)
}

/// Σ e^(logit − top) over the tokens whose logit is at least `floor`.
pub(crate) fn mass(row: &[f32], top: f32, floor: f32) -> f64 {
    wide_pass!(mass_of(row, top, floor) -> f64)
}

#[inline(always)]
fn mass_of(row: &[f32], top: f32, floor: f32) -> f64 {
    let mut mass = 0.0;
    for block in row.chunks(BLOCK) {
        let mut masses = [0.0f32; LANES];
        let chunks = block.chunks_exact(LANES);
        for (lane, &logit) in chunks.remainder().iter().enumerate() {
            masses[lane] += if logit >= floor { exp(logit - top) } else { 0.0 };
        }
        for chunk in chunks {
            for (mass, &logit) in masses.iter_mut().zip(chunk) {
                *mass += if logit >= floor { exp(logit - top) } else { 0.0 };
            }
        }
        mass += f64::from(masses.iter().sum::<f32>());
    }
    mass
}

/// The sums of e^((logit − top)·scale) over the tokens whose logit is at least `floor`, block by block: lane by lane in
/// ascending order, so that what is below adds nothing and changes no bit.
pub(crate) fn block_sums(row: &[f32], floor: f32, top: f32, scale: f32, sums: &mut [f64]) {
    struct Pass<'a> {
        row: &'a [f32],
        floor: f32,
        top: f32,
        scale: f32,
        sums: &'a mut [f64],
    }
    impl pulp::WithSimd for Pass<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) {
            let Self { row, floor, top, scale, sums } = self;
            for (block, sum) in row.chunks(BLOCK).zip(sums) {
                // Most of a row that a grammar masks.
                if block.iter().map(|&logit| u32::from(logit >= floor)).fold(0, |any, one| any | one) == 0 {
                    continue;
                }
                let mut lanes = [0.0f32; LANES];
                let mut add = |lane: usize, logit: f32| {
                    lanes[lane] += if logit >= floor { exp((logit - top) * scale) } else { 0.0 };
                };
                let chunks = block.chunks_exact(LANES);
                let rest = chunks.remainder();
                for chunk in chunks {
                    for (lane, &logit) in chunk.iter().enumerate() {
                        add(lane, logit);
                    }
                }
                for (lane, &logit) in rest.iter().enumerate() {
                    add(lane, logit);
                }
                *sum = f64::from(lanes.iter().sum::<f32>());
            }
        }
    }
    pulp::Arch::new().dispatch(Pass { row, floor, top, scale, sums });
}

/// Adds e^(logit − top) of every token whose logit is at least `floor` to the place of `sums` that `place` gives.
pub(crate) fn weigh(row: &[f32], floor: f32, top: f32, place: impl Fn(f32) -> u32, sums: &mut [f64]) {
    struct Pass<'a, F> {
        row: &'a [f32],
        floor: f32,
        top: f32,
        place: F,
        sums: &'a mut [f64],
    }
    impl<F: Fn(f32) -> u32> pulp::WithSimd for Pass<'_, F> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) {
            let Self { row, floor, top, place, sums } = self;
            let (mut weights, mut places) = ([0.0f32; BLOCK], [0u32; BLOCK]);
            for block in row.chunks(BLOCK) {
                for ((weight, place_of), &logit) in weights.iter_mut().zip(&mut places).zip(block) {
                    *weight = if logit >= floor { exp(logit - top) } else { 0.0 };
                    *place_of = place(logit);
                }
                for (&weight, &place) in weights.iter().zip(&places).take(block.len()) {
                    if weight > 0.0
                        && let Some(sum) = sums.get_mut(place as usize)
                    {
                        *sum += f64::from(weight);
                    }
                }
            }
        }
    }
    pulp::Arch::new().dispatch(Pass { row, floor, top, place, sums });
}

/// Calls `visit` for every token whose logit is at least `floor` and `is_member`, in ascending order: for few of many.
pub(crate) fn members(row: &[f32], floor: f32, is_member: impl Fn(f32) -> bool, visit: impl FnMut(Candidate)) {
    struct Pass<'a, F, V> {
        row: &'a [f32],
        floor: f32,
        is_member: F,
        visit: V,
    }
    impl<F: Fn(f32) -> bool, V: FnMut(Candidate)> pulp::WithSimd for Pass<'_, F, V> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) {
            let Self { row, floor, is_member, mut visit } = self;
            for (index, chunk) in row.chunks(2 * LANES).enumerate() {
                let found = chunk.iter().fold(0u32, |found, &logit| found | u32::from(is_member(logit)));
                if found == 0 {
                    continue;
                }
                for (offset, &logit) in chunk.iter().enumerate() {
                    if logit >= floor && is_member(logit) {
                        visit(((index * 2 * LANES + offset) as TokenId, logit));
                    }
                }
            }
        }
    }
    // −∞ is forbidden, whatever the floor.
    pulp::Arch::new().dispatch(Pass { row, floor: floor.max(f32::MIN), is_member, visit });
}

/// How many logits are at least `floor`.
pub(crate) fn count(row: &[f32], floor: f32) -> usize {
    wide_pass!(count_of(row, floor) -> usize)
}

#[inline(always)]
fn count_of(row: &[f32], floor: f32) -> usize {
    row.chunks(BLOCK).map(|block| block.iter().map(|&logit| u32::from(logit >= floor)).sum::<u32>() as usize).sum()
}

/// How many logits are above −∞, and their standard deviation (divided by their number).
pub(crate) fn spread(row: &[f32], top: f32) -> (usize, f64) {
    wide_pass!(spread_of(row, top) -> (usize, f64))
}

#[inline(always)]
fn spread_of(row: &[f32], top: f32) -> (usize, f64) {
    let (mut count, mut sum, mut squares) = (0u64, 0.0f64, 0.0f64);
    for block in row.chunks(BLOCK) {
        let (mut counts, mut sums, mut square_sums) = ([0u32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
        for chunk in block.chunks(LANES) {
            for (lane, &logit) in chunk.iter().enumerate() {
                let finite = logit > f32::NEG_INFINITY;
                // From the highest one: the sums stay small against each other.
                let distance = if finite { logit - top } else { 0.0 };
                counts[lane] += u32::from(finite);
                sums[lane] += distance;
                square_sums[lane] += distance * distance;
            }
        }
        count += u64::from(counts.iter().sum::<u32>());
        sum += f64::from(sums.iter().sum::<f32>());
        squares += f64::from(square_sums.iter().sum::<f32>());
    }
    let number = count.max(1) as f64;
    let mean = sum / number;
    (count as usize, (squares / number - mean * mean).max(0.0).sqrt())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_exponential_is_one() {
        let mut x = -86.9f32;
        while x <= 0.0 {
            let error = f64::from(exp(x)) / f64::from(x).exp() - 1.0;
            assert!(error.abs() < 3e-7, "{x}: {error}");
            x += 0.0137;
        }
        assert_eq!(exp(0.0), 1.0);
        for below in [-87.5, -1e30, f32::NEG_INFINITY, f32::NAN] {
            assert_eq!(exp(below), 0.0);
        }
    }

    #[test]
    fn what_is_not_a_number_is_an_error_wherever_it_stands() {
        for bad in [f32::NAN, f32::INFINITY] {
            for place in 0..70 {
                let mut row = vec![0.0; 70];
                row[place] = bad;
                assert_eq!(checked_top(&row).unwrap_err().kind(), ErrorKind::Unexpected);
            }
        }
        assert!(checked_top(&[]).is_err());
        assert_eq!(checked_top(&[f32::NEG_INFINITY; 40]).unwrap(), f32::NEG_INFINITY);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn the_best_are_the_head_of_the_full_sort(values in proptest::collection::vec(0u8..20, 1..300), k in 0usize..40) {
            let row: Vec<f32> = values.iter().map(|&v| if v == 0 { f32::NEG_INFINITY } else { f32::from(v) }).collect();
            let mut sorted: Vec<Candidate> = row.iter().enumerate().map(|(i, &v)| (i as TokenId, v)).collect();
            sorted.sort_by(best_first);
            sorted.truncate(k);
            let mut kept = Vec::new();
            best(&row, k, &mut kept);
            kept.sort_by(best_first);
            prop_assert_eq!(kept, sorted);
        }

        #[test]
        fn passes_equal_their_definitions(values in proptest::collection::vec(-30.0f32..30.0, 1..900), floor in -30.0f32..30.0) {
            let top = checked_top(&values).unwrap();
            prop_assert_eq!(top, values.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            prop_assert_eq!(place_of(&values, top) as usize, values.iter().position(|&v| v == top).unwrap());
            let far = |v: f32| f64::from(v - top);
            let kept: Vec<f32> = values.iter().copied().filter(|&v| v >= floor).collect();
            let (mass_kept, moment) = moments(&values, top, floor);
            let expected: f64 = kept.iter().map(|&v| far(v).exp()).sum();
            prop_assert!((mass_kept - expected).abs() <= 1e-5 * expected.max(1.0));
            let expected: f64 = kept.iter().map(|&v| far(v).exp() * far(v)).sum();
            prop_assert!((moment - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{moment} {expected}");
            prop_assert!((mass(&values, top, f32::MIN) - moments(&values, top, f32::MIN).0).abs() < 1e-4);
            let mean: f64 = values.iter().map(|&v| far(v)).sum::<f64>() / values.len() as f64;
            let deviation = (values.iter().map(|&v| (far(v) - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
            let (finite, got) = spread(&values, top);
            prop_assert_eq!(finite, values.len());
            prop_assert!((got - deviation).abs() < 1e-3, "{got} {deviation}");
            let mut listed = Vec::new();
            at_least(&values, floor, |candidate| listed.push(candidate.1));
            prop_assert_eq!(&listed, &kept);
            prop_assert_eq!(count(&values, floor), kept.len());
            let near = |v: f32| v < top - 1.0 && v > top - 9.0;
            let mut few = Vec::new();
            members(&values, floor, near, |candidate| few.push(candidate.1));
            listed.retain(|&v| near(v));
            prop_assert_eq!(few, listed);
            let mut sums = [0.0; 64];
            weigh(&values, floor, top, |v| (top - v) as u32, &mut sums);
            let mut expected = [0.0f64; 64];
            kept.iter().for_each(|&v| expected[(top - v) as usize] += far(v).exp());
            for (got, expected) in sums.iter().zip(expected) {
                prop_assert!((got - expected).abs() <= 1e-5 * expected.max(1e-6), "{got} {expected}");
            }
        }
    }
}
