//! Where a file's bytes live: mapped, owned, or part of the program.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use consort_core::{Error, ErrorKind, Result};

/// What the start of the bytes is aligned to at least. Tensors lie at multiples of `general.alignment` from there.
pub(crate) const BASE_ALIGNMENT: usize = 8;

/// Aligns bytes that are part of the program, so that [`Gguf::from_static`](crate::Gguf::from_static) can use them in place.
///
/// ```
/// use consort_gguf::Aligned;
///
/// // In earnest: `&Aligned(*include_bytes!("model.gguf"))`.
/// static MODEL: &Aligned<[u8]> = &Aligned(*b"GGUF");
/// let bytes: &'static [u8] = &MODEL.0;
/// assert_eq!(bytes.as_ptr() as usize % 64, 0);
/// ```
#[repr(C, align(64))]
pub struct Aligned<T: ?Sized>(pub T);

pub(crate) enum Storage {
    Static(&'static [u8]),
    Owned(Vec<u8>),
    Shared(Arc<[u8]>),
    /// A copy in words, for bytes that came misaligned; the second field is the length in bytes.
    Words(Box<[u64]>, usize),
    Mapped(MappedFile),
}

/// A whole file, mapped read-only into memory. For formats that lie beside GGUF, so that their readers need no `unsafe`.
///
/// The file must not be truncated or rewritten in place while it is mapped, as for [`Gguf::open`](crate::Gguf::open).
#[derive(Debug)]
pub struct MappedFile(Option<memmap2::Mmap>);

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] and [`ErrorKind::Io`]; [`ErrorKind::InvalidModel`] for what is not a regular file.
    #[allow(unsafe_code)]
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::io(path, source))?;
        let metadata = file.metadata().map_err(|source| Error::io(path, source))?;
        if !metadata.is_file() {
            return Err(Error::new(ErrorKind::InvalidModel, "this is not a regular file")
                .with_context("path", path.display().to_string()));
        }
        if metadata.len() == 0 {
            // Not every system maps nothing.
            return Ok(Self(None));
        }
        // SAFETY: the mapping is read-only and private to this value. What remains is that another process truncates or
        // rewrites the file in place while it is mapped, which no reader of a mapped file can exclude; the type
        // documents it, and our own writer replaces files by renaming, which leaves an existing mapping intact.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|source| Error::io(path, source))?;
        Ok(Self(Some(map)))
    }

    /// The file's contents.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}

impl Storage {
    pub(crate) fn from_static(bytes: &'static [u8]) -> Self {
        if is_aligned(bytes) { Self::Static(bytes) } else { Self::copy(bytes) }
    }

    pub(crate) fn from_vec(bytes: Vec<u8>) -> Self {
        if is_aligned(&bytes) { Self::Owned(bytes) } else { Self::copy(&bytes) }
    }

    pub(crate) fn from_shared(bytes: Arc<[u8]>) -> Self {
        if is_aligned(&bytes) { Self::Shared(bytes) } else { Self::copy(&bytes) }
    }

    fn copy(bytes: &[u8]) -> Self {
        tracing::debug!(bytes = bytes.len(), "the file's bytes are misaligned in memory: copying them");
        let mut words = vec![0_u64; bytes.len().div_ceil(8)].into_boxed_slice();
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self::Words(words, bytes.len())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
            Self::Shared(bytes) => bytes,
            Self::Words(words, length) => &bytemuck::cast_slice::<u64, u8>(words)[..*length],
            Self::Mapped(map) => map.bytes(),
        }
    }
}

fn is_aligned(bytes: &[u8]) -> bool {
    (bytes.as_ptr() as usize).is_multiple_of(BASE_ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misaligned_bytes_are_copied_and_aligned_ones_are_not() {
        static BYTES: Aligned<[u8; 32]> = Aligned([7; 32]);
        assert!(matches!(Storage::from_static(&BYTES.0), Storage::Static(_)));
        let copied = Storage::from_static(&BYTES.0[1..30]);
        assert!(matches!(copied, Storage::Words(..)));
        assert_eq!(copied.bytes(), [7; 29]);
        assert!(is_aligned(copied.bytes()));
        let shared: Arc<[u8]> = vec![7; 32].into();
        let start = shared.as_ptr();
        let stored = Storage::from_shared(Arc::clone(&shared));
        assert!(is_aligned(stored.bytes()) && stored.bytes() == &*shared);
        assert!(!is_aligned(&shared) || stored.bytes().as_ptr() == start, "bytes that were aligned are copied");
    }
}
