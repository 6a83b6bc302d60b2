//! The text model: which tensors it has, what becomes of each, and its metadata.

use consort_gguf::{Array, Value};

use crate::config::OutputType;
use crate::hf::{Head, Network, TextConfig};
use crate::plan::{Expected, HeadOrder, NumberMap, Output, Precision, Rows};

/// Collects the expected tensors of the text model.
struct Table<'a> {
    config: &'a TextConfig,
    is_there: &'a dyn Fn(&str) -> bool,
    all: Vec<Expected>,
}

/// Every tensor of the text model. `mtp` tells whether the multi-token prediction layer is there, `is_there` whether the
/// checkpoint has a tensor: experts are stored in two ways.
pub(crate) fn tensors(config: &TextConfig, mtp: bool, is_there: &dyn Fn(&str) -> bool) -> Vec<Expected> {
    let mut table = Table { config, is_there, all: Vec::new() };
    let hidden = config.hidden;
    table.same("embed_tokens.weight", "token_embd.weight", &[config.vocabulary, hidden]);
    table.norm("norm.weight", "output_norm.weight", hidden);
    if config.head != Head::Tied {
        table.same("lm_head.weight", "output.weight", &[config.vocabulary, hidden]);
    }
    for index in 0..config.layers {
        let (from, to) = (format!("layers.{index}"), format!("blk.{index}"));
        if config.is_linear(index) {
            table.linear_attention(&from, &to);
        } else {
            table.full_attention(&from, &to);
        }
        table.around(&from, &to);
    }
    if mtp {
        let to = format!("blk.{}", config.layers);
        table.same("mtp.fc.weight", &format!("{to}.nextn.eh_proj.weight"), &[hidden, 2 * hidden]);
        table.norm("mtp.pre_fc_norm_embedding.weight", &format!("{to}.nextn.enorm.weight"), hidden);
        table.norm("mtp.pre_fc_norm_hidden.weight", &format!("{to}.nextn.hnorm.weight"), hidden);
        table.norm("mtp.norm.weight", &format!("{to}.nextn.shared_head_norm.weight"), hidden);
        table.full_attention("mtp.layers.0", &to);
        table.around("mtp.layers.0", &to);
    }
    table.all
}

