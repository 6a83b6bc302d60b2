//! Damaged model files: a typed error, or an engine that computes; never a panic.

use std::fs;
use std::sync::Arc;

use consort_behavior::fixture::{MakeEngine, Random, Setup};
use consort_behavior::{Case, Failure, Outcome};
use consort_core::{AdapterSet, Device, DevicePolicy, ErrorKind, Position, Result, Step, StepInput, Want};

use super::native::Files;

/// How a file is damaged.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// One to four bits of metadata or of the tensors' table.
    Header,
    /// One to four bits anywhere.
    Anywhere,
    /// A number in the header replaced by an extreme one.
    Extreme,
    /// The end missing.
    Truncated,
}

const BATCHES: u64 = 4;
const EACH: u64 = 25;

/// How an engine is made of files.
pub type MakeOf = fn(&Files) -> MakeEngine;

/// Cases of `BATCHES` · `EACH` files for each kind of damage to the text model and, if there is one, the vision tower.
pub fn cases(files: &Files, make: MakeOf) -> Vec<Case> {
    let mut cases = Vec::new();
    for damage in [Damage::Header, Damage::Anywhere, Damage::Extreme, Damage::Truncated] {
        for vision in [false, true] {
            for batch in 0..BATCHES {
                let part = if vision { "vision" } else { "text" };
                let name = format!("damaged_{part}_file::{}_{batch}", format!("{damage:?}").to_lowercase());
                let files = files.clone();
                let missing = (vision && files.vision.is_none()).then_some("image_input");
                cases.push(Case::new(name, missing, move || run(&files, make, damage, vision, batch)));
            }
        }
    }
    cases
}

/// Where the tensors' data begins, near enough: everything before is metadata and the table.
fn header(bytes: &[u8], file: &std::path::Path) -> Result<usize> {
    let gguf = consort_gguf::Gguf::open(file)?;
    let data: u64 = gguf.tensors().map(consort_gguf::TensorInfo::byte_len).sum();
    Ok(bytes.len().saturating_sub(data as usize).max(64))
}

fn damaged(bytes: &[u8], header: usize, damage: Damage, random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    match damage {
        Damage::Header | Damage::Anywhere => {
            let end = if matches!(damage, Damage::Header) { header } else { bytes.len() };
            for _ in 0..1 + random.below(4) {
                bytes[random.below(end)] ^= 1 << random.below(8);
            }
        }
        Damage::Extreme => {
            let at = random.below(header - 8);
            let extremes = [0, 1, u64::MAX, u64::MAX / 2, 1 << 32, 1 << 62, u64::from(u32::MAX), 0x8000_0000];
            let value = extremes[random.below(extremes.len())].to_le_bytes();
            let width = [4, 8][random.below(2)];
            bytes[at..at + width].copy_from_slice(&value[..width]);
        }
        Damage::Truncated => bytes.truncate(random.below(bytes.len())),
    }
    bytes
}

fn run(files: &Files, make: MakeOf, damage: Damage, vision: bool, batch: u64) -> Outcome {
    let original = if vision { files.vision.clone().ok_or("no vision tower")? } else { files.text.clone() };
    let bytes = fs::read(&original).map_err(|error| error.to_string())?;
    let header = header(&bytes, &original)?;
    let name = format!("{vision}-{damage:?}-{batch}.gguf");
    let path = original.with_file_name(name);
    let mut random = Random::new(1000 * batch + damage as u64 + if vision { 17 } else { 0 });
    for file in 0..EACH {
        // A new file each time: the old one may still be mapped.
        let _ = fs::remove_file(&path);
        fs::write(&path, damaged(&bytes, header, damage, &mut random)).map_err(|error| error.to_string())?;
        let mut broken = files.clone();
        if vision {
            broken.vision = Some(path.clone());
        } else {
            broken.text = path.clone();
        }
        tried(&broken, make).map_err(|failure| failure.during(&format!("file {file} of batch {batch}")))?;
    }
    let _ = fs::remove_file(&path);
    Ok(())
}

fn tried(files: &Files, make: MakeOf) -> Outcome {
    let setup = Setup { policy: DevicePolicy::Named(Device::Cpu), sequence_budget: Some(64 << 20) };
    let mut engine = match make(files)(&setup) {
        Ok(engine) => engine,
        Err(error) => {
            return match error.kind() {
                ErrorKind::InvalidModel | ErrorKind::InvalidTokenizer | ErrorKind::Unsupported => Ok(()),
                _ => Err(Failure::from(error).during("a damaged file must be an invalid model")),
            };
        }
    };
    let seq = engine.open(&AdapterSet::none())?;
    let positions: Vec<_> = (0..3).map(Position::text).collect();
    let tokens = [1, 2, 3].map(|token| token.min(engine.info().vocab_size as u32 - 1));
    let step = Step { seq, input: StepInput::Tokens(&tokens), positions: &positions, want: Want::Last };
    let ticket = engine.submit(&[step])?;
    engine.collect(ticket)?;
    if engine.capability().image_input {
        // Small, so that a tower whose shape was damaged is tried and not waited for.
        let picture = consort_behavior::Picture::seeded(4, 4, 3);
        if let Ok(mut job) = engine.begin_image(Arc::clone(&picture)) {
            while let Ok(consort_core::ImageProgress::Pending(again)) = engine.advance_image(job) {
                job = again;
            }
        }
    }
    Ok(())
}
