"""The phases of training. Every phase is counted in steps, seeded, and resumes from its checkpoint.

vision   the vision tower alone, with throw-away heads that name colour, shape and place of each visual token
base     the whole model on packed conversations, the same heads kept as a small auxiliary loss
mtp      the multi-token prediction layer, the rest frozen
adapter  one persona adapter (PEFT), the rest frozen
"""

import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import batches, net, scenes

_COLOUR = {c: i + 1 for i, c in enumerate(scenes.COLOURS)}
_SHAPE = {s: i + 1 for i, s in enumerate(scenes.SHAPES)}


class Heads(nn.Module):
    """What each of the 3×3 visual tokens shows: colour, shape (0 = nothing), and which token it is."""

    def __init__(s):
        super().__init__()
        s.colour, s.shape, s.place = nn.Linear(256, 9), nn.Linear(256, 5), nn.Linear(256, 9)

    @staticmethod
    def labels(some):
        y = torch.zeros(len(some), 9, 2, dtype=torch.long)
        for b, objs in enumerate(some):
            for c, s, p in objs:
                y[b, scenes.CELL[p], 0], y[b, scenes.CELL[p], 1] = _COLOUR[c], _SHAPE[s]
        return y

    def forward(s, f, y):
        at = torch.arange(9).repeat(f.shape[0])
        return (
            F.cross_entropy(s.colour(f).flatten(0, 1), y[..., 0].flatten())
            + F.cross_entropy(s.shape(f).flatten(0, 1), y[..., 1].flatten())
            + F.cross_entropy(s.place(f).flatten(0, 1), at)
        )


def log(*parts):
    print(time.strftime("%H:%M:%S", time.gmtime()), *parts, flush=True)


def save(path, **state):
    tmp = path.with_suffix(".tmp")
    torch.save(state, tmp)
    tmp.replace(path)


def cosine(step, steps, warm, floor):
    return min(1, (step + 1) / warm) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1, step / steps))))


def vision_phase(model, heads, work: Path, steps=700, rows=48, lr=2e-3, seed=11):
    """All three named right after a minute or two; without this phase, answers about pictures stay at chance."""
    done = work / "vision.pt"
    if done.exists():
        z = torch.load(done)
        model.model.visual.load_state_dict(z["visual"])
        heads.load_state_dict(z["heads"])
        return
    vis = model.model.visual
    params = list(vis.parameters()) + list(heads.parameters())
    opt = torch.optim.AdamW(params, lr=lr, weight_decay=0.02, betas=(0.9, 0.98), fused=True)
    cst = net.vision_constants(vis, 6, 6)
    r = random.Random(seed)

    def draw(n, held=False):
        some = [scenes.scene(r, held) for _ in range(n)]
        px = np.stack([scenes.patches(scenes.render(o, r)) for o in some])
        return batches.noise(torch.from_numpy(px), r), Heads.labels(some)

    total = 0.0
    for step in range(steps):
        for g in opt.param_groups:
            g["lr"] = lr * cosine(step, steps, 50, 0.05)
        px, y = draw(rows)
        loss = heads(net.vision(vis, px, cst), y)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        opt.zero_grad()
        total += loss.item()
        if (step + 1) % 50 == 0:
            log(f"vision {step + 1}/{steps} loss {total / 50:.4f}")
            total = 0.0
    with torch.no_grad():
        for held in (False, True):
            px, y = draw(300, held)
            f = net.vision(vis, px, cst)
            ok = (heads.colour(f).argmax(-1) == y[..., 0]) & (heads.shape(f).argmax(-1) == y[..., 1])
            log(f"vision, held out {held}: pictures with all tokens right {ok.all(-1).float().mean():.3f}")
    save(done, visual=vis.state_dict(), heads=heads.state_dict())


def forward(model, codec, b, cst, trunk=net.trunk):
    """Hidden states of a batch (final-normed) and the features of its pictures."""
    lm = model.model.language_model
    f = None
    if b.px is not None:
        if b.grid not in cst:
            cst[b.grid] = net.vision_constants(model.model.visual, b.grid[0] * 2, b.grid[1] * 2)
        f = net.vision(model.model.visual, b.px, cst[b.grid])
    cos, sin = net.rope(lm, b.pos)
    x = net.embed(lm, b.ids, f, codec.image)
    return trunk(lm, x, cos, sin, net.same_conversation(b.doc), b.doc), f


