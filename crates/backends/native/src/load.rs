//! From files to an engine's parts.

use std::sync::Arc;

use consort_core::{Error, ErrorKind, ModelInfo, Result, TokenId};
use consort_gguf::Gguf;

use crate::config::{ModelSource, NativeConfig};
use crate::model::text::TextModel;
use crate::model::vision::VisionModel;

/// A model, opened.
pub(crate) struct Loaded {
    pub(crate) text: TextModel,
    pub(crate) vision: Option<VisionModel>,
    pub(crate) info: ModelInfo,
    /// Bytes of all tensors.
    pub(crate) bytes: u64,
}

fn open(source: &ModelSource) -> Result<Arc<Gguf>> {
    let file = match source {
        ModelSource::Path(path) => Gguf::open(path)?,
        ModelSource::Paths(paths) => Gguf::open_all(paths)?,
        ModelSource::Static(bytes) => Gguf::from_static(bytes)?,
    };
    Ok(Arc::new(file))
}

/// Opens the files and holds them against each other.
pub(crate) fn load(config: &NativeConfig) -> Result<Loaded> {
    config.check()?;
    let file = open(&config.text)?;
    let text = TextModel::open(&file).map_err(|error| error.with_context("file", "text model"))?;
    let vision_file = config.vision.as_ref().map(open).transpose()?;
    let vision = vision_file
        .as_ref()
        .map(|file| {
            VisionModel::open(file, text.shape.hidden).map_err(|error| error.with_context("file", "vision tower"))
        })
        .transpose()?;

    let files: Vec<&Gguf> = std::iter::once(&file).chain(&vision_file).map(Arc::as_ref).collect();
    let sum = |of: fn(&consort_gguf::TensorInfo) -> u64| {
        files.iter().flat_map(|file| file.tensors()).fold(0_u64, |sum, info| sum.saturating_add(of(info)))
    };
    let metadata = file.metadata();
    let tokens = Vocabulary::of(&file);
    let info = ModelInfo {
        name: metadata.get_str("general.name")?.unwrap_or("unnamed").to_owned(),
        architecture: metadata.require_str("general.architecture")?.to_owned(),
        vocab_size: text.shape.vocab,
        hidden_size: text.shape.hidden,
        layers: text.shape.layers.len(),
        context_length: text.shape.context,
        parameters: sum(consort_gguf::TensorInfo::elements),
        weight_type: file.bulk_type().to_string(),
        digest: digest(&files),
        stop_tokens: tokens.stops(text.shape.vocab)?,
        image_token: if vision.is_some() { tokens.find("<|image_pad|>") } else { None },
    };
    tracing::info!(
        name = info.name,
        layers = info.layers,
        hidden = info.hidden_size,
        weights = info.weight_type,
        vision = vision.is_some(),
        "opened a model"
    );
    Ok(Loaded { text, vision, info, bytes: sum(consort_gguf::TensorInfo::byte_len) })
}

/// One identity for all files.
fn digest(files: &[&Gguf]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for file in files {
        hasher.update(&file.digest());
    }
    *hasher.finalize().as_bytes()
}

/// The tokens of the file's tokenizer, if it has one.
struct Vocabulary<'a> {
    file: &'a Gguf,
    tokens: &'a [String],
}

impl<'a> Vocabulary<'a> {
    fn of(file: &'a Gguf) -> Self {
        Self { file, tokens: file.metadata().array_of_strings("tokenizer.ggml.tokens").unwrap_or_default() }
    }

    fn find(&self, text: &str) -> Option<TokenId> {
        self.tokens.iter().position(|token| token == text).and_then(|index| TokenId::try_from(index).ok())
    }

    /// What ends a reply: what the metadata say, and the family's two tokens.
    fn stops(&self, vocab: usize) -> Result<Vec<TokenId>> {
        let mut stops = Vec::new();
        for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
            if let Some(token) = self.file.metadata().get_u32(key)? {
                if token as usize >= vocab {
                    return Err(Error::new(
                        ErrorKind::InvalidModel,
                        format!("token {token} is beyond the vocabulary of {vocab}"),
                    )
                    .with_operation("native::load")
                    .with_context("key", key));
                }
                stops.push(token);
            }
        }
        let named = ["<|im_end|>", "<|endoftext|>"].iter().filter_map(|text| self.find(text));
        stops.extend(named.filter(|&token| (token as usize) < vocab));
        stops.sort_unstable();
        stops.dedup();
        Ok(stops)
    }
}
