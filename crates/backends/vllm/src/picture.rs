//! Pictures as servers take them.

use std::sync::Arc;

use consort_core::{Error, ErrorKind, ImageInput, ImageSource, Result};

use crate::call::Picture;

/// A picture of a prompt's parts: its file, or its pixels in one.
///
/// # Errors
/// [`ErrorKind::InvalidImage`] for pixels that are none.
pub(crate) fn of_source(source: &dyn ImageSource) -> Result<Picture> {
    match source.encoded() {
        Some(bytes) if mime(bytes).is_some() => of_bytes(bytes.into()),
        _ => of_pixels(source),
    }
}

/// A picture of a conversation.
///
/// # Errors
/// [`ErrorKind::InvalidImage`] for a file of another kind.
pub(crate) fn of_input(input: &ImageInput) -> Result<Picture> {
    match input {
        ImageInput::Encoded(bytes) => of_bytes(Arc::clone(bytes)),
        ImageInput::Prepared(source) => of_source(&**source),
    }
}

fn of_bytes(bytes: Arc<[u8]>) -> Result<Picture> {
    let mime = mime(&bytes).ok_or_else(|| {
        Error::new(ErrorKind::InvalidImage, "the picture is neither PNG, JPEG, WebP nor GIF").with_backend(crate::NAME)
    })?;
    Ok(Picture { bytes, mime })
}

fn mime(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

fn of_pixels(source: &dyn ImageSource) -> Result<Picture> {
    let view = source.rgb();
    let bad = |source: png::EncodingError| {
        Error::new(ErrorKind::InvalidImage, "the picture's pixels cannot be written as a file")
            .with_backend(crate::NAME)
            .with_source(source)
    };
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, view.width, view.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header().map_err(bad)?;
    writer.write_image_data(view.pixels).map_err(bad)?;
    writer.finish().map_err(bad)?;
    Ok(Picture { bytes: bytes.into(), mime: "image/png" })
}
