//! Opening a model on one of the compiled backends.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use consort_core::{Device, DevicePolicy, Error, ErrorKind, ImageSource, ModelBackend, Result};
use consort_gguf::{Gguf, ShardName};
use consort_scheduler::{FrontEnd, SchedulerConfig};
use consort_vision::{ImageProcessor, ImageProcessorConfig, ProjectorValues};

use crate::engine::open_text;
use crate::matrix::Verified;

/// A backend that was compiled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// The reference engine, on the processor.
    Native,
    /// llama.cpp, on the processor and on GPUs that it was compiled for.
    Llamacpp,
    /// A vLLM server, by address ([`LoadConfig::remote`]).
    Vllm,
}

impl Backend {
    /// Its short, stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Llamacpp => "llamacpp",
            Self::Vllm => "vllm",
        }
    }

    /// The kinds of device that it can be built for, and how far each was tried.
    #[must_use]
    pub fn devices(self) -> &'static [(&'static str, Verified)] {
        match self {
            Self::Native => &[("CPU", Verified::Suites)],
            Self::Llamacpp => &[
                ("CPU", Verified::Suites),
                ("Metal", Verified::Nobody),
                ("CUDA", Verified::Nobody),
                ("Vulkan", Verified::Software),
            ],
            Self::Vllm => &[("vLLM 0.32 on a CPU", Verified::Suites), ("vLLM on GPUs", Verified::Nobody)],
        }
    }
}

impl FromStr for Backend {
    type Err = Error;

    /// The compiled backend of that name.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`], with the names of those that were compiled in.
    fn from_str(name: &str) -> Result<Self> {
        let mut all = backends();
        if cfg!(feature = "vllm") {
            all.push(Self::Vllm);
        }
        all.iter().copied().find(|backend| backend.name() == name).ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|backend| backend.name()).collect();
            let message = format!("there is no such backend in this build, which has: {}", names.join(", "));
            Error::new(ErrorKind::Unsupported, message).with_context("backend", name)
        })
    }
}

/// The backends that were compiled in and compute here, in the order in which they are tried.
#[must_use]
pub fn backends() -> Vec<Backend> {
    let mut backends = Vec::new();
    if cfg!(feature = "native") {
        backends.push(Backend::Native);
    }
    if cfg!(feature = "llamacpp") {
        backends.push(Backend::Llamacpp);
    }
    backends
}

/// The first compiled backend that computes on what the policy asks for; where none does, the first, which then says why not.
pub(crate) fn backend_for(policy: DevicePolicy) -> Option<Backend> {
    let with_gpu = cfg!(any(feature = "metal", feature = "cuda", feature = "vulkan"));
    match policy {
        DevicePolicy::Named(Device::Cpu) => backends().first().copied(),
        _ if with_gpu => Some(Backend::Llamacpp),
        _ => backends().first().copied(),
    }
}

/// Which model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelFiles {
    /// etude, which is part of the program.
    Bundled,
    /// GGUF files.
    Files {
        /// The text model.
        text: PathBuf,
        /// The vision tower; without it the model reads only.
        vision: Option<PathBuf>,
    },
}

impl ModelFiles {
    /// The model at `path`, a GGUF file or a folder with exactly one that is no mmproj. Without `mmproj`, the one mmproj file
    /// that lies in the same folder is taken, if there is one. The shards of a model (`NAME-00001-of-00003.gguf`) count as one
    /// file, and any of them names it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is none, [`ErrorKind::InvalidConfig`] when there are several to choose from.
    pub fn find(path: &Path, mmproj: Option<&Path>) -> Result<Self> {
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let text = if path.is_dir() {
            let models = ggufs(folder, false)?;
            match models.as_slice() {
                [one] => one.clone(),
                [] => {
                    return Err(Error::new(ErrorKind::NotFound, "the folder holds no GGUF model")
                        .with_context("folder", folder.display().to_string()));
                }
                _ => return Err(several("models", folder, &models)),
            }
        } else if path.exists() {
            path.to_owned()
        } else {
            return Err(Error::new(ErrorKind::NotFound, "there is no such model file")
                .with_context("path", path.display().to_string()));
        };
        let vision = match mmproj {
            Some(path) => Some(path.to_owned()),
            None => match ggufs(folder, true)?.as_slice() {
                [] => None,
                [one] => Some(one.clone()),
                all => return Err(several("vision projectors (name one with --mmproj)", folder, all)),
            },
        };
        Ok(Self::Files { text, vision })
    }
}

