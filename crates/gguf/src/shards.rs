//! Models in several files: shards that the format numbers, and files that complete one another.

use std::path::{Path, PathBuf};

use consort_core::{Error, ErrorKind, Result};

use crate::cursor::invalid;
use crate::storage::{MappedFile, Storage};
use crate::{Gguf, Metadata};

/// The keys that number the shards of a model, as llama.cpp's `gguf-split` writes them.
pub(crate) const SPLIT_NO: &str = "split.no";
pub(crate) const SPLIT_COUNT: &str = "split.count";
pub(crate) const SPLIT_TENSORS: &str = "split.tensors.count";

/// What the name of a shard says: `NAME-00002-of-00003.gguf`.
///
/// ```
/// use std::path::Path;
/// use consort_gguf::ShardName;
///
/// let name = ShardName::parse(Path::new("models/m-Q8_0-00002-of-00003.gguf")).unwrap();
/// assert_eq!((name.number, name.count), (2, 3));
/// assert_eq!(name.sibling(1), Path::new("models/m-Q8_0-00001-of-00003.gguf"));
/// assert!(ShardName::parse(Path::new("models/m-Q8_0.gguf")).is_none());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardName {
    /// The path without what numbers the shard: its folder and `NAME`.
    pub base: PathBuf,
    /// The shard's number, from 1.
    pub number: u32,
    /// How many there are.
    pub count: u32,
}

impl ShardName {
    /// What `path` says; `None` where it does not end in five digits, `-of-`, five digits and `.gguf`, or counts wrongly.
    #[must_use]
    pub fn parse(path: &Path) -> Option<Self> {
        let rest = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = rest.rsplit_once("-of-")?;
        let (base, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| {
            let plain = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| text.parse::<u32>().ok()).flatten()
        };
        let (number, count) = (digits(number)?, digits(count)?);
        let counts = !base.is_empty() && (1..=count).contains(&number);
        counts.then(|| Self { base: path.with_file_name(base), number, count })
    }

    /// The path of shard `number` of the same model.
    #[must_use]
    pub fn sibling(&self, number: u32) -> PathBuf {
        shard_path(&self.base, number, self.count)
    }
}

/// The path of a shard: `base` is a folder and a name without `.gguf`.
pub(crate) fn shard_path(base: &Path, number: u32, count: u32) -> PathBuf {
    let mut name = base.file_name().unwrap_or_default().to_owned();
    name.push(format!("-{number:05}-of-{count:05}.gguf"));
    base.with_file_name(name)
}

/// What a file says of the shards it belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Split {
    /// This shard's, from 0.
    number: u32,
    /// At least 2.
    count: u32,
    /// Of all shards.
    tensors: u32,
}

impl Split {
    /// `None` for a file that is a whole model.
    fn read(metadata: &Metadata) -> Result<Option<Self>> {
        let count = metadata.u32_or(SPLIT_COUNT, 0)?;
        if count < 2 {
            return Ok(None);
        }
        let (number, tensors) = (metadata.require_u32(SPLIT_NO)?, metadata.require_u32(SPLIT_TENSORS)?);
        if number >= count {
            return Err(invalid(format!("shard {number}, counted from 0, cannot be one of {count}"))
                .with_context("key", SPLIT_NO));
        }
        Ok(Some(Self { number, count, tensors }))
    }
}

fn map(path: &Path) -> Result<Gguf> {
    MappedFile::open(path).and_then(|file| Gguf::parse(Storage::Mapped(file))).map_err(|error| in_file(error, path))
}

fn in_file(error: Error, path: &Path) -> Error {
    if error.context().any(|(key, _)| key == "path") {
        return error;
    }
    error.with_context("path", path.display().to_string())
}

impl Gguf {
    /// Maps the model at `path` into memory and reads its header. A file that is one shard of several
    /// (`NAME-00001-of-00003.gguf`, any of them) opens them all: they must lie in the same folder.
    ///
    /// The files must not be truncated or rewritten in place while they are open: that is undefined behaviour, as for every
    /// mapped file. Replacing one by renaming another over it, as [`GgufWriter::write_to`](crate::GgufWriter::write_to) does,
    /// is safe.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] and [`ErrorKind::Io`], also for a shard, which the message names; [`ErrorKind::InvalidModel`]
    /// where a file breaks the promises of [`Gguf`], or shards contradict each other.
    pub fn open(path: &Path) -> Result<Self> {
        let file = map(path)?;
        let split = Split::read(&file.metadata).map_err(|error| in_file(error, path))?;
        match split {
            None => Ok(file),
            Some(split) => Self::open_shards(path, file, split),
        }
    }

