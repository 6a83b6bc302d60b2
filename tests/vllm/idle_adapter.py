"""Writes an adapter that changes nothing: the shapes of one that there is, and zeros.

Where a batch holds requests with adapters and others without, vLLM 0.32 on a processor computes those without with whatever
adapter is in its last slot (its index of "none" is -1, and counts from the end there). With this one kept in that slot, nothing
comes of it.
"""
import shutil
import sys
from pathlib import Path

from safetensors.numpy import load_file, save_file


def main(model: Path, out: Path) -> None:
    out.mkdir(parents=True)
    shutil.copy(model / "adapter_config.json", out)
    zeros = {name: tensor * 0 for name, tensor in load_file(model / "adapter_model.safetensors").items()}
    save_file(zeros, out / "adapter_model.safetensors")


main(Path(sys.argv[1]), Path(sys.argv[2]))
