//! The arithmetic, for each kind of processor.
//!
//! The kernels are written once ([`generic`], over the blocks of [`lanes`]) and compiled for each kernel set; which one
//! runs is chosen when an engine is loaded. This module and [`x86`] are the only ones with `unsafe` code, for one reason:
//! a function that was compiled for an instruction set may be called only where the processor has it. A [`KernelSet`]
//! cannot be had without that having been checked.

#![allow(unsafe_code)]

mod exp;
mod generic;
mod lanes;
#[cfg(target_arch = "x86_64")]
mod x86;

use consort_core::{Error, ErrorKind, Result};
use generic::{Bf16, F16, F32, Q8_0};
pub(crate) use generic::{DeltaStep, Matmul};
use lanes::Portable;

/// How the numbers of a matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Format {
    F32,
    F16,
    Bf16,
    Q8_0,
}

impl Format {
    /// Bytes that a row of `cols` numbers takes, or `None` where it is not whole blocks.
    pub(crate) fn row_bytes(self, cols: usize) -> Option<usize> {
        match self {
            Self::F32 => cols.checked_mul(4),
            Self::F16 | Self::Bf16 => cols.checked_mul(2),
            Self::Q8_0 if cols.is_multiple_of(32) => (cols / 32).checked_mul(34),
            Self::Q8_0 => None,
        }
    }
}

/// Which instructions are used. Values come from [`KernelSet::detect`] alone, so one that exists can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KernelSet(Set);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Names a set to be used instead of the best one: `portable`, `avx2` or `avx512`.
pub(crate) const OVERRIDE: &str = "CONSORT_KERNELS";

impl KernelSet {
    /// Every set that this processor can run, the best one last.
    pub(crate) fn available() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut sets = vec![Self(Set::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            if avx2 {
                sets.push(Self(Set::Avx2));
            }
            if avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                sets.push(Self(Set::Avx512));
            }
        }
        sets
    }

    /// The best set, or the one that the environment names.
    pub(crate) fn detect() -> Result<Self> {
        let sets = Self::available();
        let Some(wanted) = std::env::var_os(OVERRIDE) else {
            return Ok(sets.last().copied().unwrap_or(Self(Set::Portable)));
        };
        let wanted = wanted.to_string_lossy();
        sets.iter().find(|set| set.name() == wanted).copied().ok_or_else(|| {
            let names: Vec<_> = sets.iter().map(|set| set.name()).collect();
            Error::new(ErrorKind::InvalidConfig, format!("this processor can run the kernels {}", names.join(", ")))
                .with_context("CONSORT_KERNELS", wanted)
        })
    }

    /// A short, stable name.
    pub(crate) fn name(self) -> &'static str {
        match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512",
        }
    }
}

/// Defines a method of [`KernelSet`] that runs `$body` compiled for each set. In the body, `$lanes` is the set's
/// [`Lanes`](lanes::Lanes), `$rows` and `$tokens` the tile of results that fits into its registers.
macro_rules! kernel {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? {
        |$lanes:ident, $rows:ident, $tokens:ident| $body:expr
    }) => {
        impl KernelSet {
            $(#[$doc])*
            pub(crate) fn $name(self, $($arg: $type),*) $(-> $ret)? {
                #[allow(dead_code)]
                fn portable($($arg: $type),*) $(-> $ret)? {
                    type $lanes = Portable;
                    const $rows: usize = 1;
                    const $tokens: usize = 1;
                    // SAFETY: the portable blocks need nothing of the processor.
                    #[allow(unused_unsafe)]
                    unsafe { $body }
                }
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma,f16c")]
                #[allow(dead_code)]
                fn avx2($($arg: $type),*) $(-> $ret)? {
                    type $lanes = x86::Avx2;
                    const $rows: usize = 1;
                    const $tokens: usize = 3;
                    // SAFETY: this function is compiled for the features, and called where they were detected.
                    #[allow(unused_unsafe)]
                    unsafe { $body }
                }
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw")]
                #[allow(dead_code)]
                fn avx512($($arg: $type),*) $(-> $ret)? {
                    type $lanes = x86::Avx512;
                    const $rows: usize = 2;
                    const $tokens: usize = 4;
                    // SAFETY: this function is compiled for the features, and called where they were detected.
                    #[allow(unused_unsafe)]
                    unsafe { $body }
                }
                match self.0 {
                    Set::Portable => portable($($arg),*),
                    // SAFETY: a value of this kind exists only where `available` detected AVX2, FMA and F16C.
                    #[cfg(target_arch = "x86_64")]
                    Set::Avx2 => unsafe { avx2($($arg),*) },
                    // SAFETY: a value of this kind exists only where `available` also detected AVX-512 F and BW.
                    #[cfg(target_arch = "x86_64")]
                    Set::Avx512 => unsafe { avx512($($arg),*) },
                }
            }
        }
    };
}

