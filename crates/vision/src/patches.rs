//! From resized pixels to the patches a vision tower reads.

use consort_core::{PatchGrid, Result};

use crate::config::ImageProcessorConfig;
use crate::limits::invalid;

/// Cuts `[grid.h · patch, grid.w · patch, 3]` bytes into `[grid.h · grid.w, 3 · temporal · patch · patch]` normalised values.
///
/// Patches come in merge-block order: the blocks of merge × merge patches row by row, and within a block its patches row by
/// row, so that the patches of one token are neighbours. Within a patch: channel, frame, row, column; the still image is
/// every frame. (Source: `patchify` of transformers' image processor for this family.)
///
/// # Errors
/// [`ErrorKind::InvalidImage`](consort_core::ErrorKind::InvalidImage) when `pixels` do not fill the grid.
pub(crate) fn cut_patches(pixels: &[u8], grid: PatchGrid, config: &ImageProcessorConfig) -> Result<Vec<f32>> {
    let (patch, merge) = (config.patch_size as usize, config.merge_size as usize);
    let (rows, columns) = (grid.h as usize, grid.w as usize);
    let row_len = columns * patch * 3;
    if pixels.len() != rows * patch * row_len || rows % merge != 0 || columns % merge != 0 || pixels.is_empty() {
        return Err(invalid("the resized pixels do not fill the grid").with_operation("vision::patches"));
    }
    let levels = [0, 1, 2].map(|channel| config.normalised_levels(channel));
    let frames = config.temporal_patch_size as usize;
    let mut patches = Vec::with_capacity(grid.patches() * config.patch_len());
    for block_row in 0..rows / merge {
        for block_column in 0..columns / merge {
            for in_row in 0..merge {
                for in_column in 0..merge {
                    let top = (block_row * merge + in_row) * patch;
                    let left = (block_column * merge + in_column) * patch * 3;
                    for (channel, normalised) in levels.iter().enumerate() {
                        let start = patches.len();
                        for row in pixels.chunks_exact(row_len).skip(top).take(patch) {
                            let row = row.get(left..left + patch * 3).unwrap_or_default();
                            let samples = row.iter().skip(channel).step_by(3);
                            patches.extend(samples.map(|level| normalised[usize::from(*level)]));
                        }
                        let end = patches.len();
                        for _ in 1..frames {
                            patches.extend_from_within(start..end);
                        }
                    }
                }
            }
        }
    }
    Ok(patches)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_pixel_lands_where_the_order_says() {
        let config = ImageProcessorConfig {
            patch_size: 3,
            temporal_patch_size: 2,
            merge_size: 2,
            image_mean: [0.0; 3],
            image_std: [1.0 / 255.0; 3],
            ..ImageProcessorConfig::default()
        };
        let grid = PatchGrid { t: 1, h: 4, w: 6, merge: 2 };
        let (height, width) = (12, 18);
        let pixels: Vec<u8> = (0..height * width * 3).map(|index| (index * 11 % 256) as u8).collect();
        let patches = cut_patches(&pixels, grid, &config).unwrap();
        assert_eq!(patches.len(), 4 * 6 * 3 * 2 * 9);
        let mut values = patches.iter();
        for (block_row, block_column) in (0..2).flat_map(|row| (0..3).map(move |column| (row, column))) {
            for (in_row, in_column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                for (channel, _frame) in (0..3).flat_map(|channel| [(channel, 0), (channel, 1)]) {
                    for (y, x) in (0..3).flat_map(|y| (0..3).map(move |x| (y, x))) {
                        let y = (block_row * 2 + in_row) * 3 + y;
                        let x = (block_column * 2 + in_column) * 3 + x;
                        let level = f32::from(pixels[(y * width + x) * 3 + channel]);
                        assert!((values.next().unwrap() - level).abs() < 1e-3);
                    }
                }
            }
        }
        assert!(cut_patches(&pixels[3..], grid, &config).is_err());
        assert!(cut_patches(&[], PatchGrid { t: 1, h: 0, w: 0, merge: 2 }, &config).is_err());
    }
}
