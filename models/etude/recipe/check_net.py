"""Holds the training forward equal to transformers' own: `python -m recipe.check_net MODEL`.

Three conversations packed into one row give the logits that each gives alone.
"""

import random
import sys
from pathlib import Path

import torch
from transformers import Qwen3_5ForConditionalGeneration

from . import batches, net, tokens, train

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    codec = tokens.Codec(folder / "tokenizer.json")
    model = Qwen3_5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    r, grid = random.Random(4), (3, 4)
    some = [batches.picture_sample(codec, r, grid), batches.chat_sample(codec, r), batches.picture_sample(codec, r, grid)]
    b = batches.Batch(codec, [some], sum(len(s.ids) for s in some) + 7, grid, r)
    with torch.no_grad():
        h, _ = train.forward(model, codec, b, {})
        ours = (h @ model.model.language_model.embed_tokens.weight.T)[0]
        at = pic = 0
        for s in some:
            ids = torch.tensor([s.ids])
            extra = {}
            if s.scene is not None:
                px = b.px[pic].reshape(-1, 3, 1, 256).repeat(1, 1, 2, 1).flatten(1)
                extra = dict(pixel_values=px, image_grid_thw=torch.tensor([[1, grid[0] * 2, grid[1] * 2]]), mm_token_type_ids=(ids == codec.image).int())
                pic += 1
            theirs = model(input_ids=ids, **extra).logits[0]
            worst = (ours[at : at + len(s.ids)] - theirs).abs().max().item()
            print(f"{len(s.ids)} tokens, greatest difference {worst:.1e} of {theirs.abs().max():.1f}")
            assert worst < 1e-3
            at += len(s.ids)
