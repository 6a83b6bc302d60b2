//! The integer kernels' blocks in plain Rust, for any processor.

use super::int8::{Int8, Product};
use super::lanes::{Portable, f16_to_f32, multiply_add};
use super::packed::{BLOCKS, CHUNK, Chunk, SUBS, Shape};

/// The 16 levels of IQ4_NL and IQ4_XS; constants of the format.
pub(super) const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 1 in each byte.
const EACH: u64 = 0x0101_0101_0101_0101;

impl Int8 for Portable {
    const WIDE_OFFSET: i32 = 0;
    /// Along a row compilers find the instructions that multiply and add; side by side they do not.
    const TILE_FROM: usize = usize::MAX;

    /// Eight bytes at a time.
    type Bytes = [u64; 4];
    type Eight = [f32; BLOCKS];
    type Counts = [i32; BLOCKS];

    #[inline(always)]
    unsafe fn halves(bits: [u16; 8]) -> [f32; 8] {
        bits.map(f16_to_f32)
    }

    #[inline(always)]
    unsafe fn bytes(from: &[u8; 32]) -> Self::Bytes {
        let words = from.as_chunks::<8>().0;
        [words[0], words[1], words[2], words[3]].map(u64::from_le_bytes)
    }

    #[inline(always)]
    unsafe fn store_bytes(from: Self::Bytes, to: &mut [u8; 32]) {
        for (to, word) in to.as_chunks_mut::<8>().0.iter_mut().zip(from) {
            *to = word.to_le_bytes();
        }
    }

    #[inline(always)]
    unsafe fn nibbles(from: &[u8; 16]) -> Self::Bytes {
        let words = from.as_chunks::<8>().0;
        let (a, b) = (u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1]));
        [a, b, a >> 4, b >> 4].map(|word| word & (15 * EACH))
    }

    #[inline(always)]
    unsafe fn field(bytes: Self::Bytes, by: isize, mask: u8) -> Self::Bytes {
        // Bits that cross into a neighbour are not of the mask.
        let mask = u64::from(mask) * EACH;
        let count = by.unsigned_abs();
        bytes.map(|word| if by < 0 { word << count & mask } else { word >> count & mask })
    }

    #[inline(always)]
    unsafe fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        [a[0] | b[0], a[1] | b[1], a[2] | b[2], a[3] | b[3]]
    }

    #[inline(always)]
    unsafe fn levels(codes: Self::Bytes) -> Self::Bytes {
        let level = |code: u8| LEVELS[usize::from(code & 15)].cast_unsigned();
        codes.map(|word| u64::from_le_bytes(word.to_le_bytes().map(level)))
    }

    #[inline(always)]
    unsafe fn spread(bits: u32) -> Self::Bytes {
        // Each byte of the mask eight times, and of each of the eight another bit; added to what fills it up to 128, a bit
        // that is set gives 128.
        const ONE: u64 = 0x8040_2010_0804_0201;
        const FILL: u64 = 128 * EACH - ONE;
        bits.to_le_bytes().map(|byte| {
            let one = (u64::from(byte) * EACH) & ONE;
            ((one + FILL) & (128 * EACH)) >> 3
        })
    }

    #[inline(always)]
    unsafe fn products(w: &[u8; CHUNK], x: &[i8; CHUNK], wide: bool) -> Self::Counts {
        let mut sums = [0; BLOCKS];
        for ((sum, w), x) in sums.iter_mut().zip(w.as_chunks::<32>().0).zip(x.as_chunks::<32>().0) {
            *sum = dot(w, x, wide);
        }
        sums
    }

    #[inline(always)]
    unsafe fn factored(w: &[u8; CHUNK], x: &[i8; CHUNK], factor: &[i16; SUBS]) -> Self::Counts {
        let mut sums = [0_i32; BLOCKS];
        for (sub, (w, x)) in w.as_chunks::<16>().0.iter().zip(x.as_chunks::<16>().0).enumerate() {
            let part = i32::from(factor[sub]).wrapping_mul(dot(w, x, false));
            sums[sub / 2] = sums[sub / 2].wrapping_add(part);
        }
        sums
    }

    #[inline(always)]
    unsafe fn paired(a: &[i16; SUBS], b: &[i16; SUBS], by: i32) -> Self::Counts {
        std::array::from_fn(|block| {
            let at = |sub| i32::from(a[sub]).wrapping_mul(i32::from(b[sub]));
            at(2 * block).wrapping_add(at(2 * block + 1)).wrapping_mul(by)
        })
    }

    #[inline(always)]
    unsafe fn load_counts(from: &[i32; BLOCKS]) -> Self::Counts {
        *from
    }

    #[inline(always)]
    unsafe fn add_counts(a: Self::Counts, b: Self::Counts) -> Self::Counts {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    unsafe fn eight(from: &[f32; BLOCKS]) -> Self::Eight {
        *from
    }

    #[inline(always)]
    unsafe fn to_eight(counts: Self::Counts) -> Self::Eight {
        counts.map(|count| count as f32)
    }

    #[inline(always)]
    unsafe fn mul_eight(a: Self::Eight, b: Self::Eight) -> Self::Eight {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn fma_eight(a: Self::Eight, b: Self::Eight, c: Self::Eight) -> Self::Eight {
        std::array::from_fn(|i| multiply_add(a[i], b[i], c[i]))
    }

    #[inline(always)]
    unsafe fn store_eight(from: Self::Eight) -> [f32; BLOCKS] {
        from
    }

    /// There are no vectors for tiles here.
    #[inline(always)]
    unsafe fn tiled(_job: &mut Product<'_, '_>, _shape: Shape, _bytes: usize, _unpack: impl Fn(&[u8], &mut Chunk)) {}
}

/// `Σ w·x`, with 16-bit factors, for which processors have one instruction.
#[inline(always)]
fn dot<const M: usize>(w: &[u8; M], x: &[i8; M], wide: bool) -> i32 {
    let mut sum = 0_i32;
    for (w, x) in w.iter().zip(x) {
        let w = if wide { i16::from(w.cast_signed()) } else { i16::from(*w) };
        sum = sum.wrapping_add(i32::from(w).wrapping_mul(i32::from(i16::from(*x))));
    }
    sum
}
