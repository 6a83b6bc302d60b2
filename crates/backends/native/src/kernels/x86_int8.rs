//! The integer kernels' blocks in the vector registers of x86-64.
//!
//! Everything here is `unsafe` for the reason that [`x86`](super::x86) gives. AVX2 and plain AVX-512 multiply an unsigned by
//! a signed byte and add pairs with saturation at 16 bits: weights below 64 cannot reach it (2 · 63 · 127 < 2^15), and signed
//! ones are made magnitudes, their signs given to the activations (2 · 128 · 127 < 2^15). VNNI adds four at 32 bits.

use std::arch::x86_64::*;

use super::int8::{Int8, Product};
use super::packed::{BLOCKS, CHUNK, Chunk, SUBS, Shape};
use super::portable::LEVELS;
use super::tiles::{MAX_ROWS, Tile, tile_products};
use super::x86::{Avx2, Avx512};

/// What both widths share: eight blocks fit a register of 256 bits.
macro_rules! eights {
    () => {
        type Bytes = __m256i;
        type Eight = __m256;
        type Counts = __m256i;

        #[inline(always)]
        unsafe fn halves(bits: [u16; 8]) -> [f32; 8] {
            // Put together in general registers: the unit that shuffles vectors has enough to do.
            let [a, b, c, d, e, f, g, h] = bits.map(u64::from);
            let (low, high) = (a | b << 16 | c << 32 | d << 48, e | f << 16 | g << 32 | h << 48);
            let mut out = [0.0; 8];
            // SAFETY: the caller has made sure of F16C; eight numbers fit into `out`, and the store needs no alignment.
            unsafe {
                let halves = _mm_set_epi64x(high.cast_signed(), low.cast_signed());
                _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(halves));
            }
            out
        }

        #[inline(always)]
        unsafe fn bytes(from: &[u8; 32]) -> Self::Bytes {
            // SAFETY: the caller has made sure of AVX2; the load is of 32 bytes and needs no alignment.
            unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
        }

        #[inline(always)]
        unsafe fn store_bytes(from: Self::Bytes, to: &mut [u8; 32]) {
            // SAFETY: the caller has made sure of AVX2; the store is of 32 bytes and needs no alignment.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), from) }
        }

        #[inline(always)]
        unsafe fn nibbles(from: &[u8; 16]) -> Self::Bytes {
            // SAFETY: the caller has made sure of AVX2; the load is of 16 bytes and needs no alignment.
            unsafe {
                let twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(from.as_ptr().cast()));
                let moved = _mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 0, 4, 4));
                _mm256_and_si256(moved, _mm256_set1_epi8(15))
            }
        }

        #[inline(always)]
        unsafe fn field(bytes: Self::Bytes, by: isize, mask: u8) -> Self::Bytes {
            // SAFETY: the caller has made sure of AVX2.
            unsafe {
                // Bits that cross into a neighbour are not of the mask.
                let count = _mm_cvtsi32_si128(by.unsigned_abs() as i32);
                let moved = match by {
                    0 => bytes,
                    1.. => _mm256_srl_epi16(bytes, count),
                    _ => _mm256_sll_epi16(bytes, count),
                };
                _mm256_and_si256(moved, _mm256_set1_epi8(mask.cast_signed()))
            }
        }

        #[inline(always)]
        unsafe fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
            // SAFETY: the caller has made sure of AVX2.
            unsafe { _mm256_or_si256(a, b) }
        }

        #[inline(always)]
        unsafe fn levels(codes: Self::Bytes) -> Self::Bytes {
            // SAFETY: the caller has made sure of AVX2; the load is of 16 bytes and needs no alignment.
            unsafe {
                let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(LEVELS.as_ptr().cast()));
                _mm256_shuffle_epi8(table, codes)
            }
        }

        #[inline(always)]
        unsafe fn spread(bits: u32) -> Self::Bytes {
            // SAFETY: the caller has made sure of AVX2.
            unsafe {
                // Each byte of the mask eight times, and of each of the eight another bit.
                let order = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
                let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits.cast_signed()), order);
                let one = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
                let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, one), one);
                _mm256_and_si256(is_set, _mm256_set1_epi8(16))
            }
        }

        #[inline(always)]
        unsafe fn tiled(job: &mut Product<'_, '_>, shape: Shape, bytes: usize, unpack: impl Fn(&[u8], &mut Chunk)) {
            // SAFETY: handed on to the caller.
            unsafe { tile_products::<Self>(job, shape, bytes, unpack) }
        }

        #[inline(always)]
        unsafe fn paired(a: &[i16; SUBS], b: &[i16; SUBS], by: i32) -> Self::Counts {
            // SAFETY: the caller has made sure of AVX2; both loads are of 32 bytes and need no alignment.
            unsafe {
                let a = _mm256_loadu_si256(a.as_ptr().cast());
                let b = _mm256_loadu_si256(b.as_ptr().cast());
                _mm256_mullo_epi32(_mm256_madd_epi16(a, b), _mm256_set1_epi32(by))
            }
        }

        #[inline(always)]
        unsafe fn load_counts(from: &[i32; BLOCKS]) -> Self::Counts {
            // SAFETY: the caller has made sure of AVX2; the load is of 32 bytes and needs no alignment.
            unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
        }

        #[inline(always)]
        unsafe fn add_counts(a: Self::Counts, b: Self::Counts) -> Self::Counts {
            // SAFETY: the caller has made sure of AVX2.
            unsafe { _mm256_add_epi32(a, b) }
        }

        #[inline(always)]
        unsafe fn eight(from: &[f32; BLOCKS]) -> Self::Eight {
            // SAFETY: the caller has made sure of AVX; the load is of 32 bytes and needs no alignment.
            unsafe { _mm256_loadu_ps(from.as_ptr()) }
        }

        #[inline(always)]
        unsafe fn to_eight(counts: Self::Counts) -> Self::Eight {
            // SAFETY: the caller has made sure of AVX.
            unsafe { _mm256_cvtepi32_ps(counts) }
        }

        #[inline(always)]
        unsafe fn mul_eight(a: Self::Eight, b: Self::Eight) -> Self::Eight {
            // SAFETY: the caller has made sure of AVX.
            unsafe { _mm256_mul_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn fma_eight(a: Self::Eight, b: Self::Eight, c: Self::Eight) -> Self::Eight {
            // SAFETY: the caller has made sure of FMA.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        unsafe fn store_eight(from: Self::Eight) -> [f32; BLOCKS] {
            let mut out = [0.0; BLOCKS];
            // SAFETY: the caller has made sure of AVX; eight numbers fit into `out`, and the store needs no alignment.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), from) };
            out
        }
    };
}

