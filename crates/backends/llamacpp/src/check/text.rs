//! The text model: its dimensions, keys and tensors.

use std::collections::HashSet;

use consort_core::{ErrorKind, Result};
use consort_gguf::{Gguf, Metadata};
use consort_peft::{LayerKind, Network, TextDimensions};

use super::{Expected, Numbers, dimension, epsilon, invalid, only_known, tensors, unsupported};
use crate::config::CacheType;

const MAX_LAYERS: usize = 512;
const MAX_EXPERTS: usize = 1024;
/// A sequence's state beyond this is taken for a damaged or hostile file; the family's largest is 150 MiB.
const MAX_STATE_BYTES: u64 = 4 << 30;
/// The same for the keys and values of one token; the family's largest takes 256 KiB.
const MAX_CELL_BYTES: u64 = 16 << 20;

/// Keys after the architecture's name that a file may have. Each is read below, or says nothing to the library.
const KEYS: [&str; 30] = [
    "block_count",
    "nextn_predict_layers",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.recurrent_layers",
    "attention.causal",
    "full_attention_interval",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.dimension_sections",
    "rope.scaling.type",
    "ssm.conv_kernel",
    "ssm.state_size",
    "ssm.group_count",
    "ssm.time_step_rank",
    "ssm.inner_size",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "expert_shared_count",
    "expert_weights_norm",
    "expert_gating_func",
];

/// Dimensions of the text model.
#[derive(Debug, Clone)]
pub(crate) struct TextShape {
    pub(crate) architecture: &'static str,
    pub(crate) vocab: usize,
    pub(crate) hidden: usize,
    pub(crate) context: usize,
    /// One for each layer, without a multi-token prediction block.
    pub(crate) layers: Vec<LayerKind>,
    /// Whether the head has weights of its own.
    pub(crate) untied: bool,
    /// Width of each layer's network; in a mixture of experts, of the one that every token goes through.
    pub(crate) mlp: usize,
    /// Number and width of the experts, in a mixture of them.
    pub(crate) experts: Option<(usize, usize)>,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Heads of queries and keys of the delta net.
    pub(crate) key_heads: usize,
    /// Heads of its values; value head `h` reads key head `h mod key_heads`.
    pub(crate) value_heads: usize,
    /// Numbers of each of these heads.
    pub(crate) delta_dim: usize,
    /// Taps of its convolution.
    pub(crate) conv: usize,
}

impl TextShape {
    /// Reads the dimensions, and holds the file against them.
    pub(crate) fn read(file: &Gguf) -> Result<Self> {
        let metadata = file.metadata();
        let architecture = match metadata.require_str("general.architecture")? {
            "qwen35" => "qwen35",
            "qwen35moe" => "qwen35moe",
            other => {
                return Err(unsupported(
                    "key",
                    "general.architecture",
                    format!("this engine runs qwen35 and qwen35moe, and the file is {other}"),
                ));
            }
        };
        only_known(metadata, &format!("{architecture}."), &KEYS)?;
        let key = |name: &str| format!("{architecture}.{name}");
        let number = |name: &str| dimension(metadata, &key(name));
        epsilon(metadata, &key("attention.layer_norm_rms_epsilon"))?;
        if metadata.get_bool(&key("attention.causal"))? == Some(false) {
            return Err(unsupported("key", &key("attention.causal"), "a text model does not attend to later tokens"));
        }
        if metadata.get_str(&key("rope.scaling.type"))?.is_some_and(|kind| kind != "none") {
            return Err(unsupported("key", &key("rope.scaling.type"), "models with rotary scaling are not run here"));
        }
        let (layers, drafts) = layers(metadata, &key)?;
        let (mlp, experts) = match architecture {
            "qwen35moe" => (number("expert_shared_feed_forward_length")?, Some(experts(metadata, &key)?)),
            _ => (number("feed_forward_length")?, None),
        };
        let shape = Self {
            architecture,
            vocab: vocabulary(file)?,
            hidden: number("embedding_length")?,
            context: number("context_length")?,
            layers,
            untied: file.tensor("output.weight").is_some(),
            mlp,
            experts,
            heads: number("attention.head_count")?,
            kv_heads: number("attention.head_count_kv")?,
            head_dim: number("attention.key_length")?,
            key_heads: number("ssm.group_count")?,
            value_heads: number("ssm.time_step_rank")?,
            delta_dim: number("ssm.state_size")?,
            conv: number("ssm.conv_kernel")?,
        };
        shape.agree(metadata, &key)?;
        let expected = shape.expected(file);
        let draft = drafts.then(|| format!("blk.{}.", shape.layers.len()));
        tensors(file, &expected, |name| draft.as_ref().is_some_and(|draft| name.starts_with(draft)))?;
        Ok(shape)
    }

