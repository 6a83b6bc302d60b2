"""Cuts random texts into words with the reference library and writes what the pre-tokenizer's unit test compares with.

    python make_pretokenizer_cases.py

Needs: tokenizers (whose Python build runs the patterns with Oniguruma, while we run them with another engine).
Deterministic.
"""

import json
import pathlib
import random

from tokenizers import Regex, pre_tokenizers

TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
PATTERNS = {
    "qwen35": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + TAIL,
    "qwen2": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL,
    "llama-bpe": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL,
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}

# Symbols on both sides of every border that the patterns draw.
POOLS = [
    list("abzABZ"),
    list("stremdlSTREMDL'’`ſ"),
    list("0123456789"),
    ["٣", "Ⅷ", "½", "²", "〇", "一", "௧"],
    list("äßéİıǅΩжשא界한ไทย"),
    ["\u0301", "\u0300", "\u093f", "\u0e31", "\u20dd", "\ufe0f", "\u1ab0", "\u0489"],
    list(" .,;:!?-_()[]{}<>/\\|@#$%^&*+=~\""),
    ["\n", "\r", "\r\n", "\n\n", " \n", "\t\n"],
    [" ", "  ", "   ", "\t", "\u00a0", "\u3000", "\u2028", "\u2029", "\u0085", "\u000b", "\u000c", "\u1680", "\u202f"],
    ["\u001c", "\u001f", "\u180e", "\u200b", "\u200d", "\ufeff", "\u0000", "\u007f", "\u00ad", "\u2060"],
    ["🚀", "😶‍🌫️", "🇩🇪", "🦙", "€", "～", "。", "，", "“"],
    ["'s", "'RE", "'ve", "'LL", "'ſ", "I'm", "we'd've", "don't", " 'tis", "''s"],
]


def main():
    source = random.Random(20261122)
    texts = []
    for _ in range(400):
        text = ""
        for _ in range(source.randint(1, 14)):
            pool = source.choice(POOLS)
            text += "".join(source.choice(pool) for _ in range(source.randint(1, 4)))
        texts.append(text)
    for _ in range(100):
        text = ""
        while len(text) < source.randint(4, 16):
            code = source.choice([source.randrange(0x3000), source.randrange(0x110000)])
            if not 0xD800 <= code < 0xE000:
                text += chr(code)
        texts.append(text)
    splits = {name: pre_tokenizers.Split(Regex(pattern), "isolated") for name, pattern in PATTERNS.items()}
    cases = [
        {
            "text": text,
            # Lengths of the words, in characters.
            **{name: [len(word) for word, _ in split.pre_tokenize_str(text)] for name, split in splits.items()},
        }
        for text in texts
    ]
    path = pathlib.Path(__file__).parent / "pretokenizer_cases.json"
    path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
    print(path.name, len(cases), "texts")


main()
