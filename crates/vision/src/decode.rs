//! From a file's bytes to upright 8-bit pixels.

use std::fmt;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use consort_core::{Error, ErrorKind, Result, RgbView};
use image::ImageDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;

use crate::limits::{ImageLimits, invalid};
use crate::resize::Size;
use crate::webp;

/// A file format that can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// Portable Network Graphics: every colour type and depth.
    Png,
    /// JPEG, baseline and progressive, grey or three components.
    Jpeg,
    /// WebP, lossy and lossless; of an animation, the first frame.
    WebP,
    /// GIF; the first frame.
    Gif,
}

impl ImageFormat {
    /// The format whose signature `bytes` begin with.
    #[must_use]
    pub fn detect(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            Some(Self::Png)
        } else if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
            Some(Self::Jpeg)
        } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP".as_slice()) {
            Some(Self::WebP)
        } else if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
            Some(Self::Gif)
        } else {
            None
        }
    }

    /// The format's media type, as a `data:` URL carries it.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::WebP => "image/webp",
            Self::Gif => "image/gif",
        }
    }
}

/// Decoded pixels: red, green, blue, 8 bits each, row by row from the top left.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbImage {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl fmt::Debug for RgbImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RgbImage({}x{})", self.width, self.height)
    }
}

impl RgbImage {
    /// An image of `[height, width, 3]` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidImage`] when a side is 0 or `pixels` has another length.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Result<Self> {
        let expected = (width as usize).checked_mul(height as usize).and_then(|area| area.checked_mul(3));
        if width == 0 || height == 0 || expected != Some(pixels.len()) {
            return Err(invalid("the pixels must be height * width * 3 bytes, and no side 0")
                .with_operation("vision::RgbImage::new")
                .with_context("size", format!("{width}x{height}"))
                .with_context("bytes", pixels.len().to_string()));
        }
        Ok(Self { width, height, pixels })
    }

    /// Decodes a PNG, JPEG, WebP or GIF file and turns it upright as its EXIF orientation says.
    ///
    /// Transparency is laid on white, as transformers' image processor lays it. Colours become 8-bit RGB as Pillow makes
    /// them: palettes are looked up, grey is repeated, ICC profiles are ignored, of 16-bit samples the high byte counts. (For 16-bit *grey* Pillow cuts at 255 instead, which
    /// makes such an image nearly white; we don't.)
    ///
    /// # Errors
    /// [`ErrorKind::InvalidImage`] when the format is unknown, the file malformed or truncated, or beyond the limits;
    /// CMYK, 12-bit and lossless JPEG are refused by name. [`ErrorKind::OutOfMemory`] when the memory for the pixels cannot
    /// be had.
    pub fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Self> {
        const OPERATION: &str = "vision::decode";
        limits.check_bytes(bytes.len()).map_err(|error| error.with_operation(OPERATION))?;
        let Some(format) = ImageFormat::detect(bytes) else {
            return Err(invalid("the file is none of PNG, JPEG, WebP and GIF").with_operation(OPERATION));
        };
        // The decoders are well fuzzed, but they are others', and their input is anybody's: a panic in one of them must
        // not take the engine's thread with it.
        let decoded = catch_unwind(AssertUnwindSafe(|| match format {
            ImageFormat::Jpeg => decode_jpeg(bytes, limits),
            ImageFormat::Png => decode_with(limits, |bound| PngDecoder::with_limits(Cursor::new(bytes), bound)),
            ImageFormat::WebP => {
                webp::check(bytes, limits).and_then(|()| decode_with(limits, |_| WebPDecoder::new(Cursor::new(bytes))))
            }
            ImageFormat::Gif => decode_with(limits, |_| GifDecoder::new(Cursor::new(bytes))),
        }));
        decoded
            .unwrap_or_else(|_| Err(invalid("the decoder failed on this file: it is malformed")))
            .map_err(|error| error.with_operation(OPERATION).with_context("format", format!("{format:?}")))
    }

    /// Width in pixels.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// `[height, width, 3]` bytes.
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Width and height.
    #[must_use]
    pub fn size(&self) -> Size {
        Size { width: self.width, height: self.height }
    }

    /// The form in which pixels cross the seam.
    #[must_use]
    pub fn view(&self) -> RgbView<'_> {
        RgbView { width: self.width, height: self.height, pixels: &self.pixels }
    }

    fn upright(self, orientation: Orientation) -> Self {
        if orientation == Orientation::NoTransforms {
            return self;
        }
        let (width, height) = (self.width, self.height);
        let Some(buffer) = image::RgbImage::from_raw(width, height, self.pixels) else {
            return Self { width, height, pixels: Vec::new() };
        };
        let mut turned = image::DynamicImage::ImageRgb8(buffer);
        turned.apply_orientation(orientation);
        let turned = turned.into_rgb8();
        Self { width: turned.width(), height: turned.height(), pixels: turned.into_raw() }
    }
}

