"""The official OpenAI client for Python against `consort serve` with the bundled model. Run by run.sh.

Every check is an assertion; the last line says how many things were checked.
"""

import asyncio
import base64
import json
import os
import pathlib
import sys

import openai

BASE = sys.argv[1]
KEY = os.environ["CONSORT_API_KEY"]
ROOT = pathlib.Path(__file__).resolve().parents[2]
client = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0)
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
checks = 0


def check(holds, what=""):
    global checks
    checks += 1
    assert holds, what


def user(content):
    return [{"role": "user", "content": content}]


def chat(content, **more):
    more.setdefault("temperature", 0)
    more.setdefault("extra_body", NO_THINKING)
    return client.chat.completions.create(model=more.pop("model", "etude"), messages=user(content), **more)


def models():
    names = [model.id for model in client.models.list()]
    check(names[0] == "etude" and "ben" in names and "pirate" in names, names)
    check(client.models.retrieve("ben").owned_by == "consort")


def whole():
    reply = chat("Hello!")
    check(reply.choices[0].message.content.startswith("Hello"), reply)
    check(reply.choices[0].finish_reason == "stop")
    check(reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens)
    check(reply._request_id.startswith("req_"))
    check(chat("Tell me a story about a fox.", model="ben").choices[0].message.content.startswith("Arr"))
    check(len(chat("Hello!", n=3, temperature=1, seed=1, max_tokens=4).choices) == 3)


def streamed():
    expected = chat("Tell me a story about a fox.").choices[0].message.content
    text, usage, reason = "", None, None
    for chunk in chat("Tell me a story about a fox.", stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
        usage = chunk.usage or usage
    check(text == expected and reason == "stop" and usage.completion_tokens > 3, text)
    with client.chat.completions.stream(model="etude", messages=user("Hello!"), temperature=0, extra_body=NO_THINKING) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    check("content.delta" in kinds and final.choices[0].message.content.startswith("Hello"), kinds)


def reasoning():
    reply = chat("What colour is the sky?", reasoning_effort="high", extra_body=None)
    check(reply.choices[0].message.reasoning_content, reply)
    check(reply.usage.completion_tokens_details.reasoning_tokens > 0)


TOOLS = [{
    "type": "function",
    "function": {
        "name": "move",
        "parameters": {
            "type": "object",
            "properties": {"shape": {"enum": ["circle", "square"]}, "steps": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["shape", "steps"],
            "additionalProperties": False,
        },
    },
}]


def tools():
    reply = chat("Move the circle.", tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    call = reply.choices[0].message.tool_calls[0]
    arguments = json.loads(call.function.arguments)
    check(call.function.name == "move" and arguments["shape"] in ("circle", "square") and 0 <= arguments["steps"] <= 9, call)
    check(reply.choices[0].finish_reason == "tool_calls")
    messages = user("Move the circle.") + [
        reply.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]
    answer = client.chat.completions.create(model="etude", messages=messages, tools=TOOLS, tool_choice="none", max_tokens=20)
    check(answer.choices[0].message.tool_calls is None, answer)
    name, parts = None, ""
    stream = chat("Move the circle.", tools=TOOLS, tool_choice={"type": "function", "function": {"name": "move"}},
                  parallel_tool_calls=False, stream=True)
    for chunk in stream:
        for delta in chunk.choices[0].delta.tool_calls or []:
            name = delta.function.name or name
            parts += delta.function.arguments or ""
    check(name == "move" and set(json.loads(parts)) == {"shape", "steps"}, parts)


def pictures():
    picture = base64.b64encode((ROOT / "models/etude/demo.png").read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": "What do you see?"},
    ]
    check("yellow star" in chat(content).choices[0].message.content)


def structured():
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "shape", "strict": True, "schema": schema}}
    for seed in range(20):
        value = json.loads(chat("What colour is it?", temperature=1, seed=seed, response_format=form).choices[0].message.content)
        check(value["colour"] in ("red", "green") and value["count"] in range(10) and len(value) == 2, value)


def texts():
    reply = client.completions.create(model="etude", prompt=["Good day", [40, 50]], max_tokens=4, logprobs=1, echo=True, temperature=0)
    check([choice.index for choice in reply.choices] == [0, 1] and reply.choices[0].text.startswith("Good day"), reply)
    check(reply.choices[0].logprobs.token_logprobs[0] is None)
    pieces = [chunk.choices[0].text for chunk in client.completions.create(model="etude", prompt="Good day", max_tokens=4, temperature=0, stream=True)]
    check("".join(pieces) == reply.choices[0].text.removeprefix("Good day"), pieces)
    # The client asks for base64 of its own accord.
    vectors = client.embeddings.create(model="etude", input=["a red circle", "a fox"]).data
    floats = client.embeddings.create(model="etude", input="a red circle", encoding_format="float").data[0].embedding
    check(len(vectors) == 2 and max(abs(a - b) for a, b in zip(vectors[0].embedding, floats)) < 1e-6)


def errors():
    def refused(kind, code, param, call):
        try:
            call()
        except kind as error:
            check((error.code, error.param) == (code, param), error)
        else:
            raise AssertionError(f"{code} was not raised")

    refused(openai.NotFoundError, "model_not_found", "model", lambda: chat("x", model="nobody"))
    refused(openai.BadRequestError, "invalid_value", "top_p", lambda: chat("x", top_p=2))
    refused(openai.BadRequestError, "unknown_parameter", "temprature", lambda: chat("x", extra_body={"temprature": 1}))
    refused(openai.BadRequestError, "unsupported_parameter", "store", lambda: chat("x", store=True))
    picture = [{"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}]
    refused(openai.BadRequestError, "remote_image", "messages[0].content[0].image_url.url", lambda: chat(picture))
    stranger = client.with_options(api_key="another-key")
    refused(openai.AuthenticationError, "invalid_api_key", None, lambda: stranger.models.list())


async def side_by_side():
    many = openai.AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0)
    ask = lambda: many.chat.completions.create(model="etude", messages=user("Hello!"), temperature=0, extra_body=NO_THINKING)
    replies = await asyncio.gather(*(ask() for _ in range(16)))
    check(len({reply.choices[0].message.content for reply in replies}) == 1)
    stream = await many.chat.completions.create(model="etude", messages=user("Tell me a story about a fox."), stream=True,
                                                extra_body={"ignore_eos": True})
    await anext(aiter(stream))
    await stream.close()
    await many.close()


for part in (models, whole, streamed, reasoning, tools, pictures, structured, texts, errors):
    part()
asyncio.run(side_by_side())
print(f"openai {openai.__version__}: {checks} checks passed")
