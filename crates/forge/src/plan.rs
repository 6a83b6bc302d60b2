//! How one tensor of the checkpoint becomes one tensor of the output, row by row.

use consort_core::{Error, ErrorKind, Result};
use consort_gguf::{TensorSink, TensorType, f32_to_bf16, f32_to_f16, quantize_q8_0};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::checkpoint::invalid;
use crate::config::OutputType;

/// About how many numbers are in memory at a time.
const BATCH: usize = 1 << 16;

/// A tensor that the checkpoint must hold.
#[derive(Debug)]
pub(crate) struct Expected {
    /// Its name there, without the prefixes that differ between classes.
    pub(crate) source: String,
    /// Its shape there.
    pub(crate) shape: Vec<u64>,
    /// What becomes of it.
    pub(crate) outputs: Vec<Output>,
}

/// A tensor of the output, as rows that are read from one tensor of the checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) name: String,
    /// In the order of GGUF: the contiguous dimension first.
    pub(crate) dims: Vec<u64>,
    /// F32 always, or as the conversion says.
    pub(crate) precision: Precision,
    /// The source as rows of this many numbers.
    pub(crate) row_len: u64,
    pub(crate) rows: Rows,
    /// Another order of the numbers within each row.
    pub(crate) columns: Option<HeadOrder>,
    pub(crate) map: NumberMap,
}

/// Which type a tensor takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// F32 whatever was asked for.
    Full,
    /// What was asked for; Q8_0 becomes F16 where rows are not whole blocks, as the reference converter does.
    AsAsked,
    /// F16 where F16 was asked for, otherwise F32.
    HalfIfAsked,
}

/// Which row of the source is row i of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Row i.
    Same,
    /// Row 2 i + the field: one of two slices that alternate.
    EverySecond(u64),
    /// Value heads change their order.
    Heads(HeadOrder),
    /// Of every `2 · of` rows the `of` that begin at `start`: gate or up of each expert.
    Half { start: u64, of: u64 },
}

/// The order of value heads, where several share a key head. Checkpoints group them by key head, GGUF tiles them: value
/// head h belongs to key head h mod Hk. Each head is `dim` neighbours (rows or columns); `before` of them stay in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeadOrder {
    pub(crate) before: u64,
    pub(crate) key_heads: u64,
    pub(crate) value_heads: u64,
    pub(crate) dim: u64,
}

impl HeadOrder {
    /// Where place `i` of the output lies in the source.
    pub(crate) fn source(&self, i: u64) -> u64 {
        let Some(i) = i.checked_sub(self.before) else { return i };
        let (head, within) = (i / self.dim, i % self.dim);
        let per_key = self.value_heads / self.key_heads;
        let grouped = head % self.key_heads * per_key + head / self.key_heads;
        self.before + grouped * self.dim + within
    }
}

/// What happens to each number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NumberMap {
    Same,
    /// 1 + w: the family stores most norms around zero.
    PlusOne,
    /// −exp(x): the decay from its logarithm.
    NegativeExp,
}

impl NumberMap {
    fn apply(self, numbers: &mut [f32]) {
        match self {
            Self::Same => {}
            Self::PlusOne => numbers.iter_mut().for_each(|number| *number += 1.0),
            Self::NegativeExp => numbers.iter_mut().for_each(|number| *number = -number.exp()),
        }
    }
}

impl Output {
    /// A tensor as it is: `shape` in the order of the checkpoint. Matrices take the type asked for, vectors are F32.
    pub(crate) fn same(name: impl Into<String>, shape: &[u64]) -> Self {
        Self {
            name: name.into(),
            dims: shape.iter().rev().copied().collect(),
            precision: if shape.len() > 1 { Precision::AsAsked } else { Precision::Full },
            row_len: shape.last().copied().unwrap_or(1),
            rows: Rows::Same,
            columns: None,
            map: NumberMap::Same,
        }
    }

    pub(crate) fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// The type that this tensor takes when `asked` is asked for.
    pub(crate) fn kind(&self, asked: OutputType) -> TensorType {
        match (self.precision, asked) {
            (Precision::Full, _) => TensorType::F32,
            (Precision::HalfIfAsked, OutputType::F16) => TensorType::F16,
            (Precision::HalfIfAsked, _) => TensorType::F32,
            (Precision::AsAsked, OutputType::Q8_0) if !self.row_len.is_multiple_of(32) => TensorType::F16,
            (Precision::AsAsked, asked) => asked.tensor_type(),
        }
    }

