//! GGUF adapters: what llama.cpp's `convert_lora_to_gguf.py` writes and its `llama-adapter.cpp` reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use consort_core::{Error, Result};
use consort_gguf::{Gguf, Metadata, TensorInfo, TensorType, dequantize};

use crate::MAX_RANK;
use crate::adapter::{LoraDelta, MAX_FEATURES, check_finite, sort};
use crate::config::{checked_alpha, checked_invocation, invalid};

const ALPHA: &str = "adapter.lora.alpha";
/// The key of an activated adapter's tokens.
pub(crate) const INVOCATION: &str = "adapter.alora.invocation_tokens";

/// The keys `adapter.*` that are understood. The task's name and the prompt's prefix are for people and for clients, and do
/// not bear on the weights.
const KEYS: [&str; 5] = ["adapter.type", ALPHA, INVOCATION, "adapter.lora.task_name", "adapter.lora.prompt_prefix"];

/// A LoRA adapter in GGUF.
///
/// Its deltas name the model's tensors as GGUF does (`blk.3.attn_q.weight`), and have value heads in GGUF's order.
#[derive(Debug, Clone)]
pub struct GgufAdapter {
    architecture: String,
    deltas: Vec<LoraDelta>,
    invocation_tokens: Option<Vec<u32>>,
}

impl GgufAdapter {
    /// Reads an adapter from a file's contents.
    ///
    /// # Errors
    /// [`InvalidAdapter`](consort_core::ErrorKind::InvalidAdapter), naming the key or the tensor, for a file that is
    /// malformed, out of bounds, no adapter, or an adapter that uses something that is not supported.
    pub fn from_bytes(bytes: Arc<[u8]>) -> Result<Self> {
        if !bytes.starts_with(b"GGUF") {
            return Err(invalid("this is not a GGUF file; an adapter in PEFT's format is named by its folder"));
        }
        let file = Gguf::from_shared(bytes).map_err(in_adapter)?;
        let metadata = file.metadata();
        expect(metadata, "general.type", "adapter")?;
        expect(metadata, "adapter.type", "lora")?;
        if let Some((stranger, _)) = metadata.iter().find(|(key, _)| key.starts_with("adapter.") && !KEYS.contains(key))
        {
            return Err(
                invalid("the adapter uses what this key says, which is not supported").with_context("key", stranger)
            );
        }
        let architecture = text(metadata, "general.architecture")?.to_owned();
        let alpha = metadata.get_f32(ALPHA).map_err(in_adapter)?.unwrap_or(0.0);
        checked_alpha(alpha.into(), ALPHA)?;
        let invocation_tokens = if metadata.contains(INVOCATION) {
            Some(checked_invocation(metadata.array_of_u32(INVOCATION).map_err(in_adapter)?, INVOCATION)?)
        } else {
            None
        };
        let deltas = deltas(&file, alpha)?;
        Ok(Self { architecture, deltas, invocation_tokens })
    }

    /// `general.architecture`: the kind of model that it changes.
    #[must_use]
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// One delta for each tensor that is changed: by layer index, then by name; the head last.
    pub fn deltas(&self) -> impl ExactSizeIterator<Item = &LoraDelta> {
        self.deltas.iter()
    }

    /// The same, by value.
    #[must_use]
    pub fn into_deltas(self) -> Vec<LoraDelta> {
        self.deltas
    }

    /// The tokens from which an activated adapter (aLoRA) is active; `None` for an ordinary one.
    #[must_use]
    pub fn invocation_tokens(&self) -> Option<&[u32]> {
        self.invocation_tokens.as_deref()
    }
}

/// What our reader of GGUF says of a file that is an adapter.
fn in_adapter(error: Error) -> Error {
    if error.context().any(|(key, value)| (key, value) == ("key", "split.count")) {
        return invalid("the adapter is one shard of several, which is not supported: merge them into one file")
            .with_context("key", "split.count");
    }
    let told = error.context().fold(invalid(error.message()), |told, (key, value)| told.with_context(key, value));
    told.with_source(error)
}

fn text<'m>(metadata: &'m Metadata, key: &'static str) -> Result<&'m str> {
    metadata
        .get_str(key)
        .map_err(in_adapter)?
        .ok_or_else(|| invalid("the file lacks a key that every GGUF adapter has").with_context("key", key))
}

fn expect(metadata: &Metadata, key: &'static str, wanted: &str) -> Result<()> {
    match text(metadata, key)? {
        found if found == wanted => Ok(()),
        found => {
            Err(invalid(format!("this is {found:?}, and of an adapter {wanted:?} is read")).with_context("key", key))
        }
    }
}