fn ggufs(folder: &Path, mmproj: bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|source| Error::io(folder, source))? {
        let path = entry.map_err(|source| Error::io(folder, source))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        // Of a model's shards the first stands for all; the others are found from it.
        let is_later_shard = ShardName::parse(&path).is_some_and(|shard| shard.number > 1 && shard.sibling(1).exists());
        if name.ends_with(".gguf") && name.starts_with("mmproj") == mmproj && !is_later_shard {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn several(what: &str, folder: &Path, found: &[PathBuf]) -> Error {
    let names: Vec<_> =
        found.iter().map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned()).collect();
    Error::new(ErrorKind::InvalidConfig, format!("the folder holds several {what}: name one"))
        .with_context("folder", folder.display().to_string())
        .with_context("found", names.join(", "))
}

/// What [`load`] opens, and how.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// Which model.
    pub model: ModelFiles,
    /// On which backend; `None`: the first compiled one that the policy admits.
    pub backend: Option<Backend>,
    /// Which devices may compute.
    pub policy: DevicePolicy,
    /// Threads that compute; `None`: one for each core that this process may use.
    pub threads: Option<NonZeroUsize>,
    /// The scheduler's settings.
    pub scheduler: SchedulerConfig,
    /// The servers of the model. With a backend that computes here, they answer what that one cannot take
    /// ([`consort_overflow`]); without one, they answer everything.
    pub remote: Option<crate::RemoteModel>,
}

impl LoadConfig {
    /// The defaults for a model: accelerators only.
    #[must_use]
    pub fn new(model: ModelFiles) -> Self {
        Self {
            model,
            backend: None,
            policy: DevicePolicy::default(),
            threads: None,
            scheduler: SchedulerConfig::default(),
            remote: None,
        }
    }

    /// Whether a server computes all of it.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.backend == Some(Backend::Vllm) || (self.backend.is_none() && self.remote.is_some())
    }
}

/// Opens a model: tokenizer, template and image processor from its files, the engine on its own thread.
///
/// # Errors
/// [`ErrorKind::DevicePolicy`] when the policy admits none of the devices that the backend could use,
/// [`ErrorKind::InvalidModel`] and its kin for files that are wrong, [`ErrorKind::NotFound`] for files that are not there.
pub fn load(config: LoadConfig) -> Result<Arc<dyn ModelBackend>> {
    if config.is_remote() {
        return vllm(&config);
    }
    let Some(backend) = config.backend.or_else(|| backend_for(config.policy)) else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "no backend was compiled in: build with a feature such as `native`",
        ));
    };
    match backend {
        Backend::Native => native(config),
        Backend::Llamacpp => llamacpp(config),
        Backend::Vllm => vllm(&config),
    }
}

#[cfg(not(feature = "vllm"))]
fn vllm(_config: &LoadConfig) -> Result<Arc<dyn ModelBackend>> {
    Err(Error::new(ErrorKind::Unsupported, "vLLM was not compiled in: build with the feature `vllm`"))
}

#[cfg(feature = "vllm")]
fn vllm(config: &LoadConfig) -> Result<Arc<dyn ModelBackend>> {
    crate::remote::load(config)
}

#[cfg(not(feature = "llamacpp"))]
fn llamacpp(_config: LoadConfig) -> Result<Arc<dyn ModelBackend>> {
    Err(Error::new(ErrorKind::Unsupported, "llama.cpp was not compiled in: build with the feature `llamacpp`"))
}

#[cfg(feature = "llamacpp")]
fn llamacpp(config: LoadConfig) -> Result<Arc<dyn ModelBackend>> {
    use consort_llamacpp::LlamacppEngine;
    use consort_scheduler::Scheduled;

    let front_end = front_end(&config.model)?;
    let engine = llamacpp_config(&config);
    let scheduled = Scheduled::spawn(move || LlamacppEngine::load(engine), front_end, config.scheduler)?;
    Ok(Arc::new(scheduled))
}

