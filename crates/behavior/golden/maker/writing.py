"""How golden.json and golden.safetensors are laid out and written, the same bytes each time."""

import hashlib
import json
import platform
import re
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

FORMAT = 1


def made_by(seed: int | None) -> dict:
    """What the numbers came from."""
    return {
        "script": "crates/behavior/golden/make_goldens.py",
        "seed": seed,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "dtype": "float32",
        "attention": "eager",
    }


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def short(value: float) -> float:
    """Six significant digits: enough for a gap or a sensitivity."""
    return float(f"{value:.6g}")


def to_text(data) -> str:
    """Indented JSON with every list of numbers on one line."""
    text = json.dumps(data, indent=1)
    return re.sub(r"\[[\s\d.,eE+-]+\]", lambda m: re.sub(r"\s+", "", m.group(0)).replace(",", ", "), text) + "\n"


def readable(folder: Path) -> None:
    """safetensors writes files that only their owner may read."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


class Golden:
    """The two files of one configuration, while they grow."""

    def __init__(self, head: dict):
        self.data = {"format": FORMAT, **head, "images": {}, "adapters": {}, "cases": []}
        self.tensors: dict[str, torch.Tensor] = {}

    def tensor(self, name: str, value: torch.Tensor) -> str:
        assert name not in self.tensors, name
        assert torch.isfinite(value).all() if value.is_floating_point() else True, name
        self.tensors[name] = value.contiguous().clone()
        return name

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, folder / "golden.safetensors")
        (folder / "golden.json").write_text(to_text(self.data))