/// Products of 32 pairs of bytes, summed by two into 16 bits.
#[inline(always)]
unsafe fn pairs(w: __m256i, x: __m256i, wide: bool) -> __m256i {
    // SAFETY: the caller has made sure of AVX2.
    unsafe {
        if wide { _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)) } else { _mm256_maddubs_epi16(w, x) }
    }
}

/// Block `block` of 32 bytes of a chunk.
#[inline(always)]
unsafe fn block_of<V>(chunk: &[V; CHUNK], block: usize) -> __m256i {
    const { assert!(size_of::<V>() == 1) };
    // SAFETY: the caller has made sure of AVX2; `chunk` is 256 bytes, of which the load reads 32 for each of eight blocks, and
    // it needs no alignment.
    unsafe { _mm256_loadu_si256(chunk.as_ptr().cast::<__m256i>().add(block % BLOCKS)) }
}

/// Of each of four registers the sums within its two halves: `[a, b, c, d]` of the lower ones, then of the upper ones.
#[inline(always)]
unsafe fn half_sums(p: [__m256i; 4]) -> __m256i {
    // SAFETY: the caller has made sure of AVX2.
    unsafe { _mm256_hadd_epi32(_mm256_hadd_epi32(p[0], p[1]), _mm256_hadd_epi32(p[2], p[3])) }
}

