//! The mixes that published files are named after, and which type each gives to which tensor.

use std::fmt;
use std::str::FromStr;

use consort_core::{Error, ErrorKind};
use consort_gguf::TensorType;

/// What a quantized file is made of. Most mixes spend more bits on the tensors whose errors reach furthest.
///
/// The choices are those of llama.cpp's `llama-quantize`, so that a file of a name has the size that people know by it.
/// Three differ: the projections of the delta net's decay and write strength (`ssm_alpha`, `ssm_beta`), a thousandth of the
/// weights, are Q8_0 in every quantized mix, because their errors add up over the whole past; Q2_K and Q3_K fall back to
/// IQ4_NL, which loses less than Q4_0 and is no larger; and models of eight experts get nothing extra.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names say all; the table below, the rest.
pub enum Mix {
    F32,
    F16,
    BF16,
    Q8_0,
    Q6K,
    Q5KM,
    Q5KS,
    Q5_1,
    Q5_0,
    Q4KM,
    Q4KS,
    Q4_1,
    Q4_0,
    IQ4NL,
    IQ4XS,
    Q3KL,
    Q3KM,
    Q3KS,
    Q2K,
}

/// The mix, its name, what `general.file_type` says of it, and the type of most of its matrices.
const TABLE: [(Mix, &str, u32, TensorType); 19] = [
    (Mix::F32, "F32", 0, TensorType::F32),
    (Mix::F16, "F16", 1, TensorType::F16),
    (Mix::BF16, "BF16", 32, TensorType::BF16),
    (Mix::Q8_0, "Q8_0", 7, TensorType::Q8_0),
    (Mix::Q6K, "Q6_K", 18, TensorType::Q6K),
    (Mix::Q5KM, "Q5_K_M", 17, TensorType::Q5K),
    (Mix::Q5KS, "Q5_K_S", 16, TensorType::Q5K),
    (Mix::Q5_1, "Q5_1", 9, TensorType::Q5_1),
    (Mix::Q5_0, "Q5_0", 8, TensorType::Q5_0),
    (Mix::Q4KM, "Q4_K_M", 15, TensorType::Q4K),
    (Mix::Q4KS, "Q4_K_S", 14, TensorType::Q4K),
    (Mix::Q4_1, "Q4_1", 3, TensorType::Q4_1),
    (Mix::Q4_0, "Q4_0", 2, TensorType::Q4_0),
    (Mix::IQ4NL, "IQ4_NL", 25, TensorType::IQ4NL),
    (Mix::IQ4XS, "IQ4_XS", 30, TensorType::IQ4XS),
    (Mix::Q3KL, "Q3_K_L", 13, TensorType::Q3K),
    (Mix::Q3KM, "Q3_K_M", 12, TensorType::Q3K),
    (Mix::Q3KS, "Q3_K_S", 11, TensorType::Q3K),
    (Mix::Q2K, "Q2_K", 10, TensorType::Q2K),
];

impl Mix {
    /// All of them, from the largest to the smallest.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (Self, &'static str, u32, TensorType) {
        // The table holds every variant (a test counts them), so the fallback is never taken.
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }

    /// The name, such as `Q4_K_M`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The type of most matrices.
    #[must_use]
    pub fn base(self) -> TensorType {
        self.row().3
    }

    /// The number that `general.file_type` has for it.
    #[must_use]
    pub fn file_type(self) -> u32 {
        self.row().2
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mix {
    type Err = Error;

    /// Reads a name in upper or lower case.
    fn from_str(text: &str) -> Result<Self, Error> {
        TABLE.iter().find(|row| row.1.eq_ignore_ascii_case(text)).map(|row| row.0).ok_or_else(|| {
            let names: Vec<_> = TABLE.iter().map(|row| row.1).collect();
            Error::new(ErrorKind::InvalidConfig, format!("{text:?} is not a mix; these are: {}", names.join(", ")))
                .with_operation("forge::quantize")
        })
    }
}

/// What a tensor does, as far as the mixes tell tensors apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Not a matrix of weights, or one that is too small or too delicate: it stays as it is.
    Kept,
    /// The output projection, or the embedding where it serves as one.
    Output,
    /// Values of attention, alone or with queries and keys.
    AttentionValue,
    /// The projection out of attention.
    AttentionOutput,
    /// The projection out of the MLP or of its experts.
    FfnDown,
    /// The delta net's decay and write strength.
    DeltaGate,
    /// Any other matrix.
    Other,
}

