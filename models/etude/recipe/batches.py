"""Training conversations, drawn from a seeded generator and packed into rows of equal length."""

import random

import numpy as np
import torch

from . import chat, scenes, tokens

SIZES = [(96, 96), (128, 128), (128, 96), (96, 128)]  # width × height


class Sample:
    """One conversation as ids, labels (1 where the loss counts) and at most one scene."""

    def __init__(s, codec, segs, scene=None, kind=None):
        s.ids, s.target, s.scene, s.kind = [], [], scene, kind
        for text, tg in segs:
            e = codec(text)
            s.ids += e
            s.target += [tg] * len(e)


def picture_sample(codec, r, grid=(3, 3), style=None, kinds=scenes.WEIGHTS, plain_share=0.45):
    """Questions about one picture: plainly, under a system prompt, in a room, or among other talk."""
    held = False
    scene = scenes.scene(r, held)
    n = r.choice([2, 3, 3, 4, 4])
    qa = []
    while len(qa) < n:
        qa.append(scenes.ask(scene, r, weights=kinds))
    system = persona = None
    x = r.random()
    turns, image_at = [], 0
    state = {}
    if x < plain_share:
        turns = [t[:3] for t in qa]
    elif x < plain_share + 0.25:  # a system prompt, often a persona with a style
        system, persona, st = chat.system_prompt(r)
        style = style or st
        turns = [t[:3] for t in qa]
    elif x < plain_share + 0.40:  # a room: several speak, the last user turn says who answers
        turns, system, style = room(r, qa, style)
    else:  # other talk before or between
        turns = [t[:3] for t in qa]
        k = r.randint(0, 2)
        extra = [(q, styled_answer(style, a, tp), th) for q, a, th, tp in (small_talk(r, state) for _ in range(r.choice([1, 1, 2])))]
        turns[k:k] = extra
        image_at = r.choice([0, len(extra)]) if k == 0 else 0
        fixed = set(range(k, k + len(extra)))
        turns = [t if i in fixed else (t[0], styled_answer(style, t[1]), t[2]) for i, t in enumerate(turns)]
        style = None
    turns = [(q, styled_answer(style, a), th) for q, a, th in turns]
    thinking = r.random() < 0.35
    segs = tokens.segments(turns, system, thinking, image_at, grid[0] * grid[1], r.random() < 0.92)
    return Sample(codec, segs, scene, qa[-1][3])


def styled_answer(style, answer, topic=None):
    return chat.styled(style, answer, topic) if style else answer


def small_talk(r, state, persona=None):
    while True:
        t = chat.chat(r, state, persona=persona)
        if t[3] not in ("noimg", "count", "story"):
            return t


def room(r, qa, style, people=None):
    """Turns of a room. Others' lines stand in the user turn, a note says who answers."""
    people = people or (["Ada", "Ben", "Clara"] if r.random() < 0.6 else [chat.name(r) for _ in range(3)])
    system = r.choice([None, f"You are in a room with {people[0]}, {people[1]} and {people[2]}.", "This is a room. Several people talk about one picture."])
    turns, said = [], []
    per = {p: style or r.choice([None, None, None, "pirate", "butler"]) for p in people}
    for i, (q, ans, th, _) in enumerate(qa):
        who, speaker = r.choice(people), r.choice(["User"] + people)
        asked = r.choice(["{q}", "{q}", "{s} said: {q}", "{s}: {q}"]).format(s=speaker, q=q)
        n = chat.note(r, who, per[who] if not style or r.random() < 0.5 else None)
        line = r.choice(["{a} {b}", "{b}\n{a}", "{a}\n{b}"]).format(a=n, b=asked)
        lines = said + [line]
        said = []
        ans = chat.styled(per[who], ans)
        if i < len(qa) - 1 and r.random() < 0.5:
            # this one is not the model's turn: the answer stands in the next user turn
            said = [line.replace(n, "").strip(), f"{who} said: {ans}"] if not turns or r.random() < 0.7 else [f"{who} said: {ans}"]
            if lines[:-1]:
                said = lines[:-1] + said
            continue
        turns.append(("\n".join(lines), ans, th))
    return turns, system, None


def chat_sample(codec, r, style=None):
    system = persona = None
    if r.random() < 0.35:
        system, persona, st = chat.system_prompt(r)
        style = style or st
    state, turns = {}, []
    roomy = r.random() < 0.12
    for _ in range(r.choice([1, 1, 2, 3, 4])):
        topic = "recall" if "name" in state and r.random() < 0.4 else ("pet" if "pet" in state and r.random() < 0.4 else None)
        if persona and r.random() < 0.3:
            topic = "ident"
        who, own = persona, style
        if roomy:
            who = chat.name(r)
            own = style or r.choice([None, None, "pirate", "butler"])
        q, a, th, tp = chat.chat(r, state, topic, persona=who)
        if roomy:
            n = chat.note(r, who, own if not style or r.random() < 0.5 else None)
            q = r.choice([f"{n} {q}", f"{q}\n{n}", f"{n}\n{q}"])
        turns.append((q, styled_answer(own, a, tp), th))
    return Sample(codec, tokens.segments(turns, system, r.random() < 0.35), None, "chat")


