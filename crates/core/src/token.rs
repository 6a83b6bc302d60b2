//! Token ids and the positions at which tokens stand.

use serde::{Deserialize, Serialize};

/// The id of a token in the model's vocabulary: an index into the rows of `lm_head`.
pub type TokenId = u32;

/// Where a token stands for multimodal rotary embedding (M-RoPE): a temporal, a height and a width component.
///
/// Text advances all three together. The tokens of an image share `t` and carry their row and column, offset by the
/// position at which the image begins; text after it continues from the largest component + 1. (Source: the
/// `get_rope_index` function of transformers' Qwen3.5 model.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// Temporal component.
    pub t: u32,
    /// Height component: the row, for image tokens.
    pub h: u32,
    /// Width component: the column, for image tokens.
    pub w: u32,
}

impl Position {
    /// The position of the `index`-th token of pure text.
    #[must_use]
    pub const fn text(index: u32) -> Self {
        Self { t: index, h: index, w: index }
    }

    /// The largest of the three components. What follows in text stands at this + 1.
    #[must_use]
    pub fn max_component(self) -> u32 {
        self.t.max(self.h).max(self.w)
    }
}

impl From<[u32; 3]> for Position {
    fn from([t, h, w]: [u32; 3]) -> Self {
        Self { t, h, w }
    }
}
