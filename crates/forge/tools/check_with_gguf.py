"""Reads a conversion back with the format's own Python package and compares it with the checkpoint.

    pip install gguf==0.19.0
    cargo run -p consort-forge --example convert -- MODEL_DIR OUT_DIR F32
    python crates/forge/tools/check_with_gguf.py MODEL_DIR OUT_DIR/NAME-F32.gguf [OUT_DIR/mmproj-NAME-F32.gguf]

Independent of our reader, our table of names and our order of heads: names come from the package's own tensor map, numbers
from its own dequantizers. Any type of output works; for Q8_0 the package quantizes what we should have written.
"""

import json
import re
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize, quantize


def checkpoint(directory: Path) -> dict[str, np.ndarray]:
    tensors = {}
    for path in sorted(directory.glob("model*.safetensors")):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        for name, info in json.loads(data[8 : 8 + length]).items():
            if name == "__metadata__":
                continue
            raw = data[8 + length + info["data_offsets"][0] : 8 + length + info["data_offsets"][1]]
            if info["dtype"] == "BF16":
                numbers = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                numbers = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[info["dtype"]]).astype(np.float32)
            tensors[name] = numbers.reshape(info["shape"])
    return tensors


def expected(directory: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    config = json.loads((directory / "config.json").read_text())
    text = config.get("text_config", config)
    layers = text["num_hidden_layers"]
    # Release 0.19 of the package has these names, but does not yet list them for this architecture.
    for tensor in ("NEXTN_EH_PROJ", "NEXTN_ENORM", "NEXTN_HNORM", "NEXTN_SHARED_HEAD_NORM"):
        gguf.MODEL_TENSORS[gguf.MODEL_ARCH.QWEN35].append(gguf.MODEL_TENSOR[tensor])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN35, layers + 1)
    vision_names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 64)
    hk, hv = text["linear_num_key_heads"], text["linear_num_value_heads"]
    dk, dv = text["linear_key_head_dim"], text["linear_value_head_dim"]

    def tiled(x: np.ndarray, axis: int, dim: int) -> np.ndarray:
        heads = np.arange(hv).reshape(hk, hv // hk).T.reshape(-1)
        index = (heads[:, None] * dim + np.arange(dim)[None, :]).reshape(-1)
        return np.take(x, index, axis=axis)

    out, vision = {}, {}
    nextn = {"fc": "eh_proj", "pre_fc_norm_embedding": "enorm", "pre_fc_norm_hidden": "hnorm", "norm": "shared_head.norm"}
    for name, x in checkpoint(directory).items():
        name = name.removeprefix("model.")
        if name.startswith("visual."):
            if name == "visual.patch_embed.proj.weight":
                vision["v.patch_embd.weight"], vision["v.patch_embd.weight.1"] = x[:, :, 0], x[:, :, 1]
                continue
            name = name.replace("merger.linear_fc1", "merger.mlp.0").replace("merger.linear_fc2", "merger.mlp.2")
            name = name.replace("visual.merger.norm", "visual.merger.ln_q")
            vision[vision_names.get_name(name, try_suffixes=(".weight", ".bias"))] = x
            continue
        name = "model." + name.removeprefix("language_model.") if name != "lm_head.weight" else name
        if match := re.fullmatch(r"model\.mtp\.layers\.0\.(.*)", name):
            name = f"model.layers.{layers}.{match[1]}"
        elif match := re.fullmatch(r"model\.mtp\.(\w+)\.weight", name):
            name = f"model.layers.{layers}.{nextn[match[1]]}.weight"
        keys = 2 * hk * dk
        if "in_proj_qkv" in name or "conv1d" in name:
            x = x.reshape(x.shape[0], -1)
            x = np.concatenate([x[:keys], tiled(x[keys:], 0, dv)])
        elif "in_proj_z" in name:
            x = tiled(x, 0, dv)
        elif "in_proj_a" in name or "in_proj_b" in name or name.endswith(("A_log", "dt_bias")):
            x = tiled(x, 0, 1)
        elif "linear_attn.out_proj" in name:
            x = tiled(x, 1, dv)
        elif name.endswith("norm.weight") and "linear_attn" not in name:
            x = x + np.float32(1)
        if name.endswith("A_log"):
            x = -np.exp(x)
        name = name.replace("dt_bias", "dt_proj.bias")
        out[names.get_name(name, try_suffixes=(".weight", ".bias"))] = x
    if text.get("tie_word_embeddings"):
        out.pop("output.weight", None)
    return out, vision


def compare(path: Path, expected: dict[str, np.ndarray]) -> None:
    reader = gguf.GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert set(found) == set(expected), (set(found) ^ set(expected))
    for name, tensor in found.items():
        x = expected[name]
        # The reader gives a tensor's shape as the file has it, the contiguous dimension first.
        assert list(tensor.shape) == list(reversed(x.shape)), (name, tensor.shape, x.shape)
        ours = dequantize(tensor.data, tensor.tensor_type).reshape(x.shape)
        theirs = dequantize(quantize(np.ascontiguousarray(x), tensor.tensor_type), tensor.tensor_type).reshape(x.shape)
        # The two libraries' exponentials may differ in the last bit.
        limit = 2e-7 * np.abs(theirs).max() if name.endswith("ssm_a") else 0
        assert np.abs(ours - theirs).max() <= limit, (name, np.abs(ours - theirs).max())
    kinds = {}
    for tensor in found.values():
        kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + 1
    print(f"{path.name}: {len(found)} tensors equal, {kinds}")
    for key, field in reader.fields.items():
        value = field.contents()
        print(f"  {key} = {value if not isinstance(value, (str, list)) or len(value) < 24 else f'{len(value)} long'}")


if __name__ == "__main__":
    text, vision = expected(Path(sys.argv[1]))
    compare(Path(sys.argv[2]), text)
    if len(sys.argv) > 3:
        compare(Path(sys.argv[3]), vision)
