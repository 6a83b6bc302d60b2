//! Pictures in requests: `data:` addresses (RFC 2397).

use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use consort_core::ImageInput;

use crate::error::Failure;

/// With or without `=` at the end, as clients write it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The picture in an address.
///
/// # Errors
/// An address of another kind: none is fetched. A picture that is larger than `most` bytes, or no base64.
pub(crate) fn from_url(url: &str, param: &str, most: usize) -> Result<ImageInput, Failure> {
    let scheme = url.split(':').next().unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("data") {
        let message = "pictures are not fetched from other servers: send the picture itself, as \
                       `data:image/png;base64,` and its bytes";
        return Err(Failure::invalid("remote_image", message).with_param(param));
    }
    let wrong = |message: &str| Failure::invalid("invalid_image", message.to_owned()).with_param(param);
    let (head, data) = url
        .get(5..)
        .and_then(|rest| rest.split_once(','))
        .ok_or_else(|| wrong("a data address is `data:`, a type, `;base64,` and the bytes"))?;
    let mut head = head.split(';');
    let kind = head.next().unwrap_or_default().trim();
    if !kind.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("image/")) {
        return Err(wrong("the address must be of an image type, such as image/png"));
    }
    if !head.any(|word| word.trim().eq_ignore_ascii_case("base64")) {
        return Err(wrong("the picture must be written in base64 (`;base64,`)"));
    }
    from_base64(data, param, most)
}

/// A picture in base64.
///
/// # Errors
/// It is larger than `most` bytes, empty, or no base64.
pub(crate) fn from_base64(data: &str, param: &str, most: usize) -> Result<ImageInput, Failure> {
    let wrong = |message: String| Failure::invalid("invalid_image", message).with_param(param);
    // Four characters are three bytes.
    if data.len() / 4 * 3 > most.saturating_add(3) {
        return Err(wrong(format!("a picture may have {most} bytes")));
    }
    let bytes = BASE64.decode(data).map_err(|_| wrong("the picture is no base64".into()))?;
    if bytes.is_empty() || bytes.len() > most {
        return Err(wrong(format!("a picture has 1 to {most} bytes")));
    }
    Ok(ImageInput::Encoded(Arc::from(bytes)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pictures_come_as_data_alone() {
        for url in
            ["data:image/png;base64,AAEC", "DATA:IMAGE/PNG;charset=x;BASE64,AAECAA", "data:image/webp;base64,AAECAA=="]
        {
            let ImageInput::Encoded(bytes) = from_url(url, "p", 4).unwrap() else { panic!("{url}") };
            assert_eq!(bytes[..3], [0, 1, 2]);
        }
        for (url, code) in [
            ("https://example.org/cat.png", "remote_image"),
            ("file:///etc/passwd", "remote_image"),
            ("", "remote_image"),
            ("data:", "invalid_image"),
            ("data:text/plain;base64,AAEC", "invalid_image"),
            ("data:image/png,AAEC", "invalid_image"),
            ("data:image/png;base64,", "invalid_image"),
            ("data:image/png;base64,A*EC", "invalid_image"),
            ("data:image/png;base64,AAECAAECAAEC", "invalid_image"),
        ] {
            let failure = from_url(url, "messages[0].content[1].image_url.url", 4).unwrap_err();
            assert_eq!(
                (failure.code(), failure.param().unwrap()),
                (code, "messages[0].content[1].image_url.url"),
                "{url}"
            );
        }
    }
}
