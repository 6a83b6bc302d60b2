"""Writes the golden cases of consort-vision from transformers, the reference implementation.

    python make_vision_cases.py [--check]

Needs torch, torchvision, transformers and Pillow in the versions that `vision_cases.json` names. It writes, beside itself,
`images/*` (small files of every format), `vision_cases.json` (what the processor made of each case, in figures) and
`vision_cases.bin` (sampled values). Everything is seeded; `--check` writes nothing and says whether the files agree.

Larger images are not stored: `synthesise` and `tests/golden.rs` draw them by the same integer formulas.
"""

import argparse
import io
import json
import math
import pathlib
import random
import struct
import sys
import tempfile
import types
import zlib

import numpy as np
import PIL
import torch
import torchvision
import transformers
from PIL import Image, ImageOps
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5Model

HERE = pathlib.Path(__file__).resolve().parent
LEVEL_SAMPLES = 1500
VALUE_SAMPLES = 64

CONFIGS = {
    # What the published models of the family carry.
    "family": dict(patch_size=16, temporal_patch_size=2, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
                   size={"shortest_edge": 65536, "longest_edge": 16777216}),
    # A small model's: tiny images stay tiny, large ones shrink much.
    "small": dict(patch_size=16, temporal_patch_size=2, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
                  size={"shortest_edge": 1024, "longest_edge": 65536}),
    # Other patches, uneven means, as earlier families have.
    "clip": dict(patch_size=14, temporal_patch_size=2, merge_size=2,
                 image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711],
                 size={"shortest_edge": 3136, "longest_edge": 1003520}),
    "unmerged": dict(patch_size=8, temporal_patch_size=1, merge_size=1, image_mean=[0.1, 0.2, 0.3],
                     image_std=[0.9, 0.8, 0.7], size={"shortest_edge": 64, "longest_edge": 20000}),
}


def mix(x, y, c):
    """A 32-bit integer hash of a pixel's column, row and channel."""
    with np.errstate(over="ignore"):
        v = (np.uint32(x) * np.uint32(374761393)) + (np.uint32(y) * np.uint32(668265263))
        v = v + np.uint32(c) * np.uint32(2246822519)
        v = (v ^ (v >> np.uint32(13))) * np.uint32(1274126177)
        return v ^ (v >> np.uint32(16))


