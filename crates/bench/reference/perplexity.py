#!/usr/bin/env python3
"""The perplexities that crates/consort/tests/quality.rs holds the native engine against.

    python perplexity.py MODEL_DIR TEXT

transformers computes the logits in float32, one window at a time; everything after them is float64. The packages are pinned
in tools/python/requirements.txt. Prints one line for each way of cutting windows: nll, its standard error, tokens scored.
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer


def second_halves(n, context):
    """Disjoint windows; the predictions of the tokens from context / 2 + 1 on count, as in llama.cpp's perplexity."""
    for start in range(0, n - context + 1, context):
        yield start, start + context, start + context // 2 + 1


def strided(n, context, stride):
    """The loop of "Perplexity of fixed-length models" in transformers' documentation."""
    reached = 1
    for start in range(0, n, stride):
        end = min(start + context, n)
        yield start, end, reached
        reached = end
        if end == n:
            return


def main():
    folder, text = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
    ids = tokenizer(open(text, encoding="utf-8").read(), return_tensors="pt")["input_ids"][0]
    n = len(ids)
    for name, windows in [("second halves of 128", second_halves(n, 128)), ("128, stride 32", strided(n, 128, 32))]:
        scores = []
        for start, end, first in windows:
            with torch.no_grad():
                logits = model(input_ids=ids[None, start:end]).logits[0]
            log_p = torch.log_softmax(logits.double(), -1)
            for target in range(first, end):
                scores.append(-log_p[target - 1 - start, ids[target]].item())
        scores = torch.tensor(scores, dtype=torch.float64)
        error = (scores.std() / len(scores) ** 0.5).item()
        print(f"{name}: {n} tokens, nll {scores.mean().item():.9f} ± {error:.9f}, {len(scores)} scored")


if __name__ == "__main__":
    main()
