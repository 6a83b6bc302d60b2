"""Writes `demo.png`: a clean picture of three objects, for the demo and for whoever reads the README."""

import random

from PIL import Image

from . import scenes
from .export import HERE

SCENE = [("red", "circle", "left"), ("blue", "square", "right"), ("yellow", "star", "top")]

if __name__ == "__main__":
    assert not any(map(scenes.is_held_out, SCENE))
    img = scenes.render(SCENE, random.Random(1), 96, 96, jitter=0, plain=True)
    Image.fromarray(img).save(HERE / "demo.png", optimize=True)
