//! The quantized formats: how 256 weights lie in their bytes.
//!
//! Every format is unpacked into the same [`Chunk`]: small integers, and the scales and minima that turn them into weights.
//! The widening to f32 and the integer products are written once over it. Layouts are those of `consort_gguf::dequantize`,
//! which is the definition: what is widened here equals it to the bit.
//!
//! Bits are taken apart 32 bytes at a time, in what [`Int8`] calls `Bytes`.

use super::generic::padded;
use super::int8::Int8;

/// Weights that are worked on at once: a super-block of the K-quants, eight blocks of the others.
pub(super) const CHUNK: usize = 256;
/// Blocks of 32 in a chunk.
pub(super) const BLOCKS: usize = 8;
/// Sub-blocks of 16 in a chunk.
pub(super) const SUBS: usize = 16;

/// How the numbers of a chunk become weights.
///
/// Weight `i` is `scale · (q − offset) + minimum`, where scale and minimum are those of its block or sub-block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// `q` is a signed byte, and no small unsigned one (below 64).
    pub(super) wide: bool,
    /// What is taken off each unsigned `q`.
    pub(super) offset: i32,
    /// Each sub-block of 16 has a small integer factor beside the scale of its block.
    pub(super) factors: bool,
    /// How many minima each block of 32 has: none, one, or one for each half.
    pub(super) minima: usize,
}

/// 256 weights as small integers.
#[repr(C, align(64))]
pub(super) struct Chunk {
    pub(super) q: [u8; CHUNK],
    /// Of each block.
    pub(super) scale: [f32; BLOCKS],
    /// Of each sub-block, where the format has them.
    pub(super) factor: [i16; SUBS],
    /// Of each block, or of the two halves of each block.
    pub(super) minimum: [[f32; BLOCKS]; 2],
}

impl Chunk {
    pub(super) const ZERO: Self =
        Self { q: [0; CHUNK], scale: [0.0; BLOCKS], factor: [0; SUBS], minimum: [[0.0; BLOCKS]; 2] };
}

/// A quantized format whose chunk of 256 weights takes `N` bytes.
pub(super) trait Packed<const N: usize> {
    const SHAPE: Shape;

    /// Fills the fields of `to` that the shape names.
    ///
    /// # Safety
    /// As for [`Lanes`](super::lanes::Lanes).
    unsafe fn unpack<L: Int8>(from: &[u8; N], to: &mut Chunk);

    /// The same from the last bytes of a row, which may be fewer: missing blocks are zeros.
    ///
    /// # Safety
    /// As for [`Lanes`](super::lanes::Lanes).
    #[inline(always)]
    unsafe fn unpack_some<L: Int8>(from: &[u8], to: &mut Chunk) {
        let whole;
        let from = match from.first_chunk::<N>() {
            Some(from) => from,
            None => {
                whole = padded(from);
                &whole
            }
        };
        // SAFETY: handed on to the caller.
        unsafe { Self::unpack::<L>(from, to) }
    }
}

pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q5_0;
pub(super) struct Q5_1;
pub(super) struct Q8_0;
pub(super) struct IQ4NL;
pub(super) struct Q2K;
pub(super) struct Q3K;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;
pub(super) struct IQ4XS;

const PLAIN: Shape = Shape { wide: false, offset: 0, factors: false, minima: 0 };

/// `M` bytes from `at` on; both are constants wherever this is used.
#[inline(always)]
fn part<const M: usize>(bytes: &[u8], at: usize) -> &[u8; M] {
    &bytes[at..at + M].as_chunks::<M>().0[0]
}

/// The f16 bits at byte `at`.
#[inline(always)]
fn bits(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*part(bytes, at))
}

/// The f16 numbers at byte `at` of each of eight blocks of `stride` bytes.
#[inline(always)]
unsafe fn of_blocks<L: Int8>(bytes: &[u8], stride: usize, at: usize) -> [f32; BLOCKS] {
    // SAFETY: handed on to the caller.
    unsafe { L::halves(std::array::from_fn(|block| bits(bytes, block * stride + at))) }
}

/// The two f16 numbers at byte `at`: a scale of scales and, in some formats, one of minima.
#[inline(always)]
unsafe fn pair<L: Int8>(bytes: &[u8], at: usize) -> (f32, f32) {
    // SAFETY: handed on to the caller.
    let [d, dmin, ..] = unsafe { L::halves([bits(bytes, at), bits(bytes, at + 2), 0, 0, 0, 0, 0, 0]) };
    (d, dmin)
}

