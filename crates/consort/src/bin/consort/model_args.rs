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

/// Which model, and on which engine and device.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
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
            Some(path) => ModelFiles::find(path, self.mmproj.as_deref()),
            None => Ok(ModelFiles::Bundled),
        }
    }

    /// How to open it.
    ///
    /// # Errors
    /// As [`ModelArgs::files`].
    pub fn load_config(&self) -> Result<LoadConfig> {
        Ok(self.engine.load_config(self.files()?))
    }
}