    /// Streams the tensor into `sink`: from `view`, whose shape was checked, or where it is stacked, the part that `view` is of
    /// `parts` of one shape.
    pub(crate) fn write(
        &self,
        (view, parts): (&TensorView<'_>, usize),
        kind: TensorType,
        sink: &mut TensorSink<'_>,
    ) -> Result<()> {
        let decode = Decoder::of(view.dtype())?;
        let row_len = usize::try_from(self.row_len).map_err(|_| too_large())?;
        let row_bytes = row_len.checked_mul(decode.bytes).ok_or_else(too_large)?;
        let rows = self.elements() / self.row_len.max(1) / (parts as u64).max(1);
        let batch_rows = (BATCH / row_len.max(1)).max(1) as u64;
        let (mut numbers, mut row, mut encoded) = (Vec::new(), vec![0.0; row_len], Vec::new());
        let mut first = 0;
        while first < rows {
            numbers.clear();
            let end = rows.min(first + batch_rows);
            for i in first..end {
                let from = match self.rows {
                    Rows::Same => i,
                    Rows::EverySecond(slice) => 2 * i + slice,
                    Rows::Heads(order) => order.source(i),
                    Rows::Half { start, of } => i / of * 2 * of + start + i % of,
                };
                let bytes = usize::try_from(from)
                    .ok()
                    .and_then(|from| from.checked_mul(row_bytes))
                    .and_then(|start| view.data().get(start..start.checked_add(row_bytes)?))
                    .ok_or_else(|| invalid("the tensor's data is shorter than its shape says"))?;
                (decode.read)(bytes, &mut row);
                match self.columns {
                    None => numbers.extend_from_slice(&row),
                    Some(order) => numbers.extend((0..self.row_len).filter_map(|j| row.get(order.source(j) as usize))),
                }
            }
            self.map.apply(&mut numbers);
            encode(&numbers, kind, &mut encoded)?;
            sink.write(&encoded)?;
            first = end;
        }
        Ok(())
    }
}

fn too_large() -> Error {
    invalid("the tensor is larger than this machine can address")
}

/// Reads numbers of one type.
struct Decoder {
    bytes: usize,
    read: fn(&[u8], &mut [f32]),
}

impl Decoder {
    fn of(dtype: Dtype) -> Result<Self> {
        fn each<const N: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
            for (out, chunk) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
                *out = convert(*chunk);
            }
        }
        Ok(match dtype {
            Dtype::F32 => Self { bytes: 4, read: |bytes, out| each(bytes, out, f32::from_le_bytes) },
            Dtype::F16 => Self { bytes: 2, read: |bytes, out| each(bytes, out, |b| f16::from_le_bytes(b).to_f32()) },
            Dtype::BF16 => Self { bytes: 2, read: |bytes, out| each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()) },
            other => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("the tensor's numbers are of type {other:?}; F32, F16 and BF16 are converted"),
                )
                .with_operation("forge::convert"));
            }
        })
    }
}

fn encode(numbers: &[f32], kind: TensorType, out: &mut Vec<u8>) -> Result<()> {
    if !numbers.iter().all(|number| number.is_finite()) {
        return Err(invalid("the tensor holds a number that is not finite"));
    }
    out.clear();
    match kind {
        TensorType::F32 => out.extend(numbers.iter().flat_map(|number| number.to_le_bytes())),
        TensorType::BF16 => out.extend(numbers.iter().flat_map(|&number| f32_to_bf16(number).to_le_bytes())),
        TensorType::F16 => {
            if numbers.iter().any(|number| number.abs() >= 65_520.0) {
                return Err(invalid("the tensor holds a number that F16 cannot; convert to BF16 or F32"));
            }
            out.extend(numbers.iter().flat_map(|&number| f32_to_f16(number).to_le_bytes()));
        }
        TensorType::Q8_0 => {
            if numbers.iter().any(|number| number.abs() >= 65_504.0 * 127.0) {
                return Err(invalid("the tensor holds a number that Q8_0 cannot; convert to BF16 or F32"));
            }
            out.resize(numbers.len() / 32 * 34, 0);
            quantize_q8_0(numbers, out)?;
        }
        other => return Err(Error::new(ErrorKind::Unexpected, format!("conversion to {other} is not written"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grouped_heads_become_tiled() {
        // Two key heads with three value heads each: grouped 0a 0b 0c 1a 1b 1c, tiled 0a 1a 0b 1b 0c 1c.
        let order = HeadOrder { before: 4, key_heads: 2, value_heads: 6, dim: 2 };
        let places: Vec<u64> = (0..16).map(|i| order.source(i)).collect();
        assert_eq!(places, [0, 1, 2, 3, 4, 5, 10, 11, 6, 7, 12, 13, 8, 9, 14, 15]);
    }
}
