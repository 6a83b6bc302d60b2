//! Adapters: under our ids, in generations, and under names on the servers that no other weights ever had.
//!
//! vLLM reads adapters from its own file system, applies one to a request, and always at its own scale. So an adapter is
//! written into the shared folder once for each scale that requests ask for, with the scale in its config, and its name
//! there tells backend, id, generation, digest and scale: what a server has cached under a name was computed with these
//! weights, and what one backend takes off the servers no other one uses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use consort_core::{
    AdapterFiles, AdapterInfo, AdapterKey, AdapterStatus, AdapterUse, Error, ErrorKind, Residency, Result,
};
use consort_peft::{AdapterBytes, PeftAdapter};
use serde_json::Value;

use crate::config::AdapterShare;
use crate::replica::Replicas;

const WEIGHTS: &str = "adapter_model.safetensors";

/// A loaded adapter. It leaves the servers when nobody uses it any more.
pub(crate) struct Adapter {
    pub(crate) info: AdapterInfo,
    digest: [u8; 32],
    config: Arc<[u8]>,
    weights: Arc<[u8]>,
    share: AdapterShare,
    /// Begins its names: that of the backend that loaded it.
    prefix: Arc<str>,
    /// The names under which it was written into the folder.
    written: Mutex<BTreeSet<String>>,
    /// Who takes it off the servers.
    sweeper: tokio::sync::mpsc::UnboundedSender<Vec<(String, PathBuf)>>,
}

/// An adapter as a request uses it: its name and path on the servers.
#[derive(Clone)]
pub(crate) struct Bound {
    pub(crate) name: String,
    pub(crate) path: String,
    /// While this lives, the adapter stays on the servers.
    _adapter: Arc<Adapter>,
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bound").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Adapter {
    /// Its name on the servers at this scale.
    fn name(&self, scale: f32) -> String {
        let digest: String = self.digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let id: String =
            self.info.key.id.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(32).collect();
        let scale = if scale == 1.0 { String::new() } else { format!("-x{:08x}", scale.to_bits()) };
        format!("{}-{id}-g{}-{digest}{scale}", self.prefix, self.info.key.generation)
    }

    /// Writes it at this scale into the folder, if it is not there.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    fn write(&self, scale: f32) -> Result<Place> {
        let name = self.name(scale);
        let local = self.share.local.join(&name);
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if !local.join(WEIGHTS).exists() {
            let config = scaled(&self.config, scale)?;
            std::fs::create_dir_all(&local).map_err(|source| Error::io(&local, source))?;
            for (file, bytes) in [("adapter_config.json", &*config), (WEIGHTS, &*self.weights)] {
                let path = local.join(file);
                std::fs::write(&path, bytes).map_err(|source| Error::io(&path, source))?;
            }
        }
        written.insert(name.clone());
        let path = self.share.remote.join(&name).display().to_string();
        Ok(Place { name, path })
    }
}

struct Place {
    name: String,
    path: String,
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let written = std::mem::take(self.written.get_mut().unwrap_or_else(PoisonError::into_inner));
        let places = written.into_iter().map(|name| (name.clone(), self.share.local.join(name))).collect();
        // Without a sweeper the backend is gone, and has swept.
        let _ = self.sweeper.send(places);
    }
}

/// A config with every alpha multiplied.
///
/// # Errors
/// [`ErrorKind::InvalidAdapter`] for what is no JSON object; it was read before, so that cannot be.
fn scaled(config: &Arc<[u8]>, scale: f32) -> Result<Arc<[u8]>> {
    if scale == 1.0 {
        return Ok(Arc::clone(config));
    }
    let bad =
        || Error::new(ErrorKind::InvalidAdapter, "adapter_config.json is no JSON object").with_backend(crate::NAME);
    let mut value: Value = serde_json::from_slice(config).map_err(|source| bad().with_source(source))?;
    let map = value.as_object_mut().ok_or_else(bad)?;
    let by = |value: &mut Value| {
        if let Some(alpha) = value.as_f64() {
            *value = (alpha * f64::from(scale)).into();
        }
    };
    by(map.entry("lora_alpha").or_insert_with(|| 8.into()));
    if let Some(pattern) = map.get_mut("alpha_pattern").and_then(Value::as_object_mut) {
        pattern.values_mut().for_each(by);
    }
    Ok(value.to_string().into_bytes().into())
}

/// The adapters of a backend.
pub(crate) struct Adapters {
    share: Option<AdapterShare>,
    /// Several backends use one folder and one server: their names differ.
    prefix: Arc<str>,
    table: RwLock<BTreeMap<String, (Arc<Adapter>, Residency)>>,
    generations: AtomicU64,
    sweeper: tokio::sync::mpsc::UnboundedSender<Vec<(String, PathBuf)>>,
}

impl Adapters {
    /// The table, and the task that takes what nobody uses off the servers and out of the folder.
    pub(crate) fn new(
        share: Option<AdapterShare>,
        prefix: &str,
        replicas: Arc<Replicas>,
        runtime: &tokio::runtime::Handle,
    ) -> Self {
        let (sweeper, mut dropped) = tokio::sync::mpsc::unbounded_channel::<Vec<(String, PathBuf)>>();
        runtime.spawn(async move {
            while let Some(places) = dropped.recv().await {
                for (name, path) in places {
                    for replica in &replicas.all {
                        if let Err(error) = replica.drop_adapter(&name).await {
                            tracing::debug!(endpoint = %replica.name, %error, "an adapter that nobody uses stays there");
                        }
                    }
                    if let Err(error) = std::fs::remove_dir_all(&path) {
                        tracing::debug!(%error, "an adapter that nobody uses stays in the shared folder");
                    }
                }
            }
        });
        Self { share, prefix: prefix.into(), table: RwLock::default(), generations: 0.into(), sweeper }
    }

