//! Images as they cross the seams: bytes, pixels, grid, hash, and patches on demand.
//!
//! One engine wants patches (native, ONNX), another RGB (llama.cpp), a remote one the encoded bytes (vLLM). So an image is
//! a trait object that can yield each, and `consort-vision` implements it.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::Result;

/// BLAKE3 hash of what an engine would see of an image: its pixels and the image processor's settings.
///
/// The same picture in another file format has the same hash when it decodes to the same pixels; the same pixels under
/// other processor settings have another one. It is part of the prefix cache's key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct ContentHash(pub [u8; 32]);

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..8] {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// How many patches an image was cut into, and how many of them the vision tower merges into one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct PatchGrid {
    /// Temporal patches: 1 for a still image.
    pub t: u32,
    /// Rows of patches. A multiple of `merge`.
    pub h: u32,
    /// Columns of patches. A multiple of `merge`.
    pub w: u32,
    /// Side of the square of patches that becomes one token (`spatial_merge_size`, 2 in this family).
    pub merge: u32,
}

impl PatchGrid {
    /// Number of patches: t · h · w; `usize::MAX` where that is beyond counting.
    #[must_use]
    pub fn patches(self) -> usize {
        (self.t as usize).saturating_mul(self.h as usize).saturating_mul(self.w as usize)
    }

    /// Number of tokens the image takes in the text model: t · (h / merge) · (w / merge).
    #[must_use]
    pub fn tokens(self) -> usize {
        let merge = self.merge.max(1);
        (self.t as usize).saturating_mul((self.h / merge) as usize).saturating_mul((self.w / merge) as usize)
    }
}

/// Decoded pixels, eight bits a channel.
#[derive(Debug, Clone, Copy)]
pub struct RgbView<'a> {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// `[height, width, 3]` bytes: red, green, blue.
    pub pixels: &'a [u8],
}

/// An image that any engine can take in the form it wants.
pub trait ImageSource: Send + Sync + fmt::Debug {
    /// The hash under which its embedding and every past that contains it are cached.
    fn content_hash(&self) -> ContentHash;

    /// The file as it came (PNG, JPEG, ...), when there was one.
    fn encoded(&self) -> Option<&[u8]>;

    /// The decoded pixels at the image's own size, before the processor's resize.
    fn rgb(&self) -> RgbView<'_>;

    /// The grid of patches that [`patches`](Self::patches) yields.
    fn grid(&self) -> PatchGrid;

    /// The processor's output: `[grid.t · grid.h · grid.w, channels · temporal_patch · patch · patch]` normalised values,
    /// patches in merge-block order (source: the family's image processor in transformers).
    ///
    /// # Errors
    /// When the image cannot be processed, as [`ErrorKind::InvalidImage`](crate::ErrorKind::InvalidImage).
    fn patches(&self) -> Result<Vec<f32>>;
}

/// An image in a request: still encoded, or already prepared.
#[derive(Debug, Clone)]
pub enum ImageInput {
    /// A file's bytes (PNG, JPEG, WebP, GIF). The backend decodes and processes it as its model demands.
    Encoded(Arc<[u8]>),
    /// Processed for this model by the caller.
    Prepared(Arc<dyn ImageSource>),
}
