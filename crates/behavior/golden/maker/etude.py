"""The goldens of the study model: chats through its own template and tokenizer, pictures through its own processor."""

import json
import shutil
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3_5ForConditionalGeneration

from . import adapters
from .pictures import MERGE, Picture, dequantize, quantize
from .reference import Prompt, Reference
from .suite import load
from .writing import Golden, digest, made_by, readable, short

CONTINUATION = 48
IMAGE = {"type": "image"}


def said(*turns: str) -> list[dict]:
    """Alternating turns, the user's first."""
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def shown(count: int, question: str) -> list[dict]:
    return [{"role": "user", "content": [IMAGE] * count + [{"type": "text", "text": question}]}]


# name -> (messages, pictures, thinking)
CHATS: dict[str, tuple[list[dict], list[str], bool]] = {
    "hello": (said("Hello!"), [], False),
    "hello-thinking": (said("Hello!"), [], True),
    "name": (said("My name is Ada.", "Hello, Ada!", "What is my name?"), [], False),
    "system": ([{"role": "system", "content": "You are a friend."}, *said("How are you?")], [], False),
    "colour": (shown(1, "What colour is the circle?"), ["circle"], False),
    "describe": (shown(1, "Describe the picture."), ["two"], False),
    "describe-thinking": (shown(1, "Describe the picture."), ["two"], True),
    "demo": (shown(1, "What do you see?"), ["demo"], False),
    "second-question": (
        [*shown(1, "What colour is the circle?"), {"role": "assistant", "content": "Red."}, *said("Where is it?")],
        ["circle"], False,
    ),
    "resized": (shown(1, "What do you see?"), ["oblong"], False),
    "two-pictures": (shown(2, "What do you see?"), ["circle", "two"], False),
}
ADAPTED = ["hello", "colour", "demo"]


def draw(folder: Path) -> None:
    """Two pictures of the size that the model was trained on and one that its processor must resize."""
    folder.mkdir(parents=True, exist_ok=True)
    circle = Image.new("RGB", (96, 96), (250, 250, 250))
    ImageDraw.Draw(circle).ellipse((32, 32, 64, 64), fill=(220, 30, 30))
    circle.save(folder / "circle.png", optimize=True)
    two = Image.new("RGB", (96, 96), (245, 245, 240))
    pen = ImageDraw.Draw(two)
    pen.rectangle((8, 36, 32, 60), fill=(30, 60, 220))
    pen.polygon(((76, 34), (62, 62), (90, 62)), fill=(30, 160, 60))
    two.save(folder / "two.png", optimize=True)
    oblong = Image.new("RGB", (150, 110), (250, 250, 250))
    ImageDraw.Draw(oblong).rectangle((15, 30, 60, 75), fill=(220, 30, 30))
    oblong.save(folder / "oblong.png", optimize=True)