kernel! {
    /// Rows of weights times vectors; see [`Matmul`].
    fn matmul(format: Format, job: Matmul<'_>) {
        |L, R, T| match format {
            Format::F32 => generic::matmul::<L, F32, 128, R, T>(job),
            Format::F16 => generic::matmul::<L, F16, 64, R, T>(job),
            Format::Bf16 => generic::matmul::<L, Bf16, 64, R, T>(job),
            Format::Q8_0 => generic::matmul::<L, Q8_0, 34, R, T>(job),
        }
    }
}

kernel! {
    /// A row as f32, number by number what [`matmul`](Self::matmul) would use.
    fn widen(format: Format, row: &[u8], out: &mut [f32]) {
        |L, R, T| match format {
            Format::F32 => generic::widen::<L, F32, 128>(row, out),
            Format::F16 => generic::widen::<L, F16, 64>(row, out),
            Format::Bf16 => generic::widen::<L, Bf16, 64>(row, out),
            Format::Q8_0 => generic::widen::<L, Q8_0, 34>(row, out),
        }
    }
}

kernel! {
    /// `Σ a·b` over the shorter length.
    fn dot(a: &[f32], b: &[f32]) -> f32 { |L, R, T| generic::dot::<L>(a, b) }
}

kernel! {
    /// `y += a · x`.
    fn add_scaled(y: &mut [f32], a: f32, x: &[f32]) { |L, R, T| generic::add_scaled::<L>(y, a, x) }
}

kernel! {
    /// `y[i] += w[i] · x[i]`.
    fn add_product(y: &mut [f32], w: &[f32], x: &[f32]) { |L, R, T| generic::add_product::<L>(y, w, x) }
}

kernel! {
    /// `scores[i] = q · keys[i] · scale` for `keys` of `[scores.len(), q.len()]`.
    fn attention_scores(q: &[f32], keys: &[f32], scale: f32, scores: &mut [f32]) {
        |L, R, T| generic::attention_scores::<L>(q, keys, scale, scores)
    }
}

kernel! {
    /// `out += Σ_i weights[i] · values[i]`, `i` ascending, for `values` of `[weights.len(), out.len()]`.
    fn attention_values(weights: &[f32], values: &[f32], out: &mut [f32]) {
        |L, R, T| generic::attention_values::<L>(weights, values, out)
    }
}

kernel! {
    /// Turns scores into weights that sum to one.
    fn softmax(scores: &mut [f32]) { |L, R, T| generic::softmax(scores) }
}

kernel! {
    /// One token of the gated delta rule for one value head; see [`DeltaStep`].
    fn delta_step(step: DeltaStep<'_>) { |L, R, T| generic::delta_step::<L>(step) }
}

kernel! {
    /// `gate ← silu(gate) · up`.
    fn silu_times(gate: &mut [f32], up: &[f32]) { |L, R, T| generic::silu_times(gate, up) }
}

kernel! {
    /// `x ← x · sigmoid(gate)`.
    fn times_sigmoid(x: &mut [f32], gate: &[f32]) { |L, R, T| generic::times_sigmoid(x, gate) }
}

kernel! {
    /// `x ← silu(x)`.
    fn silu(x: &mut [f32]) { |L, R, T| generic::silu(x) }
}

kernel! {
    /// `x ← gelu(x)`, in its tanh form.
    fn gelu_tanh(x: &mut [f32]) { |L, R, T| generic::gelu_tanh(x) }
}

#[cfg(test)]
mod tests;
