"""Bounded JSON schemas are obeyed in 200 of 200 sampled replies, through every address that takes them. Run by run.sh.

Each reply is sampled at temperature 1 with a seed of its own, must end of itself, and is judged by a validator that the
server knows nothing of.

Where a vLLM computes the model, one thing is let pass and counted: xgrammar, which holds replies to forms there, lets tabs and other
control characters into texts whose length has bounds. JSON wants them written as escapes.
"""

import collections
import concurrent.futures
import json
import os
import sys
import time

import anthropic
import jsonschema
import openai

BASE, KEY = sys.argv[1], os.environ["CONSORT_API_KEY"]
oai = openai.OpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=4)
ant = anthropic.Anthropic(base_url=BASE, api_key=KEY, max_retries=4)
REMOTE = os.environ.get("CONSORT_REMOTE") == "vllm"
REPLIES = 200
MOST = 600


def closed(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


WORD = {"type": "string", "minLength": 1, "maxLength": 8}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
SCHEMAS = {
    "enum": closed(colour={"enum": ["red", "green", "dark blue"]}),
    "const": closed(kind={"const": "shape"}, sides=DIGIT),
    "mixed enum": closed(value={"enum": [1, "one", None, True, 2.5]}),
    "integer": closed(low={"type": "integer", "minimum": -20, "maximum": -3}, high={"type": "integer", "exclusiveMinimum": 95, "maximum": 120}),
    "number": closed(share={"type": "number", "minimum": 0, "maximum": 1}),
    "boolean and null": closed(round={"type": "boolean"}, nothing={"type": "null"}),
    "short text": closed(name=WORD),
    "pattern": closed(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    "array": closed(steps={"type": "array", "items": DIGIT, "minItems": 2, "maxItems": 4}),
    "array of texts": closed(words={"type": "array", "items": WORD, "maxItems": 3}),
    "tuple": {"type": "array", "prefixItems": [{"enum": ["x", "y"]}, DIGIT], "minItems": 2, "maxItems": 2, "items": False},
    "nested": closed(shape=closed(name={"enum": ["circle", "square"]}, at=closed(x=DIGIT, y=DIGIT)), seen={"type": "boolean"}),
    "optional": {
        "type": "object",
        "properties": {"a": DIGIT, "b": {"type": "boolean"}, "c": WORD},
        "required": ["b"],
        "additionalProperties": False,
    },
    "any of": closed(answer={"anyOf": [DIGIT, {"enum": ["none", "many"]}, closed(at=DIGIT)]}),
    "several types": closed(value={"type": ["integer", "null"], "minimum": 0, "maximum": 99}),
    "references": {
        "$defs": {"place": closed(x=DIGIT, y=DIGIT)},
        **closed(begin={"$ref": "#/$defs/place"}, end={"$ref": "#/$defs/place"}),
    },
    "bounded recursion": {
        "$defs": {"leaf": closed(value=DIGIT), "pair": closed(left={"$ref": "#/$defs/leaf"}, right={"$ref": "#/$defs/leaf"})},
        **closed(root={"$ref": "#/$defs/pair"}),
    },
    "array of objects": closed(shapes={"type": "array", "minItems": 1, "maxItems": 2, "items": closed(sides=DIGIT, filled={"type": "boolean"})}),
    "a bare number": {"type": "integer", "minimum": 100, "maximum": 999},
    "odd names": closed(**{"a b": DIGIT, "ä\"\\": {"enum": ["ö\n", "\u2028"]}}),
}


def chat(schema, seed, question):
    form = {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}}
    reply = oai.chat.completions.create(model="etude", messages=question, temperature=1, seed=seed, max_tokens=MOST,
                                        response_format=form, reasoning_effort="none")
    return reply.choices[0].message.content, reply.choices[0].finish_reason == "stop"


def responses(schema, seed, question):
    form = {"type": "json_schema", "name": "reply", "strict": True, "schema": schema}
    reply = oai.responses.create(model="etude", input=question, temperature=1, max_output_tokens=MOST, text={"format": form},
                                 reasoning={"effort": "none"}, extra_body={"seed": seed})
    return reply.output_text, reply.status == "completed"


def messages(schema, seed, question):
    reply = ant.messages.create(model="etude", messages=question, max_tokens=MOST, thinking={"type": "disabled"},
                                output_config={"format": {"type": "json_schema", "schema": schema}},
                                extra_body={"temperature": 1, "seed": seed})
    return reply.content[0].text, reply.stop_reason == "end_turn"


def sample(number):
    names = list(SCHEMAS)
    name, ask = names[number % len(names)], (chat, responses, messages)[number % 3]
    question = [{"role": "user", "content": ("What do you see?", "Tell me a story about a fox.", "Hello!")[number // 3 % 3]}]
    text, ended = ask(SCHEMAS[name], number, question)
    try:
        jsonschema.validate(json.loads(text, strict=not REMOTE), SCHEMAS[name], cls=jsonschema.Draft202012Validator)
        return (name, ask.__name__, text, "" if ended else "did not end of itself")
    except (ValueError, jsonschema.ValidationError) as error:
        return (name, ask.__name__, text, str(error).splitlines()[0])


began = time.monotonic()
with concurrent.futures.ThreadPoolExecutor(8) as many:
    replies = list(many.map(sample, range(REPLIES)))
bad = [reply for reply in replies if reply[3]]
for reply in bad:
    print("NOT OBEYED", *reply, file=sys.stderr)
raw = sum(any(character < " " for character in text) for _, _, text, _ in replies)
if REMOTE and raw:
    print(f"not by vLLM: {raw} of {REPLIES} replies have control characters in their texts, unescaped")
different = len({(name, text) for name, _, text, _ in replies})
by_address = collections.Counter(address for _, address, _, _ in replies)
print(f"schemas: {REPLIES - len(bad)} of {REPLIES} sampled replies obey their schema ({len(SCHEMAS)} schemas, {different} different replies, "
      f"{dict(by_address)}, {time.monotonic() - began:.0f} s)")
# Sampling that always says the same would prove little.
sys.exit(1 if bad or different < REPLIES // 3 else 0)
