//! The K-quants: super-blocks of 256 numbers, cut into sub-blocks that have small scales of their own.

use crate::dequantize::{NONLINEAR_LEVELS, half_at};

/// Q2_K: 16 bytes, a 4-bit scale and a 4-bit minimum for each sub-block of 16; 64 bytes of 2-bit numbers; f16 scale of the
/// scales, f16 scale of the minima.
///
/// The bits lie in two runs of 32 bytes; in a run, bits 2j and 2j + 1 of its bytes are the j-th 32 numbers of 128.
pub(crate) fn q2(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, bits) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (sub, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[sub] & 15);
        let minimum = dmin * f32::from(scales[sub] >> 4);
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * f32::from(two_bits(bits, sub * 16 + i)) - minimum;
        }
    }
}

/// Number `n` of the 2-bit layout that Q2_K and Q3_K share.
fn two_bits(bits: &[u8], n: usize) -> u8 {
    let (run, plane, lane) = (n / 128, n % 128 / 32, n % 32);
    bits[run * 32 + lane] >> (2 * plane) & 3
}

/// Q3_K: 32 bytes of high bits (bit p of byte l belongs to number 32 p + l; a *clear* bit subtracts 4), 64 bytes as Q2_K, 12
/// bytes of 16 six-bit scales with offset 32, f16 scale.
pub(crate) fn q3(block: &[u8; 110], out: &mut [f32; 256]) {
    let (high, bits, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for (sub, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // Low four bits: bytes 0 to 7 hold scales 0 to 7 below and 8 to 15 above. High two: bytes 8 to 11, scale s in
        // byte 8 + s mod 4 at bit 2 (s div 4).
        let low = packed[sub % 8] >> (4 * (sub / 8)) & 15;
        let top = packed[8 + sub % 4] >> (2 * (sub / 4)) & 3;
        let scale = d * f32::from(i16::from(low | top << 4) - 32);
        for (i, out) in out.iter_mut().enumerate() {
            let n = sub * 16 + i;
            let offset = if high[n % 32] >> (n / 32) & 1 == 1 { 0 } else { 4 };
            *out = scale * f32::from(i16::from(two_bits(bits, n)) - offset);
        }
    }
}

/// The six-bit scale and minimum of sub-block `sub` of eight, as Q4_K and Q5_K pack them in 12 bytes: the first four in the
/// low six bits of bytes 0 to 3 (scales) and 4 to 7 (minima); of the last four the low halves in bytes 8 to 11 (scale
/// below, minimum above), and the top two bits in the top of bytes 0 to 7.
fn scale_and_minimum(packed: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        (packed[sub] & 63, packed[sub + 4] & 63)
    } else {
        let low = packed[sub + 4];
        (low & 15 | packed[sub - 4] >> 6 << 4, low >> 4 | packed[sub] >> 6 << 4)
    }
}

/// Q4_K: two f16 scales (of scales, of minima), 12 bytes of scales and minima, 128 bytes: each run of 32 bytes holds one
/// sub-block of 32 in its low halves and the next in its high halves.
pub(crate) fn q4(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (packed, bits) = (&block[4..16], &block[16..]);
    for (sub, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = scale_and_minimum(packed, sub);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        for (out, byte) in out.iter_mut().zip(&bits[sub / 2 * 32..]) {
            *out = scale * f32::from(byte >> (4 * (sub % 2)) & 15) - minimum;
        }
    }
}

/// Q5_K: as Q4_K, with 32 bytes before the low halves: bit s of byte l is the top bit of number l of sub-block s.
pub(crate) fn q5(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (packed, high, bits) = (&block[4..16], &block[16..48], &block[48..]);
    for (sub, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = scale_and_minimum(packed, sub);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        for ((out, byte), high) in out.iter_mut().zip(&bits[sub / 2 * 32..]).zip(high) {
            let value = byte >> (4 * (sub % 2)) & 15 | (high >> sub & 1) << 4;
            *out = scale * f32::from(value) - minimum;
        }
    }
}

/// Q6_K: 128 bytes of low halves, 64 bytes of top pairs, 16 signed scales (one for 16 numbers), f16 scale; offset 32.
///
/// Each half of 128 numbers has 64 bytes of low halves (low half-bytes: its first 64 numbers, high: the rest) and 32 bytes
/// of pairs (pair j: its j-th 32 numbers).
pub(crate) fn q6(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, top, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (n, out) in out.iter_mut().enumerate() {
        let (half, i) = (n / 128, n % 128);
        let low = low[half * 64 + i % 64] >> (4 * (i / 64)) & 15;
        let top = top[half * 32 + i % 32] >> (2 * (i / 32)) & 3;
        let scale = d * f32::from(scales[n / 16].cast_signed());
        *out = scale * f32::from(i16::from(low | top << 4) - 32);
    }
}

/// Q8_K: f32 scale, 256 signed bytes; the sums after them serve dot products only.
pub(crate) fn q8(block: &[u8; 292], out: &mut [f32; 256]) {
    let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (out, byte) in out.iter_mut().zip(&block[4..260]) {
        *out = scale * f32::from(byte.cast_signed());
    }
}

/// IQ4_XS: f16 scale, 16 bits with the top pairs of eight six-bit scales (offset 32), 4 bytes with their low halves, 128
/// bytes: each run of 16 bytes holds 32 numbers, the first 16 in its low halves, as indices of the non-linear levels.
pub(crate) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let top = u16::from_le_bytes([block[2], block[3]]);
    let (low, bits) = (&block[4..8], &block[8..]);
    for (sub, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = low[sub / 2] >> (4 * (sub % 2)) & 15;
        let scale = i16::from(low) | (top >> (2 * sub) & 3).cast_signed() << 4;
        let scale = d * f32::from(scale - 32);
        for (i, byte) in bits[sub * 16..sub * 16 + 16].iter().enumerate() {
            out[i] = scale * f32::from(NONLINEAR_LEVELS[usize::from(byte & 15)]);
            out[i + 16] = scale * f32::from(NONLINEAR_LEVELS[usize::from(byte >> 4)]);
        }
    }
}
