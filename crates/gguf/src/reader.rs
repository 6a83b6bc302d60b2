//! Opening a file: header, tensor table, and the checks that make its data safe to borrow.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use consort_core::{Error, ErrorKind, Result};

use crate::cursor::{Cursor, invalid};
use crate::storage::{BASE_ALIGNMENT, Storage};
use crate::{Array, Metadata, TensorType, Value};

/// The alignment of tensor data unless the file says otherwise.
pub(crate) const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 16;
const MAX_DIMENSIONS: usize = 4;
const MAX_KEY_BYTES: usize = 65_535;
const MAX_NAME_BYTES: usize = 1_024;
/// Strings may be long (a chat template, a licence text), but the file bounds them anyway.
const MAX_STRING_BYTES: usize = usize::MAX;
/// How deep arrays of arrays may nest.
const MAX_NESTING: usize = 4;
/// The smallest entries that the format allows, in bytes: key length, type and one byte of value; ...
const MIN_METADATA_BYTES: usize = 8 + 4 + 1;
/// ... and name length, dimension count, one dimension, type and offset.
const MIN_TENSOR_BYTES: usize = 8 + 4 + 8 + 4 + 8;

/// An open GGUF model, version 2 or 3, little endian: one file, or several whose tensors are one model's (see
/// [`open`](Self::open)). Share it in an [`Arc`].
///
/// A model that opens keeps these promises: keys and tensor names are unique; every tensor has one to four dimensions, none
/// of them zero, and whole blocks in each row; its data lies inside its file, starts at a multiple of 8 bytes in memory
/// (so it may be viewed as any number type), and overlaps no other tensor's; arrays nest at most four deep. Memory use
/// while opening is proportional to the size of the headers in the files.
pub struct Gguf {
    /// In order; there is at least one.
    pub(crate) files: Vec<Part>,
    /// That of the first file.
    pub(crate) metadata: Metadata,
    /// Those of all files, one file after the other.
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) by_name: HashMap<String, usize>,
}

/// One file of a model.
pub(crate) struct Part {
    storage: Storage,
    version: u32,
    /// Where tensor data begins.
    data_start: usize,
    /// Where the header ends; data begins at the next multiple of the alignment.
    header_end: usize,
}

/// A row of the tensor table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// The name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// One to four dimensions, the contiguous one first: `dims[0]` is the length of a row. A PyTorch weight of shape
    /// `[out, in]` has `dims == [in, out]`.
    pub dims: Vec<u64>,
    /// How the numbers are laid out.
    pub kind: TensorType,
    /// Where the data begins, in bytes from the start of its file's data section.
    pub offset: u64,
    byte_len: u64,
    pub(crate) file: usize,
}

impl TensorInfo {
    /// Numbers in a row: `dims[0]`.
    #[must_use]
    pub fn row_len(&self) -> u64 {
        self.dims.first().copied().unwrap_or(1)
    }

    /// How many rows there are: the product of the other dimensions.
    #[must_use]
    pub fn rows(&self) -> u64 {
        // Cannot overflow in an open file, where the product of all dimensions was checked; saturating keeps a copy with
        // edited dimensions harmless.
        self.dims.iter().skip(1).fold(1, |product, &dim| product.saturating_mul(dim))
    }

    /// How many numbers there are.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.row_len().saturating_mul(self.rows())
    }

    /// How many bytes the data takes.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.byte_len
    }

    /// Which of the model's files holds the data, counted from 0.
    #[must_use]
    pub fn file(&self) -> usize {
        self.file
    }
}

impl Gguf {
    /// Reads a file that is part of the program, such as a bundled model. The data is used in place if the bytes start at a
    /// multiple of 8 in memory, for which [`Aligned`](crate::Aligned) provides; otherwise they are copied once.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidModel`], as [`open`](Self::open), and for one shard of several: its fellows are found by path.
    pub fn from_static(bytes: &'static [u8]) -> Result<Self> {
        Self::parse(Storage::from_static(bytes))?.alone()
    }

