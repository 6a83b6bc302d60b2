//! Blocks of 32 numbers in the vector registers of x86-64.
//!
//! Everything here is `unsafe` for one reason: the processor must have the instructions. [`KernelSet`](super::KernelSet)
//! checks that before it hands a set out.

use std::arch::x86_64::*;

use super::lanes::{BLOCK, Lanes};

/// AVX2, FMA and F16C: four registers of eight.
pub(super) struct Avx2;

impl Lanes for Avx2 {
    type Block = [__m256; 4];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Block {
        // SAFETY: the caller has made sure of AVX.
        unsafe { [_mm256_set1_ps(value); 4] }
    }

    #[inline(always)]
    unsafe fn load(from: &[f32; BLOCK]) -> Self::Block {
        let at = from.as_ptr();
        // SAFETY: the caller has made sure of AVX; 4 · 8 numbers lie inside `from`, and the loads need no alignment.
        unsafe {
            [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8)), _mm256_loadu_ps(at.add(16)), _mm256_loadu_ps(at.add(24))]
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: &[u8; 2 * BLOCK]) -> Self::Block {
        let at = from.as_ptr().cast::<__m128i>();
        // SAFETY: the caller has made sure of F16C; 4 · 16 bytes lie inside `from`, and the loads need no alignment.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(at)),
                _mm256_cvtph_ps(_mm_loadu_si128(at.add(1))),
                _mm256_cvtph_ps(_mm_loadu_si128(at.add(2))),
                _mm256_cvtph_ps(_mm_loadu_si128(at.add(3))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: &[u8; 2 * BLOCK]) -> Self::Block {
        let at = from.as_ptr().cast::<__m128i>();
        // SAFETY: the caller has made sure of AVX2; 4 · 16 bytes lie inside `from`, and the loads need no alignment.
        unsafe {
            let widen = |bits: __m128i| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)));
            [
                widen(_mm_loadu_si128(at)),
                widen(_mm_loadu_si128(at.add(1))),
                widen(_mm_loadu_si128(at.add(2))),
                widen(_mm_loadu_si128(at.add(3))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store(block: Self::Block, to: &mut [f32; BLOCK]) {
        let at = to.as_mut_ptr();
        // SAFETY: the caller has made sure of AVX; 4 · 8 numbers lie inside `to`, and the stores need no alignment.
        unsafe {
            _mm256_storeu_ps(at, block[0]);
            _mm256_storeu_ps(at.add(8), block[1]);
            _mm256_storeu_ps(at.add(16), block[2]);
            _mm256_storeu_ps(at.add(24), block[3]);
        }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::Block, b: Self::Block) -> Self::Block {
        // SAFETY: the caller has made sure of AVX.
        unsafe {
            [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1]), _mm256_mul_ps(a[2], b[2]), _mm256_mul_ps(a[3], b[3])]
        }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::Block, b: Self::Block, c: Self::Block) -> Self::Block {
        // SAFETY: the caller has made sure of FMA.
        unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1]),
                _mm256_fmadd_ps(a[2], b[2], c[2]),
                _mm256_fmadd_ps(a[3], b[3], c[3]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn sum(block: Self::Block) -> f32 {
        // SAFETY: the caller has made sure of AVX.
        unsafe {
            let eight = _mm256_add_ps(_mm256_add_ps(block[0], block[2]), _mm256_add_ps(block[1], block[3]));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

/// AVX-512 F and BW, with or without VNNI: two registers of sixteen.
pub(super) struct Avx512<const VNNI: bool>;

impl<const VNNI: bool> Lanes for Avx512<VNNI> {
    type Block = [__m512; 2];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Block {
        // SAFETY: the caller has made sure of AVX-512F.
        unsafe { [_mm512_set1_ps(value); 2] }
    }

    #[inline(always)]
    unsafe fn load(from: &[f32; BLOCK]) -> Self::Block {
        let at = from.as_ptr();
        // SAFETY: the caller has made sure of AVX-512F; 2 · 16 numbers lie inside `from`, and the loads need no alignment.
        unsafe { [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))] }
    }

    #[inline(always)]
    unsafe fn load_f16(from: &[u8; 2 * BLOCK]) -> Self::Block {
        let at = from.as_ptr().cast::<__m256i>();
        // SAFETY: the caller has made sure of AVX-512F; 2 · 32 bytes lie inside `from`, and the loads need no alignment.
        unsafe { [_mm512_cvtph_ps(_mm256_loadu_si256(at)), _mm512_cvtph_ps(_mm256_loadu_si256(at.add(1)))] }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: &[u8; 2 * BLOCK]) -> Self::Block {
        let at = from.as_ptr().cast::<__m256i>();
        // SAFETY: the caller has made sure of AVX-512F; 2 · 32 bytes lie inside `from`, and the loads need no alignment.
        unsafe {
            let widen = |bits: __m256i| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)));
            [widen(_mm256_loadu_si256(at)), widen(_mm256_loadu_si256(at.add(1)))]
        }
    }

    #[inline(always)]
    unsafe fn store(block: Self::Block, to: &mut [f32; BLOCK]) {
        let at = to.as_mut_ptr();
        // SAFETY: the caller has made sure of AVX-512F; 2 · 16 numbers lie inside `to`, and the stores need no alignment.
        unsafe {
            _mm512_storeu_ps(at, block[0]);
            _mm512_storeu_ps(at.add(16), block[1]);
        }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::Block, b: Self::Block) -> Self::Block {
        // SAFETY: the caller has made sure of AVX-512F.
        unsafe { [_mm512_mul_ps(a[0], b[0]), _mm512_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::Block, b: Self::Block, c: Self::Block) -> Self::Block {
        // SAFETY: the caller has made sure of AVX-512F.
        unsafe { [_mm512_fmadd_ps(a[0], b[0], c[0]), _mm512_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    unsafe fn sum(block: Self::Block) -> f32 {
        // SAFETY: the caller has made sure of AVX-512F.
        unsafe { _mm512_reduce_add_ps(_mm512_add_ps(block[0], block[1])) }
    }
}
