//! What an image may cost before it is looked at.

use consort_core::{Error, ErrorKind, Result};

/// Bounds that an image must keep. They are checked against the file's header, before any pixel is decoded.
///
/// The default admits a 48-megapixel photograph. Decoding holds at most about 12 bytes a pixel at once (a 16-bit
/// PNG with alpha beside its 8-bit result), and 7 for what people send.
///
/// ```
/// use consort_vision::ImageLimits;
/// let limits = ImageLimits { max_pixels: 1_000_000, ..ImageLimits::default() };
/// assert!(limits.check_size(4000, 3000).is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageLimits {
    /// Largest file, in bytes.
    pub max_bytes: usize,
    /// Largest width × height, in pixels.
    pub max_pixels: u64,
    /// Longest side divided by shortest side. The family's processor refuses more than 200.
    pub max_aspect_ratio: f64,
    /// Shortest side, in pixels.
    pub min_side: u32,
    /// Most scans of a progressive JPEG. Each is a pass over all pixels, and a hostile file can hold thousands.
    pub max_jpeg_scans: usize,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { max_bytes: 32 << 20, max_pixels: 50_000_000, max_aspect_ratio: 200.0, min_side: 1, max_jpeg_scans: 100 }
    }
}

impl ImageLimits {
    /// Checks the length of a file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidImage`] when it is empty or longer than [`max_bytes`](Self::max_bytes).
    pub fn check_bytes(&self, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Err(invalid("the image is empty: zero bytes"));
        }
        if bytes > self.max_bytes {
            return Err(invalid("the image file is too large: send a smaller or more strongly compressed one")
                .with_context("bytes", bytes.to_string())
                .with_context("max_bytes", self.max_bytes.to_string()));
        }
        Ok(())
    }

    /// Checks a width and a height in pixels.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidImage`] when a side is shorter than [`min_side`](Self::min_side), when there are more than
    /// [`max_pixels`](Self::max_pixels), or when one side is more than
    /// [`max_aspect_ratio`](Self::max_aspect_ratio) times the other.
    pub fn check_size(&self, width: u32, height: u32) -> Result<()> {
        let (short, long) = (width.min(height), width.max(height));
        let problem = if short < self.min_side.max(1) {
            format!("the image is too small: its shorter side must be at least {} in pixels", self.min_side.max(1))
        } else if u64::from(width) * u64::from(height) > self.max_pixels {
            format!("the image has too many pixels: at most {} are allowed, scale it down", self.max_pixels)
        } else if f64::from(long) / f64::from(short) > self.max_aspect_ratio {
            format!("the image is too long and thin: at most {} : 1 is allowed, crop it", self.max_aspect_ratio)
        } else {
            return Ok(());
        };
        Err(invalid(problem).with_context("size", format!("{width}x{height}")))
    }
}

pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidImage, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_bound_is_kept_at_its_border() {
        let limits =
            ImageLimits { max_bytes: 10, max_pixels: 400, max_aspect_ratio: 4.0, min_side: 2, max_jpeg_scans: 1 };
        limits.check_bytes(10).unwrap();
        assert!(limits.check_bytes(11).is_err() && limits.check_bytes(0).is_err());
        for (width, height) in [(20, 20), (8, 2), (2, 8), (40, 10)] {
            limits.check_size(width, height).unwrap();
        }
        for (width, height) in [(20, 21), (9, 2), (1, 2), (0, 5), (5, 0), (u32::MAX, u32::MAX)] {
            let error = limits.check_size(width, height).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidImage);
            assert!(error.to_string().contains(&format!("{width}x{height}")), "{error}");
        }
    }
}