impl Table<'_> {
    fn add(&mut self, source: &str, shape: &[u64], output: Output) {
        self.all.push(Expected { source: source.to_owned(), shape: shape.to_vec(), outputs: vec![output] });
    }

    fn same(&mut self, source: &str, name: &str, shape: &[u64]) {
        self.add(source, shape, Output::same(name, shape));
    }

    /// A norm that is stored as w and applied as 1 + w.
    fn norm(&mut self, source: &str, name: &str, width: u64) {
        self.add(source, &[width], Output { map: NumberMap::PlusOne, ..Output::same(name, &[width]) });
    }

    /// What linear and full attention layers share: the norms around, and the network.
    fn around(&mut self, from: &str, to: &str) {
        let hidden = self.config.hidden;
        self.norm(&format!("{from}.input_layernorm.weight"), &format!("{to}.attn_norm.weight"), hidden);
        self.norm(
            &format!("{from}.post_attention_layernorm.weight"),
            &format!("{to}.post_attention_norm.weight"),
            hidden,
        );
        match self.config.network {
            Network::Dense { width } => self.network(&format!("{from}.mlp"), to, "", width),
            Network::Experts { count, width, shared, .. } => {
                self.network(&format!("{from}.mlp.shared_expert"), to, "_shexp", shared);
                self.experts(&format!("{from}.mlp"), to, count, width);
            }
        }
    }

    /// The three matrices of one network.
    fn network(&mut self, from: &str, to: &str, suffix: &str, width: u64) {
        let hidden = self.config.hidden;
        for (part, shape) in [("gate", [width, hidden]), ("up", [width, hidden]), ("down", [hidden, width])] {
            self.same(&format!("{from}.{part}_proj.weight"), &format!("{to}.ffn_{part}{suffix}.weight"), &shape);
        }
    }

    /// The router, the shared expert's gate, and the experts: in the checkpoint each one's matrices by themselves, or gate and
    /// up together and those of all experts in one tensor.
    fn experts(&mut self, from: &str, to: &str, count: u64, width: u64) {
        let hidden = self.config.hidden;
        for (part, name, rows) in [("gate", "ffn_gate_inp", count), ("shared_expert_gate", "ffn_gate_inp_shexp", 1)] {
            let shape = [rows, hidden];
            let router = Output { precision: Precision::Full, ..Output::same(format!("{to}.{name}.weight"), &shape) };
            self.add(&format!("{from}.{part}.weight"), &shape, router);
        }
        let name = |part: &str| format!("{to}.ffn_{part}_exps.weight");
        self.same(&format!("{from}.experts.down_proj"), &name("down"), &[count, hidden, width]);
        let shape = [count, width, hidden];
        let both = format!("{from}.experts.gate_up_proj");
        if (self.is_there)(&both) {
            let half = |part: &str, start| Output {
                rows: Rows::Half { start, of: width },
                ..Output::same(name(part), &shape)
            };
            let outputs = vec![half("gate", 0), half("up", width)];
            self.all.push(Expected { source: both, shape: vec![count, 2 * width, hidden], outputs });
        } else {
            self.same(&format!("{from}.experts.gate_proj"), &name("gate"), &shape);
            self.same(&format!("{from}.experts.up_proj"), &name("up"), &shape);
        }
    }

    fn full_attention(&mut self, from: &str, to: &str) {
        let TextConfig { hidden, heads, kv_heads, head_dim, .. } = *self.config;
        let at = |part: &str| format!("{from}.self_attn.{part}.weight");
        // Per head the query, then its output gate.
        self.same(&at("q_proj"), &format!("{to}.attn_q.weight"), &[heads * 2 * head_dim, hidden]);
        self.same(&at("k_proj"), &format!("{to}.attn_k.weight"), &[kv_heads * head_dim, hidden]);
        self.same(&at("v_proj"), &format!("{to}.attn_v.weight"), &[kv_heads * head_dim, hidden]);
        self.same(&at("o_proj"), &format!("{to}.attn_output.weight"), &[hidden, heads * head_dim]);
        self.norm(&at("q_norm"), &format!("{to}.attn_q_norm.weight"), head_dim);
        self.norm(&at("k_norm"), &format!("{to}.attn_k_norm.weight"), head_dim);
    }

    fn linear_attention(&mut self, from: &str, to: &str) {
        let TextConfig { hidden, key_heads, value_heads, key_dim, value_dim, conv_kernel, .. } = *self.config;
        let (keys, values) = (key_heads * key_dim, value_heads * value_dim);
        let channels = 2 * keys + values;
        let at = |part: &str| format!("{from}.linear_attn.{part}");
        let order = |before, dim| HeadOrder { before, key_heads, value_heads, dim };
        let rows = |output: Output, before, dim| Output { rows: Rows::Heads(order(before, dim)), ..output };

        let shape = [channels, hidden];
        let qkv = Output::same(format!("{to}.attn_qkv.weight"), &shape);
        self.add(&at("in_proj_qkv.weight"), &shape, rows(qkv, 2 * keys, value_dim));
        let shape = [values, hidden];
        let gate = Output::same(format!("{to}.attn_gate.weight"), &shape);
        self.add(&at("in_proj_z.weight"), &shape, rows(gate, 0, value_dim));
        for (part, name) in [("in_proj_a.weight", "ssm_alpha.weight"), ("in_proj_b.weight", "ssm_beta.weight")] {
            let shape = [value_heads, hidden];
            self.add(&at(part), &shape, rows(Output::same(format!("{to}.{name}"), &shape), 0, 1));
        }
        // A vector of one number a head is, for its order, a matrix of rows of one.
        let vector = |name: &str, map| Output {
            row_len: 1,
            map,
            ..rows(Output::same(format!("{to}.{name}"), &[value_heads]), 0, 1)
        };
        self.add(&at("A_log"), &[value_heads], vector("ssm_a", NumberMap::NegativeExp));
        self.add(&at("dt_bias"), &[value_heads], vector("ssm_dt.bias", NumberMap::Same));
        let conv = Output {
            precision: Precision::Full,
            ..Output::same(format!("{to}.ssm_conv1d.weight"), &[channels, conv_kernel])
        };
        self.add(&at("conv1d.weight"), &[channels, 1, conv_kernel], rows(conv, 2 * keys, value_dim));
        // The gated norm's weight is a plain w.
        self.same(&at("norm.weight"), &format!("{to}.ssm_norm.weight"), &[value_dim]);
        let shape = [hidden, values];
        let out = Output { columns: Some(order(0, value_dim)), ..Output::same(format!("{to}.ssm_out.weight"), &shape) };
        self.add(&at("out_proj.weight"), &shape, out);
    }
}

