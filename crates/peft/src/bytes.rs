//! An adapter's files, read within bounds.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use consort_core::{AdapterFiles, Error, Result};

use crate::config::{MAX_CONFIG_BYTES, invalid};

/// The largest file of weights that is read, in bytes.
const MAX_WEIGHTS_BYTES: usize = 4 << 30;

/// The contents of an adapter's files, read within bounds and not yet understood.
#[derive(Clone)]
pub enum AdapterBytes {
    /// PEFT's two files.
    Peft {
        /// `adapter_config.json`.
        config: Arc<[u8]>,
        /// `adapter_model.safetensors`.
        weights: Arc<[u8]>,
    },
    /// A GGUF file.
    Gguf(Arc<[u8]>),
}

impl std::fmt::Debug for AdapterBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Peft { config, weights } => {
                f.debug_struct("Peft").field("config", &config.len()).field("weights", &weights.len()).finish()
            }
            Self::Gguf(bytes) => f.debug_tuple("Gguf").field(&bytes.len()).finish(),
        }
    }
}

impl AdapterBytes {
    /// Reads the files that are named, and takes over those that are in memory.
    ///
    /// # Errors
    /// [`NotFound`](consort_core::ErrorKind::NotFound) and [`Io`](consort_core::ErrorKind::Io);
    /// [`InvalidAdapter`](consort_core::ErrorKind::InvalidAdapter) for files that are too large, or a pickle.
    pub fn read(files: &AdapterFiles) -> Result<Self> {
        match files {
            AdapterFiles::Directory(path) => {
                let [config, weights] = read_folder(path)?;
                Ok(Self::Peft { config, weights })
            }
            AdapterFiles::Bytes { config, weights } => {
                Ok(Self::Peft { config: Arc::clone(config), weights: Arc::clone(weights) })
            }
            AdapterFiles::File(path) => Ok(Self::Gguf(read(path, MAX_WEIGHTS_BYTES)?.into())),
            AdapterFiles::Gguf(bytes) => Ok(Self::Gguf(Arc::clone(bytes))),
            _ => Err(invalid("adapters in this form are not read")),
        }
    }

    /// The BLAKE3 digest of a GGUF file; in PEFT's format of the config's length (eight bytes, little-endian), the config and
    /// the weights. The two are never confused: a GGUF file's first eight bytes would announce a longer config than is read.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        match self {
            Self::Peft { config, weights } => digest(config, weights),
            Self::Gguf(bytes) => *blake3::hash(bytes).as_bytes(),
        }
    }

    /// The same contents as an engine takes them.
    #[must_use]
    pub fn into_files(self) -> AdapterFiles {
        match self {
            Self::Peft { config, weights } => AdapterFiles::Bytes { config, weights },
            Self::Gguf(bytes) => AdapterFiles::Gguf(bytes),
        }
    }
}

pub(crate) fn digest(config: &[u8], weights: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(config.len() as u64).to_le_bytes());
    hasher.update(config);
    hasher.update(weights);
    *hasher.finalize().as_bytes()
}

/// Reads the config and the weights in `directory`, as PEFT's `save_pretrained` writes them.
pub(crate) fn read_folder(directory: &Path) -> Result<[Arc<[u8]>; 2]> {
    let config = read(&directory.join("adapter_config.json"), MAX_CONFIG_BYTES)?;
    let path = directory.join("adapter_model.safetensors");
    if !path.exists() && directory.join("adapter_model.bin").exists() {
        return Err(invalid(
            "the weights are a pickle, which can run code and is not read; save the adapter again as safetensors",
        )
        .with_context("path", directory.join("adapter_model.bin").display().to_string()));
    }
    Ok([config.into(), read(&path, MAX_WEIGHTS_BYTES)?.into()])
}

/// Reads a file of at most `limit` bytes.
fn read(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let io = |source| Error::io(path, source).with_operation("peft::open");
    let file = File::open(path).map_err(io)?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells that there is more; the size that the file system reports may lie.
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() > limit {
        return Err(
            invalid(format!("the file is larger than {limit} bytes")).with_context("path", path.display().to_string())
        );
    }
    Ok(bytes)
}