    /// Reads a file that is in memory.
    ///
    /// # Errors
    /// As [`from_static`](Self::from_static).
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::parse(Storage::from_vec(bytes))?.alone()
    }

    /// Reads a file that is in memory and shared with others. It is not copied where the bytes start at a multiple of 8 in
    /// memory.
    ///
    /// # Errors
    /// As [`from_static`](Self::from_static).
    pub fn from_shared(bytes: Arc<[u8]>) -> Result<Self> {
        Self::parse(Storage::from_shared(bytes))?.alone()
    }

    /// The format's version, 2 or 3, of the first file.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.files.first().map_or(0, |file| file.version)
    }

    /// How many files the model is in: 1, or the number of its shards and of what completes them.
    #[must_use]
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// The metadata of the first file, in its order; of a model in shards without the keys that number them (`split.*`).
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensor table, in the file's order, one file after the other.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.iter()
    }

    /// The type that most of the tensors' bytes have; F32 where there is no tensor.
    #[must_use]
    pub fn bulk_type(&self) -> TensorType {
        let mut kinds: Vec<(TensorType, u64)> = Vec::new();
        for info in &self.tensors {
            match kinds.iter_mut().find(|(kind, _)| *kind == info.kind) {
                Some((_, bytes)) => *bytes = bytes.saturating_add(info.byte_len()),
                None => kinds.push((info.kind, info.byte_len())),
            }
        }
        kinds.iter().max_by_key(|(_, bytes)| *bytes).map_or(TensorType::F32, |(kind, _)| *kind)
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).and_then(|&at| self.tensors.get(at))
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidModel`], naming the tensor, when the file lacks it.
    pub fn require_tensor(&self, name: &str) -> Result<&TensorInfo> {
        self.tensor(name).ok_or_else(|| {
            Error::new(ErrorKind::InvalidModel, "the file lacks a tensor that this model needs")
                .with_operation("gguf::tensor")
                .with_context("tensor", name)
        })
    }

    /// The data of `info`, in place: [`byte_len`](TensorInfo::byte_len) bytes that start at a multiple of 8 in memory.
    ///
    /// `info` must come from this model. The description of another model's tensor gives other bytes of this one, or none
    /// where its range lies outside.
    #[must_use]
    pub fn tensor_data(&self, info: &TensorInfo) -> &[u8] {
        self.files.get(info.file).map_or(&[], |file| file.tensor_data(info))
    }

    /// The size of the file in bytes; of all files together, where there are several.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.files.iter().map(|file| file.storage.bytes().len() as u64).sum()
    }

    /// A BLAKE3 digest that tells models apart: over the header (metadata and tensor table) and the length of each file, and
    /// from each tensor its first and last bytes (up to 64 each) and as many from its middle.
    ///
    /// It is an identity, good for keying caches, and cheap for a large mapped file. It is no proof of integrity: most of
    /// the weights are not read.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        const SAMPLE: usize = 64;
        let mut hasher = blake3::Hasher::new();
        for file in &self.files {
            let bytes = file.storage.bytes();
            hasher.update(&bytes[..file.header_end]);
            hasher.update(&(bytes.len() as u64).to_le_bytes());
        }
        for info in &self.tensors {
            let data = self.tensor_data(info);
            let sample = SAMPLE.min(data.len());
            for start in [0, (data.len() - sample) / 2, data.len() - sample] {
                hasher.update(&data[start..start + sample]);
            }
        }
        *hasher.finalize().as_bytes()
    }

    /// Reads one file, which may be a shard of several.
    pub(crate) fn parse(storage: Storage) -> Result<Self> {
        let bytes = storage.bytes();
        let mut cursor = Cursor::new(bytes);
        if cursor.take(4).ok() != Some(b"GGUF".as_slice()) {
            return Err(invalid("this is not a GGUF file: it does not begin with GGUF"));
        }
        let version = cursor.u32()?;
        match version {
            2 | 3 => {}
            1 => return Err(invalid("GGUF version 1 is no longer in use; convert the model again")),
            swapped if matches!(swapped.swap_bytes(), 1..=3) => {
                return Err(invalid("this GGUF file is big endian; convert the model for little-endian machines"));
            }
            other => return Err(invalid(format!("GGUF version {other} is not known; versions 2 and 3 are"))),
        }

        let tensor_count = cursor.count(MIN_TENSOR_BYTES, "tensors")?;
        let metadata_count = cursor.count(MIN_METADATA_BYTES, "metadata keys")?;
        let mut metadata = Metadata::new();
        for _ in 0..metadata_count {
            let key = cursor.string(MAX_KEY_BYTES, "metadata key")?;
            let value = read_value(&mut cursor).map_err(|error| error.with_context("key", key))?;
            if metadata.insert(key, value).is_some() {
                return Err(invalid("a metadata key stands twice in the file").with_context("key", key));
            }
        }
        let alignment = alignment(&metadata)?;

        // Checked again: the metadata has used up bytes since the count was read.
        let tensor_count = cursor.check_count(tensor_count as u64, MIN_TENSOR_BYTES, "tensors")?;
        let mut tensors = Vec::with_capacity(tensor_count);
        let mut by_name = HashMap::with_capacity(tensor_count);
        for at in 0..tensor_count {
            let name = cursor.string(MAX_NAME_BYTES, "tensor name")?;
            let info = read_tensor(&mut cursor, name, alignment).map_err(|error| error.with_context("tensor", name))?;
            if by_name.insert(info.name.clone(), at).is_some() {
                return Err(invalid("a tensor's name stands twice in the file").with_context("tensor", name));
            }
            tensors.push(info);
        }

        let header_end = cursor.position();
        let data_start = usize::try_from((header_end as u64).next_multiple_of(alignment))
            .map_err(|_| invalid("the header is larger than this machine can address"))?;
        check_data(&tensors, data_start, bytes.len())?;
        let files = vec![Part { storage, version, data_start, header_end }];
        Ok(Self { files, metadata, tensors, by_name })
    }
}

impl Part {
    fn tensor_data(&self, info: &TensorInfo) -> &[u8] {
        data_range(self.data_start, info.offset, info.byte_len)
            .and_then(|range| self.storage.bytes().get(range))
            .unwrap_or(&[])
    }
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf")
            .field("version", &self.version())
            .field("files", &self.files.len())
            .field("metadata", &self.metadata.len())
            .field("tensors", &self.tensors.len())
            .field("file_len", &self.file_len())
            .finish_non_exhaustive()
    }
}

fn alignment(metadata: &Metadata) -> Result<u64> {
    let alignment = u64::from(metadata.u32_or("general.alignment", DEFAULT_ALIGNMENT as u32)?);
    if !alignment.is_power_of_two() || !(BASE_ALIGNMENT as u64..=MAX_ALIGNMENT).contains(&alignment) {
        return Err(invalid(format!(
            "an alignment of {alignment} is not a power of two between {BASE_ALIGNMENT} and {MAX_ALIGNMENT}"
        ))
        .with_context("key", "general.alignment"));
    }
    Ok(alignment)
}

fn read_tensor(cursor: &mut Cursor<'_>, name: &str, alignment: u64) -> Result<TensorInfo> {
    let dimensions = cursor.u32()? as usize;
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(invalid(format!("a tensor of {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed")));
    }
    let mut dims = Vec::with_capacity(dimensions);
    for _ in 0..dimensions {
        dims.push(cursor.u64()?);
    }
    let kind = TensorType::from_id(cursor.u32()?).map_err(|error| error.with_operation("gguf::open"))?;
    let offset = cursor.u64()?;
    if !offset.is_multiple_of(alignment) {
        return Err(invalid(format!("the data's offset {offset} is not a multiple of the alignment {alignment}")));
    }
    let byte_len = byte_len(&dims, kind)?;
    Ok(TensorInfo { name: name.to_owned(), dims, kind, offset, byte_len, file: 0 })
}

/// Checks `dims` against `kind` and gives the size of the data; shared with the writer.
pub(crate) fn byte_len(dims: &[u64], kind: TensorType) -> Result<u64> {
    if dims.is_empty() || dims.len() > MAX_DIMENSIONS || dims.contains(&0) {
        return Err(invalid(format!("the dimensions {dims:?} are not 1 to {MAX_DIMENSIONS} numbers above zero")));
    }
    if !dims[0].is_multiple_of(kind.block_len()) {
        return Err(invalid(format!(
            "rows of {} numbers are not whole blocks of {} as {kind} needs",
            dims[0],
            kind.block_len()
        )));
    }
    dims.iter()
        .try_fold(1_u64, |product, &dim| product.checked_mul(dim))
        .and_then(|elements| kind.bytes_for(elements))
        .ok_or_else(|| invalid(format!("the product of the dimensions {dims:?} is beyond 64 bits")))
}

fn data_range(data_start: usize, offset: u64, byte_len: u64) -> Option<std::ops::Range<usize>> {
    let start = data_start.checked_add(usize::try_from(offset).ok()?)?;
    Some(start..start.checked_add(usize::try_from(byte_len).ok()?)?)
}

/// Every tensor's data lies inside the file, and no two overlap.
fn check_data(tensors: &[TensorInfo], data_start: usize, file_len: usize) -> Result<()> {
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_unstable_by_key(|info| info.offset);
    for info in &order {
        if data_range(data_start, info.offset, info.byte_len).is_none_or(|range| range.end > file_len) {
            return Err(invalid(format!(
                "the data ({} bytes at offset {} of the data section) runs past the end of the file; it is truncated or \
                 damaged",
                info.byte_len, info.offset
            ))
            .with_context("tensor", &info.name));
        }
    }
    for pair in order.windows(2) {
        if let [first, second] = pair
            && first.offset + first.byte_len > second.offset
        {
            return Err(
                invalid(format!("the data overlaps that of {}", first.name)).with_context("tensor", &second.name)
            );
        }
    }
    Ok(())
}

fn read_value(cursor: &mut Cursor<'_>) -> Result<Value> {
    let id = cursor.u32()?;
    Ok(match id {
        0 => Value::U8(scalar(cursor, u8::from_le_bytes)?),
        1 => Value::I8(scalar(cursor, i8::from_le_bytes)?),
        2 => Value::U16(scalar(cursor, u16::from_le_bytes)?),
        3 => Value::I16(scalar(cursor, i16::from_le_bytes)?),
        4 => Value::U32(scalar(cursor, u32::from_le_bytes)?),
        5 => Value::I32(scalar(cursor, i32::from_le_bytes)?),
        6 => Value::F32(scalar(cursor, f32::from_le_bytes)?),
        7 => Value::Bool(boolean(cursor.take(1)?[0])?),
        8 => Value::String(cursor.string(MAX_STRING_BYTES, "metadata string")?.to_owned()),
        9 => Value::Array(read_array(cursor, MAX_NESTING)?),
        10 => Value::U64(scalar(cursor, u64::from_le_bytes)?),
        11 => Value::I64(scalar(cursor, i64::from_le_bytes)?),
        12 => Value::F64(scalar(cursor, f64::from_le_bytes)?),
        _ => return Err(unknown_type(id)),
    })
}

fn read_array(cursor: &mut Cursor<'_>, depth_left: usize) -> Result<Array> {
    let id = cursor.u32()?;
    Ok(match id {
        0 => Array::U8(scalars(cursor, u8::from_le_bytes)?),
        1 => Array::I8(scalars(cursor, i8::from_le_bytes)?),
        2 => Array::U16(scalars(cursor, u16::from_le_bytes)?),
        3 => Array::I16(scalars(cursor, i16::from_le_bytes)?),
        4 => Array::U32(scalars(cursor, u32::from_le_bytes)?),
        5 => Array::I32(scalars(cursor, i32::from_le_bytes)?),
        6 => Array::F32(scalars(cursor, f32::from_le_bytes)?),
        7 => {
            let count = cursor.count(1, "array elements")?;
            Array::Bool(cursor.take(count)?.iter().map(|&byte| boolean(byte)).collect::<Result<_>>()?)
        }
        8 => {
            let count = cursor.count(8, "array elements")?;
            let mut strings = Vec::with_capacity(count);
            for _ in 0..count {
                strings.push(cursor.string(MAX_STRING_BYTES, "metadata string")?.to_owned());
            }
            Array::String(strings)
        }
        9 => {
            let Some(depth_left) = depth_left.checked_sub(1).filter(|&left| left > 0) else {
                return Err(invalid(format!("arrays nest deeper than {MAX_NESTING}")));
            };
            let count = cursor.count(4 + 8, "array elements")?;
            let mut arrays = Vec::with_capacity(count);
            for _ in 0..count {
                arrays.push(read_array(cursor, depth_left)?);
            }
            Array::Array(arrays)
        }
        10 => Array::U64(scalars(cursor, u64::from_le_bytes)?),
        11 => Array::I64(scalars(cursor, i64::from_le_bytes)?),
        12 => Array::F64(scalars(cursor, f64::from_le_bytes)?),
        _ => return Err(unknown_type(id)),
    })
}

fn unknown_type(id: u32) -> Error {
    invalid(format!("metadata type {id} is not known"))
}

fn boolean(byte: u8) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(invalid(format!("a bool is stored as {other}, not as 0 or 1"))),
    }
}

fn scalar<T, const N: usize>(cursor: &mut Cursor<'_>, convert: fn([u8; N]) -> T) -> Result<T> {
    let mut bytes = [0; N];
    bytes.copy_from_slice(cursor.take(N)?);
    Ok(convert(bytes))
}

fn scalars<T, const N: usize>(cursor: &mut Cursor<'_>, convert: fn([u8; N]) -> T) -> Result<Vec<T>> {
    let count = cursor.count(N, "array elements")?;
    // `count` was checked against what is left, so the product fits.
    let bytes = cursor.take(count * N)?;
    let (chunks, _) = bytes.as_chunks::<N>();
    Ok(chunks.iter().map(|&chunk| convert(chunk)).collect())
}
