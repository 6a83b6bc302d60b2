//! Writing a file: header first, then each tensor's data as its source yields it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use consort_core::{Error, ErrorKind, Result};

use crate::reader::{DEFAULT_ALIGNMENT, byte_len};
use crate::shards::{SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, shard_path};
use crate::{Array, Metadata, TensorType, Value};

/// Writes GGUF version 3. Metadata and tensors are written in the order in which they were added.
///
/// A tensor's data may come from a closure that is called when its turn comes, so that a conversion of any size needs the
/// memory of one piece at a time.
///
/// ```
/// use consort_gguf::{Gguf, GgufWriter, TensorType};
///
/// # fn main() -> consort_core::Result<()> {
/// let mut writer = GgufWriter::new("toy");
/// writer.add_tensor("ones", &[32, 1000], TensorType::F32, |sink| {
///     for _ in 0..1000 {
///         sink.write(&[0, 0, 128, 63].repeat(32))?;
///     }
///     Ok(())
/// })?;
/// let mut file = Vec::new();
/// writer.write(&mut file)?;
/// assert_eq!(Gguf::from_bytes(file)?.require_tensor("ones")?.rows(), 1000);
/// # Ok(())
/// # }
/// ```
pub struct GgufWriter<'a> {
    metadata: Metadata,
    tensors: Vec<Pending<'a>>,
    names: HashSet<String>,
}

type Source<'a> = Box<dyn FnOnce(&mut TensorSink<'_>) -> Result<()> + 'a>;

struct Pending<'a> {
    name: String,
    dims: Vec<u64>,
    kind: TensorType,
    byte_len: u64,
    source: Source<'a>,
}

/// How much goes into one shard of a model. A tensor is never cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardLimit {
    /// So many tensors.
    Tensors(NonZeroUsize),
    /// So many bytes of tensor data; a tensor that is larger has a shard of its own.
    Bytes(NonZeroU64),
}

/// Takes one tensor's data, piece by piece, and counts it.
pub struct TensorSink<'s> {
    out: &'s mut dyn Write,
    left: u64,
}

impl TensorSink<'_> {
    /// Appends `bytes` to the tensor's data.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when writing fails; [`ErrorKind::Unexpected`] when more comes than the tensor's dimensions allow.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            return Err(Error::new(
                ErrorKind::Unexpected,
                "the source gave more data than the tensor's dimensions allow",
            ));
        };
        self.left = left;
        self.out.write_all(bytes).map_err(write_error)
    }
}

impl<'a> GgufWriter<'a> {
    /// A file whose `general.architecture` is `architecture`.
    #[must_use]
    pub fn new(architecture: &str) -> Self {
        let mut metadata = Metadata::new();
        metadata.insert("general.architecture", architecture);
        Self { metadata, tensors: Vec::new(), names: HashSet::new() }
    }

    /// A file with this metadata, for instance that of another file.
    #[must_use]
    pub fn with_metadata(metadata: Metadata) -> Self {
        Self { metadata, tensors: Vec::new(), names: HashSet::new() }
    }

