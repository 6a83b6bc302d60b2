"""Writes a held-out evaluation set: `python -m recipe.make_eval OUT [--seed 2026] [--scenes 60] [--small]`.

OUT/questions.jsonl has one question a line:

    id              "0001"
    kind            colour, shape, position, where, count, exist, exist_colour, describe; other_size; room, persona; chat.TOPIC
    image           file under OUT, or null
    shuffled_image  the picture of another scene, or null: with it the answer must fall to chance
    messages        OpenAI's form; the picture stands as an image_url whose url is `image`
    expected        the answer, to be equal after the end of thinking
    thinking        whether the prompt opens a thought (enable_thinking)
    held_out        whether it is about a combination, or a name, that training never showed
    thought         what the recipe would think (only a hint: a draft to verify)

OUT/blank.png is the picture without any object. All pictures are new: no training picture repeats.
Every size is a multiple of 32 within the processor's limits, so that no resizing is involved.
Deterministic by seed.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from . import chat, scenes


def picture(path, objs, r, small, w=96, h=96):
    if small:
        img = scenes.render(objs, r, jitter=0.5, plain=True)
    else:
        img = scenes.add_noise(scenes.render(objs, r, w, h), r, r.choice([0.0, 4.0, 4.0]))
    Image.fromarray(img).save(path, optimize=True)


def generate(out: Path, seed, n, small):
    r = random.Random(seed)
    (out / "images").mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((96, 96, 3), 238, np.uint8)).save(out / "blank.png", optimize=True)
    rows = []

    def add(kind, question, expected, thought, image=None, shuffled=None, held=False, system=None, before=()):
        parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": question}] if image else question
        ms = [{"role": "system", "content": system}] if system else []
        for q, a in before:
            ms += [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
        ms.append({"role": "user", "content": parts})
        rows.append(dict(
            id=f"{len(rows) + 1:04}", kind=kind, image=image, shuffled_image=shuffled, messages=ms,
            expected=expected, thinking=len(rows) % 2 == 1, held_out=held, thought=thought,
        ))

    everything = []
    for held in (False, True):
        for i in range(n):
            objs = scenes.scene(r, held, count=1 + i % 3)
            name = f"images/{'held' if held else 'seen'}-{i:03}.png"
            picture(out / name, objs, r, small)
            everything.append((objs, name, held))
    for i, (objs, name, held) in enumerate(everything):
        other = next(x for x in everything[i + 1 :] + everything[: i + 1] if sorted(x[0]) != sorted(objs) and r.random() < 0.3)[1] if len(everything) > 1 else None
        about = next((o for o in objs if scenes.is_held_out(o)), None)
        kinds = scenes.KINDS if not small else r.sample(scenes.KINDS[:5], 2) + r.sample(scenes.KINDS[5:], 1)
        for kind in kinds:
            # about the held-out object where that can be asked; questions for which it makes no difference as they come
            t = scenes.ask(objs, r, kind, about if kind in ("colour", "shape", "position", "where") else None)
            if t:
                add(t[3], t[0], t[1], t[2], name, other, held)
        if i % 3 == 0:
            q, a, th, _ = scenes.ask(objs, r)
            who = r.choice(["Ada", "Ben", "Clara"])
            style = r.choice([None, "pirate", "butler"])
            first = scenes.ask(objs, r)
            said = f"User: {first[0]}\n{r.choice(['Ada', 'Ben', 'Clara'])} said: {first[1]}"
            add("room", f"{said}\n{q}\n{chat.note(r, who, style)}", chat.styled(style, a), th, name, other, held, system=r.choice([None, "You are in a room with Ada, Ben and Clara."]))
        if i % 3 == 1:
            system, persona, style = chat.system_prompt(r)
            q, a, th, _ = scenes.ask(objs, r)
            add("persona", q, chat.styled(style, a), th, name, other, held, system=system)

    for i in range(0 if small else n):
        objs = scenes.scene(r, False)
        name = f"images/wide-{i:03}.png"
        picture(out / name, objs, r, small, *r.choice([(128, 96), (96, 128)]))
        q, a, th, _ = scenes.ask(objs, r)
        add("other_size", q, a, th, name, everything[i][1])

    for topic in chat.TOPICS:
        for held in (False, True):
            if held and topic not in chat.HELD_OUT_TOPICS + ["recall"]:
                continue
            k = {"name": 100, "recall": 50}.get(topic, 20) if not small else 1
            if held is False and topic in ("name", "recall") and not small:
                k = 20
            for _ in range(k):
                state, before = {}, []
                if topic == "recall":
                    before.append(chat.chat(r, state, "name", held)[:2:1])
                    if r.random() < 0.5:
                        before.append(chat.chat(r, {}, r.choice(["greet", "weather", "tea", "howare"]))[:2])
                if topic == "pet":
                    before.append(chat.chat(r, state, "pet", held)[:2])
                q, a, th, _ = chat.chat(r, state, topic, held)
                add(f"chat.{topic}", q, a, th, held=held, before=before)
    for _ in range(0 if small else 30):
        n_ = chat.name(r, True)
        q, a, th, _ = chat.chat(r, {}, "ident", persona=n_)
        add("chat.persona_name", q, a, th, held=True, system=f"You are {n_}.")
    with (out / "questions.jsonl").open("w") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    return rows


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out", type=Path)
    ap.add_argument("--seed", type=int, default=2026)
    ap.add_argument("--scenes", type=int, default=60, help="scenes of seen and of held-out combinations, each")
    ap.add_argument("--small", action="store_true", help="the set for continuous integration: clean pictures, few questions")
    a = ap.parse_args()
    done = generate(a.out, a.seed, a.scenes, a.small)
    print(f"{len(done)} questions about {2 * a.scenes} pictures in {a.out}")
