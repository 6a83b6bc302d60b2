"""The cases of one tiny configuration."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from . import adapters, sensitivity, tiny, vocabulary
from .pictures import FRAMES_DIFFER, Picture
from .reference import Prompt, Reference
from .sensitivity import VISIBLE
from .writing import Golden, digest, made_by, readable, short

LENGTHS = [1, 2, 3, 24, 63, 64, 65, 130]
CONTINUATION = 24
# A continuation that repeats one token would hide an engine that stands still.
DISTINCT = 4
# The text on which adapters are asked.
ASKED = "text-24"
TRIES = 60


def rows_of_text(n: int) -> list[int]:
    """The positions whose logits are kept: all of a short text, the borders of a long one."""
    if n <= 3:
        return list(range(n))
    if n == 130:
        return [62, 63, 64, 65, 126, 127, 128, 129]
    return [0, n // 2 - 1, n - 2, n - 1]


def load(folder: Path, kind):
    """The model in `folder`, of this class of transformers."""
    settings = {"experts_implementation": "eager"} if "Moe" in kind.__name__ else {}
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **settings).eval()
    model.generation_config.eos_token_id = None
    return model


@dataclass
class Writer:
    """Adds cases to the golden of one configuration."""

    golden: Golden
    reference: Reference
    ids: dict[str, int]

    def clean(self, tokens: list[int]) -> bool:
        return all(token < vocabulary.FIRST_SPECIAL for token in tokens)

    def choose(self, make, shows=None) -> tuple[Prompt, object]:
        """The first seeded prompt whose whole continuation is clear-cut, varied and free of special tokens.

        `shows` gives the sizes of the faults that must be visible on this prompt.
        """
        for seed in range(TRIES):
            prompt = make(torch.Generator().manual_seed(seed))
            greedy = self.reference.greedy(prompt, CONTINUATION, set())
            if len(greedy.tokens) < CONTINUATION or not self.clean(greedy.tokens):
                continue
            if len(set(greedy.tokens)) < DISTINCT:
                continue
            if shows is None or min(shows(prompt).values()) > 1.5 * VISIBLE:
                return prompt, greedy
        raise AssertionError(f"no clear prompt in {TRIES} tries")

    def add(self, name, prompt, rows, greedy=None, use=(), base=None, kind="text", note=None) -> torch.Tensor:
        """Computes, checks and writes one case; returns its logits at every position."""
        positions = self.reference.positions(prompt)
        logits = self.reference.checked(prompt)
        case = {"name": name, "kind": kind, "tokens": prompt.tokens}
        if note:
            case["note"] = note
        if prompt.images:
            at, listed = 0, []
            for picture in prompt.images:
                at = prompt.tokens.index(self.reference.image_token, at)
                span = prompt.tokens[at:at + picture.tokens]
                assert span == [self.reference.image_token] * picture.tokens
                listed.append({"image": picture.name, "at": at, "tokens": picture.tokens})
                at += picture.tokens
            case["images"] = listed
            case["positions"] = positions.tolist()
        case["next_position"] = positions.max().item() + 1
        if use:
            case["adapters"] = [{"name": adapter, "scale": scale} for adapter, scale in use]
        case["logits"] = {"at": rows, "tensor": self.golden.tensor(f"{name}.logits", logits[rows])}
        if base is not None:
            of, base_logits = base
            differs = (logits[rows] - base_logits[rows]).abs().amax(-1)
            # The last row is the one that every engine gives.
            assert differs[-1].item() > VISIBLE, f"{name}: the adapters change the logits by only {differs}"
            case["base"] = {"case": of, "differs_by": short(differs[-1].item())}
        if greedy is not None and greedy.tokens:
            case["greedy"] = {
                "tokens": greedy.tokens,
                "gaps": [short(gap) for gap in greedy.gaps],
                "last_logits": self.golden.tensor(f"{name}.greedy_last", greedy.last[None]),
            }
        self.golden.data["cases"].append(case)
        return logits


def random_tokens(n: int, g: torch.Generator) -> list[int]:
    return torch.randint(0, vocabulary.FIRST_SPECIAL, (n,), generator=g).tolist()


def with_images(parts: list[int | Picture], ids: dict[str, int], g: torch.Generator, closed: bool = True) -> Prompt:
    """A prompt from parts: so many random tokens, or a picture between its start and end tokens."""
    tokens, images = [], []
    for part in parts:
        if isinstance(part, int):
            tokens += random_tokens(part, g)
        else:
            tokens += [ids["<|vision_start|>"], *[ids["<|image_pad|>"]] * part.tokens]
            images.append(part)
            if closed:
                tokens.append(ids["<|vision_end|>"])
    return Prompt(tokens, images)


def rows_of_image(prompt: Prompt, image_token: int) -> list[int]:
    """Before, at and after the last picture, and the end."""
    n = len(prompt.tokens)
    last = n - 1 - prompt.tokens[::-1].index(image_token)
    first = prompt.tokens.index(image_token)
    return sorted({max(first - 1, 0), first, last, min(last + 1, n - 1), n - 1})


def text_cases(writer: Writer) -> dict[str, tuple[Prompt, torch.Tensor]]:
    made = {}
    for n in LENGTHS:
        def make(g, n=n):
            # Skip a few numbers that depend on n, so that no prompt is the beginning of another.
            random_tokens(n, g)
            return Prompt(random_tokens(n, g), [])
        shows = (lambda p: sensitivity.of_text(writer.reference, p)) if n == 130 else None
        prompt, greedy = writer.choose(make, shows)
        made[f"text-{n}"] = (prompt, writer.add(f"text-{n}", prompt, rows_of_text(n), greedy))
    return made


def image_cases(writer: Writer, name: str, shown: dict[str, Picture]) -> dict[str, tuple[Prompt, torch.Tensor]]:
    layouts: dict[str, tuple[list, bool]] = {
        "image-square": ([3, shown["square"], 12], True),
        "image-wide": ([2, shown["wide"], 9], True),
        "image-strip": ([shown["strip"], 7], True),
        "two-images": ([4, shown["square"], 5, shown["strip"], 8], True),
    }
    if name == "plain":
        layouts |= {
            "image-frames-differ": ([1, shown[FRAMES_DIFFER], 6], True),
            "image-at-the-end": ([5, shown["wide"]], False),
            "image-over-64": ([60, shown["wide"], 10], True),
            "images-side-by-side": ([shown["other"], shown["square"], 6], True),
        }
    if name == "heads":
        layouts["image-frames-differ"] = ([1, shown[FRAMES_DIFFER], 6], True)
    made = {}
    used = {}
    for case, (parts, closed) in layouts.items():
        if closed:
            shows = None
            if case == "two-images":
                shows = lambda p: sensitivity.of_image(writer.reference, p, shown["other"])  # noqa: E731
            prompt, greedy = writer.choose(lambda g: with_images(parts, writer.ids, g), shows)
        else:
            # Right after an image `generate` counts each component on from the image's last token, while the family's
            # own rule (get_rope_index) goes on from the largest: no continuation is written where they part.
            prompt, greedy = with_images(parts, writer.ids, torch.Generator().manual_seed(0), closed=False), None
        used |= {picture.name: picture for picture in prompt.images}
        made[case] = (prompt, writer.add(case, prompt, rows_of_image(prompt, writer.reference.image_token), greedy, kind="image"))
    for picture in used.values():
        embeddings = writer.reference.embeddings(picture)
        assert embeddings.shape[0] == picture.tokens
        writer.golden.data["images"][picture.name] = {
            "grid": picture.grid,
            "tokens": picture.tokens,
            "embeddings": writer.golden.tensor(f"image.{picture.name}", embeddings),
            "root_mean_square": short(embeddings.pow(2).mean().sqrt().item()),
        }
    return made


def adapter_cases(writer: Writer, shape: tiny.Tiny, folder: Path, bases: dict[str, tuple[Prompt, torch.Tensor]]) -> None:
    """Writes the adapters, then what PEFT makes of them."""
    loras = adapters.ADAPTERS[shape.name]
    folders = {}
    for lora in loras:
        folders[lora.name] = folder / "adapters" / lora.name
        adapters.save(lora, load(folder, tiny.model_class(shape)), folders[lora.name])
        writer.golden.data["adapters"][lora.name] = {"sha256": digest(folders[lora.name] / "adapter_model.safetensors")}
    wrapped = adapters.load(load(folder, tiny.model_class(shape)), folders)
    plain = writer.reference
    writer.reference = Reference(wrapped, plain.image_token)

    prompt, logits = bases[ASKED]
    with wrapped.disable_adapter():
        assert torch.equal(writer.reference.logits(prompt), logits), "with no adapter PEFT must give the base's logits"

    def case(name, base, use, rows=None, length=0):
        prompt, logits = bases[base]
        if rows is None:
            rows = next(c["logits"]["at"] for c in writer.golden.data["cases"] if c["name"] == base)
        with adapters.active(wrapped, use):
            greedy = writer.reference.greedy(prompt, length, set()) if length else None
            if greedy is not None:
                keep = next((i for i, t in enumerate(greedy.tokens) if not writer.clean([t])), len(greedy.tokens))
                greedy = writer.reference.greedy(prompt, keep, set()) if keep else None
            return writer.add(name, prompt, rows, greedy, use, (base, logits), kind="adapter")

    for lora in loras:
        if lora.name.startswith("only-"):
            case(f"{lora.name}", ASKED, [(lora.name, 1.0)], rows=[11, 23])
        else:
            case(f"lora-{lora.name}", ASKED, [(lora.name, 1.0)], length=12)
    case("lora-all-text-1", "text-1", [("all", 1.0)], length=6)
    case("lora-all-text-65", "text-65", [("all", 1.0)], length=6)
    whole = next(c for c in writer.golden.data["cases"] if c["name"] == "lora-all")
    full = writer.golden.tensors[whole["logits"]["tensor"]]
    half = case("lora-all-half", ASKED, [("all", 0.5)], length=12)[whole["logits"]["at"]]
    assert sensitivity.away(full[-1], half[-1]) > VISIBLE, "half the scale must show"
    if shape.vision:
        case("lora-all-image", "image-square", [("all", 1.0)], length=6)
    if shape.name == "plain":
        case("lora-all-twice", ASKED, [("all", 2.0)], rows=[11, 23])
        case("lora-all-negative", ASKED, [("all", -0.5)], rows=[11, 23])
        both = case("stacked-all-rslora", ASKED, [("all", 1.0), ("rslora", 1.0)], length=12)
        assert sensitivity.away(full[-1], both[23]) > VISIBLE, "the second adapter must show"
        case("stacked-all-half-pattern-twice", ASKED, [("all", 0.5), ("pattern", 2.0)], length=12)
        case("lora-pattern-two-images", "two-images", [("pattern", 1.0)], length=6)
    plain.noise = max(plain.noise, writer.reference.noise)
    plain.margin = min(filter(None, (plain.margin, writer.reference.margin)), default=None)
    writer.reference = plain


def sensitivities(writer: Writer, made: dict, shown: dict[str, Picture], vision: bool) -> dict:
    reference = writer.reference
    data = {"least": VISIBLE, "text-130": sensitivity.of_text(reference, made["text-130"][0])}
    if vision:
        # Two images: their rows, columns and the text between them move furthest when positions are merely counted.
        data["two-images"] = sensitivity.of_image(reference, made["two-images"][0], shown["other"])
    for case, faults in data.items():
        if isinstance(faults, dict):
            for fault, size in faults.items():
                assert size > VISIBLE, f"{case}: {fault} shows by only {size}"
                faults[fault] = short(size)
    hidden = sensitivity.invisible(reference, made["text-130"][0])
    assert all(size < 1e-3 for size in hidden.values()), hidden
    data["invisible"] = {fault: short(size) for fault, size in hidden.items()}
    return data


def write(shape: tiny.Tiny, ids: dict[str, int], shown: dict[str, Picture], folder: Path) -> dict:
    """Writes one configuration's folder; returns its entry in the index."""
    # Models are made in a scratch folder, so that what save_pretrained adds besides is not committed.
    with tempfile.TemporaryDirectory() as scratch:
        tiny.save(shape, ids, Path(scratch))
        folder.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_bytes((Path(scratch) / name).read_bytes())
    model = load(folder, tiny.model_class(shape))
    golden = Golden({
        "configuration": shape.name,
        "why": shape.why,
        "made_by": made_by(shape.seed),
        "model": {
            "sha256": digest(folder / "model.safetensors"),
            "parameters": sum(p.numel() for p in model.parameters()),
            "vision": shape.vision,
            "mtp": shape.mtp,
        },
    })
    if shape.experts:
        golden.data["model"]["experts"] = {"count": shape.experts, "used": shape.experts_used}
    writer = Writer(golden, Reference(model, ids["<|image_pad|>"] if shape.vision else None), ids)
    made = text_cases(writer)
    if shape.vision:
        made |= image_cases(writer, shape.name, shown)
    adapter_cases(writer, shape, folder, made)
    logits = made["text-130"][1]
    scale = logits.std().item()
    assert 0.5 < scale < 2.0, f"logits of unit scale are wanted, not {scale}"
    golden.data["scale"] = {
        "logits_standard_deviation": short(scale),
        "reference_disagreement": short(writer.reference.noise),
        "reference_disagreement_allowed": 1e-4,
    }
    if shape.experts:
        golden.data["scale"]["router_margin"] = short(writer.reference.margin)
    golden.data["sensitivity"] = sensitivities(writer, made, shown, shape.vision)
    golden.save(folder)
    readable(folder)
    kinds = {}
    for case in golden.data["cases"]:
        kinds[case["kind"]] = kinds.get(case["kind"], 0) + 1
    return {"cases": len(golden.data["cases"]), **kinds}
