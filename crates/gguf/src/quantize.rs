//! From f32 to the types that conversion writes.

use consort_core::{Error, ErrorKind, Result};

/// Quantizes `row` to Q8_0: blocks of 32 numbers as an f16 scale and 32 signed bytes.
///
/// The scale is the block's largest magnitude ÷ 127, and each number is divided by the scale *before* that is rounded to
/// f16, then rounded half away from zero: bit for bit what the reference quantizer of the format writes for finite input
/// whose scale is finite in f16. NaN becomes 0.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] when `row` is not whole blocks, or `out` does not have 34 bytes for each.
pub fn quantize_q8_0(row: &[f32], out: &mut [u8]) -> Result<()> {
    let (blocks, rest) = row.as_chunks::<32>();
    let (out_blocks, out_rest) = out.as_chunks_mut::<34>();
    if !rest.is_empty() || !out_rest.is_empty() || blocks.len() != out_blocks.len() {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("{} numbers are not whole Q8_0 blocks of 32 for {} bytes, 34 a block", row.len(), out.len()),
        )
        .with_operation("gguf::quantize_q8_0"));
    }
    for (block, out) in blocks.iter().zip(out_blocks) {
        let largest = block.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let scale = largest / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        out[..2].copy_from_slice(&f32_to_f16(scale).to_le_bytes());
        for (value, byte) in block.iter().zip(&mut out[2..]) {
            // The cast saturates, and within a block |value × inverse| ≤ 127 up to rounding.
            *byte = ((value * inverse).round() as i8).cast_unsigned();
        }
    }
    Ok(())
}

/// The bits of `value` as an IEEE f16, rounded to nearest, ties to even; beyond 65,504 it becomes infinite.
#[must_use]
pub fn f32_to_f16(value: f32) -> u16 {
    half::f16::from_f32(value).to_bits()
}

/// The bits of `value` as a bf16, rounded to nearest, ties to even; a NaN stays one, quiet.
#[must_use]
pub fn f32_to_bf16(value: f32) -> u16 {
    half::bf16::from_f32(value).to_bits()
}
