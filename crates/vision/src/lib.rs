//! What the model sees: image files under limits, the family's image processor, and M-RoPE positions.
//!
//! - [`RgbImage::decode`] turns PNG, JPEG, WebP and GIF (first frame) into upright 8-bit RGB, within [`ImageLimits`].
//!   A hostile file is an error, never a panic and never more memory than the limits say.
//! - [`ImageProcessor`] makes of it what the family's image processor in transformers makes: the same grid, the same
//!   values. It yields a [`ProcessedImage`], which implements [`consort_core::ImageSource`] and so crosses the seam: as
//!   patches, as pixels or as the file itself, whichever an engine wants.
//! - [`MropeBuilder`] places text and images for the model's rotary embedding.
//!
//! ```
//! use std::sync::Arc;
//! use consort_core::{ErrorKind, ImageSource, PatchGrid};
//! use consort_vision::{ImageProcessor, ImageProcessorConfig, MropeBuilder, Segment};
//!
//! // The smallest GIF there is: one white pixel.
//! let file: Arc<[u8]> = Arc::from(*b"GIF89a\x01\0\x01\0\x80\0\0\xff\xff\xff\0\0\0\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0\x3b");
//! let processor = ImageProcessor::new(ImageProcessorConfig::default())?;
//! let image = processor.decode(file)?;
//! assert_eq!(image.grid(), PatchGrid { t: 1, h: 16, w: 16, merge: 2 });
//! assert!(image.patches()?.iter().all(|value| *value == 1.0));
//!
//! // Four tokens of text, the image, and the question.
//! let mut positions = MropeBuilder::new();
//! for segment in [Segment::Text(4), Segment::Image(image.grid()), Segment::Text(9)] {
//!     positions.push(segment)?;
//! }
//! assert_eq!(positions.positions().len(), 4 + 64 + 9);
//!
//! // What cannot be decoded is refused, and says why.
//! let error = processor.decode(Arc::from(*b"BM is a bitmap")).unwrap_err();
//! assert_eq!(error.kind(), ErrorKind::InvalidImage);
//! # Ok::<(), consort_core::Error>(())
//! ```
//!
//! # How equal it is
//!
//! The golden cases in `tests/golden` were written by `make_vision_cases.py` with transformers' default processor class
//! for this family (the torchvision one) on a CPU. Every 8-bit level after the resize and every normalised value is the
//! same, for every format: the decoders give Pillow's bytes, the resize repeats torch's fixed-point arithmetic.
#![forbid(unsafe_code)]

mod config;
mod decode;
mod limits;
mod mrope;
mod patches;
mod processor;
mod resize;
mod webp;

pub use config::{ImageProcessorConfig, ProjectorValues};
pub use decode::{ImageFormat, RgbImage};
pub use limits::ImageLimits;
pub use mrope::{MropeBuilder, Segment};
pub use processor::{ImageProcessor, ProcessedImage};
pub use resize::{Size, smart_resize};
