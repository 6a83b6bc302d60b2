//! The tensor types of GGUF and the sizes of their blocks.

use std::fmt;

use consort_core::{Error, ErrorKind, Result};

/// How a tensor's numbers are laid out. A row is cut into blocks of [`block_len`](Self::block_len) numbers, each stored in
/// [`block_bytes`](Self::block_bytes) bytes.
///
/// Every type that has a number in GGUF files today is known by name and size, so that a file can be inspected; not every
/// one can be [dequantized](crate::dequantize).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs)] // The names are the format's own; `name` gives each as the format spells it.
pub enum TensorType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
    IQ2XXS,
    IQ2XS,
    IQ3XXS,
    IQ1S,
    IQ4NL,
    IQ3S,
    IQ2S,
    IQ4XS,
    I8,
    I16,
    I32,
    I64,
    F64,
    IQ1M,
    BF16,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
}

/// One row a type: the type, its number in files, its name, numbers per block, bytes per block.
const TABLE: &[(TensorType, u32, &str, u64, u64)] = &[
    (TensorType::F32, 0, "F32", 1, 4),
    (TensorType::F16, 1, "F16", 1, 2),
    (TensorType::Q4_0, 2, "Q4_0", 32, 18),
    (TensorType::Q4_1, 3, "Q4_1", 32, 20),
    (TensorType::Q5_0, 6, "Q5_0", 32, 22),
    (TensorType::Q5_1, 7, "Q5_1", 32, 24),
    (TensorType::Q8_0, 8, "Q8_0", 32, 34),
    (TensorType::Q8_1, 9, "Q8_1", 32, 36),
    (TensorType::Q2K, 10, "Q2_K", 256, 84),
    (TensorType::Q3K, 11, "Q3_K", 256, 110),
    (TensorType::Q4K, 12, "Q4_K", 256, 144),
    (TensorType::Q5K, 13, "Q5_K", 256, 176),
    (TensorType::Q6K, 14, "Q6_K", 256, 210),
    (TensorType::Q8K, 15, "Q8_K", 256, 292),
    (TensorType::IQ2XXS, 16, "IQ2_XXS", 256, 66),
    (TensorType::IQ2XS, 17, "IQ2_XS", 256, 74),
    (TensorType::IQ3XXS, 18, "IQ3_XXS", 256, 98),
    (TensorType::IQ1S, 19, "IQ1_S", 256, 50),
    (TensorType::IQ4NL, 20, "IQ4_NL", 32, 18),
    (TensorType::IQ3S, 21, "IQ3_S", 256, 110),
    (TensorType::IQ2S, 22, "IQ2_S", 256, 82),
    (TensorType::IQ4XS, 23, "IQ4_XS", 256, 136),
    (TensorType::I8, 24, "I8", 1, 1),
    (TensorType::I16, 25, "I16", 1, 2),
    (TensorType::I32, 26, "I32", 1, 4),
    (TensorType::I64, 27, "I64", 1, 8),
    (TensorType::F64, 28, "F64", 1, 8),
    (TensorType::IQ1M, 29, "IQ1_M", 256, 56),
    (TensorType::BF16, 30, "BF16", 1, 2),
    (TensorType::TQ1_0, 34, "TQ1_0", 256, 54),
    (TensorType::TQ2_0, 35, "TQ2_0", 256, 66),
    (TensorType::MXFP4, 39, "MXFP4", 32, 17),
    (TensorType::NVFP4, 40, "NVFP4", 64, 36),
    (TensorType::Q1_0, 41, "Q1_0", 128, 18),
];

impl TensorType {
    /// The type that files write as `id`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidModel`] for a number that no type has, or that a withdrawn type had.
    pub fn from_id(id: u32) -> Result<Self> {
        if let Some(row) = TABLE.iter().find(|row| row.1 == id) {
            return Ok(row.0);
        }
        let name = match id {
            4 => "Q4_2, which was withdrawn",
            5 => "Q4_3, which was withdrawn",
            31..=33 => "a repacked Q4_0 layout, which was withdrawn",
            36..=38 => "a repacked IQ4_NL layout, which was withdrawn",
            _ => "unknown here",
        };
        Err(Error::new(
            ErrorKind::InvalidModel,
            format!("tensor type {id} is {name}; convert the model again with a current converter"),
        ))
    }

    /// The type that the format calls `name`, in upper or lower case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.2.eq_ignore_ascii_case(name)).map(|row| row.0)
    }

    fn row(self) -> &'static (TensorType, u32, &'static str, u64, u64) {
        // The table holds every variant (a test counts them), so the fallback is never taken.
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }

    /// The number by which files name this type.
    #[must_use]
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// The name as the format spells it, such as `Q4_K`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// How many numbers a block holds; 1 for the types that are not quantized. A row must be a multiple of it.
    #[must_use]
    pub fn block_len(self) -> u64 {
        self.row().3
    }

    /// How many bytes a block takes.
    #[must_use]
    pub fn block_bytes(self) -> u64 {
        self.row().4
    }

    /// How many bytes `count` numbers take, or `None` when `count` is not a multiple of
    /// [`block_len`](Self::block_len) or the product does not fit in 64 bits.
    #[must_use]
    pub fn bytes_for(self, count: u64) -> Option<u64> {
        let (_, _, _, len, bytes) = *self.row();
        if count.is_multiple_of(len) { (count / len).checked_mul(bytes) } else { None }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_type_comes_back_from_its_number() {
        assert_eq!(TABLE.len(), TensorType::Q1_0 as usize + 1, "a variant is missing from the table");
        for row in TABLE {
            assert_eq!(TensorType::from_id(row.1).unwrap(), row.0);
            assert_eq!(row.0.name(), row.2);
            assert_eq!(TensorType::from_name(&row.2.to_lowercase()), Some(row.0));
        }
        for id in [4, 5, 31, 38, 42, u32::MAX] {
            assert_eq!(TensorType::from_id(id).unwrap_err().kind(), ErrorKind::InvalidModel);
        }
        assert_eq!(TensorType::Q8_0.bytes_for(64), Some(68));
        assert_eq!(TensorType::Q8_0.bytes_for(33), None);
        assert_eq!(TensorType::F64.bytes_for(u64::MAX), None);
    }
}
