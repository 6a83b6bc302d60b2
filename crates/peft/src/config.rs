//! `adapter_config.json`: what we honour, and what we refuse by name.

use std::fmt;

use consort_core::{Error, ErrorKind, Result};
use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::MAX_RANK;

/// The largest config that is read, in bytes. PEFT writes a few kilobytes.
pub(crate) const MAX_CONFIG_BYTES: usize = 1 << 20;
const MAX_PATTERNS: usize = 4096;
/// The key of an activated adapter's tokens.
pub(crate) const INVOCATION: &str = "alora_invocation_tokens";
/// Prompts are searched for them, so they are few.
const MAX_INVOCATION: usize = 256;
/// Bounds what a pattern compiles to, in bytes: patterns are hostile too.
const MAX_PATTERN_BYTES: usize = 1 << 16;

/// What `adapter_config.json` says, as far as it bears on the weights.
#[derive(Debug, Clone)]
pub struct PeftConfig {
    rank: usize,
    alpha: f64,
    rank_stabilised: bool,
    rank_pattern: Vec<(Regex, usize)>,
    alpha_pattern: Vec<(Regex, f64)>,
    target_modules: Vec<String>,
    base_model: Option<String>,
    invocation_tokens: Option<Vec<u32>>,
}

/// The keys that bear on us. A missing key has PEFT's default.
#[derive(Deserialize)]
struct Raw {
    peft_type: Option<String>,
    #[serde(default = "default_rank")]
    r: u64,
    #[serde(default = "default_alpha")]
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: Option<bool>,
    #[serde(default)]
    rank_pattern: Option<Ordered<u64>>,
    #[serde(default)]
    alpha_pattern: Option<Ordered<f64>>,
    #[serde(default)]
    target_modules: Value,
    #[serde(default)]
    base_model_name_or_path: Value,
    #[serde(default)]
    alora_invocation_tokens: Value,
    #[serde(default)]
    bias: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn default_rank() -> u64 {
    8
}

fn default_alpha() -> f64 {
    8.0
}

/// A JSON object in the file's order, which decides between patterns.
struct Ordered<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct InOrder<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Ordered<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        deserializer.deserialize_map(InOrder(std::marker::PhantomData))
    }
}

/// Keys that change what the adapter computes, or that store more than A and B, and what they stand for. Any value but
/// null, false, zero and an empty list or object asks for them.
const REFUSED: &[(&str, &str)] = &[
    ("use_dora", "DoRA"),
    ("modules_to_save", "modules_to_save (whole layers trained along)"),
    ("fan_in_fan_out", "fan_in_fan_out (transposed weights)"),
    ("lora_bias", "lora_bias"),
    ("layer_replication", "layer_replication"),
    ("trainable_token_indices", "trainable_token_indices"),
    ("target_parameters", "target_parameters (LoRA on bare parameters)"),
    ("use_qalora", "QALoRA"),
    ("use_bdlora", "block-diagonal LoRA"),
    ("arrow_config", "Arrow routing"),
    ("kasa_config", "KaSA"),
    ("monteclora_config", "MonteCLoRA"),
    ("velora_config", "VeLoRA"),
];

impl PeftConfig {
    pub(crate) fn parse(json: &[u8]) -> Result<Self> {
        if json.len() > MAX_CONFIG_BYTES {
            return Err(invalid(format!("the config has {} bytes, more than {MAX_CONFIG_BYTES}", json.len())));
        }
        let raw: Raw = serde_json::from_slice(json)
            .map_err(|source| invalid(format!("the config does not parse: {source}")).with_source(source))?;
        match raw.peft_type.as_deref() {
            Some("LORA") => {}
            Some(other) => {
                return Err(invalid(format!("the adapter is of type {other}; only LORA is supported"))
                    .with_context("key", "peft_type"));
            }
            None => return Err(invalid("the config does not say its peft_type").with_context("key", "peft_type")),
        }
        for (key, name) in REFUSED {
            if raw.rest.get(*key).is_some_and(asks) {
                return Err(
                    invalid(format!("the adapter uses {name}, which is not supported")).with_context("key", *key)
                );
            }
        }
        if let Some(bias) = raw.bias.filter(|bias| bias != "none") {
            return Err(invalid(format!("the adapter trains biases ({bias}), which is not supported"))
                .with_context("key", "bias"));
        }
        let rank = checked_rank(raw.r, "r")?;
        let alpha = checked_alpha(raw.lora_alpha, "lora_alpha")?;
        let rank_pattern = patterns(raw.rank_pattern, "rank_pattern", checked_rank)?;
        let alpha_pattern = patterns(raw.alpha_pattern, "alpha_pattern", checked_alpha)?;
        let target_modules = match raw.target_modules {
            Value::Null => Vec::new(),
            Value::String(one) => vec![one],
            Value::Array(list) => list
                .into_iter()
                .map(|entry| match entry {
                    Value::String(name) => Ok(name),
                    _ => Err(invalid("an entry is not text").with_context("key", "target_modules")),
                })
                .collect::<Result<_>>()?,
            _ => return Err(invalid("this is neither text nor a list").with_context("key", "target_modules")),
        };
        let invocation_tokens = invocation(&raw.alora_invocation_tokens)?;
        Ok(Self {
            rank,
            alpha,
            rank_stabilised: raw.use_rslora.unwrap_or(false),
            rank_pattern,
            alpha_pattern,
            target_modules,
            base_model: raw.base_model_name_or_path.as_str().map(str::to_owned),
            invocation_tokens,
        })
    }

