//! The servers that compute the model, from the file and the flags before it.

#[cfg(not(feature = "vllm"))]
pub(super) use absent::model;
#[cfg(feature = "vllm")]
pub(super) use present::{apply, model};

#[cfg(not(feature = "vllm"))]
mod absent {
    use consort::RemoteModel;
    use consort::server::Config;
    use consort_core::{Error, ErrorKind, Result};

    /// # Errors
    /// Servers are named.
    pub(in crate::serve) fn model(config: &Config) -> Result<Option<RemoteModel>> {
        if config.remote.urls.is_empty() {
            return Ok(None);
        }
        Err(Error::new(ErrorKind::Unsupported, "vLLM was not compiled in: build with the feature `vllm`")
            .with_context("key", "remote.urls"))
    }
}

#[cfg(feature = "vllm")]
mod present {
    use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
    use std::time::Duration;

    use consort::RemoteModel;
    use consort::server::{Config, RemoteSettings};
    use consort::vllm::{AdapterShare, ApiKey, Endpoint, Retries, Timeouts};
    use consort_core::{Error, Result};

    use crate::model_args::RemoteArgs;

    /// Flags go before the file.
    pub(in crate::serve) fn apply(far: &RemoteArgs, remote: &mut RemoteSettings) {
        if far.is_asked() {
            remote.urls = far.url.iter().map(ToString::to_string).collect();
            if far.url_key_env.is_some() || far.url_key_file.is_some() {
                (remote.key_env, remote.key_file) = (far.url_key_env.clone(), far.url_key_file.clone());
            }
            remote.model = far.url_model.clone().or(remote.model.take());
            remote.ca_file = far.url_ca.clone().or(remote.ca_file.take());
            if let Some(share) = far.share() {
                remote.adapter_folder = Some(share.local);
                remote.adapter_folder_there = Some(share.remote);
            }
        }
    }

    /// The servers that the configuration names.
    ///
    /// # Errors
    /// Addresses that are none, a key that is not there.
    pub(in crate::serve) fn model(config: &Config) -> Result<Option<RemoteModel>> {
        let settings = &config.remote;
        let at = |key: &'static str| move |error: Error| error.with_context("key", key);
        let urls = settings
            .urls
            .iter()
            .map(|url| url.parse())
            .collect::<Result<Vec<Endpoint>>>()
            .map_err(at("remote.urls"))?;
        if urls.is_empty() {
            return Ok(None);
        }
        let api_key = match (&settings.key_env, &settings.key_file) {
            (Some(name), _) => Some(ApiKey::from_env(name).map_err(at("remote.key_env"))?),
            (None, Some(path)) => Some(ApiKey::from_file(path).map_err(at("remote.key_file"))?),
            (None, None) => None,
        };
        let adapters = settings.adapter_folder.clone().map(|local| {
            let remote = settings.adapter_folder_there.clone().unwrap_or_else(|| local.clone());
            AdapterShare { local, remote }
        });
        let default = RemoteModel::new(urls);
        let seconds =
            |given: Option<NonZeroU64>, default| given.map_or(default, |value| Duration::from_secs(value.get()));
        Ok(Some(RemoteModel {
            api_key,
            adapters,
            model: settings.model.clone(),
            files: config.model.path.clone(),
            authorities: settings.ca_file.clone(),
            namespace: settings.namespace.clone(),
            max_logprobs: settings.max_logprobs,
            min_prompt_tokens: settings.min_prompt_tokens.map(NonZeroUsize::get),
            prompt_logprobs_with_adapters: settings.prompt_logprobs_with_adapters,
            timeouts: Timeouts {
                connect: seconds(settings.connect_seconds, default.timeouts.connect),
                first_token: seconds(settings.first_token_seconds, default.timeouts.first_token),
                token: seconds(settings.token_seconds, default.timeouts.token),
                ..default.timeouts
            },
            retries: Retries {
                attempts: settings.attempts.map_or(default.retries.attempts, NonZeroU32::get),
                ..default.retries
            },
            ..default
        }))
    }
}