def trapezoid(step, steps, decay_from, warm=100, floor=0.01):
    """Warm up, hold, fall in a straight line: the fall may be placed late, when the scores are known."""
    if step < decay_from:
        return min(1, (step + 1) / warm)
    return max(floor, (steps - step) / (steps - decay_from))


def base_phase(model, heads, codec, work: Path, steps, decay_from, part="base", lr=2e-3, seed=1000, init=None, compiled=False, aux=0.2, vision_lr=0.3, decay=0.05, mixtures={}, **packer):
    """`part` names this stretch of training; `init` the one whose weights it starts from.

    `mixtures`: {step: (mix, sizes, kinds)}, the shares of conversations, sizes of pictures and questions from a step on.
    """
    done, ckpt = work / f"{part}.pt", work / f"{part}.ckpt"
    if done.exists():
        model.load_state_dict(torch.load(done)["model"])
        return
    if init:
        z = torch.load(work / f"{init}.pt")
        model.load_state_dict(z["model"])
        heads.load_state_dict(z["heads"])
    groups = []
    for visual in (False, True):
        for decays in (False, True):
            ps = [p for n, p in model.named_parameters() if (".visual." in n) == visual and (p.dim() >= 2 and "embed" not in n and "conv1d" not in n) == decays]
            groups.append(dict(params=ps, weight_decay=decay if decays else 0.0, scale=vision_lr if visual else 1.0))
    groups.append(dict(params=list(heads.parameters()), weight_decay=0.0, scale=1.0))
    params = [p for g in groups for p in g["params"]]
    opt = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    start = 0
    pk = batches.Packer(codec, seed, **packer)
    if ckpt.exists():
        z = torch.load(ckpt, weights_only=False)
        model.load_state_dict(z["model"])
        heads.load_state_dict(z["heads"])
        opt.load_state_dict(z["opt"])
        pk.r.setstate(z["rng"])
        start = z["step"]
    trunk = torch.compile(net.trunk) if compiled else net.trunk
    lm, cst = model.model.language_model, {}
    t0, saved, total, n = time.time(), time.time(), 0.0, 0
    for step in range(start, steps):
        for g in opt.param_groups:
            g["lr"] = lr * g["scale"] * trapezoid(step, steps, decay_from)
        for since in sorted(mixtures):
            if step >= since:
                pk.change(*mixtures[since])
        b = pk.next()
        h, f = forward(model, codec, b, cst, trunk)
        sel = b.target >= 0
        loss = F.cross_entropy(F.linear(h[sel], lm.embed_tokens.weight), b.target[sel])
        whole = loss
        if aux and f is not None and b.grid == (3, 3):
            whole = loss + aux * heads(f, Heads.labels(b.scenes))
        whole.backward()
        gn = nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        total, n = total + loss.item(), n + b.ids.numel()
        if (step + 1) % 50 == 0:
            log(f"{part} {step + 1}/{steps} loss {total / 50:.4f} gn {gn:.2f} lr {opt.param_groups[0]['lr']:.5f} tok/s {n / (time.time() - t0):.0f}")
            total = 0.0
        if time.time() - saved > 120:
            save(ckpt, model=model.state_dict(), heads=heads.state_dict(), opt=opt.state_dict(), rng=pk.r.getstate(), step=step + 1)
            saved = time.time()
    save(done, model=model.state_dict(), heads=heads.state_dict())
    ckpt.unlink(missing_ok=True)


