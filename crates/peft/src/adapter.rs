//! The weights: pairs of factors, checked against each other and the config.

use std::collections::BTreeMap;
use std::path::Path;

use consort_core::Result;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::bytes::{digest, read_folder};
use crate::config::{PeftConfig, invalid};
use crate::module::{Factor, parse};

/// The largest rank that is accepted.
pub const MAX_RANK: usize = 512;
/// The widest layer that is accepted.
pub(crate) const MAX_FEATURES: usize = 1 << 24;

/// A LoRA adapter.
#[derive(Debug, Clone)]
pub struct PeftAdapter {
    config: PeftConfig,
    deltas: Vec<LoraDelta>,
    digest: [u8; 32],
}

/// What an adapter adds to one linear layer: `scale · B A`.
#[derive(Clone, PartialEq)]
pub struct LoraDelta {
    /// The layer's name in the Hugging Face text model, such as `layers.3.linear_attn.in_proj_qkv`, or `lm_head`; of a GGUF
    /// adapter that of its tensor, such as `blk.3.attn_qkv.weight`.
    pub module: String,
    /// The index of the decoder layer; `None` for what lies outside, such as `lm_head`.
    pub layer: Option<usize>,
    /// r: the number of rows of A and of columns of B, 1 to [`MAX_RANK`].
    pub rank: usize,
    /// The width of the layer's input.
    pub in_features: usize,
    /// The width of the layer's output.
    pub out_features: usize,
    /// A, `[rank, in_features]`, row by row.
    pub a: Vec<f32>,
    /// B, `[out_features, rank]`, row by row.
    pub b: Vec<f32>,
    /// The factor on `B A x`: `alpha / r`, or `alpha / √r` for rank-stabilised LoRA; 1 where a GGUF adapter has no alpha.
    pub scale: f32,
}

impl LoraDelta {
    /// The name within its decoder layer, such as `linear_attn.in_proj_qkv` or `attn_qkv.weight`; what lies outside as it is.
    #[must_use]
    pub fn path(&self) -> &str {
        match self.layer {
            Some(_) => self.module.splitn(3, '.').nth(2).unwrap_or(&self.module),
            None => &self.module,
        }
    }
}

impl std::fmt::Debug for LoraDelta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoraDelta")
            .field("module", &self.module)
            .field("rank", &self.rank)
            .field("in_features", &self.in_features)
            .field("out_features", &self.out_features)
            .field("scale", &self.scale)
            .finish_non_exhaustive()
    }
}

impl PeftAdapter {
    /// Reads `adapter_config.json` and `adapter_model.safetensors` in `directory`, as PEFT's `save_pretrained` writes them.
    ///
    /// # Errors
    /// [`NotFound`](consort_core::ErrorKind::NotFound) and [`Io`](consort_core::ErrorKind::Io), and what
    /// [`from_parts`](Self::from_parts) gives.
    pub fn open(directory: &Path) -> Result<Self> {
        let [config, weights] = read_folder(directory)?;
        Self::from_parts(&config, &weights).map_err(|error| error.with_context("path", directory.display().to_string()))
    }

