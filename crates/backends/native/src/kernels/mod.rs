//! The arithmetic, for each kind of processor.
//!
//! The kernels are written once ([`generic`], over the blocks of [`lanes`]) and compiled for each kernel set; which one
//! runs is chosen when an engine is loaded. Quantized weights have kernels of their own: [`packed`] says how each format lies,
//! and [`int8`] multiplies it with activations of eight bits. This module and those in it are the only ones with `unsafe` code,
//! for one reason: a function that was compiled for an instruction set may be called only where the processor has it. A
//! [`KernelSet`] cannot be had without that having been checked.

#![allow(unsafe_code)]

mod exp;
mod generic;
mod int8;
mod lanes;
mod packed;
mod portable;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_int8;

use consort_core::{Error, ErrorKind, Result};
use consort_gguf::TensorType;
use generic::{Bf16, F16, F32};
pub(crate) use generic::{DeltaStep, Matmul};
pub(crate) use int8::{Product, Quantized};
use lanes::Portable;
use packed::{Packed, Shape};

/// How the numbers of a matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    /// Number by number.
    Float(Format),
    /// In blocks, with scales.
    Quant(Quant),
}

/// A type that stores each number by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    F32,
    F16,
    Bf16,
}

/// A type that stores small integers and scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quant {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    IQ4NL,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    IQ4XS,
}

impl Storage {
    /// Every type that there are kernels for.
    pub(crate) const ALL: [(TensorType, Self); 15] = [
        (TensorType::F32, Self::Float(Format::F32)),
        (TensorType::F16, Self::Float(Format::F16)),
        (TensorType::BF16, Self::Float(Format::Bf16)),
        (TensorType::Q4_0, Self::Quant(Quant::Q4_0)),
        (TensorType::Q4_1, Self::Quant(Quant::Q4_1)),
        (TensorType::Q5_0, Self::Quant(Quant::Q5_0)),
        (TensorType::Q5_1, Self::Quant(Quant::Q5_1)),
        (TensorType::Q8_0, Self::Quant(Quant::Q8_0)),
        (TensorType::IQ4NL, Self::Quant(Quant::IQ4NL)),
        (TensorType::Q2K, Self::Quant(Quant::Q2K)),
        (TensorType::Q3K, Self::Quant(Quant::Q3K)),
        (TensorType::Q4K, Self::Quant(Quant::Q4K)),
        (TensorType::Q5K, Self::Quant(Quant::Q5K)),
        (TensorType::Q6K, Self::Quant(Quant::Q6K)),
        (TensorType::IQ4XS, Self::Quant(Quant::IQ4XS)),
    ];

    /// What a tensor of this type is stored in, or `None` where there are no kernels for it.
    pub(crate) fn of(kind: TensorType) -> Option<Self> {
        Self::ALL.iter().find(|(name, _)| *name == kind).map(|(_, format)| *format)
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
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

/// Names a set to be used instead of the best one: `portable`, `avx2`, `avx512` or `avx512vnni`.
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
                if is_x86_feature_detected!("avx512vnni") {
                    sets.push(Self(Set::Avx512Vnni));
                }
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
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Vnni => "avx512vnni",
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
                    type $lanes = x86::Avx512<false>;
                    const $rows: usize = 2;
                    const $tokens: usize = 4;
                    // SAFETY: this function is compiled for the features, and called where they were detected.
                    #[allow(unused_unsafe)]
                    unsafe { $body }
                }
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vnni")]
                #[allow(dead_code)]
                fn avx512vnni($($arg: $type),*) $(-> $ret)? {
                    type $lanes = x86::Avx512<true>;
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
                    // SAFETY: a value of this kind exists only where `available` also detected AVX-512 VNNI.
                    #[cfg(target_arch = "x86_64")]
                    Set::Avx512Vnni => unsafe { avx512vnni($($arg),*) },
                }
            }
        }
    };
}

/// Evaluates `$body` with `$format` the type, and `$bytes` the bytes of a chunk, of a [`Quant`].
macro_rules! of_quant {
    ($quant:expr, |$format:ident, $bytes:ident| $body:expr) => {
        of_quant!(@ $quant, $format, $bytes, $body,
            (Q4_0, 8 * 18), (Q4_1, 8 * 20), (Q5_0, 8 * 22), (Q5_1, 8 * 24), (Q8_0, 8 * 34), (IQ4NL, 8 * 18),
            (Q2K, 84), (Q3K, 110), (Q4K, 144), (Q5K, 176), (Q6K, 210), (IQ4XS, 136))
    };
    (@ $quant:expr, $format:ident, $bytes:ident, $body:expr, $(($name:ident, $count:expr)),*) => {
        match $quant {
            $(Quant::$name => {
                #[allow(dead_code)]
                type $format = packed::$name;
                #[allow(dead_code)]
                const $bytes: usize = $count;
                $body
            })*
        }
    };
}

impl Quant {
    fn shape(self) -> Shape {
        of_quant!(self, |F, N| <F as Packed<N>>::SHAPE)
    }

    /// Bytes of a chunk of 256 weights.
    fn chunk_bytes(self) -> usize {
        of_quant!(self, |F, N| N)
    }
}

kernel! {
    /// Rows of weights times vectors; see [`Matmul`].
    fn matmul(format: Format, job: Matmul<'_>) {
        |L, R, T| match format {
            Format::F32 => generic::matmul::<L, F32, 128, R, T>(job),
            Format::F16 => generic::matmul::<L, F16, 64, R, T>(job),
            Format::Bf16 => generic::matmul::<L, Bf16, 64, R, T>(job),
        }
    }
}

kernel! {
    /// Vectors `[tokens, cols]` in eight bits, for weights of a format. They are some of `all` vectors, whose number decides
    /// how they are laid out.
    fn quantize(format: Quant, x: &[f32], cols: usize, all: usize) -> Quantized {
        |L, R, T| int8::quantize::<L>(format.shape(), x, cols, all)
    }
}

kernel! {
    /// Rows of quantized weights times vectors in eight bits; see [`Product`].
    fn product(format: Quant, job: Product<'_, '_>) {
        |L, R, T| {
            let mut job = job;
            if job.x.are_for_tiles() {
                <L as int8::Int8>::tiled(&mut job, format.shape(), format.chunk_bytes(), |from, to| {
                    of_quant!(format, |F, N| <F as Packed<N>>::unpack_some::<L>(from, to));
                });
            } else {
                of_quant!(format, |F, N| int8::row_products::<L, F, N>(&mut job));
            }
        }
    }
}

kernel! {
    /// A row as f32, number by number what [`matmul`](Self::matmul) would use.
    fn widen(storage: Storage, row: &[u8], out: &mut [f32]) {
        |L, R, T| match storage {
            Storage::Float(Format::F32) => generic::widen::<L, F32, 128>(row, out),
            Storage::Float(Format::F16) => generic::widen::<L, F16, 64>(row, out),
            Storage::Float(Format::Bf16) => generic::widen::<L, Bf16, 64>(row, out),
            Storage::Quant(quant) => of_quant!(quant, |F, N| packed::widen::<L, F, N>(row, out)),
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