/// The one f16 number at byte `at`.
#[inline(always)]
unsafe fn single<L: Int8>(bytes: &[u8], at: usize) -> f32 {
    // SAFETY: handed on to the caller.
    unsafe { L::halves([bits(bytes, at), 0, 0, 0, 0, 0, 0, 0])[0] }
}

/// Block `block` of a chunk.
#[inline(always)]
fn block_of(q: &mut [u8; CHUNK], block: usize) -> &mut [u8; 32] {
    &mut q.as_chunks_mut::<32>().0[block]
}

impl Packed<{ 8 * 18 }> for Q4_0 {
    const SHAPE: Shape = Shape { offset: 8, ..PLAIN };

    #[inline(always)]
    unsafe fn unpack<L: Int8>(from: &[u8; 8 * 18], to: &mut Chunk) {
        // SAFETY: handed on to the caller.
        to.scale = unsafe { of_blocks::<L>(from, 18, 0) };
        for block in 0..BLOCKS {
            // SAFETY: handed on to the caller.
            unsafe { L::store_bytes(L::nibbles(part(from, block * 18 + 2)), block_of(&mut to.q, block)) };
        }
    }
}

impl Packed<{ 8 * 20 }> for Q4_1 {
    const SHAPE: Shape = Shape { minima: 1, ..PLAIN };

    #[inline(always)]
    unsafe fn unpack<L: Int8>(from: &[u8; 8 * 20], to: &mut Chunk) {
        // SAFETY: handed on to the caller.
        unsafe {
            to.scale = of_blocks::<L>(from, 20, 0);
            to.minimum[0] = of_blocks::<L>(from, 20, 2);
        }
        for block in 0..BLOCKS {
            // SAFETY: handed on to the caller.
            unsafe { L::store_bytes(L::nibbles(part(from, block * 20 + 4)), block_of(&mut to.q, block)) };
        }
    }
}

/// 32 numbers of five bits: four as in Q4_0, and the top ones in four bytes before those.
#[inline(always)]
unsafe fn five_bits<L: Int8>(from: &[u8; 20], to: &mut [u8; 32]) {
    // SAFETY: handed on to the caller.
    unsafe {
        let top = L::spread(u32::from_le_bytes(*part(from, 0)));
        L::store_bytes(L::or(L::nibbles(part(from, 4)), top), to);
    }
}

impl Packed<{ 8 * 22 }> for Q5_0 {
    const SHAPE: Shape = Shape { offset: 16, ..PLAIN };

    #[inline(always)]
    unsafe fn unpack<L: Int8>(from: &[u8; 8 * 22], to: &mut Chunk) {
        // SAFETY: handed on to the caller.
        unsafe {
            to.scale = of_blocks::<L>(from, 22, 0);
            for block in 0..BLOCKS {
                five_bits::<L>(part(from, block * 22 + 2), block_of(&mut to.q, block));
            }
        }
    }
}

impl Packed<{ 8 * 24 }> for Q5_1 {
    const SHAPE: Shape = Shape { minima: 1, ..PLAIN };

    #[inline(always)]
    unsafe fn unpack<L: Int8>(from: &[u8; 8 * 24], to: &mut Chunk) {
        // SAFETY: handed on to the caller.
        unsafe {
            to.scale = of_blocks::<L>(from, 24, 0);
            to.minimum[0] = of_blocks::<L>(from, 24, 2);
            for block in 0..BLOCKS {
                five_bits::<L>(part(from, block * 24 + 4), block_of(&mut to.q, block));
            }
        }
    }
}

impl Packed<{ 8 * 34 }> for Q8_0 {
    const SHAPE: Shape = Shape { wide: true, ..PLAIN };

    #[inline(always)]
    unsafe fn unpack<L: Int8>(from: &[u8; 8 * 34], to: &mut Chunk) {
        // SAFETY: handed on to the caller.
        to.scale = unsafe { of_blocks::<L>(from, 34, 0) };
        for block in 0..BLOCKS {
            *block_of(&mut to.q, block) = *part(from, block * 34 + 2);
        }
    }
}

impl Packed<{ 8 * 18 }> for IQ4NL {
    const SHAPE: Shape = Shape { wide: true, ..PLAIN };

    #[inline(always)]
    unsafe fn unpack<L: Int8>(from: &[u8; 8 * 18], to: &mut Chunk) {
        // SAFETY: handed on to the caller.
        unsafe {
            to.scale = of_blocks::<L>(from, 18, 0);
            for block in 0..BLOCKS {
                L::store_bytes(L::levels(L::nibbles(part(from, block * 18 + 2))), block_of(&mut to.q, block));
            }
        }
    }
}

