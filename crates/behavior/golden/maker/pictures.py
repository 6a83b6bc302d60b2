"""The pictures and patches that every tiny configuration with a vision tower is asked about."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor

PATCH = 16
CHANNELS = 3
FRAMES = 2
MERGE = 2

# name -> (rows, columns) of patches. Two pictures of one grid let a test swap them without changing anything else.
PICTURES = {"square": (4, 4), "other": (4, 4), "wide": (4, 6), "strip": (2, 8)}
# Patches that no still picture gives: the two temporal frames differ, so a tower that mixes up or drops one of the
# two slices of its patch embedding is caught.
FRAMES_DIFFER = "noise"

PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "merge_size": MERGE,
    "patch_size": PATCH,
    "resample": 3,
    "rescale_factor": 1.0 / 255.0,
    "size": {"shortest_edge": 1024, "longest_edge": 65536},
    "temporal_patch_size": FRAMES,
}


@dataclass
class Picture:
    """One picture as the vision tower gets it."""

    name: str
    grid: list[int]  # frames, rows, columns of patches
    patches: torch.Tensor  # f32 [rows * columns, channels * frames * 16 * 16]

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2] // MERGE**2


def dequantize(bytes_: torch.Tensor) -> torch.Tensor:
    """u8 [patches, channels, frames or 1, 16, 16] -> f32 [patches, channels * 2 * 16 * 16], by x / 127.5 - 1."""
    values = bytes_.to(torch.float32) / 127.5 - 1.0
    return values.expand(-1, -1, FRAMES, -1, -1).reshape(bytes_.shape[0], -1).contiguous()


def quantize(patches: torch.Tensor) -> torch.Tensor:
    """The inverse of `dequantize`; the values must be those of 8-bit pixels. One frame is kept where both are equal."""
    values = (patches + 1.0) * 127.5
    bytes_ = values.round().clamp(0, 255).to(torch.uint8).view(-1, CHANNELS, FRAMES, PATCH, PATCH)
    if torch.equal(bytes_[:, :, 0], bytes_[:, :, 1]):
        bytes_ = bytes_[:, :, :1]
    error = (dequantize(bytes_) - patches).abs().max().item()
    assert error < 2e-6, f"the patches are not those of 8-bit pixels: {error}"
    return bytes_.contiguous()


def draw(rows: int, columns: int, seed: int) -> Image.Image:
    """A picture of random 8-pixel blocks with a diagonal ramp: every patch differs, and the file stays small."""
    rng = np.random.default_rng(seed)
    height, width = rows * PATCH, columns * PATCH
    blocks = rng.integers(0, 8, (height // 8, width // 8, 3)) * 32
    pixels = np.repeat(np.repeat(blocks, 8, axis=0), 8, axis=1)
    ramp = (np.arange(height)[:, None] // 4 + np.arange(width)[None, :] // 4) % 32
    return Image.fromarray((pixels + ramp[:, :, None]).astype(np.uint8))


def save(folder: Path) -> dict[str, Picture]:
    """Writes the pictures, their patches and the processor's settings; returns what the tower gets."""
    folder.mkdir(parents=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    processor = AutoImageProcessor.from_pretrained(folder)
    pictures, stored, listed = {}, {}, {}
    for index, (name, (rows, columns)) in enumerate(PICTURES.items()):
        path = folder / f"{name}.png"
        draw(rows, columns, 700 + index).save(path, optimize=True)
        out = processor(images=[Image.open(path)], return_tensors="pt")
        grid = out["image_grid_thw"][0].tolist()
        assert grid == [1, rows, columns], (name, grid)
        stored[name] = quantize(out["pixel_values"])
        pictures[name] = Picture(name, grid, dequantize(stored[name]))
        listed[name] = {"file": path.name, "grid": grid, "tokens": pictures[name].tokens}
    rng = np.random.default_rng(799)
    noise = torch.from_numpy(rng.integers(0, 256, (16, CHANNELS, FRAMES, PATCH, PATCH)).astype(np.uint8))
    stored[FRAMES_DIFFER] = noise
    pictures[FRAMES_DIFFER] = Picture(FRAMES_DIFFER, [1, 4, 4], dequantize(noise))
    listed[FRAMES_DIFFER] = {"file": None, "grid": [1, 4, 4], "tokens": 4}
    save_file(stored, folder / "patches.safetensors")
    (folder / "images.json").write_text(json.dumps(listed, indent=1) + "\n")
    return pictures