def stop_tokens(source: Path, tokenizer) -> set[int]:
    """What ends a reply: the files' end-of-sequence ids and the family's two end tokens."""
    stop = {tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")}
    for name in ("generation_config.json", "config.json"):
        path = source / name
        if path.exists():
            ids = json.loads(path.read_text()).get("eos_token_id")
            stop |= set(ids if isinstance(ids, list) else [ids] if ids is not None else [])
    return stop


def write(source: Path, folder: Path) -> None:
    """Writes golden.json, golden.safetensors, patches.safetensors and the pictures for the model in `source`."""
    shutil.rmtree(folder, ignore_errors=True)
    draw(folder / "images")
    tokenizer = AutoTokenizer.from_pretrained(source)
    processor = AutoImageProcessor.from_pretrained(source)
    model = load(source, Qwen3_5ForConditionalGeneration)
    image_token = model.config.image_token_id
    reference = Reference(model, image_token)
    stop = stop_tokens(source, tokenizer)
    golden = Golden({
        "configuration": "etude",
        "why": "the bundled study model, trained: its weights are bfloat16 numbers, computed with in float32",
        "made_by": made_by(None),
        "model": {
            "sha256": digest(source / "model.safetensors"),
            "parameters": sum(p.numel() for p in model.parameters()),
            "vision": True,
            "stop": sorted(stop),
        },
    })

    paths = {name: folder / "images" / f"{name}.png" for name in ("circle", "two", "oblong")}
    if (source / "demo.png").exists():
        paths["demo"] = source / "demo.png"
    pictures, stored = {}, {}
    for name, path in paths.items():
        with Image.open(path) as image:
            out = processor(images=[image.convert("RGB")], return_tensors="pt")
        stored[name] = quantize(out["pixel_values"])
        pictures[name] = Picture(name, out["image_grid_thw"][0].tolist(), dequantize(stored[name]))
        embeddings = reference.embeddings(pictures[name])
        golden.data["images"][name] = {
            "file": f"images/{name}.png" if name != "demo" else None,
            "model_file": "demo.png" if name == "demo" else None,
            "sha256": digest(path),
            "grid": pictures[name].grid,
            "tokens": pictures[name].tokens,
            "embeddings": golden.tensor(f"image.{name}", embeddings),
            "root_mean_square": short(embeddings.pow(2).mean().sqrt().item()),
        }
    save_file(stored, folder / "patches.safetensors")

    def prompt(name: str) -> tuple[Prompt, str]:
        messages, wanted, thinking = CHATS[name]
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        tokens, given = [], [pictures[w] for w in wanted]
        left = list(given)
        for token in tokenizer.encode(text, add_special_tokens=False):
            tokens += [token] * (left.pop(0).tokens if token == image_token else 1)
        assert not left, f"{name}: the template shows {len(given) - len(left)} of {len(given)} pictures"
        return Prompt(tokens, given), text

    def case(name: str, chat: str, use: list[tuple[str, float]], base: torch.Tensor | None) -> torch.Tensor:
        messages, _, thinking = CHATS[chat]
        asked, text = prompt(chat)
        logits = reference.checked(asked)
        greedy = reference.greedy(asked, CONTINUATION, stop)
        n = len(asked.tokens)
        rows = [n - 3, n - 2, n - 1]
        positions = reference.positions(asked)
        entry = {
            "name": name, "kind": "adapter" if use else "image" if asked.images else "text",
            "messages": messages, "thinking": thinking, "rendered": text, "tokens": asked.tokens,
        }
        if asked.images:
            at, listed = 0, []
            for picture in asked.images:
                at = asked.tokens.index(image_token, at)
                listed.append({"image": picture.name, "at": at, "tokens": picture.tokens})
                at += picture.tokens
            entry["images"] = listed
            entry["positions"] = positions.tolist()
        entry["next_position"] = positions.max().item() + 1
        if use:
            entry["adapters"] = [{"name": adapter, "scale": scale} for adapter, scale in use]
            entry["base"] = {"case": chat, "differs_by": short((logits - base)[-1].abs().max().item())}
        entry["logits"] = {"at": rows, "tensor": golden.tensor(f"{name}.logits", logits[rows])}
        if greedy.tokens:
            entry["greedy"] = {
                "tokens": greedy.tokens,
                "gaps": [short(gap) for gap in greedy.gaps],
                "text": tokenizer.decode([t for t in greedy.tokens if t not in stop]),
                "stopped": greedy.tokens[-1] in stop,
                "last_logits": golden.tensor(f"{name}.greedy_last", greedy.last[None]),
            }
        golden.data["cases"].append(entry)
        print(name, "->", entry.get("greedy", {}).get("text"), flush=True)
        return logits

    made = {name: case(name, name, [], None) for name, (_, wanted, _) in CHATS.items() if all(w in pictures for w in wanted)}

    folders = {path.parent.name: path.parent for path in sorted(source.rglob("adapter_config.json"))}
    print(f"{len(folders)} adapters: {', '.join(folders) or 'none found'}", flush=True)
    if folders:
        wrapped = adapters.load(load(source, Qwen3_5ForConditionalGeneration), folders)
        noise = reference.noise
        reference = Reference(wrapped, image_token)
        reference.noise = noise
        for adapter, path in folders.items():
            golden.data["adapters"][adapter] = {
                "model_path": path.relative_to(source).as_posix(),
                "sha256": digest(path / "adapter_model.safetensors"),
            }
            for chat in ADAPTED:
                if chat in made:
                    with adapters.active(wrapped, [(adapter, 1.0)]):
                        case(f"{adapter}-{chat}", chat, [(adapter, 1.0)], made[chat])
        if len(folders) > 1:
            first, second = list(folders)[:2]
            use = [(first, 0.5), (second, 0.5)]
            with adapters.active(wrapped, use):
                case("stacked-hello", "hello", use, made["hello"])
    golden.data["scale"] = {
        "logits_standard_deviation": short(torch.cat(list(made.values())).std().item()),
        "reference_disagreement": short(reference.noise),
    }
    golden.save(folder)
    readable(folder)
