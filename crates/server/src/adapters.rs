//! Adapters: where they come from, and loading them when somebody needs them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use consort_core::{AdapterFiles, AdapterStatus, Error, ErrorKind, ModelBackend, Residency, Result};
use tokio::sync::{Mutex, MutexGuard};

use crate::error::Failure;
use crate::persona::check_name;
use crate::stamp::Stamp;

/// The two files of an adapter (PEFT).
pub(crate) const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// How an adapter's one file ends, where it is GGUF.
const GGUF: &str = ".gguf";

/// Under this name, which no client can say, an adapter is tried before it takes another's place.
const TRIAL: &str = ".trial";

/// Where adapters come from: those that the program has, and folders. Nothing outside of the folders is ever read, whatever
/// a request names and wherever links lead.
///
/// In a folder, `NAME/` with PEFT's two files is the adapter `NAME`, and so is `NAME.gguf`. Where both are, the first one is.
#[derive(Debug, Clone, Default)]
pub struct AdapterLibrary {
    own: BTreeMap<String, AdapterFiles>,
    folders: Vec<PathBuf>,
}

impl AdapterLibrary {
    /// Adapters of the program, and folders of PEFT folders and GGUF files.
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
            let named = found.filter_map(|entry| {
                self.inside(&folder.join(&entry))?;
                Some(entry.strip_suffix(GGUF).map_or_else(|| entry.clone(), str::to_owned))
            });
            names.extend(named.filter(|name| check_name(name).is_ok()));
        }
        names
    }

    /// What all files of adapters look like from outside: it changes when one comes, goes, or is written.
    pub(crate) fn stamp(&self) -> Stamp {
        let mut stamp = Stamp::default();
        for files in self.names().iter().filter_map(|name| self.find(name).ok()) {
            stamp.and(Stamp::of_adapter(&files));
        }
        stamp
    }

    /// The files of an adapter.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn find(&self, name: &str) -> Result<AdapterFiles> {
        if let Some(files) = self.own.get(name) {
            return Ok(files.clone());
        }
        let entries = [name.to_owned(), format!("{name}{GGUF}")];
        let mut places = self.folders.iter().flat_map(|folder| entries.iter().map(move |entry| folder.join(entry)));
        // `name.gguf` is no name for a file: its stem is.
        let is_name = check_name(name).is_ok() && !name.ends_with(GGUF);
        let found = places.find_map(|place| self.inside(&place).filter(|_| is_name));
        found.ok_or_else(|| {
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
        found.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "no adapter lies there in the folders that the server was given ([adapters])",
            )
        })
    }

    /// The adapter at a path, by its real path, if it and its files lie in one of the folders.
    fn inside(&self, path: &Path) -> Option<AdapterFiles> {
        let real = path.canonicalize().ok()?;
        let within = |real: &Path| self.folders.iter().any(|folder| real.starts_with(folder) && real != folder);
        if !within(&real) {
            return None;
        }
        // A name that ends so is asked for, and not where a link of that name leads.
        let is_gguf = path.to_str().is_some_and(|path| path.ends_with(GGUF));
        if is_gguf && real.is_file() {
            return Some(AdapterFiles::File(real));
        }
        let files = FILES.iter().all(|file| real.join(file).canonicalize().is_ok_and(|file| within(&file)));
        files.then_some(AdapterFiles::Directory(real))
    }
}

/// Where a loaded adapter came from.
#[derive(Debug, Clone)]
struct Origin {
    files: AdapterFiles,
    /// Taken before the files were read: a change while they were read is a change.
    stamp: Stamp,
    hand: Hand,
}

/// Who loaded an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hand {
    /// The server, by the library's name for it.
    Library,
    /// A client, under a name of its own.
    Client,
}

/// The adapters of a backend, loaded when they are needed.
pub(crate) struct Adapters {
    backend: Arc<dyn ModelBackend>,
    library: RwLock<Arc<AdapterLibrary>>,
    /// One change at a time, so that nothing is loaded twice. And where what is loaded came from.
    changing: Mutex<BTreeMap<String, Origin>>,
}

/// Adapters that a reload takes up, read and found good. Nobody else loads while this is held.
pub(crate) struct Staged<'a> {
    changed: Vec<(String, Origin)>,
    gone: Vec<String>,
    origins: MutexGuard<'a, BTreeMap<String, Origin>>,
    library: AdapterLibrary,
}

