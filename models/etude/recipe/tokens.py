"""The tokenizer, and conversations as token segments.

The vocabulary is etude's own byte-level BPE with the family's pre-tokenizer and special tokens.
`segments` renders what `chat_template.jinja` renders (`check_template.py` holds them equal).
"""

import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX

from . import chat, scenes

VOCAB = 1280
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
PLAIN = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]


def corpus(r: random.Random, n=12000):
    """Lines to learn the merges from: like the training data, with made-up words kept rare."""
    for i in range(n):
        q, ans, th, _ = scenes.ask(scenes.scene(r), r)
        yield f"{q}\n{ans}\n{th}\n"
        q, ans, th, _ = chat.chat(r, {})
        yield f"{q}\n{ans}\n{th}\n"
        if i % 4 == 0:
            yield chat.system_prompt(r)[0] + "\n" + chat.styled(r.choice(chat.STYLES), ans)
            yield chat.note(r, r.choice(chat.KNOWN_NAMES), r.choice([None] + chat.STYLES))
            yield r.choice(["Ada", "Ben", "Clara"]) + " said: " + ans
    for n in chat.KNOWN_NAMES * 20:
        yield f" {n}"
    for _ in range(500):
        yield "system\nuser\nassistant\n\n"


def train(path: Path):
    tk = Tokenizer(models.BPE())
    tk.normalizer = normalizers.NFC()
    tk.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tk.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIAL) - len(PLAIN),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[], show_progress=False, min_frequency=1,
    )
    tk.train_from_iterator(list(corpus(random.Random(5))), trainer)
    tk.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tk.add_tokens([AddedToken(t, special=False, normalized=False) for t in PLAIN])
    assert tk.get_vocab_size() == VOCAB
    tk.save(str(path))
    return tk


class Codec:
    """Text to ids with a memory of what was encoded before."""

    def __init__(self, path: Path):
        self.tk = Tokenizer.from_file(str(path)) if path.exists() else train(path)
        self.image, self.eot, self.end = (self.tk.token_to_id(t) for t in ("<|image_pad|>", "<|endoftext|>", "<|im_end|>"))
        self.cache = {}

    def __call__(self, text):
        ids = self.cache.get(text)
        if ids is None:
            ids = self.tk.encode(text, add_special_tokens=False).ids
            if len(self.cache) < 200_000:
                self.cache[text] = ids
        return ids

    def decode(self, ids):
        return self.tk.decode(ids, skip_special_tokens=False)


def segments(turns, system=None, thinking=False, image_at=None, image_tokens=9, image_first=True):
    """`[(text, is_target)]` of a conversation of `turns = [(question, answer, thought)]`.

    Each segment is encoded on its own when training; the cuts lie where the tokenizer cuts anyway.
    The last answer carries its thought (or the empty block), earlier ones none, as the template has it.
    The prompt of an answer ends after `<think>\\n` or after the empty block.
    """
    out = []
    if system:
        out.append((f"<|im_start|>system\n{system}<|im_end|>\n", False))
    pads = "<|vision_start|>" + "<|image_pad|>" * image_tokens + "<|vision_end|>"
    for i, (q, ans, th) in enumerate(turns):
        if i == image_at:
            q = pads + q if image_first else q + pads
        out.append((f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n", False))
        if i == len(turns) - 1:
            if thinking:
                out += [("<think>\n", False), (f"{th}\n</think>\n\n", True)]
            else:
                out.append(("<think>\n\n</think>\n\n", False))
        out += [(f"{ans}<|im_end|>", True), ("\n", False)]
    return out
