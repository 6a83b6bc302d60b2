"""How many drafts of the MTP layer the trunk would accept: `python -m recipe.score_mtp MODEL`.

A draft is right when the layer's greedy token is the trunk's own next greedy token. Measured on the
answers of freshly generated conversations, with the hidden state from after and from before the final norm.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import Qwen3_5ForConditionalGeneration

from . import batches, net, tokens, train

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    codec = tokens.Codec(folder / "tokenizer.json")
    model = Qwen3_5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    mtp = net.Mtp(model.config.text_config)
    mtp.load_state_dict({k[4:]: v.float() for k, v in load_file(folder / "model.safetensors").items() if k.startswith("mtp.")})
    pk, cst = batches.Packer(codec, 987654, rows=8, mix=(0.6, 0.3, 0.1), sizes=(1, 0, 0, 0)), {}
    lm, right, n = model.model.language_model, [0, 0], 0
    with torch.no_grad():
        for _ in range(20):
            h, nxt, teacher, sel, cos, sin, past = train.mtp_inputs(model, codec, pk.next(), cst)
            for i, x in enumerate((h, h / (1 + lm.norm.weight))):
                best = F.linear(mtp(x, nxt, cos, sin, past)[sel], lm.embed_tokens.weight).argmax(-1)
                right[i] += int((best == teacher[sel]).sum())
            n += int(sel.sum())
    print(f"{n} drafts; accepted {right[0] / n:.3f} (hidden after the final norm), {right[1] / n:.3f} (before it)")
