"""The official Anthropic client for Python against `consort serve` with the bundled model. Run by run.sh.

Every check is an assertion; the last line says how many things were checked.
"""

import asyncio
import base64
import os
import pathlib
import sys
import typing

import anthropic
import pydantic

BASE = sys.argv[1]
KEY = os.environ["CONSORT_API_KEY"]
ROOT = pathlib.Path(__file__).resolve().parents[2]
client = anthropic.Anthropic(base_url=BASE, api_key=KEY, max_retries=0)
REMOTE = os.environ.get("CONSORT_REMOTE") == "vllm"
# vLLM reuses whole blocks of a prompt, which are long with this model.
AGAIN = "Hello! " * 400 if REMOTE else "Hello!"
OFF = {"type": "disabled"}
checks = 0


def check(holds, what=""):
    global checks
    checks += 1
    assert holds, what


def user(content):
    return [{"role": "user", "content": content}]


def ask(content, **more):
    """What a message's arguments are. The client no longer has those of sampling: they go in the body."""
    more.setdefault("thinking", OFF)
    more.setdefault("extra_body", {"temperature": 0})
    return {"model": "etude", "messages": user(content), "max_tokens": 400, **more}


def message(content, **more):
    return client.messages.create(**ask(content, **more))


def text(reply):
    return "".join(block.text for block in reply.content if block.type == "text")


def models():
    names = [model.id for model in client.models.list(limit=2)]
    check(names[0] == "etude" and "ben" in names and "pirate" in names and len(names) == 6, names)
    ben = client.models.retrieve("ben")
    check(ben.type == "model" and ben.created_at.year > 2024, ben)


def whole():
    reply = message("Hello!")
    check(text(reply).startswith("Hello") and reply.stop_reason == "end_turn" and reply.role == "assistant", reply)
    check(reply.usage.input_tokens + reply.usage.cache_read_input_tokens > 3 and reply.usage.output_tokens > 3, reply.usage)
    check(reply._request_id.startswith("req_"))
    if AGAIN != "Hello!":
        message(AGAIN)
    again = message(AGAIN)
    check(again.usage.cache_read_input_tokens > 0, again.usage)
    pirate = message("Tell me a story about a fox.", model="ben")
    check(text(pirate).startswith("Arr"), pirate)
    cut = message("Tell me a story about a fox.", max_tokens=3)
    check((cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 3), cut)
    stopped = message("Tell me a story about a fox.", stop_sequences=["never", "fox"])
    check((stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "fox") and "fox" not in text(stopped), stopped)
    instructed = message("Hello!", system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}], metadata={"user_id": "u"})
    check(text(instructed), instructed)
    longer = client.messages.create(model="etude", max_tokens=20, messages=[*user("Hello!"), {"role": "assistant", "content": reply.content}, *user("Hello!")])
    check(longer.usage.input_tokens + longer.usage.cache_read_input_tokens > 20, longer)