    /// Opens several files as one model: the first one's metadata, and the tensors of all. Each may itself be in shards.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); [`ErrorKind::InvalidModel`] when two files hold a tensor of the same name or are of
    /// different architectures, and [`ErrorKind::InvalidRequest`] for no file at all.
    pub fn open_all<P: AsRef<Path>>(paths: &[P]) -> Result<Self> {
        let mut whole: Option<Self> = None;
        for path in paths {
            let file = Self::open(path.as_ref())?;
            match &mut whole {
                None => whole = Some(file),
                Some(whole) => whole.append(file).map_err(|error| in_file(error, path.as_ref()))?,
            }
        }
        whole.ok_or_else(|| {
            Error::new(ErrorKind::InvalidRequest, "no model file was named").with_operation("gguf::open")
        })
    }

    fn open_shards(path: &Path, first_opened: Self, split: Split) -> Result<Self> {
        let wrong = |message: String| in_file(invalid(message), path);
        let Some(name) = ShardName::parse(path) else {
            return Err(wrong(format!(
                "this is one of {} shards, and its name does not end in -{:05}-of-{:05}.gguf, by which the others are found",
                split.count,
                split.number.saturating_add(1),
                split.count
            )));
        };
        if (name.number - 1, name.count) != (split.number, split.count) {
            return Err(wrong(format!(
                "by its name this is shard {} of {}, and by its metadata {} of {}",
                name.number,
                name.count,
                split.number.saturating_add(1),
                split.count
            )));
        }
        let mut opened = Some(first_opened);
        let mut whole: Option<Self> = None;
        for number in 0..split.count {
            let path = name.sibling(number + 1);
            let shard = match (number == split.number).then(|| opened.take()).flatten() {
                Some(opened) => opened,
                None => map(&path)
                    .map_err(|error| error.with_context("shard", format!("{} of {}", number + 1, split.count)))?,
            };
            let says = Split::read(&shard.metadata).map_err(|error| in_file(error, &path))?;
            if says != Some(Split { number, ..split }) {
                let error = match says {
                    None => "the file is named as a shard, and its metadata say nothing of shards".to_owned(),
                    Some(says) => format!(
                        "this should be shard {} of {} with {} tensors in all, and says that it is shard {} of {} with {}",
                        number + 1,
                        split.count,
                        split.tensors,
                        says.number.saturating_add(1),
                        says.count,
                        says.tensors
                    ),
                };
                return Err(in_file(invalid(error), &path));
            }
            match &mut whole {
                None => whole = Some(shard),
                Some(whole) => whole.append(shard).map_err(|error| in_file(error, &path))?,
            }
        }
        let mut whole = whole.ok_or_else(|| wrong("the model has no shards".to_owned()))?;
        if whole.tensors.len() as u64 != u64::from(split.tensors) {
            return Err(wrong(format!(
                "the shards hold {} tensors together, and their metadata announce {}",
                whole.tensors.len(),
                split.tensors
            ))
            .with_context("key", SPLIT_TENSORS));
        }
        // Whoever writes the model anew writes one file.
        whole.metadata = std::mem::take(&mut whole.metadata).filtered(|key| !is_split(key));
        Ok(whole)
    }

    /// Adds the files and tensors of `other`, whose metadata are let go.
    fn append(&mut self, other: Self) -> Result<()> {
        const KEY: &str = "general.architecture";
        if let Some(theirs) = other.metadata.get(KEY)
            && self.metadata.get(KEY).is_some_and(|ours| ours != theirs)
        {
            return Err(invalid("the files are of different architectures, so they are not one model's")
                .with_context("key", KEY));
        }
        let (files, tensors) = (self.files.len(), self.tensors.len());
        self.files.extend(other.files);
        self.tensors.reserve(other.tensors.len());
        for (at, mut info) in other.tensors.into_iter().enumerate() {
            if self.by_name.insert(info.name.clone(), tensors + at).is_some() {
                return Err(invalid("another of the model's files holds a tensor of this name too")
                    .with_context("tensor", info.name));
            }
            info.file += files;
            self.tensors.push(info);
        }
        Ok(())
    }

    /// This file, unless it is one shard of several.
    pub(crate) fn alone(self) -> Result<Self> {
        match Split::read(&self.metadata)? {
            None => Ok(self),
            Some(Split { number, count, .. }) => Err(invalid(format!(
                "this is shard {} of {count}: open it by its path, so that the others are found beside it",
                number.saturating_add(1)
            ))
            .with_context("key", SPLIT_COUNT)),
        }
    }
}

fn is_split(key: &str) -> bool {
    [SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS].contains(&key)
}
