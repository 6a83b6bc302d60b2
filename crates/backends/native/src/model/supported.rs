//! What of all that a GGUF can say this engine computes. The rest is refused by name: a key or a tensor that was passed over
//! would not fail, it would make the model say something else.

use consort_core::{Error, ErrorKind, Result};
use consort_gguf::{Gguf, Metadata, Value};

use super::shape::{Drafts, LayerKind, TextShape};

/// The architectures' names in GGUF files: layers with one network each, and with a mixture of experts.
pub(crate) const DENSE: &str = "qwen35";
pub(crate) const EXPERTS: &str = "qwen35moe";

/// Keys of the format, after the architecture, that change what is computed, with the numbers under which they change
/// nothing.
const NUMBERS: [(&str, &[f64], &str); 24] = [
    ("rope.scaling.factor", &[0.0, 1.0], "rotary scaling"),
    ("rope.scaling.attn_factor", &[0.0, 1.0], "rotary scaling"),
    ("rope.scaling.alpha", &[0.0], "rotary scaling"),
    ("rope.scale_linear", &[0.0, 1.0], "rotary scaling"),
    ("attention.sliding_window", &[0.0], "sliding-window attention"),
    ("attention.shared_kv_layers", &[0.0], "attention layers that share keys and values"),
    ("attention.max_alibi_bias", &[0.0], "ALiBi"),
    ("attention.clamp_kqv", &[0.0], "clamped attention inputs"),
    ("attention.output_scale", &[0.0, 1.0], "scaled attention outputs"),
    ("attention.temperature_scale", &[0.0], "attention temperature"),
    ("attention.q_lora_rank", &[0.0], "latent attention"),
    ("attention.kv_lora_rank", &[0.0], "latent attention"),
    ("attn_logit_softcapping", &[0.0], "capped attention scores"),
    ("final_logit_softcapping", &[0.0], "capped logits"),
    ("router_logit_softcapping", &[0.0], "capped router scores"),
    ("logit_scale", &[0.0, 1.0], "scaled logits"),
    ("residual_scale", &[0.0, 1.0], "scaled residuals"),
    ("embedding_scale", &[0.0, 1.0], "scaled embeddings"),
    ("n_deepstack_layers", &[0.0], "deepstack layers"),
    ("leading_dense_block_count", &[0.0], "layers without experts among layers with"),
    ("interleave_moe_layer_step", &[0.0, 1.0], "layers without experts among layers with"),
    ("expert_group_count", &[0.0, 1.0], "groups of experts"),
    ("expert_shared_count", &[1.0], "another number of shared experts than one"),
    ("expert_weights_scale", &[0.0, 1.0], "scaled weights of experts"),
];
/// The same for flags, and for names.
const FLAGS: [(&str, bool, &str); 3] = [
    ("attention.causal", true, "attention to later tokens"),
    ("use_parallel_residual", false, "parallel residuals"),
    ("expert_weights_norm", true, "weights of experts that do not sum to one"),
];
const NAMES: [(&str, &[&str], &str); 1] = [("rope.scaling.type", &["none"], "rotary scaling")];
/// Keys whose mere presence says something else is computed.
const ABSENT: [(&str, &str); 5] = [
    ("attention.sliding_window_pattern", "sliding-window attention"),
    ("swiglu_clamp_exp", "clamped experts"),
    ("swiglu_clamp_shexp", "clamped experts"),
    ("expert_chunk_feed_forward_length", "chunked experts"),
    ("moe_latent_size", "latent experts"),
];
/// The router's function, as the format numbers it: a softmax, or nothing said.
const GATING: (&str, &[f64], &str) = ("expert_gating_func", &[0.0, 1.0], "a router other than a softmax");

