//! A toy's sight: each image token is the hash of the patches that were merged into it.

use consort_core::{ErrorKind, ImageSource, PatchGrid, Result};

use super::held::{Counter, Held};
use super::{error, head};
use crate::picture::Picture;

/// How many tokens one call encodes.
const PART: usize = 4;

/// An encoded image.
pub(super) struct Encoded {
    tokens: Vec<u64>,
    _held: Held,
}

impl Encoded {
    pub(super) fn tokens(&self) -> &[u64] {
        &self.tokens
    }
}

/// An image that is being encoded.
pub(super) struct Job {
    values: Vec<f32>,
    grid: PatchGrid,
    tokens: Vec<u64>,
    held: Held,
}

impl Job {
    pub(super) fn new(image: &dyn ImageSource, counter: &Counter) -> Result<Self> {
        let invalid = |message: &str| error(ErrorKind::InvalidImage, message);
        let grid = image.grid();
        if grid.merge != 2 || !grid.h.is_multiple_of(2) || !grid.w.is_multiple_of(2) || grid.t != 1 {
            return Err(invalid("the grid must be a still image's, and merge two by two"));
        }
        let patches = (grid.h as usize).checked_mul(grid.w as usize).filter(|patches| *patches > 0);
        let wanted = patches.and_then(|patches| patches.checked_mul(Picture::PATCH));
        let values = image.patches()?;
        if wanted != Some(values.len()) {
            return Err(invalid("the patches are not as many as the grid says"));
        }
        if values.iter().any(|value| !value.is_finite()) {
            return Err(invalid("a patch has a value that is not finite"));
        }
        let held = counter.hold(grid.tokens() as u64 * 8);
        Ok(Self { values, grid, tokens: Vec::new(), held })
    }

    /// Encodes a part; whether that was the last.
    pub(super) fn advance(&mut self) -> bool {
        let size = 4 * Picture::PATCH;
        let rest = self.values.chunks_exact(size).skip(self.tokens.len()).take(PART);
        let mut new = Vec::with_capacity(PART);
        for (index, values) in rest.enumerate() {
            let mut hasher = blake3::Hasher::new();
            for value in values {
                hasher.update(&value.to_le_bytes());
            }
            // A tower sees where in the picture a patch lies.
            let columns = (self.grid.w / 2) as usize;
            let at = self.tokens.len() + index;
            hasher.update(&((at / columns) as u32).to_le_bytes());
            hasher.update(&((at % columns) as u32).to_le_bytes());
            new.push(head(&hasher.finalize()));
        }
        self.tokens.extend(new);
        self.tokens.len() >= self.grid.tokens()
    }

    pub(super) fn finish(self) -> (Encoded, PatchGrid) {
        (Encoded { tokens: self.tokens, _held: self.held }, self.grid)
    }
}
