"""The official OpenAI client for Python against `consort serve` with the bundled model. Run by run.sh.

Every check is an assertion; the last line says how many things were checked.
"""

import asyncio
import base64
import json
import os
import pathlib
import sys
import typing

import openai
import pydantic

BASE = sys.argv[1]
KEY = os.environ["CONSORT_API_KEY"]
ROOT = pathlib.Path(__file__).resolve().parents[2]
client = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0)
REMOTE = os.environ.get("CONSORT_REMOTE") == "vllm"
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
checks = 0


def check(holds, what=""):
    global checks
    checks += 1
    assert holds, what


def not_by_vllm(what, call):
    try:
        call()
    except openai.BadRequestError as error:
        check("does not support" in error.message, error)
    else:
        raise AssertionError(f"{what}: this was not refused")
    print(f"not by vLLM, and refused: {what}")


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
    check("red circle" in chat(content).choices[0].message.content)


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
    echo = {"model": "etude", "prompt": ["Good day", [40, 50]], "max_tokens": 4, "echo": True, "temperature": 0}
    likely = {} if REMOTE else {"logprobs": 1}
    reply = client.completions.create(**echo, **likely)
    check([choice.index for choice in reply.choices] == [0, 1] and reply.choices[0].text.startswith("Good day"), reply)
    if REMOTE:
        not_by_vllm("log probabilities of a prompt, with adapters", lambda: client.completions.create(**echo, logprobs=1))
    else:
        check(reply.choices[0].logprobs.token_logprobs[0] is None)
    pieces = [chunk.choices[0].text for chunk in client.completions.create(model="etude", prompt="Good day", max_tokens=4, temperature=0, stream=True)]
    check("".join(pieces) == reply.choices[0].text.removeprefix("Good day"), pieces)
    if REMOTE:
        not_by_vllm("embeddings of texts", lambda: client.embeddings.create(model="etude", input="a fox"))
        return
    # The client asks for base64 of its own accord.
    vectors = client.embeddings.create(model="etude", input=["a red circle", "a fox"]).data
    floats = client.embeddings.create(model="etude", input="a red circle", encoding_format="float").data[0].embedding
    check(len(vectors) == 2 and max(abs(a - b) for a, b in zip(vectors[0].embedding, floats)) < 1e-6)


RESPONSE = {"model": "etude", "temperature": 0, "reasoning": {"effort": "none"}}
FUNCTION = {"type": "function", "strict": True, **TOOLS[0]["function"]}


def responses():
    reply = client.responses.create(input="Hello!", **RESPONSE)
    check(reply.output_text.startswith("Hello") and reply.status == "completed" and reply.store is False, reply)
    check(reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens)
    check(reply.output_text == chat("Hello!").choices[0].message.content)
    cut = client.responses.create(input="Hello!", max_output_tokens=2, **RESPONSE)
    check(cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens", cut)
    pirate = client.responses.create(**{**RESPONSE, "model": "ben", "input": "Tell me a story about a fox."})
    check(pirate.output_text.startswith("Arr"), pirate)
    again = client.responses.create(input=[*user("Hello!"), *reply.output, *user("Tell me a story about a fox.")], **RESPONSE)
    check(again.output_text and again.usage.input_tokens > reply.usage.input_tokens, again)


def responses_streamed():
    expected = client.responses.create(input="Tell me a story about a fox.", **RESPONSE)
    events = list(client.responses.create(input="Tell me a story about a fox.", stream=True, **RESPONSE))
    check([event.sequence_number for event in events] == list(range(len(events))))
    check([event.type for event in events[:4]] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"])
    check("".join(event.delta for event in events if event.type == "response.output_text.delta") == expected.output_text)
    check(events[-1].type == "response.completed" and events[-1].response.output_text == expected.output_text)
    with client.responses.stream(input="Tell me a story about a fox.", **RESPONSE) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    check("response.output_text.delta" in kinds and final.output_text == expected.output_text, kinds)
    thinking = client.responses.create(model="etude", input="What colour is the sky?", temperature=0, reasoning={"effort": "high"}, stream=True)
    *events, last = thinking
    thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    reasoning, message = last.response.output
    check(thought and reasoning.content[0].text == thought and message.type == "message", last)
    check(last.response.usage.output_tokens_details.reasoning_tokens > 0)


def responses_tools():
    ask = {"tools": [FUNCTION], "tool_choice": "required", "parallel_tool_calls": False, **RESPONSE}
    reply = client.responses.create(input="Move the circle.", **ask)
    call = reply.output[-1]
    check(call.type == "function_call" and json.loads(call.arguments)["shape"] in ("circle", "square"), reply)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    answer = client.responses.create(input=[*user("Move the circle."), *reply.output, result], tools=[FUNCTION], tool_choice="none", max_output_tokens=20, **RESPONSE)
    check(answer.output[-1].type == "message", answer)
    events = list(client.responses.create(input="Move the circle.", stream=True, **{**ask, "tool_choice": {"type": "function", "name": "move"}}))
    parts = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    check(done[0].arguments == parts and set(json.loads(parts)) == {"shape", "steps"}, parts)


def responses_pictures_and_forms():
    picture = base64.b64encode((ROOT / "models/etude/demo.png").read_bytes()).decode()
    content = [
        {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{picture}"},
        {"type": "input_text", "text": "What do you see?"},
    ]
    check("red circle" in client.responses.create(input=user(content), **RESPONSE).output_text)

    class Shape(pydantic.BaseModel):
        colour: typing.Literal["red", "green"]
        round: bool

    parsed = client.responses.parse(input="What colour is it?", text_format=Shape, **{**RESPONSE, "temperature": 1})
    check(isinstance(parsed.output_parsed, Shape), parsed)
    likely = client.responses.create(input="Hello!", include=["message.output_text.logprobs"], top_logprobs=2, **RESPONSE)
    tokens = likely.output[0].content[0].logprobs
    check("".join(token.token for token in tokens) == likely.output_text and len(tokens[0].top_logprobs) == 2, likely)


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
    refused(openai.BadRequestError, "unsupported_parameter", "previous_response_id",
            lambda: client.responses.create(input="x", previous_response_id="resp_1", **RESPONSE))
    refused(openai.BadRequestError, "unsupported_parameter", "store", lambda: client.responses.create(input="x", store=True, **RESPONSE))
    refused(openai.NotFoundError, "unknown_url", None, lambda: client.responses.retrieve("resp_1"))
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


for part in (models, whole, streamed, reasoning, tools, pictures, structured, texts, responses, responses_streamed, responses_tools,
             responses_pictures_and_forms, errors):
    part()
asyncio.run(side_by_side())
print(f"openai {openai.__version__}: {checks} checks passed")