    /// `r`: the rank of the layers that no `rank_pattern` names.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// `lora_alpha`: the numerator of the scale where no `alpha_pattern` names the layer.
    #[must_use]
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// `target_modules` as the config lists them (one entry where it is a pattern). The tensors decide what is changed;
    /// this is for people.
    #[must_use]
    pub fn target_modules(&self) -> &[String] {
        &self.target_modules
    }

    /// `base_model_name_or_path`: the model on which the adapter was trained, for people.
    #[must_use]
    pub fn base_model(&self) -> Option<&str> {
        self.base_model.as_deref()
    }

    /// `alora_invocation_tokens`: the tokens from which an activated adapter (aLoRA; Greenewald et al., "Activated LoRA",
    /// 2025) is active; `None` for an ordinary one.
    ///
    /// As PEFT does it: the last place in the prompt where they stand counts, the adapter acts from the first of them on and
    /// on all that is generated, and where they do not stand it does not act at all. What is generated is not searched.
    #[must_use]
    pub fn invocation_tokens(&self) -> Option<&[u32]> {
        self.invocation_tokens.as_deref()
    }

    /// The rank that the config gives to `module` (a name in the base model, such as `model.layers.0.mlp.up_proj`).
    pub(crate) fn rank_of(&self, module: &str) -> usize {
        first_match(&self.rank_pattern, module).unwrap_or(self.rank)
    }

    /// `alpha / r`, or `alpha / √r` for rank-stabilised LoRA, as PEFT computes it.
    pub(crate) fn scale_of(&self, module: &str, rank: usize) -> f32 {
        let alpha = first_match(&self.alpha_pattern, module).unwrap_or(self.alpha);
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
        // Ranks are small; engines compute in f32.
        let scale = if self.rank_stabilised { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 } as f32;
        scale
    }
}

/// Whether a value asks for the feature of its key.
fn asks(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::Bool(true) | Value::String(_) => true,
    }
}

/// `alora_invocation_tokens`: absent, or a list of token ids.
fn invocation(value: &Value) -> Result<Option<Vec<u32>>> {
    let refuse = |message: &str| Err(invalid(message).with_context("key", INVOCATION));
    let list = match value {
        Value::Null => return Ok(None),
        Value::Array(list) => list,
        _ => return refuse("the invocation tokens are no list"),
    };
    let token = |value: &Value| value.as_u64().and_then(|token| u32::try_from(token).ok());
    match list.iter().map(token).collect::<Option<Vec<_>>>() {
        Some(tokens) => checked_invocation(tokens, INVOCATION).map(Some),
        None => refuse("an invocation token is no token id"),
    }
}

/// The tokens of an activated adapter: 1 to [`MAX_INVOCATION`].
pub(crate) fn checked_invocation(tokens: Vec<u32>, key: &'static str) -> Result<Vec<u32>> {
    if tokens.is_empty() || tokens.len() > MAX_INVOCATION {
        return Err(invalid(format!(
            "an activated adapter needs 1 to {MAX_INVOCATION} invocation tokens, and this one has {}",
            tokens.len()
        ))
        .with_context("key", key));
    }
    Ok(tokens)
}

fn checked_rank(value: u64, key: &'static str) -> Result<usize> {
    usize::try_from(value)
        .ok()
        .filter(|rank| (1..=MAX_RANK).contains(rank))
        .ok_or_else(|| invalid(format!("a rank of {value} is not between 1 and {MAX_RANK}")).with_context("key", key))
}

pub(crate) fn checked_alpha(value: f64, key: &'static str) -> Result<f64> {
    if value.is_finite() && value.abs() <= 1e9 {
        Ok(value)
    } else {
        Err(invalid(format!("an alpha of {value} is out of bounds")).with_context("key", key))
    }
}

/// PEFT reads each key as a regular expression that must match the end of a layer's name, at its start or after a dot.
fn patterns<T, U>(
    raw: Option<Ordered<T>>,
    key: &'static str,
    check: impl Fn(T, &'static str) -> Result<U>,
) -> Result<Vec<(Regex, U)>> {
    let entries = raw.map(|entries| entries.0).unwrap_or_default();
    if entries.len() > MAX_PATTERNS {
        return Err(invalid(format!("more than {MAX_PATTERNS} patterns")).with_context("key", key));
    }
    entries
        .into_iter()
        .map(|(pattern, value)| {
            let regex = RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
                .size_limit(MAX_PATTERN_BYTES)
                .nest_limit(32)
                .build()
                .map_err(|source| {
                    invalid(format!("the pattern {pattern:?} does not compile: {source}"))
                        .with_context("key", key)
                        .with_source(source)
                })?;
            Ok((regex, check(value, key)?))
        })
        .collect()
}

fn first_match<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|&(_, value)| value)
}

pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidAdapter, message).with_operation("peft::open")
}