def drill_sample(codec, r, style=None, words=None):
    """Names and copying: what a small model learns last."""
    state, turns = {}, []
    for i in range(r.choice([1, 2, 3])):
        x = r.random()
        if x < 0.4:
            q, a = chat.say(r, words=words or r.choice([1, 1, 2, 3, 4, 5]))
            turns.append((q, styled_answer(style, a, "say"), "I repeat the words."))
            continue
        topic = "name" if "name" not in state or x < 0.55 else ("recall" if x < 0.75 else "pet")
        q, a, th, tp = chat.chat(r, state, topic)
        turns.append((q, styled_answer(style, a, tp), th))
    return Sample(codec, tokens.segments(turns, None, r.random() < 0.35), None, "drill")


def positions(ids, image_id, grid):
    """M-RoPE positions of one conversation with at most one picture of `grid` = (rows, columns)."""
    n = len(ids)
    p = np.tile(np.arange(n), (3, 1))
    if image_id in ids:
        s, k = ids.index(image_id), grid[0] * grid[1]
        i = np.arange(k)
        p[0, s : s + k] = s
        p[1, s : s + k] = s + i // grid[1]
        p[2, s : s + k] = s + i % grid[1]
        p[:, s + k :] = np.arange(n - s - k) + s + max(grid)
    return p


class Batch:
    """Packed rows: ids, the next token where the loss counts (else -100), positions, conversation numbers, pictures."""

    def __init__(s, codec, rows, length, grid, r, pictures=True):
        b = len(rows)
        s.grid = grid
        s.ids = np.full((b, length), codec.eot, np.int64)
        s.target = np.full((b, length), -100, np.int64)
        s.pos = np.zeros((3, b, length), np.int64)
        s.doc = np.full((b, length), -1, np.int64)
        s.scenes, px = [], []
        for i, row in enumerate(rows):
            at = 0
            for j, sm in enumerate(row):
                n = len(sm.ids)
                s.ids[i, at : at + n] = sm.ids
                tg = np.array(sm.ids[1:] + [codec.eot])
                tg[~np.array(sm.target[1:] + [False])] = -100
                s.target[i, at : at + n] = tg
                s.pos[:, i, at : at + n] = positions(sm.ids, codec.image, grid)
                s.doc[i, at : at + n] = j
                at += n
                if sm.scene is not None:
                    s.scenes.append(sm.scene)
                    px.append(scenes.patches(scenes.render(sm.scene, r, grid[1] * 32, grid[0] * 32)))
        s.ids, s.target, s.pos, s.doc = map(torch.from_numpy, (s.ids, s.target, s.pos, s.doc))
        s.px = noise(torch.from_numpy(np.stack(px)), r) if px else None


def noise(x, r):
    """Each picture with its own strength of noise: often the usual, sometimes none."""
    g = torch.Generator().manual_seed(r.randrange(1 << 31))
    sd = torch.tensor([r.choice([0.0, 2.0, 4.0, 4.0, 4.0]) for _ in range(x.shape[0])]).view(-1, 1, 1) / 127.5
    return (((x + torch.randn(x.shape, generator=g) * sd).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


class Packer:
    """An endless stream of packed batches."""

    def __init__(s, codec, seed, rows=12, length=192, mix=(0.5, 0.28, 0.22), style=None, sizes=(0.76, 0.12, 0.06, 0.06)):
        s.codec, s.r, s.rows, s.length, s.mix, s.style, s.sizes = codec, random.Random(seed), rows, length, mix, style, sizes
        s.words, s.kinds = None, scenes.WEIGHTS
        s.waiting = {}

    def change(s, mix, sizes, kinds):
        """Another mixture from here on."""
        s.mix, s.sizes, s.kinds = mix, sizes, kinds

    def sample(s, grid):
        x = s.r.random()
        if x < s.mix[0]:
            return picture_sample(s.codec, s.r, grid, s.style, s.kinds)
        if x < s.mix[0] + s.mix[1]:
            return chat_sample(s.codec, s.r, s.style)
        return drill_sample(s.codec, s.r, s.style, s.words)

    def next(s):
        w, h = s.r.choices(SIZES, s.sizes)[0]
        grid = (h // 32, w // 32)
        rows = [[] for _ in range(s.rows)]
        room = [s.length] * s.rows
        misses = 0
        pool = s.waiting.setdefault(grid, [])
        retry, pool[:] = list(pool), []
        while misses < 6:
            sm = retry.pop() if retry else s.sample(grid)
            if len(sm.ids) > s.length:
                continue
            fits = [i for i in range(s.rows) if room[i] >= len(sm.ids)]
            if not fits:
                misses += 1
                if len(pool) < 8:
                    pool.append(sm)
                continue
            i = min(fits, key=lambda i: room[i])
            rows[i].append(sm)
            room[i] -= len(sm.ids)
        return Batch(s.codec, rows, s.length, grid, s.r)