    /// What adapters are held against.
    pub(crate) fn dimensions(&self) -> TextDimensions {
        TextDimensions {
            hidden: self.hidden,
            mlp: self.mlp,
            vocab: self.vocab,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            key_heads: self.key_heads,
            value_heads: self.value_heads,
            key_dim: self.delta_dim,
            value_dim: self.delta_dim,
            layers: self.layers.clone(),
            network: if self.experts.is_some() { Network::Experts } else { Network::Dense },
        }
    }

    /// What dimensions must be to each other.
    fn agree(&self, metadata: &Metadata, key: &impl Fn(&str) -> String) -> Result<()> {
        let refuse = |name: &str, message: String| Err(invalid(&key(name), message));
        if !self.heads.is_multiple_of(self.kv_heads) {
            return refuse("attention.head_count_kv", format!("{} heads cannot share it evenly", self.heads));
        }
        if dimension(metadata, &key("attention.value_length"))? != self.head_dim {
            return refuse("attention.value_length", "keys and values must have the same length here".into());
        }
        if !self.value_heads.is_multiple_of(self.key_heads) {
            return refuse("ssm.group_count", format!("{} value heads cannot share it evenly", self.value_heads));
        }
        let inner = dimension(metadata, &key("ssm.inner_size"))?;
        if self.value_heads.checked_mul(self.delta_dim) != Some(inner) {
            return refuse(
                "ssm.inner_size",
                format!("{inner} is not {} value heads of {}, the length of a key", self.value_heads, self.delta_dim),
            );
        }
        if !(2..=64).contains(&self.conv) {
            return refuse("ssm.conv_kernel", format!("a convolution of {} taps is not run here", self.conv));
        }
        let rotary = metadata.get_u32(&key("rope.dimension_count"))?.map_or(self.head_dim, |count| count as usize);
        if rotary > self.head_dim || rotary == 0 || !rotary.is_multiple_of(2) {
            return refuse("rope.dimension_count", format!("{rotary} is no even part of {}", self.head_dim));
        }
        let sections = metadata.array_of_u32(&key("rope.dimension_sections"))?;
        let pairs = sections.iter().try_fold(0_usize, |sum, &section| sum.checked_add(section as usize));
        if sections.len() != 4
            || sections[3] != 0
            || sections[..3].contains(&0)
            || pairs.is_none_or(|pairs| pairs > self.head_dim)
        {
            return refuse("rope.dimension_sections", format!("{sections:?} are no sections of a head"));
        }
        let base = metadata.require_f32(&key("rope.freq_base"))?;
        if !(base > 0.0 && base.is_finite()) {
            return refuse("rope.freq_base", "this must be a finite number above zero".into());
        }
        let too_large = |bytes: Option<u64>, limit: u64| bytes.is_none_or(|bytes| bytes > limit);
        if too_large(self.state(), MAX_STATE_BYTES) || too_large(self.cell(4), MAX_CELL_BYTES) {
            return Err(consort_core::Error::new(
                ErrorKind::InvalidModel,
                "the dimensions imply a larger state than any model's",
            ));
        }
        Ok(())
    }

    /// Channels of the convolution: queries, keys, values.
    fn channels(&self) -> usize {
        (2 * self.key_heads + self.value_heads) * self.delta_dim
    }

    fn count(&self, kind: LayerKind) -> u64 {
        self.layers.iter().filter(|&&layer| layer == kind).count() as u64
    }

    fn state(&self) -> Option<u64> {
        let product = |factors: &[usize]| factors.iter().try_fold(1_u64, |all, &f| all.checked_mul(f as u64));
        let state = product(&[self.value_heads, self.delta_dim, self.delta_dim])?;
        let heads = self.key_heads.checked_mul(2)?.checked_add(self.value_heads)?;
        let window = product(&[heads, self.delta_dim, self.conv - 1])?;
        state.checked_add(window)?.checked_mul(4)?.checked_mul(self.count(LayerKind::Delta))
    }

