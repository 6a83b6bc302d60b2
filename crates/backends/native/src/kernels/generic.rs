//! The kernels, written once over [`Lanes`]. Each is compiled for every kernel set in [`super`].
//!
//! All are `unsafe` for the reason that [`Lanes`] gives, and for no other: they index with checks.

use super::exp;
use super::lanes::{BLOCK, Lanes};

/// How a block of 32 weights is stored in `N` bytes.
pub(super) trait Format<const N: usize> {
    /// # Safety
    /// As for [`Lanes`].
    unsafe fn load<L: Lanes>(from: &[u8; N]) -> L::Block;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Format<{ 4 * BLOCK }> for F32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: &[u8; 4 * BLOCK]) -> L::Block {
        let mut values = [0.0; BLOCK];
        for (value, bytes) in values.iter_mut().zip(from.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        // SAFETY: handed on to the caller.
        unsafe { L::load(&values) }
    }
}

impl Format<{ 2 * BLOCK }> for F16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: &[u8; 2 * BLOCK]) -> L::Block {
        // SAFETY: handed on to the caller.
        unsafe { L::load_f16(from) }
    }
}

impl Format<{ 2 * BLOCK }> for Bf16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: &[u8; 2 * BLOCK]) -> L::Block {
        // SAFETY: handed on to the caller.
        unsafe { L::load_bf16(from) }
    }
}

/// `out[t · stride + offset + r] = Σ_c weights[r, c] · x[t, c]`.
pub(crate) struct Matmul<'a> {
    /// `[rows, row_bytes]`.
    pub(crate) weights: &'a [u8],
    /// Bytes per row.
    pub(crate) row_bytes: usize,
    /// `[tokens, cols]`.
    pub(crate) x: &'a [f32],
    /// Numbers per row.
    pub(crate) cols: usize,
    /// Where results go.
    pub(crate) out: &'a mut [f32],
    /// Distance of two tokens' results.
    pub(crate) stride: usize,
    /// Where the first row's result lies within a token's.
    pub(crate) offset: usize,
}

/// A tile of results: `R` rows times `T` tokens, all in registers.
#[inline(always)]
unsafe fn tile<L: Lanes, F: Format<N>, const N: usize, const R: usize, const T: usize>(
    rows: [&[u8]; R],
    x: [&[f32]; T],
) -> [[f32; T]; R] {
    let blocks = x[0].len() / BLOCK;
    let mut row_blocks: [&[[u8; N]]; R] = [&[]; R];
    for r in 0..R {
        row_blocks[r] = &rows[r].as_chunks::<N>().0[..blocks];
    }
    let mut x_blocks: [&[[f32; BLOCK]]; T] = [&[]; T];
    for t in 0..T {
        x_blocks[t] = &x[t].as_chunks::<BLOCK>().0[..blocks];
    }
    // SAFETY: handed on to the caller.
    unsafe {
        let mut sums = [[L::splat(0.0); T]; R];
        for i in 0..blocks {
            let mut w = [L::splat(0.0); R];
            for r in 0..R {
                w[r] = F::load::<L>(&row_blocks[r][i]);
            }
            for t in 0..T {
                let x = L::load(&x_blocks[t][i]);
                for r in 0..R {
                    sums[r][t] = L::fma(w[r], x, sums[r][t]);
                }
            }
        }
        if blocks * BLOCK < x[0].len() {
            for r in 0..R {
                let w = F::load::<L>(&padded(&rows[r][blocks * N..]));
                for t in 0..T {
                    sums[r][t] = L::fma(w, L::load(&padded(&x[t][blocks * BLOCK..])), sums[r][t]);
                }
            }
        }
        let mut out = [[0.0; T]; R];
        for r in 0..R {
            for t in 0..T {
                out[r][t] = L::sum(sums[r][t]);
            }
        }
        out
    }
}

/// The rest of a row, filled with zeros to a block.
#[inline(always)]
pub(super) fn padded<V: Copy + Default, const N: usize>(rest: &[V]) -> [V; N] {
    let mut block = [V::default(); N];
    for (to, from) in block.iter_mut().zip(rest) {
        *to = *from;
    }
    block
}

/// `R` rows times all tokens, at most `T` at a time.
#[inline(always)]
unsafe fn row_group<L: Lanes, F: Format<N>, const N: usize, const R: usize, const T: usize>(
    job: &mut Matmul<'_>,
    row: usize,
) {
    let mut rows: [&[u8]; R] = [&[]; R];
    for (r, slot) in rows.iter_mut().enumerate() {
        *slot = &job.weights[(row + r) * job.row_bytes..][..job.row_bytes];
    }
    let tokens = job.x.len() / job.cols;
    let mut token = 0;
    macro_rules! run {
        ($t:literal) => {{
            let mut x: [&[f32]; $t] = [&[]; $t];
            for (t, slot) in x.iter_mut().enumerate() {
                *slot = &job.x[(token + t) * job.cols..][..job.cols];
            }
            // SAFETY: handed on to the caller.
            let sums = unsafe { tile::<L, F, N, R, $t>(rows, x) };
            for (r, sums) in sums.iter().enumerate() {
                for (t, sum) in sums.iter().enumerate() {
                    job.out[(token + t) * job.stride + job.offset + row + r] = *sum;
                }
            }
            token += $t;
        }};
    }
    while token < tokens {
        // Tiles beyond `T` are never compiled: the conditions are constants.
        match (tokens - token).min(T) {
            1 => run!(1),
            2 if T >= 2 => run!(2),
            3 if T >= 3 => run!(3),
            _ if T >= 4 => run!(4),
            _ => break,
        }
    }
}

