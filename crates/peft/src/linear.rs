//! The text model whose linear layers adapters change: its dimensions, and what its layers are called.

/// What mixes a layer's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// Gated attention over all earlier tokens.
    Attention,
    /// The gated delta net with its recurrent state.
    Delta,
}

/// What a layer does after its tokens are mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// One network for all tokens.
    Dense,
    /// A mixture of experts, with a shared one beside them. Adapters change the shared one.
    Experts,
}

/// The dimensions of a Qwen3.5 text model, as far as adapters depend on them. The model's engine has checked them: none is
/// zero, and value heads are a multiple of key heads.
#[derive(Debug, Clone)]
pub struct TextDimensions {
    /// The width of the hidden state.
    pub hidden: usize,
    /// The width of each layer's network; in a mixture of experts, of the shared one.
    pub mlp: usize,
    /// The rows of the embedding table.
    pub vocab: usize,
    /// Query heads of attention.
    pub heads: usize,
    /// Key and value heads of attention.
    pub kv_heads: usize,
    /// Numbers of each of these heads.
    pub head_dim: usize,
    /// Query and key heads of the delta net.
    pub key_heads: usize,
    /// Value heads of the delta net.
    pub value_heads: usize,
    /// Numbers of each of its query and key heads.
    pub key_dim: usize,
    /// Numbers of each of its value heads.
    pub value_dim: usize,
    /// One for each decoder layer.
    pub layers: Vec<LayerKind>,
    /// What each of them does after its tokens are mixed.
    pub network: Network,
}

impl TextDimensions {
    /// The architecture's name in GGUF files.
    #[must_use]
    pub fn architecture(&self) -> &'static str {
        match self.network {
            Network::Dense => "qwen35",
            Network::Experts => "qwen35moe",
        }
    }

    /// Numbers of all query heads, or of all key heads, of the delta net.
    fn keys(&self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Numbers of all its value heads.
    fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }
}

/// A linear layer of a decoder layer that an adapter can change. The numbers from 0 to [`COUNT`](Self::COUNT) − 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linear {
    /// The delta net's queries, keys and values.
    DeltaQkv,
    /// The delta net's output gate, `z`.
    DeltaGate,
    /// The delta net's decay, one number for each value head.
    DeltaAlpha,
    /// The delta net's write strength, one number for each value head.
    DeltaBeta,
    /// What leads out of the delta net.
    DeltaOutput,
    /// Attention's queries, each head's with its output gate behind it.
    Query,
    /// Attention's keys.
    Key,
    /// Attention's values.
    Value,
    /// What leads out of attention.
    Output,
    /// Of a layer's network, or in a mixture of experts of the shared one.
    MlpGate,
    /// As [`MlpGate`](Self::MlpGate).
    MlpUp,
    /// As [`MlpGate`](Self::MlpGate).
    MlpDown,
    /// What weighs the shared expert.
    SharedGate,
}

/// Who names a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// Hugging Face transformers' model, and PEFT with it: `self_attn.q_proj`.
    Transformers,
    /// GGUF files, which name the tensor: `attn_q.weight`.
    Gguf,
}

/// Each linear layer, the network that has it (`None`: both), and its names within a decoder layer: transformers' and GGUF's.
static NAMES: [(Linear, Option<Network>, &str, &str); 16] = [
    (Linear::DeltaQkv, None, "linear_attn.in_proj_qkv", "attn_qkv.weight"),
    (Linear::DeltaGate, None, "linear_attn.in_proj_z", "attn_gate.weight"),
    (Linear::DeltaAlpha, None, "linear_attn.in_proj_a", "ssm_alpha.weight"),
    (Linear::DeltaBeta, None, "linear_attn.in_proj_b", "ssm_beta.weight"),
    (Linear::DeltaOutput, None, "linear_attn.out_proj", "ssm_out.weight"),
    (Linear::Query, None, "self_attn.q_proj", "attn_q.weight"),
    (Linear::Key, None, "self_attn.k_proj", "attn_k.weight"),
    (Linear::Value, None, "self_attn.v_proj", "attn_v.weight"),
    (Linear::Output, None, "self_attn.o_proj", "attn_output.weight"),
    (Linear::MlpGate, Some(Network::Dense), "mlp.gate_proj", "ffn_gate.weight"),
    (Linear::MlpUp, Some(Network::Dense), "mlp.up_proj", "ffn_up.weight"),
    (Linear::MlpDown, Some(Network::Dense), "mlp.down_proj", "ffn_down.weight"),
    (Linear::MlpGate, Some(Network::Experts), "mlp.shared_expert.gate_proj", "ffn_gate_shexp.weight"),
    (Linear::MlpUp, Some(Network::Experts), "mlp.shared_expert.up_proj", "ffn_up_shexp.weight"),
    (Linear::MlpDown, Some(Network::Experts), "mlp.shared_expert.down_proj", "ffn_down_shexp.weight"),
    (Linear::SharedGate, Some(Network::Experts), "mlp.shared_expert_gate", "ffn_gate_inp_shexp.weight"),
];

/// What of a layer GGUF files have in another order of value heads than transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadOrder {
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

impl Linear {
    /// How many there are.
    pub const COUNT: usize = Self::SharedGate as usize + 1;

