//! Which model, on which engine and device: what every command asks that opens a model.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use consort::{Backend, LoadConfig, ModelFiles};
use consort_core::{Device, DevicePolicy, Error, Result};

/// Which device may compute.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum DeviceChoice {
    /// The processor.
    Cpu,
    /// Apple's GPU.
    Metal,
    /// The first NVIDIA GPU.
    Cuda,
    /// The first GPU through Vulkan.
    Vulkan,
    /// The first Vulkan driver that computes on the processor (lavapipe), to try Vulkan without a GPU.
    VulkanSoftware,
}

impl From<DeviceChoice> for Device {
    fn from(choice: DeviceChoice) -> Self {
        match choice {
            DeviceChoice::Cpu => Self::Cpu,
            DeviceChoice::Metal => Self::Metal,
            DeviceChoice::Cuda => Self::Cuda(0),
            DeviceChoice::Vulkan => Self::Vulkan(0),
            DeviceChoice::VulkanSoftware => Self::SoftwareVulkan(0),
        }
    }
}

/// Which device, and how much of the processor.
#[derive(Args, Clone, Debug, Default)]
pub struct DeviceArgs {
    /// Use this device and no other. Without it: an accelerator, or a refusal.
    #[arg(long, value_enum)]
    pub device: Option<DeviceChoice>,
    /// Threads that compute. Default: one for each core that this process may use.
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
}

impl DeviceArgs {
    /// The device policy that was asked for.
    pub fn policy(&self) -> DevicePolicy {
        self.device.map_or(DevicePolicy::AcceleratedOnly, |choice| DevicePolicy::Named(choice.into()))
    }
}

/// Which engine and device.
#[derive(Args, Clone, Debug)]
pub struct EngineArgs {
    /// The engine that runs the model. Default: the first compiled one; `consort doctor` lists them.
    #[arg(long, value_name = "NAME", value_parser = parse_backend)]
    pub backend: Option<Backend>,
    #[command(flatten)]
    pub on: DeviceArgs,
}

/// A backend's name on the command line. clap shows an error's text alone, without its context.
pub fn parse_backend(name: &str) -> Result<Backend, String> {
    name.parse().map_err(|error: Error| error.message().to_owned())
}

impl EngineArgs {
    /// How to open a model as was asked.
    pub fn load_config(&self, model: ModelFiles) -> LoadConfig {
        LoadConfig {
            backend: self.backend,
            policy: self.on.policy(),
            threads: self.on.threads,
            ..LoadConfig::new(model)
        }
    }
}

/// The servers that compute the model, when it is not computed here.
#[cfg(feature = "vllm")]
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "A model on a vLLM server")]
pub struct RemoteArgs {
    /// A vLLM server: http://HOST:PORT, https://…, grpc://… or grpcs://…. Repeat for replicas. With `--backend` of an engine
    /// here, servers answer what that one cannot take.
    #[arg(long, value_name = "URL")]
    pub url: Vec<consort::vllm::Endpoint>,
    /// The environment variable with the key that the servers demand.
    #[arg(long, value_name = "NAME", requires = "url", conflicts_with = "url_key_file")]
    pub url_key_env: Option<String>,
    /// A file with the key that the servers demand.
    #[arg(long, value_name = "FILE", requires = "url")]
    pub url_key_file: Option<PathBuf>,
    /// The model's name on the servers. Default: the only one that they have.
    #[arg(long, value_name = "NAME", requires = "url")]
    pub url_model: Option<String>,
    /// Certificates (PEM) of authorities that are trusted besides the system's.
    #[arg(long, value_name = "FILE", requires = "url")]
    pub url_ca: Option<PathBuf>,
    /// A folder that the servers see too, where adapters are handed over: HERE, or HERE=THERE.
    #[arg(long, value_name = "HERE[=THERE]", requires = "url")]
    pub url_adapters: Option<String>,
}

#[cfg(feature = "vllm")]
impl RemoteArgs {
    /// Whether a server is named.
    pub fn is_asked(&self) -> bool {
        !self.url.is_empty()
    }

    /// The folder where adapters are handed over.
    pub fn share(&self) -> Option<consort::vllm::AdapterShare> {
        self.url_adapters.as_deref().map(|text| {
            let (here, there) = text.split_once('=').unwrap_or((text, text));
            consort::vllm::AdapterShare { local: here.into(), remote: there.into() }
        })
    }

    /// The remote model, if a server is named. `files` is where the model's tokenizer is.
    ///
    /// # Errors
    /// A key that is not there.
    pub fn model(&self, files: Option<&std::path::Path>) -> Result<Option<consort::RemoteModel>> {
        use consort::vllm::ApiKey;

        if self.url.is_empty() {
            return Ok(None);
        }
        let api_key = match (&self.url_key_env, &self.url_key_file) {
            (Some(name), _) => Some(ApiKey::from_env(name)?),
            (None, Some(path)) => Some(ApiKey::from_file(path)?),
            (None, None) => None,
        };
        Ok(Some(consort::RemoteModel {
            api_key,
            adapters: self.share(),
            model: self.url_model.clone(),
            authorities: self.url_ca.clone(),
            files: files.map(std::path::Path::to_owned),
            ..consort::RemoteModel::new(self.url.clone())
        }))
    }
}

/// Which model, and on which engine and device.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    #[cfg(feature = "vllm")]
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// A GGUF file, or a folder that holds one and its mmproj. Default: the bundled etude.
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// The vision projector of `--model`. Default: the mmproj file in the model's folder, if there is one.
    #[arg(long, value_name = "FILE", requires = "model")]
    pub mmproj: Option<PathBuf>,
}

impl ModelArgs {
    /// The model's files.
    ///
    /// # Errors
    /// As [`ModelFiles::find`].
    pub fn files(&self) -> Result<ModelFiles> {
        match &self.model {
            // A server has the model; its tokenizer is read from where it is, in whichever form.
            #[cfg(feature = "vllm")]
            Some(_) if self.engine.backend.is_none_or(|backend| backend == Backend::Vllm) && self.remote.is_asked() => {
                Ok(ModelFiles::Bundled)
            }
            Some(path) => ModelFiles::find(path, self.mmproj.as_deref()),
            None => Ok(ModelFiles::Bundled),
        }
    }

    /// How to open it.
    ///
    /// # Errors
    /// As [`ModelArgs::files`].
    pub fn load_config(&self) -> Result<LoadConfig> {
        let config = self.engine.load_config(self.files()?);
        #[cfg(feature = "vllm")]
        let config = LoadConfig { remote: self.remote.model(self.model.as_deref())?, ..config };
        Ok(config)
    }
}
