//! Dimensions of the text model, read from the metadata and held against each other.

use consort_core::{Error, ErrorKind, Result};
use consort_gguf::{Gguf, Metadata};
pub(crate) use consort_peft::LayerKind;
use consort_peft::{Network, TextDimensions};

use super::supported;

/// The most experts of a layer; the family's largest model has 512.
const MAX_EXPERTS: usize = 1 << 16;
/// A sequence's state beyond this is taken for a damaged or hostile file; the family's largest is 150 MiB.
const MAX_STATE_BYTES: u64 = 4 << 30;
/// The same for the keys and values of one token; the family's largest takes 256 KiB.
const MAX_TOKEN_BYTES: u64 = 16 << 20;
const MAX_LAYERS: usize = 1024;

/// Dimensions of the attention layers.
#[derive(Debug, Clone)]
pub(crate) struct AttentionShape {
    /// Query heads.
    pub(crate) heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub(crate) kv_heads: usize,
    /// Numbers per head.
    pub(crate) head_dim: usize,
    /// How many of them, the first ones, are rotated.
    pub(crate) rotary: usize,
    /// How many rotated pairs each of t, h, w governs.
    pub(crate) sections: [usize; 3],
    /// Base of the rotary frequencies.
    pub(crate) theta: f32,
}

/// Dimensions of the delta net layers.
#[derive(Debug, Clone)]
pub(crate) struct DeltaShape {
    /// Heads of queries and keys.
    pub(crate) key_heads: usize,
    /// Heads of values; value head `h` reads key head `h mod key_heads`.
    pub(crate) value_heads: usize,
    /// Numbers per query and key head.
    pub(crate) key_dim: usize,
    /// Numbers per value head.
    pub(crate) value_dim: usize,
    /// Taps of the causal convolution.
    pub(crate) conv: usize,
}

impl DeltaShape {
    /// Numbers of all key heads.
    pub(crate) fn keys(&self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Numbers of all value heads.
    pub(crate) fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Channels of the convolution: queries, keys, values.
    pub(crate) fn channels(&self) -> usize {
        2 * self.keys() + self.values()
    }
}

/// Dimensions of a layer's mixture of experts.
#[derive(Debug, Clone)]
pub(crate) struct ExpertShape {
    /// Experts among which the router chooses.
    pub(crate) count: usize,
    /// How many a token goes through, at least one and at most all.
    pub(crate) used: usize,
    /// Width of each.
    pub(crate) width: usize,
}

/// Whether the file has a block that drafts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drafts {
    None,
    /// One multi-token prediction block after the layers.
    OneBlock,
}

/// Dimensions of the text model.
#[derive(Debug, Clone)]
pub(crate) struct TextShape {
    pub(crate) hidden: usize,
    /// Width of each layer's network; in a mixture of experts, of the one that every token goes through.
    pub(crate) mlp: usize,
    /// The experts of each layer, in a mixture of them.
    pub(crate) experts: Option<ExpertShape>,
    pub(crate) vocab: usize,
    /// Added to variances.
    pub(crate) epsilon: f32,
    /// The longest sequence that the model was made for.
    pub(crate) context: usize,
    /// One for each layer, without the block that drafts.
    pub(crate) layers: Vec<LayerKind>,
    pub(crate) drafts: Drafts,
    pub(crate) attention: AttentionShape,
    pub(crate) delta: DeltaShape,
}

fn invalid(key: &str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidModel, message).with_operation("native::load").with_context("key", key)
}

/// The metadata of the text model, whose keys begin with the architecture.
#[derive(Clone, Copy)]
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'static str,
}

impl Keys<'_> {
    fn name(self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// `key` of this architecture as a number above zero that fits into memory many times over.
    fn dimension(self, key: &str) -> Result<usize> {
        let key = self.name(key);
        match self.metadata.require_u32(&key)? as usize {
            value @ 1..=0x0100_0000 => Ok(value),
            value => Err(invalid(&key, format!("{value} is no dimension of a model"))),
        }
    }
}

