//! Weights: matrices used in place from the file, and small vectors widened to f32.

use std::ops::Range;
use std::sync::Arc;

use consort_core::{Error, ErrorKind, Result};
use consort_gguf::{Gguf, TensorInfo, dequantize};
use rayon::prelude::*;

use crate::config::Activations;
use crate::kernels::{Format, KernelSet, Matmul, Product, Quant, Quantized, Storage};

/// Multiply-adds below which a product stays on one thread: waking another costs some microseconds.
const PARALLEL_WORK: usize = 1 << 18;
/// From how many vectors on a product is split by vectors and not by rows.
const SPLIT_BY_VECTORS: usize = 32;
/// From how many vectors on rows are widened once for all of them.
const WIDEN_FROM: usize = 12;
/// Vectors that one thread turns into eight bits: whole groups of the kernels.
const QUANTIZE_AT_ONCE: usize = 32;
/// Bytes of widened rows that stay in a core's second-level cache.
const WIDENED_BYTES: usize = 128 << 10;

/// How work is done: with which instructions, on how many threads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Compute {
    /// The kernels.
    pub(crate) kernels: KernelSet,
    /// Threads of the pool in which this runs; 1: the caller's own.
    pub(crate) threads: usize,
    /// What quantized weights are multiplied with.
    pub(crate) activations: Activations,
}

impl Compute {
    /// Whether `work` multiply-adds are worth waking other threads.
    pub(crate) fn is_parallel(self, work: usize) -> bool {
        self.threads > 1 && work >= PARALLEL_WORK
    }
}

/// A matrix `[rows, cols]` in a file: a tensor, or a part of one.
#[derive(Clone)]
pub(crate) struct Matrix {
    file: Arc<Gguf>,
    info: Arc<TensorInfo>,
    /// The part of the tensor's bytes that holds the rows.
    span: Range<usize>,
    storage: Storage,
    rows: usize,
    cols: usize,
    row_bytes: usize,
}

impl Matrix {
    /// The tensor called `name`, which must be `[rows, cols]` (in GGUF's order: `cols` contiguous first).
    pub(crate) fn open(file: &Arc<Gguf>, name: &str, rows: usize, cols: usize) -> Result<Self> {
        Self::open_as(file, name, &[cols, rows], rows, cols)
    }

