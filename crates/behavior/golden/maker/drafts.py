"""What the multi-token prediction layer drafts: of two tiny configurations, and of the study model on fresh conversations.

transformers reads no `mtp.*` tensors. The layer is put together here from its own classes: a decoder layer of the kind that full attention
layers are, its norm, and `fc` over the normed embedding of token t + 1 and the normed hidden state of token t (after the model's last
norm). The head makes of it the logits of token t + 2.
"""

import copy
import random
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import Qwen3_5ForConditionalGeneration
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe

from . import tiny, vocabulary
from .suite import load
from .writing import FORMAT, digest, made_by, readable, short, to_text

CONFIGURATIONS = ("untied", "moe")
LENGTH = 70
CONVERSATIONS = 120
SEED = 987654
# Of the study model's rows these many are kept whole; of the others the choice.
WHOLE = 4


class Mtp(torch.nn.Module):
    """The layer, from the tensors of a checkpoint."""

    def __init__(self, model, tensors: dict[str, torch.Tensor]):
        super().__init__()
        config = copy.deepcopy(model.config.text_config)
        experts = "Moe" in type(model).__name__
        family = modeling_qwen3_5_moe if experts else modeling_qwen3_5
        norm = family.Qwen3_5MoeRMSNorm if experts else family.Qwen3_5RMSNorm
        layer = family.Qwen3_5MoeDecoderLayer if experts else family.Qwen3_5DecoderLayer
        config.layer_types = [*config.layer_types, "full_attention"]
        config._attn_implementation = "eager"
        if experts:
            config._experts_implementation = "eager"
        hidden = config.hidden_size
        self.model = [model]  # not a part of this module
        self.fc = torch.nn.Linear(2 * hidden, hidden, bias=False)
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden, self.norm = (norm(hidden, config.rms_norm_eps) for _ in range(3))
        self.layers = torch.nn.ModuleList([layer(config, len(config.layer_types) - 1)])
        own = {name.removeprefix("mtp."): value.float() for name, value in tensors.items() if name.startswith("mtp.")}
        self.load_state_dict(own, strict=True)

    @torch.no_grad()
    def forward(self, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's logits [n, vocabulary], and the drafts' [n - 1, vocabulary]."""
        model = self.model[0]
        text = model.model.language_model
        ids = torch.tensor([tokens])
        n = len(tokens)
        positions = torch.arange(n).expand(3, 1, n)
        hidden = model.model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
        joined = torch.cat([self.pre_fc_norm_embedding(text.embed_tokens(ids[:, 1:])), self.pre_fc_norm_hidden(hidden[:, :-1])], -1)
        x = self.fc(joined)
        mask = torch.full((n - 1, n - 1), torch.finfo(torch.float32).min).triu(1)[None, None]
        angles = text.rotary_emb(x, positions[:, :, :-1])
        x = self.layers[0](x, position_embeddings=angles, attention_mask=mask, position_ids=positions[0, :, :-1])
        return model.lm_head(hidden)[0], model.lm_head(self.norm(x))[0]


def conversations(source: Path) -> list[tuple[list[int], list[int]]]:
    """Fresh conversations of the study model, without pictures: the tokens, and which of them are its answers'."""
    sys.path.insert(0, str(source))
    from recipe import batches, tokens

    codec, r = tokens.Codec(source / "tokenizer.json"), random.Random(SEED)
    made = []
    while len(made) < CONVERSATIONS:
        sample = batches.chat_sample(codec, r)
        if len(sample.ids) <= 256:
            made.append((sample.ids, [i for i, own in enumerate(sample.target) if own]))
    return made


def write(goldens: Path, etude: Path, folder: Path) -> None:
    """Writes drafts.json and drafts.safetensors into `folder`; the configurations lie in `goldens`, the study model in `etude`."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"format": FORMAT, "made_by": made_by(SEED), "models": {}}
    kept = {}
    for name in CONFIGURATIONS:
        shape = next(shape for shape in tiny.CONFIGURATIONS if shape.name == name)
        path = goldens / name / "model.safetensors"
        mtp = Mtp(load(goldens / name, tiny.model_class(shape)), load_file(path))
        g = torch.Generator().manual_seed(shape.seed)
        tokens = torch.randint(0, vocabulary.FIRST_SPECIAL, (LENGTH,), generator=g).tolist()
        _, drafts = mtp(tokens)
        assert torch.isfinite(drafts).all() and drafts.std() > 0.5, drafts.std()
        kept[f"{name}.drafts"] = drafts
        data["models"][name] = {"sha256": digest(path), "tokens": tokens, "drafts": f"{name}.drafts"}
        print(name, short(drafts.std().item()), flush=True)

    path = etude / "model.safetensors"
    mtp = Mtp(load(etude, Qwen3_5ForConditionalGeneration), load_file(path))
    texts, right, counted = [], 0, 0
    for i, (tokens, own) in enumerate(conversations(etude)):
        logits, drafts = mtp(tokens)
        teacher, chosen = logits.argmax(-1).tolist(), drafts.argmax(-1).tolist()
        # A draft of token t + 2 counts where that is one of the answer's own.
        places = [t for t in range(len(tokens) - 2) if t + 2 in set(own)]
        text = {"tokens": tokens, "counted": places, "model": [teacher[t + 1] for t in places], "drafts": [chosen[t] for t in places]}
        # Where two drafts are nearly as good, an engine may choose the other.
        best = drafts.topk(2, dim=-1).values
        text["clear"] = [int(best[t, 0] - best[t, 1] > 1e-2) for t in places]
        if i < WHOLE:
            kept[f"etude.{i}"] = drafts[places[-8:]]
            text["rows"] = {"at": places[-8:], "tensor": f"etude.{i}"}
        texts.append(text)
        right += sum(a == b for a, b in zip(text["model"], text["drafts"]))
        counted += len(places)
    print(f"etude: {right} of {counted} drafts accepted: {right / counted:.4f}", flush=True)
    data["models"]["etude"] = {"sha256": digest(path), "accepted": right, "of": counted, "texts": texts}
    save_file({name: value.contiguous().clone() for name, value in kept.items()}, folder / "drafts.safetensors")
    (folder / "drafts.json").write_text(to_text(data))
    readable(folder)