def synthesise(kind, width, height):
    """[height, width, 3] bytes by a formula that tests/golden.rs repeats."""
    y, x = np.mgrid[0:height, 0:width].astype(np.uint32)
    channels = []
    for c in range(3):
        if kind == "gradient":
            v = [x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), ((x + y) * 3) & 255][c]
        elif kind == "noise":
            v = mix(x, y, c) & 255
        elif kind == "text":
            ink = ((x % 12 < 9) & (y % 20 < 13) & ((mix(x // 2, y // 2, 7) & 3) != 0))
            v = np.where(ink, 16 * c, 250 - c)
        elif kind == "discs":
            cell = mix(x // 40, y // 40, c) & 255
            dx, dy = (x % 40).astype(np.int64) - 20, (y % 40).astype(np.int64) - 20
            v = np.where(dx * dx + dy * dy < 250, cell, 200)
        else:
            raise ValueError(kind)
        channels.append(v.astype(np.uint8))
    return np.stack(channels, -1)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(array, color_type, extra=b""):
    """A PNG of 16 bits a sample, which Pillow cannot write in colour."""
    height, width, _ = array.shape
    rows = b"".join(b"\0" + array[r].astype(">u2").tobytes() for r in range(height))
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows, 9))
            + chunk(b"IEND", b""))


def files():
    """Name -> bytes of every stored image."""
    out = {}

    def save(name, image, **options):
        buffer = io.BytesIO()
        image.save(buffer, {"jpg": "JPEG"}.get(name.split(".")[-1], name.split(".")[-1].upper()), **options)
        out[name] = buffer.getvalue()

    def photo(w, h):
        smooth = synthesise("gradient", w, h).astype(int) * 3 + synthesise("discs", w, h)
        return Image.fromarray((smooth // 4 + (synthesise("noise", w, h) >> 5)).clip(0, 255).astype(np.uint8))

    rgb = photo(101, 67)
    flat = Image.fromarray(synthesise("discs", 90, 70))
    alpha = Image.fromarray(synthesise("gradient", 101, 67)[..., 0])
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    save("rgb.png", flat)
    save("grey.png", flat.convert("L"))
    save("bilevel.png", flat.convert("1"))
    save("palette.png", flat.quantize(16))
    save("palette_transparent.png", flat.quantize(16), transparency=3)
    save("palette_alpha.png", flat.quantize(8), transparency=bytes([255, 0, 17, 128, 250, 99, 3, 77]))
    save("rgb_key.png", flat, transparency=flat.getpixel((1, 1)))
    save("grey_key.png", flat.convert("L"), transparency=flat.convert("L").getpixel((1, 1)))
    save("grey_alpha.png", rgba.convert("LA"))
    save("rgba.png", rgba)
    wide = synthesise("noise", 40, 30).astype(np.uint16) * 251 + 77
    out["rgb16.png"] = png16(wide, 2)
    out["rgba16.png"] = png16(np.concatenate([wide, wide[..., :1] // 2], -1), 6)
    out["grey_alpha16.png"] = png16(wide[..., :2], 4)
    save("sampling420.jpg", rgb, quality=85, subsampling=2)
    save("sampling422.jpg", rgb, quality=70, subsampling=1)
    save("sampling444.jpg", rgb, quality=95, subsampling=0)
    save("progressive.jpg", rgb, quality=80, subsampling=2, progressive=True)
    save("restart.jpg", rgb, quality=60, restart_marker_blocks=3)
    save("grey.jpg", rgb.convert("L"), quality=85)
    save("cmyk.jpg", photo(24, 16).convert("CMYK"), quality=85)
    small = photo(45, 26)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(f"exif{orientation}.jpg", small, quality=80, exif=exif)
    exif = Image.Exif()
    exif[0x0112] = 6
    save("exif6.png", small.quantize(32), exif=exif)
    save("exif6.webp", small, quality=70, exif=exif)
    save("lossy.webp", rgb, quality=75)
    save("lossless.webp", flat, lossless=True)
    save("alpha.webp", rgba, quality=70)
    save("animated.webp", flat, save_all=True, append_images=[small.resize(flat.size)], duration=50, quality=60)
    save("palette.gif", flat.quantize(32))
    save("transparent.gif", flat.quantize(8), transparency=2)
    save("animated.gif", flat.quantize(16), save_all=True, append_images=[small.resize(flat.size).quantize(16)])
    save("grey.gif", flat.convert("L"))
    return out


def processor(config):
    """What AutoImageProcessor makes of a published preprocessor_config.json of the family."""
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps({"image_processor_type": "Qwen2VLImageProcessorFast", **config})
        (pathlib.Path(folder) / "preprocessor_config.json").write_text(text)
        made = AutoImageProcessor.from_pretrained(folder)
    assert type(made).__name__ == "Qwen2VLImageProcessor" and made.backend == "torchvision", made
    return made


def splitmix(state):
    """The 64-bit generator that tests/golden.rs repeats to choose samples (Steele, Lea, Flood 2014)."""
    mask = (1 << 64) - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return state, z ^ (z >> 31)


def samples(seed, count, bound):
    state, out = seed, []
    for _ in range(count):
        state, value = splitmix(state)
        out.append(value % bound)
    return out


def checksum(levels):
    """Sum of level * (index * odd + 1), modulo 2^64: any single difference changes it."""
    index = np.arange(levels.size, dtype=np.uint64)
    with np.errstate(over="ignore"):
        weights = index * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)
        return int((levels.astype(np.uint64) * weights).sum(dtype=np.uint64))


def image_cases(folder, blob):
    drawn = [
        ("gradient", 640, 480, "family"), ("noise", 640, 480, "family"), ("text", 800, 600, "family"),
        ("discs", 333, 777, "family"), ("noise", 1, 1, "family"), ("gradient", 3, 2, "family"),
        ("noise", 2000, 10, "family"), ("noise", 17, 3000, "family"), ("noise", 256, 256, "family"),
        ("noise", 255, 257, "family"), ("text", 1923, 1081, "family"), ("gradient", 5, 999, "family"),
        ("gradient", 3001, 2003, "small"), ("noise", 1600, 1200, "small"), ("text", 801, 601, "small"),
        ("discs", 31, 33, "small"), ("noise", 80, 48, "small"), ("noise", 16, 16, "small"), ("noise", 32, 64, "small"),
        ("noise", 4000, 20, "small"), ("text", 1024, 768, "clip"), ("noise", 448, 448, "clip"),
        ("discs", 1500, 1001, "clip"), ("gradient", 57, 43, "clip"), ("discs", 203, 99, "unmerged"),
        ("noise", 9, 7, "unmerged"),
    ]
    cases = []
    for kind, width, height, config in drawn:
        source = {"kind": kind, "width": width, "height": height}
        cases.append((f"{kind} {width}x{height} {config}", source, config, Image.fromarray(synthesise(kind, width, height))))
    for name in sorted(path.name for path in folder.iterdir()):
        if name == "cmyk.jpg":
            continue
        # As `load_image` opens a file, but without its convert("RGB"): the processor itself lays transparency on white.
        upright = ImageOps.exif_transpose(Image.open(folder / name))
        cases.append((name, {"file": name}, "small", upright))
    processors = {name: processor(config) for name, config in CONFIGS.items()}
    out = []
    for seed, (name, source, config, image) in enumerate(cases):
        settings = CONFIGS[config]
        made = processors[config](images=image, return_tensors="np")
        values = np.ascontiguousarray(made["pixel_values"], dtype=np.float32).reshape(-1)
        channel_len = settings["temporal_patch_size"] * settings["patch_size"] ** 2
        channel = (np.arange(values.size) // channel_len) % 3
        mean, std = (np.array(settings[key])[channel] for key in ("image_mean", "image_std"))
        exact = (values.astype(np.float64) * std + mean) * 255
        levels = np.rint(exact)
        assert np.abs(exact - levels).max() < 1e-3 and levels.min() >= 0 and levels.max() <= 255, name
        levels = levels.astype(np.uint8)
        at = len(blob)
        blob += levels[samples(2 * seed, LEVEL_SAMPLES, levels.size)].tobytes()
        blob += values[samples(2 * seed + 1, VALUE_SAMPLES, values.size)].astype("<f4").tobytes()
        out.append({"name": name, "source": source, "config": config, "seed": seed, "offset": at,
                    "grid": made["image_grid_thw"].reshape(-1).tolist(), "values": values.size,
                    "checksum": str(checksum(levels))})
    return out


def size_cases():
    rng = random.Random(20261122)
    out = []
    for name, config in CONFIGS.items():
        for _ in range(150):
            height = max(1, int(math.exp(rng.uniform(0, math.log(9000)))))
            width = max(1, int(height * math.exp(rng.uniform(-5.29, 5.29)))) if rng.random() < 0.5 else rng.randint(1, 5000)
            if max(height, width) / min(height, width) > 200 or height * width > 200_000_000:
                continue
            resized = smart_resize(height, width, config["patch_size"] * config["merge_size"],
                                   config["size"]["shortest_edge"], config["size"]["longest_edge"])
            out.append([name, width, height, resized[1], resized[0]])
        # Half-way cases: Python rounds to even.
        for k in range(1, 12):
            f = config["patch_size"] * config["merge_size"]
            side = max(1, f * k // 2)
            resized = smart_resize(side, 3 * side, f, config["size"]["shortest_edge"], config["size"]["longest_edge"])
            out.append([name, 3 * side, side, resized[1], resized[0]])
    return out


def position_cases():
    """Text is a number of tokens; an image is its [rows, columns] of patches."""
    out = []
    for merge, segments in [
        (2, [1]), (2, [17]), (2, [5, [4, 4]]), (2, [3, [4, 6], 8]), (2, [3, [2, 2], 1]), (2, [2, [2, 40], 3]),
        (2, [2, [12, 4], 3]), (2, [4, [6, 8], 2, [8, 6], 7]), (2, [1, [2, 2], 2, [4, 2], 2, [2, 10], 2, [6, 6], 30]),
        (2, [[4, 4], 3]), (1, [2, [3, 5], 4]), (4, [2, [8, 12], 4]),
    ]:
        types_, grids = [], []
        for segment in segments:
            if isinstance(segment, int):
                types_ += [0] * segment
            else:
                grids.append([1, *segment])
                types_ += [1] * (segment[0] // merge * (segment[1] // merge))
        stub = types.SimpleNamespace(config=types.SimpleNamespace(
            vision_config=types.SimpleNamespace(spatial_merge_size=merge)))
        stub.get_vision_position_ids = types.MethodType(Qwen3_5Model.get_vision_position_ids, stub)
        kinds = torch.tensor([types_], dtype=torch.int32)
        positions, delta = Qwen3_5Model.get_rope_index(
            stub, torch.zeros_like(kinds, dtype=torch.long), kinds,
            image_grid_thw=torch.tensor(grids) if grids else None)
        out.append({"merge": merge, "segments": segments, "positions": positions[:, 0].tolist(),
                    "next": int(delta[0, 0]) + len(types_)})
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the stored files instead of writing them")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) if check else HERE / "images"
        folder.mkdir(exist_ok=True)
        stored = files()
        for name, data in stored.items():
            (folder / name).write_bytes(data)
        blob = bytearray()
        cases = {
            "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__,
                         "transformers": transformers.__version__, "pillow": PIL.__version__},
            "level_samples": LEVEL_SAMPLES, "value_samples": VALUE_SAMPLES, "configs": CONFIGS,
            "images": image_cases(folder, blob), "sizes": size_cases(), "positions": position_cases(),
        }
    lines = []
    for key, value in cases.items():
        if isinstance(value, list):
            rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in value)
            lines.append(f"{json.dumps(key)}: [\n{rows}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    if check:
        same = (text == (HERE / "vision_cases.json").read_text() and bytes(blob) == (HERE / "vision_cases.bin").read_bytes()
                and all((HERE / "images" / name).read_bytes() == data for name, data in stored.items()))
        print("the stored cases agree" if same else "the stored cases DIFFER")
        sys.exit(0 if same else 1)
    (HERE / "vision_cases.json").write_text(text)
    (HERE / "vision_cases.bin").write_bytes(bytes(blob))
    print(f"{len(cases['images'])} images, {len(cases['sizes'])} sizes, {len(cases['positions'])} position cases")


if __name__ == "__main__":
    main()
