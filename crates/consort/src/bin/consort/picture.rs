//! A picture in the terminal.

use std::fmt::Write as _;

use consort_core::RgbView;

/// How a picture can be drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Palette {
    /// Upper half blocks in 24-bit colour: two pixels a character.
    TrueColour,
    /// One letter for each colour that the picture's pixels are nearest to, for pipes and terminals without colour.
    Letters,
}

/// The names that [`Palette::Letters`] tells apart, with the letter and the colour that stand for each.
const LETTERS: [(char, &str, [u8; 3]); 9] = [
    ('.', "background", [240, 240, 240]),
    ('r', "red", [214, 40, 40]),
    ('g', "green", [44, 160, 60]),
    ('b', "blue", [40, 80, 210]),
    ('y', "yellow", [240, 214, 40]),
    ('o', "orange", [245, 130, 30]),
    ('p', "purple", [130, 50, 170]),
    ('k', "black", [25, 25, 25]),
    ('i', "pink", [245, 130, 190]),
];

/// Draws `image` at most `columns` characters wide, keeping its shape (a character is about twice as high as wide).
pub fn draw(image: RgbView<'_>, columns: u32, palette: Palette) -> String {
    if image.width == 0 || image.height == 0 {
        return String::new();
    }
    let width = columns.clamp(1, image.width.max(1));
    // Two rows of samples for each line of characters.
    let lines = (u64::from(width) * u64::from(image.height)).div_ceil(u64::from(image.width) * 2).max(1);
    let lines = u32::try_from(lines).unwrap_or(1);
    let mut text = String::new();
    for line in 0..lines {
        text.push_str("  ");
        for column in 0..width {
            let upper = mean(image, column, width, line * 2, lines * 2);
            let lower = mean(image, column, width, line * 2 + 1, lines * 2);
            match palette {
                Palette::TrueColour => {
                    let ([ur, ug, ub], [lr, lg, lb]) = (upper, lower);
                    let _ = write!(text, "\x1b[38;2;{ur};{ug};{ub}m\x1b[48;2;{lr};{lg};{lb}m▀");
                }
                Palette::Letters => {
                    text.push(nearest([mid(upper[0], lower[0]), mid(upper[1], lower[1]), mid(upper[2], lower[2])]));
                }
            }
        }
        text.push_str(if palette == Palette::TrueColour { "\x1b[0m\n" } else { "\n" });
    }
    text
}

fn mid(a: u8, b: u8) -> u8 {
    a.midpoint(b)
}

/// The mean colour of one cell of a `width` × `height` raster over the image.
fn mean(image: RgbView<'_>, column: u32, width: u32, row: u32, height: u32) -> [u8; 3] {
    let span = |index: u32, cells: u32, size: u32| {
        let at = |index: u32| (u64::from(index) * u64::from(size) / u64::from(cells.max(1))) as usize;
        let (start, end) = (at(index), at(index + 1));
        start..end.max(start + 1).min(size as usize)
    };
    let (mut sum, mut count) = ([0u64; 3], 0u64);
    for y in span(row, height, image.height) {
        for x in span(column, width, image.width) {
            let start = (y * image.width as usize + x) * 3;
            let Some(pixel) = image.pixels.get(start..start + 3) else { continue };
            for (total, &channel) in sum.iter_mut().zip(pixel) {
                *total += u64::from(channel);
            }
            count += 1;
        }
    }
    sum.map(|total| u8::try_from(total / count.max(1)).unwrap_or(u8::MAX))
}

fn nearest(colour: [u8; 3]) -> char {
    let distance =
        |other: [u8; 3]| -> i32 { colour.iter().zip(other).map(|(&a, b)| (i32::from(a) - i32::from(b)).pow(2)).sum() };
    LETTERS.iter().min_by_key(|(_, _, other)| distance(*other)).map_or('?', |(letter, _, _)| *letter)
}

/// Which letters stand for which colours in a drawing of [`Palette::Letters`].
pub fn legend(drawing: &str) -> String {
    let seen: Vec<_> = LETTERS
        .iter()
        .skip(1)
        .filter(|(letter, _, _)| drawing.contains(*letter))
        .map(|(letter, name, _)| format!("{letter} {name}"))
        .collect();
    seen.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_red_half_is_drawn_red() {
        let pixels: Vec<u8> =
            (0..4 * 4).flat_map(|i| if i % 4 < 2 { [214, 40, 40] } else { [240, 240, 240] }).collect();
        let drawing = draw(RgbView { width: 4, height: 4, pixels: &pixels }, 4, Palette::Letters);
        assert_eq!(drawing, "  rr..\n  rr..\n");
        assert_eq!(legend(&drawing), "r red");
    }

    #[test]
    fn an_empty_picture_draws_nothing() {
        assert_eq!(draw(RgbView { width: 0, height: 0, pixels: &[] }, 10, Palette::Letters), "");
    }
}
