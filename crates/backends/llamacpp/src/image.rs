//! Images: from the patches that every engine sees to the pixels that llama.cpp wants.
//!
//! The library has an image processor of its own. So that it sees what every engine sees, it is given the picture as our
//! processor resized it, read back from the patches: its own resize then finds nothing to do, and its normalisation gives
//! the patches again. Values that a processor makes of pixels come back exactly; others go to the nearest pixel.

use consort_core::{Error, ErrorKind, ImageSource, PatchGrid, Result};

use crate::check::VisionShape;
use crate::ffi::Frame;

/// An image that waits to be encoded.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) grid: PatchGrid,
    /// Width and height in pixels.
    pub(crate) size: (u32, u32),
    /// One frame, or the two that a patch spans where they differ.
    pub(crate) frames: Vec<Frame>,
}

/// Takes an image in.
pub(crate) fn begin(shape: &VisionShape, image: &dyn ImageSource, max_patches: usize) -> Result<Pending> {
    let grid = image.grid();
    let merge = shape.merge as u32;
    let refuse = |message: String| {
        Err(Error::new(ErrorKind::InvalidImage, message)
            .with_context("grid", format!("{} × {} × {}", grid.t, grid.h, grid.w)))
    };
    if grid.merge != merge || !grid.h.is_multiple_of(merge) || !grid.w.is_multiple_of(merge) {
        return refuse(format!("the image was not prepared for this model, which merges {merge} × {merge} patches"));
    }
    let patches = [grid.t, grid.h, grid.w].iter().try_fold(1_usize, |all, &side| all.checked_mul(side as usize));
    let Some(patches) = patches.filter(|patches| (1..=max_patches).contains(patches)) else {
        return refuse(format!("an image may have 1 to {max_patches} patches: make it smaller"));
    };
    if grid.t != 1 {
        return refuse("llama.cpp takes still images, of one temporal patch".into());
    }
    let values = image.patches()?;
    let width = 6 * shape.patch * shape.patch;
    if values.len() != patches * width {
        return refuse(format!("{} values are not {patches} patches of {width}", values.len()));
    }
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return refuse(format!("value {} of patch {} is not a finite number", index % width, index / width));
    }
    let Some([first, second]) = pixels(shape, grid, &values) else {
        return refuse("the image has values that no pixel gives: it was normalised for another model".into());
    };
    let frames = if first == second { vec![first] } else { vec![first, second] };
    let side = shape.patch as u32;
    Ok(Pending { grid, size: (grid.w * side, grid.h * side), frames })
}

/// The two frames of patches `[patches, channel · frame · y · x]` in merge-block order, each `[height, width, 3]`. None where
/// a value is beyond what eight bits give.
fn pixels(shape: &VisionShape, grid: PatchGrid, values: &[f32]) -> Option<[Frame; 2]> {
    let (side, merge) = (shape.patch, shape.merge);
    let (rows, columns) = (grid.h as usize, grid.w as usize);
    let row_len = columns * side * 3;
    let mut frames = [vec![0; rows * side * row_len], vec![0; rows * side * row_len]];
    let blocks = columns / merge;
    for (index, patch) in values.chunks_exact(6 * side * side).enumerate() {
        let (block, within) = (index / (merge * merge), index % (merge * merge));
        let row = block / blocks * merge + within / merge;
        let column = block % blocks * merge + within % merge;
        for (plane, values) in patch.chunks_exact(side * side).enumerate() {
            let (channel, frame) = (plane / 2, plane % 2);
            for (y, line) in values.chunks_exact(side).enumerate() {
                let start = (row * side + y) * row_len + column * side * 3 + channel;
                for (x, value) in line.iter().enumerate() {
                    let level = (value * shape.std[channel] + shape.mean[channel]) * 255.0;
                    if !(-0.6..=255.6).contains(&level) {
                        return None;
                    }
                    frames[frame][start + 3 * x] = level.round().clamp(0.0, 255.0) as u8;
                }
            }
        }
    }
    Some(frames)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shape() -> VisionShape {
        VisionShape { patch: 2, merge: 2, mean: [0.5, 0.4, 0.3], std: [0.5, 0.25, 0.2] }
    }

    /// The patches of a picture, in the order that the family's image processor gives them.
    fn patches(
        shape: &VisionShape,
        (rows, columns): (usize, usize),
        pixel: impl Fn(usize, usize, usize) -> u8,
    ) -> Vec<f32> {
        let mut all = Vec::new();
        for (block_row, block_column) in (0..rows / 2).flat_map(|row| (0..columns / 2).map(move |column| (row, column)))
        {
            for (in_row, in_column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                for (channel, _frame) in (0..3).flat_map(|channel| [(channel, 0), (channel, 1)]) {
                    for (y, x) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                        let level =
                            pixel((block_row * 2 + in_row) * 2 + y, (block_column * 2 + in_column) * 2 + x, channel);
                        all.push((f32::from(level) / 255.0 - shape.mean[channel]) / shape.std[channel]);
                    }
                }
            }
        }
        all
    }

    #[test]
    fn pixels_come_back_exactly() {
        let (shape, grid) = (shape(), PatchGrid { t: 1, h: 4, w: 6, merge: 2 });
        let pixel = |y: usize, x: usize, channel: usize| ((y * 36 + x * 3 + channel) * 7 % 256) as u8;
        let [first, second] = pixels(&shape, grid, &patches(&shape, (4, 6), pixel)).unwrap();
        assert_eq!(first, second);
        let (height, width) = (8, 12);
        for y in 0..height {
            for x in 0..width {
                for channel in 0..3 {
                    assert_eq!(first[(y * width + x) * 3 + channel], pixel(y, x, channel), "{y} {x} {channel}");
                }
            }
        }
        let mut bright = patches(&shape, (4, 6), pixel);
        bright[5] = 9.0;
        assert!(pixels(&shape, grid, &bright).is_none());
    }
}
