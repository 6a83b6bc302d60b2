"""Runs transformers, in float32 on the CPU, and holds it against itself.

Every case is computed four ways that must agree: one pass over the whole text (the chunked delta rule), the same with
the recurrent delta rule, `generate` with a cache, and one pass over prompt and continuation together.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe

from .pictures import Picture

# How far two correct float32 computations of one logit may be apart here, in logits of unit scale.
AGREE = 1e-4
# How much a router must prefer the last expert that it chooses to the first that it does not, in its scores: what rounding
# decides, no engine can be held to.
DECIDED = 1e-5
# A continuation ends before the first step whose two best logits are nearer than this, so that every token that is
# listed must be met by whoever keeps the suite's tolerance.
CLEAR = 1e-2


@dataclass
class Prompt:
    """Token ids with every image's places already expanded, the images in order, and all positions."""

    tokens: list[int]
    images: list[Picture]

    def arguments(self, image_token: int | None) -> dict:
        ids = torch.tensor([self.tokens])
        given = {"input_ids": ids}
        if self.images:
            given["pixel_values"] = torch.cat([image.patches for image in self.images])
            given["image_grid_thw"] = torch.tensor([image.grid for image in self.images])
            given["mm_token_type_ids"] = (ids == image_token).int()
        return given


@dataclass
class Greedy:
    """A greedy continuation: its tokens, each step's distance between the two best logits, the last step's logits."""

    tokens: list[int]
    gaps: list[float]
    last: torch.Tensor


@contextmanager
def recurrent_rule():
    """Inside, whole texts go through the token-by-token delta rule."""
    families = (modeling_qwen3_5, modeling_qwen3_5_moe)
    chunked = [family.torch_chunk_gated_delta_rule for family in families]
    for family in families:
        family.torch_chunk_gated_delta_rule = family.torch_recurrent_gated_delta_rule
    try:
        yield
    finally:
        for family, rule in zip(families, chunked):
            family.torch_chunk_gated_delta_rule = rule


class Reference:
    """One model, perhaps wrapped by PEFT, asked for numbers."""

    def __init__(self, model, image_token: int | None):
        self.model = model.eval()
        self.image_token = image_token
        self.noise = 0.0  # the largest disagreement met between two ways of computing one logit
        self.last_margin = float("inf")
        self.margin = None  # of a mixture of experts: the narrowest choice met in a case
        for module in self.model.modules():
            if isinstance(module, modeling_qwen3_5_moe.Qwen3_5MoeTopKRouter):
                module.register_forward_hook(self.routed)

    def routed(self, router, _, out) -> None:
        """Remembers how clear the router's choices were."""
        best = out[0].topk(router.top_k + 1, dim=-1).values
        gap = (best[:, -2] - best[:, -1]).min().item()
        self.last_margin = min(self.last_margin, gap)

    def positions(self, prompt: Prompt) -> torch.Tensor:
        """The M-RoPE positions, [3, n]: time, row, column."""
        n = len(prompt.tokens)
        if not prompt.images:
            return torch.arange(n).expand(3, n).clone()
        given = prompt.arguments(self.image_token)
        core = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        positions, _ = core.model.get_rope_index(
            given["input_ids"], given["mm_token_type_ids"], image_grid_thw=given["image_grid_thw"]
        )
        return positions[:, 0]

    @torch.no_grad()
    def embeddings(self, picture: Picture) -> torch.Tensor:
        """What the vision tower gives the text model for one picture, [tokens, hidden]."""
        out = self.model.model.get_image_features(
            picture.patches, torch.tensor([picture.grid]), return_dict=True
        )
        return out.pooler_output[0]

    @torch.no_grad()
    def logits(self, prompt: Prompt, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Logits at every position, [n, vocabulary], in one pass without a cache."""
        if positions is None:
            positions = self.positions(prompt)
        given = prompt.arguments(self.image_token)
        given.pop("mm_token_type_ids", None)
        out = self.model(**given, position_ids=positions[:, None], use_cache=False)
        return out.logits[0]

    @torch.no_grad()
    def stepwise(self, prompt: Prompt, edit=None, at: int = 1) -> torch.Tensor:
        """Logits at every position when the first `at` tokens are read at once and the rest one by one from a cache.

        `edit` may spoil the cache in between: that is how sensitivities to a lost state are measured.
        """
        positions = self.positions(prompt)
        head = Prompt(prompt.tokens[:at], prompt.images)
        given = head.arguments(self.image_token)
        given.pop("mm_token_type_ids", None)
        out = self.model(**given, position_ids=positions[:, None, :at], use_cache=True)
        rows, cache = [out.logits[0]], out.past_key_values
        if edit is not None:
            edit(cache)
        for i in range(at, len(prompt.tokens)):
            out = self.model(
                input_ids=torch.tensor([[prompt.tokens[i]]]), position_ids=positions[:, None, i:i + 1],
                past_key_values=cache, use_cache=True,
            )
            rows.append(out.logits[0])
        return torch.cat(rows)

    def agree(self, one: torch.Tensor, other: torch.Tensor, what: str) -> None:
        """Asserts that two ways agree, and remembers how well."""
        difference = (one - other).abs().max().item()
        self.noise = max(self.noise, difference)
        allowed = AGREE * max(1.0, one.std().item())
        assert difference <= allowed, f"{what}: transformers disagrees with itself by {difference}"

    def checked(self, prompt: Prompt) -> torch.Tensor:
        """Logits at every position, after the ways of computing them agreed."""
        self.last_margin = float("inf")
        logits = self.logits(prompt)
        assert torch.isfinite(logits).all()
        if self.last_margin < float("inf"):
            self.margin = min(self.margin or self.last_margin, self.last_margin)
            assert self.margin > DECIDED, f"a router decides by {self.margin}"
        with recurrent_rule():
            self.agree(logits, self.logits(prompt), "recurrent rule")
        if not prompt.images:
            self.agree(logits, self.stepwise(prompt), "token by token")
        return logits

    @torch.no_grad()
    def greedy(self, prompt: Prompt, most: int, stop: set[int]) -> Greedy:
        """The greedy continuation of at most `most` tokens, ending with a token of `stop` or before an unclear step."""
        given = prompt.arguments(self.image_token)
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        made = self.model.generate(
            **given, max_new_tokens=most, do_sample=False, use_cache=True,
            eos_token_id=sorted(stop) or None, pad_token_id=0,
        )[0, len(prompt.tokens):].tolist()
        # A placeholder that the model itself chose would stand for an image that nobody gave.
        if self.image_token in made:
            made = made[:made.index(self.image_token)]
        if not made:
            return Greedy([], [], torch.empty(0))
        # Once more without a cache, in one pass over prompt and continuation.
        n = len(prompt.tokens)
        positions = self.positions(prompt)
        after = positions.max().item() + 1
        more = torch.arange(after, after + len(made) - 1).expand(3, -1)
        whole = self.logits(
            Prompt(prompt.tokens + made[:-1], prompt.images), torch.cat([positions, more], dim=1)
        )[n - 1:]
        best = whole.topk(2, dim=-1).values
        gaps = (best[:, 0] - best[:, 1]).tolist()
        clear = next((i for i, gap in enumerate(gaps) if gap < CLEAR), len(gaps))
        made, gaps = made[:clear], gaps[:clear]
        assert whole.argmax(-1)[:clear].tolist() == made, "generate with a cache chose other tokens than one pass"
        return Greedy(made, gaps, whole[clear - 1] if clear else whole[0])
