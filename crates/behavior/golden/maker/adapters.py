"""Seeded LoRA adapters, written by PEFT itself and read back by PEFT before a number is taken from them."""

import json
import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import rescale_adapter_scale

from .tiny import exact

LINEAR = ["in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
KINDS = LINEAR + ATTENTION + MLP


@dataclass
class Lora:
    """What one adapter is made of."""

    name: str
    seed: int
    rank: int
    alpha: int
    targets: list[str] | str  # kinds of linear layer, or PEFT's regular expression over whole module names
    strength: float  # the change of a layer's output beside that output, roughly
    rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, int] = field(default_factory=dict)
    layers: list[int] | None = None
    dtype: torch.dtype = torch.float16


def everything(seed: int, rank: int = 4) -> Lora:
    return Lora("all", seed, rank, 2 * rank, KINDS, 0.4)


def single(kind: str, seed: int) -> Lora:
    """An adapter on one kind of layer alone, so that an engine that leaves out this kind is caught."""
    return Lora(f"only-{kind}", seed, 2, 4, [kind], 1.5 if kind in ("in_proj_a", "in_proj_b") else 0.8)


# name of the configuration -> its adapters
ADAPTERS: dict[str, list[Lora]] = {
    "plain": [
        Lora("all", 10, 4, 8, KINDS, 0.4, dtype=torch.float32),
        Lora("rslora", 11, 8, 4, ["in_proj_qkv", "out_proj", "q_proj", "v_proj", "down_proj"], 0.4, rslora=True),
        Lora("pattern", 12, 2, 6, ["in_proj_qkv", "in_proj_z", "o_proj", "up_proj", "down_proj"], 0.5,
             rank_pattern={"in_proj_qkv": 5, "layers.1.mlp.up_proj": 1, "down_proj": 3},
             alpha_pattern={"in_proj_z": 1, "layers.2.mlp.down_proj": 12}, dtype=torch.bfloat16),
        Lora("one-layer", 13, 3, 3, ["gate_proj", "in_proj_a", "out_proj"], 0.8, layers=[2]),
        Lora("regex", 14, 1, 2, r".*language_model\.layers\.[03]\.(mlp\.up_proj|self_attn\.k_proj|linear_attn\.in_proj_b)", 1.0),
        *[single(kind, 20 + i) for i, kind in enumerate(KINDS)],
    ],
    "untied": [everything(40)],
    # What moves value heads about (a converter that tiles them) must move the same rows and columns of an adapter.
    "grouped2": [everything(50), *[single(kind, 51 + i) for i, kind in enumerate(LINEAR)]],
    "grouped3": [everything(60, 2), *[single(kind, 61 + i) for i, kind in enumerate(LINEAR)]],
    # Query and gate lie interleaved, head by head, in the rows of q_proj.
    "heads": [everything(70, 2), *[single(kind, 71 + i) for i, kind in enumerate(ATTENTION)]],
    "deep": [everything(80, 2)],
    # Of a mixture of experts the shared one, and what weighs it, are linear layers; the routed ones are not.
    "moe": [
        Lora("all", 90, 2, 4, [*KINDS, "shared_expert_gate"], 0.4),
        *[single(kind, 91 + i) for i, kind in enumerate([*MLP, "shared_expert_gate", "out_proj"])],
    ],
}


def save(lora: Lora, base, folder: Path, invocation: list[int] | None = None) -> None:
    """Lets PEFT write the adapter. `base` is used up: PEFT puts its layers into it. With `invocation` tokens it is activated."""
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets, use_rslora=lora.rslora,
        rank_pattern=lora.rank_pattern, alpha_pattern=lora.alpha_pattern, layers_to_transform=lora.layers,
        lora_dropout=0.0, bias="none", alora_invocation_tokens=invocation,
        task_type="CAUSAL_LM" if invocation else None,
    )
    wrapped = get_peft_model(base, config)
    g = torch.Generator().manual_seed(lora.seed)
    found = 0
    with torch.no_grad():
        for name, module in sorted(wrapped.named_modules()):
            if not hasattr(module, "lora_A") or not module.lora_A:
                continue
            found += 1
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            rank, scaling = a.shape[0], module.scaling["default"]
            gain = lora.strength / (abs(scaling) * math.sqrt(rank))
            a.data = exact(torch.randn(a.shape, generator=g) / math.sqrt(a.shape[1])).to(lora.dtype)
            b.data = exact(torch.randn(b.shape, generator=g) * gain).to(lora.dtype)
    assert found, f"adapter {lora.name} found no layer"
    wrapped.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    clean(folder / "adapter_config.json")


def clean(path: Path) -> None:
    """PEFT writes sets in hash order and the folder that the base model came from; neither may differ between runs."""
    settings = json.loads(path.read_text())
    settings["base_model_name_or_path"] = None
    if isinstance(settings["target_modules"], list):
        settings["target_modules"].sort()
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def load(base, folders: dict[str, Path]) -> PeftModel:
    """All adapters on one base, as PEFT reads them from their files."""
    (first, folder), *rest = folders.items()
    wrapped = PeftModel.from_pretrained(base, folder, adapter_name=first)
    for name, folder in rest:
        wrapped.load_adapter(folder, adapter_name=name)
    return wrapped.eval()


@contextmanager
def active(wrapped: PeftModel, adapters: list[tuple[str, float]]):
    """Inside, the named adapters act, each times its scale; their changes add up."""
    names = [name for name, _ in adapters]
    wrapped.base_model.set_adapter(names)
    scales = dict(adapters)
    if all(scale == 1.0 for scale in scales.values()):
        yield
    elif len(set(scales.values())) == 1:
        with rescale_adapter_scale(wrapped, scales[names[0]]):
            yield
    else:
        # PEFT's helper has one factor for all that are active; with one each, the same field is set by hand.
        changed = []
        for module in wrapped.modules():
            for name, scale in scales.items():
                if hasattr(module, "lora_A") and name in module.lora_A:
                    changed.append((module, name, module.scaling[name]))
                    module.scaling[name] *= scale
        try:
            yield
        finally:
            for module, name, scaling in changed:
                module.scaling[name] = scaling
