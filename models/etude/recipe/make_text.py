"""Writes conversations as text: `python -m recipe.make_text OUT [--seed 7] [--conversations 48]`.

For perplexity and divergence: what a model of this family reads, special tokens spelled out, rendered by the model's own
template. A quarter of the conversations has held-out names and combinations, half think first, a third has a system prompt.
Deterministic by seed.
"""

import argparse
import random
from pathlib import Path

from transformers import AutoTokenizer

from . import chat

MODEL = Path(__file__).resolve().parents[1]


def conversation(r: random.Random, held_out):
    messages, state, persona = [], {}, None
    thinking = r.random() < 0.5
    if r.random() < 0.33:
        text, persona, style = chat.system_prompt(r)
        messages.append({"role": "system", "content": text})
    else:
        style = None
    topics = list(chat.TOPICS)
    topics.remove("noimg")
    for _ in range(r.choice([1, 2, 3, 4])):
        topic = "recall" if "name" in state and r.random() < 0.4 else r.choice(topics)
        unseen = held_out and topic in chat.HELD_OUT_TOPICS
        question, answer, thought, topic = chat.chat(r, state, topic, unseen, persona)
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": chat.styled(style, answer, topic), "reasoning_content": thought if thinking else ""})
    return messages


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--conversations", type=int, default=48)
    given = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    r = random.Random(given.seed)
    texts = [tokenizer.apply_chat_template(conversation(r, i % 4 == 0), tokenize=False) for i in range(given.conversations)]
    given.out.write_text("".join(texts))
    print(len(tokenizer("".join(texts))["input_ids"]), "tokens")


if __name__ == "__main__":
    main()
