//! Low-rank adapters, applied per sequence and from a token on: `y += scale · B (A x)`.

use std::sync::Arc;

use consort_core::{AdapterFiles, AdapterInfo, AdapterSource, Error, ErrorKind, Result};
use consort_peft::{LoraDelta, PeftAdapter};

use crate::kernels::{Format, KernelSet, Matmul};
use crate::memory::{Counted, Kind, Ledger};
use crate::model::batch::each_row;
use crate::model::shape::{DeltaShape, LayerKind, TextShape};
use crate::weights::Compute;

/// A linear layer of the text model that an adapter can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    DeltaQkv,
    DeltaGate,
    DeltaAlpha,
    DeltaBeta,
    DeltaOutput,
    Query,
    Key,
    Value,
    Output,
    /// Of a layer's network, or in a mixture of experts of the shared one.
    MlpGate,
    MlpUp,
    MlpDown,
    /// What weighs the shared expert.
    SharedGate,
}

/// How many targets a layer can have.
const TARGETS: usize = 13;

/// The change of one linear layer.
#[derive(Debug)]
pub(crate) struct LowRank {
    /// `[rank, in]`.
    a: Vec<f32>,
    /// The transpose of B: `[rank, out]`.
    b: Vec<f32>,
    rank: usize,
    /// The adapter's own scale.
    scale: f32,
}

impl LowRank {
    /// Adds the change for rows `x` of `[rows, in]` to `out`, `[rows, out]`.
    pub(crate) fn add_rows(&self, compute: Compute, scale: f32, x: &[f32], out: &mut [f32]) {
        let (inputs, outputs) = (self.a.len() / self.rank, self.b.len() / self.rank);
        let work = x.len() / inputs * (self.a.len() + self.b.len());
        each_row(compute, work, out, outputs, |row, out| {
            self.add(compute.kernels, scale, &x[row * inputs..][..inputs], out);
        });
    }

    fn add(&self, kernels: KernelSet, scale: f32, x: &[f32], out: &mut [f32]) {
        let mut low = vec![0.0; self.rank];
        let (weights, cols) = (bytemuck::cast_slice(&self.a), x.len());
        kernels.matmul(
            Format::F32,
            Matmul { weights, row_bytes: 4 * cols, x, cols, out: &mut low, stride: self.rank, offset: 0 },
        );
        for (low, b) in low.iter().zip(self.b.chunks_exact(out.len())) {
            kernels.add_scaled(out, scale * self.scale * low, b);
        }
    }
}

/// One generation of an adapter's weights. Sequences that opened with it keep it.
#[derive(Debug)]
pub(crate) struct Adapter {
    layers: Vec<[Option<LowRank>; TARGETS]>,
    /// The change of the head.
    pub(crate) head: Option<LowRank>,
    pub(crate) info: AdapterInfo,
    _counted: Counted,
}

impl Adapter {
    /// The change of one linear layer, if the adapter has one.
    pub(crate) fn get(&self, layer: usize, target: Target) -> Option<&LowRank> {
        self.layers.get(layer)?[target as usize].as_ref()
    }
}

impl Target {
    /// The linear layer of this name within a decoder layer, as transformers spells it.
    fn parse(path: &str, shape: &TextShape) -> Option<Self> {
        let experts = shape.experts.is_some();
        Some(match path {
            "linear_attn.in_proj_qkv" => Self::DeltaQkv,
            "linear_attn.in_proj_z" => Self::DeltaGate,
            "linear_attn.in_proj_a" => Self::DeltaAlpha,
            "linear_attn.in_proj_b" => Self::DeltaBeta,
            "linear_attn.out_proj" => Self::DeltaOutput,
            "self_attn.q_proj" => Self::Query,
            "self_attn.k_proj" => Self::Key,
            "self_attn.v_proj" => Self::Value,
            "self_attn.o_proj" => Self::Output,
            "mlp.gate_proj" if !experts => Self::MlpGate,
            "mlp.up_proj" if !experts => Self::MlpUp,
            "mlp.down_proj" if !experts => Self::MlpDown,
            "mlp.shared_expert.gate_proj" if experts => Self::MlpGate,
            "mlp.shared_expert.up_proj" if experts => Self::MlpUp,
            "mlp.shared_expert.down_proj" if experts => Self::MlpDown,
            "mlp.shared_expert_gate" if experts => Self::SharedGate,
            _ => return None,
        })
    }

