//! The importance matrix: how strongly each column of each matrix is excited by a calibration text.
//!
//! The file is the GGUF that llama.cpp's `llama-imatrix` writes (its pull request 9400 describes it): `general.type` is
//! `imatrix`, and for each matrix NAME there are two F32 tensors, `NAME.in_sum2` `[columns, experts]` with the sums of
//! squared activations, and `NAME.counts` `[1, experts]` with the number of tokens that were summed over.

use std::collections::HashMap;
use std::path::Path;

use consort_core::{Error, ErrorKind, Result};
use consort_gguf::{Gguf, TensorInfo, TensorType, dequantize};

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidModel, message).with_operation("forge::importance")
}

/// Mean squares of the activations that meet each column, by matrix.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Importance {
    entries: HashMap<String, Entry>,
    pub(super) chunks: Option<u32>,
    pub(super) dataset: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    columns: usize,
    /// Experts one after the other, `columns` numbers each.
    means: Vec<f32>,
}

impl Importance {
    /// Reads an importance matrix in GGUF.
    ///
    /// # Errors
    /// Those of [`Gguf::open`]; [`ErrorKind::InvalidModel`] where the file is no importance matrix, a matrix lacks one of its
    /// two tensors or their shapes differ, or a number is negative or not finite.
    pub fn open(path: &Path) -> Result<Self> {
        let in_file = |error: Error| error.with_context("path", path.display().to_string());
        let gguf = Gguf::open(path).map_err(|error| {
            let kind = error.kind();
            if kind != ErrorKind::InvalidModel {
                return error;
            }
            error.with_context(
                "wanted",
                "an importance matrix in GGUF; llama-imatrix writes it with --output-format gguf",
            )
        })?;
        Self::read(&gguf).map_err(in_file)
    }

    /// Reads an importance matrix from an open file.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) but for the opening.
    pub fn read(gguf: &Gguf) -> Result<Self> {
        let kind = gguf.metadata().get_str("general.type")?;
        if kind != Some("imatrix") {
            return Err(invalid(format!(
                "the file is no importance matrix: its general.type is {}",
                kind.unwrap_or("not set")
            )));
        }
        let mut entries = HashMap::new();
        for info in gguf.tensors() {
            let named = |error: Error| error.with_context("tensor", &info.name);
            if let Some(name) = info.name.strip_suffix(SUMS) {
                entries.insert(name.to_owned(), entry(gguf, name, info).map_err(named)?);
            } else if let Some(name) = info.name.strip_suffix(COUNTS)
                && gguf.tensor(&format!("{name}{SUMS}")).is_none()
            {
                return Err(named(invalid("the matrix has counts, but no sums")));
            }
        }
        let metadata = gguf.metadata();
        let datasets = metadata.contains("imatrix.datasets").then(|| metadata.array_of_strings("imatrix.datasets"));
        Ok(Self {
            entries,
            chunks: metadata.get_u32("imatrix.chunk_count")?,
            dataset: datasets.transpose()?.and_then(|names| names.first().cloned()),
        })
    }

    /// How many matrices it knows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it knows none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The importance of the columns of the tensor `name`: for each of its experts, one row after another.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidModel`] when the file's shape for this tensor is not that of `dims`.
    pub(super) fn of(&self, name: &str, dims: &[u64]) -> Result<Option<&[f32]>> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        let columns = dims.first().copied().unwrap_or(1);
        let experts = dims.iter().skip(2).product::<u64>();
        let stored = (entry.means.len() / entry.columns.max(1)) as u64;
        if entry.columns as u64 != columns || stored != experts {
            return Err(invalid(format!(
                "the importance matrix is of another model: it has {} columns and {stored} experts where this has {columns} and \
                 {experts}",
                entry.columns
            ))
            .with_context("tensor", name));
        }
        Ok(Some(&entry.means))
    }
}

fn entry(gguf: &Gguf, name: &str, sums: &TensorInfo) -> Result<Entry> {
    let counts =
        gguf.tensor(&format!("{name}{COUNTS}")).ok_or_else(|| invalid("the matrix has sums, but no counts"))?;
    let (sum, count) = (numbers(gguf, sums)?, numbers(gguf, counts)?);
    if sums.rows() != counts.elements() {
        return Err(invalid(format!("{} rows of sums have {} counts", sums.rows(), counts.elements())));
    }
    if let Some(bad) = sum.iter().chain(&count).find(|number| !number.is_finite() || **number < 0.0) {
        return Err(invalid(format!("a sum or count is {bad}")));
    }
    let columns =
        usize::try_from(sums.row_len()).map_err(|_| invalid("the row is larger than this machine can address"))?;
    let means = sum
        .chunks(columns.max(1))
        .zip(count)
        // An expert that met no token has nothing to say: all its columns alike.
        .flat_map(|(row, count)| row.iter().map(move |sum| if count > 0.0 { sum / count } else { 1.0 }))
        .collect();
    Ok(Entry { columns, means })
}

fn numbers(gguf: &Gguf, info: &TensorInfo) -> Result<Vec<f32>> {
    if info.kind != TensorType::F32 {
        return Err(invalid(format!("the tensor is of type {}, not F32", info.kind)));
    }
    // The data lies in the file, so the count is bounded by its size.
    let mut out = vec![0.0; usize::try_from(info.elements()).map_err(|_| invalid("the tensor is too large"))?];
    dequantize(info.kind, gguf.tensor_data(info), &mut out)?;
    Ok(out)
}