/// Of each of eight registers the sum.
#[inline(always)]
unsafe fn eight_sums(p: [__m256i; 8]) -> __m256i {
    // SAFETY: the caller has made sure of AVX2.
    unsafe {
        let a = half_sums([p[0], p[1], p[2], p[3]]);
        let b = half_sums([p[4], p[5], p[6], p[7]]);
        _mm256_add_epi32(_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b))
    }
}

impl Int8 for Avx2 {
    const WIDE_OFFSET: i32 = 0;
    const TILE_FROM: usize = 6;

    eights!();

    #[inline(always)]
    unsafe fn products(w: &[u8; CHUNK], x: &[i8; CHUNK], wide: bool) -> Self::Counts {
        // SAFETY: handed on to the caller.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let mut p = [ones; 8];
            for (block, p) in p.iter_mut().enumerate() {
                *p = _mm256_madd_epi16(pairs(block_of(w, block), block_of(x, block), wide), ones);
            }
            eight_sums(p)
        }
    }

    #[inline(always)]
    unsafe fn factored(w: &[u8; CHUNK], x: &[i8; CHUNK], factor: &[i16; SUBS]) -> Self::Counts {
        // SAFETY: handed on to the caller.
        unsafe {
            let mut p = [_mm256_setzero_si256(); 8];
            for (block, p) in p.iter_mut().enumerate() {
                let [lower, upper] = [factor[2 * block], factor[2 * block + 1]];
                let factor = _mm256_set_m128i(_mm_set1_epi16(upper), _mm_set1_epi16(lower));
                *p = _mm256_madd_epi16(pairs(block_of(w, block), block_of(x, block), false), factor);
            }
            eight_sums(p)
        }
    }
}

impl Tile for Avx2 {
    const ROWS: usize = 8;
    const TOKENS: usize = 4;

    type Weights = __m256i;
    /// Magnitudes and signed weights.
    type Ready = (__m256i, __m256i);
    type Ints = __m256i;
    type Floats = __m256;

    #[inline(always)]
    unsafe fn turn(rows: &[Chunk; MAX_ROWS], block: usize, _wide: bool) -> [[Self::Weights; 8]; 2] {
        // SAFETY: handed on to the caller.
        unsafe { [turn_eight(rows, block), turn_eight(rows, block + 1)] }
    }

    #[inline(always)]
    unsafe fn no_weights() -> Self::Weights {
        // SAFETY: the caller has made sure of AVX2.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn ready(w: Self::Weights, wide: bool) -> Self::Ready {
        // SAFETY: the caller has made sure of AVX2.
        unsafe { (if wide { _mm256_abs_epi8(w) } else { w }, w) }
    }