def mtp_phase(model, codec, work: Path, steps, lr=2e-3, seed=3000, part="mtp", init=None, **packer):
    """Trains the MTP layer alone; gives it back.

    Engines disagree whether it is fed the trunk's hidden state before or after the final norm. Its own
    norm undoes all of the difference but the final norm's weight, so each step trains on one of the two.
    """
    mtp = net.init(net.Mtp(model.config.text_config), 9)
    done, ckpt = work / f"{part}.pt", work / f"{part}.ckpt"
    if done.exists():
        mtp.load_state_dict(torch.load(done)["mtp"])
        return mtp
    if init:
        mtp.load_state_dict(torch.load(work / f"{init}.pt")["mtp"])
    opt = torch.optim.AdamW(mtp.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    pk, start = batches.Packer(codec, seed, **packer), 0
    if ckpt.exists():
        z = torch.load(ckpt, weights_only=False)
        mtp.load_state_dict(z["mtp"])
        opt.load_state_dict(z["opt"])
        pk.r.setstate(z["rng"])
        start = z["step"]
    total, agree, cst, saved = 0.0, [0, 0], {}, time.time()
    lm = model.model.language_model
    for step in range(start, steps):
        for g in opt.param_groups:
            g["lr"] = lr * cosine(step, steps, 50, 0.02)
        b = pk.next()
        with torch.no_grad():
            h, nxt, teacher, sel, cos, sin, past = mtp_inputs(model, codec, b, cst)
            if pk.r.random() < 0.5:
                h = h / (1 + lm.norm.weight)
        out = mtp(h, nxt, cos, sin, past)[sel]
        logits = F.linear(out, lm.embed_tokens.weight)
        loss = F.cross_entropy(logits, teacher[sel])
        loss.backward()
        nn.utils.clip_grad_norm_(mtp.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        total += loss.item()
        agree[0] += (logits.argmax(-1) == teacher[sel]).sum().item()
        agree[1] += int(sel.sum())
        if (step + 1) % 50 == 0:
            log(f"{part} {step + 1}/{steps} loss {total / 50:.4f} drafts accepted {agree[0] / agree[1]:.3f}")
            total, agree = 0.0, [0, 0]
        if time.time() - saved > 120:
            save(ckpt, mtp=mtp.state_dict(), opt=opt.state_dict(), rng=pk.r.getstate(), step=step + 1)
            saved = time.time()
    save(done, mtp=mtp.state_dict())
    ckpt.unlink(missing_ok=True)
    return mtp


def mtp_inputs(model, codec, b, cst):
    """At t: hidden state, the embedding of token t+1, and what the trunk itself says of token t+2, its argmax.

    Only where the answer's own tokens are drafted: t+2 is one which the loss counts.
    """
    lm = model.model.language_model
    h, _ = forward(model, codec, b, cst)
    e = lm.embed_tokens(b.ids)
    nxt = torch.cat([e[:, 1:], e[:, -1:]], 1)
    best = F.linear(h, lm.embed_tokens.weight).argmax(-1)
    teacher = torch.cat([best[:, 1:], best[:, -1:]], 1)
    counts = torch.cat([b.target[:, 1:] >= 0, torch.zeros_like(b.target[:, :1], dtype=torch.bool)], 1)
    same = torch.cat([b.doc[:, 1:] == b.doc[:, :-1], torch.zeros_like(b.doc[:, :1], dtype=torch.bool)], 1)
    cos, sin = net.rope(lm, b.pos)
    return h, nxt, teacher, counts & same, cos, sin, net.same_conversation(b.doc)


TARGETS = "in_proj_qkv in_proj_z in_proj_a in_proj_b out_proj q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()


def adapter_phase(model, codec, style, out: Path, steps, lr=5e-4, seed=5000, **packer):
    """A persona as a PEFT adapter of rank 8 on every linear layer of the text model; `model` itself stays as it is."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    wrapped = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, lora_dropout=0.0, bias="none"))
    params = [p for p in wrapped.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    pk = batches.Packer(codec, seed, style=style, **packer)
    total, cst, lm = 0.0, {}, model.model.language_model
    for step in range(steps):
        for g in opt.param_groups:
            g["lr"] = lr * cosine(step, steps, 20, 0.05)
        b = pk.next()
        h, _ = forward(model, codec, b, cst)
        sel = b.target >= 0
        loss = F.cross_entropy(F.linear(h[sel], lm.embed_tokens.weight), b.target[sel])
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        total += loss.item()
        if (step + 1) % 20 == 0:
            log(f"{style} {step + 1}/{steps} loss {total / 20:.4f}")
            total = 0.0
    wrapped.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)  # peft's empty card
    config = json.loads((out / "adapter_config.json").read_text())
    config["target_modules"].sort()  # a set, else written in another order each time
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    return wrapped.unload()