/// The pairs of factors. `alpha`: 0 where the file has none, as llama.cpp has it.
fn deltas(file: &Gguf, alpha: f32) -> Result<Vec<LoraDelta>> {
    let mut pairs: BTreeMap<&str, [Option<&TensorInfo>; 2]> = BTreeMap::new();
    for info in file.tensors() {
        let name = info.name.as_str();
        let (module, factor) = match (name.strip_suffix(".lora_a"), name.strip_suffix(".lora_b")) {
            (Some(module), _) => (module, 0),
            (_, Some(module)) => (module, 1),
            _ => {
                let message = if name.ends_with("_norm.weight") {
                    "the adapter brings a norm's weights, which is not supported"
                } else {
                    "the adapter has a tensor that is neither lora_a nor lora_b of a linear layer"
                };
                return Err(invalid(message).with_context("tensor", name));
            }
        };
        // No name stands twice in a GGUF file, so no factor does.
        pairs.entry(module).or_default()[factor] = Some(info);
    }
    if pairs.is_empty() {
        return Err(invalid("the adapter changes no layer"));
    }
    let mut deltas =
        pairs.into_iter().map(|(module, pair)| delta(file, module, pair, alpha)).collect::<Result<Vec<_>>>()?;
    sort(&mut deltas);
    Ok(deltas)
}

fn delta(file: &Gguf, module: &str, pair: [Option<&TensorInfo>; 2], alpha: f32) -> Result<LoraDelta> {
    let (a, b) = match pair {
        [Some(a), Some(b)] => (a, b),
        [Some(a), None] => return Err(invalid("this lora_a has no lora_b").with_context("tensor", &a.name)),
        [None, Some(b)] => return Err(invalid("this lora_b has no lora_a").with_context("tensor", &b.name)),
        [None, None] => return Err(invalid("a tensor without factors").with_context("tensor", module)),
    };
    let [rank, in_features] = matrix(a)?;
    let [out_features, rank_b] = matrix(b)?;
    if rank != rank_b {
        return Err(invalid(format!("lora_a has rank {rank}, lora_b has {rank_b}")).with_context("tensor", &b.name));
    }
    if rank > MAX_RANK {
        return Err(
            invalid(format!("a rank of {rank} is not between 1 and {MAX_RANK}")).with_context("tensor", &a.name)
        );
    }
    // As llama.cpp: an alpha of zero is none, and without one the factors' product counts as it is.
    let scale = if alpha == 0.0 { 1.0 } else { alpha / rank as f32 };
    Ok(LoraDelta {
        module: module.to_owned(),
        layer: block(module),
        rank,
        in_features,
        out_features,
        a: numbers(file, a)?,
        b: numbers(file, b)?,
        scale,
    })
}

/// The number in `blk.NUMBER.`.
fn block(name: &str) -> Option<usize> {
    let (number, _) = name.strip_prefix("blk.")?.split_once('.')?;
    number.parse::<u32>().ok().filter(|index| index.to_string() == number).map(|index| index as usize)
}

/// The two dimensions of a factor, rows first, within bounds.
fn matrix(info: &TensorInfo) -> Result<[usize; 2]> {
    if info.dims.len() > 2 {
        return Err(invalid(format!("the shape {:?} is not that of a linear layer", info.dims))
            .with_context("tensor", &info.name));
    }
    let bounded = |size: u64| usize::try_from(size).ok().filter(|size| (1..=MAX_FEATURES).contains(size));
    match (bounded(info.rows()), bounded(info.row_len())) {
        (Some(rows), Some(columns)) => Ok([rows, columns]),
        _ => Err(invalid(format!("the shape {:?} is out of bounds", info.dims)).with_context("tensor", &info.name)),
    }
}

/// The numbers in f32: at most four times the bytes that the file has for them.
fn numbers(file: &Gguf, info: &TensorInfo) -> Result<Vec<f32>> {
    if !matches!(info.kind, TensorType::F32 | TensorType::F16 | TensorType::BF16 | TensorType::Q8_0) {
        return Err(invalid(format!("the numbers are of type {}; F32, F16, BF16 and Q8_0 are read", info.kind))
            .with_context("tensor", &info.name));
    }
    let count = usize::try_from(info.elements())
        .map_err(|_| invalid("the tensor is larger than memory").with_context("tensor", &info.name))?;
    let mut numbers = vec![0.0; count];
    dequantize(info.kind, file.tensor_data(info), &mut numbers)
        .map_err(|error| in_adapter(error).with_context("tensor", &info.name))?;
    check_finite(&numbers, &info.name)?;
    Ok(numbers)
}
