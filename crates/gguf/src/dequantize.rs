//! From the stored layouts to f32: plain and legacy types; the K-quants have their own file.

use consort_core::{Error, ErrorKind, Result};
use half::{bf16, f16};

use crate::{TensorType, kquants};

/// The 16 levels of the non-linear 4-bit types, IQ4_NL and IQ4_XS; constants of the format.
pub(crate) const NONLINEAR_LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Turns `bytes`, which hold whole blocks of `kind`, into `out.len()` numbers.
///
/// Supported: F32, F16, BF16, F64 (rounded), Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, Q8_K, IQ4_NL and IQ4_XS. Arithmetic is in f32,
/// in the order of the format's reference, so that results are equal to the bit.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] when `out` is not whole blocks or `bytes` is not what they take;
/// [`ErrorKind::Unsupported`], naming the type, for the others.
pub fn dequantize(kind: TensorType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    if kind.bytes_for(out.len() as u64) != Some(bytes.len() as u64) {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("{} bytes of {kind} do not hold exactly {} numbers", bytes.len(), out.len()),
        )
        .with_operation("gguf::dequantize"));
    }
    match kind {
        TensorType::F32 => {
            blocks(bytes, out, |block: &[u8; 4], out: &mut [f32; 1]| out[0] = f32::from_le_bytes(*block));
        }
        TensorType::F64 => {
            #[allow(clippy::cast_possible_truncation)] // Rounding is documented.
            blocks(bytes, out, |block: &[u8; 8], out: &mut [f32; 1]| out[0] = f64::from_le_bytes(*block) as f32);
        }
        TensorType::F16 => {
            blocks(bytes, out, |block: &[u8; 2], out: &mut [f32; 1]| out[0] = f16::from_le_bytes(*block).to_f32());
        }
        TensorType::BF16 => {
            blocks(bytes, out, |block: &[u8; 2], out: &mut [f32; 1]| out[0] = bf16::from_le_bytes(*block).to_f32());
        }
        TensorType::Q4_0 => blocks(bytes, out, q4_0),
        TensorType::Q4_1 => blocks(bytes, out, q4_1),
        TensorType::Q5_0 => blocks(bytes, out, q5_0),
        TensorType::Q5_1 => blocks(bytes, out, q5_1),
        TensorType::Q8_0 => blocks(bytes, out, q8_0),
        TensorType::Q2K => blocks(bytes, out, kquants::q2),
        TensorType::Q3K => blocks(bytes, out, kquants::q3),
        TensorType::Q4K => blocks(bytes, out, kquants::q4),
        TensorType::Q5K => blocks(bytes, out, kquants::q5),
        TensorType::Q6K => blocks(bytes, out, kquants::q6),
        TensorType::Q8K => blocks(bytes, out, kquants::q8),
        TensorType::IQ4NL => blocks(bytes, out, iq4_nl),
        TensorType::IQ4XS => blocks(bytes, out, kquants::iq4_xs),
        _ => {
            return Err(Error::new(ErrorKind::Unsupported, format!("tensors of type {kind} cannot be dequantized"))
                .with_operation("gguf::dequantize"));
        }
    }
    Ok(())
}

/// Runs `decode` over blocks of `B` bytes that hold `N` numbers each.
fn blocks<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn(&[u8; B], &mut [f32; N])) {
    for (block, out) in bytes.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        decode(block, out);
    }
}

/// The f16 at byte `at` of a block.
pub(crate) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Scale (f16), then 16 bytes: number i in the low half of byte i, number i + 16 in the high half; offset 8.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (i, &byte) in block[2..].iter().enumerate() {
        out[i] = f32::from(i16::from(byte & 15) - 8) * scale;
        out[i + 16] = f32::from(i16::from(byte >> 4) - 8) * scale;
    }
}

/// As Q4_0, with an f16 minimum after the scale instead of the offset.
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    for (i, &byte) in block[4..].iter().enumerate() {
        out[i] = f32::from(byte & 15) * scale + minimum;
        out[i + 16] = f32::from(byte >> 4) * scale + minimum;
    }
}

/// The 32 five-bit numbers of Q5_0 and Q5_1: bit i of `high` is the top bit of number i, the rest lies as in Q4_0.
fn five_bits(high: &[u8], low: &[u8], mut put: impl FnMut(usize, u8)) {
    for (i, &byte) in low.iter().enumerate() {
        let top = |n: usize| (high[n / 8] >> (n % 8) & 1) << 4;
        put(i, byte & 15 | top(i));
        put(i + 16, byte >> 4 | top(i + 16));
    }
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    five_bits(&block[2..6], &block[6..], |i, value| out[i] = f32::from(i16::from(value) - 16) * scale);
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    five_bits(&block[4..8], &block[8..], |i, value| out[i] = f32::from(value) * scale + minimum);
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (out, byte) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(byte.cast_signed()) * scale;
    }
}

fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (i, &byte) in block[2..].iter().enumerate() {
        out[i] = f32::from(NONLINEAR_LEVELS[usize::from(byte & 15)]) * scale;
        out[i + 16] = f32::from(NONLINEAR_LEVELS[usize::from(byte >> 4)]) * scale;
    }
}
