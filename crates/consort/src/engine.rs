//! A model's parts by themselves: the engine without a scheduler, the tokenizer without weights.

use std::path::Path;

use consort_core::{Engine, Error, ErrorKind, Result};
use consort_gguf::Gguf;
use consort_text::{ChatTemplate, Tokenizer};

use crate::files::{LARGEST_JSON, read_at_most};
use crate::load::{Backend, LoadConfig, ModelFiles, backend_for};

/// Opens the engine alone, on this thread: tokens in, logits out. For measurements; an application wants
/// [`load`](crate::load), which adds the scheduler, the tokenizer and the template.
///
/// # Errors
/// As [`load`](crate::load).
pub fn open_engine(config: &LoadConfig) -> Result<Box<dyn Engine>> {
    match config.backend.or_else(|| backend_for(config.policy)) {
        Some(Backend::Native) => native(config),
        Some(Backend::Llamacpp) => llamacpp(config),
        Some(Backend::Vllm) => {
            Err(Error::new(ErrorKind::Unsupported, "a server's engine cannot be had by itself").with_backend("vllm"))
        }
        None => {
            Err(Error::new(ErrorKind::Unsupported, "no backend was compiled in: build with a feature such as `native`"))
        }
    }
}

#[cfg(feature = "native")]
fn native(config: &LoadConfig) -> Result<Box<dyn Engine>> {
    let engine = consort_native::NativeEngine::load(crate::load::native_config(config))?;
    Ok(Box::new(engine))
}

#[cfg(not(feature = "native"))]
fn native(_config: &LoadConfig) -> Result<Box<dyn Engine>> {
    Err(Error::new(ErrorKind::Unsupported, "the native backend was not compiled in: build with the feature `native`"))
}

#[cfg(feature = "llamacpp")]
fn llamacpp(config: &LoadConfig) -> Result<Box<dyn Engine>> {
    let engine = consort_llamacpp::LlamacppEngine::load(crate::load::llamacpp_config(config))?;
    Ok(Box::new(engine))
}

#[cfg(not(feature = "llamacpp"))]
fn llamacpp(_config: &LoadConfig) -> Result<Box<dyn Engine>> {
    Err(Error::new(ErrorKind::Unsupported, "llama.cpp was not compiled in: build with the feature `llamacpp`"))
}

/// The chat template that came with a model, if one did; the weights are not read.
///
/// # Errors
/// [`ErrorKind::InvalidTemplate`] when it does not parse, [`ErrorKind::NotFound`] and [`ErrorKind::InvalidModel`] for files
/// that are not there or wrong.
pub fn open_template(model: &ModelFiles) -> Result<Option<ChatTemplate>> {
    let gguf = match model {
        ModelFiles::Bundled => Gguf::from_static(crate::bundled::TEXT)?,
        ModelFiles::Files { text, .. } => Gguf::open(text)?,
    };
    gguf.metadata().get_str("tokenizer.chat_template")?.map(ChatTemplate::new).transpose()
}

/// The tokenizer and, if there is one, the chat template that came with a model; the weights are not read.
///
/// # Errors
/// As [`open_template`], and [`ErrorKind::InvalidTokenizer`].
pub fn open_text(model: &ModelFiles) -> Result<(Tokenizer, Option<ChatTemplate>)> {
    let gguf = match model {
        ModelFiles::Bundled => Gguf::from_static(crate::bundled::TEXT)?,
        ModelFiles::Files { text, .. } => Gguf::open(text)?,
    };
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let template = tokenizer.chat_template().map(ChatTemplate::new).transpose()?;
    Ok((tokenizer, template))
}

/// The tokenizer at `path`, without the weights: a GGUF file, a `tokenizer.json` (with the `tokenizer_config.json` beside it,
/// if there is one), or a folder that holds either. `None`: the bundled model's.
///
/// # Errors
/// [`ErrorKind::NotFound`] when nothing is there, [`ErrorKind::InvalidTokenizer`] and [`ErrorKind::InvalidModel`] for files
/// that are wrong.
pub fn open_tokenizer(path: Option<&Path>) -> Result<Tokenizer> {
    let Some(path) = path else { return Tokenizer::from_gguf(&Gguf::from_static(crate::bundled::TEXT)?) };
    let in_folder = path.join("tokenizer.json");
    let json = if path.is_dir() && in_folder.exists() { &in_folder } else { path };
    let outcome = if json.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
        let config = json.with_file_name("tokenizer_config.json");
        let read = |path: &Path| read_at_most(path, LARGEST_JSON, ErrorKind::InvalidTokenizer);
        let config = config.exists().then(|| read(&config)).transpose()?;
        Tokenizer::from_json(&read(json)?, config.as_deref())
    } else {
        // Only which text model it is matters here; several vision towers beside it are no ambiguity.
        match ModelFiles::find(path, Some(path))? {
            ModelFiles::Files { text, .. } => Tokenizer::from_gguf(&Gguf::open(&text)?),
            ModelFiles::Bundled => Tokenizer::from_gguf(&Gguf::from_static(crate::bundled::TEXT)?),
        }
    };
    outcome.map_err(|error| error.with_context("tokenizer", path.display().to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use consort_core::SpecialTokens;

    use super::*;

    #[test]
    fn every_source_gives_the_same_tokenizer() {
        let etude = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/etude");
        let text = "<|im_start|>user\nWhat colour is the circle?<|im_end|>\n";
        let bundled = open_tokenizer(None).unwrap().encode(text, SpecialTokens::Parse).unwrap();
        assert!(bundled.len() > 8);
        for path in ["gguf/etude-Q8_0.gguf", "gguf", "tokenizer.json", "."] {
            let found = open_tokenizer(Some(&etude.join(path))).unwrap();
            assert_eq!(found.encode(text, SpecialTokens::Parse).unwrap(), bundled, "{path}");
        }
        assert_eq!(open_tokenizer(Some(&etude.join("no.gguf"))).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(open_tokenizer(Some(&etude.join("no.json"))).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(open_tokenizer(Some(&etude.join("config.json"))).unwrap_err().kind(), ErrorKind::InvalidTokenizer);
    }
}
