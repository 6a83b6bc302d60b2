//! Products of quantized weights and activations of eight bits, in integers.
//!
//! The activations of a vector are rounded to eight bits in blocks of 32, each with a scale of its own. Of a block the
//! product is an exact integer; it is scaled and added in f32. The order of that is fixed: block `b` is added in lane
//! `b mod 8`, blocks in ascending order, first the product and then what the minima contribute; the eight lanes are summed
//! in one tree at the end. Both ways of computing keep to it, so that a result depends on its row and its vector alone:
//!
//! - [`row_products`] goes along a row, and has the eight lanes side by side in a register: for few vectors, where reading
//!   the weights is what takes time.
//! - [`tiles`](super::tiles) have rows side by side. Weights are turned about into tiles once, for many vectors.
//!
//! No sum of integers here can overflow: of 32 products of at most 128 · 127 and a factor of at most 128.

use super::generic::padded;
use super::lanes::Lanes;
use super::packed::{BLOCKS, CHUNK, Chunk, Packed, SUBS, Shape};

/// What the integer kernels need of a processor, beyond [`Lanes`].
///
/// # Safety
/// As for [`Lanes`].
pub(super) trait Int8: Lanes {
    /// What is added to each signed weight so that it is unsigned, where products need that; the activations' sums take it
    /// off again.
    const WIDE_OFFSET: i32;
    /// From how many vectors on tiles are faster.
    const TILE_FROM: usize;

    /// 32 bytes.
    type Bytes: Copy;
    /// Eight f32, one for each block of a chunk.
    type Eight: Copy;
    /// Eight i32, one for each block of a chunk.
    type Counts: Copy;

    unsafe fn halves(bits: [u16; 8]) -> [f32; 8];
    unsafe fn bytes(from: &[u8; 32]) -> Self::Bytes;
    unsafe fn store_bytes(from: Self::Bytes, to: &mut [u8; 32]);
    /// The low halves of 16 bytes, then their high halves.
    unsafe fn nibbles(from: &[u8; 16]) -> Self::Bytes;
    /// Each byte shifted right by `by` bits (left where that is negative), of which those of `mask` are kept; they come from
    /// the same byte.
    unsafe fn field(bytes: Self::Bytes, by: isize, mask: u8) -> Self::Bytes;
    unsafe fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// The non-linear levels that codes below 16 name, as signed bytes.
    unsafe fn levels(codes: Self::Bytes) -> Self::Bytes;
    /// 16 where a bit is set, 0 elsewhere.
    unsafe fn spread(bits: u32) -> Self::Bytes;

    /// Of each block `Σ w·x`. Weights are unsigned and below 64; `wide`: signed, and the result is of
    /// `w + WIDE_OFFSET`.
    unsafe fn products(w: &[u8; CHUNK], x: &[i8; CHUNK], wide: bool) -> Self::Counts;
    /// Of each block the sum over its two sub-blocks of `factor · Σ w·x`, for unsigned weights below 64.
    unsafe fn factored(w: &[u8; CHUNK], x: &[i8; CHUNK], factor: &[i16; SUBS]) -> Self::Counts;
    /// Of each block `by · Σ a·b` over its two sub-blocks.
    unsafe fn paired(a: &[i16; SUBS], b: &[i16; SUBS], by: i32) -> Self::Counts;
    unsafe fn load_counts(from: &[i32; BLOCKS]) -> Self::Counts;
    unsafe fn add_counts(a: Self::Counts, b: Self::Counts) -> Self::Counts;
    unsafe fn eight(from: &[f32; BLOCKS]) -> Self::Eight;
    unsafe fn to_eight(counts: Self::Counts) -> Self::Eight;
    unsafe fn mul_eight(a: Self::Eight, b: Self::Eight) -> Self::Eight;
    /// `a · b + c`.
    unsafe fn fma_eight(a: Self::Eight, b: Self::Eight, c: Self::Eight) -> Self::Eight;
    unsafe fn store_eight(from: Self::Eight) -> [f32; BLOCKS];

