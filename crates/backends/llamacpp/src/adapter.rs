//! Adapters: PEFT's two files, turned into what llama.cpp loads.
//!
//! The library reads adapters as GGUF, names layers as models do, and passes over nothing that we hand it; so every layer of
//! the adapter is named here, or refused.

use std::rc::Rc;

use consort_core::{AdapterFiles, AdapterInfo, AdapterSource, Error, ErrorKind, Result};
use consort_gguf::{GgufWriter, TensorType};
use consort_peft::{LoraDelta, PeftAdapter};

use crate::check::{LayerKind, TextShape};
use crate::engine::NAME;
use crate::ffi::{Lora, Model};
use crate::memory::{Counted, Kind, Ledger};

/// One generation of an adapter's weights, in the library. Sequences that opened with it keep it.
#[derive(Debug)]
pub(crate) struct Adapter {
    pub(crate) info: AdapterInfo,
    pub(crate) lora: Rc<Lora>,
    _counted: Counted,
}

/// A linear layer as the library calls it.
struct Target {
    /// The weight's name within its block.
    tensor: &'static str,
    /// The kind of layer that has it; `None`: every layer.
    kind: Option<LayerKind>,
    inputs: usize,
    outputs: usize,
    /// Which side of it follows the order of value heads.
    order: Order,
}

/// What of a layer GGUF files have in another order of value heads than safetensors.
#[derive(Clone, Copy)]
enum Order {
    Same,
    /// The outputs from `skip` on, `width` for each head.
    Outputs {
        skip: usize,
        width: usize,
    },
    /// The inputs, `width` for each head.
    Inputs {
        width: usize,
    },
}

impl Target {
    /// The layer of this name within a decoder layer, as transformers spells it.
    fn parse(path: &str, shape: &TextShape) -> Option<Self> {
        let (hidden, mlp, dim) = (shape.hidden, shape.mlp, shape.delta_dim);
        let (queries, keys) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let (delta_keys, values) = (2 * shape.key_heads * dim, shape.value_heads * dim);
        let experts = shape.experts.is_some();
        let target = |tensor, kind, inputs, outputs, order| Some(Self { tensor, kind, inputs, outputs, order });
        let delta = |tensor, inputs, outputs, order| target(tensor, Some(LayerKind::Delta), inputs, outputs, order);
        let attention =
            |tensor, inputs, outputs| target(tensor, Some(LayerKind::Attention), inputs, outputs, Order::Same);
        let network = |tensor, inputs, outputs| target(tensor, None, inputs, outputs, Order::Same);
        let heads = |skip, width| Order::Outputs { skip, width };
        match path {
            "linear_attn.in_proj_qkv" => delta("attn_qkv.weight", hidden, delta_keys + values, heads(delta_keys, dim)),
            "linear_attn.in_proj_z" => delta("attn_gate.weight", hidden, values, heads(0, dim)),
            "linear_attn.in_proj_a" => delta("ssm_alpha.weight", hidden, shape.value_heads, heads(0, 1)),
            "linear_attn.in_proj_b" => delta("ssm_beta.weight", hidden, shape.value_heads, heads(0, 1)),
            "linear_attn.out_proj" => delta("ssm_out.weight", values, hidden, Order::Inputs { width: dim }),
            "self_attn.q_proj" => attention("attn_q.weight", hidden, 2 * queries),
            "self_attn.k_proj" => attention("attn_k.weight", hidden, keys),
            "self_attn.v_proj" => attention("attn_v.weight", hidden, keys),
            "self_attn.o_proj" => attention("attn_output.weight", queries, hidden),
            "mlp.gate_proj" if !experts => network("ffn_gate.weight", hidden, mlp),
            "mlp.up_proj" if !experts => network("ffn_up.weight", hidden, mlp),
            "mlp.down_proj" if !experts => network("ffn_down.weight", mlp, hidden),
            "mlp.shared_expert.gate_proj" if experts => network("ffn_gate_shexp.weight", hidden, mlp),
            "mlp.shared_expert.up_proj" if experts => network("ffn_up_shexp.weight", hidden, mlp),
            "mlp.shared_expert.down_proj" if experts => network("ffn_down_shexp.weight", mlp, hidden),
            "mlp.shared_expert_gate" if experts => network("ffn_gate_inp_shexp.weight", hidden, 1),
            _ => None,
        }
    }
}

/// Safetensors group the value heads of a key head together, and GGUF files deal them out: there, value head `h` reads key
/// head `h mod key_heads`. For each number of GGUF's order, where it is in the safetensors'; a head has `width` of them.
fn value_order(key_heads: usize, value_heads: usize, width: usize) -> Vec<usize> {
    let group = value_heads / key_heads;
    let head = |head: usize| head % key_heads * group + head / key_heads;
    (0..value_heads).flat_map(|to| (0..width).map(move |at| head(to) * width + at)).collect()
}

/// A layer's change under the library's name of its weight.
struct Change {
    name: String,
    rank: usize,
    /// `[rank, inputs]`.
    a: Vec<f32>,
    /// `[outputs, rank]`, with the adapter's own scale in it.
    b: Vec<f32>,
}

