//! The text model: which tensors it has, what becomes of each, and its metadata.

use consort_gguf::{Array, Value};

use crate::config::OutputType;
use crate::hf::{Head, TextConfig};
use crate::plan::{Expected, HeadOrder, NumberMap, Output, Precision, Rows};

/// The architecture's name in metadata.
pub(crate) const ARCHITECTURE: &str = "qwen35";

/// Collects the expected tensors of the text model.
struct Table<'a> {
    config: &'a TextConfig,
    all: Vec<Expected>,
}

/// Every tensor of the text model. `mtp` tells whether the multi-token prediction layer is there.
pub(crate) fn tensors(config: &TextConfig, mtp: bool) -> Vec<Expected> {
    let mut table = Table { config, all: Vec::new() };
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

    /// What linear and full attention layers share: the norms around, and the MLP.
    fn around(&mut self, from: &str, to: &str) {
        let (hidden, mlp) = (self.config.hidden, self.config.mlp);
        self.norm(&format!("{from}.input_layernorm.weight"), &format!("{to}.attn_norm.weight"), hidden);
        self.norm(
            &format!("{from}.post_attention_layernorm.weight"),
            &format!("{to}.post_attention_norm.weight"),
            hidden,
        );
        self.same(&format!("{from}.mlp.gate_proj.weight"), &format!("{to}.ffn_gate.weight"), &[mlp, hidden]);
        self.same(&format!("{from}.mlp.up_proj.weight"), &format!("{to}.ffn_up.weight"), &[mlp, hidden]);
        self.same(&format!("{from}.mlp.down_proj.weight"), &format!("{to}.ffn_down.weight"), &[hidden, mlp]);
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
        ("feed_forward_length", number(config.mlp)),
        ("attention.head_count", number(config.heads)),
        ("attention.head_count_kv", number(config.kv_heads)),
        ("rope.dimension_sections", Value::Array(Array::I32(sections))),
        ("rope.freq_base", Value::F32(config.rope_base)),
        ("attention.layer_norm_rms_epsilon", Value::F32(config.rms_epsilon)),
        ("attention.key_length", number(config.head_dim)),
        ("attention.value_length", number(config.head_dim)),
        ("", Value::U32(asked.file_type())),
        ("ssm.conv_kernel", number(config.conv_kernel)),
        ("ssm.state_size", number(config.key_dim)),
        ("ssm.group_count", number(config.key_heads)),
        ("ssm.time_step_rank", number(config.value_heads)),
        ("ssm.inner_size", number(config.value_dim * config.value_heads)),
        ("full_attention_interval", number(config.full_attention_interval)),
        ("rope.dimension_count", number(config.rope_dimensions)),
    ];
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
            key => (format!("{ARCHITECTURE}.{key}"), value),
        })
        .collect()
}