    /// Rows times vectors that were laid out for tiles, which are those from [`TILE_FROM`](Self::TILE_FROM) on. `unpack` fills
    /// a chunk from its bytes, of which there are `bytes`.
    unsafe fn tiled(job: &mut Product<'_, '_>, shape: Shape, bytes: usize, unpack: impl Fn(&[u8], &mut Chunk));
}

/// Vectors whose activations lie side by side for tiles.
pub(super) const GROUP: usize = 8;
/// Below this an activation block counts as zero: its reciprocal would overflow.
const LEAST: f32 = 1e-30;

/// 256 activations in eight bits.
#[derive(Clone)]
#[repr(C, align(64))]
struct Activations {
    q: [i8; CHUNK],
    /// Of each block.
    scale: [f32; BLOCKS],
    /// What minima are multiplied by: `scale · Σ q` of each block, or of the two halves of each block.
    total: [[f32; BLOCKS]; 2],
    /// `−offset · Σ q` of each block, or of each sub-block where there are factors.
    bias: [i32; SUBS],
    /// `Σ q` of each sub-block.
    sum: [i16; SUBS],
}

/// One block of eight vectors, side by side.
#[derive(Clone)]
#[repr(C, align(64))]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) struct Aside {
    /// `[columns / 4, vectors]`, of four columns each.
    pub(super) q: [[i32; GROUP]; 8],
    pub(super) scale: [f32; GROUP],
    pub(super) total: [[f32; GROUP]; 2],
    /// Of the block, or of its two halves.
    pub(super) bias: [[i32; GROUP]; 2],
}

/// Vectors in eight bits, for the format that they were made for.
pub(crate) struct Quantized {
    /// `[tokens, chunks]`, for [`row_products`].
    rows: Vec<Activations>,
    /// `[⌈tokens / 8⌉, lanes, chunks]`, for tiles; empty where that is not used.
    pub(super) groups: Vec<Aside>,
    pub(super) chunks: usize,
    tokens: usize,
}

impl Quantized {
    /// Whether these are laid out for tiles.
    pub(super) fn are_for_tiles(&self) -> bool {
        !self.groups.is_empty()
    }
}

/// `out[t][r] = Σ_c weights[r, c] · x[t, c]`.
pub(crate) struct Product<'a, 'b> {
    /// `[rows, row_bytes]`.
    pub(crate) weights: &'a [u8],
    /// Bytes per row.
    pub(crate) row_bytes: usize,
    /// `[tokens, cols]`.
    pub(crate) x: &'a Quantized,
    /// For each token a place for each row.
    pub(crate) out: &'a mut [&'b mut [f32]],
}

impl Shape {
    /// What products are too large by, per unit of activation.
    #[inline(always)]
    fn excess<L: Int8>(self) -> i32 {
        if self.wide { L::WIDE_OFFSET } else { self.offset }
    }
}

impl Quantized {
    /// Parts of the same vectors, one after the other, of which all but the last have a multiple of eight vectors.
    pub(crate) fn joined(parts: Vec<Self>) -> Self {
        let mut parts = parts.into_iter();
        let mut all = parts.next().unwrap_or(Self { rows: Vec::new(), groups: Vec::new(), chunks: 0, tokens: 0 });
        for part in parts {
            all.rows.extend(part.rows);
            all.groups.extend(part.groups);
            all.tokens += part.tokens;
        }
        all
    }
}