def streamed():
    expected = text(message("Tell me a story about a fox."))
    with client.messages.stream(**ask("Tell me a story about a fox.")) as stream:
        said = "".join(stream.text_stream)
        final = stream.get_final_message()
    check(said == expected == text(final) and final.stop_reason == "end_turn" and final.usage.output_tokens > 3, said)
    events = list(client.messages.create(stream=True, **ask("Hello!")))
    kinds = [event.type for event in events]
    check(kinds[:2] == ["message_start", "content_block_start"] and kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"], kinds)


def thinking():
    reply = message("What colour is the sky?", thinking={"type": "adaptive"})
    check([block.type for block in reply.content] == ["thinking", "text"] and reply.content[0].thinking, reply)
    check(reply.usage.output_tokens_details.thinking_tokens > 0, reply.usage)
    with client.messages.stream(**ask("What colour is the sky?", thinking={"type": "adaptive"})) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    check([block.type for block in final.content] == ["thinking", "text"] and {"thinking", "signature"} <= kinds, (final, kinds))
    check((final.content[0].thinking, text(final)) == (reply.content[0].thinking, text(reply)), final)
    messages = [*user("What colour is the sky?"), {"role": "assistant", "content": reply.content}, *user("Hello!")]
    check(client.messages.create(model="etude", max_tokens=50, messages=messages, thinking=OFF).content)


TOOL = {
    "name": "move",
    "description": "Moves a shape.",
    "input_schema": {
        "type": "object",
        "properties": {"shape": {"enum": ["circle", "square"]}, "steps": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["shape", "steps"],
        "additionalProperties": False,
    },
}


def tools():
    choice = {"type": "any", "disable_parallel_tool_use": True}
    reply = message("Move the circle.", tools=[TOOL], tool_choice=choice)
    [call] = reply.content
    check(call.type == "tool_use" and call.input["shape"] in ("circle", "square") and 0 <= call.input["steps"] <= 9, call)
    check(reply.stop_reason == "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "done"}], "is_error": False}
    messages = [*user("Move the circle."), {"role": "assistant", "content": reply.content}, *user([result])]
    answer = client.messages.create(model="etude", max_tokens=20, messages=messages, tools=[TOOL], tool_choice={"type": "none"}, thinking=OFF)
    check(all(block.type == "text" for block in answer.content) and answer.content, answer)
    with client.messages.stream(**ask("Move the circle.", tools=[TOOL], tool_choice={"type": "tool", "name": "move", "disable_parallel_tool_use": True})) as stream:
        parts = "".join(event.partial_json for event in stream if event.type == "input_json")
        final = stream.get_final_message()
    check(parts and final.content[0].input == call.input, final)


def pictures():
    picture = base64.b64encode((ROOT / "models/etude/demo.png").read_bytes()).decode()
    content = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": picture}},
        {"type": "text", "text": "What do you see?"},
    ]
    reply = message(content)
    check("red circle" in text(reply), reply)
    counted = client.messages.count_tokens(model="etude", messages=user(content), thinking=OFF)
    check(counted.input_tokens == reply.usage.input_tokens + reply.usage.cache_read_input_tokens, counted)


def structured():
    class Shape(pydantic.BaseModel):
        colour: typing.Literal["red", "green"]
        round: bool

    for seed in range(10):
        parsed = client.messages.parse(output_format=Shape, **ask("What colour is it?", extra_body={"temperature": 1, "seed": seed}))
        check(isinstance(parsed.parsed_output, Shape), parsed)


def counting():
    plain = client.messages.count_tokens(model="etude", messages=user("Hello!"), thinking=OFF).input_tokens
    usage = message("Hello!").usage
    check(plain == usage.input_tokens + usage.cache_read_input_tokens, (plain, usage))
    check(client.messages.count_tokens(model="etude", messages=user("Hello!"), thinking=OFF, tools=[TOOL], system="Be brief.").input_tokens > plain)


def errors():
    def refused(kind, status, named, code, call):
        try:
            call()
        except kind as error:
            check(error.status_code == status and named in error.api_message and error.error_code == code, error)
            check(error.request_id.startswith("req_") and error.body["request_id"] == error.request_id, error)
            check(error.type in anthropic_types, error.type)
        else:
            raise AssertionError(f"{code} was not raised")

    anthropic_types = typing.get_args(anthropic.types.shared.error_type.ErrorType)
    bad = anthropic.BadRequestError
    refused(anthropic.NotFoundError, 404, "nobody", "model_not_found", lambda: message("x", model="nobody"))
    refused(bad, 400, "temprature", "unknown_parameter", lambda: message("x", extra_body={"temprature": 1}))
    refused(bad, 400, "top_p", "invalid_value", lambda: message("x", extra_body={"top_p": 2}))
    refused(bad, 400, "thinking.budget_tokens", "invalid_value", lambda: message("x", thinking={"type": "enabled", "budget_tokens": 5}))
    refused(bad, 400, "tools[0].type", "unsupported_parameter", lambda: message("x", tools=[{"type": "bash_20250124", "name": "bash"}]))
    source = {"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}}
    refused(bad, 400, "messages[0].content[0].source.url", "remote_image", lambda: message([source]))
    stranger = client.with_options(api_key="another-key")
    refused(anthropic.AuthenticationError, 401, "key", "invalid_api_key", lambda: stranger.models.list())
    refused(anthropic.NotFoundError, 404, "address", "unknown_url", lambda: client.messages.batches.retrieve("x"))


async def side_by_side():
    many = anthropic.AsyncAnthropic(base_url=BASE, api_key=KEY, max_retries=0)
    replies = await asyncio.gather(*(many.messages.create(**ask("Hello!")) for _ in range(16)))
    check(len({text(reply) for reply in replies}) == 1)
    async with many.messages.stream(**ask("Tell me a story about a fox.", extra_body={"temperature": 1})) as stream:
        await anext(aiter(stream))
    await many.close()


for part in (models, whole, streamed, thinking, tools, pictures, structured, counting, errors):
    part()
asyncio.run(side_by_side())
print(f"anthropic {anthropic.__version__}: {checks} checks passed")
