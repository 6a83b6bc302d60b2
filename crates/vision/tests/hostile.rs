//! Damaged and malicious files end in a typed error or in an image within the limits; never in a panic.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::path::Path;

use consort_core::ErrorKind;
use consort_test_support::Random;
use consort_vision::{ImageFormat, ImageLimits, ImageProcessor, ImageProcessorConfig, RgbImage};
use proptest::prelude::*;

fn files() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    assert!(files.len() > 30);
    files
}

/// Small files stay small: whatever a damaged header claims, more pixels than this are refused before they are decoded.
fn limits() -> ImageLimits {
    ImageLimits { max_pixels: 200_000, ..ImageLimits::default() }
}

/// Decodes; anything but a typed error or an image within the limits is a failure of the test. Says whether it decoded.
fn try_decode(bytes: &[u8], what: &str) -> bool {
    match RgbImage::decode(bytes, &limits()) {
        Ok(image) => {
            let area = u64::from(image.width()) * u64::from(image.height());
            assert!(area <= 200_000 && image.pixels().len() as u64 == area * 3, "{what}");
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::InvalidImage, "{what}: {error}");
            assert!(!error.message().contains("the decoder failed"), "{what}: a decoder panicked");
            false
        }
    }
}

/// The process never held more than the limits of one image admit, with room for the tests beside it.
fn assert_memory_stayed_small() {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return };
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok());
    assert!(peak.unwrap() < 512 << 10, "peak of {} KiB", peak.unwrap());
}

#[test]
fn truncated_files_are_refused() {
    let (mut tried, mut decoded) = (0, 0);
    for (name, bytes) in files() {
        let mut random = Random::default();
        let cuts = (0..40).map(|cut| bytes.len() * cut / 40).chain((0..10).map(|_| random.below(bytes.len())));
        for cut in cuts {
            tried += 1;
            decoded += usize::from(try_decode(&bytes[..cut], &format!("{name} cut at {cut}")));
        }
    }
    println!("{tried} truncated files, {decoded} of them held a whole first frame");
    assert!(tried >= 1800 && decoded < tried / 4);
    assert_memory_stayed_small();
}

#[test]
fn bit_flipped_files_are_decoded_or_refused() {
    let (mut tried, mut decoded) = (0, 0);
    for (name, bytes) in files() {
        let mut random = Random::seeded(0xf11b);
        for round in 0..90 {
            let mut damaged = bytes.clone();
            // Half of the damage goes to the first 64 bytes, where sizes and types are.
            let bound = if round % 2 == 0 { 64.min(bytes.len()) } else { bytes.len() };
            for _ in 0..=round % 4 {
                damaged[random.below(bound)] ^= 1 << random.below(8);
            }
            tried += 1;
            decoded += usize::from(try_decode(&damaged, &format!("{name}, round {round}")));
        }
    }
    println!("{tried} bit-flipped files, {decoded} of them decoded");
    assert!(tried >= 3000);
    assert_memory_stayed_small();
}

#[test]
fn bombs_are_refused_by_their_headers() {
    // Each claims a size far beyond the limits and holds next to nothing.
    let chunk = |kind: &[u8], data: &[u8], checksum: u32| {
        [&(data.len() as u32).to_be_bytes()[..], kind, data, &checksum.to_be_bytes()].concat()
    };
    let header = [&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff][..], &[8, 6, 0, 0, 0]].concat();
    let header = chunk(b"IHDR", &header, crc32(&[b"IHDR", header.as_slice()].concat()));
    let idat = chunk(b"IDAT", &[], crc32(b"IDAT"));
    let png = [&b"\x89PNG\r\n\x1a\n"[..], &header, &idat].concat();
    let gif = [&b"GIF89a\xff\xff\xff\xff\0\0\0\x2c\0\0\0\0\xff\xff\xff\xff\0\x08"[..], &[0; 8]].concat();
    let frame = [0xff, 0xc2, 0, 17, 8, 0xff, 0xdc, 0xff, 0xdc, 3, 1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0];
    let scan = [0xff, 0xda, 0, 12, 3, 1, 0, 2, 0, 3, 0, 0, 0, 0];
    let jpeg = [&[0xff, 0xd8][..], &frame, &scan, &[0xff, 0xd9]].concat();
    let bits: u32 = 0x3ffe | (0x3ffe << 14);
    let webp = [&b"RIFF\x16\0\0\0WEBPVP8L\x0a\0\0\0\x2f"[..], &bits.to_le_bytes(), &[0; 5]].concat();
    for (format, bytes) in
        [(ImageFormat::Png, png), (ImageFormat::Gif, gif), (ImageFormat::Jpeg, jpeg), (ImageFormat::WebP, webp)]
    {
        assert_eq!(ImageFormat::detect(&bytes), Some(format));
        let error = RgbImage::decode(&bytes, &ImageLimits::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidImage);
        let named = error.message().contains("too many pixels");
        assert!(named, "{format:?} was refused for another reason: {error}");
    }
}

#[test]
fn a_small_frame_cannot_bring_a_large_one() {
    // The screen is 1 x 1, the frame claims 65,535 x 65,535.
    let gif =
        [&b"GIF89a\x01\0\x01\0\x80\0\0\xff\xff\xff\0\0\0\x2c\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x44\x01\0\x3b"[..]]
            .concat();
    assert!(RgbImage::decode(&gif, &ImageLimits::default()).is_err());
}

#[test]
fn a_progressive_jpeg_of_many_scans_is_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images");
    let bytes = std::fs::read(folder.join("progressive.jpg")).unwrap();
    let limits = ImageLimits { max_jpeg_scans: 3, ..ImageLimits::default() };
    let error = RgbImage::decode(&bytes, &limits).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidImage);
    assert!(error.to_string().contains("scan"), "{error}");
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
        crc
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_after_a_signature_never_panic(
        signature in 0usize..4, body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let signatures: [&[u8]; 4] =
            [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x40\0\0\0WEBPVP8 ", b"GIF89a\x08\0\x08\0"];
        try_decode(&[signatures[signature], &body].concat(), "arbitrary");
    }

    #[test]
    fn arbitrary_pixels_are_processed_whole(width in 1u32..90, height in 1u32..90, seed in any::<u32>()) {
        let pixels = (0..width * height * 3).map(|index| (index.wrapping_mul(seed) >> 11) as u8).collect();
        let config = ImageProcessorConfig { min_pixels: 1024, max_pixels: 40_000, ..ImageProcessorConfig::default() };
        let processor = ImageProcessor::new(config).unwrap();
        let image = processor.process(RgbImage::new(width, height, pixels).unwrap()).unwrap();
        let patches = consort_core::ImageSource::patches(&image).unwrap();
        prop_assert!(patches.iter().all(|value| (-1.0..=1.0).contains(value)));
    }
}
