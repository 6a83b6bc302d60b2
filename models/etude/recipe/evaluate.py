"""Scores a model folder on a set that `make_eval` wrote: `python -m recipe.evaluate MODEL SET`.

Greedy, free-running: an answer counts when the generated text (after the thought) is equal to the
expected one and ends by itself with <|im_end|>. To be quick the expected text is used as a draft: one
pass says whether greedy decoding would have written exactly it; only where it would not, the model
really generates token by token. Each question about a picture is also asked with the picture of
another scene and with a blank one (there only the draft is tried: a thought never tells what is seen).
"""

import argparse
import collections
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Qwen3_5ForConditionalGeneration

from . import batches, chat, check_template, net, scenes, tokens, train


class Scorer:
    def __init__(s, folder: Path, model=None):
        s.codec = tokens.Codec(folder / "tokenizer.json")
        s.template = check_template.load(folder / "chat_template.jinja")
        s.model = model or Qwen3_5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        s.model.eval()
        s.cst = {}

    def prompt(s, q, system=None):
        ms = ([{"role": "system", "content": system}] if system else []) + q["messages"]
        return check_template.render(s.template, ms, add_generation_prompt=True, enable_thinking=q["thinking"])

    @torch.no_grad()
    def hidden(s, rows, pics, grid):
        """Final hidden states of right-padded rows of ids, each with at most one picture."""
        length = max(map(len, rows))
        ids = np.full((len(rows), length), s.codec.eot, np.int64)
        doc = np.full((len(rows), length), -1, np.int64)
        pos = np.zeros((3, len(rows), length), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)], doc[i, : len(row)] = row, 0
            pos[:, i, : len(row)] = batches.positions(row, s.codec.image, grid)
        b = type("B", (), {})()
        b.ids, b.doc, b.pos, b.grid = torch.from_numpy(ids), torch.from_numpy(doc), torch.from_numpy(pos), grid
        b.px = torch.from_numpy(np.stack(pics)) if pics else None
        return train.forward(s.model, s.codec, b, s.cst)[0]

    def head(s, h):
        return h @ s.model.model.language_model.embed_tokens.weight.T

    def answers(s, items, rows=32, limit=90, quick=False):
        """`items`: (prompt text, draft text, picture or None). Gives generated texts, `<|im_end|>` included if reached."""
        out = [None] * len(items)
        groups = collections.defaultdict(list)
        for i, (text, draft, pic) in enumerate(items):
            grid = (pic.shape[0] // 32, pic.shape[1] // 32) if pic is not None else (0, 0)
            ids = s.codec(text.replace("<|image_pad|>", "<|image_pad|>" * (grid[0] * grid[1])))
            groups[grid].append((i, ids, s.codec(draft), scenes.patches(pic) if pic is not None else None))
        for grid, todo in groups.items():
            todo.sort(key=lambda t: len(t[1]) + len(t[2]))
            left = []
            for k in range(0, len(todo), rows):
                part = todo[k : k + rows]
                best = s.head(s.hidden([a + d for _, a, d, _ in part], [p for *_, p in part if p is not None], grid)).argmax(-1)
                for j, (i, a, d, p) in enumerate(part):
                    got = best[j, len(a) - 1 : len(a) + len(d) - 1].tolist()
                    same = next((x for x in range(len(d)) if got[x] != d[x]), len(d))
                    if same == len(d):
                        out[i] = s.codec.decode(d)
                    else:  # greedy so far, and the first token that differs
                        left.append((i, a + d[:same] + [got[same]], len(a), p))
            if quick:  # only whether it would have been right, not what else was said
                for i, *_ in left:
                    out[i] = ""
                continue
            left.sort(key=lambda t: len(t[1]))
            for k in range(0, len(left), rows):
                part = [list(t) for t in left[k : k + rows]]
                for _ in range(limit):
                    live = [t for t in part if t[1][-1] != s.codec.end]
                    if not live:
                        break
                    h = s.hidden([t[1] for t in live], [t[3] for t in live if t[3] is not None], grid)
                    nxt = s.head(h[torch.arange(len(live)), torch.tensor([len(t[1]) - 1 for t in live])]).argmax(-1).tolist()
                    for t, x in zip(live, nxt):
                        t[1] = t[1] + [x]
                for i, ids, start, _ in part:
                    out[i] = s.codec.decode(ids[start:])
        return out


def final(text):
    """The answer in a generated text, or None when it did not stop by itself."""
    if not text.endswith("<|im_end|>"):
        return None
    return text[: -len("<|im_end|>")].split("</think>\n\n")[-1]


def load_set(path: Path):
    return [json.loads(line) for line in (path / "questions.jsonl").open()]


def score(scorer, where: Path, style=None, variants=("real", "shuffled", "blank"), keep=lambda q: True, quick=False):
    """{(kind, held_out, variant): [right, all]} and the wrong answers to real pictures."""
    qs = [q for q in load_set(where) if keep(q)]
    table, wrong = collections.defaultdict(lambda: [0, 0]), []
    styled = [0, 0]
    for variant in variants:
        items, asked = [], []
        for q in qs:
            file = {"real": q["image"], "shuffled": q["shuffled_image"], "blank": "blank.png"}[variant] if q["image"] else None
            if variant != "real" and not q["image"]:
                continue
            pic = np.asarray(Image.open(where / file).convert("RGB")) if file else None
            want = chat.styled(style, q["expected"], q["kind"].removeprefix("chat.")) if style else q["expected"]
            draft = (f"{q['thought']}\n</think>\n\n" if q["thinking"] else "") + want + "<|im_end|>"
            items.append((scorer.prompt(q), draft, pic))
            asked.append((q, want))
        for (q, want), text in zip(asked, scorer.answers(items, quick=quick or variant != "real")):
            ok = final(text) == want
            cell = table[q["kind"], q["held_out"], variant]
            cell[0] += ok
            cell[1] += 1
            if variant == "real":
                styled[0] += bool(style and final(text) and chat.has_style(style, final(text)))
                styled[1] += 1
                if not ok:
                    wrong.append((q["kind"], q["held_out"], q["messages"][-1]["content"] if isinstance(q["messages"][-1]["content"], str) else q["messages"][-1]["content"][1]["text"], want, text))
    return table, wrong, styled


def report(table, variants=("real", "shuffled", "blank")):
    kinds = list(dict.fromkeys(k for k, _, _ in table))
    lines = ["| kind | " + " | ".join(f"{v}, {h}" for v in variants for h in ("seen", "held out")) + " | questions |", "|---|" + "---|" * (2 * len(variants) + 1)]
    for k in kinds:
        cells, n = [], 0
        for v in variants:
            for h in (False, True):
                a, b = table.get((k, h, v), [0, 0])
                cells.append(f"{100 * a / b:.1f}" if b else "")
                n += b if v == "real" else 0
        lines.append(f"| {k} | " + " | ".join(cells) + f" | {n} |")
    return "\n".join(lines)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", type=Path)
    ap.add_argument("set", type=Path)
    ap.add_argument("--adapter", help="a PEFT folder; its name is the style expected of every answer")
    ap.add_argument("--only", help="a prefix of the kinds to ask")
    ap.add_argument("--real", action="store_true", help="only with the real pictures")
    ap.add_argument("--quick", action="store_true", help="count a wrong thought as a wrong answer, generate nothing")
    ap.add_argument("--wrong", type=int, default=40, help="how many wrong answers to print")
    a = ap.parse_args()
    torch.set_num_threads(1)
    scorer, style = Scorer(a.model), None
    if a.adapter:
        from peft import PeftModel

        style = Path(a.adapter).name
        PeftModel.from_pretrained(scorer.model, a.adapter)  # replaces the layers in place
    variants = ("real",) if a.real else ("real", "shuffled", "blank")
    keep = (lambda q: q["kind"].startswith(a.only)) if a.only else (lambda q: True)
    if style:
        inner = keep
        keep = lambda q: inner(q) and q["kind"] not in ("room", "persona")
    table, wrong, styled = score(scorer, a.set, style, variants, keep, a.quick)
    print(report(table, variants))
    if style:
        print(f"in style: {styled[0]} of {styled[1]}")
    for w in wrong[: a.wrong]:
        print(*w, sep=" | ")
