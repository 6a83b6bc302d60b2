//! Adapters as people name them.

use std::path::Path;

use consort_core::AdapterFiles;

use crate::bundled;

/// The files of an adapter that is named on a command line: the name of a bundled one, or a path, as
/// [`adapter_at`] takes it.
#[must_use]
pub fn adapter_files(name: &str) -> AdapterFiles {
    bundled::adapter(name).map_or_else(|| adapter_at(Path::new(name)), bundled::BundledAdapter::files)
}

/// The files of an adapter that lies at a path: a GGUF file where there is a file or the name ends in `.gguf`, else a folder
/// in PEFT's format.
#[must_use]
pub fn adapter_at(path: &Path) -> AdapterFiles {
    if path.is_file() || (is_gguf(path) && !path.is_dir()) {
        AdapterFiles::File(path.to_owned())
    } else {
        AdapterFiles::Directory(path.to_owned())
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_is_gguf_and_the_rest_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (file, inner) = (folder.path().join("lora.bin"), folder.path().join("odd.gguf"));
        std::fs::write(&file, b"x").unwrap();
        std::fs::create_dir(&inner).unwrap();
        let is_file = |path: &Path| matches!(adapter_at(path), AdapterFiles::File(named) if named == path);
        assert!(is_file(&file) && is_file(Path::new("missing.GGUF")));
        for path in [folder.path(), &inner, Path::new("missing")] {
            assert!(matches!(adapter_at(path), AdapterFiles::Directory(named) if named == path), "{}", path.display());
        }
        assert!(matches!(adapter_files("pirate"), AdapterFiles::Bytes { .. }));
        assert!(matches!(adapter_files("no-such-adapter"), AdapterFiles::Directory(_)));
    }
}