    /// The kind of layer that has it; `None`: every layer.
    fn kind(self) -> Option<LayerKind> {
        match self {
            Self::DeltaQkv | Self::DeltaGate | Self::DeltaAlpha | Self::DeltaBeta | Self::DeltaOutput => {
                Some(LayerKind::Delta)
            }
            Self::Query | Self::Key | Self::Value | Self::Output => Some(LayerKind::Attention),
            Self::MlpGate | Self::MlpUp | Self::MlpDown | Self::SharedGate => None,
        }
    }

    /// Inputs and outputs.
    fn features(self, shape: &TextShape) -> (usize, usize) {
        let (attention, delta) = (&shape.attention, &shape.delta);
        let queries = attention.heads * attention.head_dim;
        let keys = attention.kv_heads * attention.head_dim;
        match self {
            Self::DeltaQkv => (shape.hidden, delta.channels()),
            Self::DeltaGate => (shape.hidden, delta.values()),
            Self::DeltaAlpha | Self::DeltaBeta => (shape.hidden, delta.value_heads),
            Self::DeltaOutput => (delta.values(), shape.hidden),
            Self::Query => (shape.hidden, 2 * queries),
            Self::Key | Self::Value => (shape.hidden, keys),
            Self::Output => (queries, shape.hidden),
            Self::MlpGate | Self::MlpUp => (shape.hidden, shape.mlp),
            Self::MlpDown => (shape.mlp, shape.hidden),
            Self::SharedGate => (shape.hidden, 1),
        }
    }

    /// In GGUF's order of value heads: for each output (and, of the output layer, each input) where it is in the
    /// safetensors' order. `None` where the orders are the same.
    fn reordered(self, delta: &DeltaShape) -> Option<Vec<usize>> {
        let values = |width: usize, offset: usize| value_order(delta, width).map(move |index| offset + index);
        Some(match self {
            _ if delta.key_heads == delta.value_heads => return None,
            Self::DeltaQkv => {
                let keys = 2 * delta.keys();
                (0..keys).chain(values(delta.value_dim, keys)).collect()
            }
            Self::DeltaGate | Self::DeltaOutput => values(delta.value_dim, 0).collect(),
            Self::DeltaAlpha | Self::DeltaBeta => values(1, 0).collect(),
            _ => return None,
        })
    }
}

/// Safetensors group the value heads of a key head together, and GGUF files deal them out: there, value head `h` reads key
/// head `h mod key_heads`. For each number of GGUF's order, where it is in the safetensors'; a head has `width` of them.
fn value_order(delta: &DeltaShape, width: usize) -> impl Iterator<Item = usize> {
    let (keys, group) = (delta.key_heads, delta.value_heads / delta.key_heads);
    (0..delta.value_heads).flat_map(move |head| {
        let grouped = head % keys * group + head / keys;
        grouped * width..(grouped + 1) * width
    })
}

impl LowRank {
    /// Takes over a delta whose shape fits `(inputs, outputs)`.
    fn new(
        delta: LoraDelta,
        (inputs, outputs): (usize, usize),
        target: Option<Target>,
        shape: &DeltaShape,
    ) -> Result<Self> {
        if (delta.in_features, delta.out_features) != (inputs, outputs) {
            return Err(Error::new(
                ErrorKind::InvalidAdapter,
                format!(
                    "the adapter's layer has {} inputs and {} outputs, and the model's {inputs} and {outputs}: it was \
                     trained for another model",
                    delta.in_features, delta.out_features
                ),
            )
            .with_context("layer", delta.module));
        }
        let (rank, mut a) = (delta.rank, delta.a);
        let order = target.and_then(|target| target.reordered(shape));
        let output_layer = target == Some(Target::DeltaOutput);
        let mut b = vec![0.0; rank * outputs];
        for output in 0..outputs {
            let from = match &order {
                Some(order) if !output_layer => order[output],
                _ => output,
            };
            for (rank, value) in delta.b[from * rank..][..rank].iter().enumerate() {
                b[rank * outputs + output] = *value;
            }
        }
        if let (Some(order), true) = (order, output_layer) {
            for row in a.chunks_exact_mut(inputs) {
                let grouped = row.to_vec();
                for (to, from) in row.iter_mut().zip(&order) {
                    *to = grouped[*from];
                }
            }
        }
        Ok(Self { a, b, rank, scale: delta.scale })
    }
}

