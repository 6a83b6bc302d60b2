//! From f32 to the stored layouts: plain types and Q8_0 here, the others in files of their own.

mod fit;
mod kquants;
mod legacy;

use consort_core::{Error, ErrorKind, Result};
use half::f16;

use crate::TensorType;

/// Numbers of this magnitude are refused before anything is computed with them: no quantized type can hold them.
const TOO_LARGE: f32 = 1e9;
/// A column's importance counts as this part of its block's mean, at least: one that no calibration text excited is not
/// worthless for all texts.
const LEAST_IMPORTANCE: f64 = 1e-3;

/// Turns `values` into whole blocks of `kind`. [`dequantize`](crate::dequantize) is the way back.
///
/// Written: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, IQ4_XS and Q2_K to Q6_K. The result depends on nothing
/// but the arguments.
///
/// Without `importance`, all but the K-quants and the non-linear types are bit for bit what the format's reference
/// writes. Those are searched for the scales and codes of the least squared error; with `importance`, so are Q4_0 to Q5_1.
///
/// `importance` says how much the square of an error matters in each column of a row: the mean square of the activation
/// that meets it. It has one number, zero or above, for each column, and repeats for every row of `values`. Only ratios
/// count. Types that have nothing to weigh (F32 to Q8_0) ignore it.
///
/// ```
/// use consort_gguf::{TensorType, dequantize, quantize};
///
/// # fn main() -> consort_core::Result<()> {
/// let row: Vec<f32> = (0..256).map(|i| (i as f32 * 0.7).sin()).collect();
/// let bytes = quantize(TensorType::Q4K, &row, None)?;
/// assert_eq!(bytes.len(), 144);
/// let mut back = vec![0.0; 256];
/// dequantize(TensorType::Q4K, &bytes, &mut back)?;
/// assert!(row.iter().zip(&back).all(|(a, b)| (a - b).abs() < 0.1));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] when `values` are not whole blocks, or `importance` is not, does not divide them, or holds
/// what is negative or not finite; [`ErrorKind::InvalidModel`], with its place, for a value that is NaN, infinite or larger
/// than `kind` can hold; [`ErrorKind::Unsupported`], naming the type, for the others.
pub fn quantize(kind: TensorType, values: &[f32], importance: Option<&[f32]>) -> Result<Vec<u8>> {
    check(kind, values, importance).map_err(|error| error.with_operation("gguf::quantize"))?;
    let too_large = |at: usize| {
        Error::new(
            ErrorKind::InvalidModel,
            format!("a number is larger than {kind} can hold; use BF16 or F32 for this tensor"),
        )
        .with_operation("gguf::quantize")
        .with_context("at", at.to_string())
    };
    let limit = match kind {
        TensorType::F32 => f32::INFINITY,
        // What rounds to infinity, as a number or as a scale.
        TensorType::BF16 => f32::from_bits(0x7F7F_8000),
        TensorType::F16 => 65_520.0,
        TensorType::Q8_0 => 65_520.0 * 127.0,
        _ => TOO_LARGE,
    };
    if let Some(at) = values.iter().position(|value| value.abs() >= limit) {
        return Err(too_large(at));
    }
    let bytes = kind.bytes_for(values.len() as u64).and_then(|bytes| usize::try_from(bytes).ok());
    let mut out = vec![0; bytes.unwrap_or(0)];
    let done = match kind {
        TensorType::F32 => each(values, &mut out, f32::to_le_bytes),
        TensorType::F16 => each(values, &mut out, |value| f32_to_f16(value).to_le_bytes()),
        TensorType::BF16 => each(values, &mut out, |value| f32_to_bf16(value).to_le_bytes()),
        TensorType::Q8_0 => {
            quantize_q8_0(values, &mut out)?;
            Ok(())
        }
        TensorType::Q4_0 => small(values, importance, &mut out, legacy::q4_0),
        TensorType::Q4_1 => small(values, importance, &mut out, legacy::q4_1),
        TensorType::Q5_0 => small(values, importance, &mut out, legacy::q5_0),
        TensorType::Q5_1 => small(values, importance, &mut out, legacy::q5_1),
        TensorType::IQ4NL => small(values, importance, &mut out, legacy::iq4_nl),
        TensorType::Q2K => large(values, importance, &mut out, kquants::q2),
        TensorType::Q3K => large(values, importance, &mut out, kquants::q3),
        TensorType::Q4K => large(values, importance, &mut out, kquants::q4),
        TensorType::Q5K => large(values, importance, &mut out, kquants::q5),
        TensorType::Q6K => large(values, importance, &mut out, kquants::q6),
        TensorType::IQ4XS => large(values, importance, &mut out, kquants::iq4_xs),
        _ => {
            return Err(Error::new(ErrorKind::Unsupported, format!("tensors of type {kind} are not written"))
                .with_operation("gguf::quantize"));
        }
    };
    done.map_err(too_large)?;
    Ok(out)
}