    /// Reads, checks and writes an adapter. It is not in the table yet.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without a shared folder, for GGUF files and for activated adapters;
    /// [`ErrorKind::InvalidAdapter`] and its kin.
    pub(crate) fn read(&self, id: &str, files: &AdapterFiles) -> Result<(Arc<Adapter>, Bound)> {
        let refuse = |message: &str| {
            Error::new(ErrorKind::Unsupported, message)
                .with_backend(crate::NAME)
                .with_operation("load_adapter")
                .with_context("adapter", id)
        };
        let share = self.share.clone().ok_or_else(|| {
            refuse("vLLM reads adapters from a folder: name one that the server sees too (`adapter_folder`)")
        })?;
        let bytes = AdapterBytes::read(files)?;
        let digest = bytes.digest();
        let AdapterBytes::Peft { config, weights } = bytes else {
            return Err(refuse("vLLM reads adapters in PEFT's format, not as GGUF"));
        };
        let peft = PeftAdapter::from_parts(&config, &weights).map_err(|error| error.with_context("adapter", id))?;
        if peft.invocation_tokens().is_some() {
            return Err(refuse("vLLM has no activated adapters; it would apply this one to every token"));
        }
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        let info = AdapterInfo {
            key: AdapterKey { id: id.into(), generation },
            rank: peft.max_rank(),
            layers: peft.deltas().len(),
            bytes: weights.len() as u64,
            invocation_tokens: None,
        };
        let (sweeper, prefix) = (self.sweeper.clone(), Arc::clone(&self.prefix));
        let adapter =
            Arc::new(Adapter { info, digest, config, weights, share, prefix, written: Mutex::default(), sweeper });
        let bound = bind(&adapter, 1.0)?;
        Ok((adapter, bound))
    }

    /// Puts an adapter into the table. Requests that are accepted from now on get it.
    pub(crate) fn put(&self, adapter: Arc<Adapter>) {
        let id = adapter.info.key.id.to_string();
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let residency = table.get(&id).map(|(_, residency)| *residency).unwrap_or_default();
        table.insert(id, (adapter, residency));
    }

    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.remove(id).map(drop).ok_or_else(|| unknown(id))
    }

    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub(crate) fn reside(&self, id: &str, residency: Residency) -> Result<()> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let entry = table.get_mut(id).ok_or_else(|| unknown(id))?;
        entry.1 = residency;
        Ok(())
    }

    pub(crate) fn status(&self) -> Vec<AdapterStatus> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let status = |(adapter, residency): &(Arc<Adapter>, Residency)| AdapterStatus {
            info: adapter.info.clone(),
            residency: *residency,
            resident: true,
            digest: Some(adapter.digest),
        };
        table.values().map(status).collect()
    }

    /// What a request names, bound to the current generation.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Unsupported`] for several, [`ErrorKind::InvalidRequest`].
    pub(crate) fn bind(&self, uses: &[AdapterUse]) -> Result<Option<Bound>> {
        let mut found = Vec::new();
        {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            for wanted in uses {
                let (adapter, _) = table.get(&wanted.id).ok_or_else(|| unknown(&wanted.id))?;
                if !wanted.scale.is_finite() {
                    return Err(Error::new(ErrorKind::InvalidRequest, "an adapter's scale must be a finite number")
                        .with_context("adapter", wanted.id.clone()));
                }
                if found.iter().any(|(other, _): &(Arc<Adapter>, f32)| other.info.key.id == adapter.info.key.id) {
                    return Err(Error::new(ErrorKind::InvalidRequest, "an adapter may be named once in a request")
                        .with_context("adapter", wanted.id.clone()));
                }
                found.push((Arc::clone(adapter), wanted.scale));
            }
        }
        // One of scale 0 has no effect.
        found.retain(|(_, scale)| *scale != 0.0);
        match found.as_slice() {
            [] => Ok(None),
            [(adapter, scale)] => bind(adapter, *scale).map(Some),
            _ => Err(Error::new(ErrorKind::Unsupported, "vLLM applies one adapter to a request")
                .with_backend(crate::NAME)
                .with_operation("generate")
                .with_context("adapters", found.len().to_string())),
        }
    }
}

fn bind(adapter: &Arc<Adapter>, scale: f32) -> Result<Bound> {
    let Place { name, path } = adapter.write(scale)?;
    Ok(Bound { name, path, _adapter: Arc::clone(adapter) })
}

fn unknown(id: &str) -> Error {
    Error::new(ErrorKind::NotFound, "no adapter is loaded under this name").with_context("adapter", id)
}

/// Whether a folder can be written.
///
/// # Errors
/// [`ErrorKind::InvalidConfig`].
pub(crate) fn check(share: &AdapterShare) -> Result<()> {
    let at = |path: &Path, source| {
        Error::new(ErrorKind::InvalidConfig, "the folder for adapters cannot be written")
            .with_context("key", "adapter_folder")
            .with_context("path", path.display().to_string())
            .with_source(source)
    };
    std::fs::create_dir_all(&share.local).map_err(|source| at(&share.local, source))?;
    // Other backends, of this process too, may have the same folder.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let probe = share.local.join(format!(".consort-{}-{count}", std::process::id()));
    std::fs::write(&probe, b"").map_err(|source| at(&probe, source))?;
    std::fs::remove_file(&probe).map_err(|source| at(&probe, source))
}
