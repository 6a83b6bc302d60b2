//! `config.json`: the dimensions, checked, of the text model and the vision tower.

use consort_core::{Error, ErrorKind, Result};
use serde_json::{Map, Value};

use crate::checkpoint::invalid;

/// Every dimension lies below this, so that products of three fit in 64 bits.
const MAX_DIMENSION: u64 = 1 << 20;
/// What transformers and the reference converter assume where the config is silent.
const DEFAULT_SECTIONS: [u32; 3] = [11, 11, 10];

/// The text model's dimensions and constants.
#[derive(Debug, Clone)]
pub(crate) struct TextConfig {
    pub(crate) vocabulary: u64,
    pub(crate) context: u64,
    pub(crate) hidden: u64,
    pub(crate) network: Network,
    pub(crate) layers: u64,
    pub(crate) heads: u64,
    pub(crate) kv_heads: u64,
    pub(crate) head_dim: u64,
    /// Hk and Hv: key and value heads of linear attention.
    pub(crate) key_heads: u64,
    pub(crate) value_heads: u64,
    pub(crate) key_dim: u64,
    pub(crate) value_dim: u64,
    pub(crate) conv_kernel: u64,
    pub(crate) full_attention_interval: u64,
    /// One entry a layer, true for linear attention; only where the interval does not say it.
    pub(crate) irregular: Option<Vec<bool>>,
    pub(crate) rms_epsilon: f32,
    pub(crate) rope_base: f32,
    pub(crate) rope_dimensions: u64,
    pub(crate) rope_sections: Vec<u32>,
    pub(crate) head: Head,
    pub(crate) mtp_layers: u64,
}

/// What follows the mixer in each layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// One network.
    Dense { width: u64 },
    /// A mixture of experts.
    Experts {
        count: u64,
        /// How many a token goes through.
        used: u64,
        /// Of each.
        width: u64,
        /// Of the one that every token goes through.
        shared: u64,
        /// A width that nothing has, where the config states one nevertheless.
        stated: Option<u64>,
    },
}

/// Where the output head's weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    /// They are the embedding.
    Tied,
    /// In a tensor of their own.
    Own,
    /// The two places that say it contradict each other.
    Contradicted,
}

impl TextConfig {
    /// Lets the checkpoint decide where the config contradicts itself.
    pub(crate) fn settle_head(&mut self, stored: bool) {
        if self.head == Head::Contradicted {
            self.head = if stored { Head::Own } else { Head::Tied };
        }
    }

    /// The architecture's name in metadata.
    pub(crate) fn architecture(&self) -> &'static str {
        match self.network {
            Network::Dense { .. } => "qwen35",
            Network::Experts { .. } => "qwen35moe",
        }
    }

    /// Whether layer `index` is linear attention.
    pub(crate) fn is_linear(&self, index: u64) -> bool {
        match &self.irregular {
            Some(linear) => linear.get(index as usize).copied().unwrap_or(false),
            None => !(index + 1).is_multiple_of(self.full_attention_interval),
        }
    }
}

/// The vision tower's dimensions and constants.
#[derive(Debug, Clone)]
pub(crate) struct VisionConfig {
    pub(crate) depth: u64,
    pub(crate) hidden: u64,
    pub(crate) mlp: u64,
    pub(crate) heads: u64,
    pub(crate) channels: u64,
    pub(crate) patch: u64,
    pub(crate) merge: u64,
    pub(crate) output: u64,
    pub(crate) positions: u64,
    /// The side of the square image that the position table covers, in pixels.
    pub(crate) image: u64,
}

/// `config.json` as far as conversion needs it.
#[derive(Debug, Clone)]
pub(crate) struct ModelConfig {
    pub(crate) text: TextConfig,
    pub(crate) vision: Option<VisionConfig>,
}

impl ModelConfig {
    pub(crate) fn parse(root: &Map<String, Value>) -> Result<Self> {
        let architecture = root
            .get("architectures")
            .and_then(|list| list.get(0))
            .and_then(Value::as_str)
            .or_else(|| root.get("model_type").and_then(Value::as_str))
            .unwrap_or("unnamed");
        let network = match architecture {
            "Qwen3_5ForConditionalGeneration" | "Qwen3_5ForCausalLM" | "qwen3_5" | "qwen3_5_text" => dense,
            "Qwen3_5MoeForConditionalGeneration" | "Qwen3_5MoeForCausalLM" | "qwen3_5_moe" | "qwen3_5_moe_text" => {
                experts
            }
            other => return Err(unsupported("only checkpoints of the Qwen3.5 family are converted", other)),
        };
        if root.get("quantization_config").is_some_and(|value| !value.is_null()) {
            return Err(unsupported(
                "the checkpoint is quantized already; convert from the unquantized one",
                "quantization_config",
            ));
        }
        let text = root.get("text_config").and_then(Value::as_object);
        let text = Keys { own: text.unwrap_or(root), outer: text.map(|_| root), section: "text_config" };
        let vision = match root.get("vision_config").and_then(Value::as_object) {
            Some(own) => Some(vision(&Keys { own, outer: None, section: "vision_config" })?),
            None => None,
        };
        let network = network(&text)?;
        let text = text_config(&text, network)?;
        if let Some(vision) = &vision
            && vision.output != text.hidden
        {
            return Err(invalid(format!(
                "the vision tower gives {} numbers, the text model takes {}",
                vision.output, text.hidden
            ))
            .with_context("key", "vision_config.out_hidden_size"));
        }
        Ok(Self { text, vision })
    }
}

