//! A checkpoint's tensors: one safetensors file or shards, mapped, in the order in which the converter writes them.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use consort_core::{Error, ErrorKind, Result};
use consort_gguf::MappedFile;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::Deserialize;

/// The largest JSON file that is read, in bytes; a tokenizer of the family takes about 20 million.
const MAX_JSON_BYTES: u64 = 256 << 20;

pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidModel, message).with_operation("forge::convert")
}

/// Reads a JSON file of bounded size.
pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let bytes = read_bounded(path)?;
    serde_json::from_slice(&bytes).map_err(|source| {
        invalid(format!("the file does not parse: {source}"))
            .with_context("path", path.display().to_string())
            .with_source(source)
    })
}

/// Reads a JSON file, or gives `None` where there is none.
pub(crate) fn read_json_if_there<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    if path.is_file() { read_json(path).map(Some) } else { Ok(None) }
}

/// Reads a file of bounded size.
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let io = |source| Error::io(path, source).with_operation("forge::convert");
    let size = fs::metadata(path).map_err(io)?.len();
    if size > MAX_JSON_BYTES {
        return Err(invalid(format!("the file has {size} bytes, more than {MAX_JSON_BYTES}"))
            .with_context("path", path.display().to_string()));
    }
    fs::read(path).map_err(io)
}

/// The shards of a checkpoint, mapped.
pub(crate) struct Shards {
    files: Vec<(PathBuf, MappedFile)>,
    /// The tensors that the index announces, each with its shard's file name; empty without an index.
    announced: BTreeMap<String, String>,
}

/// A tensor of the checkpoint, by its name there.
pub(crate) struct Source<'a> {
    pub(crate) name: String,
    pub(crate) view: TensorView<'a>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let index: Option<Index> = read_json_if_there(&directory.join("model.safetensors.index.json"))?;
        let announced = index.map(|index| index.weight_map).unwrap_or_default();
        let mut names: Vec<String> = if announced.is_empty() {
            let io = |source| Error::io(directory, source).with_operation("forge::convert");
            let mut names = Vec::new();
            for entry in fs::read_dir(directory).map_err(io)? {
                let name = entry.map_err(io)?.file_name();
                if let Some(name) = name.to_str()
                    && name.starts_with("model")
                    && name.ends_with(".safetensors")
                {
                    names.push(name.to_owned());
                }
            }
            names
        } else {
            let unique: HashSet<&String> = announced.values().collect();
            unique.into_iter().cloned().collect()
        };
        names.sort();
        if names.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "the directory has no model*.safetensors")
                .with_operation("forge::convert")
                .with_context("path", directory.display().to_string()));
        }
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            // The index is input: it must not lead out of the directory.
            if Path::new(&name).file_name().is_none_or(|last| last != name.as_str()) {
                return Err(invalid("the index names a file outside the directory").with_context("file", name));
            }
            let path = directory.join(name);
            let file = MappedFile::open(&path)?;
            files.push((path, file));
        }
        Ok(Self { files, announced })
    }

    /// All tensors: by shard, and in each by name, which is the order of the reference converter.
    pub(crate) fn tensors(&self) -> Result<Vec<Source<'_>>> {
        let mut all = Vec::new();
        let mut names = HashSet::new();
        for (path, file) in &self.files {
            let in_file = |error: Error| error.with_context("path", path.display().to_string());
            let parsed = SafeTensors::deserialize(file.bytes())
                .map_err(|source| invalid(format!("this is not safetensors: {source}")).with_source(source))
                .map_err(in_file)?;
            let start = all.len();
            for (name, view) in parsed.tensors() {
                if !names.insert(name.clone()) {
                    return Err(in_file(invalid("two shards hold the same tensor").with_context("tensor", name)));
                }
                all.push(Source { name, view });
            }
            all[start..].sort_by(|left, right| left.name.cmp(&right.name));
        }
        if let Some((name, shard)) = self.announced.iter().find(|(name, _)| !names.contains(*name)) {
            return Err(invalid(format!(
                "the index places a tensor in {shard}, which lacks it; the download is incomplete"
            ))
            .with_context("tensor", name));
        }
        Ok(all)
    }
}