impl Change {
    fn new(delta: LoraDelta, shape: &TextShape) -> Result<Self> {
        let refuse =
            |message: String| Error::new(ErrorKind::InvalidAdapter, message).with_context("layer", &delta.module);
        let (name, target) = match delta.layer {
            None if shape.untied => {
                let (tensor, inputs, outputs) = ("output.weight", shape.hidden, shape.vocab);
                (tensor.to_owned(), Target { tensor, kind: None, inputs, outputs, order: Order::Same })
            }
            None => {
                return Err(refuse(
                    "this model's head is its embedding table, and llama.cpp would adapt both: leave lm_head out of the \
                     adapter"
                        .into(),
                ));
            }
            Some(layer) => {
                let target = Target::parse(delta.path(), shape).ok_or_else(|| {
                    refuse(match delta.path() {
                        path if path.starts_with("mlp.experts") || path == "mlp.gate" => {
                            "adapters of routed experts and their router are not supported".into()
                        }
                        _ => "this is no linear layer of the model".into(),
                    })
                })?;
                let kind = shape.layers.get(layer);
                let kind = kind.ok_or_else(|| refuse(format!("the model has {} layers", shape.layers.len())))?;
                if target.kind.is_some_and(|wanted| wanted != *kind) {
                    return Err(refuse("this layer of the model is of the other kind".into()));
                }
                (format!("blk.{layer}.{}", target.tensor), target)
            }
        };
        if (delta.in_features, delta.out_features) != (target.inputs, target.outputs) {
            return Err(refuse(format!(
                "the adapter's layer has {} inputs and {} outputs, and the model's {} and {}: it was trained for another \
                 model",
                delta.in_features, delta.out_features, target.inputs, target.outputs
            )));
        }
        let (rank, scale) = (delta.rank, delta.scale);
        let (mut a, mut b) = (delta.a, delta.b);
        b.iter_mut().for_each(|value| *value *= scale);
        if shape.key_heads != shape.value_heads {
            match target.order {
                Order::Same => {}
                Order::Outputs { skip, width } => {
                    let grouped = b.clone();
                    let order = value_order(shape.key_heads, shape.value_heads, width);
                    for (to, from) in b.chunks_exact_mut(rank).skip(skip).zip(order) {
                        to.copy_from_slice(&grouped[(skip + from) * rank..][..rank]);
                    }
                }
                Order::Inputs { width } => {
                    let order = value_order(shape.key_heads, shape.value_heads, width);
                    for row in a.chunks_exact_mut(target.inputs) {
                        let grouped = row.to_vec();
                        for (to, from) in row.iter_mut().zip(&order) {
                            *to = grouped[*from];
                        }
                    }
                }
            }
        }
        Ok(Self { name, rank, a, b })
    }
}

impl Adapter {
    /// Reads an adapter in PEFT's format, holds it against the model, and hands it to the library.
    pub(crate) fn load(
        source: &AdapterSource,
        model: &Rc<Model>,
        shape: &TextShape,
        ledger: &Rc<Ledger>,
    ) -> Result<Self> {
        let adapter = match &source.files {
            AdapterFiles::Directory(path) => PeftAdapter::open(path)?,
            AdapterFiles::Bytes { config, weights } => PeftAdapter::from_parts(config, weights)?,
            _ => return Err(Error::unsupported(NAME, "adapters in this form")),
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
        let deltas = adapter.into_deltas().into_iter();
        let changes = deltas.map(|delta| Change::new(delta, shape)).collect::<Result<Vec<_>>>()?;
        let (rank, layers) = (changes.iter().map(|change| change.rank).max().unwrap_or(0), changes.len());
        let bytes = changes.iter().map(|change| 4 * (change.a.len() + change.b.len()) as u64).sum();
        // The library reads adapters from files only. The numbers are in its memory when the file goes.
        let file = write(changes, shape)?;
        let lora = Rc::new(Lora::load(model, file.path())?);
        let info = AdapterInfo { key: source.key.clone(), rank, layers, bytes, invocation_tokens };
        Ok(Self { info, lora, _counted: Counted::new(ledger, Kind::Adapter, bytes) })
    }
}

/// The adapter as the library's format has it. The scale is in the numbers: without `adapter.lora.alpha` the library
/// multiplies by a binding's scale alone.
fn write(changes: Vec<Change>, shape: &TextShape) -> Result<tempfile::NamedTempFile> {
    let mut writer = GgufWriter::new(shape.architecture);
    writer.set("general.type", "adapter");
    writer.set("adapter.type", "lora");
    for Change { name, rank, a, b } in changes {
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let (rank, inputs, outputs) = (rank as u64, (a.len() / rank) as u64, (b.len() / rank) as u64);
        writer.add_tensor_bytes(format!("{name}.lora_a"), &[inputs, rank], TensorType::F32, bytes(&a))?;
        writer.add_tensor_bytes(format!("{name}.lora_b"), &[rank, outputs], TensorType::F32, bytes(&b))?;
    }
    crate::load::temporary(|file| writer.write(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_heads_are_dealt_out() {
        // Grouped, heads 0, 1, 2 read key head 0 and 3, 4, 5 read key head 1; dealt out they alternate.
        assert_eq!(value_order(2, 6, 1), [0, 3, 1, 4, 2, 5]);
        assert_eq!(value_order(2, 6, 2)[..4], [0, 1, 6, 7]);
    }
}