    /// Sets a metadata key; one that was set before keeps its place and takes the new value.
    ///
    /// `general.alignment` (u32, a power of two of 8 to 65,536; 32 when absent) governs where data is placed.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.metadata.insert(key, value);
        self
    }

    /// What was set so far.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Adds a tensor whose data `source` yields when the file is written. `dims[0]` is the contiguous dimension.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidModel`] when the name was used before, or `dims` do not fit `kind` (one to four, none zero, rows of
    /// whole blocks).
    pub fn add_tensor(
        &mut self,
        name: impl Into<String>,
        dims: &[u64],
        kind: TensorType,
        source: impl FnOnce(&mut TensorSink<'_>) -> Result<()> + 'a,
    ) -> Result<&mut Self> {
        let name = name.into();
        let byte_len = byte_len(dims, kind)
            .map_err(|error| error.with_operation("gguf::add_tensor").with_context("tensor", &name))?;
        if !self.names.insert(name.clone()) {
            return Err(Error::new(ErrorKind::InvalidModel, "a tensor of this name was added before")
                .with_operation("gguf::add_tensor")
                .with_context("tensor", name));
        }
        self.tensors.push(Pending { name, dims: dims.to_vec(), kind, byte_len, source: Box::new(source) });
        Ok(self)
    }

    /// Adds a tensor whose data is at hand.
    ///
    /// # Errors
    /// As [`add_tensor`](Self::add_tensor), and when `data` is not as long as the dimensions say.
    pub fn add_tensor_bytes(
        &mut self,
        name: impl Into<String>,
        dims: &[u64],
        kind: TensorType,
        data: impl Into<Cow<'a, [u8]>>,
    ) -> Result<&mut Self> {
        let (name, data) = (name.into(), data.into());
        if byte_len(dims, kind).is_ok_and(|wanted| wanted != data.len() as u64) {
            return Err(Error::new(
                ErrorKind::InvalidModel,
                format!("{} bytes are not what {dims:?} numbers of {kind} take", data.len()),
            )
            .with_operation("gguf::add_tensor")
            .with_context("tensor", name));
        }
        self.add_tensor(name, dims, kind, move |sink| sink.write(&data))
    }

    /// Writes the file to `path`: first to a temporary file beside it, which then replaces whatever was there. When this
    /// fails, `path` is as it was and the temporary file is gone.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], and what [`write`](Self::write) gives.
    pub fn write_to(self, path: &Path) -> Result<()> {
        self.write_beside(path)?.rename_to(path)
    }

    /// Writes the model as shards beside `path`, `NAME.gguf`: `NAME-00001-of-00003.gguf` and so on, numbered as llama.cpp
    /// numbers them. The first holds the metadata. A model that fits into one is written to `path`. No shard appears under
    /// its name before all are whole. Gives the paths.
    ///
    /// # Errors
    /// Those of [`write_to`](Self::write_to); [`ErrorKind::InvalidConfig`] for more than 65,535 shards.
    pub fn write_shards(self, path: &Path, limit: ShardLimit) -> Result<Vec<PathBuf>> {
        let mut shards = self.split(limit)?;
        if shards.len() == 1 {
            let whole = shards.remove(0);
            whole.write_to(path)?;
            return Ok(vec![path.to_owned()]);
        }
        let count = shards.len() as u32;
        let is_gguf = path.extension().is_some_and(|extension| extension == "gguf");
        let base = if is_gguf { path.with_extension("") } else { path.to_owned() };
        let mut written = Vec::new();
        for (number, shard) in (1..).zip(shards) {
            let path = shard_path(&base, number, count);
            written.push((shard.write_beside(&path)?, path));
        }
        written
            .into_iter()
            .map(|(temporary, path)| {
                temporary.rename_to(&path)?;
                Ok(path)
            })
            .collect()
    }

    /// Deals the tensors out, in order.
    fn split(self, limit: ShardLimit) -> Result<Vec<Self>> {
        let mut shards: Vec<Vec<Pending<'a>>> = vec![Vec::new()];
        let (mut bytes, total) = (0_u64, self.tensors.len());
        for tensor in self.tensors {
            let held = shards.last().map_or(0, Vec::len);
            let full = match limit {
                ShardLimit::Tensors(most) => held >= most.get(),
                ShardLimit::Bytes(most) => held > 0 && bytes.saturating_add(tensor.byte_len) > most.get(),
            };
            if full {
                shards.push(Vec::new());
                bytes = 0;
            }
            bytes = bytes.saturating_add(tensor.byte_len);
            if let Some(shard) = shards.last_mut() {
                shard.push(tensor);
            }
        }
        let (Ok(count), Ok(total)) = (u16::try_from(shards.len()), i32::try_from(total)) else {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("{total} tensors in {} shards are more than the format can number", shards.len()),
            )
            .with_operation("gguf::write"));
        };
        let alone = count == 1;
        let mut rest = Metadata::new();
        if let Some(alignment) = self.metadata.get("general.alignment") {
            rest.insert("general.alignment", alignment.clone());
        }
        let mut first = Some(self.metadata);
        let writer = |(number, tensors): (u16, Vec<Pending<'a>>)| {
            let mut metadata = first.take().unwrap_or_else(|| rest.clone());
            if !alone {
                metadata.insert(SPLIT_NO, number);
                metadata.insert(SPLIT_COUNT, count);
                metadata.insert(SPLIT_TENSORS, total);
            }
            Self { metadata, tensors, names: HashSet::new() }
        };
        Ok((0..).zip(shards).map(writer).collect())
    }

    /// Writes the file under a temporary name beside `path`.
    fn write_beside(self, path: &Path) -> Result<Temporary> {
        let temporary = Temporary::create(path)?;
        let in_path = |error: Error| error.with_context("path", path.display().to_string());
        let mut out = BufWriter::with_capacity(1 << 20, &temporary.file);
        self.write(&mut out).map_err(in_path)?;
        out.flush().map_err(write_error).map_err(in_path)?;
        drop(out);
        temporary.file.sync_all().map_err(write_error).map_err(in_path)?;
        Ok(temporary)
    }

    /// Writes the file to `out`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when writing fails, [`ErrorKind::InvalidModel`] for a bad `general.alignment`,
    /// [`ErrorKind::Unexpected`] when a source gives too much or too little, and whatever a source gives.
    pub fn write(self, out: &mut dyn Write) -> Result<()> {
        let alignment = u64::from(self.metadata.u32_or("general.alignment", DEFAULT_ALIGNMENT as u32)?);
        if !alignment.is_power_of_two() || !(8..=1 << 16).contains(&alignment) {
            return Err(Error::new(ErrorKind::InvalidModel, "general.alignment is not a power of two of 8 to 65,536")
                .with_operation("gguf::write"));
        }
        let mut header = b"GGUF".to_vec();
        header.extend(3_u32.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in self.metadata.iter() {
            put_string(&mut header, key);
            header.extend(value.id().to_le_bytes());
            put_value(&mut header, value);
        }
        let mut offset = 0_u64;
        for tensor in &self.tensors {
            put_string(&mut header, &tensor.name);
            header.extend((tensor.dims.len() as u32).to_le_bytes());
            for dim in &tensor.dims {
                header.extend(dim.to_le_bytes());
            }
            header.extend(tensor.kind.id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset = offset
                .checked_add(tensor.byte_len)
                .and_then(|end| end.checked_next_multiple_of(alignment))
                .ok_or_else(|| Error::new(ErrorKind::InvalidModel, "the file would be larger than 64 bits can say"))?;
        }
        header.resize(header.len().next_multiple_of(alignment as usize), 0);
        out.write_all(&header).map_err(write_error)?;
        drop(header);

        let padding = vec![0; alignment as usize];
        for tensor in self.tensors {
            let mut sink = TensorSink { out, left: tensor.byte_len };
            let name = tensor.name;
            let outcome = (tensor.source)(&mut sink);
            let left = sink.left;
            outcome
                .and_then(|()| match left {
                    0 => Ok(()),
                    left => Err(Error::new(
                        ErrorKind::Unexpected,
                        format!("the source gave {left} bytes less than the tensor's dimensions need"),
                    )),
                })
                .map_err(|error| error.with_context("tensor", &name))?;
            let pad = (alignment - tensor.byte_len % alignment) % alignment;
            out.write_all(&padding[..pad as usize]).map_err(write_error)?;
        }
        Ok(())
    }
}

fn write_error(source: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("writing the file failed: {source}"))
        .with_operation("gguf::write")
        .with_source(source)
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.extend(v.to_le_bytes()),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => put_string(out, v),
        Value::Array(v) => put_array(out, v),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(values) => out.extend(values),
        Array::I8(values) => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        Array::U16(values) => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        Array::I16(values) => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        Array::U32(values) => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        Array::I32(values) => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        Array::F32(values) => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        Array::Bool(values) => out.extend(values.iter().map(|&v| u8::from(v))),
        Array::String(values) => values.iter().for_each(|v| put_string(out, v)),
        Array::Array(values) => values.iter().for_each(|v| put_array(out, v)),
        Array::U64(values) => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        Array::I64(values) => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        Array::F64(values) => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
    }
}

/// A file beside the target that is removed unless it was renamed.
struct Temporary {
    file: File,
    path: PathBuf,
    renamed: bool,
}

impl Temporary {
    fn create(target: &Path) -> Result<Self> {
        // Unique among the threads of this process and among processes; `create_new` refuses what is there nevertheless.
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let Some(name) = target.file_name() else {
            return Err(Error::new(ErrorKind::Io, "the path has no file name")
                .with_operation("gguf::write")
                .with_context("path", target.display().to_string()));
        };
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}.{count}.partial", std::process::id()));
        let path = target.with_file_name(temporary);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|source| Error::io(&path, source).with_operation("gguf::write"))?;
        Ok(Self { file, path, renamed: false })
    }

    fn rename_to(mut self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target).map_err(|source| Error::io(target, source).with_operation("gguf::write"))?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a temporary file was left behind");
        }
    }
}