impl Adapter {
    /// Reads an adapter in PEFT's format and holds it against the model.
    pub(crate) fn load(source: &AdapterSource, shape: &TextShape, ledger: &Arc<Ledger>) -> Result<Self> {
        let adapter = match &source.files {
            AdapterFiles::Directory(path) => PeftAdapter::open(path)?,
            AdapterFiles::Bytes { config, weights } => PeftAdapter::from_parts(config, weights)?,
            _ => return Err(Error::unsupported("native", "adapters in this form")),
        };
        let invocation_tokens = adapter.invocation_tokens().map(<[u32]>::to_vec);
        if let Some(stranger) = invocation_tokens.iter().flatten().find(|&&token| token as usize >= shape.vocab) {
            return Err(Error::new(
                ErrorKind::InvalidAdapter,
                format!("an invocation token is beyond the model's vocabulary of {}", shape.vocab),
            )
            .with_context("key", "alora_invocation_tokens")
            .with_context("token", stranger.to_string()));
        }
        let mut layers: Vec<[Option<LowRank>; TARGETS]> = Vec::new();
        layers.resize_with(shape.layers.len(), Default::default);
        let mut head = None;
        let (mut rank, mut count, mut bytes) = (0, 0, 0);
        for delta in adapter.into_deltas() {
            let (slot, features, target) = match delta.layer {
                None => (&mut head, (shape.hidden, shape.vocab), None),
                Some(layer) => {
                    let unknown = |message: String| {
                        Error::new(ErrorKind::InvalidAdapter, message).with_context("layer", &delta.module)
                    };
                    let target = Target::parse(delta.path(), shape).ok_or_else(|| {
                        unknown(match delta.path() {
                            path if path.starts_with("mlp.experts") || path == "mlp.gate" => {
                                "adapters of routed experts and their router are not supported".into()
                            }
                            _ => "this is no linear layer of the model".into(),
                        })
                    })?;
                    let kind = shape
                        .layers
                        .get(layer)
                        .ok_or_else(|| unknown(format!("the model has {} layers", shape.layers.len())))?;
                    if target.kind().is_some_and(|wanted| wanted != *kind) {
                        return Err(unknown("this layer of the model is of the other kind".into()));
                    }
                    (&mut layers[layer][target as usize], target.features(shape), Some(target))
                }
            };
            let change = LowRank::new(delta, features, target, &shape.delta)?;
            rank = rank.max(change.rank);
            count += 1;
            bytes += 4 * (change.a.len() + change.b.len()) as u64;
            *slot = Some(change);
        }
        let info = AdapterInfo { key: source.key.clone(), rank, layers: count, bytes, invocation_tokens };
        Ok(Self { layers, head, info, _counted: Counted::new(ledger, Kind::Adapter, bytes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_heads_are_dealt_out() {
        let delta = DeltaShape { key_heads: 2, value_heads: 6, key_dim: 4, value_dim: 1, conv: 4 };
        // Grouped, heads 0, 1, 2 read key head 0 and 3, 4, 5 read key head 1; dealt out they alternate.
        assert_eq!(value_order(&delta, 1).collect::<Vec<_>>(), [0, 3, 1, 4, 2, 5]);
        assert_eq!(value_order(&delta, 2).take(4).collect::<Vec<_>>(), [0, 1, 6, 7]);
    }
}