    /// Reads an adapter from the contents of its two files.
    ///
    /// # Errors
    /// [`InvalidAdapter`](consort_core::ErrorKind::InvalidAdapter), naming the key or the tensor, for an adapter that is
    /// malformed, out of bounds, or uses something that is not supported.
    pub fn from_parts(config: &[u8], weights: &[u8]) -> Result<Self> {
        let digest = digest(config, weights);
        let config = PeftConfig::parse(config)?;
        let tensors = SafeTensors::deserialize(weights)
            .map_err(|source| invalid(format!("the weights are not safetensors: {source}")).with_source(source))?;
        let mut pairs: BTreeMap<&str, Pair<'_>> = BTreeMap::new();
        let views: Vec<(&str, TensorView<'_>)> = tensors.iter().collect();
        for (name, view) in &views {
            let target = parse(name)?;
            let pair = pairs.entry(target.module).or_insert_with(|| Pair {
                in_model: target.in_model,
                layer: target.layer,
                a: None,
                b: None,
            });
            let slot = match target.factor {
                Factor::A => &mut pair.a,
                Factor::B => &mut pair.b,
            };
            if slot.replace((*name, view)).is_some() {
                return Err(invalid("two tensors are the same factor of the same layer").with_context("tensor", *name));
            }
        }
        if pairs.is_empty() {
            return Err(invalid("the adapter changes no layer"));
        }
        let mut deltas =
            pairs.into_iter().map(|(module, pair)| pair.delta(module, &config)).collect::<Result<Vec<_>>>()?;
        sort(&mut deltas);
        Ok(Self { config, deltas, digest })
    }

    /// The config.
    #[must_use]
    pub fn config(&self) -> &PeftConfig {
        &self.config
    }

    /// One delta for each layer that is changed: by layer index, then by name; `lm_head` last.
    pub fn deltas(&self) -> impl ExactSizeIterator<Item = &LoraDelta> {
        self.deltas.iter()
    }

    /// The same, by value.
    #[must_use]
    pub fn into_deltas(self) -> Vec<LoraDelta> {
        self.deltas
    }

    /// The largest rank among the layers.
    #[must_use]
    pub fn max_rank(&self) -> usize {
        self.deltas.iter().map(|delta| delta.rank).max().unwrap_or(0)
    }

    /// The tokens from which an activated adapter (aLoRA) is active; `None` for an ordinary one.
    #[must_use]
    pub fn invocation_tokens(&self) -> Option<&[u32]> {
        self.config.invocation_tokens()
    }

    /// The BLAKE3 digest of both files' contents.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }
}

/// The order in which the forward pass meets the layers, `lm_head` last; within a layer by name.
pub(crate) fn sort(deltas: &mut [LoraDelta]) {
    deltas.sort_by(|left, right| {
        (left.layer.is_none(), left.layer, &left.module).cmp(&(right.layer.is_none(), right.layer, &right.module))
    });
}

type Named<'a> = (&'a str, &'a TensorView<'a>);

struct Pair<'a> {
    in_model: &'a str,
    layer: Option<usize>,
    a: Option<Named<'a>>,
    b: Option<Named<'a>>,
}

impl Pair<'_> {
    fn delta(self, module: &str, config: &PeftConfig) -> Result<LoraDelta> {
        let ((name_a, a), (name_b, b)) = match (self.a, self.b) {
            (Some(a), Some(b)) => (a, b),
            (Some((name, _)), None) => return Err(invalid("this lora_A has no lora_B").with_context("tensor", name)),
            (None, Some((name, _))) => return Err(invalid("this lora_B has no lora_A").with_context("tensor", name)),
            (None, None) => return Err(invalid("a layer without factors")),
        };
        let [rank, in_features] = matrix(name_a, a)?;
        let [out_features, rank_b] = matrix(name_b, b)?;
        if rank != rank_b {
            return Err(invalid(format!("lora_A has rank {rank}, lora_B has {rank_b}")).with_context("tensor", name_b));
        }
        let configured = config.rank_of(self.in_model);
        if rank != configured {
            return Err(invalid(format!("the tensor's rank is {rank}, but the config says {configured}"))
                .with_context("tensor", name_a));
        }
        let scale = config.scale_of(self.in_model, rank);
        if !scale.is_finite() {
            return Err(invalid("the scale is not finite").with_context("tensor", name_a));
        }
        Ok(LoraDelta {
            module: module.to_owned(),
            layer: self.layer,
            rank,
            in_features,
            out_features,
            a: numbers(name_a, a)?,
            b: numbers(name_b, b)?,
            scale,
        })
    }
}

/// The two dimensions of a factor, within bounds.
fn matrix(name: &str, view: &TensorView<'_>) -> Result<[usize; 2]> {
    let &[rows, columns] = view.shape() else {
        return Err(
            invalid(format!("the shape {:?} is not that of a linear layer", view.shape())).with_context("tensor", name)
        );
    };
    // The rank is the smaller one, and compared with the config afterwards, whose ranks are bounded.
    if rows == 0 || columns == 0 || rows > MAX_FEATURES || columns > MAX_FEATURES {
        return Err(invalid(format!("the shape {:?} is out of bounds", view.shape())).with_context("tensor", name));
    }
    Ok([rows, columns])
}

/// The numbers in f32. The library has checked that the data is as long as shape and type say.
fn numbers(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    let data = view.data();
    let numbers: Vec<f32> = match view.dtype() {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
        Dtype::F16 => data.as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
        Dtype::BF16 => data.as_chunks::<2>().0.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
        other => {
            return Err(invalid(format!("the numbers are of type {other:?}; F32, F16 and BF16 are read"))
                .with_context("tensor", name));
        }
    };
    check_finite(&numbers, name)?;
    Ok(numbers)
}

pub(crate) fn check_finite(numbers: &[f32], tensor: &str) -> Result<()> {
    if numbers.iter().all(|number| number.is_finite()) {
        return Ok(());
    }
    Err(invalid("the tensor holds a number that is not finite").with_context("tensor", tensor))
}
