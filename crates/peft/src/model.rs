//! An adapter held against a model: for each tensor of the model that it changes, by how much.

use consort_core::{AdapterFiles, AdapterInfo, AdapterKey, Error, Result};

use crate::adapter::{LoraDelta, PeftAdapter};
use crate::bytes::AdapterBytes;
use crate::config::{self, invalid};
use crate::gguf::{self, GgufAdapter};
use crate::linear::{HeadOrder, Linear, Naming, TextDimensions, value_order};

/// The tensor of the head, which has weights of its own or is the embedding table.
const HEAD: &str = "output.weight";

/// Where a change is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A linear layer of a decoder layer.
    Layer {
        /// The decoder layer's index, below the number of [`layers`](TextDimensions::layers).
        index: usize,
        /// Which of its linear layers.
        linear: Linear,
    },
    /// The head (`lm_head`), which makes logits of hidden states.
    Head,
}

/// The change of one tensor: `scale · B A` is added to it. It fits the model, and value heads are dealt out as in GGUF files.
#[derive(Clone, PartialEq)]
pub struct TensorDelta {
    /// The tensor's name in GGUF files: `blk.3.attn_q.weight`, or `output.weight` of the head.
    pub tensor: String,
    /// What the adapter calls it, for messages: `layers.3.self_attn.q_proj` in PEFT's format, else the tensor's name.
    pub origin: String,
    /// Where it is.
    pub place: Place,
    /// r: the number of rows of A and of columns of B, 1 to [`MAX_RANK`](crate::MAX_RANK).
    pub rank: usize,
    /// A, `[rank, inputs]`, row by row.
    pub a: Vec<f32>,
    /// B, `[outputs, rank]`, row by row.
    pub b: Vec<f32>,
    /// The factor on `B A x`.
    pub scale: f32,
}

impl TensorDelta {
    /// The width of the layer's input.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.a.len() / self.rank.max(1)
    }

    /// The width of the layer's output.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.b.len() / self.rank.max(1)
    }
}

impl std::fmt::Debug for TensorDelta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorDelta")
            .field("tensor", &self.tensor)
            .field("rank", &self.rank)
            .field("inputs", &self.inputs())
            .field("outputs", &self.outputs())
            .field("scale", &self.scale)
            .finish_non_exhaustive()
    }
}

/// An adapter as it changes one model: what an engine takes over.
#[derive(Debug, Clone)]
pub struct ModelAdapter {
    deltas: Vec<TensorDelta>,
    invocation_tokens: Option<Vec<u32>>,
}

impl ModelAdapter {
    /// Reads an adapter in any form and holds it against `model`.
    ///
    /// # Errors
    /// [`NotFound`](consort_core::ErrorKind::NotFound) and [`Io`](consort_core::ErrorKind::Io) for files;
    /// [`InvalidAdapter`](consort_core::ErrorKind::InvalidAdapter), naming the key, the layer or the tensor, for an adapter
    /// that is malformed, uses something that is not supported, or was made for another model.
    pub fn load(files: &AdapterFiles, model: &TextDimensions) -> Result<Self> {
        let adapter = match AdapterBytes::read(files)? {
            AdapterBytes::Peft { config, weights } => {
                PeftAdapter::from_parts(&config, &weights).and_then(|adapter| Self::from_peft(adapter, model))
            }
            AdapterBytes::Gguf(bytes) => {
                GgufAdapter::from_bytes(bytes).and_then(|adapter| Self::from_gguf(adapter, model))
            }
        };
        adapter.map_err(|error| match files.path() {
            Some(path) => error.with_context("path", path.display().to_string()),
            None => error,
        })
    }

    /// Holds an adapter in PEFT's format against `model`.
    ///
    /// # Errors
    /// [`InvalidAdapter`](consort_core::ErrorKind::InvalidAdapter), naming the layer, for one that does not fit.
    pub fn from_peft(adapter: PeftAdapter, model: &TextDimensions) -> Result<Self> {
        let tokens = adapter.invocation_tokens().map(<[u32]>::to_vec);
        Self::fit(adapter.into_deltas(), tokens, Naming::Transformers, model)
    }

    /// Holds a GGUF adapter against `model`.
    ///
    /// # Errors
    /// [`InvalidAdapter`](consort_core::ErrorKind::InvalidAdapter), naming the key or the tensor, for one that does not fit.
    pub fn from_gguf(adapter: GgufAdapter, model: &TextDimensions) -> Result<Self> {
        if adapter.architecture() != model.architecture() {
            return Err(invalid(format!(
                "the adapter was made for a model of architecture {:?}, and this one is {:?}",
                adapter.architecture(),
                model.architecture()
            ))
            .with_context("key", "general.architecture"));
        }
        let tokens = adapter.invocation_tokens().map(<[u32]>::to_vec);
        Self::fit(adapter.into_deltas(), tokens, Naming::Gguf, model)
    }

