//! Pictures that are made up.

use consort_core::{Error, ErrorKind, Result};

use super::random::Random;
use super::workload::Picture;

/// Squares along each side.
const SQUARES: u32 = 6;

/// The picture as a PNG: squares of colour, so that it compresses, and no two seeds look alike.
pub(super) fn render(picture: Picture) -> Result<Vec<u8>> {
    let mut random = Random::stream(picture.seed, "picture", 0);
    let colours: Vec<[u8; 3]> = (0..SQUARES * SQUARES)
        .map(|_| random.next().to_le_bytes())
        .map(|bytes| [bytes[0], bytes[1], bytes[2]])
        .collect();
    let side = picture.side.max(1);
    let mut pixels = Vec::with_capacity((side * side * 3) as usize);
    for y in 0..side {
        for x in 0..side {
            let square = y * SQUARES / side * SQUARES + x * SQUARES / side;
            pixels.extend(colours.get(square as usize).copied().unwrap_or_default());
        }
    }
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, side, side);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder
        .write_header()
        .and_then(|mut writer| writer.write_image_data(&pixels))
        .map_err(|source| Error::new(ErrorKind::Unexpected, "a picture could not be encoded").with_source(source))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_picture_is_a_png_of_its_size_and_seed() {
        let of = |seed, side| render(Picture { seed, side }).unwrap();
        let decoded = png::Decoder::new(std::io::Cursor::new(of(1, 96))).read_info().unwrap();
        assert_eq!((decoded.info().width, decoded.info().height), (96, 96));
        assert_eq!(of(1, 96), of(1, 96));
        assert_ne!(of(1, 96), of(2, 96));
    }
}
