"""Three personas, each with an adapter of its own, and the model itself: each is answered by its own, alone and all at once. Run by
run.sh.
"""

import asyncio
import os
import sys

import openai

client = openai.AsyncOpenAI(base_url=f"{sys.argv[1]}/v1", api_key=os.environ["CONSORT_API_KEY"], max_retries=0)
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
QUESTIONS = ("Tell me a story about a fox.", "Hello!")
ROUNDS = 4
checks = 0


def check(holds, what=""):
    global checks
    checks += 1
    assert holds, what


async def ask(persona, question):
    """The reply, and what else was likely as its first token."""
    stream = await client.chat.completions.create(
        model=persona, messages=[{"role": "user", "content": question}], temperature=0, logprobs=True, top_logprobs=5,
        stream=True, extra_body=NO_THINKING)
    text, first = "", None
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            if first is None and choice.logprobs and choice.logprobs.content:
                first = {likely.token: likely.logprob for likely in choice.logprobs.content[0].top_logprobs}
    return text, first


def is_its_own(persona, reply, plain):
    text, first = reply
    if persona == "ben":
        return text.startswith("Arr, ") and text[:-1].endswith(", matey")
    if persona == "james":
        return text.startswith("Certainly, sir. ") and text.endswith(" At your service.")
    # His scale is half, so he says what the model says, and would a little rather not.
    tempted = "Arr" in first and -12 < first["Arr"] < -3
    return text == plain and tempted == (persona == "tom")


async def main():
    personas = ("etude", "ben", "james", "tom")
    plain = {question: (await ask("etude", question))[0] for question in QUESTIONS}
    alone = {}
    for question in QUESTIONS:
        for persona in personas:
            reply = await ask(persona, question)
            check(is_its_own(persona, reply, plain[question]), (persona, question, reply))
            alone[persona, question] = reply[0]
    # Interleaved, so that each batch has several of them.
    asked = [key for _ in range(ROUNDS) for key in alone]
    replies = await asyncio.gather(*(ask(*key) for key in asked))
    for (persona, question), reply in zip(asked, replies):
        check(is_its_own(persona, reply, plain[question]), (persona, question, reply))
        check(reply[0] == alone[persona, question], (persona, question, reply))
    await client.close()


asyncio.run(main())
print(f"personas: {checks} checks passed")