    /// The same for a tensor whose dimensions `dims` are several that count as one row: `rows · cols` numbers in all.
    pub(crate) fn open_as(file: &Arc<Gguf>, name: &str, dims: &[usize], rows: usize, cols: usize) -> Result<Self> {
        let info = tensor(file, name, dims)?;
        let Some(storage) = Storage::of(info.kind) else {
            let known: Vec<_> = Storage::ALL.iter().map(|(kind, _)| kind.name()).collect();
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("weights of type {} are not supported here; {} are", info.kind, known.join(", ")),
            )
            .with_context("tensor", name));
        };
        let bytes = file.tensor_data(info).len();
        let row_bytes = info.kind.bytes_for(cols as u64).and_then(|bytes| usize::try_from(bytes).ok());
        let row_bytes = row_bytes.filter(|&row| row > 0 && rows.checked_mul(row) == Some(bytes)).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidModel,
                format!("{rows} rows of {cols} numbers are not whole blocks of {}", info.kind),
            )
            .with_context("tensor", name)
        })?;
        Ok(Self { file: file.clone(), info: Arc::new(info.clone()), span: 0..bytes, storage, rows, cols, row_bytes })
    }

    /// `rows` of this matrix from row `first` on, in place. Rows that do not exist are left out.
    pub(crate) fn part(&self, first: usize, rows: usize) -> Self {
        let rows = rows.min(self.rows.saturating_sub(first));
        let start = self.span.start + (self.rows - rows).min(first) * self.row_bytes;
        Self { span: start..start + rows * self.row_bytes, rows, ..self.clone() }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    fn bytes(&self) -> &[u8] {
        &self.file.tensor_data(&self.info)[self.span.clone()]
    }

    /// Row `index` as f32 into `out`, which has `cols` places; a row that does not exist leaves it as it is.
    pub(crate) fn row(&self, compute: Compute, index: usize, out: &mut [f32]) {
        if let Some(row) = self.bytes().chunks_exact(self.row_bytes).nth(index) {
            compute.kernels.widen(self.storage, row, out);
        }
    }

    /// `out[t, r] = Σ_c self[r, c] · x[t, c]` for `x` of `[tokens, cols]`: `[tokens, rows]`.
    ///
    /// A result depends on its row and its vector alone: neither the number of vectors nor of threads changes a bit.
    pub(crate) fn times(&self, compute: Compute, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len() / self.cols * self.rows];
        match self.storage {
            Storage::Quant(quant) if compute.activations == Activations::Int8 => {
                self.times_int8(compute, quant, x, &mut out);
            }
            _ => self.times_f32(compute, x, &mut out),
        }
        out
    }

    fn work(&self, tokens: usize) -> usize {
        tokens.saturating_mul(self.rows).saturating_mul(self.cols)
    }

    /// With activations of eight bits.
    fn times_int8(&self, compute: Compute, quant: Quant, x: &[f32], out: &mut [f32]) {
        let (bytes, kernels, row_bytes) = (self.bytes(), compute.kernels, self.row_bytes);
        let tokens = x.len() / self.cols;
        let is_parallel = compute.is_parallel(self.work(tokens));
        let quantized = if is_parallel && tokens > QUANTIZE_AT_ONCE {
            let parts = x.par_chunks(QUANTIZE_AT_ONCE * self.cols);
            Quantized::joined(parts.map(|x| kernels.quantize(quant, x, self.cols, tokens)).collect())
        } else {
            kernels.quantize(quant, x, self.cols, tokens)
        };
        if !is_parallel {
            let mut out: Vec<&mut [f32]> = out.chunks_exact_mut(self.rows).collect();
            kernels.product(quant, Product { weights: bytes, row_bytes, x: &quantized, out: &mut out });
            return;
        }
        let each = self.rows.div_ceil(compute.threads * 4).next_multiple_of(16);
        let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
        parts.resize_with(self.rows.div_ceil(each), || Vec::with_capacity(tokens));
        for out in out.chunks_exact_mut(self.rows) {
            for (part, out) in parts.iter_mut().zip(out.chunks_mut(each)) {
                part.push(out);
            }
        }
        bytes.par_chunks(each * row_bytes).zip(parts).for_each(|(weights, mut out)| {
            kernels.product(quant, Product { weights, row_bytes, x: &quantized, out: &mut out });
        });
    }

    /// With activations as they are.
    fn times_f32(&self, compute: Compute, x: &[f32], out: &mut [f32]) {
        let (bytes, kernels) = (self.bytes(), compute.kernels);
        let tokens = x.len() / self.cols;
        if !compute.is_parallel(self.work(tokens)) {
            self.block(kernels, bytes, x, out, self.rows);
        } else if tokens >= SPLIT_BY_VECTORS {
            let each = tokens.div_ceil(compute.threads * 2).max(SPLIT_BY_VECTORS / 2);
            x.par_chunks(each * self.cols)
                .zip(out.par_chunks_mut(each * self.rows))
                .for_each(|(x, out)| self.block(kernels, bytes, x, out, self.rows));
        } else {
            let each = self.rows.div_ceil(compute.threads * 4).next_multiple_of(8);
            let parts = bytes.par_chunks(each * self.row_bytes);
            if tokens == 1 {
                parts
                    .zip(out.par_chunks_mut(each))
                    .for_each(|(rows, out)| self.block(kernels, rows, x, out, out.len()));
            } else {
                let parts: Vec<Vec<f32>> = parts
                    .map(|rows| {
                        let count = rows.len() / self.row_bytes;
                        let mut part = vec![0.0; tokens * count];
                        self.block(kernels, rows, x, &mut part, count);
                        part
                    })
                    .collect();
                for (index, part) in parts.iter().enumerate() {
                    let count = part.len() / tokens;
                    for (from, to) in part.chunks_exact(count).zip(out.chunks_exact_mut(self.rows)) {
                        to[index * each..][..count].copy_from_slice(from);
                    }
                }
            }
        }
    }

    /// `rows` of this matrix times all of `x`, on this thread.
    fn block(&self, kernels: KernelSet, rows: &[u8], x: &[f32], out: &mut [f32], stride: usize) {
        let (row_bytes, cols) = (self.row_bytes, self.cols);
        let is_few = x.len() / cols < WIDEN_FROM;
        match self.storage {
            Storage::Float(format) if is_few || format == Format::F32 => {
                kernels.matmul(format, Matmul { weights: rows, row_bytes, x, cols, out, stride, offset: 0 });
                return;
            }
            _ => {}
        }
        // Tiles of rows are widened once, and stay in cache for all vectors: in the second level for many of them, in the
        // first for few.
        let tile_rows = if is_few { 2 } else { (WIDENED_BYTES / (4 * cols)).max(2).next_multiple_of(2) };
        let mut tile = vec![0.0_f32; tile_rows * cols];
        let mut offset = 0;
        for rows in rows.chunks(tile_rows * row_bytes) {
            let count = rows.len() / row_bytes;
            for (row, wide) in rows.chunks_exact(row_bytes).zip(tile.chunks_exact_mut(cols)) {
                kernels.widen(self.storage, row, wide);
            }
            let weights = bytemuck::cast_slice(&tile[..count * cols]);
            kernels.matmul(Format::F32, Matmul { weights, row_bytes: 4 * cols, x, cols, out, stride, offset });
            offset += count;
        }
    }
}

/// The tensor called `name`, with exactly these dimensions, contiguous first.
fn tensor<'a>(file: &'a Gguf, name: &str, dims: &[usize]) -> Result<&'a TensorInfo> {
    let info = file.require_tensor(name)?;
    // A trailing dimension of 1 says nothing.
    let trimmed = |dims: &[u64]| dims.iter().rposition(|&dim| dim != 1).map_or(0, |last| last + 1);
    let expected: Vec<u64> = dims.iter().map(|&dim| dim as u64).collect();
    if info.dims[..trimmed(&info.dims)] != expected[..trimmed(&expected)] {
        return Err(Error::new(
            ErrorKind::InvalidModel,
            format!("the model's other dimensions ask for {expected:?}, and the tensor is {:?}", info.dims),
        )
        .with_context("tensor", name));
    }
    Ok(info)
}

/// The tensor called `name` with these dimensions, as f32.
pub(crate) fn vector(file: &Gguf, name: &str, dims: &[usize]) -> Result<Vec<f32>> {
    let info = tensor(file, name, dims)?;
    let mut out = vec![0.0; dims.iter().product()];
    dequantize(info.kind, file.tensor_data(info), &mut out).map_err(|error| error.with_context("tensor", name))?;
    Ok(out)
}
