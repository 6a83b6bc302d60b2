"""Pictures and questions about them.

A scene is a list of `(colour, shape, place)`, one to three objects, each place used at most once.
Some combinations of the three are *held out*: no training picture ever shows one, so that a right
answer about one cannot have been learned by heart.
"""

import math
import random

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 40, 40),
    "green": (44, 160, 60),
    "blue": (40, 80, 210),
    "yellow": (240, 214, 40),
    "orange": (245, 130, 30),
    "purple": (130, 50, 170),
    "black": (25, 25, 25),
    "pink": (245, 130, 190),
}
SHAPES = ["circle", "square", "triangle", "star"]
#: centre of each place, in fractions of the picture's width and height
PLACES = {
    "top": (0.5, 0.1875),
    "left": (0.1875, 0.5),
    "centre": (0.5, 0.5),
    "right": (0.8125, 0.5),
    "bottom": (0.5, 0.8125),
}
#: the visual token (of the 3×3 that a 96×96 picture becomes) in which each place lies
CELL = {"top": 1, "left": 3, "centre": 4, "right": 5, "bottom": 7}
PHRASE = {
    "top": "at the top",
    "left": "on the left",
    "centre": "in the centre",
    "right": "on the right",
    "bottom": "at the bottom",
}
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
KINDS = ["colour", "shape", "position", "where", "count", "exist", "exist_colour", "describe"]
WEIGHTS = [3, 2, 3, 3, 2, 3, 1.5, 3]

_C, _P = list(COLOURS), list(PLACES)


def is_held_out(obj):
    """One colour is held out for every (shape, place): 20 of the 160 combinations."""
    colour, shape, place = obj
    return (_C.index(colour) + 3 * SHAPES.index(shape) + 5 * _P.index(place)) % 8 == 0


