"""Writes processors.json: what transformers' logits processors make of a few rows of logits.

The tests of this crate read the file and need no Python. To write it anew, in an environment of
tools/python/requirements.txt:

    python crates/sampling/golden/make_goldens.py
"""

import json
import pathlib

import torch
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

# In the order of our chain, which is llama.cpp's.
PROCESSORS = {
    "repetition": RepetitionPenaltyLogitsProcessor,
    "top_k": TopKLogitsWarper,
    "typical_p": TypicalLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "temperature": TemperatureLogitsWarper,
}

SETTINGS = [
    {"repetition": 1.3},
    {"repetition": 0.7},
    {"top_k": 5},
    {"top_p": 0.6},
    {"top_p": 0.9},
    {"min_p": 0.1},
    {"typical_p": 0.3},
    {"typical_p": 0.8},
    {"temperature": 0.6},
    {"repetition": 1.2, "top_k": 12, "typical_p": 0.9, "top_p": 0.8, "min_p": 0.05, "temperature": 0.8},
    {"repetition": 1.5, "top_k": 20, "top_p": 0.95, "temperature": 1.4},
]


def main() -> None:
    generator = torch.Generator().manual_seed(7)
    cases = []
    for settings in SETTINGS:
        for size, spread in ((24, 1.5), (300, 3.0)):
            row = (torch.randn(1, size, generator=generator) * spread).float()
            prompt = torch.randint(0, size, (1, 12), generator=generator)
            chain = LogitsProcessorList(PROCESSORS[name](settings[name]) for name in PROCESSORS if name in settings)
            scores = chain(prompt, row.clone())
            probabilities = torch.softmax(scores.double(), dim=-1)[0]
            cases.append(
                {
                    "settings": settings,
                    "prompt": prompt[0].tolist(),
                    "row": [round(value, 6) for value in row[0].tolist()],
                    "probabilities": {
                        str(token): round(value, 9) for token, value in enumerate(probabilities.tolist()) if value > 0
                    },
                }
            )
    out = pathlib.Path(__file__).with_name("processors.json")
    out.write_text(json.dumps({"cases": cases}, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
