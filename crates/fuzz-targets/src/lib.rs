//! What the fuzzers run: one function a target, from bytes to nothing. A finding is a panic, an abort, or too much memory
//! or time.
//!
//! The fuzzers themselves are in `fuzz/`, outside the workspace, since they need a nightly compiler. The functions are here,
//! so that an ordinary test replays the committed inputs (`tests/corpus.rs`).
//!
//! Inputs of several parts begin with the lengths of all parts but the last, each a little-endian `u16`; see [`parts`].
//!
//! ```
//! assert_eq!(consort_fuzz_targets::parts(b"\x01\0\x02\0abbccc"), [b"a".as_slice(), b"bb", b"ccc"]);
//! consort_fuzz_targets::reply(b"\x00\0<tool_call>");
//! ```
// A finding must be a panic.
#![allow(clippy::unwrap_used)]
#![forbid(unsafe_code)]

mod adapter;
mod gguf;
mod grammar;
mod image;
mod reply;
mod template;
mod tokenizer;

pub use adapter::{adapter, fitted};
pub use gguf::gguf;
pub use grammar::grammar;
pub use image::image;
pub use reply::reply;
pub use template::template;
pub use tokenizer::tokenizer;

/// A target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets, under the names of their folders in `fuzz/corpus/`.
pub const TARGETS: [Target; 7] = [
    ("adapter", adapter),
    ("gguf", gguf),
    ("grammar", grammar),
    ("image", image),
    ("reply", reply),
    ("template", template),
    ("tokenizer", tokenizer),
];

/// The parts of an input. What the lengths announce beyond the end is missing.
#[must_use]
pub fn parts<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let lengths = N.saturating_sub(1);
    let (header, mut rest) = data.split_at(data.len().min(2 * lengths));
    let mut parts = [rest; N];
    for (index, part) in parts.iter_mut().enumerate().take(lengths) {
        let length = header
            .get(2 * index..2 * index + 2)
            .map_or(0, |bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])));
        (*part, rest) = rest.split_at(length.min(rest.len()));
    }
    if let Some(last) = parts.last_mut() {
        *last = rest;
    }
    parts
}

/// The inverse of [`parts`], for seeds.
///
/// # Panics
/// When a part but the last is longer than a `u16` can say.
#[must_use]
pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    let (last, others) = parts.split_last().unwrap();
    let mut data: Vec<u8> = others.iter().flat_map(|part| u16::try_from(part.len()).unwrap().to_le_bytes()).collect();
    others.iter().chain([last]).for_each(|part| data.extend_from_slice(part));
    data
}
