//! Adapters: where they come from, and loading them when somebody needs them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use consort_core::{AdapterFiles, AdapterStatus, Error, ErrorKind, ModelBackend, Residency, Result};
use tokio::sync::Mutex;

use crate::error::Failure;
use crate::persona::check_name;

/// The two files of an adapter (PEFT).
const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// Where adapters come from: those that the program has, and folders. Nothing outside of the folders is ever read, whatever
/// a request names and wherever links lead.
#[derive(Debug, Clone, Default)]
pub struct AdapterLibrary {
    own: BTreeMap<String, AdapterFiles>,
    folders: Vec<PathBuf>,
}

impl AdapterLibrary {
    /// Adapters of the program, and folders of PEFT folders.
    ///
    /// # Errors
    /// A folder that is not there.
    pub fn new(own: impl IntoIterator<Item = (String, AdapterFiles)>, folders: &[PathBuf]) -> Result<Self> {
        let real = |folder: &PathBuf| folder.canonicalize().map_err(|source| Error::io(folder, source));
        Ok(Self { own: own.into_iter().collect(), folders: folders.iter().map(real).collect::<Result<_>>()? })
    }

    /// The names of all that are there.
    #[must_use]
    pub fn names(&self) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = self.own.keys().cloned().collect();
        for folder in &self.folders {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let found = entries.filter_map(|entry| entry.file_name().into_string().ok());
            names.extend(found.filter(|name| check_name(name).is_ok() && self.inside(&folder.join(name)).is_some()));
        }
        names
    }

    /// The files of an adapter.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn find(&self, name: &str) -> Result<AdapterFiles> {
        if let Some(files) = self.own.get(name) {
            return Ok(files.clone());
        }
        let found =
            check_name(name).ok().and_then(|()| self.folders.iter().find_map(|folder| self.inside(&folder.join(name))));
        found.map(AdapterFiles::Directory).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "there is no adapter of this name").with_context("adapter", name)
        })
    }

    /// The adapter at a path that a request names: in one of the folders, relative to one or whole.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], which does not tell what is outside of the folders.
    pub fn at(&self, path: &Path) -> Result<AdapterFiles> {
        // Joining a whole path gives that path.
        let found = self.folders.iter().find_map(|folder| self.inside(&folder.join(path)));
        found.map(AdapterFiles::Directory).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "no adapter lies there in the folders that the server was given ([adapters])",
            )
        })
    }

    /// A PEFT folder's real path, if it and its files lie in one of the folders.
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        let real = path.canonicalize().ok()?;
        let within = |real: &Path| self.folders.iter().any(|folder| real.starts_with(folder) && real != folder);
        let files = FILES.iter().all(|file| real.join(file).canonicalize().is_ok_and(|file| within(&file)));
        (within(&real) && files).then_some(real)
    }
}

/// The adapters of a backend, loaded when they are needed.
pub(crate) struct Adapters {
    backend: Arc<dyn ModelBackend>,
    library: AdapterLibrary,
    /// One change at a time, so that nothing is loaded twice.
    changing: Mutex<()>,
}

impl Adapters {
    pub(crate) fn new(backend: Arc<dyn ModelBackend>, library: AdapterLibrary) -> Self {
        Self { backend, library, changing: Mutex::default() }
    }

    /// What the backend knows.
    pub(crate) fn loaded(&self) -> Vec<AdapterStatus> {
        self.backend.adapters()
    }

    fn is_loaded(&self, name: &str) -> bool {
        self.backend.adapters().iter().any(|status| &*status.info.key.id == name)
    }

