//! The vision tower: its dimensions, keys and tensors.

use consort_core::Result;
use consort_gguf::Gguf;

use super::{Expected, Numbers, dimension, epsilon, invalid, only_known, tensors, unsupported};

const MAX_BLOCKS: usize = 1024;

/// Keys after `clip.` that a file may have.
const KEYS: [&str; 18] = [
    "has_vision_encoder",
    "has_audio_encoder",
    "projector_type",
    "use_gelu",
    "use_silu",
    "vision.image_size",
    "vision.patch_size",
    "vision.embedding_length",
    "vision.feed_forward_length",
    "vision.block_count",
    "vision.attention.head_count",
    "vision.attention.layer_norm_epsilon",
    "vision.projection_dim",
    "vision.spatial_merge_size",
    "vision.image_mean",
    "vision.image_std",
    "vision.image_min_pixels",
    "vision.image_max_pixels",
];
/// One more, which must say "none".
const DEEPSTACK: &str = "vision.is_deepstack_layers";

/// What the engine needs to know of a vision tower.
#[derive(Debug, Clone)]
pub(crate) struct VisionShape {
    /// Side of a patch in pixels.
    pub(crate) patch: usize,
    /// Side of the square of patches that becomes one token.
    pub(crate) merge: usize,
    /// What pixels in 0 to 1 are normalised with, for each channel.
    pub(crate) mean: [f32; 3],
    pub(crate) std: [f32; 3],
}

impl VisionShape {
    /// Reads the dimensions of a tower whose tokens have the width `text_hidden`, and holds the file against them.
    pub(crate) fn read(file: &Gguf, text_hidden: usize) -> Result<Self> {
        let metadata = file.metadata();
        for (key, wanted) in [("general.architecture", "clip"), ("clip.projector_type", "qwen3vl_merger")] {
            let found = metadata.require_str(key)?;
            if found != wanted {
                return Err(invalid(key, format!("this engine's vision tower is {wanted}, and the file's {found}")));
            }
        }
        let known: Vec<&str> = KEYS.iter().copied().chain([DEEPSTACK]).collect();
        only_known(metadata, "clip.", &known)?;
        for (key, wanted) in
            [("has_vision_encoder", true), ("has_audio_encoder", false), ("use_gelu", true), ("use_silu", false)]
        {
            let key = format!("clip.{key}");
            if metadata.bool_or(&key, wanted)? != wanted {
                return Err(unsupported("key", &key, "this is no vision tower of the family"));
            }
        }
        if !metadata.bool_or("clip.has_vision_encoder", false)? || !metadata.bool_or("clip.use_gelu", false)? {
            return Err(invalid("clip.has_vision_encoder", "the file does not say that it sees, with GELU"));
        }
        let deepstack = format!("clip.{DEEPSTACK}");
        if metadata.contains(&deepstack) && metadata.array_of_bools(&deepstack)?.contains(&true) {
            return Err(unsupported("key", &deepstack, "vision towers with deepstack layers are not supported"));
        }
        let key = |name: &str| format!("clip.vision.{name}");
        let number = |name: &str| dimension(metadata, &key(name));
        let (hidden, mlp, heads) =
            (number("embedding_length")?, number("feed_forward_length")?, number("attention.head_count")?);
        let (patch, merge, count) = (number("patch_size")?, number("spatial_merge_size")?, number("block_count")?);
        epsilon(metadata, &key("attention.layer_norm_epsilon"))?;
        if !hidden.is_multiple_of(heads) || !(hidden / heads).is_multiple_of(4) {
            return Err(invalid(
                &key("attention.head_count"),
                format!("{hidden} numbers cannot be split into {heads} heads of a multiple of 4"),
            ));
        }
        if merge != 2 || patch > 1024 || count > MAX_BLOCKS {
            return Err(invalid(&key("spatial_merge_size"), "merge size, patch size or block count is out of range"));
        }
        let size = number("image_size")?;
        if size < patch || size > 1 << 15 {
            return Err(invalid(&key("image_size"), format!("{size} pixels are no image of patches of {patch}")));
        }
        if number("projection_dim")? != text_hidden {
            return Err(invalid(
                &key("projection_dim"),
                format!("the vision tower does not belong to this text model, whose hidden size is {text_hidden}"),
            ));
        }
        let shape = Self { patch, merge, mean: three(file, &key("image_mean"))?, std: three(file, &key("image_std"))? };
        if shape.std.iter().any(|std| *std <= 0.0) {
            return Err(invalid(&key("image_std"), "these must be above zero"));
        }
        let positions = file.require_tensor("v.position_embd.weight")?.rows();
        let side = positions.isqrt();
        if side < 2 || side * side != positions {
            return Err(invalid("v.position_embd.weight", format!("{positions} positions are no square")));
        }
        tensors(file, &expected([hidden, mlp, patch, merge, count, positions as usize, text_hidden]), |_| false)?;
        Ok(shape)
    }
}

fn three(file: &Gguf, key: &str) -> Result<[f32; 3]> {
    let values = file.metadata().array_of_f32(key)?;
    match values.first_chunk() {
        Some(&chunk) if values.len() == 3 && chunk.iter().all(|value: &f32| value.is_finite()) => Ok(chunk),
        _ => Err(invalid(key, "there must be a finite number for each channel")),
    }
}

fn expected([hidden, mlp, patch, merge, count, positions, text]: [usize; 7]) -> Vec<Expected> {
    use Numbers::{F32, Kernel, Matrix};
    let frame = [patch, patch, 3, hidden];
    let mut all = vec![
        Expected::new("v.patch_embd.weight", &frame, Kernel),
        Expected::new("v.patch_embd.weight.1", &frame, Kernel),
        Expected::new("v.patch_embd.bias", &[hidden], F32),
        // It is resized, which is done in F32.
        Expected::new("v.position_embd.weight", &[hidden, positions], F32),
    ];
    let mut linear = |name: String, inputs: usize, outputs: usize| {
        all.push(Expected::new(format!("{name}.weight"), &[inputs, outputs], Matrix));
        all.push(Expected::new(format!("{name}.bias"), &[outputs], F32));
    };
    let merged = hidden * merge * merge;
    linear("mm.0".into(), merged, merged);
    linear("mm.2".into(), merged, text);
    for block in 0..count {
        linear(format!("v.blk.{block}.attn_qkv"), hidden, 3 * hidden);
        linear(format!("v.blk.{block}.attn_out"), hidden, hidden);
        linear(format!("v.blk.{block}.ffn_up"), hidden, mlp);
        linear(format!("v.blk.{block}.ffn_down"), mlp, hidden);
    }
    let norms = (0..count).flat_map(|block| ["ln1", "ln2"].map(|norm| format!("v.blk.{block}.{norm}")));
    for name in norms.chain(["v.post_ln".to_owned()]) {
        for part in ["weight", "bias"] {
            all.push(Expected::new(format!("{name}.{part}"), &[hidden], F32));
        }
    }
    all
}