fn unsupported(message: &str, what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, message).with_operation("forge::convert").with_context("config", what)
}

/// One object of the config, with the enclosing one behind it.
struct Keys<'a> {
    own: &'a Map<String, Value>,
    outer: Option<&'a Map<String, Value>>,
    section: &'static str,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        [Some(self.own), self.outer].into_iter().flatten().filter_map(|map| map.get(key)).find(|value| !value.is_null())
    }

    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.section)
    }

    /// A dimension: a whole number from 1 to [`MAX_DIMENSION`].
    fn dimension(&self, key: &str) -> Result<u64> {
        self.dimension_or(key, None)
    }

    fn dimension_or(&self, key: &str, default: Option<u64>) -> Result<u64> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(invalid("the config lacks this key").with_context("key", self.name(key))),
            (Some(value), _) => value.as_u64().filter(|number| (1..=MAX_DIMENSION).contains(number)).ok_or_else(|| {
                invalid(format!("{value} is not a whole number from 1 to {MAX_DIMENSION}"))
                    .with_context("key", self.name(key))
            }),
        }
    }

    /// A finite number above zero.
    fn number(&self, key: &str, value: Option<&Value>) -> Result<f64> {
        let value = value.ok_or_else(|| invalid("the config lacks this key").with_context("key", self.name(key)))?;
        value
            .as_f64()
            .filter(|number| number.is_finite() && *number > 0.0 && *number < 1e30)
            .ok_or_else(|| invalid(format!("{value} is not a number above zero")).with_context("key", self.name(key)))
    }
}

fn dense(keys: &Keys<'_>) -> Result<Network> {
    Ok(Network::Dense { width: keys.dimension("intermediate_size")? })
}

fn experts(keys: &Keys<'_>) -> Result<Network> {
    let (count, used) = (keys.dimension("num_experts")?, keys.dimension("num_experts_per_tok")?);
    if used > count {
        return Err(invalid(format!("a token cannot go through {used} of {count} experts"))
            .with_context("key", keys.name("num_experts_per_tok")));
    }
    // transformers always divides the chosen weights by their sum.
    if keys.get("norm_topk_prob").and_then(Value::as_bool) == Some(false) {
        return Err(unsupported("only experts whose weights sum to one are converted", "norm_topk_prob"));
    }
    if keys.get("mlp_only_layers").and_then(Value::as_array).is_some_and(|layers| !layers.is_empty()) {
        return Err(unsupported("layers without experts among layers with are not converted", "mlp_only_layers"));
    }
    Ok(Network::Experts {
        count,
        used,
        width: keys.dimension("moe_intermediate_size")?,
        shared: keys.dimension("shared_expert_intermediate_size")?,
        stated: keys.get("intermediate_size").map(|_| keys.dimension("intermediate_size")).transpose()?,
    })
}