impl Role {
    /// The role of the tensor called `name` of these dimensions. `tied` tells that the file has no output projection.
    pub(super) fn of(name: &str, dims: &[u64], tied: bool) -> Self {
        /// Routers, convolutions, and tables and patches of the vision tower.
        const DELICATE: [&str; 6] =
            ["_norm.weight", "ffn_gate_inp", "ssm_conv1d", ".position_embd", ".patch_embd", "token_types"];
        let is_matrix = dims.iter().skip(1).any(|&dim| dim > 1);
        let has = |part: &str| name.contains(part);
        if !is_matrix || !name.ends_with(".weight") || DELICATE.into_iter().any(has) {
            Self::Kept
        } else if name == "output.weight" || tied && name == "token_embd.weight" {
            Self::Output
        } else if has("attn_v.weight") || has("attn_qkv.weight") {
            Self::AttentionValue
        } else if has("attn_output.weight") {
            Self::AttentionOutput
        } else if has("ffn_down") {
            Self::FfnDown
        } else if has("ssm_alpha.weight") || has("ssm_beta.weight") {
            Self::DeltaGate
        } else {
            Self::Other
        }
    }
}

/// What the choice of a tensor's type looks at besides its role.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// The tensor's place among those that the mixes count together: layers for [`Role::FfnDown`], the tensors of the role
    /// in order for [`Role::AttentionValue`].
    pub(super) index: usize,
    /// How many places there are.
    pub(super) count: usize,
    /// How many query heads share a key head.
    pub(super) heads_per_key: u32,
    /// Whether the search will be weighted by importance.
    pub(super) weighted: bool,
}

impl Place {
    fn first(self, part: usize) -> bool {
        self.index < self.count / part
    }

    /// The first and last eighth, and every third between.
    fn deserves_more(self) -> bool {
        let eighth = self.count / 8;
        self.first(8) || self.index >= 7 * self.count / 8 || self.index.saturating_sub(eighth) % 3 == 2
    }
}

/// The type that `mix` gives to a tensor, before its shape is looked at.
pub(super) fn wanted(mix: Mix, role: Role, place: Place) -> TensorType {
    use TensorType::{Q3K, Q4_1, Q4K, Q5_1, Q5K, Q6K, Q8_0};
    let base = mix.base();
    if base.block_len() == 1 {
        return base;
    }
    let shared = place.heads_per_key >= 4;
    match (role, mix) {
        (Role::Output, Mix::Q8_0) => Q8_0,
        (Role::Output, _) => Q6K,
        (Role::DeltaGate, _) => Q8_0,

        (Role::AttentionValue, Mix::Q2K) if shared => Q4K,
        (Role::AttentionValue, Mix::Q2K) => Q3K,
        (Role::AttentionValue, Mix::Q3KM) if place.index < 2 => Q5K,
        (Role::AttentionValue, Mix::Q3KM) => Q4K,
        (Role::AttentionValue, Mix::Q3KL) => Q5K,
        (Role::AttentionValue, Mix::IQ4NL | Mix::IQ4XS) if shared => Q5K,
        (Role::AttentionValue, Mix::Q4KM | Mix::Q5KM) if place.deserves_more() => Q6K,
        (Role::AttentionValue, Mix::Q4KS) if place.index < 4 => Q5K,

        (Role::FfnDown, Mix::Q2K) => Q3K,
        (Role::FfnDown, Mix::Q3KM) if place.first(16) => Q5K,
        (Role::FfnDown, Mix::Q3KM) => Q4K,
        (Role::FfnDown, Mix::Q3KL) => Q5K,
        (Role::FfnDown, Mix::Q4KM | Mix::Q5KM) if place.deserves_more() => Q6K,
        (Role::FfnDown, Mix::Q4KS) if place.first(8) => Q5K,
        (Role::FfnDown, Mix::IQ4NL | Mix::IQ4XS) if place.first(8) && !place.weighted => Q5K,
        (Role::FfnDown, Mix::Q4_0) if place.first(8) && place.weighted => Q4_1,
        (Role::FfnDown, Mix::Q5_0) if place.first(8) && place.weighted => Q5_1,

        (Role::AttentionOutput, Mix::Q2K) => Q3K,
        (Role::AttentionOutput, Mix::Q3KM) => Q4K,
        (Role::AttentionOutput, Mix::Q3KL) => Q5K,
        _ => base,
    }
}

