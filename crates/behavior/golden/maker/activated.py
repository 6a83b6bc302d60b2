"""Activated adapters (aLoRA): what PEFT makes of them where their invocation tokens stand here, there, twice or nowhere.

Written beside the other goldens and never into them: `activated/<configuration>/`, in the same format.
"""

from pathlib import Path

import torch
from peft.tuners.lora.variants import calculate_alora_offsets

from . import adapters, tiny
from .adapters import KINDS, Lora
from .reference import Greedy, Prompt, Reference
from .sensitivity import VISIBLE
from .suite import load, random_tokens
from .writing import Golden, digest, made_by, readable, short

INVOCATION = [37, 181, 9]
# Occurrences of these overlap: of three in a row the last occurrence begins at the second.
PAIR = [5, 5]
CONTINUATION = 12

# name of the configuration -> its activated adapters, each with its invocation tokens
ACTIVATED: dict[str, list[tuple[Lora, list[int]]]] = {
    "plain": [
        (Lora("activated", 110, 4, 8, KINDS, 0.5), INVOCATION),
        (Lora("activated-pair", 111, 3, 6, ["in_proj_qkv", "out_proj", "v_proj", "down_proj"], 0.6, rslora=True), PAIR),
    ],
    # Value heads that a converter tiles, and query and gate that lie interleaved.
    "grouped2": [(Lora("activated", 112, 4, 8, KINDS, 0.5), INVOCATION)],
    "heads": [(Lora("activated", 113, 2, 4, KINDS, 0.5), INVOCATION)],
}


class Activated(Reference):
    """A model wrapped by PEFT, in which activated adapters act from a place that is given, however the text is read.

    PEFT looks for the invocation tokens in what one call reads. A call that reads a part of a text must be told.
    """

    def __init__(self, model, image_token: int | None):
        super().__init__(model, image_token)
        self.active_from: int | None = None

    def offsets(self, start: int, count: int) -> list[int | None]:
        """How many tokens, from the end of what a call reads, the adapter touches: PEFT's `alora_offsets`."""
        if self.active_from is None or self.active_from >= start + count:
            return [None]
        return [min(start + count - self.active_from, count)]

    @torch.no_grad()
    def logits(self, prompt: Prompt, positions: torch.Tensor | None = None) -> torch.Tensor:
        n = len(prompt.tokens)
        if positions is None:
            positions = self.positions(prompt)
        out = self.model(
            input_ids=torch.tensor([prompt.tokens]), position_ids=positions[:, None], use_cache=False,
            alora_offsets=self.offsets(0, n),
        )
        return out.logits[0]

    @torch.no_grad()
    def stepwise(self, prompt: Prompt, edit=None, at: int = 1) -> torch.Tensor:
        assert edit is None
        positions = self.positions(prompt)
        rows, cache = [], None
        for start, end in [(0, at), *((i, i + 1) for i in range(at, len(prompt.tokens)))]:
            out = self.model(
                input_ids=torch.tensor([prompt.tokens[start:end]]), position_ids=positions[:, None, start:end],
                past_key_values=cache, use_cache=True, alora_offsets=self.offsets(start, end - start),
            )
            cache = out.past_key_values
            rows.append(out.logits[0])
        return torch.cat(rows)


def text(n: int, seed: int, placed: dict[int, list[int]]) -> Prompt:
    """Seeded tokens among which the given ones stand at the given places and nowhere else."""
    tokens = random_tokens(n, torch.Generator().manual_seed(seed))
    tokens = [token + 1 if token in (INVOCATION[0], PAIR[0]) else token for token in tokens]
    for at, invocation in placed.items():
        tokens[at:at + len(invocation)] = invocation
    assert len(tokens) == n
    return Prompt(tokens, [])