fn text_config(keys: &Keys<'_>, network: Network) -> Result<TextConfig> {
    let layers = keys.dimension("num_hidden_layers")?;
    let head_dim = keys.dimension("head_dim")?;
    let empty = Map::new();
    let rope = ["rope_parameters", "rope_scaling"].iter().find_map(|key| keys.get(key)?.as_object()).unwrap_or(&empty);
    if let Some(kind) = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str)
        && kind != "default"
    {
        return Err(unsupported("rotary scaling is not converted; only the default rotary embedding is", kind));
    }
    let in_rope = |key: &str| rope.get(key).or_else(|| keys.get(key));
    let partial = match in_rope("partial_rotary_factor") {
        Some(value) => keys.number("partial_rotary_factor", Some(value))?,
        None => 0.25,
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let rope_dimensions = (head_dim as f64 * partial) as u64;
    if partial > 1.0 || rope_dimensions == 0 {
        return Err(invalid("the rotary part of a head is empty or larger than the head")
            .with_context("key", keys.name("partial_rotary_factor")));
    }
    let mut rope_sections = match in_rope("mrope_section") {
        None => DEFAULT_SECTIONS.to_vec(),
        Some(value) => value
            .as_array()
            .filter(|list| (1..=4).contains(&list.len()))
            .and_then(|list| list.iter().map(|entry| entry.as_u64().and_then(|n| u32::try_from(n).ok())).collect())
            .ok_or_else(|| {
                invalid("this is not one to four whole numbers").with_context("key", keys.name("mrope_section"))
            })?,
    };
    rope_sections.resize(4, 0);
    let (full_attention_interval, irregular) = layer_types(keys, layers)?;
    let mtp_layers = match keys.get("mtp_num_hidden_layers") {
        None => 0,
        Some(value) => value.as_u64().filter(|&layers| layers <= 1).ok_or_else(|| {
            unsupported("at most one multi-token prediction layer is converted", "mtp_num_hidden_layers")
        })?,
    };
    #[allow(clippy::cast_possible_truncation)] // The format stores these as f32.
    let config = TextConfig {
        vocabulary: keys.dimension("vocab_size")?,
        context: match keys.get("max_position_embeddings") {
            None => 262_144,
            Some(value) => value.as_u64().filter(|&n| n > 0 && n <= u64::from(u32::MAX)).ok_or_else(|| {
                invalid("this is not a whole number of 32 bits")
                    .with_context("key", keys.name("max_position_embeddings"))
            })?,
        },
        hidden: keys.dimension("hidden_size")?,
        network,
        layers,
        heads: keys.dimension("num_attention_heads")?,
        kv_heads: keys.dimension("num_key_value_heads")?,
        head_dim,
        key_heads: keys.dimension("linear_num_key_heads")?,
        value_heads: keys.dimension("linear_num_value_heads")?,
        key_dim: keys.dimension("linear_key_head_dim")?,
        value_dim: keys.dimension("linear_value_head_dim")?,
        conv_kernel: keys.dimension("linear_conv_kernel_dim")?,
        full_attention_interval,
        irregular,
        rms_epsilon: keys.number("rms_norm_eps", keys.get("rms_norm_eps"))? as f32,
        rope_base: keys.number("rope_theta", in_rope("rope_theta"))? as f32,
        rope_dimensions,
        rope_sections,
        head: head(keys),
        mtp_layers,
    };
    if !config.value_heads.is_multiple_of(config.key_heads) {
        return Err(invalid(format!("{} value heads cannot share {} key heads", config.value_heads, config.key_heads))
            .with_context("key", keys.name("linear_num_value_heads")));
    }
    Ok(config)
}

/// Reads `tie_word_embeddings`, which stands in the text config, around it, or both.
fn head(keys: &Keys<'_>) -> Head {
    let says = |map: &Map<String, Value>| map.get("tie_word_embeddings").and_then(Value::as_bool);
    match (says(keys.own), keys.outer.and_then(says)) {
        (Some(own), Some(outer)) if own != outer => Head::Contradicted,
        (Some(true), _) | (None, Some(true)) => Head::Tied,
        _ => Head::Own,
    }
}

/// The interval of full-attention layers, and the layers themselves where no interval gives them.
fn layer_types(keys: &Keys<'_>, layers: u64) -> Result<(u64, Option<Vec<bool>>)> {
    let stated = match keys.get("full_attention_interval") {
        Some(_) => Some(keys.dimension("full_attention_interval")?),
        None => None,
    };
    let Some(types) = keys.get("layer_types") else { return Ok((stated.unwrap_or(4), None)) };
    let wrong = || {
        invalid(format!("this is not a list of linear_attention or full_attention for each of {layers} layers"))
            .with_context("key", keys.name("layer_types"))
    };
    let linear: Vec<bool> = types
        .as_array()
        .filter(|types| types.len() as u64 == layers)
        .and_then(|types| {
            types
                .iter()
                .map(|entry| match entry.as_str() {
                    Some("linear_attention") => Some(true),
                    Some("full_attention") => Some(false),
                    _ => None,
                })
                .collect()
        })
        .ok_or_else(wrong)?;
    let fits =
        |interval: u64| linear.iter().zip(1..).all(|(&linear, place)| linear != u64::is_multiple_of(place, interval));
    let first_full = linear.iter().position(|linear| !linear).map(|at| at as u64 + 1);
    let interval =
        [stated, Some(4), first_full, Some(layers + 1)].into_iter().flatten().find(|&interval| fits(interval));
    Ok(match interval {
        Some(interval) => (interval, None),
        None => (stated.unwrap_or(4), Some(linear)),
    })
}

fn vision(keys: &Keys<'_>) -> Result<VisionConfig> {
    if keys.get("deepstack_visual_indexes").and_then(Value::as_array).is_some_and(|list| !list.is_empty()) {
        return Err(unsupported("DeepStack layers of a vision tower are not converted", "deepstack_visual_indexes"));
    }
    if keys.dimension_or("temporal_patch_size", Some(2))? != 2 {
        return Err(unsupported("only temporal patches of 2 are converted", "temporal_patch_size"));
    }
    let patch = keys.dimension_or("patch_size", Some(16))?;
    let positions = keys.dimension_or("num_position_embeddings", Some(2304))?;
    Ok(VisionConfig {
        depth: keys.dimension("depth")?,
        hidden: keys.dimension("hidden_size")?,
        mlp: keys.dimension("intermediate_size")?,
        heads: keys.dimension("num_heads")?,
        channels: keys.dimension_or("in_channels", Some(3))?,
        patch,
        merge: keys.dimension_or("spatial_merge_size", Some(2))?,
        output: keys.dimension("out_hidden_size")?,
        positions,
        image: positions.isqrt() * patch,
    })
}