/// The text model's metadata between the general keys and the tokenizer, in order.
#[allow(clippy::cast_possible_truncation)] // Dimensions are bounded where the config is read.
pub(crate) fn metadata(config: &TextConfig, asked: OutputType, mtp_layers: u64) -> Vec<(String, Value)> {
    let number = |value: u64| Value::U32(value as u32);
    let sections = config.rope_sections.iter().map(|&section| section as i32).collect();
    let mut keys = vec![
        ("block_count", number(config.layers + mtp_layers)),
        ("context_length", number(config.context)),
        ("embedding_length", number(config.hidden)),
    ];
    if let Network::Dense { width } | Network::Experts { stated: Some(width), .. } = config.network {
        keys.push(("feed_forward_length", number(width)));
    }
    keys.extend([
        ("attention.head_count", number(config.heads)),
        ("attention.head_count_kv", number(config.kv_heads)),
        ("rope.dimension_sections", Value::Array(Array::I32(sections))),
        ("rope.freq_base", Value::F32(config.rope_base)),
        ("attention.layer_norm_rms_epsilon", Value::F32(config.rms_epsilon)),
    ]);
    if let Network::Experts { count, used, .. } = config.network {
        keys.extend([("expert_count", number(count)), ("expert_used_count", number(used))]);
    }
    keys.extend([
        ("attention.key_length", number(config.head_dim)),
        ("attention.value_length", number(config.head_dim)),
        ("", Value::U32(asked.file_type())),
    ]);
    if let Network::Experts { width, shared, .. } = config.network {
        keys.extend([
            ("expert_feed_forward_length", number(width)),
            ("expert_shared_feed_forward_length", number(shared)),
        ]);
    }
    keys.extend([
        ("ssm.conv_kernel", number(config.conv_kernel)),
        ("ssm.state_size", number(config.key_dim)),
        ("ssm.group_count", number(config.key_heads)),
        ("ssm.time_step_rank", number(config.value_heads)),
        ("ssm.inner_size", number(config.value_dim * config.value_heads)),
        ("full_attention_interval", number(config.full_attention_interval)),
        ("rope.dimension_count", number(config.rope_dimensions)),
    ]);
    if let Some(linear) = &config.irregular {
        let mut recurrent = linear.clone();
        recurrent.resize((config.layers + mtp_layers) as usize, false);
        keys.push(("attention.recurrent_layers", recurrent.into()));
    }
    if mtp_layers > 0 {
        keys.push(("nextn_predict_layers", number(mtp_layers)));
    }
    keys.into_iter()
        .map(|(key, value)| match key {
            "" => ("general.file_type".to_owned(), value),
            key => (format!("{}.{key}", config.architecture()), value),
        })
        .collect()
}