    #[inline(always)]
    unsafe fn dot(sum: Self::Ints, (magnitude, w): Self::Ready, x: i32, wide: bool) -> Self::Ints {
        // SAFETY: the caller has made sure of AVX2.
        unsafe {
            let x = _mm256_set1_epi32(x);
            let x = if wide { _mm256_sign_epi8(x, w) } else { x };
            let pairs = _mm256_maddubs_epi16(magnitude, x);
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn ints(value: i32) -> Self::Ints {
        // SAFETY: the caller has made sure of AVX2.
        unsafe { _mm256_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn load_ints(from: &[i32; MAX_ROWS]) -> Self::Ints {
        // SAFETY: the caller has made sure of AVX2; the load is of 32 bytes and needs no alignment.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[inline(always)]
    unsafe fn mul_ints(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        // SAFETY: the caller has made sure of AVX2.
        unsafe { _mm256_mullo_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn add_ints(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        // SAFETY: the caller has made sure of AVX2.
        unsafe { _mm256_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats {
        // SAFETY: the caller has made sure of AVX.
        unsafe { _mm256_cvtepi32_ps(ints) }
    }

    #[inline(always)]
    unsafe fn floats(value: f32) -> Self::Floats {
        // SAFETY: the caller has made sure of AVX.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load_floats(from: &[f32; MAX_ROWS]) -> Self::Floats {
        // SAFETY: the caller has made sure of AVX; the load is of 32 bytes and needs no alignment.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn mul_floats(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: the caller has made sure of AVX.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma_floats(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        // SAFETY: the caller has made sure of FMA.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn add_floats(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: the caller has made sure of AVX.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn store_floats(from: Self::Floats) -> [f32; MAX_ROWS] {
        let mut out = [0.0; MAX_ROWS];
        // SAFETY: the caller has made sure of AVX; eight numbers fit into `out`, and the store needs no alignment.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), from) };
        out
    }
}

/// A block of eight rows, turned about by four columns.
#[inline(always)]
unsafe fn turn_eight(rows: &[Chunk; MAX_ROWS], block: usize) -> [__m256i; 8] {
    // SAFETY: the caller has made sure of AVX2.
    unsafe {
        let mut quads = [_mm256_setzero_si256(); 8];
        for four in 0..2 {
            let mut row = [_mm256_setzero_si256(); 4];
            for (row, from) in row.iter_mut().zip(&rows[4 * four..]) {
                *row = block_of(&from.q, block);
            }
            let (a, b) = (_mm256_unpacklo_epi32(row[0], row[1]), _mm256_unpackhi_epi32(row[0], row[1]));
            let (c, d) = (_mm256_unpacklo_epi32(row[2], row[3]), _mm256_unpackhi_epi32(row[2], row[3]));
            quads[4 * four] = _mm256_unpacklo_epi64(a, c);
            quads[4 * four + 1] = _mm256_unpackhi_epi64(a, c);
            quads[4 * four + 2] = _mm256_unpacklo_epi64(b, d);
            quads[4 * four + 3] = _mm256_unpackhi_epi64(b, d);
        }
        // Half `k` of quads[4 f + j]: columns 4 k + j, rows 4 f to 4 f + 3.
        let mut out = [_mm256_setzero_si256(); 8];
        for j in 0..4 {
            out[j] = _mm256_permute2x128_si256::<0x20>(quads[j], quads[4 + j]);
            out[4 + j] = _mm256_permute2x128_si256::<0x31>(quads[j], quads[4 + j]);
        }
        out
    }
}

/// 64 bytes of a chunk, two blocks.
#[inline(always)]
unsafe fn two_blocks_of<V>(chunk: &[V; CHUNK], two: usize) -> __m512i {
    const { assert!(size_of::<V>() == 1) };
    // SAFETY: the caller has made sure of AVX-512F; `chunk` is 256 bytes, of which the load reads 64 for each of four pairs of
    // blocks, and it needs no alignment.
    unsafe { _mm512_loadu_si512(chunk.as_ptr().cast::<__m512i>().add(two % 4)) }
}

/// Of a chunk's 16 sub-blocks the sums: place 4 k + i has that of sub-block 4 i + k.
#[inline(always)]
unsafe fn sub_sums<const VNNI: bool>(w: &[u8; CHUNK], x: &[i8; CHUNK], wide: bool) -> __m512i {
    // SAFETY: the caller has made sure of AVX-512F and BW, and of VNNI where that is said.
    unsafe {
        let mut p = [_mm512_setzero_si512(); 4];
        for (two, p) in p.iter_mut().enumerate() {
            let ready = make_ready::<VNNI>(unsigned::<VNNI>(two_blocks_of(w, two), wide), wide);
            *p = add_products::<VNNI>(*p, ready, two_blocks_of(x, two), wide);
        }
        // Within each quarter of a register: four partial sums to one.
        let [a, b, c, d] = p;
        let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
    }
}

/// Of what [`sub_sums`] gives, the sums of each block's two halves.
#[inline(always)]
unsafe fn block_sums(subs: __m512i) -> __m256i {
    // SAFETY: the caller has made sure of AVX-512F.
    unsafe {
        // Quarters 0 and 2 beside each other, 1 and 3: the lower and the upper halves of blocks 0, 2, 4, 6 and 1, 3, 5, 7.
        let halves = _mm512_shuffle_i32x4::<0b11_01_10_00>(subs, subs);
        let sums = _mm256_add_epi32(_mm512_castsi512_si256(halves), _mm512_extracti64x4_epi64::<1>(halves));
        _mm256_permutevar8x32_epi32(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
    }
}

/// Signed weights as VNNI wants them: 128 more.
#[inline(always)]
unsafe fn unsigned<const VNNI: bool>(w: __m512i, wide: bool) -> __m512i {
    // SAFETY: the caller has made sure of AVX-512F.
    unsafe { if VNNI && wide { _mm512_xor_si512(w, _mm512_set1_epi8(-128)) } else { w } }
}

#[inline(always)]
unsafe fn make_ready<const VNNI: bool>(w: __m512i, wide: bool) -> (__m512i, __mmask64) {
    // SAFETY: the caller has made sure of AVX-512BW.
    unsafe { if VNNI || !wide { (w, 0) } else { (_mm512_abs_epi8(w), _mm512_movepi8_mask(w)) } }
}

/// `sum` and the products of 64 pairs of bytes, by four.
#[inline(always)]
unsafe fn add_products<const VNNI: bool>(
    sum: __m512i,
    (w, negative): (__m512i, __mmask64),
    x: __m512i,
    wide: bool,
) -> __m512i {
    // SAFETY: the caller has made sure of AVX-512BW, and of VNNI where that is said.
    unsafe {
        if VNNI {
            return _mm512_dpbusd_epi32(sum, w, x);
        }
        let x = if wide { _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x) } else { x };
        _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(w, x), _mm512_set1_epi16(1)))
    }
}

impl<const VNNI: bool> Int8 for Avx512<VNNI> {
    const WIDE_OFFSET: i32 = if VNNI { 128 } else { 0 };
    const TILE_FROM: usize = 6;

    eights!();

    #[inline(always)]
    unsafe fn products(w: &[u8; CHUNK], x: &[i8; CHUNK], wide: bool) -> Self::Counts {
        // SAFETY: handed on to the caller.
        unsafe { block_sums(sub_sums::<VNNI>(w, x, wide)) }
    }

    #[inline(always)]
    unsafe fn factored(w: &[u8; CHUNK], x: &[i8; CHUNK], factor: &[i16; SUBS]) -> Self::Counts {
        // SAFETY: the caller has made sure of AVX-512F and AVX2; the load is of 32 bytes and needs no alignment.
        unsafe {
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let factor = _mm512_cvtepi16_epi32(_mm256_loadu_si256(factor.as_ptr().cast()));
            let factor = _mm512_permutexvar_epi32(order, factor);
            block_sums(_mm512_mullo_epi32(sub_sums::<VNNI>(w, x, false), factor))
        }
    }
}

impl<const VNNI: bool> Tile for Avx512<VNNI> {
    const ROWS: usize = 16;
    const TOKENS: usize = 8;

    type Weights = __m512i;
    /// Magnitudes, and which are negative.
    type Ready = (__m512i, __mmask64);
    type Ints = __m512i;
    type Floats = __m512;

    #[inline(always)]
    unsafe fn turn(rows: &[Chunk; MAX_ROWS], block: usize, wide: bool) -> [[Self::Weights; 8]; 2] {
        // SAFETY: the caller has made sure of AVX-512F.
        unsafe {
            let mut quads = [_mm512_setzero_si512(); 16];
            for four in 0..4 {
                let mut row = [_mm512_setzero_si512(); 4];
                for (row, from) in row.iter_mut().zip(&rows[4 * four..]) {
                    *row = unsigned::<VNNI>(two_blocks_of(&from.q, block / 2), wide);
                }
                let (a, b) = (_mm512_unpacklo_epi32(row[0], row[1]), _mm512_unpackhi_epi32(row[0], row[1]));
                let (c, d) = (_mm512_unpacklo_epi32(row[2], row[3]), _mm512_unpackhi_epi32(row[2], row[3]));
                quads[4 * four] = _mm512_unpacklo_epi64(a, c);
                quads[4 * four + 1] = _mm512_unpackhi_epi64(a, c);
                quads[4 * four + 2] = _mm512_unpacklo_epi64(b, d);
                quads[4 * four + 3] = _mm512_unpackhi_epi64(b, d);
            }
            // Quarter `k` of quads[4 f + j]: columns 4 k + j, rows 4 f to 4 f + 3.
            let mut out = [[_mm512_setzero_si512(); 8]; 2];
            for j in 0..4 {
                let even = _mm512_shuffle_i32x4::<0x88>(quads[j], quads[4 + j]);
                let odd = _mm512_shuffle_i32x4::<0xdd>(quads[j], quads[4 + j]);
                let even_too = _mm512_shuffle_i32x4::<0x88>(quads[8 + j], quads[12 + j]);
                let odd_too = _mm512_shuffle_i32x4::<0xdd>(quads[8 + j], quads[12 + j]);
                out[0][j] = _mm512_shuffle_i32x4::<0x88>(even, even_too);
                out[0][4 + j] = _mm512_shuffle_i32x4::<0x88>(odd, odd_too);
                out[1][j] = _mm512_shuffle_i32x4::<0xdd>(even, even_too);
                out[1][4 + j] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_too);
            }
            out
        }
    }

    #[inline(always)]
    unsafe fn no_weights() -> Self::Weights {
        // SAFETY: the caller has made sure of AVX-512F.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn ready(w: Self::Weights, wide: bool) -> Self::Ready {
        // SAFETY: handed on to the caller.
        unsafe { make_ready::<VNNI>(w, wide) }
    }

    #[inline(always)]
    unsafe fn dot(sum: Self::Ints, w: Self::Ready, x: i32, wide: bool) -> Self::Ints {
        // SAFETY: handed on to the caller.
        unsafe {
            let x = _mm512_set1_epi32(x);
            add_products::<VNNI>(sum, w, x, wide)
        }
    }

    #[inline(always)]
    unsafe fn ints(value: i32) -> Self::Ints {
        // SAFETY: the caller has made sure of AVX-512F.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn load_ints(from: &[i32; MAX_ROWS]) -> Self::Ints {
        // SAFETY: the caller has made sure of AVX-512F; the load is of 64 bytes and needs no alignment.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    unsafe fn mul_ints(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        // SAFETY: the caller has made sure of AVX-512F.
        unsafe { _mm512_mullo_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn add_ints(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        // SAFETY: the caller has made sure of AVX-512F.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats {
        // SAFETY: the caller has made sure of AVX-512F.
        unsafe { _mm512_cvtepi32_ps(ints) }
    }

    #[inline(always)]
    unsafe fn floats(value: f32) -> Self::Floats {
        // SAFETY: the caller has made sure of AVX-512F.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load_floats(from: &[f32; MAX_ROWS]) -> Self::Floats {
        // SAFETY: the caller has made sure of AVX-512F; the load is of 64 bytes and needs no alignment.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn mul_floats(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: the caller has made sure of AVX-512F.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma_floats(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        // SAFETY: the caller has made sure of AVX-512F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn add_floats(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: the caller has made sure of AVX-512F.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn store_floats(from: Self::Floats) -> [f32; MAX_ROWS] {
        let mut out = [0.0; MAX_ROWS];
        // SAFETY: the caller has made sure of AVX-512F; 16 numbers fit into `out`, and the store needs no alignment.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), from) };
        out
    }
}