/// Rounds vectors `[tokens, cols]` to eight bits, for weights of this shape; they are some of `all` vectors.
///
/// A block with a number that is not finite gets the scale NaN, so that its products are NaN too.
#[inline(always)]
pub(super) fn quantize<L: Int8>(shape: Shape, x: &[f32], cols: usize, all: usize) -> Quantized {
    let (tokens, chunks) = (x.len() / cols, cols.div_ceil(CHUNK));
    let mut rows = Vec::with_capacity(tokens * chunks);
    for x in x.chunks_exact(cols) {
        let (whole, rest) = x.as_chunks::<CHUNK>();
        rows.extend(whole.iter().map(|x| quantize_chunk::<L>(shape, x)));
        if !rest.is_empty() {
            rows.push(quantize_chunk::<L>(shape, &padded(rest)));
        }
    }
    let groups = if all >= L::TILE_FROM { aside(shape, &rows, chunks) } else { Vec::new() };
    if !groups.is_empty() {
        rows = Vec::new();
    }
    Quantized { rows, groups, chunks, tokens }
}

#[inline(always)]
fn quantize_chunk<L: Int8>(shape: Shape, x: &[f32; CHUNK]) -> Activations {
    /// Added and taken off again, it rounds to whole numbers, halves to even.
    const ROUND: f32 = 12_582_912.0;
    let mut to =
        Activations { q: [0; CHUNK], scale: [0.0; BLOCKS], total: [[0.0; BLOCKS]; 2], bias: [0; SUBS], sum: [0; SUBS] };
    for (block, (x, q)) in x.as_chunks::<32>().0.iter().zip(to.q.as_chunks_mut::<32>().0).enumerate() {
        // Bits of magnitudes order as the magnitudes do, and NaN comes last.
        let largest = x.iter().fold(0_u32, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
        let largest = f32::from_bits(largest);
        let scale = if largest.is_finite() { largest / 127.0 } else { f32::NAN };
        if largest.is_finite() && largest >= LEAST {
            let inverse = 127.0 / largest;
            for i in 0..32 {
                // The low byte of the sum is the whole number in two's complement.
                q[i] = ((x[i] * inverse + ROUND).to_bits() as u8).cast_signed();
            }
            to.scale[block] = scale;
        } else {
            to.scale[block] = if largest.is_finite() { 0.0 } else { scale };
        }
        let mut sums = [0_i32; 2];
        for (sum, q) in sums.iter_mut().zip(q.as_chunks::<16>().0) {
            for q in q {
                *sum = sum.wrapping_add(i32::from(*q));
            }
        }
        let excess = shape.excess::<L>();
        let total = sums[0].wrapping_add(sums[1]);
        to.sum[2 * block] = sums[0] as i16;
        to.sum[2 * block + 1] = sums[1] as i16;
        if shape.factors {
            to.bias[2 * block] = excess.wrapping_mul(sums[0]).wrapping_neg();
            to.bias[2 * block + 1] = excess.wrapping_mul(sums[1]).wrapping_neg();
        } else {
            to.bias[block] = excess.wrapping_mul(total).wrapping_neg();
        }
        if shape.minima == 2 {
            to.total[0][block] = to.scale[block] * sums[0] as f32;
            to.total[1][block] = to.scale[block] * sums[1] as f32;
        } else {
            to.total[0][block] = to.scale[block] * total as f32;
        }
    }
    to
}

/// Eight vectors side by side, blocks in the order in which tiles pass over them: lane by lane.
#[inline(always)]
fn aside(shape: Shape, rows: &[Activations], chunks: usize) -> Vec<Aside> {
    const EMPTY: Aside =
        Aside { q: [[0; GROUP]; 8], scale: [0.0; GROUP], total: [[0.0; GROUP]; 2], bias: [[0; GROUP]; 2] };
    let mut groups = vec![EMPTY; (rows.len() / chunks).div_ceil(GROUP) * BLOCKS * chunks];
    for (token, row) in rows.chunks_exact(chunks).enumerate() {
        let group = &mut groups[token / GROUP * BLOCKS * chunks..][..BLOCKS * chunks];
        let at = token % GROUP;
        for (c, from) in row.iter().enumerate() {
            for lane in 0..BLOCKS {
                let to = &mut group[lane * chunks + c];
                for (to, from) in to.q.iter_mut().zip(from.q[lane * 32..][..32].as_chunks::<4>().0) {
                    to[at] = i32::from_le_bytes(from.map(i8::cast_unsigned));
                }
                to.scale[at] = from.scale[lane];
                to.total[0][at] = from.total[0][lane];
                to.total[1][at] = from.total[1][lane];
                if shape.factors {
                    to.bias[0][at] = from.bias[2 * lane];
                    to.bias[1][at] = from.bias[2 * lane + 1];
                } else {
                    to.bias[0][at] = from.bias[lane];
                }
            }
        }
    }
    groups
}

/// See [`Product`]; where there are no tiles.
#[inline(always)]
pub(super) unsafe fn row_products<L: Int8, F: Packed<N>, const N: usize>(job: &mut Product<'_, '_>) {
    for token in (0..job.x.tokens).step_by(2) {
        // SAFETY: handed on to the caller.
        unsafe {
            match job.x.tokens - token {
                1 => row_product::<L, F, N, 1>(job, token),
                _ => row_product::<L, F, N, 2>(job, token),
            }
        }
    }
}

/// Every row times `T` vectors from `token` on.
#[inline(always)]
unsafe fn row_product<L: Int8, F: Packed<N>, const N: usize, const T: usize>(job: &mut Product<'_, '_>, token: usize) {
    let mut x: [&[Activations]; T] = [&[]; T];
    for (t, x) in x.iter_mut().enumerate() {
        *x = &job.x.rows[(token + t) * job.x.chunks..][..job.x.chunks];
    }
    let mut chunk = Chunk::ZERO;
    // SAFETY: handed on to the caller.
    unsafe {
        for (r, row) in job.weights.chunks_exact(job.row_bytes).enumerate() {
            let mut sums = [L::eight(&[0.0; BLOCKS]); T];
            let (chunks, rest) = row.as_chunks::<N>();
            for (c, from) in chunks.iter().enumerate() {
                F::unpack::<L>(from, &mut chunk);
                for t in 0..T {
                    sums[t] = add_chunk::<L, F, N>(sums[t], &chunk, &x[t][c]);
                }
            }
            if !rest.is_empty() {
                F::unpack_some::<L>(rest, &mut chunk);
                for t in 0..T {
                    sums[t] = add_chunk::<L, F, N>(sums[t], &chunk, &x[t][chunks.len()]);
                }
            }
            for (t, sum) in sums.iter().enumerate() {
                let [a, b, c, d, e, f, g, h] = L::store_eight(*sum);
                job.out[token + t][r] = ((a + e) + (c + g)) + ((b + f) + (d + h));
            }
        }
    }
}

/// Adds the products of a chunk's eight blocks in eight lanes.
#[inline(always)]
unsafe fn add_chunk<L: Int8, F: Packed<N>, const N: usize>(sum: L::Eight, w: &Chunk, x: &Activations) -> L::Eight {
    let excess = F::SHAPE.excess::<L>();
    // SAFETY: handed on to the caller.
    unsafe {
        let mut counts =
            if F::SHAPE.factors { L::factored(&w.q, &x.q, &w.factor) } else { L::products(&w.q, &x.q, F::SHAPE.wide) };
        if excess != 0 {
            let bias = if F::SHAPE.factors {
                L::paired(&w.factor, &x.sum, -excess)
            } else {
                L::load_counts(&x.bias.as_chunks::<BLOCKS>().0[0])
            };
            counts = L::add_counts(counts, bias);
        }
        let scale = L::mul_eight(L::eight(&w.scale), L::eight(&x.scale));
        let mut sum = L::fma_eight(scale, L::to_eight(counts), sum);
        for half in 0..F::SHAPE.minima {
            sum = L::fma_eight(L::eight(&w.minimum[half]), L::eight(&x.total[half]), sum);
        }
        sum
    }
}
