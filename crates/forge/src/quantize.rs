//! From one GGUF file to another with smaller types.

mod importance;
mod mix;
mod plan;

use std::cell::RefCell;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

use consort_core::{Error, ErrorKind, Result};
use consort_gguf::{Gguf, GgufWriter, TensorInfo, TensorSink, TensorType, dequantize};
use rayon::prelude::*;
use regex::Regex;

use crate::config::{Overwrite, WrittenFile};
pub use importance::Importance;
pub use mix::Mix;
pub use plan::{PlannedTensor, QuantizePlan, Reason, mix_types};

/// About how many numbers one thread works on at a time, ...
const CHUNK: usize = 1 << 16;
/// ... and how many such pieces are in memory together.
const CHUNKS: usize = 64;

/// What to quantize, into what, and where.
#[derive(Debug, Clone)]
pub struct QuantizeConfig {
    /// The GGUF file; any of its shards for a model in several files.
    pub input: PathBuf,
    /// The file to write.
    pub output: PathBuf,
    /// Which types the tensors take.
    pub mix: Mix,
    /// Whether tensors differ.
    pub spread: Spread,
    /// Types for particular tensors, before what the mix says. The first that matches decides.
    pub overrides: Vec<Override>,
    /// An importance matrix, in the GGUF form of llama.cpp's `llama-imatrix`.
    pub importance: Option<PathBuf>,
    /// What to do with tensors that have lost much already.
    pub requantize: Requantize,
    /// What to do with a file that is there already.
    pub overwrite: Overwrite,
}

impl QuantizeConfig {
    /// The mix as published, without importance, overwriting nothing.
    #[must_use]
    pub fn new(input: impl Into<PathBuf>, output: impl Into<PathBuf>, mix: Mix) -> Self {
        Self {
            input: input.into(),
            output: output.into(),
            mix,
            spread: Spread::Mixed,
            overrides: Vec::new(),
            importance: None,
            requantize: Requantize::Refuse,
            overwrite: Overwrite::Refuse,
        }
    }
}

/// Whether a mix spends more bits on some matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// As the mix says.
    Mixed,
    /// Every matrix takes the type of most matrices, the output projection too.
    Uniform,
}

/// What to do with a tensor of less than 8 bits that would be quantized to another type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requantize {
    /// Refuse, naming it: what the first quantization lost stays lost, and the second adds to it.
    Refuse,
    /// Do it nevertheless.
    Allow,
}

/// A type for all matrices whose name a regular expression finds.
///
/// ```
/// use consort_forge::Override;
///
/// let rule: Override = r"ffn_down=q6_K".parse()?;
/// assert!(rule.matches("blk.7.ffn_down.weight"));
/// assert_eq!(rule.to_string(), "ffn_down=Q6_K");
/// # Ok::<(), consort_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Override {
    pattern: Regex,
    kind: TensorType,
}

impl Override {
    /// Whether it is for the tensor called `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.pattern.is_match(name)
    }

    /// The type that it gives.
    #[must_use]
    pub fn kind(&self) -> TensorType {
        self.kind
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.pattern, self.kind)
    }
}

impl FromStr for Override {
    type Err = Error;

    /// Reads `PATTERN=TYPE`, the type in upper or lower case.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: String| invalid_config(why).with_context("override", text);
        let (pattern, kind) = text
            .rsplit_once('=')
            .filter(|(pattern, _)| !pattern.is_empty())
            .ok_or_else(|| wrong("an override is PATTERN=TYPE, such as ffn_down=Q6_K".to_owned()))?;
        let kind = TensorType::from_name(kind).ok_or_else(|| wrong(format!("{kind:?} is not a tensor type")))?;
        consort_gguf::quantize(kind, &[], None).map_err(|error| error.with_context("override", text))?;
        let pattern = Regex::new(pattern).map_err(|source| wrong(format!("the pattern does not parse: {source}")))?;
        Ok(Self { pattern, kind })
    }
}

