//! The size an image is resized to, and the resize itself.
//!
//! Both repeat what transformers' default processor of this family does on a CPU, so that our values are its values: the
//! size from its `smart_resize`, the filter from torch's antialiased bicubic resize of 8-bit images. The latter is a
//! separable convolution (Catmull-Rom: a = −0.5; Keys 1981), widened by the scale when it shrinks, whose weights are
//! fixed-point numbers of 16 bits: rows first, rounded and clamped to 8 bits, then columns. A resize in floating point, or
//! Pillow's with its 22-bit weights, differs in one level here and there.

use consort_core::Result;

use crate::config::ImageProcessorConfig;
use crate::limits::invalid;

/// Half the width of the cubic kernel at scale 1, in source pixels.
const CUBIC_RADIUS: f64 = 2.0;
/// Beyond this many bits a weight of 1 would not fit into 16 with its sign.
const MAX_PRECISION: u32 = 22;

/// Width and height in pixels, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Size {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

/// The size that an image of `size` is resized to: both sides multiples of [`ImageProcessorConfig::factor`], the area
/// between the configured minimum and maximum, the shape kept as well as that allows.
///
/// Source: `smart_resize` of transformers' image processor for this family. Ties round to even, as Python's `round`.
///
/// # Errors
/// [`ErrorKind::InvalidImage`](consort_core::ErrorKind::InvalidImage) when a side is 0 or one is more than 200 times the
/// other.
pub fn smart_resize(size: Size, config: &ImageProcessorConfig) -> Result<Size> {
    let (height, width) = (f64::from(size.height), f64::from(size.width));
    if size.width == 0 || size.height == 0 || height.max(width) / height.min(width) > 200.0 {
        return Err(invalid("the sides must be at least 1 pixel and at most 200 : 1")
            .with_operation("vision::smart_resize")
            .with_context("size", format!("{}x{}", size.width, size.height)));
    }
    let factor = f64::from(config.factor());
    // Both bounds are at most 2^26, so the conversions are exact.
    let (min_pixels, max_pixels) = (config.min_pixels as f64, config.max_pixels as f64);
    let mut new_height = (height / factor).round_ties_even() * factor;
    let mut new_width = (width / factor).round_ties_even() * factor;
    let area = new_height * new_width;
    if area > max_pixels {
        let shrink = ((height * width) / max_pixels).sqrt();
        new_height = factor.max((height / shrink / factor).floor() * factor);
        new_width = factor.max((width / shrink / factor).floor() * factor);
    } else if area < min_pixels {
        let grow = (min_pixels / (height * width)).sqrt();
        new_height = (height * grow / factor).ceil() * factor;
        new_width = (width * grow / factor).ceil() * factor;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive and below 2^32, by the bounds"
    )]
    let (height, width) = (new_height.max(factor) as u32, new_width.max(factor) as u32);
    Ok(Size { width, height })
}

/// Resizes `[from.height, from.width, 3]` bytes to `[to.height, to.width, 3]`.
///
/// # Errors
/// [`ErrorKind::InvalidImage`](consort_core::ErrorKind::InvalidImage) when `pixels` is not as long as `from` says, or a side
/// is 0.
pub(crate) fn resize_bicubic(pixels: &[u8], from: Size, to: Size) -> Result<Vec<u8>> {
    let row_len = from.width as usize * 3;
    if pixels.is_empty() || pixels.len() != row_len * from.height as usize || to.width == 0 || to.height == 0 {
        return Err(invalid("the pixels do not fill the image's size").with_operation("vision::resize"));
    }
    if from.width == to.width {
        return Ok(resize_columns(pixels, row_len, &Axis::new(from.height, to.height)));
    }
    let rows = resize_rows(pixels, row_len, &Axis::new(from.width, to.width));
    if from.height == to.height {
        return Ok(rows);
    }
    Ok(resize_columns(&rows, to.width as usize * 3, &Axis::new(from.height, to.height)))
}

/// The weights of one axis: for each output sample, which input samples it sums and with what weights.
struct Axis {
    /// First input sample of each output sample, and how many.
    spans: Vec<(usize, usize)>,
    /// `[outputs, taps]` weights, of which each row's first `spans[i].1` count.
    weights: Vec<i16>,
    taps: usize,
    /// Bits after the point of the weights.
    precision: u32,
}

impl Axis {
    fn new(from: u32, to: u32) -> Self {
        let scale = f64::from(from) / f64::from(to);
        let stretch = scale.max(1.0);
        let support = CUBIC_RADIUS * stretch;
        let taps = to_index(support.ceil()) * 2 + 1;
        let mut spans = Vec::with_capacity(to as usize);
        let mut exact = Vec::with_capacity(to as usize * taps);
        for output in 0..to {
            let center = scale * (f64::from(output) + 0.5);
            let first = to_index(center - support + 0.5);
            let end = to_index(center + support + 0.5).min(from as usize);
            let count = end.saturating_sub(first).min(taps);
            let at = exact.len();
            exact.extend((0..count).map(|tap| cubic(((tap + first) as f64 - center + 0.5) / stretch)));
            let total: f64 = exact.iter().skip(at).sum();
            if total != 0.0 {
                exact.iter_mut().skip(at).for_each(|weight| *weight /= total);
            }
            exact.resize(at + taps, 0.0);
            spans.push((first, count));
        }
        let largest = exact.iter().fold(0.0f64, |most, weight| most.max(*weight));
        let precision = (0..MAX_PRECISION)
            .find(|bits| 0.5 + largest * f64::from(1u32 << (bits + 1)) >= f64::from(1u32 << 15))
            .unwrap_or(MAX_PRECISION);
        let one = f64::from(1u32 << precision);
        #[expect(clippy::cast_possible_truncation, reason = "the precision was chosen so that it fits")]
        let weights = exact.iter().map(|weight| (weight * one + 0.5f64.copysign(*weight)) as i16).collect();
        Self { spans, weights, taps, precision }
    }

