//! Pictures: decoded within limits, resized, cut into patches.

use consort_core::{ErrorKind, ImageSource};
use consort_vision::{ImageLimits, ImageProcessor, ImageProcessorConfig};

/// A picture file.
///
/// # Panics
/// When what was decoded is not what the limits or the grid say.
pub fn image(data: &[u8]) {
    let config = ImageProcessorConfig { min_pixels: 1024, max_pixels: 16_384, ..ImageProcessorConfig::default() };
    let limits = ImageLimits { max_pixels: 1 << 20, ..ImageLimits::default() };
    let processor = ImageProcessor::new(config).unwrap().with_limits(limits);
    match processor.decode(data.into()) {
        Ok(image) => {
            let grid = image.grid();
            // A long, narrow picture keeps one row, and so may have more than `max_pixels`.
            assert!((1..=512).contains(&grid.tokens()));
            let patches = image.patches().unwrap();
            assert!(patches.iter().all(|value| (-1.0..=1.0).contains(value)));
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidImage, "{error}"),
    }
}