/// How far a quantization is.
#[derive(Debug, Clone, Copy)]
pub struct QuantizeProgress<'a> {
    /// The tensor that is being written.
    pub tensor: &'a str,
    /// How many bytes of the input are done, ...
    pub done: u64,
    /// ... of how many.
    pub total: u64,
}

/// What a quantization wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizeReport {
    /// The file.
    pub file: WrittenFile,
    /// What was done with each tensor.
    pub plan: QuantizePlan,
}

fn invalid_config(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidConfig, message).with_operation("forge::quantize")
}

/// What [`quantize`] would do. Reads the input's header and the importance matrix, and writes nothing.
///
/// # Errors
/// Those of [`quantize`] but for its writing.
pub fn quantize_plan(config: &QuantizeConfig) -> Result<QuantizePlan> {
    let (gguf, importance) = open(config)?;
    plan(&gguf, config, importance.as_ref())
}

fn open(config: &QuantizeConfig) -> Result<(Gguf, Option<Importance>)> {
    let gguf = Gguf::open(&config.input)?;
    let importance = config.importance.as_deref().map(Importance::open).transpose()?;
    Ok((gguf, importance))
}

fn plan(gguf: &Gguf, config: &QuantizeConfig, importance: Option<&Importance>) -> Result<QuantizePlan> {
    QuantizePlan::new(gguf, config, importance)
        .map_err(|error| error.with_context("path", config.input.display().to_string()))
}

/// Writes `config.input` to `config.output` with the types that the mix and the overrides say. `progress` is called often.
///
/// Metadata stays, but for `general.file_type`, `general.quantization_version` (2) and, with an importance matrix, the keys
/// `quantize.imatrix.*` that say where it came from. Vectors, norms, convolutions and routers stay as they are, as does
/// whatever has its type already. A matrix whose rows are not whole blocks of its type takes the next finer type that
/// fits. Some tens of megabytes are in memory at a time, whatever the model's size. The work runs in the current rayon
/// pool; the number of its threads does not change a bit of the result. The file appears under its name when it is whole.
///
/// # Errors
/// [`ErrorKind::NotFound`], [`ErrorKind::Io`], and [`ErrorKind::InvalidModel`] for a malformed input or importance matrix,
/// or a number that is not finite or that a type cannot hold, with its tensor; [`ErrorKind::InvalidConfig`] for an output
/// that is there already or is the input, for an override or an importance matrix that fits nothing, and for a tensor that
/// lost much already; [`ErrorKind::Unsupported`] for a type that cannot be read or written.
pub fn quantize(config: &QuantizeConfig, progress: &mut dyn FnMut(QuantizeProgress<'_>)) -> Result<QuantizeReport> {
    if config.output.exists() {
        let with_path = |error: Error| error.with_context("path", config.output.display().to_string());
        if config.overwrite == Overwrite::Refuse {
            return Err(with_path(invalid_config("the file is there already; allow to overwrite it, or remove it")));
        }
        let canonical = |path: &PathBuf| path.canonicalize().ok();
        if canonical(&config.output) == canonical(&config.input) {
            return Err(with_path(invalid_config("the output is the input; name another file")));
        }
    }
    let (gguf, importance) = open(config)?;
    let plan = plan(&gguf, config, importance.as_ref())?;
    let steps = RefCell::new(Steps { done: 0, total: plan.bytes_before(), progress });
    let mut writer = GgufWriter::with_metadata(gguf.metadata().clone());
    writer.set("general.file_type", config.mix.file_type());
    writer.set("general.quantization_version", 2_u32);
    if let (Some(importance), Some(path)) = (&importance, &config.importance) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        writer.set("quantize.imatrix.file", name);
        if let Some(dataset) = &importance.dataset {
            writer.set("quantize.imatrix.dataset", dataset.as_str());
        }
        writer.set("quantize.imatrix.entries_count", u32::try_from(importance.len()).unwrap_or(u32::MAX));
        if let Some(chunks) = importance.chunks {
            writer.set("quantize.imatrix.chunks_count", chunks);
        }
    }
    for (info, planned) in gguf.tensors().zip(&plan.tensors) {
        let means = match &importance {
            Some(importance) if planned.weighted => importance.of(&info.name, &info.dims)?,
            _ => None,
        };
        let (gguf, steps) = (&gguf, &steps);
        writer.add_tensor(&info.name, &info.dims, planned.to, move |sink| {
            write(gguf.tensor_data(info), info, planned.to, means, sink, &mut |bytes| {
                steps.borrow_mut().advance(&info.name, bytes);
            })
        })?;
    }
    writer.write_to(&config.output)?;
    let bytes = fs::metadata(&config.output).map_err(|source| Error::io(&config.output, source))?.len();
    tracing::info!(path = %config.output.display(), mix = %config.mix, bytes, "wrote a quantized file");
    let (tensors, parameters) = (plan.tensors.len(), plan.parameters());
    Ok(QuantizeReport { file: WrittenFile { path: config.output.clone(), tensors, parameters, bytes }, plan })
}