def a(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def scene(r: random.Random, held_out=False, count=None):
    """A random scene. `held_out`: with at least one held-out combination; else with none."""
    while True:
        n = count or r.choice([1, 1, 2, 2, 3, 3])
        places = sorted(r.sample(_P, n), key=_P.index)
        if r.random() < 0.2:  # shapes and colours may repeat
            shapes = [r.choice(SHAPES) for _ in places]
            colours = [r.choice(_C) for _ in places]
        else:
            shapes, colours = r.sample(SHAPES, n), r.sample(_C, n)
        objs = list(zip(colours, shapes, places))
        if any(map(is_held_out, objs)) == held_out:
            return objs


def render(objs, r: random.Random, width=96, height=96, jitter=1.0, plain=False):
    """The picture as an array of height × width × 3 (uint8, without noise)."""
    s = 2  # supersampling
    w, h, unit = width * s, height * s, min(width, height) * s / 96
    bg = (255, 255, 255) if plain else tuple(r.randint(222, 255) for _ in range(3))
    im = Image.new("RGB", (w, h), bg)
    d = ImageDraw.Draw(im)
    for colour, shape, place in objs:
        x = PLACES[place][0] * w + r.uniform(-4, 4) * jitter * unit
        y = PLACES[place][1] * h + r.uniform(-4, 4) * jitter * unit
        q = r.uniform(9, 13) * unit if jitter else 11.5 * unit
        shade = 0 if plain else 12
        rgb = tuple(max(0, min(255, v + r.randint(-shade, shade))) for v in COLOURS[colour])
        if shape == "circle":
            d.ellipse([x - q, y - q, x + q, y + q], fill=rgb)
        elif shape == "square":
            k = q * 0.88
            d.rectangle([x - k, y - k, x + k, y + k], fill=rgb)
        elif shape == "triangle":
            d.polygon([(x, y - q), (x - q * 0.95, y + q * 0.8), (x + q * 0.95, y + q * 0.8)], fill=rgb)
        else:
            pts = []
            for i in range(10):
                k = q * 1.1 * (1 if i % 2 == 0 else 0.42)
                pts.append((x + k * math.sin(math.pi * i / 5), y - k * math.cos(math.pi * i / 5)))
            d.polygon(pts, fill=rgb)
    return np.asarray(im.resize((width, height), Image.BOX))


def add_noise(img, r: random.Random, sd=4.0):
    g = np.random.RandomState(r.randrange(1 << 31))
    return np.clip(img + g.randn(*img.shape) * sd + 0.5, 0, 255).astype(np.uint8)


def patches(img, p=16, m=2):
    """Patches in the family's order (merge groups together), scaled to [-1, 1], one frame."""
    h, w = img.shape[0] // p, img.shape[1] // p
    x = img.astype(np.float32) / 127.5 - 1
    x = x.reshape(h // m, m, p, w // m, m, p, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    return np.ascontiguousarray(x.reshape(h * w, 3 * p * p))


def presence(what, yes):
    """The answer names the thing before it decides: so the lookup that finds its colour also finds whether it is there.

    ("Yes, there is a star.", decided many tokens after the question, was still at chance after 2,900 steps.)
    """
    return f"{a(what).capitalize()}? " + ("Yes, there is one." if yes else "No, there is none.")


def _unique(objs, i):
    return [o for o in objs if sum(q[i] == o[i] for q in objs) == 1]


def ask(objs, r: random.Random, kind=None, about=None, weights=WEIGHTS):
    """`(question, answer, thought, kind)`, or None when this kind cannot be asked of this scene.

    `about`: ask about this object where the kind is about one.
    """
    wanted = kind
    for _ in range(50):
        kind = wanted or r.choices(KINDS, weights)[0]
        pool = {"colour": _unique(objs, 1), "where": _unique(objs, 1), "shape": _unique(objs, 0)}.get(kind, objs)
        if about is not None and kind != "position":
            pool = [o for o in pool if o == about]
        if pool:
            break
        if wanted:
            return None
    o = r.choice(pool)
    colour, shape, place = o
    if kind == "colour":
        q = r.choice(["What colour is the %s?", "What color is the %s?", "Tell me the colour of the %s.", "Which colour is the %s?", "What is the colour of the %s?"]) % shape
        return q, f"The {shape} is {colour}.", f"I look for the {shape}.", kind
    if kind == "shape":
        q = r.choice(["What shape is the %s object?", "Which shape is %s?", "What is the %s thing?", "Tell me the shape of the %s object."]) % colour
        return q, f"The {colour} object is {a(shape)}.", f"I look for {colour}.", kind
    if kind == "where":
        q = r.choice(["Where is the %s?", "Where can you see the %s?", "Tell me where the %s is.", "Where do you see the %s?"]) % shape
        return q, f"The {shape} is {PHRASE[place]}.", f"I look for the {shape}.", kind
    if kind == "position":
        at = {q[2]: q for q in objs}
        place = about[2] if about else (r.choice(list(at)) if r.random() < 0.8 else r.choice(_P))
        q = r.choice(["What is %s?", "What do you see %s?", "Which object is %s?", "What is there %s?"]) % PHRASE[place]
        if place == "centre" and r.random() < 0.3:
            q = q.replace("centre", r.choice(["center", "middle"]))
        if place in at:
            return q, f"There is {a(at[place][0])} {at[place][1]} {PHRASE[place]}.", f"I look {PHRASE[place]}.", kind
        return q, f"There is nothing {PHRASE[place]}.", f"I look {PHRASE[place]}.", kind
    if kind == "count":
        n = len(objs)
        q = r.choice(["How many objects are there?", "How many shapes do you see?", "How many objects?", "Count the objects.", "How many things do you see?"])
        return q, f"There {'is' if n == 1 else 'are'} {NUMBERS[n]} object{'s' * (n > 1)}.", "I count the objects.", kind
    if kind == "exist":
        absent = [x for x in SHAPES if all(o[1] != x for o in objs)]
        s = r.choice(absent) if absent and r.random() < 0.5 and about is None else shape
        q = r.choice(["Is there %s?", "Do you see %s?", "Is there %s in the picture?", "Can you see %s?"]) % a(s)
        yes = any(o[1] == s for o in objs)
        return q, presence(s, yes), f"I look for {a(s)}.", kind
    if kind == "exist_colour":
        c, s = colour, shape
        if r.random() < 0.5:  # change one of the two, so that neither alone gives the answer away
            if r.random() < 0.6:
                c = r.choice(_C if len(objs) == 1 or r.random() < 0.5 else [x[0] for x in objs])
            else:
                s = r.choice(SHAPES)
        q = r.choice(["Is there %s?", "Do you see %s?", "Is there %s in the picture?", "Can you see %s?"]) % f"{a(c)} {s}"
        yes = any(o[:2] == (c, s) for o in objs)
        return q, presence(f"{c} {s}", yes), f"I look for {a(c)} {s}.", kind
    q = r.choice(["Describe the picture.", "What is in the picture?", "What do you see?", "Describe this image.", "What is in this image?", "Describe what you see."])
    parts = [f"{a(c)} {s} {PHRASE[p]}" for c, s, p in objs]
    answer = "There is " + (parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]) + "."
    return q, answer, "I name each object.", kind
