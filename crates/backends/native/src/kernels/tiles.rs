//! Integer products by tiles: rows side by side in registers, for many vectors.
//!
//! Weights are unpacked and turned about once for all vectors, so that four columns of all rows of a tile lie in one register,
//! and a block's sums need no adding across one. The order of additions is that of [`int8`](super::int8).

use super::int8::{Aside, GROUP, Int8, Product};
use super::packed::{BLOCKS, CHUNK, Chunk, Shape};

/// What tiles need of a processor.
///
/// # Safety
/// As for [`Lanes`](super::lanes::Lanes).
pub(super) trait Tile: Int8 {
    /// Rows side by side in a tile, at most [`MAX_ROWS`].
    const ROWS: usize;
    /// Vectors for which a tile's sums fit into registers: 4 or 8.
    const TOKENS: usize;

    /// Four weights of each row of a tile.
    type Weights: Copy;
    /// The same, as products want them.
    type Ready: Copy;
    /// An i32 for each row of a tile.
    type Ints: Copy;
    /// An f32 for each row of a tile.
    type Floats: Copy;

    /// Blocks `block` and `block + 1` of the first [`ROWS`](Self::ROWS) rows: for each four columns the weights of all rows.
    /// `wide` ones become unsigned where products need that.
    unsafe fn turn(rows: &[Chunk; MAX_ROWS], block: usize, wide: bool) -> [[Self::Weights; 8]; 2];
    /// Weights of zero.
    unsafe fn no_weights() -> Self::Weights;
    unsafe fn ready(w: Self::Weights, wide: bool) -> Self::Ready;
    /// `sum + w·x` for each row, of four weights and the four activations in the bytes of `x`.
    unsafe fn dot(sum: Self::Ints, w: Self::Ready, x: i32, wide: bool) -> Self::Ints;
    unsafe fn ints(value: i32) -> Self::Ints;
    unsafe fn load_ints(from: &[i32; MAX_ROWS]) -> Self::Ints;
    unsafe fn mul_ints(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    unsafe fn add_ints(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats;
    unsafe fn floats(value: f32) -> Self::Floats;
    unsafe fn load_floats(from: &[f32; MAX_ROWS]) -> Self::Floats;
    unsafe fn mul_floats(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`.
    unsafe fn fma_floats(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    unsafe fn add_floats(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn store_floats(from: Self::Floats) -> [f32; MAX_ROWS];
}

/// The most rows that a tile of any kernel set has.
pub(super) const MAX_ROWS: usize = 16;
/// Bytes of tiles that stay in a core's second-level cache while the vectors pass.
const TILED_BYTES: usize = 192 << 10;

/// Rows of weights, turned about. Each list has one entry for each tile, lane and chunk in turn.
struct Tiles<L: Tile> {
    weights: Vec<[L::Weights; 8]>,
    scales: Vec<L::Floats>,
    /// Of the halves of the block, where there are factors.
    factors: Vec<[L::Ints; 2]>,
    /// Of the block or of its halves, where there are minima.
    minima: Vec<[L::Floats; 2]>,
}

/// See [`Int8::tiled`].
///
/// The format is known at run time only: the work per chunk is long enough for a jump.
#[inline(always)]
pub(super) unsafe fn tile_products<L: Tile>(
    job: &mut Product<'_, '_>,
    shape: Shape,
    bytes: usize,
    unpack: impl Fn(&[u8], &mut Chunk),
) {
    let chunks = job.x.chunks;
    let tile_rows = (TILED_BYTES / (chunks * CHUNK)).max(1).next_multiple_of(L::ROWS);
    let mut tiles = Tiles::<L> { weights: Vec::new(), scales: Vec::new(), factors: Vec::new(), minima: Vec::new() };
    for (index, rows) in job.weights.chunks(tile_rows * job.row_bytes).enumerate() {
        tiles.weights.clear();
        tiles.scales.clear();
        tiles.factors.clear();
        tiles.minima.clear();
        let first = index * tile_rows;
        let last = first + rows.len() / job.row_bytes;
        for rows in rows.chunks(L::ROWS * job.row_bytes) {
            // SAFETY: handed on to the caller.
            unsafe { turn(rows, job.row_bytes, shape, bytes, &unpack, chunks, &mut tiles) };
        }
        for (group, outs) in job.x.groups.chunks_exact(BLOCKS * chunks).zip(job.out.chunks_mut(GROUP)) {
            for (tile, row) in (first..last).step_by(L::ROWS).enumerate() {
                let rows = row..(row + L::ROWS).min(last);
                // SAFETY: handed on to the caller.
                unsafe {
                    if L::TOKENS == 8 && outs.len() > 4 {
                        put::<L, 8>(tile_sums_of::<L, 0, 8>(shape, &tiles, tile, group), outs, &rows);
                    } else {
                        put::<L, 4>(tile_sums_of::<L, 0, 4>(shape, &tiles, tile, group), outs, &rows);
                        if outs.len() > 4 {
                            let sums = tile_sums_of::<L, 4, 4>(shape, &tiles, tile, group);
                            put::<L, 4>(sums, &mut outs[4..], &rows);
                        }
                    }
                }
            }
        }
    }
}

/// Stores a tile's results.
#[inline(always)]
unsafe fn put<L: Tile, const T: usize>(sums: [L::Floats; T], outs: &mut [&mut [f32]], rows: &std::ops::Range<usize>) {
    for (sum, out) in sums.into_iter().zip(outs) {
        // SAFETY: handed on to the caller.
        let sum = unsafe { L::store_floats(sum) };
        out[rows.clone()].copy_from_slice(&sum[..rows.len()]);
    }
}

/// Adds one tile: at most `L::ROWS` rows. Missing rows are zeros.
#[inline(always)]
unsafe fn turn<L: Tile>(
    rows: &[u8],
    row_bytes: usize,
    shape: Shape,
    bytes: usize,
    unpack: &impl Fn(&[u8], &mut Chunk),
    chunks: usize,
    tiles: &mut Tiles<L>,
) {
    let mut unpacked = [const { Chunk::ZERO }; MAX_ROWS];
    let first = tiles.weights.len();
    let end = first + BLOCKS * chunks;
    // SAFETY: handed on to the caller.
    unsafe {
        let zero = L::floats(0.0);
        tiles.weights.resize(end, [L::no_weights(); 8]);
        tiles.scales.resize(end, zero);
        if shape.factors {
            tiles.factors.resize(end, [L::ints(0); 2]);
        }
        if shape.minima > 0 {
            tiles.minima.resize(end, [zero; 2]);
        }
        for c in 0..chunks {
            for (row, chunk) in rows.chunks_exact(row_bytes).zip(&mut unpacked) {
                unpack(&row[c * bytes..(c * bytes + bytes).min(row_bytes)], chunk);
            }
            for block in (0..BLOCKS).step_by(2) {
                let [a, b] = L::turn(&unpacked, block, shape.wide);
                tiles.weights[first + block * chunks + c] = a;
                tiles.weights[first + (block + 1) * chunks + c] = b;
            }
            for block in 0..BLOCKS {
                let at = first + block * chunks + c;
                let mut scales = [0.0; MAX_ROWS];
                for r in 0..L::ROWS {
                    scales[r] = unpacked[r].scale[block];
                }
                tiles.scales[at] = L::load_floats(&scales);
                if shape.minima > 0 {
                    let [mut first, mut second] = [[0.0; MAX_ROWS]; 2];
                    for r in 0..L::ROWS {
                        first[r] = unpacked[r].minimum[0][block];
                        second[r] = unpacked[r].minimum[1][block];
                    }
                    tiles.minima[at] = [L::load_floats(&first), L::load_floats(&second)];
                }
                if shape.factors {
                    let [mut first, mut second] = [[0; MAX_ROWS]; 2];
                    for r in 0..L::ROWS {
                        first[r] = i32::from(unpacked[r].factor[2 * block]);
                        second[r] = i32::from(unpacked[r].factor[2 * block + 1]);
                    }
                    tiles.factors[at] = [L::load_ints(&first), L::load_ints(&second)];
                }
            }
        }
    }
}

/// [`tile_sums`] for a shape that is known at run time.
#[inline(always)]
unsafe fn tile_sums_of<L: Tile, const FIRST: usize, const T: usize>(
    shape: Shape,
    tiles: &Tiles<L>,
    tile: usize,
    group: &[Aside],
) -> [L::Floats; T] {
    // SAFETY: handed on to the caller.
    unsafe {
        match (shape.wide, shape.factors, shape.minima) {
            (true, _, _) => tile_sums::<L, true, false, 0, FIRST, T>(tiles, tile, group),
            (_, true, 0) => tile_sums::<L, false, true, 0, FIRST, T>(tiles, tile, group),
            (_, true, _) => tile_sums::<L, false, true, 2, FIRST, T>(tiles, tile, group),
            (_, _, 0) => tile_sums::<L, false, false, 0, FIRST, T>(tiles, tile, group),
            _ => tile_sums::<L, false, false, 1, FIRST, T>(tiles, tile, group),
        }
    }
}

/// A tile's results for `T` vectors of a group, from number `FIRST` on.
#[inline(always)]
unsafe fn tile_sums<
    L: Tile,
    const WIDE: bool,
    const FACTORS: bool,
    const MINIMA: usize,
    const FIRST: usize,
    const T: usize,
>(
    tiles: &Tiles<L>,
    tile: usize,
    group: &[Aside],
) -> [L::Floats; T] {
    let chunks = group.len() / BLOCKS;
    // SAFETY: handed on to the caller.
    unsafe {
        let mut lanes = [[L::floats(0.0); T]; BLOCKS];
        for (lane, sums) in lanes.iter_mut().enumerate() {
            let first = (tile * BLOCKS + lane) * chunks;
            let (weights, scales) = (&tiles.weights[first..first + chunks], &tiles.scales[first..first + chunks]);
            let xs = &group[lane * chunks..(lane + 1) * chunks];
            let mut sum = [L::floats(0.0); T];
            for (c, ((w, scale), x)) in weights.iter().zip(scales).zip(xs).enumerate() {
                let mut ints;
                if FACTORS {
                    // Two halves of four groups of columns.
                    let ([w, w2], [q, q2]) = (halves(w), halves(&x.q));
                    let [lower, upper] = tiles.factors[first + c];
                    ints = dots::<L, WIDE, FIRST, T, 4>(w, q, &x.bias[0]);
                    let second = dots::<L, WIDE, FIRST, T, 4>(w2, q2, &x.bias[1]);
                    for t in 0..T {
                        ints[t] = L::add_ints(L::mul_ints(ints[t], lower), L::mul_ints(second[t], upper));
                    }
                } else {
                    ints = dots::<L, WIDE, FIRST, T, 8>(w, &x.q, &x.bias[0]);
                }
                for t in 0..T {
                    let scale = L::mul_floats(*scale, L::floats(x.scale[FIRST + t]));
                    sum[t] = L::fma_floats(scale, L::to_floats(ints[t]), sum[t]);
                }
                if MINIMA > 0 {
                    for (minimum, total) in tiles.minima[first + c].iter().zip(&x.total).take(MINIMA) {
                        for (sum, total) in sum.iter_mut().zip(&total[FIRST..]) {
                            *sum = L::fma_floats(*minimum, L::floats(*total), *sum);
                        }
                    }
                }
            }
            *sums = sum;
        }
        let mut out = [L::floats(0.0); T];
        for t in 0..T {
            let [a, b, c, d, e, f, g, h] = &lanes;
            let even = L::add_floats(L::add_floats(a[t], e[t]), L::add_floats(c[t], g[t]));
            let odd = L::add_floats(L::add_floats(b[t], f[t]), L::add_floats(d[t], h[t]));
            out[t] = L::add_floats(even, odd);
        }
        out
    }
}

#[inline(always)]
fn halves<V>(eight: &[V; 8]) -> [&[V; 4]; 2] {
    let (fours, _) = eight.as_chunks::<4>();
    [&fours[0], &fours[1]]
}

/// The sums over `G` groups of four columns of a block, each from its bias on.
#[inline(always)]
unsafe fn dots<L: Tile, const WIDE: bool, const FIRST: usize, const T: usize, const G: usize>(
    w: &[L::Weights; G],
    x: &[[i32; GROUP]; G],
    bias: &[i32; GROUP],
) -> [L::Ints; T] {
    // SAFETY: handed on to the caller.
    unsafe {
        let mut ints = [L::ints(0); T];
        for t in 0..T {
            ints[t] = L::ints(bias[FIRST + t]);
        }
        for j in 0..G {
            let w = L::ready(w[j], WIDE);
            for t in 0..T {
                ints[t] = L::dot(ints[t], w, x[j][FIRST + t], WIDE);
            }
        }
        ints
    }
}