impl TextShape {
    /// Reads and checks the dimensions.
    pub(crate) fn read(file: &Gguf) -> Result<Self> {
        let metadata = file.metadata();
        let architecture = supported::architecture(metadata)?;
        supported::check_metadata(metadata, architecture)?;
        let keys = Keys { metadata, architecture };
        let hidden = keys.dimension("embedding_length")?;
        let (mlp, experts) = match architecture {
            supported::EXPERTS => (keys.dimension("expert_shared_feed_forward_length")?, Some(experts(keys)?)),
            _ => (keys.dimension("feed_forward_length")?, None),
        };
        let (layers, drafts) = layers(keys)?;
        let shape = Self {
            hidden,
            mlp,
            experts,
            vocab: vocabulary(file, hidden)?,
            epsilon: metadata.require_f32(&keys.name("attention.layer_norm_rms_epsilon"))?,
            context: keys.dimension("context_length")?,
            layers,
            drafts,
            attention: attention(keys)?,
            delta: delta(keys)?,
        };
        if !(shape.epsilon > 0.0 && shape.epsilon < 1.0) {
            return Err(invalid(&keys.name("attention.layer_norm_rms_epsilon"), "this must lie between 0 and 1"));
        }
        let too_large = |bytes: Option<u64>, limit: u64| bytes.is_none_or(|bytes| bytes > limit);
        if too_large(shape.state_bytes(), MAX_STATE_BYTES) || too_large(shape.token_bytes(), MAX_TOKEN_BYTES) {
            return Err(Error::new(ErrorKind::InvalidModel, "the dimensions imply a larger state than any model's")
                .with_operation("native::load"));
        }
        Ok(shape)
    }

    /// What adapters are held against.
    pub(crate) fn dimensions(&self) -> TextDimensions {
        let Self { attention, delta, .. } = self;
        TextDimensions {
            hidden: self.hidden,
            mlp: self.mlp,
            vocab: self.vocab,
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            head_dim: attention.head_dim,
            key_heads: delta.key_heads,
            value_heads: delta.value_heads,
            key_dim: delta.key_dim,
            value_dim: delta.value_dim,
            layers: self.layers.clone(),
            network: if self.experts.is_some() { Network::Experts } else { Network::Dense },
        }
    }

    /// How many layers are of this kind.
    pub(crate) fn count(&self, kind: LayerKind) -> usize {
        self.layers.iter().filter(|&&layer| layer == kind).count()
    }

    /// Bytes of the recurrent and convolution states of one sequence.
    fn state_bytes(&self) -> Option<u64> {
        let delta = &self.delta;
        let product = |factors: &[usize]| factors.iter().try_fold(1_u64, |all, &f| all.checked_mul(f as u64));
        let state = product(&[delta.value_heads, delta.value_dim, delta.key_dim])?;
        let keys = product(&[2, delta.key_heads, delta.key_dim])?;
        let channels = keys.checked_add(product(&[delta.value_heads, delta.value_dim])?)?;
        let window = channels.checked_mul(delta.conv as u64 - 1)?;
        state.checked_add(window)?.checked_mul(4 * self.count(LayerKind::Delta) as u64)
    }

    /// Bytes of the keys and values of one token.
    fn token_bytes(&self) -> Option<u64> {
        let AttentionShape { kv_heads, head_dim, .. } = self.attention;
        [kv_heads, head_dim, self.count(LayerKind::Attention)]
            .iter()
            .try_fold(8_u64, |all, &factor| all.checked_mul(factor as u64))
    }
}

/// Rows of the embedding table.
fn vocabulary(file: &Gguf, hidden: usize) -> Result<usize> {
    let name = "token_embd.weight";
    let info = file.require_tensor(name)?;
    match (info.dims.as_slice(), usize::try_from(info.rows())) {
        ([row, _], Ok(rows)) if *row == hidden as u64 && u32::try_from(rows).is_ok() => Ok(rows),
        _ => Err(Error::new(
            ErrorKind::InvalidModel,
            format!("the embedding table must have rows of {hidden} numbers, and is {:?}", info.dims),
        )
        .with_operation("native::load")
        .with_context("tensor", name)),
    }
}

fn experts(keys: Keys<'_>) -> Result<ExpertShape> {
    let (count, used) = (keys.dimension("expert_count")?, keys.dimension("expert_used_count")?);
    if count > MAX_EXPERTS {
        return Err(invalid(&keys.name("expert_count"), format!("{count} experts are more than any model has")));
    }
    if used > count {
        return Err(invalid(
            &keys.name("expert_used_count"),
            format!("a token cannot go through {used} of {count} experts"),
        ));
    }
    Ok(ExpertShape { count, used, width: keys.dimension("expert_feed_forward_length")? })
}

