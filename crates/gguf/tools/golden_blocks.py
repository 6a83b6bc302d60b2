"""Writes tests/data/blocks.bin: random blocks of every supported layout and what the `gguf` package makes of them.

    pip install gguf==0.19.0 && python crates/gguf/tools/golden_blocks.py

One record a layout: id (u32), bytes (u32), numbers (u32), the blocks, the numbers as f32; little endian. Then, under the
id 1000, f32 numbers and the Q8_0 blocks that they quantize to (here `bytes` counts the blocks' bytes), and under 1000 + id
the same for the other types that the package can write. Seeded.
"""

import struct
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

BLOCKS = 3
# Where a block keeps its f16 scales: random bits there would be NaN or huge.
SCALES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.Q8_K: [], T.IQ4_NL: [0], T.IQ4_XS: [0], T.F16: [0], T.BF16: [],
    T.F32: [],
}


def main() -> None:
    rng = np.random.default_rng(20261122)
    out = bytearray()
    for kind, places in SCALES.items():
        length, size = gguf.GGML_QUANT_SIZES[kind]
        count = BLOCKS if length > 1 else 64
        blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
        for place in places:
            scale = rng.normal(0, 0.05, (count, 1)).astype(np.float16)
            blocks[:, place : place + 2] = scale.view(np.uint8)
        if kind in (T.F32, T.BF16):
            numbers = rng.normal(0, 1, (1, count)).astype(np.float32)
            blocks = quantize(numbers, kind).view(np.uint8).reshape(count, size)
        if kind is T.Q8_K:  # The package has no reader for it; the layout is an f32 scale and 256 signed bytes.
            scale = rng.normal(0, 0.05, (count, 1)).astype(np.float32)
            blocks[:, :4] = scale.view(np.uint8)
            expected = scale * blocks[:, 4:260].view(np.int8).astype(np.float32)
        else:
            expected = dequantize(blocks.reshape(1, -1).copy(), kind)
        expected = np.ascontiguousarray(expected, dtype="<f4").reshape(-1)
        assert np.isfinite(expected).all(), kind
        out += struct.pack("<III", int(kind), blocks.size, expected.size) + blocks.tobytes() + expected.tobytes()

    numbers = rng.normal(0, 1, (8, 32)).astype(np.float32)
    numbers[0] = 0
    numbers[1] *= 1e-6
    numbers[2] = np.arange(32) / 2 - 8  # Ties.
    numbers[3] *= 1e4
    quantized = quantize(numbers, T.Q8_0)
    out += struct.pack("<III", 1000, quantized.size, numbers.size) + quantized.tobytes() + numbers.tobytes()
    for kind in (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1):
        quantized = quantize(numbers, kind)
        out += struct.pack("<III", 1000 + int(kind), quantized.size, numbers.size) + quantized.tobytes() + numbers.tobytes()

    path = Path(__file__).parent.parent / "tests" / "data" / "blocks.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)
    print(f"{path}: {len(out)} bytes")


if __name__ == "__main__":
    main()