    /// All that can be asked for: loaded ones and those of the library.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let mut names = self.library.names();
        names.extend(self.backend.adapters().iter().map(|status| status.info.key.id.to_string()));
        names
    }

    /// Whether there is such an adapter.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.is_loaded(name) || self.library.find(name).is_ok()
    }

    /// Makes sure that the backend knows an adapter. Whether it is in the engine at this moment is the backend's affair.
    pub(crate) async fn need(&self, name: &str, residency: Residency) -> Result<()> {
        if self.is_loaded(name) {
            return Ok(());
        }
        let _alone = self.changing.lock().await;
        if self.is_loaded(name) {
            return Ok(());
        }
        let files = self.library.find(name)?;
        let info = self.backend.load_adapter(name, files).await?;
        tracing::info!(adapter = name, rank = info.rank, bytes = info.bytes, "an adapter was loaded");
        self.backend.set_adapter_residency(name, residency).await
    }

    /// Tells the backend what may be paged out. An adapter that is not loaded yet hears it when it is.
    pub(crate) async fn reside(&self, name: &str, residency: Residency) -> Result<()> {
        if self.is_loaded(name) { self.backend.set_adapter_residency(name, residency).await } else { Ok(()) }
    }

    /// Loads an adapter from a path in the folders, under a name of the client's.
    pub(crate) async fn load_by_hand(&self, name: &str, path: &Path, replace: Replace) -> Result<(), Failure> {
        let files = self.library.at(path).map_err(|error| Failure::from(error).with_param("lora_path"))?;
        let _alone = self.changing.lock().await;
        if replace == Replace::Refuse && self.is_loaded(name) {
            let message = format!("the adapter `{name}` is loaded already; `load_inplace` replaces it");
            return Err(Failure::value("lora_name", message));
        }
        let info = self.backend.load_adapter(name, files).await?;
        tracing::info!(adapter = name, rank = info.rank, bytes = info.bytes, "an adapter was loaded by hand");
        Ok(())
    }

    /// Forgets an adapter. One of the library comes back when it is needed again.
    pub(crate) async fn unload(&self, name: &str) -> Result<(), Failure> {
        let _alone = self.changing.lock().await;
        if !self.is_loaded(name) {
            let message = format!("no adapter `{name}` is loaded");
            return Err(Failure::not_found("not_found", message).with_param("lora_name"));
        }
        self.backend.unload_adapter(name).await?;
        tracing::info!(adapter = name, "an adapter was unloaded");
        Ok(())
    }
}

/// What becomes of an adapter that has the name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replace {
    /// It stays, and the request is refused.
    Refuse,
    /// Replies that run keep it, and later ones get the new one.
    InPlace,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn adapter(at: &Path) {
        std::fs::create_dir_all(at).unwrap();
        for file in FILES {
            std::fs::write(at.join(file), "{}").unwrap();
        }
    }

    #[test]
    fn nothing_outside_of_the_folders_is_found() {
        let root = tempfile::tempdir().unwrap();
        let (folder, outside) = (root.path().join("adapters"), root.path().join("outside"));
        adapter(&folder.join("pirate"));
        adapter(&outside.join("secret"));
        let library = AdapterLibrary::new([], std::slice::from_ref(&folder)).unwrap();
        assert_eq!(library.names().into_iter().collect::<Vec<_>>(), ["pirate"]);
        library.find("pirate").unwrap();
        library.at(Path::new("pirate")).unwrap();
        library.at(&folder.join("pirate")).unwrap();
        for path in ["../outside/secret", ".", "..", "", "nobody", "pirate/../../outside/secret"] {
            assert_eq!(library.at(Path::new(path)).unwrap_err().kind(), ErrorKind::NotFound, "{path}");
            assert_eq!(library.find(path).unwrap_err().kind(), ErrorKind::NotFound, "{path}");
        }
        let error = library.at(&outside.join("secret")).unwrap_err();
        assert!(!error.to_string().contains("outside/"), "{error}");
        assert!(AdapterLibrary::new([], &[root.path().join("nowhere")]).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn links_that_lead_outside_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let (folder, outside) = (root.path().join("adapters"), root.path().join("outside"));
        adapter(&folder.join("half"));
        adapter(&outside.join("secret"));
        std::os::unix::fs::symlink(outside.join("secret"), folder.join("link")).unwrap();
        std::fs::remove_file(folder.join("half").join(FILES[1])).unwrap();
        std::os::unix::fs::symlink(outside.join("secret").join(FILES[1]), folder.join("half").join(FILES[1])).unwrap();
        let library = AdapterLibrary::new([], &[folder]).unwrap();
        assert!(library.names().is_empty());
        assert!(library.find("link").is_err() && library.find("half").is_err());
    }
}
