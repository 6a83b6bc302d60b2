//! The servers that compute the model, when it is not computed here.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The servers that compute the model. Without `urls` there are none. With `model.backend` of an engine here, they answer what
/// that one cannot take.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RemoteSettings {
    /// vLLM servers with the same model: `http://HOST:PORT`, `https://…`, `grpc://…` or `grpcs://…`.
    pub urls: Vec<String>,
    /// The environment variable with the key that they demand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_env: Option<String>,
    /// A file with that key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The model's name there. None: the only one that they have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Certificates (PEM) of authorities that are trusted besides the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// A folder that the servers see too, where adapters are handed over. None: they get none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_folder: Option<PathBuf>,
    /// Where the servers see it. None: at the same path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_folder_there: Option<PathBuf>,
    /// Separates this application's prefixes from those of others on the same servers.
    pub namespace: String,
    /// The most log probabilities that a position reports there (`--max-logprobs`). None: 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_logprobs: Option<u32>,
    /// The shortest prompt that is sent. None: two tokens; one ends the engine of some versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_prompt_tokens: Option<NonZeroUsize>,
    /// Whether log probabilities of prompts are asked for where adapters are used. On a processor that ends the engine of
    /// vLLM 0.32.
    pub prompt_logprobs_with_adapters: bool,
    /// Attempts of one request, the first one included. None: four.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<NonZeroU32>,
    /// How long connecting may take, in seconds. None: 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_seconds: Option<NonZeroU64>,
    /// How long a server may take to its first token, in seconds. None: 120.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_seconds: Option<NonZeroU64>,
    /// How long it may take from one token to the next, in seconds. None: 30.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_seconds: Option<NonZeroU64>,
}

impl RemoteSettings {
    /// Which key is wrong, and why.
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.key_env.is_some() && self.key_file.is_some() {
            return Err(("key_file", "the key comes from a file or from the environment, not from both"));
        }
        if self.adapter_folder_there.is_some() && self.adapter_folder.is_none() {
            return Err(("adapter_folder_there", "a folder there is one here as well: name `adapter_folder`"));
        }
        Ok(())
    }
}