/// The type to take for rows of `row_len` numbers where `wanted` needs whole blocks that they are not: the next finer one
/// with blocks of 32, and F16 where rows are not even those.
pub(super) fn fitting(wanted: TensorType, row_len: u64) -> TensorType {
    use TensorType::{F16, IQ4NL, IQ4XS, Q2K, Q3K, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let fits = |kind: TensorType| row_len.is_multiple_of(kind.block_len());
    let smaller = match wanted {
        kind if fits(kind) => return kind,
        Q2K | Q3K | IQ4XS => IQ4NL,
        Q4K => Q5_0,
        Q5K => Q5_1,
        Q6K => Q8_0,
        _ => F16,
    };
    if fits(smaller) { smaller } else { F16 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn place(index: usize, count: usize) -> Place {
        Place { index, count, heads_per_key: 2, weighted: false }
    }

    #[test]
    fn every_mix_comes_back_from_its_name() {
        assert_eq!(TABLE.len(), Mix::Q2K as usize + 1);
        for mix in Mix::all() {
            assert_eq!(mix.name().to_lowercase().parse::<Mix>().unwrap(), mix);
        }
        let error = "Q4_K_XL".parse::<Mix>().unwrap_err();
        assert!(error.to_string().contains("Q4_K_M"), "{error}");
    }

    #[test]
    fn roles_come_from_names() {
        let of = |name: &str| Role::of(name, &[64, 64], true);
        assert_eq!(of("token_embd.weight"), Role::Output);
        assert_eq!(Role::of("token_embd.weight", &[64, 64], false), Role::Other);
        assert_eq!(of("output.weight"), Role::Output);
        assert_eq!(of("blk.3.attn_v.weight"), Role::AttentionValue);
        assert_eq!(of("blk.3.attn_qkv.weight"), Role::AttentionValue);
        assert_eq!(of("blk.3.attn_output.weight"), Role::AttentionOutput);
        assert_eq!(of("blk.3.ffn_down_exps.weight"), Role::FfnDown);
        assert_eq!(of("blk.3.ssm_beta.weight"), Role::DeltaGate);
        assert_eq!(of("blk.3.ffn_gate.weight"), Role::Other);
        for kept in [
            "blk.3.ssm_conv1d.weight",
            "blk.3.ffn_gate_inp.weight",
            "blk.3.ffn_gate_inp_shexp.weight",
            "blk.3.ssm_a",
            "blk.3.attn_norm.weight",
            "v.patch_embd.weight",
            "v.position_embd.weight",
            "v.patch_embd.weight.1",
        ] {
            assert_eq!(of(kept), Role::Kept, "{kept}");
        }
        for dims in [&[64][..], &[64, 1], &[64, 1, 1]] {
            assert_eq!(Role::of("blk.3.ffn_down.weight", dims, true), Role::Kept);
        }
    }

    /// Sixteen layers: eighths of two.
    #[test]
    fn the_layers_with_more_bits_are_those_of_published_files() {
        let more: Vec<_> =
            (0..16).filter(|&index| wanted(Mix::Q4KM, Role::FfnDown, place(index, 16)) == TensorType::Q6K).collect();
        assert_eq!(more, [0, 1, 4, 7, 10, 13, 14, 15]);
        let first: Vec<_> =
            (0..16).filter(|&index| wanted(Mix::Q4KS, Role::FfnDown, place(index, 16)) == TensorType::Q5K).collect();
        assert_eq!(first, [0, 1]);
        assert_eq!(wanted(Mix::Q4KM, Role::Output, place(0, 1)), TensorType::Q6K);
        assert_eq!(wanted(Mix::Q8_0, Role::Output, place(0, 1)), TensorType::Q8_0);
        assert_eq!(wanted(Mix::F16, Role::Output, place(0, 1)), TensorType::F16);
    }

    #[test]
    fn rows_that_do_not_fit_take_the_next_finer_type() {
        use TensorType::*;
        for (kind, fallback) in [
            (Q2K, IQ4NL),
            (Q3K, IQ4NL),
            (IQ4XS, IQ4NL),
            (Q4K, Q5_0),
            (Q5K, Q5_1),
            (Q6K, Q8_0),
            (Q4_0, Q4_0),
            (Q8_0, Q8_0),
        ] {
            assert_eq!(fitting(kind, 512), kind);
            assert_eq!(fitting(kind, 96), fallback);
            assert_eq!(fitting(kind, 100), F16);
        }
        assert_eq!(fitting(BF16, 100), BF16);
    }
}