impl Packed<136> for IQ4XS {
    const SHAPE: Shape = Shape { wide: true, ..PLAIN };

    #[inline(always)]
    unsafe fn unpack<L: Int8>(from: &[u8; 136], to: &mut Chunk) {
        let (top, low) = (u32::from(bits(from, 2)), u32::from_le_bytes(*part(from, 4)));
        // SAFETY: handed on to the caller.
        unsafe {
            let d = single::<L>(from, 0);
            for block in 0..BLOCKS {
                let scale = low >> (4 * block) & 15 | (top >> (2 * block) & 3) << 4;
                to.scale[block] = d * (scale.cast_signed().wrapping_sub(32)) as f32;
                L::store_bytes(L::levels(L::nibbles(part(from, 8 + block * 16))), block_of(&mut to.q, block));
            }
        }
    }
}

/// The numbers of two bits that Q2_K and Q3_K share: two runs of 32 bytes, in each the numbers of four blocks.
#[inline(always)]
unsafe fn two_bits<L: Int8>(from: &[u8; 64], block: usize) -> L::Bytes {
    // SAFETY: handed on to the caller.
    unsafe { L::field(L::bytes(part(from, block / 4 * 32)), 2 * (block % 4).cast_signed(), 3) }
}

impl Packed<84> for Q2K {
    const SHAPE: Shape = Shape { factors: true, minima: 2, ..PLAIN };

    #[inline(always)]
    unsafe fn unpack<L: Int8>(from: &[u8; 84], to: &mut Chunk) {
        // SAFETY: handed on to the caller.
        let (d, dmin) = unsafe { pair::<L>(from, 80) };
        let both: &[u8; SUBS] = part(from, 0);
        to.scale = [d; BLOCKS];
        for (to, both) in to.factor.iter_mut().zip(both) {
            *to = i16::from(both & 15);
        }
        for block in 0..BLOCKS {
            to.minimum[0][block] = -(dmin * f32::from(both[2 * block] >> 4));
            to.minimum[1][block] = -(dmin * f32::from(both[2 * block + 1] >> 4));
        }
        for block in 0..BLOCKS {
            // SAFETY: handed on to the caller.
            unsafe { L::store_bytes(two_bits::<L>(part(from, 16), block), block_of(&mut to.q, block)) };
        }
    }
}

impl Packed<110> for Q3K {
    const SHAPE: Shape = Shape { offset: 4, factors: true, ..PLAIN };

    #[inline(always)]
    unsafe fn unpack<L: Int8>(from: &[u8; 110], to: &mut Chunk) {
        // SAFETY: handed on to the caller.
        to.scale = [unsafe { single::<L>(from, 108) }; BLOCKS];
        let packed: &[u8; 12] = part(from, 96);
        for sub in 0..SUBS {
            let low = packed[sub % 8] >> (4 * (sub / 8)) & 15;
            let top = packed[8 + sub % 4] >> (2 * (sub / 4)) & 3;
            to.factor[sub] = i16::from(low | top << 4).wrapping_sub(32);
        }
        // SAFETY: handed on to the caller.
        unsafe {
            let high = L::bytes(part(from, 0));
            for block in 0..BLOCKS {
                let top = L::field(high, block.cast_signed() - 2, 4);
                L::store_bytes(L::or(two_bits::<L>(part(from, 32), block), top), block_of(&mut to.q, block));
            }
        }
    }
}

/// The six-bit scales and minima of eight blocks, which Q4_K and Q5_K pack in 12 bytes.
#[inline(always)]
fn scales_and_minima(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let word = |at| u32::from_le_bytes(*part(packed, at));
    let (a, b, c) = (word(0), word(4), word(8));
    // Four bytes at a time: the first four lie as they are, the last four in halves and top pairs.
    let four = |first: u32, last: u32| (u64::from(first) | u64::from(last) << 32).to_le_bytes();
    (
        four(a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | (a >> 2 & 0x3030_3030)),
        four(b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | (b >> 2 & 0x3030_3030)),
    )
}

/// Scales and minima of Q4_K and Q5_K, whose first 16 bytes are alike.
#[inline(always)]
unsafe fn k_scales<L: Int8>(from: &[u8; 16], to: &mut Chunk) {
    // SAFETY: handed on to the caller.
    let (d, dmin) = unsafe { pair::<L>(from, 0) };
    let (scales, minima) = scales_and_minima(part(from, 4));
    for block in 0..BLOCKS {
        to.scale[block] = d * f32::from(scales[block]);
        to.minimum[0][block] = -(dmin * f32::from(minima[block]));
    }
}

