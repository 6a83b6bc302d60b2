//! The image processor, and the processed image that crosses the seam.

use std::fmt;
use std::sync::Arc;

use consort_core::{ContentHash, ImageSource, PatchGrid, Result, RgbView};

use crate::config::ImageProcessorConfig;
use crate::decode::RgbImage;
use crate::limits::ImageLimits;
use crate::patches::cut_patches;
use crate::resize::{Size, resize_bicubic, smart_resize};

/// What begins every hash of an image's content. Another way of processing needs another one.
const HASH_DOMAIN: &[u8] = b"consort image 1\0";

/// Decodes images and prepares them for a model: the family's image processor.
///
/// ```
/// use consort_core::ImageSource;
/// use consort_vision::{ImageProcessor, ImageProcessorConfig, RgbImage};
///
/// let processor = ImageProcessor::new(ImageProcessorConfig::default())?;
/// let grey = RgbImage::new(300, 200, vec![128; 300 * 200 * 3])?;
/// let image = processor.process(grey)?;
/// // 300 x 200 has too few pixels for this model; it grows to 320 x 224, and 16 x 16 pixels are a patch.
/// let grid = image.grid();
/// assert_eq!((grid.t, grid.h, grid.w, grid.tokens()), (1, 14, 20, 70));
/// assert_eq!(image.patches()?.len(), grid.patches() * 3 * 2 * 16 * 16);
/// # Ok::<(), consort_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageProcessor {
    config: ImageProcessorConfig,
    limits: ImageLimits,
}

impl ImageProcessor {
    /// A processor with these settings and the default [`ImageLimits`].
    ///
    /// # Errors
    /// As [`ImageProcessorConfig::validate`].
    pub fn new(config: ImageProcessorConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { config, limits: ImageLimits::default() })
    }

    /// The same processor with other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: ImageLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Its settings.
    #[must_use]
    pub fn config(&self) -> &ImageProcessorConfig {
        &self.config
    }

    /// Decodes a file (see [`RgbImage::decode`]) and prepares it. The bytes are kept, for engines that want the file.
    ///
    /// # Errors
    /// As [`RgbImage::decode`] and [`process`](Self::process).
    pub fn decode(&self, bytes: Arc<[u8]>) -> Result<ProcessedImage> {
        let rgb = RgbImage::decode(&bytes, &self.limits)?;
        let mut image = self.process(rgb)?;
        image.encoded = Some(bytes);
        Ok(image)
    }

    /// Prepares decoded pixels. Nothing is resized yet: [`ProcessedImage::patches`] does that when an engine asks.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidImage`](consort_core::ErrorKind::InvalidImage) when its size is beyond the limits.
    pub fn process(&self, rgb: RgbImage) -> Result<ProcessedImage> {
        self.limits.check_size(rgb.width(), rgb.height())?;
        let resized = smart_resize(rgb.size(), &self.config)?;
        let grid = PatchGrid {
            t: 1,
            h: resized.height / self.config.patch_size,
            w: resized.width / self.config.patch_size,
            merge: self.config.merge_size,
        };
        let hash = content_hash(&rgb, &self.config);
        tracing::debug!(width = rgb.width(), height = rgb.height(), ?grid, "image prepared");
        Ok(ProcessedImage { encoded: None, rgb, config: self.config, resized, grid, hash })
    }
}

/// An image prepared for one model: what [`ImageSource`] promises.
pub struct ProcessedImage {
    encoded: Option<Arc<[u8]>>,
    rgb: RgbImage,
    config: ImageProcessorConfig,
    resized: Size,
    grid: PatchGrid,
    hash: ContentHash,
}

impl ProcessedImage {
    /// The size it is resized to, in pixels.
    #[must_use]
    pub fn resized(&self) -> Size {
        self.resized
    }

    /// The resized pixels, `[resized.height, resized.width, 3]` bytes, before normalisation.
    ///
    /// # Errors
    /// None that an image from [`ImageProcessor`] can meet.
    pub fn resized_pixels(&self) -> Result<Vec<u8>> {
        resize_bicubic(self.rgb.pixels(), self.rgb.size(), self.resized)
    }
}

impl fmt::Debug for ProcessedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessedImage")
            .field("rgb", &self.rgb)
            .field("resized", &self.resized)
            .field("grid", &self.grid)
            .field("hash", &self.hash)
            .field("encoded_bytes", &self.encoded.as_ref().map(|bytes| bytes.len()))
            .finish_non_exhaustive()
    }
}

impl ImageSource for ProcessedImage {
    fn content_hash(&self) -> ContentHash {
        self.hash
    }

    fn encoded(&self) -> Option<&[u8]> {
        self.encoded.as_deref()
    }

    fn rgb(&self) -> RgbView<'_> {
        self.rgb.view()
    }

    fn grid(&self) -> PatchGrid {
        self.grid
    }

    fn patches(&self) -> Result<Vec<f32>> {
        cut_patches(&self.resized_pixels()?, self.grid, &self.config)
    }
}

fn content_hash(rgb: &RgbImage, config: &ImageProcessorConfig) -> ContentHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(HASH_DOMAIN);
    config.hash_into(&mut hasher);
    hasher.update(&rgb.width().to_le_bytes());
    hasher.update(&rgb.height().to_le_bytes());
    hasher.update(rgb.pixels());
    ContentHash(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn checkered(width: u32, height: u32) -> RgbImage {
        let pixels = (0..width * height * 3).map(|value| (value * 37 % 251) as u8).collect();
        RgbImage::new(width, height, pixels).unwrap()
    }

    #[test]
    fn the_hash_knows_pixels_shape_and_every_setting() {
        let base = ImageProcessorConfig::default();
        let variants = [
            base,
            ImageProcessorConfig { patch_size: 14, ..base },
            ImageProcessorConfig { temporal_patch_size: 1, ..base },
            ImageProcessorConfig { merge_size: 1, ..base },
            ImageProcessorConfig { min_pixels: 1024, ..base },
            ImageProcessorConfig { max_pixels: 100_000, ..base },
            ImageProcessorConfig { image_mean: [0.5, 0.5, 0.25], ..base },
            ImageProcessorConfig { image_std: [0.5, 0.25, 0.5], ..base },
            ImageProcessorConfig { rescale_factor: 1.0 / 127.0, ..base },
        ];
        let mut hashes: Vec<_> = variants.map(|config| content_hash(&checkered(40, 30), &config)).into_iter().collect();
        hashes.push(content_hash(&checkered(30, 40), &base));
        let mut other = checkered(40, 30);
        other = RgbImage::new(40, 30, other.pixels().iter().map(|level| level ^ 1).collect()).unwrap();
        hashes.push(content_hash(&other, &base));
        let distinct: std::collections::HashSet<_> = hashes.iter().collect();
        assert_eq!(distinct.len(), hashes.len());
        assert_eq!(content_hash(&checkered(40, 30), &base), hashes[0]);
    }

    #[test]
    fn sizes_beyond_the_limits_are_refused() {
        let processor = ImageProcessor::new(ImageProcessorConfig::default()).unwrap();
        assert!(processor.process(checkered(402, 2)).is_err());
        assert!(processor.process(checkered(400, 2)).is_ok());
        let image = processor.process(checkered(70, 30)).unwrap();
        assert!(format!("{image:?}").contains("70x30"));
        assert!(image.encoded().is_none());
    }
}