#[cfg(feature = "llamacpp")]
pub(crate) fn llamacpp_config(config: &LoadConfig) -> consort_llamacpp::LlamacppConfig {
    use consort_llamacpp::{LlamacppConfig, ModelSource};

    let (text, vision) = match &config.model {
        ModelFiles::Bundled => {
            (ModelSource::Static(crate::bundled::TEXT), Some(ModelSource::Static(crate::bundled::VISION)))
        }
        ModelFiles::Files { text, vision } => (ModelSource::Path(text.clone()), vision.clone().map(ModelSource::Path)),
    };
    LlamacppConfig { vision, policy: config.policy, threads: config.threads, ..LlamacppConfig::new(text) }
}

#[cfg(not(feature = "native"))]
fn native(_config: LoadConfig) -> Result<Arc<dyn ModelBackend>> {
    Err(Error::new(ErrorKind::Unsupported, "the native backend was not compiled in: build with the feature `native`"))
}

#[cfg(feature = "native")]
fn native(config: LoadConfig) -> Result<Arc<dyn ModelBackend>> {
    use consort_native::NativeEngine;
    use consort_scheduler::Scheduled;

    let front_end = front_end(&config.model)?;
    let engine = native_config(&config);
    let scheduled = Scheduled::spawn(move || NativeEngine::load(engine), front_end, config.scheduler)?;
    Ok(Arc::new(scheduled))
}

#[cfg(feature = "native")]
pub(crate) fn native_config(config: &LoadConfig) -> consort_native::NativeConfig {
    use consort_native::{ModelSource, NativeConfig};

    let (text, vision) = match &config.model {
        ModelFiles::Bundled => {
            (ModelSource::Static(crate::bundled::TEXT), Some(ModelSource::Static(crate::bundled::VISION)))
        }
        ModelFiles::Files { text, vision } => (ModelSource::Path(text.clone()), vision.clone().map(ModelSource::Path)),
    };
    NativeConfig { vision, policy: config.policy, threads: config.threads, ..NativeConfig::new(text) }
}

/// Tokenizer, template and image processor of a model's files.
pub(crate) fn front_end(model: &ModelFiles) -> Result<FrontEnd> {
    let (tokenizer, template) = open_text(model)?;
    let vision = match model {
        ModelFiles::Bundled => Some(Gguf::from_static(crate::bundled::VISION)?),
        ModelFiles::Files { vision, .. } => vision.as_deref().map(Gguf::open).transpose()?,
    };
    let image_processor = vision.as_ref().map(image_processor).transpose()?;
    Ok(FrontEnd { tokenizer: Some(tokenizer), template, image_processor })
}

/// The image processor that a vision tower's file describes; where it is silent, the family's default holds.
fn image_processor(mmproj: &Gguf) -> Result<ImageProcessor> {
    let metadata = mmproj.metadata();
    let channels = |key: &str| -> Result<Option<[f32; 3]>> {
        if !metadata.contains(key) {
            return Ok(None);
        }
        let values = metadata.array_of_f32(key)?.try_into();
        values.map(Some).map_err(|_| {
            Error::new(ErrorKind::InvalidModel, "there must be one value for each of three colour channels")
                .with_context("key", key)
        })
    };
    let pixels = |key: &str| -> Result<Option<u64>> { Ok(metadata.get_u32(key)?.map(u64::from)) };
    let config = ImageProcessorConfig::from_projector(ProjectorValues {
        patch_size: metadata.get_u32("clip.vision.patch_size")?,
        merge_size: metadata.get_u32("clip.vision.spatial_merge_size")?,
        temporal_patch_size: None,
        image_mean: channels("clip.vision.image_mean")?,
        image_std: channels("clip.vision.image_std")?,
        min_pixels: pixels("clip.vision.image_min_pixels")?,
        max_pixels: pixels("clip.vision.image_max_pixels")?,
    })?;
    ImageProcessor::new(config)
}

/// Decodes a picture under the default limits, for showing it.
///
/// # Errors
/// [`ErrorKind::InvalidImage`].
pub fn prepare_picture(bytes: &Arc<[u8]>) -> Result<Arc<dyn ImageSource>> {
    let processor = ImageProcessor::new(ImageProcessorConfig::default())?;
    Ok(Arc::new(processor.decode(Arc::clone(bytes))?))
}