fn decode_jpeg(bytes: &[u8], limits: &ImageLimits) -> Result<RgbImage> {
    use libjpeg_turbo_rs::{ColorSpace, DecodeLimits, Decoder, JpegError, PixelFormat};
    let refuse = |error: JpegError| {
        let kind = match error {
            JpegError::AllocationFailed { .. } => ErrorKind::OutOfMemory,
            _ => ErrorKind::InvalidImage,
        };
        Error::new(kind, error.to_string()).with_source(error)
    };
    let bounds = DecodeLimits {
        max_pixels: limits.max_pixels,
        max_scans: limits.max_jpeg_scans,
        // Coefficients of three full components (2 bytes each), samples and the result, with room for odd sampling.
        max_memory: Some(limits.max_pixels.saturating_mul(24).saturating_add(16 << 20)),
        ..DecodeLimits::default()
    };
    // A progressive file is walked to its end for its scans, which the length of the file bounds; the size comes first.
    let mut decoder = Decoder::new_with_limits(bytes, bounds).map_err(refuse)?;
    let header = decoder.header();
    limits.check_size(u32::from(header.width), u32::from(header.height))?;
    if header.precision != 8 || header.is_lossless {
        let kind =
            if header.is_lossless { "lossless JPEG".to_owned() } else { format!("{}-bit JPEG", header.precision) };
        return Err(invalid(format!("{kind} is not supported: save it as an ordinary 8-bit JPEG or as PNG")));
    }
    if !matches!(decoder.jpeg_color_space(), ColorSpace::Grayscale | ColorSpace::YCbCr | ColorSpace::Rgb) {
        return Err(invalid("JPEG in CMYK or an unknown colour space is not supported: save it as RGB"));
    }
    let orientation = decoder.exif_orientation().and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms);
    decoder.set_output_format(PixelFormat::Rgb);
    let image = decoder.decode_image().map_err(refuse)?;
    let side = |value: usize| u32::try_from(value).unwrap_or(0);
    Ok(RgbImage::new(side(image.width), side(image.height), image.data)?.upright(orientation))
}

fn decode_with<D: ImageDecoder>(
    limits: &ImageLimits,
    open: impl FnOnce(image::Limits) -> image::ImageResult<D>,
) -> Result<RgbImage> {
    let mut bounds = image::Limits::default();
    bounds.max_alloc = Some(limits.max_pixels.saturating_mul(12).saturating_add(16 << 20));
    let mut decoder = open(bounds.clone()).map_err(refuse)?;
    let (width, height) = decoder.dimensions();
    limits.check_size(width, height)?;
    decoder.set_limits(bounds).map_err(refuse)?;
    // A broken EXIF block does not make the picture unreadable.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let color = decoder.color_type();
    let len = usize::try_from(decoder.total_bytes()).map_err(|_| invalid("the image does not fit into memory"))?;
    let mut raw = Vec::new();
    raw.try_reserve_exact(len).map_err(|error| {
        Error::new(ErrorKind::OutOfMemory, format!("{len} bytes for the decoded image cannot be had"))
            .with_source(error)
    })?;
    raw.resize(len, 0);
    decoder.read_image(&mut raw).map_err(refuse)?;
    let pixels = to_rgb(raw, color)?;
    Ok(RgbImage::new(width, height, pixels)?.upright(orientation))
}