/// The numbers of four bits of Q4_K and Q5_K: runs of 32 bytes, in each the low halves of one block, the high of the next.
#[inline(always)]
unsafe fn k_nibbles<L: Int8>(from: &[u8; 128], block: usize) -> L::Bytes {
    // SAFETY: handed on to the caller.
    unsafe { L::field(L::bytes(part(from, block / 2 * 32)), 4 * (block % 2).cast_signed(), 15) }
}

impl Packed<144> for Q4K {
    const SHAPE: Shape = Shape { minima: 1, ..PLAIN };

    #[inline(always)]
    unsafe fn unpack<L: Int8>(from: &[u8; 144], to: &mut Chunk) {
        // SAFETY: handed on to the caller.
        unsafe {
            k_scales::<L>(part(from, 0), to);
            for block in 0..BLOCKS {
                L::store_bytes(k_nibbles::<L>(part(from, 16), block), block_of(&mut to.q, block));
            }
        }
    }
}

impl Packed<176> for Q5K {
    const SHAPE: Shape = Shape { minima: 1, ..PLAIN };

    #[inline(always)]
    unsafe fn unpack<L: Int8>(from: &[u8; 176], to: &mut Chunk) {
        // SAFETY: handed on to the caller.
        unsafe {
            k_scales::<L>(part(from, 0), to);
            let high = L::bytes(part(from, 16));
            for block in 0..BLOCKS {
                let top = L::field(high, block.cast_signed() - 4, 16);
                L::store_bytes(L::or(k_nibbles::<L>(part(from, 48), block), top), block_of(&mut to.q, block));
            }
        }
    }
}

impl Packed<210> for Q6K {
    const SHAPE: Shape = Shape { offset: 32, factors: true, ..PLAIN };

    #[inline(always)]
    unsafe fn unpack<L: Int8>(from: &[u8; 210], to: &mut Chunk) {
        // SAFETY: handed on to the caller.
        to.scale = [unsafe { single::<L>(from, 208) }; BLOCKS];
        for (to, factor) in to.factor.iter_mut().zip(part::<SUBS>(from, 192)) {
            *to = i16::from(factor.cast_signed());
        }
        // SAFETY: handed on to the caller.
        unsafe {
            for block in 0..BLOCKS {
                let (half, within) = (block / 4, block % 4);
                let low = L::bytes(part(from, half * 64 + within % 2 * 32));
                let top = L::bytes(part(from, 128 + half * 32));
                let low = L::field(low, 4 * (within / 2).cast_signed(), 15);
                let top = L::field(top, 2 * within.cast_signed() - 4, 48);
                L::store_bytes(L::or(low, top), block_of(&mut to.q, block));
            }
        }
    }
}

/// Widens a row to f32: number by number what `consort_gguf::dequantize` gives.
#[inline(always)]
pub(super) unsafe fn widen<L: Int8, F: Packed<N>, const N: usize>(row: &[u8], out: &mut [f32]) {
    let (chunks, rest) = row.as_chunks::<N>();
    let (outs, out_rest) = out.as_chunks_mut::<CHUNK>();
    let mut chunk = Chunk::ZERO;
    // SAFETY: handed on to the caller.
    unsafe {
        for (from, to) in chunks.iter().zip(outs) {
            F::unpack::<L>(from, &mut chunk);
            widen_chunk::<F, N>(&chunk, to);
        }
        if !out_rest.is_empty() {
            F::unpack_some::<L>(rest, &mut chunk);
            let mut wide = [0.0; CHUNK];
            widen_chunk::<F, N>(&chunk, &mut wide);
            out_rest.copy_from_slice(&wide[..out_rest.len()]);
        }
    }
}

#[inline(always)]
fn widen_chunk<F: Packed<N>, const N: usize>(chunk: &Chunk, out: &mut [f32; CHUNK]) {
    for (sub, (q, out)) in chunk.q.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0).enumerate() {
        let mut scale = chunk.scale[sub / 2];
        if F::SHAPE.factors {
            scale *= f32::from(chunk.factor[sub]);
        }
        for i in 0..16 {
            let q = if F::SHAPE.wide { i32::from(q[i].cast_signed()) } else { i32::from(q[i]) };
            out[i] = scale * (q - F::SHAPE.offset) as f32;
            // Adding a zero would turn −0 into 0.
            if F::SHAPE.minima > 0 {
                out[i] += chunk.minimum[if F::SHAPE.minima == 2 { sub % 2 } else { 0 }][sub / 2];
            }
        }
    }
}