    /// The layer of this name within a decoder layer whose network is of this kind.
    ///
    /// ```
    /// use consort_peft::{Linear, Naming, Network};
    ///
    /// let query = Linear::parse("self_attn.q_proj", Naming::Transformers, Network::Dense);
    /// assert_eq!(query, Some(Linear::Query));
    /// assert_eq!(Linear::Query.name(Naming::Gguf, Network::Dense), Some("attn_q.weight"));
    /// assert_eq!(Linear::parse("mlp.up_proj", Naming::Transformers, Network::Experts), None);
    /// ```
    #[must_use]
    pub fn parse(path: &str, naming: Naming, network: Network) -> Option<Self> {
        names(network).find(|row| naming.of(row.2, row.3) == path).map(|row| row.0)
    }

    /// Its name within a decoder layer whose network is of this kind; `None` where such a layer has none.
    #[must_use]
    pub fn name(self, naming: Naming, network: Network) -> Option<&'static str> {
        names(network).find(|row| row.0 == self).map(|row| naming.of(row.2, row.3))
    }

    /// The kind of layer that has it; `None`: every layer.
    #[must_use]
    pub fn kind(self) -> Option<LayerKind> {
        match self {
            Self::DeltaQkv | Self::DeltaGate | Self::DeltaAlpha | Self::DeltaBeta | Self::DeltaOutput => {
                Some(LayerKind::Delta)
            }
            Self::Query | Self::Key | Self::Value | Self::Output => Some(LayerKind::Attention),
            Self::MlpGate | Self::MlpUp | Self::MlpDown | Self::SharedGate => None,
        }
    }

    /// How many inputs and outputs it has.
    #[must_use]
    pub fn features(self, model: &TextDimensions) -> (usize, usize) {
        let (queries, keys) = (model.heads * model.head_dim, model.kv_heads * model.head_dim);
        match self {
            Self::DeltaQkv => (model.hidden, 2 * model.keys() + model.values()),
            Self::DeltaGate => (model.hidden, model.values()),
            Self::DeltaAlpha | Self::DeltaBeta => (model.hidden, model.value_heads),
            Self::DeltaOutput => (model.values(), model.hidden),
            Self::Query => (model.hidden, 2 * queries),
            Self::Key | Self::Value => (model.hidden, keys),
            Self::Output => (queries, model.hidden),
            Self::MlpGate | Self::MlpUp => (model.hidden, model.mlp),
            Self::MlpDown => (model.mlp, model.hidden),
            Self::SharedGate => (model.hidden, 1),
        }
    }

    pub(crate) fn head_order(self, model: &TextDimensions) -> HeadOrder {
        match self {
            _ if model.key_heads == model.value_heads => HeadOrder::Same,
            Self::DeltaQkv => HeadOrder::Outputs { skip: 2 * model.keys(), width: model.value_dim },
            Self::DeltaGate => HeadOrder::Outputs { skip: 0, width: model.value_dim },
            Self::DeltaAlpha | Self::DeltaBeta => HeadOrder::Outputs { skip: 0, width: 1 },
            Self::DeltaOutput => HeadOrder::Inputs { width: model.value_dim },
            _ => HeadOrder::Same,
        }
    }
}

impl Naming {
    fn of<'n>(self, transformers: &'n str, gguf: &'n str) -> &'n str {
        match self {
            Self::Transformers => transformers,
            Self::Gguf => gguf,
        }
    }
}

fn names(network: Network) -> impl Iterator<Item = &'static (Linear, Option<Network>, &'static str, &'static str)> {
    NAMES.iter().filter(move |row| row.1.is_none_or(|only| only == network))
}

/// Transformers groups the value heads of a key head together, and GGUF files deal them out: there, value head `h` reads key
/// head `h mod key_heads` (llama.cpp's converter reorders them so). For each number of GGUF's order, where it is in
/// transformers'; a head has `width` of them.
pub(crate) fn value_order(key_heads: usize, value_heads: usize, width: usize) -> Vec<usize> {
    let key_heads = key_heads.max(1);
    let group = value_heads / key_heads;
    let head = |head: usize| head % key_heads * group + head / key_heads;
    (0..value_heads).flat_map(|to| (0..width).map(move |at| head(to) * width + at)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn value_heads_are_dealt_out() {
        // Grouped, heads 0, 1, 2 read key head 0 and 3, 4, 5 read key head 1; dealt out they alternate.
        assert_eq!(value_order(2, 6, 1), [0, 3, 1, 4, 2, 5]);
        assert_eq!(value_order(2, 6, 2)[..4], [0, 1, 6, 7]);
    }

    #[test]
    fn each_layer_has_one_name_in_each_network() {
        let mut seen = 0;
        for network in [Network::Dense, Network::Experts] {
            for (linear, ..) in names(network) {
                for naming in [Naming::Transformers, Naming::Gguf] {
                    let name = linear.name(naming, network).unwrap();
                    assert_eq!(Linear::parse(name, naming, network), Some(*linear), "{name}");
                }
                assert!((*linear as usize) < Linear::COUNT);
                seen += 1;
            }
        }
        // All thirteen in a mixture of experts, twelve elsewhere.
        assert_eq!(seen, 2 * Linear::COUNT - 1);
        assert_eq!(Linear::SharedGate.name(Naming::Gguf, Network::Dense), None);
    }
}