    /// For each output sample the first input sample and its weights.
    fn iter(&self) -> impl Iterator<Item = (usize, &[i16])> {
        let rows = self.weights.chunks_exact(self.taps);
        self.spans.iter().zip(rows).map(|((first, count), row)| (*first, row.get(..*count).unwrap_or(row)))
    }

    fn half(&self) -> i32 {
        1i32 << self.precision.saturating_sub(1)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates: below zero is zero")]
fn to_index(value: f64) -> usize {
    value as usize
}

/// The cubic convolution kernel with a = −0.5 (Keys 1981).
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn to_level(sum: i32, precision: u32) -> u8 {
    (sum >> precision).clamp(0, 255) as u8
}

fn resize_rows(pixels: &[u8], row_len: usize, axis: &Axis) -> Vec<u8> {
    let mut out = Vec::with_capacity(pixels.len() / row_len * axis.spans.len() * 3);
    for row in pixels.chunks_exact(row_len) {
        for (first, weights) in axis.iter() {
            let mut sums = [axis.half(); 3];
            let samples = row.get(first * 3..).unwrap_or_default().chunks_exact(3);
            for (pixel, weight) in samples.zip(weights) {
                for (sum, level) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*level) * i32::from(*weight);
                }
            }
            out.extend(sums.map(|sum| to_level(sum, axis.precision)));
        }
    }
    out
}

fn resize_columns(pixels: &[u8], row_len: usize, axis: &Axis) -> Vec<u8> {
    let mut out = Vec::with_capacity(row_len * axis.spans.len());
    let mut sums = vec![0i32; row_len];
    for (first, weights) in axis.iter() {
        sums.fill(axis.half());
        let rows = pixels.chunks_exact(row_len).skip(first);
        for (row, weight) in rows.zip(weights) {
            for (sum, level) in sums.iter_mut().zip(row) {
                *sum += i32::from(*level) * i32::from(*weight);
            }
        }
        out.extend(sums.iter().map(|sum| to_level(*sum, axis.precision)));
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_flat_image_stays_flat_at_any_size() {
        for level in [0u8, 1, 127, 254, 255] {
            for (from, to) in [((7, 5), (32, 64)), ((100, 3), (32, 32)), ((32, 32), (32, 64)), ((1, 1), (64, 32))] {
                let from = Size { width: from.0, height: from.1 };
                let to = Size { width: to.0, height: to.1 };
                let pixels = vec![level; from.width as usize * from.height as usize * 3];
                let resized = resize_bicubic(&pixels, from, to).unwrap();
                assert_eq!(resized.len(), to.width as usize * to.height as usize * 3);
                assert!(resized.iter().all(|value| value.abs_diff(level) <= 1), "{level} {from:?} {to:?}");
            }
        }
    }

    #[test]
    fn the_same_size_is_the_same_image() {
        let size = Size { width: 13, height: 4 };
        let pixels: Vec<u8> = (0..13 * 4 * 3).map(|value| (value * 7 % 256) as u8).collect();
        assert_eq!(resize_bicubic(&pixels, size, size).unwrap(), pixels);
        assert!(resize_bicubic(&pixels[1..], size, size).is_err());
    }

    proptest! {
        #[test]
        fn every_admitted_size_becomes_whole_tokens_within_the_bounds(
            width in 1u32..20_000, height in 1u32..20_000, patch in 1u32..33, merge in 1u32..5,
            min_pixels in 1u64..100_000, more in 0u64..10_000_000,
        ) {
            let mut config =
                ImageProcessorConfig { patch_size: patch, merge_size: merge, min_pixels, ..Default::default() };
            let factor = u64::from(config.factor());
            config.max_pixels = (min_pixels + more).max(factor * factor);
            config.validate().unwrap();
            if let Ok(size) = smart_resize(Size { width, height }, &config) {
                prop_assert!(size.width > 0 && u64::from(size.width) % factor == 0);
                prop_assert!(size.height > 0 && u64::from(size.height) % factor == 0);
                // A thin image has a side of one token at least, which the reference lets go past the maximum; and one
                // that is too small is grown by whole tokens, which can pass a maximum close to the minimum.
                let most = config.max_pixels.max(factor * u64::from(size.width.max(size.height)));
                let grown = (config.min_pixels as f64).sqrt() * 200f64.sqrt();
                let most = most.max(config.min_pixels + (2.0 * factor as f64 * grown) as u64 + factor * factor * 2);
                prop_assert!(u64::from(size.width) * u64::from(size.height) <= most);
            } else {
                prop_assert!(width.max(height) > 200 * width.min(height));
            }
        }
    }
}