    fn fit(
        deltas: Vec<LoraDelta>,
        invocation_tokens: Option<Vec<u32>>,
        naming: Naming,
        model: &TextDimensions,
    ) -> Result<Self> {
        if let Some(stranger) = invocation_tokens.iter().flatten().find(|&&token| token as usize >= model.vocab) {
            let key = match naming {
                Naming::Transformers => config::INVOCATION,
                Naming::Gguf => gguf::INVOCATION,
            };
            return Err(invalid(format!("an invocation token is beyond the model's vocabulary of {}", model.vocab))
                .with_context("key", key)
                .with_context("token", stranger.to_string()));
        }
        let deltas = deltas.into_iter().map(|delta| fitted(delta, naming, model)).collect::<Result<_>>()?;
        Ok(Self { deltas, invocation_tokens })
    }

    /// One delta for each tensor that is changed: by layer index, then by the adapter's name for it; the head last.
    pub fn deltas(&self) -> impl ExactSizeIterator<Item = &TensorDelta> {
        self.deltas.iter()
    }

    /// The same, by value.
    #[must_use]
    pub fn into_deltas(self) -> Vec<TensorDelta> {
        self.deltas
    }

    /// What an engine says of it that keeps both factors in f32.
    #[must_use]
    pub fn info(&self, key: AdapterKey) -> AdapterInfo {
        AdapterInfo {
            key,
            rank: self.deltas.iter().map(|delta| delta.rank).max().unwrap_or(0),
            layers: self.deltas.len(),
            bytes: self.deltas.iter().map(|delta| 4 * (delta.a.len() + delta.b.len()) as u64).sum(),
            invocation_tokens: self.invocation_tokens.clone(),
        }
    }
}

/// The error of a delta, which names it as its file does.
fn refuse(delta: &LoraDelta, naming: Naming, message: impl Into<String>) -> Error {
    let what = match naming {
        Naming::Transformers => "layer",
        Naming::Gguf => "tensor",
    };
    invalid(message).with_context(what, &*delta.module)
}

/// A delta of a tensor of the model, in the order of the model's file.
fn fitted(delta: LoraDelta, naming: Naming, model: &TextDimensions) -> Result<TensorDelta> {
    let (tensor, place) = place(&delta, naming, model)?;
    let (inputs, outputs) = match place {
        Place::Layer { linear, .. } => linear.features(model),
        Place::Head => (model.hidden, model.vocab),
    };
    if (delta.in_features, delta.out_features) != (inputs, outputs) {
        let message = format!(
            "the adapter's layer has {} inputs and {} outputs, and the model's {inputs} and {outputs}: it was trained for \
             another model",
            delta.in_features, delta.out_features
        );
        return Err(refuse(&delta, naming, message));
    }
    let LoraDelta { module, rank, mut a, mut b, scale, .. } = delta;
    if let (Place::Layer { linear, .. }, Naming::Transformers) = (place, naming) {
        deal_out(&mut a, &mut b, rank, linear.head_order(model), model);
    }
    Ok(TensorDelta { tensor, origin: module, place, rank, a, b, scale })
}

/// Which tensor a delta changes: its name and its place.
fn place(delta: &LoraDelta, naming: Naming, model: &TextDimensions) -> Result<(String, Place)> {
    let wrong = |message: &str| Err(refuse(delta, naming, message));
    let path = delta.path();
    let Some(index) = delta.layer else {
        return match path {
            // What has no layer in PEFT's format is the head.
            _ if naming == Naming::Transformers => Ok((HEAD.to_owned(), Place::Head)),
            HEAD => Ok((HEAD.to_owned(), Place::Head)),
            "token_embd.weight" => wrong("the adapter changes an embedding, which is not supported"),
            _ => wrong("this is no linear layer of the model"),
        };
    };
    let Some(linear) = Linear::parse(path, naming, model.network) else {
        let routed = match naming {
            Naming::Transformers => path.starts_with("mlp.experts") || path == "mlp.gate",
            Naming::Gguf => path.ends_with("_exps.weight") || path == "ffn_gate_inp.weight",
        };
        return wrong(if routed {
            "adapters of routed experts and their router are not supported"
        } else {
            "this is no linear layer of the model"
        });
    };
    let Some(kind) = model.layers.get(index) else {
        return wrong(&format!("the model has {} layers", model.layers.len()));
    };
    if linear.kind().is_some_and(|wanted| wanted != *kind) {
        return wrong("this layer of the model is of the other kind");
    }
    let Some(name) = linear.name(Naming::Gguf, model.network) else {
        return wrong("this is no linear layer of the model");
    };
    Ok((format!("blk.{index}.{name}"), Place::Layer { index, linear }))
}

/// Brings the value heads of a layer's factors from transformers' order into GGUF's.
fn deal_out(a: &mut [f32], b: &mut [f32], rank: usize, order: HeadOrder, model: &TextDimensions) {
    match order {
        HeadOrder::Same => {}
        HeadOrder::Outputs { skip, width } => {
            let grouped = b.to_vec();
            let order = value_order(model.key_heads, model.value_heads, width);
            for (to, from) in b.chunks_exact_mut(rank).skip(skip).zip(order) {
                to.copy_from_slice(&grouped[(skip + from) * rank..][..rank]);
            }
        }
        HeadOrder::Inputs { width } => {
            let order = value_order(model.key_heads, model.value_heads, width);
            for row in a.chunks_exact_mut(order.len()) {
                let grouped = row.to_vec();
                for (to, from) in row.iter_mut().zip(&order) {
                    *to = grouped[*from];
                }
            }
        }
    }
}
