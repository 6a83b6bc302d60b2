"""Seeded random models of the family, a few hundred thousand parameters each.

Every weight is a bfloat16 number that is also a float16 number, so that F32, F16 and BF16 files hold the same model
and one set of goldens judges all three.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Qwen3_5Config, Qwen3_5ForCausalLM, Qwen3_5ForConditionalGeneration, Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration, Qwen3_5TextConfig,
)

from . import vocabulary

# Below this a bfloat16 number may fall between two subnormal float16 numbers.
SMALLEST = 2.0**-17


@dataclass
class Tiny:
    """The shape of one configuration."""

    name: str
    why: str
    seed: int
    hidden: int = 64
    mlp: int = 64
    layers: int = 4
    interval: int = 4  # every interval-th layer is full attention
    tied: bool = True
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    rotary: float = 0.25
    sections: list[int] = field(default_factory=lambda: [2, 1, 1])
    theta: float = 10000.0
    key_heads: int = 2
    value_heads: int = 2
    linear_dim: int = 32
    vision: bool = True
    vision_heads: int = 2
    vision_mlp: int = 64
    vision_positions: int = 16
    mtp: bool = False
    experts: int = 0  # 0: one network a layer; else a mixture, whose shared expert is `mlp` wide
    experts_used: int = 0
    expert_width: int = 0
    storage: torch.dtype = torch.bfloat16


CONFIGURATIONS = [
    Tiny("plain", "tied head, as many value heads as key heads", 1),
    Tiny("untied", "untied head, linear heads of 128, rope base 1e7, MTP tensors that the reference ignores", 2,
         hidden=32, tied=False, heads=2, kv_heads=2, key_heads=1, value_heads=1, linear_dim=128, theta=1e7,
         vision_heads=4, vision_positions=36, mtp=True),
    Tiny("grouped2", "two value heads a key head", 3,
         hidden=32, heads=2, kv_heads=1, key_heads=2, value_heads=4, vision_positions=9),
    Tiny("grouped3", "three value heads a key head", 4,
         hidden=32, heads=2, kv_heads=1, key_heads=2, value_heads=6, vision_heads=1, vision_mlp=96),
    Tiny("heads", "four query heads on one kv head of 64, half of it rotated, every third layer full attention, float16 file", 5,
         layers=3, interval=3, heads=4, kv_heads=1, head_dim=64, rotary=0.5, sections=[6, 5, 5],
         key_heads=1, value_heads=1, linear_dim=64, vision_positions=25, storage=torch.float16),
    Tiny("deep", "eight layers, two of them full attention, text only (no vision tower, the causal-LM layout of names)", 6,
         hidden=32, layers=8, heads=2, kv_heads=1, rotary=0.5, sections=[3, 3, 2], vision=False),
    Tiny("moe", "a mixture of eight experts, three of them and a shared one a token; untied head, two value heads a key head, MTP tensors", 7,
         hidden=32, mlp=64, tied=False, heads=2, kv_heads=1, key_heads=2, value_heads=4, mtp=True,
         experts=8, experts_used=3, expert_width=32),
]


def model_class(tiny: Tiny):
    """The class of transformers that runs this configuration."""
    if tiny.experts:
        assert tiny.vision, tiny.name
        return Qwen3_5MoeForConditionalGeneration
    return Qwen3_5ForConditionalGeneration if tiny.vision else Qwen3_5ForCausalLM


def text_config(tiny: Tiny, ids: dict[str, int]) -> dict:
    rotated = int(tiny.head_dim * tiny.rotary)
    assert sum(tiny.sections) * 2 == rotated, tiny.name
    network = dict(intermediate_size=tiny.mlp)
    if tiny.experts:
        network = dict(
            num_experts=tiny.experts, num_experts_per_tok=tiny.experts_used, moe_intermediate_size=tiny.expert_width,
            shared_expert_intermediate_size=tiny.mlp,
        )
    return dict(
        vocab_size=vocabulary.SIZE, hidden_size=tiny.hidden, **network,
        num_hidden_layers=tiny.layers, num_attention_heads=tiny.heads, num_key_value_heads=tiny.kv_heads,
        head_dim=tiny.head_dim, hidden_act="silu", max_position_embeddings=4096, rms_norm_eps=1e-6,
        tie_word_embeddings=tiny.tied, attention_bias=False,
        rope_parameters={
            "mrope_interleaved": True, "mrope_section": tiny.sections, "rope_type": "default",
            "rope_theta": tiny.theta, "partial_rotary_factor": tiny.rotary,
        },
        linear_conv_kernel_dim=4, linear_key_head_dim=tiny.linear_dim, linear_value_head_dim=tiny.linear_dim,
        linear_num_key_heads=tiny.key_heads, linear_num_value_heads=tiny.value_heads,
        layer_types=["full_attention" if (i + 1) % tiny.interval == 0 else "linear_attention" for i in range(tiny.layers)],
        full_attention_interval=tiny.interval, attn_output_gate=True, mamba_ssm_dtype="float32",
        mtp_num_hidden_layers=int(tiny.mtp), eos_token_id=ids["<|im_end|>"],
    )


def vision_config(tiny: Tiny) -> dict:
    return dict(
        depth=2, hidden_size=32, hidden_act="gelu_pytorch_tanh", intermediate_size=tiny.vision_mlp,
        num_heads=tiny.vision_heads, in_channels=3, patch_size=16, spatial_merge_size=2, temporal_patch_size=2,
        out_hidden_size=tiny.hidden, num_position_embeddings=tiny.vision_positions, deepstack_visual_indexes=[],
    )


def exact(values: torch.Tensor) -> torch.Tensor:
    """The nearest numbers that float32, float16 and bfloat16 all hold."""
    values = values.to(torch.bfloat16).to(torch.float32)
    values = torch.where(values.abs() < SMALLEST, torch.zeros_like(values), values)
    assert torch.equal(values, values.to(torch.float16).to(torch.float32))
    return values


def weight(name: str, shape: torch.Size, hidden: int, g: torch.Generator) -> torch.Tensor:
    """A random weight by the role that its name gives it.

    Norms, biases and decays are all random too: a converter or engine that forgets the one added to zero-centred
    norms, drops a bias or swaps two heads' decays must show in the logits.
    """
    def normal(std, mean=0.0):
        return torch.randn(shape, generator=g) * std + mean

    def uniform(low, high):
        return torch.empty(shape).uniform_(low, high, generator=g)

    if name.endswith("A_log"):
        return uniform(0.5, 4.0).log()
    if name.endswith("dt_bias"):
        # softplus of this is a step of 0.004 to 0.15: memories from a handful to a few hundred tokens.
        step = uniform(math.log(4e-3), math.log(0.15)).exp()
        return step + torch.log(-torch.expm1(-step))
    if "conv1d" in name:
        kernel = normal(0.3)
        kernel[..., -1] += 0.7
        return kernel
    if name.endswith("embed_tokens.weight"):
        return normal(1.0 / math.sqrt(hidden))
    if name.endswith("lm_head.weight"):
        return normal(1.0 / math.sqrt(hidden))
    if "pos_embed" in name:
        return normal(0.5)
    if "linear_attn.norm" in name:
        return normal(0.2, 1.0)
    if "q_norm" in name or "k_norm" in name:
        return normal(0.2, 0.9)
    if "visual" in name and "norm" in name:
        return normal(0.2, 1.0) if name.endswith("weight") else normal(0.1)
    if "norm" in name:
        return normal(0.2)
    if name.endswith("bias"):
        return normal(0.1)
    if len(shape) == 5:
        return normal(1.5 / math.sqrt(math.prod(shape[1:])))
    assert len(shape) == 2 or "experts" in name, (name, shape)
    gain = 1.0
    if name.endswith("mlp.gate.weight"):
        # Scores far enough apart that no rounding changes who is chosen, and weights that differ.
        gain = 2.0
    if name.endswith(("out_proj.weight", "down_proj.weight", "experts.down_proj", "attn.proj.weight")):
        gain = 0.7
    if name.endswith("in_proj_a.weight"):
        gain = 0.7
    return normal(gain / math.sqrt(shape[-1]))


def mtp_tensors(tiny: Tiny, g: torch.Generator) -> dict[str, torch.Tensor]:
    """The tensors of one multi-token-prediction layer: one more full-attention layer and what joins it."""
    h, q, kv = tiny.hidden, tiny.heads * tiny.head_dim, tiny.kv_heads * tiny.head_dim
    shapes = {
        "fc": [h, 2 * h], "pre_fc_norm_embedding": [h], "pre_fc_norm_hidden": [h], "norm": [h],
        "layers.0.input_layernorm": [h], "layers.0.post_attention_layernorm": [h],
        "layers.0.self_attn.q_proj": [2 * q, h], "layers.0.self_attn.k_proj": [kv, h],
        "layers.0.self_attn.v_proj": [kv, h], "layers.0.self_attn.o_proj": [h, q],
        "layers.0.self_attn.q_norm": [tiny.head_dim], "layers.0.self_attn.k_norm": [tiny.head_dim],
    }
    mlp = "layers.0.mlp.shared_expert" if tiny.experts else "layers.0.mlp"
    shapes |= {f"{mlp}.gate_proj": [tiny.mlp, h], f"{mlp}.up_proj": [tiny.mlp, h], f"{mlp}.down_proj": [h, tiny.mlp]}
    names = {f"mtp.{name}.weight": shape for name, shape in shapes.items()}
    if tiny.experts:
        # In the layout of transformers' parameters, of which a checkpoint may also be made.
        e, w = tiny.experts, tiny.expert_width
        names |= {
            "mtp.layers.0.mlp.gate.weight": [e, h], "mtp.layers.0.mlp.shared_expert_gate.weight": [1, h],
            "mtp.layers.0.mlp.experts.gate_up_proj": [e, 2 * w, h], "mtp.layers.0.mlp.experts.down_proj": [e, h, w],
        }
    return {name: exact(weight(name, torch.Size(shape), h, g)) for name, shape in names.items()}


def save(tiny: Tiny, ids: dict[str, int], folder: Path) -> None:
    """Builds the model and writes config.json and model.safetensors as `save_pretrained` lays them out."""
    text = text_config(tiny, ids)
    if tiny.vision:
        config = (Qwen3_5MoeConfig if tiny.experts else Qwen3_5Config)(
            text_config=text, vision_config=vision_config(tiny), tie_word_embeddings=tiny.tied,
            image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        )
        model = model_class(tiny)(config).float()
    else:
        model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**text)).float()
    model.tie_weights()
    g = torch.Generator().manual_seed(tiny.seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(exact(weight(name, parameter.shape, tiny.hidden, g)))
    model.tie_weights()
    model.save_pretrained(folder)
    # The layout of names is transformers'; only the storage type is ours. A_log stays F32, as in the family's files.
    path = folder / "model.safetensors"
    tensors = load_file(path)
    assert ("lm_head.weight" in tensors) == (not tiny.tied), sorted(tensors)
    if tiny.mtp:
        tensors |= mtp_tensors(tiny, g)
    stored = {
        name: tensor if name.endswith("A_log") else tensor.to(tiny.storage)
        for name, tensor in tensors.items()
    }
    for name, tensor in stored.items():
        assert torch.equal(tensor.float(), tensors[name]), name
    save_file(stored, path, metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    dtype = str(tiny.storage).removeprefix("torch.")
    for part in (settings, settings.get("text_config"), settings.get("vision_config")):
        if part is not None:
            part["dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