    fn cell(&self, number: u64) -> Option<u64> {
        let heads = (self.kv_heads as u64).checked_mul(self.head_dim as u64)?;
        heads.checked_mul(2 * number)?.checked_mul(self.count(LayerKind::Attention))
    }

    /// Bytes of the recurrent and convolution states of one sequence, in f32.
    pub(crate) fn state_bytes(&self) -> u64 {
        self.state().unwrap_or(u64::MAX)
    }

    /// Bytes of the keys and values of one token.
    pub(crate) fn cell_bytes(&self, cache: CacheType) -> u64 {
        let number = match cache {
            CacheType::F32 => 4,
            CacheType::F16 => 2,
        };
        self.cell(number).unwrap_or(u64::MAX)
    }

    fn expected(&self, file: &Gguf) -> Vec<Expected> {
        use Numbers::{F32, Matrix};
        let hidden = self.hidden;
        let mut all = vec![
            Expected::new("token_embd.weight", &[hidden, self.vocab], Matrix),
            Expected::new("output_norm.weight", &[hidden], F32),
        ];
        if self.untied {
            all.push(Expected::new("output.weight", &[hidden, self.vocab], Matrix));
        }
        let queries = self.heads * self.head_dim;
        let keys = self.kv_heads * self.head_dim;
        let values = self.value_heads * self.delta_dim;
        for (block, kind) in self.layers.iter().enumerate() {
            let mut add = |name: &str, dims: &[usize], numbers| {
                all.push(Expected::new(format!("blk.{block}.{name}"), dims, numbers));
            };
            add("attn_norm.weight", &[hidden], F32);
            add("post_attention_norm.weight", &[hidden], F32);
            match kind {
                LayerKind::Attention => {
                    add("attn_q.weight", &[hidden, 2 * queries], Matrix);
                    add("attn_k.weight", &[hidden, keys], Matrix);
                    add("attn_v.weight", &[hidden, keys], Matrix);
                    add("attn_output.weight", &[queries, hidden], Matrix);
                    add("attn_q_norm.weight", &[self.head_dim], F32);
                    add("attn_k_norm.weight", &[self.head_dim], F32);
                }
                LayerKind::Delta => {
                    add("attn_qkv.weight", &[hidden, self.channels()], Matrix);
                    add("attn_gate.weight", &[hidden, values], Matrix);
                    add("ssm_alpha.weight", &[hidden, self.value_heads], Matrix);
                    add("ssm_beta.weight", &[hidden, self.value_heads], Matrix);
                    add("ssm_out.weight", &[values, hidden], Matrix);
                    add("ssm_conv1d.weight", &[self.conv, self.channels()], F32);
                    add("ssm_a", &[self.value_heads], F32);
                    add("ssm_dt.bias", &[self.value_heads], F32);
                    add("ssm_norm.weight", &[self.delta_dim], F32);
                }
            }
            match self.experts {
                None => {
                    add("ffn_gate.weight", &[hidden, self.mlp], Matrix);
                    add("ffn_up.weight", &[hidden, self.mlp], Matrix);
                    add("ffn_down.weight", &[self.mlp, hidden], Matrix);
                }
                Some((count, width)) => {
                    add("ffn_gate_inp.weight", &[hidden, count], Matrix);
                    if file.tensor(&format!("blk.{block}.ffn_gate_up_exps.weight")).is_some() {
                        add("ffn_gate_up_exps.weight", &[hidden, 2 * width, count], Matrix);
                    } else {
                        add("ffn_gate_exps.weight", &[hidden, width, count], Matrix);
                        add("ffn_up_exps.weight", &[hidden, width, count], Matrix);
                    }
                    add("ffn_down_exps.weight", &[width, hidden, count], Matrix);
                    add("ffn_gate_inp_shexp.weight", &[hidden], Matrix);
                    add("ffn_gate_shexp.weight", &[hidden, self.mlp], Matrix);
                    add("ffn_up_shexp.weight", &[hidden, self.mlp], Matrix);
                    add("ffn_down_shexp.weight", &[self.mlp, hidden], Matrix);
                }
            }
        }
        all
    }
}