/// See [`Matmul`]. `R` rows and at most `T` ≤ 4 tokens are worked on at once; neither changes a result.
#[inline(always)]
pub(super) unsafe fn matmul<L: Lanes, F: Format<N>, const N: usize, const R: usize, const T: usize>(
    mut job: Matmul<'_>,
) {
    let rows = job.weights.len() / job.row_bytes;
    let mut row = 0;
    // SAFETY: handed on to the caller.
    unsafe {
        while row + R <= rows {
            row_group::<L, F, N, R, T>(&mut job, row);
            row += R;
        }
        while row < rows {
            row_group::<L, F, N, 1, T>(&mut job, row);
            row += 1;
        }
    }
}

/// `Σ a·b`, with the order that [`matmul`] has.
#[inline(always)]
pub(super) unsafe fn dot<L: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    let (a_blocks, a_rest) = a.as_chunks::<BLOCK>();
    let (b_blocks, b_rest) = b.as_chunks::<BLOCK>();
    // SAFETY: handed on to the caller.
    unsafe {
        let mut sum = L::splat(0.0);
        for (a, b) in a_blocks.iter().zip(b_blocks) {
            sum = L::fma(L::load(a), L::load(b), sum);
        }
        if !a_rest.is_empty() {
            sum = L::fma(L::load(&padded(a_rest)), L::load(&padded(b_rest)), sum);
        }
        L::sum(sum)
    }
}

/// `y += a · x`.
#[inline(always)]
pub(super) unsafe fn add_scaled<L: Lanes>(y: &mut [f32], a: f32, x: &[f32]) {
    let (y_blocks, y_rest) = y.as_chunks_mut::<BLOCK>();
    let (x_blocks, x_rest) = x.as_chunks::<BLOCK>();
    // SAFETY: handed on to the caller.
    unsafe {
        let a = L::splat(a);
        for (y, x) in y_blocks.iter_mut().zip(x_blocks) {
            let sum = L::fma(a, L::load(x), L::load(y));
            L::store(sum, y);
        }
        if !y_rest.is_empty() {
            let mut rest = padded(y_rest);
            let sum = L::fma(a, L::load(&padded(x_rest)), L::load(&rest));
            L::store(sum, &mut rest);
            y_rest.copy_from_slice(&rest[..y_rest.len()]);
        }
    }
}

/// `scores[i] = q · keys[i] · scale` for `keys` of `[scores.len(), q.len()]`.
#[inline(always)]
pub(super) unsafe fn attention_scores<L: Lanes>(q: &[f32], keys: &[f32], scale: f32, scores: &mut [f32]) {
    for (score, key) in scores.iter_mut().zip(keys.chunks_exact(q.len())) {
        // SAFETY: handed on to the caller.
        *score = unsafe { dot::<L>(q, key) } * scale;
    }
}

/// `out += Σ_i weights[i] · values[i]`, `i` ascending, for `values` of `[weights.len(), out.len()]`.
#[inline(always)]
pub(super) unsafe fn attention_values<L: Lanes>(weights: &[f32], values: &[f32], out: &mut [f32]) {
    let width = out.len();
    let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
    let at = blocks.len() * BLOCK;
    // SAFETY: handed on to the caller.
    unsafe {
        for (index, out) in blocks.iter_mut().enumerate() {
            let mut sum = L::load(out);
            for (weight, row) in weights.iter().zip(values.chunks_exact(width)) {
                if let Some(value) = row[index * BLOCK..].first_chunk() {
                    sum = L::fma(L::splat(*weight), L::load(value), sum);
                }
            }
            L::store(sum, out);
        }
        if !rest.is_empty() {
            for (weight, row) in weights.iter().zip(values.chunks_exact(width)) {
                add_scaled::<L>(rest, *weight, &row[at..]);
            }
        }
    }
}

/// Turns scores into weights that sum to one.
#[inline(always)]
pub(super) fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for score in scores.iter_mut() {
        *score = exp::exp(*score - largest);
    }
    // Eight partial sums by position, so that the order is fixed and the loop vectorizes.
    let mut sums = [0.0_f32; 8];
    let (eights, rest) = scores.as_chunks::<8>();
    for eight in eights {
        for (sum, score) in sums.iter_mut().zip(eight) {
            *sum += score;
        }
    }
    for (sum, score) in sums.iter_mut().zip(rest) {
        *sum += score;
    }
    let scale = 1.0 / sums.iter().sum::<f32>();
    for score in scores.iter_mut() {
        *score *= scale;
    }
}

