"""Holds `chat_template.jinja` equal to another template of the family, given as a path:

    python -m recipe.check_template FAMILY.jinja

The two may differ only where tools are described, which each words in its own way. Also checked,
without any other file: `tokens.segments` renders what the template renders.
"""

import itertools
import random
import sys
from pathlib import Path

from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from . import chat, tokens

HERE = Path(__file__).resolve().parent.parent


def load(path):
    import json

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])

    def fail(message):
        raise TemplateError(message)

    env.globals["raise_exception"] = fail
    env.filters["tojson"] = lambda x, **k: json.dumps(x, ensure_ascii=False)
    return env.from_string(Path(path).read_text())


def render(template, messages, **kw):
    try:
        return template.render(messages=messages, **kw)
    except TemplateError:
        return "refused"


def conversations():
    img, url = {"type": "image"}, {"type": "image_url", "image_url": {"url": "x"}}
    user, system = lambda c: {"role": "user", "content": c}, lambda c: {"role": "system", "content": c}
    said = lambda c, **k: {"role": "assistant", "content": c, **k}
    tool = lambda c: {"role": "tool", "content": c}
    call = lambda **a: {"type": "function", "function": {"name": "f", "arguments": a}}
    text = lambda t: {"type": "text", "text": t}
    yield []
    yield [user("Hello!")]
    yield [user("  spaces \n")]
    yield [system(" Be kind.\n"), user("Hello!"), said("Hi."), user("Bye")]
    yield [system(""), user("Hello!")]
    yield [system([text("Be "), text("kind.")]), user([img, text("What?")])]
    yield [system([img]), user("a")]
    yield [user([text("a "), img, text(" b"), url]), said("x"), user([img])]
    yield [user([{"type": "video"}, text("b"), {"video": "v"}])]
    yield [user("q"), said("<think>\nwhy\n</think>\n\nb"), user("q2"), said("<think>why</think>c")]
    yield [user("q"), said("b", reasoning_content=" why\n"), user("q2"), said("c", reasoning_content="\nbecause ")]
    yield [user("q"), said("no thought at the end")]
    yield [user("q"), said("b", reasoning_content=None)]
    yield [user("q"), said("", tool_calls=[call(x=1, y="s")]), tool("r1"), tool(" r2 "), said("done"), user("more")]
    yield [user("q"), said("I call", tool_calls=[call(x=[1, 2], z={"a": "é"}), {"name": "g", "arguments": {}}]), tool("r1")]
    yield [user("q"), said(None, tool_calls=[call(b=True, n=None, f=1.5)]), tool([text("r")]), said("ok", reasoning_content="t")]
    yield [user("q"), said("", tool_calls=[{"name": "g"}]), tool("r"), user("<tool_response>\nx\n</tool_response>"), said("e")]
    yield [user("<tool_response>\nx\n</tool_response>")]
    yield [said("I begin"), user("q")]
    yield [user("q"), system("late")]
    yield [user("q"), {"role": "critic", "content": "x"}]
    yield [tool("first"), user("q")]
    yield [user("q"), said("<b>bold</b> & 'quotes' \"x\"\\n")]
    yield [user(5)]
    yield [user([{"type": "audio"}])]
    r = random.Random(7)
    for _ in range(300):
        ms = [system(r.choice(["a", " b "]))] if r.random() < 0.5 else []
        for _ in range(r.randint(1, 6)):
            c = r.choice(["x", " y\n", [text("t"), img], [img, text(" u ")], "<think>\nm\n</think>\n\nn"])
            k = r.random()
            ms.append(user(c) if k < 0.4 else said(c) if k < 0.6 else said("w", reasoning_content=r.choice(["p", ""])) if k < 0.75 else said("", tool_calls=[call(k=r.choice(["v", 3, [1]]))] * r.randint(1, 2)) if k < 0.87 else tool("z"))
        yield ms


def against(path):
    ours, theirs, n, refused = load(HERE / "chat_template.jinja"), load(path), 0, 0
    for ms in conversations():
        for gen, think, ids in itertools.product((False, True), (None, False, True), (False, True)):
            kw = dict(add_generation_prompt=gen, add_vision_id=ids)
            if think is not None:
                kw["enable_thinking"] = think
            a, b = render(ours, ms, **kw), render(theirs, ms, **kw)
            assert a == b, (ms, kw, a, b)
            n, refused = n + 1, refused + (a == "refused")
    print(f"{n} renderings are equal, of which {refused} are refused by both")


def segments():
    ours, r = load(HERE / "chat_template.jinja"), random.Random(3)
    for i in range(200):
        state, turns = {}, []
        for _ in range(r.randint(1, 4)):
            turns.append(chat.chat(r, state)[:3])
        system, thinking, at = r.choice([None, "You are Ada."]), r.random() < 0.5, r.choice([None, 0])
        ms = [{"role": "system", "content": system}] if system else []
        for j, (q, a, th) in enumerate(turns):
            ms.append({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": q}] if j == at else q})
            ms.append({"role": "assistant", "content": a, "reasoning_content": th if thinking else ""})
        text = "".join(t for t, _ in tokens.segments(turns, system, thinking, at, 1))
        # an answer without a thought stands after an empty block, which the template renders alike
        assert text == render(ours, ms), (text, render(ours, ms))
        assert text.startswith(render(ours, ms[:-1], add_generation_prompt=True, enable_thinking=thinking))
    print("the recipe's segments are what the template renders")


if __name__ == "__main__":
    segments()
    for path in sys.argv[1:]:
        against(path)
