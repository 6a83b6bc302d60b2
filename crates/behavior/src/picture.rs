//! Small pictures that the suite draws itself.

use std::fmt;
use std::sync::Arc;

use consort_core::{ContentHash, ImageSource, PatchGrid, Result, RgbView};

use crate::fixture::Random;

/// An image of patches of the family's shape, drawn from a seed: what an image processor would have made of some file.
pub struct Picture {
    grid: PatchGrid,
    side: usize,
    patches: Vec<f32>,
    pixels: Vec<u8>,
}

impl Picture {
    /// Values in a patch of the family: 3 channels, 2 frames, 16 · 16 pixels.
    pub const PATCH: usize = 3 * 2 * 16 * 16;

    /// A picture of `rows` × `columns` patches.
    #[must_use]
    pub fn seeded(rows: u32, columns: u32, seed: u64) -> Arc<dyn ImageSource> {
        let grid = PatchGrid { t: 1, h: rows, w: columns, merge: 2 };
        let mut random = Random::new(seed);
        let values = (0..grid.patches() * Self::PATCH).map(|_| (random.next() % 256) as f32 / 127.5 - 1.0).collect();
        Arc::new(Self::new(grid, values))
    }

    /// A picture without content: every value is 0, which is mid-grey.
    #[must_use]
    pub fn blank(grid: PatchGrid) -> Arc<dyn ImageSource> {
        Arc::new(Self::new(grid, vec![0.0; grid.patches() * Self::PATCH]))
    }

    /// A picture that says what it likes of itself, for the cases on hostile input.
    #[must_use]
    pub fn new(grid: PatchGrid, patches: Vec<f32>) -> Self {
        let side = 16;
        let pixels = vec![128; (grid.h as usize).min(64) * (grid.w as usize).min(64) * side * side * 3];
        Self { grid, side, patches, pixels }
    }

    /// The same with fewer pixels than it says that it has: whichever form of it an engine takes, it is malformed.
    #[must_use]
    pub fn broken(grid: PatchGrid, patches: Vec<f32>) -> Self {
        let mut picture = Self::new(grid, patches);
        picture.pixels.truncate(7);
        picture
    }
}

impl fmt::Debug for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Picture").field("grid", &self.grid).finish_non_exhaustive()
    }
}

impl ImageSource for Picture {
    fn content_hash(&self) -> ContentHash {
        let mut hasher = blake3::Hasher::new();
        for value in &self.patches {
            hasher.update(&value.to_le_bytes());
        }
        hasher.update(&self.grid.h.to_le_bytes());
        hasher.update(&self.grid.w.to_le_bytes());
        ContentHash(*hasher.finalize().as_bytes())
    }

    fn encoded(&self) -> Option<&[u8]> {
        None
    }

    fn rgb(&self) -> RgbView<'_> {
        let side = self.side as u32;
        RgbView { width: self.grid.w.min(64) * side, height: self.grid.h.min(64) * side, pixels: &self.pixels }
    }

    fn grid(&self) -> PatchGrid {
        self.grid
    }

    fn patches(&self) -> Result<Vec<f32>> {
        Ok(self.patches.clone())
    }
}
