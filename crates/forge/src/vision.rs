//! The vision projector: which tensors it has, what becomes of each, and its metadata.

use consort_core::Result;
use consort_gguf::{Array, Value};
use serde_json::{Map, Value as Json};

use crate::checkpoint::invalid;
use crate::config::OutputType;
use crate::hf::{ModelConfig, VisionConfig};
use crate::plan::{Expected, Output, Precision, Rows};

/// What the reference converter assumes where the checkpoint brings no preprocessor config.
const DEFAULT_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEFAULT_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Every tensor of the vision tower and its merger.
pub(crate) fn tensors(config: &VisionConfig) -> Vec<Expected> {
    let VisionConfig { depth, hidden, mlp, channels, patch, merge, output, positions, .. } = *config;
    let mut all = Vec::new();
    let mut add = |source: &str, shape: &[u64], outputs: Vec<Output>| {
        all.push(Expected { source: source.to_owned(), shape: shape.to_vec(), outputs });
    };
    // The two temporal slices become two convolutions over one image each.
    let slices = [("v.patch_embd.weight", 0), ("v.patch_embd.weight.1", 1)].map(|(name, slice)| Output {
        precision: Precision::HalfIfAsked,
        row_len: patch * patch,
        rows: Rows::EverySecond(slice),
        ..Output::same(name, &[hidden, channels, patch, patch])
    });
    add("patch_embed.proj.weight", &[hidden, channels, 2, patch, patch], slices.to_vec());
    add("patch_embed.proj.bias", &[hidden], vec![Output::same("v.patch_embd.bias", &[hidden])]);
    let shape = [positions, hidden];
    let table = Output { precision: Precision::Full, ..Output::same("v.position_embd.weight", &shape) };
    add("pos_embed.weight", &shape, vec![table]);

    let mut linear = |from: &str, to: &str, out: u64, input: u64| {
        let (weight, bias) = (format!("{to}.weight"), format!("{to}.bias"));
        add(&format!("{from}.weight"), &[out, input], vec![Output::same(weight, &[out, input])]);
        add(&format!("{from}.bias"), &[out], vec![Output::same(bias, &[out])]);
    };
    for index in 0..depth {
        let (from, to) = (format!("blocks.{index}"), format!("v.blk.{index}"));
        linear(&format!("{from}.attn.qkv"), &format!("{to}.attn_qkv"), 3 * hidden, hidden);
        linear(&format!("{from}.attn.proj"), &format!("{to}.attn_out"), hidden, hidden);
        linear(&format!("{from}.mlp.linear_fc1"), &format!("{to}.ffn_up"), mlp, hidden);
        linear(&format!("{from}.mlp.linear_fc2"), &format!("{to}.ffn_down"), hidden, mlp);
    }
    let merged = hidden * merge * merge;
    linear("merger.linear_fc1", "mm.0", merged, merged);
    linear("merger.linear_fc2", "mm.2", output, merged);

    let mut norm = |from: &str, to: &str| {
        for part in ["weight", "bias"] {
            add(&format!("{from}.{part}"), &[hidden], vec![Output::same(format!("{to}.{part}"), &[hidden])]);
        }
    };
    for index in 0..depth {
        norm(&format!("blocks.{index}.norm1"), &format!("v.blk.{index}.ln1"));
        norm(&format!("blocks.{index}.norm2"), &format!("v.blk.{index}.ln2"));
    }
    norm("merger.norm", "v.post_ln");
    all
}

/// The projector's metadata after the general keys, in order. `processor` is the image processor's config, if any.
#[allow(clippy::cast_possible_truncation)] // Dimensions are bounded where the config is read.
pub(crate) fn metadata(
    model: &ModelConfig,
    config: &VisionConfig,
    processor: &Map<String, Json>,
    asked: OutputType,
) -> Result<Vec<(String, Value)>> {
    let number = |value: u64| Value::U32(value as u32);
    let mean = three(processor, "image_mean", DEFAULT_MEAN)?;
    let std = three(processor, "image_std", DEFAULT_STD)?;
    let mut keys = vec![
        ("general.file_type", Value::U32(asked.file_type())),
        ("clip.has_vision_encoder", Value::Bool(true)),
        ("clip.vision.projection_dim", number(model.text.hidden)),
        ("clip.vision.image_size", number(config.image)),
        ("clip.vision.patch_size", number(config.patch)),
        ("clip.vision.embedding_length", number(config.hidden)),
        ("clip.vision.feed_forward_length", number(config.mlp)),
        ("clip.vision.block_count", number(config.depth)),
        ("clip.vision.attention.head_count", number(config.heads)),
        ("clip.vision.image_mean", Value::Array(Array::F32(mean))),
        ("clip.vision.image_std", Value::Array(Array::F32(std))),
        ("clip.projector_type", "qwen3vl_merger".into()),
        ("clip.use_gelu", Value::Bool(true)),
        ("clip.vision.spatial_merge_size", number(config.merge)),
        ("clip.vision.attention.layer_norm_epsilon", Value::F32(model.text.rms_epsilon)),
        ("clip.vision.is_deepstack_layers", vec![false; config.depth as usize].into()),
    ];
    for (key, names) in [
        ("clip.vision.image_min_pixels", ["min_pixels", "shortest_edge"]),
        ("clip.vision.image_max_pixels", ["max_pixels", "longest_edge"]),
    ] {
        if let Some(pixels) = pixels(processor, names)? {
            keys.push((key, Value::U32(pixels)));
        }
    }
    Ok(keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// The processor's limit on an image's area, under either of its names.
fn pixels(processor: &Map<String, Json>, [flat, sized]: [&str; 2]) -> Result<Option<u32>> {
    let in_size = processor.get("size").and_then(|size| size.get(sized));
    let Some(value) = in_size.or_else(|| processor.get(flat)).filter(|value| !value.is_null()) else { return Ok(None) };
    match value.as_u64().and_then(|pixels| u32::try_from(pixels).ok()).filter(|&pixels| pixels > 0) {
        Some(pixels) => Ok(Some(pixels)),
        None => Err(invalid(format!("{value} is not a number of pixels")).with_context("key", sized)),
    }
}

fn three(processor: &Map<String, Json>, key: &'static str, default: [f32; 3]) -> Result<Vec<f32>> {
    let Some(value) = processor.get(key).filter(|value| !value.is_null()) else { return Ok(default.to_vec()) };
    #[allow(clippy::cast_possible_truncation)] // The format stores f32.
    let numbers: Option<Vec<f32>> =
        value.as_array().and_then(|list| list.iter().map(|entry| entry.as_f64().map(|n| n as f32)).collect());
    numbers
        .filter(|numbers| numbers.len() == 3 && numbers.iter().all(|number| number.is_finite()))
        .ok_or_else(|| invalid(format!("{value} is not three numbers")).with_context("key", key))
}