/// Counts the input's bytes.
struct Steps<'p> {
    done: u64,
    total: u64,
    progress: &'p mut dyn FnMut(QuantizeProgress<'_>),
}

impl Steps<'_> {
    fn advance(&mut self, tensor: &str, bytes: usize) {
        self.done += bytes as u64;
        (self.progress)(QuantizeProgress { tensor, done: self.done, total: self.total });
    }
}

/// Streams one tensor from `data` into `sink`. `means` holds a row of importance for each expert.
fn write(
    data: &[u8],
    info: &TensorInfo,
    to: TensorType,
    means: Option<&[f32]>,
    sink: &mut TensorSink<'_>,
    advance: &mut dyn FnMut(usize),
) -> Result<()> {
    let size = |count: Option<u64>| {
        count.and_then(|count| usize::try_from(count).ok()).ok_or_else(|| {
            Error::new(ErrorKind::InvalidModel, "the tensor is larger than this machine can address")
                .with_operation("forge::quantize")
        })
    };
    let row_len = size(Some(info.row_len()))?;
    let row_bytes = size(info.kind.bytes_for(info.row_len()))?.max(1);
    if to == info.kind {
        for part in data.chunks(CHUNK * CHUNKS) {
            sink.write(part)?;
            advance(part.len());
        }
        return Ok(());
    }
    let rows_a_chunk = (CHUNK / row_len.max(1)).max(1);
    // Without importance a tensor is one matrix; with it, each expert has a row of its own.
    let matrix_rows = size(Some(if means.is_some() { info.dims.get(1).copied().unwrap_or(1) } else { info.rows() }))?;
    for (expert, matrix) in data.chunks(matrix_rows.saturating_mul(row_bytes)).enumerate() {
        let means = means.and_then(|means| means.get(expert * row_len..(expert + 1) * row_len));
        for (part, bytes) in matrix.chunks(rows_a_chunk * row_bytes * CHUNKS).enumerate() {
            let pieces = bytes
                .par_chunks(rows_a_chunk * row_bytes)
                .enumerate()
                .map(|(piece, bytes)| {
                    let mut numbers = vec![0.0; bytes.len() / row_bytes * row_len];
                    dequantize(info.kind, bytes, &mut numbers)?;
                    consort_gguf::quantize(to, &numbers, means).map_err(|error| {
                        let row = expert * matrix_rows + (part * CHUNKS + piece) * rows_a_chunk;
                        error.with_context("from_row", row.to_string())
                    })
                })
                .collect::<Result<Vec<_>>>()?;
            for piece in pieces {
                sink.write(&piece)?;
            }
            advance(bytes.len());
        }
    }
    Ok(())
}
