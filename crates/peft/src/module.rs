//! From a tensor's name in an adapter to the layer that it changes.

use consort_core::Result;

use crate::config::invalid;

/// Which factor a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Factor {
    A,
    B,
}

/// A tensor's name, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    /// The layer's name in the model on which PEFT worked, against which patterns are matched.
    pub(crate) in_model: &'a str,
    /// The same without the wrappers around the text model: `layers.3.mlp.up_proj` or `lm_head`.
    pub(crate) module: &'a str,
    /// The index after `layers.`.
    pub(crate) layer: Option<usize>,
    pub(crate) factor: Factor,
}

/// Takes `name` apart. PEFT wraps the model in `base_model.model.`; the text model lies under `model.`, `language_model.`,
/// both, or neither, by the class that was loaded for training.
pub(crate) fn parse(name: &str) -> Result<Target<'_>> {
    let refuse = |message: &str| Err(invalid(message).with_context("tensor", name));
    let stems = [
        (".lora_A.weight", Factor::A),
        (".lora_B.weight", Factor::B),
        // State dicts that were saved without PEFT's own writer keep the adapter's name.
        (".lora_A.default.weight", Factor::A),
        (".lora_B.default.weight", Factor::B),
    ];
    let Some((in_model, factor)) = stems.iter().find_map(|(end, factor)| Some((name.strip_suffix(end)?, *factor)))
    else {
        return refuse(if name.contains("lora_magnitude_vector") {
            "the adapter has DoRA magnitudes, which are not supported"
        } else if name.contains("lora_embedding_") {
            "the adapter changes an embedding, which is not supported"
        } else if name.contains(".lora_") && name.ends_with(".bias") {
            "the adapter has a bias, which is not supported"
        } else {
            "the adapter has a tensor that is neither lora_A nor lora_B of a linear layer"
        });
    };
    let in_model = in_model.strip_prefix("base_model.model.").unwrap_or(in_model);
    let mut module = in_model;
    for wrapper in ["model.", "language_model.", "model."] {
        module = module.strip_prefix(wrapper).unwrap_or(module);
    }
    if module.starts_with("visual.") || in_model.contains("visual.") {
        return refuse("the adapter changes a layer of the vision tower, which is not supported");
    }
    if module.starts_with("mtp.") {
        return refuse("the adapter changes a multi-token prediction layer, which is not supported");
    }
    let layer = match module.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
        Some((index, path)) if !path.is_empty() => {
            let canonical = index.parse::<u32>().ok().filter(|number| number.to_string() == index);
            let Some(index) = canonical else { return refuse("the layer's index is not a number") };
            Some(index as usize)
        }
        _ if module == "lm_head" => None,
        _ => {
            return refuse(
                "the adapter changes a layer outside the decoder layers and the head, which is not supported",
            );
        }
    };
    Ok(Target { in_model, module, layer, factor })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_wrapping_gives_one_name() {
        for prefix in [
            "base_model.model.model.language_model.",
            "base_model.model.model.",
            "base_model.model.language_model.",
            "base_model.model.language_model.model.",
            "base_model.model.",
            "model.",
            "",
        ] {
            let name = format!("{prefix}layers.3.linear_attn.in_proj_qkv.lora_A.weight");
            let target = parse(&name).unwrap();
            assert_eq!((target.module, target.layer), ("layers.3.linear_attn.in_proj_qkv", Some(3)), "{prefix}");
            assert_eq!(target.factor, Factor::A);
        }
        let head = parse("base_model.model.lm_head.lora_B.default.weight").unwrap();
        assert_eq!((head.module, head.layer, head.factor), ("lm_head", None, Factor::B));
    }

    #[test]
    fn refusals_name_the_reason() {
        for (name, reason) in [
            ("base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight", "vision tower"),
            ("base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector", "DoRA"),
            ("base_model.model.model.embed_tokens.lora_embedding_A", "embedding"),
            ("base_model.model.model.layers.0.mlp.up_proj.lora_B.bias", "bias"),
            ("base_model.model.model.norm.weight", "neither"),
            ("base_model.model.model.embed_tokens.lora_A.weight", "outside"),
            ("base_model.model.mtp.layers.0.mlp.up_proj.lora_A.weight", "multi-token"),
            ("base_model.model.model.layers.x.mlp.up_proj.lora_A.weight", "not a number"),
            ("base_model.model.model.layers.03.mlp.up_proj.lora_A.weight", "not a number"),
            ("base_model.model.model.layers.3.lora_A.weight", "outside"),
        ] {
            let error = parse(name).unwrap_err();
            assert!(error.message().contains(reason), "{name}: {error}");
            assert!(error.context().any(|pair| pair == ("tensor", name)));
        }
    }
}
