//! Pictures that are shown in a room: looked at before they become part of it, so that no later reply fails on them.

use consort_core::ImageInput;
use consort_vision::{ImageFormat, ImageLimits, RgbImage};

use super::message::Picture;
use crate::error::Failure;
use crate::{identity, image};

/// The pictures of a message. Decoding takes its time: this is for a thread beside the connections.
///
/// # Errors
/// An address of another kind, a picture that is too large, broken, or none of PNG, JPEG, WebP and GIF.
pub(crate) fn read(addresses: &[String], most_bytes: usize) -> Result<Vec<Picture>, Failure> {
    let read = |(at, address): (usize, &String)| {
        let param = format!("images[{at}]");
        let ImageInput::Encoded(bytes) = image::from_url(address, &param, most_bytes)? else {
            return Err(Failure::internal());
        };
        let limits = ImageLimits { max_bytes: most_bytes, ..ImageLimits::default() };
        let decoded =
            RgbImage::decode(&bytes, &limits).map_err(|error| Failure::from(error).with_param(param.clone()))?;
        let unknown = || Failure::invalid("invalid_image", "the picture is no PNG, JPEG, WebP or GIF");
        let format = ImageFormat::detect(&bytes).ok_or_else(|| unknown().with_param(param))?;
        let (width, height) = (decoded.width(), decoded.height());
        Ok(Picture { id: identity::name("img_"), bytes, format, width, height })
    };
    addresses.iter().enumerate().map(read).collect()
}
