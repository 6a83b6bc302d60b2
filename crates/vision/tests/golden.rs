//! Holds the processor equal to transformers'. The cases were written by `golden/make_vision_cases.py`.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::path::{Path, PathBuf};

use consort_core::{ErrorKind, ImageSource, PatchGrid, Position};
use consort_vision::{
    ImageLimits, ImageProcessor, ImageProcessorConfig, MropeBuilder, RgbImage, Segment, Size, smart_resize,
};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn cases() -> Value {
    serde_json::from_slice(&std::fs::read(folder().join("vision_cases.json")).unwrap()).unwrap()
}

fn config(cases: &Value, name: &str) -> ImageProcessorConfig {
    ImageProcessorConfig::from_json(cases["configs"][name].to_string().as_bytes()).unwrap()
}

fn int(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
}

fn mix(x: u32, y: u32, c: u32) -> u32 {
    let v = x.wrapping_mul(374_761_393).wrapping_add(y.wrapping_mul(668_265_263));
    let v = v.wrapping_add(c.wrapping_mul(2_246_822_519));
    let v = (v ^ (v >> 13)).wrapping_mul(1_274_126_177);
    v ^ (v >> 16)
}

/// The same formulas as `synthesise` in the script.
fn synthesise(kind: &str, width: u32, height: u32) -> RgbImage {
    let level = |x: u32, y: u32, c: u32| match kind {
        "gradient" => [x * 255 / (width - 1).max(1), y * 255 / (height - 1).max(1), ((x + y) * 3) & 255][c as usize],
        "noise" => mix(x, y, c) & 255,
        "text" => {
            let ink = x % 12 < 9 && y % 20 < 13 && mix(x / 2, y / 2, 7) & 3 != 0;
            if ink { 16 * c } else { 250 - c }
        }
        "discs" => {
            let (dx, dy) = (i64::from(x % 40) - 20, i64::from(y % 40) - 20);
            if dx * dx + dy * dy < 250 { mix(x / 40, y / 40, c) & 255 } else { 200 }
        }
        other => panic!("unknown kind {other}"),
    };
    let mut pixels = Vec::with_capacity(width as usize * height as usize * 3);
    for y in 0..height {
        for x in 0..width {
            pixels.extend([0, 1, 2].map(|c| level(x, y, c) as u8));
        }
    }
    RgbImage::new(width, height, pixels).unwrap()
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn checksum(levels: &[u8]) -> u64 {
    let weight = |index: usize| (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    levels
        .iter()
        .enumerate()
        .fold(0u64, |sum, (index, level)| sum.wrapping_add(u64::from(*level).wrapping_mul(weight(index))))
}

#[test]
fn every_image_has_the_references_grid_and_values() {
    let cases = cases();
    let samples = std::fs::read(folder().join("vision_cases.bin")).unwrap();
    let level_samples = cases["level_samples"].as_u64().unwrap() as usize;
    let value_samples = cases["value_samples"].as_u64().unwrap() as usize;
    let (mut compared, mut within, mut identical, mut failures) = (0usize, 0usize, 0usize, Vec::new());
    let images = cases["images"].as_array().unwrap();
    for case in images {
        let name = case["name"].as_str().unwrap();
        let config = config(&cases, case["config"].as_str().unwrap());
        let processor = ImageProcessor::new(config).unwrap();
        let source = &case["source"];
        let image = if let Some(file) = source["file"].as_str() {
            processor.decode(std::fs::read(folder().join("images").join(file)).unwrap().into())
        } else {
            processor.process(synthesise(
                source["kind"].as_str().unwrap(),
                int(&source["width"]),
                int(&source["height"]),
            ))
        };
        let image = image.unwrap_or_else(|error| panic!("{name}: {error}"));
        let grid = &case["grid"];
        let expected = PatchGrid { t: int(&grid[0]), h: int(&grid[1]), w: int(&grid[2]), merge: image.grid().merge };
        assert_eq!(image.grid(), expected, "{name}");
        let values = image.patches().unwrap();
        assert_eq!(values.len() as u64, case["values"].as_u64().unwrap(), "{name}");
        assert_eq!(values.len(), image.grid().patches() * config.patch_len(), "{name}");

        let channel_len = config.patch_len() / 3;
        let to_level = |index: usize, value: f32| {
            let channel = index / channel_len % 3;
            ((value * config.image_std[channel] + config.image_mean[channel]) * 255.0).round() as u8
        };
        let levels: Vec<u8> = values.iter().enumerate().map(|(index, value)| to_level(index, *value)).collect();
        let seed = case["seed"].as_u64().unwrap();
        let mut at = case["offset"].as_u64().unwrap() as usize;
        let mut state = 2 * seed;
        let (mut case_within, mut furthest) = (0, 0u8);
        for _ in 0..level_samples {
            let index = (splitmix(&mut state) % values.len() as u64) as usize;
            let channel = index / channel_len % 3;
            let reference = (f32::from(samples[at]) / 255.0 - config.image_mean[channel]) / config.image_std[channel];
            case_within += usize::from((reference - values[index]).abs() <= 1.0 / 255.0);
            furthest = furthest.max(levels[index].abs_diff(samples[at]));
            at += 1;
        }
        let mut state = 2 * seed + 1;
        for _ in 0..value_samples {
            let index = (splitmix(&mut state) % values.len() as u64) as usize;
            let reference = f32::from_le_bytes(samples[at..at + 4].try_into().unwrap());
            case_within += usize::from((reference - values[index]).abs() <= 1.0 / 255.0);
            at += 4;
        }
        compared += level_samples + value_samples;
        within += case_within;
        let same = checksum(&levels).to_string() == case["checksum"].as_str().unwrap();
        identical += usize::from(same);
        let share = case_within as f64 / (level_samples + value_samples) as f64;
        if share < 0.999 || !same {
            failures.push(format!("{name}: {:.2}% within 1/255, furthest level {furthest}", share * 100.0));
        }
    }
    println!("{} images, {identical} identical, {within} of {compared} sampled values within 1/255", images.len());
    assert!(failures.is_empty(), "{}\n{}", failures.len(), failures.join("\n"));
    assert!(images.len() >= 60 && within == compared);
}

#[test]
fn every_size_is_the_references() {
    let cases = cases();
    let sizes = cases["sizes"].as_array().unwrap();
    for row in sizes {
        let config = config(&cases, row[0].as_str().unwrap());
        let size = smart_resize(Size { width: int(&row[1]), height: int(&row[2]) }, &config).unwrap();
        assert_eq!((size.width, size.height), (int(&row[3]), int(&row[4])), "{row}");
    }
    assert!(sizes.len() >= 500);
}

#[test]
fn every_position_is_the_references() {
    let cases = cases();
    let rows = cases["positions"].as_array().unwrap();
    for row in rows {
        let mut builder = MropeBuilder::new();
        for segment in row["segments"].as_array().unwrap() {
            let segment = match segment.as_u64() {
                Some(tokens) => Segment::Text(tokens as usize),
                None => Segment::Image(PatchGrid {
                    t: 1,
                    h: int(&segment[0]),
                    w: int(&segment[1]),
                    merge: int(&row["merge"]),
                }),
            };
            builder.push(segment).unwrap();
        }
        let [t, h, w] = [0, 1, 2].map(|component| row["positions"][component].as_array().unwrap());
        let expected: Vec<Position> =
            t.iter().zip(h).zip(w).map(|((t, h), w)| Position { t: int(t), h: int(h), w: int(w) }).collect();
        assert_eq!(builder.positions(), expected, "{row}");
        assert_eq!(builder.next_position(), Position::text(int(&row["next"])), "{row}");
    }
    assert!(rows.len() >= 12);
}

#[test]
fn the_same_picture_in_another_file_has_the_same_hash() {
    let read = |name: &str| std::fs::read(folder().join("images").join(name)).unwrap().into();
    let processor = ImageProcessor::new(ImageProcessorConfig::default()).unwrap();
    let png = processor.decode(read("rgb.png")).unwrap();
    let webp = processor.decode(read("lossless.webp")).unwrap();
    assert_eq!(png.content_hash(), webp.content_hash());
    assert_ne!(png.encoded(), webp.encoded());
    assert_ne!(png.content_hash(), processor.decode(read("grey.png")).unwrap().content_hash());
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let cmyk = std::fs::read(folder().join("images/cmyk.jpg")).unwrap();
    let error = RgbImage::decode(&cmyk, &ImageLimits::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidImage);
    assert!(error.to_string().contains("CMYK"), "{error}");
}
