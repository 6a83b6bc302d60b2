//! Files whose size is not ours to decide.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use consort_core::{Error, ErrorKind, Result};

/// The largest JSON file of a model that is read, in bytes. The family's `tokenizer.json` has 20 MB.
pub(crate) const LARGEST_JSON: u64 = 256 << 20;

/// All of a file of at most `most` bytes, also if it grows while it is read.
///
/// # Errors
/// [`ErrorKind::NotFound`] and others of the system; `kind` for a file that is longer, or is no file.
pub(crate) fn read_at_most(path: &Path, most: u64, kind: ErrorKind) -> Result<Vec<u8>> {
    let failed = |source| Error::io(path, source);
    let refused = |what: String| Error::new(kind, what).with_context("path", path.display().to_string());
    let length = match fs::metadata(path).map_err(failed)? {
        found if found.is_file() => found.len(),
        _ => return Err(refused("this is no file".into())),
    };
    let mut bytes = Vec::new();
    if length <= most {
        File::open(path).map_err(failed)?.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    }
    if length.max(bytes.len() as u64) > most {
        return Err(refused(format!("the file has more than the {most} bytes that are read")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_too_long_or_no_file_is_refused_by_the_kind_that_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words.json");
        fs::write(&path, b"12345").unwrap();
        let read = |path: &Path, most| read_at_most(path, most, ErrorKind::InvalidTokenizer);
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        for refused in [read(&path, 4), read(folder.path(), 4)] {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidTokenizer);
            assert!(error.context().any(|(key, _)| key == "path"), "{error}");
        }
        assert_eq!(read(&folder.path().join("nothing"), 5).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