/// One token of the gated delta rule for one value head.
pub(crate) struct DeltaStep<'a> {
    /// `[dv, dk]`: the transpose of the literature's, so that a value's row is read and written once.
    pub(crate) state: &'a mut [f32],
    /// `[dk]`, normalised and scaled.
    pub(crate) q: &'a [f32],
    /// `[dk]`, normalised.
    pub(crate) k: &'a [f32],
    /// `[dv]`.
    pub(crate) v: &'a [f32],
    /// What is left of the past: exp(g).
    pub(crate) decay: f32,
    /// How much of the error is corrected.
    pub(crate) beta: f32,
    /// `[dv]`.
    pub(crate) out: &'a mut [f32],
}

/// `S ← decay · S`; `δ = β (v − S k)`; `S ← S + δ kᵀ`; `out = S q`.
#[inline(always)]
pub(super) unsafe fn delta_step<L: Lanes>(step: DeltaStep<'_>) {
    let DeltaStep { state, q, k, v, decay, beta, out } = step;
    let width = k.len();
    if width.is_multiple_of(BLOCK) {
        let (q, k) = (q.as_chunks::<BLOCK>().0, k.as_chunks::<BLOCK>().0);
        // SAFETY: handed on to the caller.
        unsafe {
            let decay = L::splat(decay);
            for ((row, v), out) in state.chunks_exact_mut(width).zip(v).zip(out) {
                let row = row.as_chunks_mut::<BLOCK>().0;
                let mut known = L::splat(0.0);
                for (s, k) in row.iter_mut().zip(k) {
                    let decayed = L::mul(L::load(s), decay);
                    L::store(decayed, s);
                    known = L::fma(decayed, L::load(k), known);
                }
                let delta = L::splat(beta * (v - L::sum(known)));
                let mut read = L::splat(0.0);
                for ((s, k), q) in row.iter_mut().zip(k).zip(q) {
                    let updated = L::fma(delta, L::load(k), L::load(s));
                    L::store(updated, s);
                    read = L::fma(updated, L::load(q), read);
                }
                *out = L::sum(read);
            }
        }
        return;
    }
    for ((row, v), out) in state.chunks_exact_mut(width).zip(v).zip(out) {
        for s in row.iter_mut() {
            *s *= decay;
        }
        // SAFETY: handed on to the caller.
        unsafe {
            let delta = beta * (v - dot::<L>(row, k));
            add_scaled::<L>(row, delta, k);
            *out = dot::<L>(row, q);
        }
    }
}

/// `gate ← silu(gate) · up`.
#[inline(always)]
pub(super) fn silu_times(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = exp::silu(*gate) * up;
    }
}

/// `x ← x · sigmoid(gate)`.
#[inline(always)]
pub(super) fn times_sigmoid(x: &mut [f32], gate: &[f32]) {
    for (x, gate) in x.iter_mut().zip(gate) {
        *x *= exp::sigmoid(*gate);
    }
}

/// `x ← silu(x)`.
#[inline(always)]
pub(super) fn silu(x: &mut [f32]) {
    for x in x {
        *x = exp::silu(*x);
    }
}

/// `x ← gelu(x)`, in its tanh form.
#[inline(always)]
pub(super) fn gelu_tanh(x: &mut [f32]) {
    for x in x {
        *x = exp::gelu_tanh(*x);
    }
}

/// `y[i] += w[i] · x[i]`.
#[inline(always)]
pub(super) unsafe fn add_product<L: Lanes>(y: &mut [f32], w: &[f32], x: &[f32]) {
    let (y_blocks, y_rest) = y.as_chunks_mut::<BLOCK>();
    let (w_blocks, w_rest) = w.as_chunks::<BLOCK>();
    let (x_blocks, x_rest) = x.as_chunks::<BLOCK>();
    // SAFETY: handed on to the caller.
    unsafe {
        for ((y, w), x) in y_blocks.iter_mut().zip(w_blocks).zip(x_blocks) {
            let sum = L::fma(L::load(w), L::load(x), L::load(y));
            L::store(sum, y);
        }
    }
    for ((y, w), x) in y_rest.iter_mut().zip(w_rest).zip(x_rest) {
        *y += w * x;
    }
}

/// Widens whole rows to f32: what [`matmul`] would load, number by number.
#[inline(always)]
pub(super) unsafe fn widen<L: Lanes, F: Format<N>, const N: usize>(row: &[u8], out: &mut [f32]) {
    let (out_blocks, out_rest) = out.as_chunks_mut::<BLOCK>();
    let blocks = out_blocks.len();
    // SAFETY: handed on to the caller.
    unsafe {
        for (from, to) in row.as_chunks::<N>().0.iter().zip(out_blocks) {
            L::store(F::load::<L>(from), to);
        }
        if !out_rest.is_empty() {
            let mut block = [0.0; BLOCK];
            L::store(F::load::<L>(&padded(&row[blocks * N..])), &mut block);
            out_rest.copy_from_slice(&block[..out_rest.len()]);
        }
    }
}