/// The layers, and whether a block follows that drafts later tokens.
fn layers(keys: Keys<'_>) -> Result<(Vec<LayerKind>, Drafts)> {
    let (metadata, key) = (keys.metadata, |name: &str| keys.name(name));
    let blocks = keys.dimension("block_count")?;
    // The file counts its multi-token prediction layer as a block.
    let next = key("nextn_predict_layers");
    let (drafts, kind) = match metadata.u32_or(&next, 0)? {
        0 => (0, Drafts::None),
        1 => (1, Drafts::OneBlock),
        several => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{several} multi-token prediction layers are not supported by this engine; one is"),
            )
            .with_operation("native::load")
            .with_context("key", next));
        }
    };
    let count = blocks.checked_sub(drafts).filter(|count| (1..=MAX_LAYERS).contains(count)).ok_or_else(|| {
        invalid(&key("block_count"), format!("{blocks} blocks, {drafts} of them for drafts, leave no decoder"))
    })?;
    let recurrent = key("attention.recurrent_layers");
    if metadata.contains(&recurrent) {
        let flags: Vec<bool> = match metadata.array_of_bools(&recurrent) {
            Ok(flags) => flags.to_vec(),
            Err(_) => metadata.array_of_u32(&recurrent)?.iter().map(|&flag| flag != 0).collect(),
        };
        if flags.len() < count {
            return Err(invalid(&recurrent, format!("{} entries for {count} layers", flags.len())));
        }
        let of = |&recurrent: &bool| if recurrent { LayerKind::Delta } else { LayerKind::Attention };
        return Ok((flags[..count].iter().map(of).collect(), kind));
    }
    let interval = metadata.u32_or(&key("full_attention_interval"), 4)? as usize;
    if interval == 0 {
        return Err(invalid(&key("full_attention_interval"), "this must be above zero"));
    }
    let of = |layer: usize| {
        if (layer + 1).is_multiple_of(interval) { LayerKind::Attention } else { LayerKind::Delta }
    };
    Ok(((0..count).map(of).collect(), kind))
}

fn attention(keys: Keys<'_>) -> Result<AttentionShape> {
    let (metadata, key) = (keys.metadata, |name: &str| keys.name(name));
    let heads = keys.dimension("attention.head_count")?;
    let kv_heads = keys.dimension("attention.head_count_kv")?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(invalid(
            &key("attention.head_count_kv"),
            format!("{heads} query heads cannot share {kv_heads} key heads evenly"),
        ));
    }
    let head_dim = keys.dimension("attention.key_length")?;
    if keys.dimension("attention.value_length")? != head_dim {
        return Err(invalid(&key("attention.value_length"), "keys and values must have the same length here"));
    }
    let scale = metadata.f32_or(&key("attention.scale"), 0.0)?;
    if scale != 0.0 && (scale * (head_dim as f32).sqrt() - 1.0).abs() > 1e-5 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "attention scores are scaled by 1/√key_length and not otherwise here",
        )
        .with_operation("native::load")
        .with_context("key", key("attention.scale")));
    }
    let rotary = metadata.get_u32(&key("rope.dimension_count"))?.map_or(head_dim, |count| count as usize);
    if rotary > head_dim || !rotary.is_multiple_of(2) {
        return Err(invalid(
            &key("rope.dimension_count"),
            format!("{rotary} is not an even number of at most {head_dim}, the length of a head"),
        ));
    }
    let name = key("rope.dimension_sections");
    let sections = if metadata.contains(&name) { metadata.array_of_u32(&name)? } else { vec![11, 11, 10] };
    if sections.get(3).is_some_and(|&fourth| fourth != 0) {
        return Err(Error::new(ErrorKind::Unsupported, "this engine does not run models with a fourth rotary section")
            .with_operation("native::load")
            .with_context("key", name));
    }
    let (&[t, h, w], true) = (sections.first_chunk().unwrap_or(&[0; 3]), sections.len() >= 3) else {
        return Err(invalid(&name, "there must be a section for each of time, height and width"));
    };
    let theta = metadata.require_f32(&key("rope.freq_base"))?;
    if !(theta > 0.0 && theta.is_finite()) {
        return Err(invalid(&key("rope.freq_base"), "this must be a finite number above zero"));
    }
    let sections = [t, h, w].map(|section| section as usize);
    Ok(AttentionShape { heads, kv_heads, head_dim, rotary, sections, theta })
}

fn delta(keys: Keys<'_>) -> Result<DeltaShape> {
    let key = |name: &str| keys.name(name);
    let key_heads = keys.dimension("ssm.group_count")?;
    let value_heads = keys.dimension("ssm.time_step_rank")?;
    if !value_heads.is_multiple_of(key_heads) {
        return Err(invalid(
            &key("ssm.group_count"),
            format!("{value_heads} value heads cannot share {key_heads} key heads evenly"),
        ));
    }
    let inner = keys.dimension("ssm.inner_size")?;
    if !inner.is_multiple_of(value_heads) {
        return Err(invalid(
            &key("ssm.inner_size"),
            format!("{inner} numbers cannot be split into {value_heads} value heads"),
        ));
    }
    Ok(DeltaShape {
        key_heads,
        value_heads,
        key_dim: keys.dimension("ssm.state_size")?,
        value_dim: inner / value_heads,
        conv: keys.dimension("ssm.conv_kernel")?,
    })
}