def write(shape: tiny.Tiny, kept: Path, folder: Path) -> dict:
    """Writes one configuration's folder with the model and the ordinary adapters that are kept; returns its entry."""
    source = kept / shape.name
    loras = ACTIVATED[shape.name]
    golden = Golden({
        "configuration": shape.name,
        "why": "activated adapters",
        "made_by": made_by(shape.seed),
        "model": {"sha256": digest(source / "model.safetensors")},
    })
    folders = {}
    for lora, invocation in loras:
        folders[lora.name] = folder / "adapters" / lora.name
        adapters.save(lora, load(source, tiny.model_class(shape)), folders[lora.name], invocation)
        golden.data["adapters"][lora.name] = {
            "sha256": digest(folders[lora.name] / "adapter_model.safetensors"), "invocation_tokens": invocation,
        }
    # An activated one first: its task type makes PEFT choose the class that looks for invocation tokens.
    folders["all"] = source / "adapters" / "all"
    wrapped = adapters.load(load(source, tiny.model_class(shape)), folders)
    reference = Activated(wrapped, None)
    bases: dict[str, tuple[Prompt, torch.Tensor]] = {}

    def kept_case(name, kind, prompt, rows, logits, greedy: Greedy | None = None, **more) -> None:
        case = {"name": name, "kind": kind, "tokens": prompt.tokens, "next_position": len(prompt.tokens), **more}
        case["logits"] = {"at": rows, "tensor": golden.tensor(f"{name}.logits", logits[rows])}
        if greedy is not None and greedy.tokens:
            case["greedy"] = {
                "tokens": greedy.tokens, "gaps": [short(gap) for gap in greedy.gaps],
                "last_logits": golden.tensor(f"{name}.greedy_last", greedy.last[None]),
            }
        golden.data["cases"].append(case)

    def base(name, prompt) -> None:
        with wrapped.disable_adapter():
            logits = Reference(wrapped, None).checked(prompt)
        bases[name] = (prompt, logits)
        n = len(prompt.tokens)
        kept_case(name, "text", prompt, [0, n - 1], logits)

    def case(name, of, rows, use, continued=True) -> torch.Tensor:
        """The prompt of the base case `of`, read with `use`, of which the last may be an activated adapter."""
        prompt, base_logits = bases[of]
        n, named = len(prompt.tokens), use[-1][0]
        wrapped.set_adapter(named)
        (offset,) = calculate_alora_offsets(wrapped.peft_config, named, torch.tensor([prompt.tokens]))
        reference.active_from = None if offset is None else n - offset
        with adapters.active(wrapped, use):
            logits = reference.checked(prompt)
            if len(use) == 1:
                # What PEFT itself finds when it is told nothing.
                own = Reference(wrapped, None)
                assert torch.equal(own.logits(prompt), logits), name
            greedy = reference.greedy(prompt, CONTINUATION, set()) if continued and len(use) == 1 else None
        before = reference.active_from if reference.active_from is not None else n
        if len(use) == 1 and before > 0:
            reference.agree(logits[:before], base_logits[:before], f"{name}: before it is active")
        more = {"adapters": [{"name": adapter, "scale": scale} for adapter, scale in use]}
        more["adapters"][-1]["active_from"] = reference.active_from
        if reference.active_from is None:
            assert torch.equal(logits, base_logits), f"{name}: inactive, and not the base"
        else:
            differs = (logits - base_logits)[-1].abs().max().item()
            assert differs > VISIBLE, f"{name}: the adapter changes the logits by only {differs}"
            more["base"] = {"case": of, "differs_by": short(differs)}
        kept_case(name, "activated", prompt, rows, logits, greedy, **more)
        return logits

    base("activated-base-middle", text(40, 1, {17: INVOCATION}))
    base("activated-base-none", text(40, 2, {17: INVOCATION[:2], 30: INVOCATION[1:]}))
    base("activated-base-twice", text(40, 3, {8: INVOCATION, 25: INVOCATION}))
    base("activated-base-first", text(24, 4, {0: INVOCATION}))
    base("activated-base-end", text(30, 5, {27: INVOCATION}))
    base("activated-base-chunk", text(80, 6, {62: INVOCATION}))
    middle = [0, 16, 17, 18, 19, 39]
    whole = case("activated-middle", "activated-base-middle", middle, [("activated", 1.0)])
    half = case("activated-middle-half", "activated-base-middle", middle, [("activated", 0.5)])
    assert (whole - half)[-1].abs().max().item() > VISIBLE, "half the scale must show"
    case("activated-none", "activated-base-none", [0, 17, 18, 39], [("activated", 1.0)])
    case("activated-twice", "activated-base-twice", [7, 8, 10, 24, 25, 39], [("activated", 1.0)])
    case("activated-first", "activated-base-first", [0, 1, 2, 23], [("activated", 1.0)])
    case("activated-end", "activated-base-end", [26, 27, 28, 29], [("activated", 1.0)])
    case("activated-over-64", "activated-base-chunk", [61, 62, 63, 64, 65, 79], [("activated", 1.0)])
    # An ordinary adapter from the first token on, and the activated one from its own.
    case("activated-stacked", "activated-base-middle", middle, [("all", 0.5), ("activated", 1.0)])
    if shape.name == "plain":
        base("activated-base-pair", text(32, 7, {12: [5, 5, 5], 25: [5]}))
        case("activated-pair", "activated-base-pair", [11, 12, 13, 14, 25, 31], [("activated-pair", 1.0)])
        assert reference.active_from == 13
    golden.data["scale"] = {
        "reference_disagreement": short(reference.noise), "reference_disagreement_allowed": 1e-4,
    }
    golden.save(folder)
    readable(folder)
    return {"cases": len(golden.data["cases"])}
