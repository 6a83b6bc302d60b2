//! Whether files are still what they were, without reading them.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use consort_core::AdapterFiles;

/// Lengths and times of some files. Equal stamps: nobody wrote there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<(PathBuf, Option<State>)>);

/// Of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    length: u64,
    /// `None` where the system keeps none.
    modified: Option<SystemTime>,
}

impl Stamp {
    /// Of some paths. A path where nothing is has a stamp as well.
    pub(crate) fn of(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let state = |path: &Path| {
            let found = std::fs::metadata(path).ok()?;
            Some(State { length: found.len(), modified: found.modified().ok() })
        };
        Self(paths.into_iter().map(|path| (path.clone(), state(&path))).collect())
    }

    /// Of an adapter's files. What is in memory never changes.
    pub(crate) fn of_adapter(files: &AdapterFiles) -> Self {
        match files {
            AdapterFiles::Directory(folder) => Self::of(super::adapters::FILES.map(|file| folder.join(file))),
            AdapterFiles::File(path) => Self::of([path.clone()]),
            _ => Self::default(),
        }
    }

    /// This and more.
    pub(crate) fn and(&mut self, more: Self) {
        self.0.extend(more.0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_stamp_changes_when_a_file_is_written_comes_or_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let stamp = || Stamp::of([path.clone()]);
        let nothing = stamp();
        std::fs::write(&path, "one").unwrap();
        let one = stamp();
        assert_ne!(nothing, one);
        assert_eq!(one, stamp());
        std::fs::write(&path, "other").unwrap();
        assert_ne!(one, stamp());
        // The same length at another time.
        let long_ago = SystemTime::UNIX_EPOCH;
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        let old = stamp();
        std::fs::write(&path, "again").unwrap();
        assert_ne!(old, stamp());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(nothing, stamp());
        assert_eq!(Stamp::of_adapter(&AdapterFiles::Gguf([].into())), Stamp::default());
    }
}