fn refuse(error: image::ImageError) -> Error {
    Error::new(ErrorKind::InvalidImage, error.to_string()).with_source(error)
}

fn to_rgb(raw: Vec<u8>, color: image::ColorType) -> Result<Vec<u8>> {
    use image::ColorType;
    // Samples of 16 bits are in the machine's byte order; the high byte counts.
    let high = if cfg!(target_endian = "big") { 0 } else { 1 };
    let samples = match color {
        ColorType::L8 | ColorType::La8 | ColorType::Rgb8 | ColorType::Rgba8 => raw,
        ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16 => {
            raw.iter().skip(high).step_by(2).copied().collect()
        }
        other => return Err(invalid(format!("the colour type {other:?} is not supported: save it as 8-bit RGB"))),
    };
    Ok(match color.channel_count() {
        1 => samples.iter().flat_map(|grey| [*grey; 3]).collect(),
        2 => pairs(&samples).flat_map(|[grey, alpha]| [on_white(grey, alpha); 3]).collect(),
        3 => samples,
        _ => quads(&samples).flat_map(|[r, g, b, alpha]| [r, g, b].map(|level| on_white(level, alpha))).collect(),
    })
}

fn pairs(samples: &[u8]) -> impl Iterator<Item = [u8; 2]> + '_ {
    samples.as_chunks::<2>().0.iter().copied()
}

fn quads(samples: &[u8]) -> impl Iterator<Item = [u8; 4]> + '_ {
    samples.as_chunks::<4>().0.iter().copied()
}

/// A level with coverage `alpha` over white, rounded as Pillow's `alpha_composite` rounds over an opaque background.
fn on_white(level: u8, alpha: u8) -> u8 {
    if alpha == 0 {
        return 255;
    }
    // In units of 1/255: level * alpha + 255 * (255 - alpha), halves up, divided by 255 without a division.
    let sum = u32::from(level) * u32::from(alpha) + 255 * (255 - u32::from(alpha));
    let sum = (sum + 128) << 7;
    #[expect(clippy::cast_possible_truncation, reason = "at most 255")]
    let value = ((((sum >> 8) + sum) >> 8) >> 7) as u8;
    value
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn covering_white_is_exact_at_the_ends_and_near_between() {
        for level in 0..=255u8 {
            assert_eq!(on_white(level, 255), level);
            assert_eq!(on_white(level, 0), 255);
            for alpha in 0..=255u8 {
                let exact = (f64::from(level) * f64::from(alpha) + 255.0 * (255.0 - f64::from(alpha))) / 255.0;
                assert!((f64::from(on_white(level, alpha)) - exact).abs() <= 0.51);
            }
        }
    }

    #[test]
    fn unknown_and_empty_files_are_refused() {
        for bytes in [&b""[..], b"BM", b"<svg/>", b"RIFF....WAVE", b"GIF", b"\x89PNG"] {
            let error = RgbImage::decode(bytes, &ImageLimits::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidImage);
        }
    }

    #[test]
    fn the_seams_view_shows_the_pixels() {
        let image = RgbImage::new(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!((image.view().width, image.view().height, image.view().pixels), (2, 1, image.pixels()));
        assert!(RgbImage::new(2, 2, vec![0; 6]).is_err() && RgbImage::new(0, 0, vec![]).is_err());
        assert!(RgbImage::new(u32::MAX, u32::MAX, vec![]).is_err());
    }
}
