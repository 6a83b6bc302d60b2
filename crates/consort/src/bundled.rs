//! etude, the study model that is part of the program, with its two adapters and the demo's picture.
//!
//! What it is, how it was made and how well it sees stands in `models/etude/README.md`.

use consort_core::AdapterFiles;
use consort_gguf::Aligned;

macro_rules! model_file {
    ($path:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/etude/", $path))
    };
}

// Aligned, so that the weights are used in place.
static TEXT_FILE: Aligned<[u8; model_file!("gguf/etude-Q8_0.gguf").len()]> =
    Aligned(*model_file!("gguf/etude-Q8_0.gguf"));
static VISION_FILE: Aligned<[u8; model_file!("gguf/mmproj-etude-F16.gguf").len()]> =
    Aligned(*model_file!("gguf/mmproj-etude-F16.gguf"));

/// The text model, a Q8_0 GGUF.
pub static TEXT: &[u8] = &TEXT_FILE.0;
/// The vision tower, an F16 mmproj.
pub static VISION: &[u8] = &VISION_FILE.0;
/// The picture of the demo, a PNG.
pub static DEMO_PICTURE: &[u8] = model_file!("demo.png");

/// Conversations as the model reads them, special tokens spelled out: for perplexity and divergence. Some 3,600 tokens.
pub const EVALUATION_TEXT: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/etude/eval-small/conversations.txt"));

/// An adapter that is part of the program.
#[derive(Debug, Clone, Copy)]
pub struct BundledAdapter {
    /// The name by which the command line knows it.
    pub name: &'static str,
    config: &'static [u8],
    weights: &'static [u8],
}

impl BundledAdapter {
    /// Its two files, in PEFT's format.
    #[must_use]
    pub fn files(self) -> AdapterFiles {
        AdapterFiles::Bytes { config: self.config.into(), weights: self.weights.into() }
    }
}

/// The adapters that are part of the program.
pub const ADAPTERS: [BundledAdapter; 2] = [
    BundledAdapter {
        name: "pirate",
        config: model_file!("adapters/pirate/adapter_config.json"),
        weights: model_file!("adapters/pirate/adapter_model.safetensors"),
    },
    BundledAdapter {
        name: "butler",
        config: model_file!("adapters/butler/adapter_config.json"),
        weights: model_file!("adapters/butler/adapter_model.safetensors"),
    },
];

/// The bundled adapter of this name.
#[must_use]
pub fn adapter(name: &str) -> Option<BundledAdapter> {
    ADAPTERS.into_iter().find(|adapter| adapter.name == name)
}
