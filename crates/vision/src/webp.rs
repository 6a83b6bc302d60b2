//! What a WebP container claims, checked against what it holds before the decoder allocates for it.
//!
//! The decoder takes the length of a metadata chunk and the size of an inner frame at their word: a file of a hundred bytes
//! could make it ask for gigabytes, and a refused allocation ends the process. Layout: RFC 9649.

use consort_core::Result;

use crate::limits::{ImageLimits, invalid};

/// Checks that every chunk lies within the file, and that every frame keeps the limits of size.
///
/// # Errors
/// [`ErrorKind::InvalidImage`](consort_core::ErrorKind::InvalidImage) when one doesn't.
pub(crate) fn check(bytes: &[u8], limits: &ImageLimits) -> Result<()> {
    let length = little_endian(bytes, 4, 4).unwrap_or(0);
    // The length counts from after itself: the signature "WEBP", then chunks.
    let body = length.checked_add(8).and_then(|end| bytes.get(12..end)).ok_or_else(truncated)?;
    chunks(body, |name, chunk| {
        if name != *b"ANMF" {
            return frame(name, chunk, limits);
        }
        // Position and size of the frame and its timing take 16 bytes; its own chunks follow.
        let inner = chunk.get(16..).ok_or_else(truncated)?;
        chunks(inner, |name, chunk| frame(name, chunk, limits))
    })
}

fn chunks(mut rest: &[u8], mut visit: impl FnMut([u8; 4], &[u8]) -> Result<()>) -> Result<()> {
    while let Some((name, after)) = rest.split_first_chunk::<4>() {
        // Fewer than eight bytes are no chunk but a remainder, which decoders ignore.
        let Some(length) = little_endian(after, 0, 4) else { return Ok(()) };
        let chunk = length.checked_add(4).and_then(|end| after.get(4..end)).ok_or_else(truncated)?;
        visit(*name, chunk)?;
        // Chunks of odd length are padded.
        rest = after.get(4 + length + length % 2..).unwrap_or_default();
    }
    Ok(())
}

fn frame(name: [u8; 4], chunk: &[u8], limits: &ImageLimits) -> Result<()> {
    let size = match &name {
        // Frame tag and start code take six bytes; the upper two bits of each side are its scale.
        b"VP8 " => little_endian(chunk, 6, 2).zip(little_endian(chunk, 8, 2)).map(|(w, h)| (w & 0x3fff, h & 0x3fff)),
        // After a byte of signature 14 bits of each side, less 1.
        b"VP8L" => little_endian(chunk, 1, 4).map(|bits| ((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1)),
        _ => return Ok(()),
    };
    let (width, height) = size.ok_or_else(truncated)?;
    let side = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    limits.check_size(side(width), side(height))
}

fn little_endian(bytes: &[u8], at: usize, count: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(count)?)?;
    Some(bytes.iter().rev().fold(0, |value, byte| (value << 8) | usize::from(*byte)))
}

fn truncated() -> consort_core::Error {
    invalid("the file is truncated: a chunk claims more bytes than there are")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn chunk(name: &[u8; 4], claimed: u32, body: &[u8]) -> Vec<u8> {
        [&name[..], &claimed.to_le_bytes(), body].concat()
    }

    fn file(chunks: &[Vec<u8>]) -> Vec<u8> {
        let body = chunks.concat();
        [&b"RIFF"[..], &(body.len() as u32 + 4).to_le_bytes(), b"WEBP", &body].concat()
    }

    fn problem(chunks: &[Vec<u8>]) -> String {
        check(&file(chunks), &ImageLimits::default()).unwrap_err().to_string()
    }

    #[test]
    fn chunks_and_frames_that_claim_too_much_are_refused() {
        let canvas = chunk(b"VP8X", 10, &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let metadata = chunk(b"EXIF", 0xffff_fff0, b"II");
        assert!(problem(&[canvas.clone(), metadata]).contains("truncated"));

        let lossy = chunk(b"VP8 ", 10, &[0, 0, 0, 0x9d, 1, 0x2a, 0xff, 0x3f, 0xff, 0x3f]);
        assert!(problem(&[canvas.clone(), lossy.clone()]).contains("too many pixels"));
        let animated = chunk(b"ANMF", 34, &[&[0; 16][..], &lossy].concat());
        assert!(problem(&[canvas.clone(), animated]).contains("too many pixels"));
        let lossless = chunk(b"VP8L", 5, &[0x2f, 0xff, 0xff, 0xff, 0x0f]);
        assert!(problem(&[lossless]).contains("16384x16384"));
        assert!(problem(&[canvas.clone(), chunk(b"VP8 ", 3, &[0; 3])]).contains("truncated"));
        assert!(problem(&[chunk(b"ANMF", 3, &[0; 3])]).contains("truncated"));

        let small = chunk(b"VP8L", 5, &[0x2f, 7, 0xc0, 1, 0]);
        let padded = [small.clone(), vec![0], chunk(b"XMP ", 2, b"ab"), vec![1, 2]];
        check(&file(&padded), &ImageLimits::default()).unwrap();
        let whole = file(&[small]);
        assert!(check(&whole[..whole.len() - 1], &ImageLimits::default()).is_err());
    }
}
