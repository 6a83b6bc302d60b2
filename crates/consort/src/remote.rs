//! A model that a server computes: vLLM, by address.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use consort_core::{Error, ErrorKind, ModelBackend, ModelInfo, Result};
use consort_scheduler::FrontEnd;
use consort_text::{ChatTemplate, Tokenizer};
use consort_vision::{ImageProcessor, ImageProcessorConfig};
use consort_vllm::{AdapterShare, ApiKey, Endpoint, Retries, Timeouts, VllmConfig, VllmRemoteBackend};

use crate::files::{LARGEST_JSON, read_at_most};
use crate::load::{LoadConfig, ModelFiles, front_end};

/// The largest file of certificates that is read, in bytes.
const LARGEST_AUTHORITIES: u64 = 4 << 20;

/// Where a model is computed, when it is not here.
#[derive(Debug, Clone)]
pub struct RemoteModel {
    /// The servers, which are replicas of one model.
    pub endpoints: Vec<Endpoint>,
    /// The key that they demand.
    pub api_key: Option<ApiKey>,
    /// The model's name there. `None`: the only one.
    pub model: Option<String>,
    /// The model's files, when they are at hand: a Hugging Face folder, or GGUF. Of them only the tokenizer, the template and
    /// the image processor are used. Without them the servers tokenize.
    pub files: Option<PathBuf>,
    /// Where adapters are handed over.
    pub adapters: Option<AdapterShare>,
    /// A file of certificates of authorities that are trusted besides the system's.
    pub authorities: Option<PathBuf>,
    /// Separates this application's prefixes from those of others on the same servers.
    pub namespace: String,
    /// The most log probabilities that a position reports there; `None`: vLLM's default.
    pub max_logprobs: Option<u32>,
    /// The shortest prompt that is sent; `None`: two tokens.
    pub min_prompt_tokens: Option<usize>,
    /// Whether log probabilities of prompts are asked for where adapters are used.
    pub prompt_logprobs_with_adapters: bool,
    /// Patience.
    pub timeouts: Timeouts,
    /// Persistence.
    pub retries: Retries,
}

impl RemoteModel {
    /// The defaults for these servers.
    #[must_use]
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        Self {
            endpoints,
            api_key: None,
            model: None,
            files: None,
            adapters: None,
            authorities: None,
            namespace: String::new(),
            max_logprobs: None,
            min_prompt_tokens: None,
            prompt_logprobs_with_adapters: false,
            timeouts: Timeouts::default(),
            retries: Retries::default(),
        }
    }

    /// How the servers are connected to.
    ///
    /// # Errors
    /// What reading the model's files and the certificates gives.
    pub fn config(&self) -> Result<VllmConfig> {
        let default = VllmConfig::new(self.endpoints.clone());
        let read = |path| read_at_most(path, LARGEST_AUTHORITIES, ErrorKind::InvalidConfig);
        let authorities = self.authorities.as_deref().map(read).transpose()?;
        Ok(VllmConfig {
            api_key: self.api_key.clone(),
            model: self.model.clone(),
            front_end: self.files.as_deref().map(front_end_at).transpose()?.unwrap_or_default(),
            model_info: None::<ModelInfo>,
            adapters: self.adapters.clone(),
            authorities: authorities.map(Into::into),
            namespace: self.namespace.clone(),
            max_logprobs: self.max_logprobs.unwrap_or(default.max_logprobs),
            min_prompt_tokens: self.min_prompt_tokens.unwrap_or(default.min_prompt_tokens),
            prompt_logprobs_with_adapters: self.prompt_logprobs_with_adapters,
            timeouts: self.timeouts,
            retries: self.retries,
            ..default
        })
    }

    /// Connects.
    ///
    /// # Errors
    /// Those of [`config`](Self::config) and of [`VllmRemoteBackend::connect`].
    pub fn connect(&self) -> Result<VllmRemoteBackend> {
        VllmRemoteBackend::connect(self.config()?)
    }
}

/// The remote model of a configuration.
///
/// # Errors
/// There is none, the device policy does not admit it, and what connecting gives.
pub(crate) fn load(config: &LoadConfig) -> Result<Arc<dyn ModelBackend>> {
    let backend = connect(config)?;
    config.policy.admit(&backend.evidence())?;
    Ok(backend)
}

/// The same beside a backend that computes here, which the policy is about.
///
/// # Errors
/// There is none, and what connecting gives.
pub(crate) fn connect(config: &LoadConfig) -> Result<Arc<dyn ModelBackend>> {
    let remote = config.remote.as_ref().ok_or_else(|| {
        Error::new(ErrorKind::InvalidConfig, "name the server of the model (`--vllm`, or `urls` under `[remote]`)")
            .with_context("backend", "vllm")
    })?;
    // Beside an engine here, its files are the model's.
    let files = match (&remote.files, &config.model, config.is_remote()) {
        (None, ModelFiles::Files { text, .. }, false) => Some(text.clone()),
        (files, _, _) => files.clone(),
    };
    let mut settings = RemoteModel { files, ..remote.clone() }.config()?;
    if !config.is_remote() && settings.front_end.tokenizer.is_none() {
        settings.front_end = front_end(&config.model)?;
    }
    Ok(Arc::new(VllmRemoteBackend::connect(settings)?))
}

/// Tokenizer, template and image processor at a path: a folder as it is on Hugging Face, or GGUF.
///
/// # Errors
/// What those files give.
pub fn front_end_at(path: &Path) -> Result<FrontEnd> {
    if !path.join("tokenizer.json").exists() {
        return front_end(&ModelFiles::find(path, None)?);
    }
    let optional = |name: &str, kind| -> Result<Option<Vec<u8>>> {
        let path = path.join(name);
        if path.exists() { read_at_most(&path, LARGEST_JSON, kind).map(Some) } else { Ok(None) }
    };
    let settings = optional("tokenizer_config.json", ErrorKind::InvalidTokenizer)?;
    let words = read_at_most(&path.join("tokenizer.json"), LARGEST_JSON, ErrorKind::InvalidTokenizer)?;
    let tokenizer = Tokenizer::from_json(&words, settings.as_deref())?;
    let template = match optional("chat_template.jinja", ErrorKind::InvalidTemplate)? {
        Some(bytes) => {
            let text = String::from_utf8(bytes).map_err(|source| {
                Error::new(ErrorKind::InvalidTemplate, "the chat template is not UTF-8")
                    .with_context("path", path.join("chat_template.jinja").display().to_string())
                    .with_source(source)
            })?;
            Some(ChatTemplate::new(&text)?)
        }
        None => tokenizer.chat_template().map(ChatTemplate::new).transpose()?,
    };
    let image_processor = optional("preprocessor_config.json", ErrorKind::InvalidModel)?
        .map(|bytes| ImageProcessor::new(ImageProcessorConfig::from_json(&bytes)?))
        .transpose()?;
    Ok(FrontEnd { tokenizer: Some(tokenizer), template, image_processor })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use consort_core::SpecialTokens;

    use super::*;

    #[test]
    fn both_forms_of_a_models_files_give_the_same_front_end() {
        let etude = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/etude");
        let text = "<|im_start|>user\nWhat colour is the circle?<|im_end|>\n";
        let tokens = |path: &Path| {
            let front = front_end_at(path).unwrap();
            assert!(front.template.is_some() && front.image_processor.is_some(), "{}", path.display());
            front.tokenizer.unwrap().encode(text, SpecialTokens::Parse).unwrap()
        };
        assert_eq!(tokens(&etude), tokens(&etude.join("gguf")));
        assert_eq!(front_end_at(&etude.join("nothing")).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