/// What became of adapters.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct AdapterChanges {
    /// They are there and were not.
    pub found: Vec<String>,
    /// Their files had changed: later replies are written with the new ones.
    pub replaced: Vec<String>,
    /// Their files are gone, and nobody's persona uses them.
    pub removed: Vec<String>,
    /// Their files are gone or could not be read this time; they stay in the engine as they were.
    pub kept: Vec<String>,
}

impl Adapters {
    pub(crate) fn new(backend: Arc<dyn ModelBackend>, library: AdapterLibrary) -> Self {
        Self { backend, library: RwLock::new(Arc::new(library)), changing: Mutex::default() }
    }

    /// Where adapters come from at this time.
    pub(crate) fn library(&self) -> Arc<AdapterLibrary> {
        Arc::clone(&self.library.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the backend knows.
    pub(crate) fn loaded(&self) -> Vec<AdapterStatus> {
        let mut loaded = self.backend.adapters();
        loaded.retain(|status| &*status.info.key.id != TRIAL);
        loaded
    }

    fn is_loaded(&self, name: &str) -> bool {
        self.backend.adapters().iter().any(|status| &*status.info.key.id == name)
    }

    /// All that can be asked for: loaded ones and those of the library.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let mut names = self.library().names();
        names.extend(self.loaded().iter().map(|status| status.info.key.id.to_string()));
        names
    }

    /// Whether there is such an adapter.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.is_loaded(name) || self.library().find(name).is_ok()
    }

    /// Makes sure that the backend knows an adapter. Whether it is in the engine at this moment is the backend's affair.
    pub(crate) async fn need(&self, name: &str, residency: Residency) -> Result<()> {
        if self.is_loaded(name) {
            return Ok(());
        }
        let mut origins = self.changing.lock().await;
        let library = self.library();
        self.load(&mut origins, &library, name, residency).await
    }

    async fn load(
        &self,
        origins: &mut BTreeMap<String, Origin>,
        library: &AdapterLibrary,
        name: &str,
        residency: Residency,
    ) -> Result<()> {
        if self.is_loaded(name) {
            return Ok(());
        }
        let files = library.find(name)?;
        let origin = Origin { stamp: Stamp::of_adapter(&files), files, hand: Hand::Library };
        let info = self.backend.load_adapter(name, origin.files.clone()).await?;
        origins.insert(name.to_owned(), origin);
        tracing::info!(adapter = name, rank = info.rank, bytes = info.bytes, "an adapter was loaded");
        self.backend.set_adapter_residency(name, residency).await
    }