/// Rows of the embedding table, which the list of tokens must have too: llama.cpp counts the list, as strings that end at
/// their first zero byte, and asserts that no two are equal (docs/upstream/llamacpp-duplicate-tokens.md).
fn vocabulary(file: &Gguf) -> Result<usize> {
    let key = "tokenizer.ggml.tokens";
    let tokens = file.metadata().array_of_strings(key)?;
    if tokens.is_empty() || i32::try_from(tokens.len()).is_err() {
        return Err(invalid(key, format!("{} tokens are no vocabulary", tokens.len())));
    }
    let mut seen = HashSet::with_capacity(tokens.len());
    for (index, token) in tokens.iter().enumerate() {
        if token.is_empty() || token.contains('\0') || !seen.insert(token.as_str()) {
            return Err(invalid(
                key,
                format!("token {index} is empty, has a zero byte or stands there twice: {token:?}"),
            ));
        }
    }
    Ok(tokens.len())
}

fn experts(metadata: &Metadata, key: &impl Fn(&str) -> String) -> Result<(usize, usize)> {
    let (count, used) = (dimension(metadata, &key("expert_count"))?, dimension(metadata, &key("expert_used_count"))?);
    if count > MAX_EXPERTS || used > count {
        return Err(invalid(&key("expert_count"), format!("{used} of {count} experts cannot be used here")));
    }
    if metadata.u32_or(&key("expert_shared_count"), 1)? != 1 {
        return Err(unsupported("key", &key("expert_shared_count"), "there is one shared expert in this family"));
    }
    if !metadata.bool_or(&key("expert_weights_norm"), true)? {
        return Err(unsupported(
            "key",
            &key("expert_weights_norm"),
            "the weights of experts sum to one in this family",
        ));
    }
    if metadata.u32_or(&key("expert_gating_func"), 1)? > 1 {
        return Err(unsupported("key", &key("expert_gating_func"), "the router is a softmax in this family"));
    }
    Ok((count, dimension(metadata, &key("expert_feed_forward_length"))?))
}

/// The layers, and whether a block follows that drafts later tokens.
fn layers(metadata: &Metadata, key: &impl Fn(&str) -> String) -> Result<(Vec<LayerKind>, bool)> {
    let blocks = dimension(metadata, &key("block_count"))?;
    let drafts = metadata.u32_or(&key("nextn_predict_layers"), 0)? as usize;
    if drafts > 1 {
        return Err(unsupported("key", &key("nextn_predict_layers"), "one multi-token prediction block is known here"));
    }
    let count = blocks.checked_sub(drafts).filter(|count| (1..=MAX_LAYERS - 1).contains(count));
    let count = count.ok_or_else(|| invalid(&key("block_count"), format!("{blocks} blocks are no model")))?;
    let of = |recurrent: bool| if recurrent { LayerKind::Delta } else { LayerKind::Attention };
    let name = key("attention.recurrent_layers");
    let kinds: Vec<LayerKind> = if metadata.contains(&name) {
        let flags: Vec<bool> = match metadata.array_of_bools(&name) {
            Ok(flags) => flags.to_vec(),
            Err(_) => metadata.array_of_u32(&name)?.iter().map(|&flag| flag != 0).collect(),
        };
        if flags.len() != blocks || flags[count..].contains(&true) {
            return Err(invalid(&name, format!("{} entries for {blocks} blocks", flags.len())));
        }
        flags[..count].iter().map(|&flag| of(flag)).collect()
    } else {
        let name = key("full_attention_interval");
        let interval = metadata.u32_or(&name, 4)? as usize;
        if interval == 0 {
            return Err(invalid(&name, "this must be above zero"));
        }
        (1..=count).map(|layer| of(!layer.is_multiple_of(interval))).collect()
    };
    // The library's memory of a hybrid model has both parts.
    for kind in [LayerKind::Attention, LayerKind::Delta] {
        if !kinds.contains(&kind) {
            return Err(unsupported("key", &key("block_count"), format!("a model without {kind:?} layers")));
        }
    }
    Ok((kinds, drafts == 1))
}