fn check(kind: TensorType, values: &[f32], importance: Option<&[f32]>) -> Result<()> {
    let block = kind.block_len() as usize;
    let request = |message: String| Err(Error::new(ErrorKind::InvalidRequest, message));
    if !values.len().is_multiple_of(block) {
        return request(format!("{} numbers are not whole {kind} blocks of {block}", values.len()));
    }
    if let Some(importance) = importance {
        let row = importance.len();
        if row == 0 || !row.is_multiple_of(block) || !values.len().is_multiple_of(row) {
            return request(format!(
                "an importance of {row} columns fits neither {} numbers nor {kind} blocks of {block}",
                values.len()
            ));
        }
        if let Some(at) = importance.iter().position(|value| !value.is_finite() || *value < 0.0) {
            return request(format!("the importance of column {at} is {}, not a number from zero up", importance[at]));
        }
    }
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::new(ErrorKind::InvalidModel, format!("a number is {}", values[at]))
            .with_context("at", at.to_string())),
    }
}

/// One number at a time.
fn each<const B: usize>(values: &[f32], out: &mut [u8], encode: impl Fn(f32) -> [u8; B]) -> Result<(), usize> {
    for (value, out) in values.iter().zip(out.as_chunks_mut::<B>().0) {
        *out = encode(*value);
    }
    Ok(())
}

/// Blocks of 32. The error is the place of a block that `encode` cannot write.
fn small<const B: usize>(
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
    encode: impl Fn(&[f32; 32], Option<&[f32; 32]>, &mut [u8; B]) -> Option<()>,
) -> Result<(), usize> {
    blocks(values, importance, out, |x, w, out| encode(x, w.map(weights).as_ref(), out))
}

/// Super-blocks of 256; equal weights where there is no importance.
fn large<const B: usize>(
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
    encode: impl Fn(&[f32; 256], &[f32; 256], &mut [u8; B]) -> Option<()>,
) -> Result<(), usize> {
    blocks(values, importance, out, |x, w, out| encode(x, &w.map_or([1.0; 256], weights), out))
}

fn blocks<const N: usize, const B: usize>(
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
    encode: impl Fn(&[f32; N], Option<&[f32; N]>, &mut [u8; B]) -> Option<()>,
) -> Result<(), usize> {
    let importance = importance.map(|importance| importance.as_chunks::<N>().0);
    let blocks = values.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<B>().0);
    for (index, (x, out)) in blocks.enumerate() {
        let w = importance.and_then(|importance| importance.get(index % importance.len().max(1)));
        encode(x, w, out).ok_or(index * N)?;
    }
    Ok(())
}

/// A block's importance as weights of mean one.
fn weights<const N: usize>(importance: &[f32; N]) -> [f32; N] {
    let mean = importance.iter().copied().map(f64::from).sum::<f64>() / N as f64;
    if mean == 0.0 {
        return [1.0; N];
    }
    #[allow(clippy::cast_possible_truncation)] // From 0.001 to N.
    importance.map(|value| (f64::from(value) / mean).max(LEAST_IMPORTANCE) as f32)
}

/// The f16 nearest to `scale`, if that is finite.
fn half(scale: f32) -> Option<f16> {
    Some(f16::from_f32(scale)).filter(|scale| scale.is_finite())
}

/// Quantizes `row` to Q8_0 without a new allocation: blocks of 32 numbers as an f16 scale and 32 signed bytes.
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