/// Names of tensors of a block.
const NORMS: [&str; 2] = ["attn_norm.weight", "post_attention_norm.weight"];
const ATTENTION: [&str; 6] = [
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "attn_q_norm.weight",
    "attn_k_norm.weight",
];
const DELTA: [&str; 9] = [
    "attn_qkv.weight",
    "attn_gate.weight",
    "ssm_alpha.weight",
    "ssm_beta.weight",
    "ssm_out.weight",
    "ssm_conv1d.weight",
    "ssm_a",
    "ssm_dt.bias",
    "ssm_norm.weight",
];
const MLP: [&str; 3] = ["ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"];
const MIXTURE: [&str; 6] = [
    "ffn_gate_inp.weight",
    "ffn_down_exps.weight",
    "ffn_gate_inp_shexp.weight",
    "ffn_gate_shexp.weight",
    "ffn_up_shexp.weight",
    "ffn_down_shexp.weight",
];
const GATE_AND_UP: [&str; 2] = ["ffn_gate_exps.weight", "ffn_up_exps.weight"];
/// Both in one tensor: then the two are not read.
const GATE_UP: &str = "ffn_gate_up_exps.weight";
const NEXTN: [&str; 6] = [
    "nextn.eh_proj.weight",
    "nextn.enorm.weight",
    "nextn.hnorm.weight",
    "nextn.shared_head_norm.weight",
    "nextn.embed_tokens.weight",
    "nextn.shared_head_head.weight",
];

fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("this engine does not run models with {what}"))
        .with_operation("native::load")
}

/// The file's architecture, if it is the family's.
pub(crate) fn architecture(metadata: &Metadata) -> Result<&'static str> {
    match metadata.require_str("general.architecture")? {
        DENSE => Ok(DENSE),
        EXPERTS => Ok(EXPERTS),
        other => Err(Error::new(
            ErrorKind::Unsupported,
            format!("this engine runs {DENSE} and {EXPERTS}, and the file is {other}"),
        )
        .with_operation("native::load")
        .with_context("key", "general.architecture")),
    }
}

/// Refuses what the metadata say is computed otherwise.
pub(crate) fn check_metadata(metadata: &Metadata, architecture: &str) -> Result<()> {
    let refuse = |key: String, what: &str| Err(unsupported(what).with_context("key", key));
    let number = |value: &Value| match value {
        #[allow(clippy::cast_precision_loss)] // Compared with small numbers.
        value if value.as_integer().is_some() => value.as_integer().map(|whole| whole as f64),
        value => value.as_f32().map(f64::from),
    };
    for (key, neutral, what) in NUMBERS.into_iter().chain([GATING]) {
        let key = format!("{architecture}.{key}");
        if let Some(value) = metadata.get(&key)
            && number(value).is_none_or(|number| !neutral.contains(&number))
        {
            return refuse(key, what);
        }
    }
    for (key, neutral, what) in FLAGS {
        let key = format!("{architecture}.{key}");
        if metadata.get_bool(&key)?.is_some_and(|flag| flag != neutral) {
            return refuse(key, what);
        }
    }
    for (key, neutral, what) in NAMES {
        let key = format!("{architecture}.{key}");
        if metadata.get_str(&key)?.is_some_and(|name| !neutral.contains(&name)) {
            return refuse(key, what);
        }
    }
    for (key, what) in ABSENT {
        let key = format!("{architecture}.{key}");
        if metadata.contains(&key) {
            return refuse(key, what);
        }
    }
    Ok(())
}

/// Refuses tensors that the forward pass would pass over.
pub(crate) fn check_tensors(file: &Gguf, shape: &TextShape) -> Result<()> {
    match file.tensors().find(|info| !is_read(file, shape, &info.name)) {
        None => Ok(()),
        Some(stranger) => Err(unsupported("this tensor, or not at this place").with_context("tensor", &stranger.name)),
    }
}

fn is_read(file: &Gguf, shape: &TextShape, name: &str) -> bool {
    let Some((block, rest)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return matches!(name, "token_embd.weight" | "output.weight" | "output_norm.weight");
    };
    let Some(block) = block.parse::<usize>().ok().filter(|number| number.to_string() == block) else { return false };
    let drafts = block == shape.layers.len() && shape.drafts == Drafts::OneBlock;
    let mixer: &[&str] = match shape.layers.get(block) {
        Some(LayerKind::Delta) => &DELTA,
        Some(LayerKind::Attention) => &ATTENTION,
        None if drafts => &ATTENTION,
        None => return false,
    };
    let (mlp, stacked): (&[&str], &[&str]) = match &shape.experts {
        None => (&MLP, &[]),
        Some(_) if file.tensor(&format!("blk.{block}.{GATE_UP}")).is_some() => (&MIXTURE, &[GATE_UP]),
        Some(_) => (&MIXTURE, &GATE_AND_UP),
    };
    let last: &[&str] = if drafts { &NEXTN } else { &[] };
    [&NORMS, mixer, mlp, stacked, last].iter().any(|names| names.contains(&rest))
}
