//! What a kernel needs of a processor: blocks of 32 numbers that are loaded, multiplied, added and summed.
//!
//! Every kernel is written once over this trait. A block is the unit of order: number `i` of a dot product is always
//! accumulated in lane `i mod 32`, blocks in ascending order, and the lanes are summed in one fixed tree. So a result
//! depends on the row and the vector alone, and not on what else is computed beside it.

/// Numbers per block: a multiple of every vector register's width.
pub(super) const BLOCK: usize = 32;

/// A block of 32 numbers in registers.
///
/// # Safety
/// The methods may use instructions that only some processors have: whoever calls one has made sure that this one has
/// those that the implementing type names.
pub(super) trait Lanes {
    /// 32 numbers.
    type Block: Copy;

    unsafe fn splat(value: f32) -> Self::Block;
    unsafe fn load(from: &[f32; BLOCK]) -> Self::Block;
    unsafe fn load_f16(from: &[u8; 2 * BLOCK]) -> Self::Block;
    unsafe fn load_bf16(from: &[u8; 2 * BLOCK]) -> Self::Block;
    unsafe fn store(block: Self::Block, to: &mut [f32; BLOCK]);
    unsafe fn mul(a: Self::Block, b: Self::Block) -> Self::Block;
    /// `a · b + c`.
    unsafe fn fma(a: Self::Block, b: Self::Block, c: Self::Block) -> Self::Block;
    /// The sum of all 32, in this type's fixed order.
    unsafe fn sum(block: Self::Block) -> f32;
}

/// The widening of one IEEE half, without tables or branches, so that loops over it vectorize.
#[inline(always)]
pub(super) fn f16_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = bits & 0x7fff;
    // Shifted into place, the exponent is 112 too small; the product repairs that, and subnormals with it.
    let finite = f32::from_bits(magnitude << 13) * f32::from_bits((112 + 127) << 23);
    let infinite = f32::from_bits(0x7f80_0000 | ((magnitude & 0x3ff) << 13));
    let value = if magnitude >= 0x7c00 { infinite } else { finite };
    f32::from_bits(value.to_bits() | ((bits & 0x8000) << 16))
}

/// Plain Rust for any processor; the compiler uses what the target surely has (SSE2 on x86-64, NEON on AArch64).
pub(super) struct Portable;

/// Fused where that is one instruction of the baseline, two roundings elsewhere: a call into the C library per number
/// would be a hundred times slower.
#[inline(always)]
pub(super) fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_arch = "aarch64") { a.mul_add(b, c) } else { a * b + c }
}

impl Lanes for Portable {
    type Block = [f32; BLOCK];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Block {
        [value; BLOCK]
    }

    #[inline(always)]
    unsafe fn load(from: &[f32; BLOCK]) -> Self::Block {
        *from
    }

    #[inline(always)]
    unsafe fn load_f16(from: &[u8; 2 * BLOCK]) -> Self::Block {
        std::array::from_fn(|i| f16_to_f32(u16::from_le_bytes([from[2 * i], from[2 * i + 1]])))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: &[u8; 2 * BLOCK]) -> Self::Block {
        std::array::from_fn(|i| f32::from_bits(u32::from(u16::from_le_bytes([from[2 * i], from[2 * i + 1]])) << 16))
    }

    #[inline(always)]
    unsafe fn store(block: Self::Block, to: &mut [f32; BLOCK]) {
        *to = block;
    }

    #[inline(always)]
    unsafe fn mul(a: Self::Block, b: Self::Block) -> Self::Block {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn fma(a: Self::Block, b: Self::Block, c: Self::Block) -> Self::Block {
        std::array::from_fn(|i| multiply_add(a[i], b[i], c[i]))
    }

    #[inline(always)]
    unsafe fn sum(mut block: Self::Block) -> f32 {
        let mut half = BLOCK / 2;
        while half > 0 {
            for i in 0..half {
                block[i] += block[i + half];
            }
            half /= 2;
        }
        block[0]
    }
}
