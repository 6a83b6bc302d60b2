//! What a loaded model is.

use serde::Serialize;

use crate::TokenId;

/// What a loaded model is, as engines and backends tell it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ModelInfo {
    /// A name for people (`general.name` of a GGUF).
    pub name: String,
    /// The architecture (`qwen35`).
    pub architecture: String,
    /// Rows of `lm_head`.
    pub vocab_size: usize,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Decoder layers, without the MTP layer.
    pub layers: usize,
    /// The longest sequence that the model was made for, in tokens.
    pub context_length: usize,
    /// Weights, in number.
    pub parameters: u64,
    /// How the bulk of the weights is stored (`Q8_0`).
    pub weight_type: String,
    /// Identity of the model file and of its vision projector; part of every cache key.
    pub digest: [u8; 32],
    /// Tokens that end a reply (`<|im_end|>`, `<|endoftext|>`).
    pub stop_tokens: Vec<TokenId>,
    /// The token that stands for an image's tokens in a prompt (`<|image_pad|>`), when the model sees.
    pub image_token: Option<TokenId>,
}