    /// Finds out what a new library changes, and tries it: nothing that is loaded changes yet. Adapters of `pinned` that
    /// are not loaded are.
    ///
    /// # Errors
    /// An adapter that has changed cannot be loaded, or one of `pinned` cannot.
    pub(crate) async fn stage(&self, library: AdapterLibrary, pinned: &BTreeSet<String>) -> Result<Staged<'_>> {
        let mut origins = self.changing.lock().await;
        origins.retain(|name, _| self.is_loaded(name));
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        for (name, origin) in origins.iter() {
            let found = match (&origin.files, origin.hand) {
                (AdapterFiles::Directory(path) | AdapterFiles::File(path), Hand::Client) => library.at(path),
                _ => library.find(name),
            };
            let Ok(files) = found else {
                gone.push(name.clone());
                continue;
            };
            let now = Origin { stamp: Stamp::of_adapter(&files), files, hand: origin.hand };
            if now.stamp != origin.stamp {
                changed.push((name.clone(), now));
            }
        }
        for (name, origin) in &changed {
            self.try_out(&origin.files).await.map_err(|error| error.with_context("adapter", name.clone()))?;
        }
        for name in pinned {
            let loaded = self.load(&mut origins, &library, name, Residency::Pinned).await;
            loaded.map_err(|error| error.with_context("adapter", name.clone()))?;
            self.backend.set_adapter_residency(name, Residency::Pinned).await?;
        }
        Ok(Staged { changed, gone, origins, library })
    }

    /// Whether an adapter's files can be loaded.
    async fn try_out(&self, files: &AdapterFiles) -> Result<()> {
        match self.backend.load_adapter(TRIAL, files.clone()).await {
            Ok(_) => self.backend.unload_adapter(TRIAL).await,
            // It was read and is good. In its own place there may be room for it, as another leaves.
            Err(error) if error.kind() == ErrorKind::OutOfMemory => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes the new library up. `used` says whose files may be gone and who stays all the same.
    pub(crate) async fn take_up(&self, staged: Staged<'_>, used: impl Fn(&str) -> bool) -> AdapterChanges {
        let Staged { changed, gone, mut origins, library } = staged;
        let before = self.library().names();
        let mut changes = AdapterChanges {
            found: library.names().into_iter().filter(|name| !before.contains(name)).collect(),
            ..AdapterChanges::default()
        };
        *self.library.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(library);
        for (name, origin) in changed {
            // Replies that run keep the old weights: the backend counts generations.
            match self.backend.load_adapter(&name, origin.files.clone()).await {
                Ok(_) => {
                    origins.insert(name.clone(), origin);
                    changes.replaced.push(name);
                }
                Err(error) => {
                    tracing::error!(%error, adapter = %name, "an adapter that was good has changed again; the old one stays");
                    changes.kept.push(name);
                }
            }
        }
        for name in gone {
            if used(&name) || self.backend.unload_adapter(&name).await.is_err() {
                changes.kept.push(name);
            } else {
                origins.remove(&name);
                changes.removed.push(name);
            }
        }
        changes
    }

    /// Tells the backend what may be paged out. An adapter that is not loaded yet hears it when it is.
    pub(crate) async fn reside(&self, name: &str, residency: Residency) -> Result<()> {
        if self.is_loaded(name) { self.backend.set_adapter_residency(name, residency).await } else { Ok(()) }
    }

    /// Loads an adapter from a path in the folders, under a name of the client's.
    pub(crate) async fn load_by_hand(&self, name: &str, path: &Path, replace: Replace) -> Result<(), Failure> {
        let files = self.library().at(path).map_err(|error| Failure::from(error).with_param("lora_path"))?;
        let mut origins = self.changing.lock().await;
        if replace == Replace::Refuse && self.is_loaded(name) {
            let message = format!("the adapter `{name}` is loaded already; `load_inplace` replaces it");
            return Err(Failure::value("lora_name", message));
        }
        let origin = Origin { stamp: Stamp::of_adapter(&files), files, hand: Hand::Client };
        let info = self.backend.load_adapter(name, origin.files.clone()).await?;
        origins.insert(name.to_owned(), origin);
        tracing::info!(adapter = name, rank = info.rank, bytes = info.bytes, "an adapter was loaded by hand");
        Ok(())
    }

    /// Forgets an adapter. One of the library comes back when it is needed again.
    pub(crate) async fn unload(&self, name: &str) -> Result<(), Failure> {
        let mut origins = self.changing.lock().await;
        if !self.is_loaded(name) {
            let message = format!("no adapter `{name}` is loaded");
            return Err(Failure::not_found("not_found", message).with_param("lora_name"));
        }
        self.backend.unload_adapter(name).await?;
        origins.remove(name);
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

    #[test]
    fn a_gguf_file_is_an_adapter_under_its_stem() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("adapters");
        adapter(&folder.join("both"));
        for file in ["v1.5.gguf", "both.gguf", "readme.txt", ".gguf"] {
            std::fs::write(folder.join(file), "x").unwrap();
        }
        std::fs::write(root.path().join("outside.gguf"), "x").unwrap();
        std::fs::create_dir(folder.join("folder.gguf")).unwrap();
        let library = AdapterLibrary::new([], std::slice::from_ref(&folder)).unwrap();
        assert_eq!(library.names().into_iter().collect::<Vec<_>>(), ["both", "v1.5"]);
        let real = folder.canonicalize().unwrap();
        let AdapterFiles::File(path) = library.find("v1.5").unwrap() else { panic!("no file") };
        assert_eq!(path, real.join("v1.5.gguf"));
        assert!(matches!(library.find("both").unwrap(), AdapterFiles::Directory(_)));
        assert!(matches!(library.at(Path::new("both.gguf")).unwrap(), AdapterFiles::File(_)));
        for name in ["v1.5.gguf", "readme.txt", "readme", "folder", "../outside", ""] {
            assert!(library.find(name).is_err(), "{name}");
        }
        assert!(library.at(Path::new("../outside.gguf")).is_err());
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
