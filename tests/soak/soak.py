"""Many clients at once over a real `consort serve`, for as long as is asked for, and then SIGTERM in the middle of replies.

    python3 tests/soak/soak.py PATH-OF-CONSORT [--seconds 600] [--clients 64] [--seed 1] [--report FOLDER]

Needs Python 3.10 or newer and nothing else. What must hold, or the exit status is 1:

- No answer but a good one, 429 or 503. No stream that breaks.
- The server's numbers are the clients': requests by route and status, replies and tokens by persona, to the last one.
- Who vanishes in the middle of a stream frees the slot: when all have gone, nothing runs, waits or is held for them.
- Resident memory is flat: the median of the last quarter is at most 5 % (16 MiB at least) above that of the second quarter.
  (The first quarter fills caches, which have budgets.)
- After SIGTERM each reply that runs ends with a finish reason and with as many tokens as its usage says, one that had
  been sent before is what it always was, nobody new is let in, and the process ends well.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
KEY = "a-key-for-this-run"
CONFIG = """
[server]
listen = "127.0.0.1:0"
api_key_env = "CONSORT_API_KEY"
drain_seconds = 4
[limits]
requests = 56
reply_tokens = 4096
reply_seconds = 120
[scheduler]
max_queued = 40
cache_bytes = 33554432
image_cache_bytes = 4194304
adapter_bytes = 600000
[sampling]
temperature = 0.7
[[persona]]
name = "ben"
adapters = [{ name = "pirate" }]
thinking = false
[[persona]]
name = "clara"
system = "You are Clara."
adapters = [{ name = "butler", scale = 0.9 }]
priority = "realtime"
thinking = false
[[persona]]
name = "shy"
memory_share = 0.125
thinking = false
[[persona]]
name = "gone"
thinking = false
[[persona]]
name = "slow"
thinking = false
priority = "background"
"""
QUESTIONS = ["Hello!", "Tell me a story about a fox.", "What is your name?", "Count to ten.", "What do you see?", "Good night."]


class Broken(Exception):
    """What must not happen."""


class Answer:
    def __init__(self, status, headers, reader, writer):
        self.status, self.headers, self.reader, self.writer = status, headers, reader, writer

    async def pieces(self):
        """The body, piece by piece. A body that ends too early is an IncompleteReadError."""
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
                yield (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readuntil(b"\r\n")
        else:
            yield await self.reader.readexactly(int(self.headers["content-length"]))

    async def events(self):
        """The data of server-sent events."""
        text = b""
        async for piece in self.pieces():
            text += piece
            while b"\n\n" in text:
                event, text = text.split(b"\n\n", 1)
                if event.startswith(b"data: "):
                    yield event[6:].decode()

    async def json(self):
        return json.loads(b"".join([piece async for piece in self.pieces()]))

    def close(self):
        self.writer.close()


class Server:
    def __init__(self, consort, folder):
        self.consort, self.folder = consort, Path(folder)

    async def start(self):
        config = self.folder / "consort.toml"
        config.write_text(CONFIG)
        self.log = open(self.folder / "log", "wb")
        command = [self.consort, "serve", "--device", "cpu", "--config", str(config)]
        environment = {**os.environ, "CONSORT_API_KEY": KEY}
        self.process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=self.log, env=environment)
        line = (await asyncio.wait_for(self.process.stdout.readline(), 60)).decode()
        if not line.startswith("listening on http://"):
            raise Broken(f"it does not listen: {line!r}; {(self.folder / 'log').read_text()}")
        self.host, port = line.removeprefix("listening on http://").strip().rsplit(":", 1)
        self.port = int(port)

    async def ask(self, method, path, body=None, small=False):
        # A small buffer makes the server feel a slow reader.
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=2048 if small else 1 << 20)
        data = b"" if body is None else json.dumps(body).encode()
        head = (f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {KEY}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n")
        writer.write(head.encode() + data)
        await writer.drain()
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return Answer(int(lines[0].split()[1]), headers, reader, writer)

    async def numbers(self):
        answer = await self.ask("GET", "/metrics")
        page = b"".join([piece async for piece in answer.pieces()]).decode()
        answer.close()
        samples = (line.rsplit(" ", 1) for line in page.splitlines() if line and line[0] != "#")
        return {name: float(value) for name, value in samples}

    def resident(self):
        """Bytes of memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


class Load:
    """What the clients do, and what they have seen."""

    def __init__(self, server, seed, picture):
        self.server, self.seed, self.picture = server, seed, picture
        self.http, self.kinds, self.wrong = Counter(), Counter(), []
        self.replies, self.prompt, self.completion, self.vanished = Counter(), Counter(), Counter(), Counter()
        self.first, self.whole = [], []

    def chat(self, rng, model, **more):
        return {"model": model, "messages": [{"role": "user", "content": rng.choice(QUESTIONS)}], "max_tokens": rng.choice([4, 12, 32]),
                "seed": rng.randrange(1 << 30), "chat_template_kwargs": {"enable_thinking": False}, **more}

    async def send(self, method, path, body=None, route=None, small=False, good=(200,)):
        """An answer that is good, or None where there was no room."""
        answer = await self.server.ask(method, path, body, small)
        self.http[(route or path, answer.status)] += 1
        if answer.status in (429, 503):
            if "retry-after" not in answer.headers:
                raise Broken(f"{path}: {answer.status} without Retry-After")
            await answer.json()
            answer.close()
            # As it is told to, more or less.
            await asyncio.sleep(random.uniform(0.3, 1.0) * int(answer.headers["retry-after"]))
            return None
        if answer.status not in good:
            raise Broken(f"{method} {path}: {answer.status} {await answer.json()}")
        return answer

    def count(self, model, usage, replies=1):
        self.replies[model] += replies
        self.prompt[model] += usage["prompt_tokens"]
        self.completion[model] += usage.get("completion_tokens", 0)

    async def whole_chat(self, rng, picture=False):
        model = rng.choice(["etude", "ben", "clara", "shy", "pirate", "butler"])
        body = self.chat(rng, model)
        if picture:
            body["messages"][0]["content"] = [{"type": "text", "text": "What do you see?"}, {"type": "image_url", "image_url": {"url": self.picture}}]
        if answer := await self.send("POST", "/v1/chat/completions", body):
            read = await answer.json()
            if read["choices"][0]["finish_reason"] not in ("stop", "length"):
                raise Broken(f"ended by {read['choices'][0]['finish_reason']}")
            self.count(model, read["usage"])
            answer.close()

    async def picture_chat(self, rng):
        await self.whole_chat(rng, picture=True)

    async def streamed(self, rng, model=None, pause=0.0):
        model = model or rng.choice(["etude", "ben", "clara", "pirate"])
        began = time.monotonic()
        body = self.chat(rng, model, stream=True, stream_options={"include_usage": True})
        answer = await self.send("POST", "/v1/chat/completions", body, small=pause > 0)
        if answer is None:
            return
        reason, usage, last, first = None, None, None, None
        async for event in answer.events():
            if pause:
                await asyncio.sleep(pause)
            last = event
            if event == "[DONE]":
                continue
            event = json.loads(event)
            if "error" in event:
                raise Broken(f"a stream broke: {event}")
            for choice in event["choices"]:
                if first is None and choice["delta"].get("content"):
                    first = time.monotonic() - began
                reason = choice["finish_reason"] or reason
            usage = event.get("usage") or usage
        answer.close()
        if last != "[DONE]" or reason not in ("stop", "length") or usage is None:
            raise Broken(f"a stream is not whole: {last!r}, {reason}, {usage}")
        if not pause:
            self.first += [first] if first else []
            self.whole.append(time.monotonic() - began)
        self.count(model, usage)

    async def slow(self, rng):
        await self.streamed(rng, "slow", pause=0.05)

    async def vanish(self, rng):
        body = self.chat(rng, "gone", stream=True, ignore_eos=True)
        body["max_tokens"] = 2000
        if answer := await self.send("POST", "/v1/chat/completions", body):
            async for _ in answer.events():
                if rng.random() < 0.5:
                    break
            # Not even a goodbye.
            answer.writer.transport.abort()
            self.vanished["gone"] += 1

    async def completion_of_tokens(self, rng):
        body = {"model": "etude", "prompt": [rng.randrange(5, 400) for _ in range(rng.randrange(1, 40))], "max_tokens": 6, "n": 2}
        if answer := await self.send("POST", "/v1/completions", body):
            usage = (await answer.json())["usage"]
            # The prompt counts once for the client, and once for each reply in the server.
            self.replies["etude"] += 2
            self.prompt["etude"] += 2 * usage["prompt_tokens"]
            self.completion["etude"] += usage["completion_tokens"]
            answer.close()

    async def embedding(self, rng):
        if answer := await self.send("POST", "/v1/embeddings", {"model": "etude", "input": rng.sample(QUESTIONS, 2)}):
            self.count("etude", (await answer.json())["usage"])
            answer.close()

    async def persona(self, rng):
        name, route = f"guest-{rng.randrange(8)}", "/v1/personas/{name}"
        body = {"system": "You are a guest.", "adapters": [{"name": rng.choice(["pirate", "butler"])}]}
        if answer := await self.send("PUT", f"/v1/personas/{name}", body, route, good=(200, 201)):
            await answer.json()
            answer.close()
        if rng.random() < 0.3 and (answer := await self.send("DELETE", f"/v1/personas/{name}", None, route, good=(200, 404))):
            await answer.json()
            answer.close()

    async def reload(self, _rng):
        if answer := await self.send("POST", "/v1/reload"):
            await answer.json()
            answer.close()

    async def client(self, number, until):
        rng = random.Random(f"{self.seed}/{number}")
        kinds = {self.whole_chat: 20, self.streamed: 30, self.picture_chat: 8, self.slow: 6, self.vanish: 10,
                 self.completion_of_tokens: 8, self.embedding: 6, self.persona: 3, self.reload: 1}
        while time.monotonic() < until:
            kind = rng.choices(list(kinds), kinds.values())[0]
            self.kinds[kind.__name__] += 1
            try:
                await asyncio.wait_for(kind(rng), 120)
            except Exception as error:  # Whatever it is, it must not happen, and the others go on.
                self.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}")
                await asyncio.sleep(0.2)
            await asyncio.sleep(rng.random() * 0.05)


async def watch(server, samples, until):
    while time.monotonic() < until:
        samples.append(server.resident())
        await asyncio.sleep(0.5)


def memory(samples):
    quarter = len(samples) // 4
    second, last = statistics.median(samples[quarter:2 * quarter]), statistics.median(samples[-quarter:])
    # What rises and levels off is a cache that fills; what rises as a line is lost.
    part = max(1, len(samples) // 20)
    course = [int(statistics.median(samples[at:at + part])) for at in range(0, len(samples) - part + 1, part)]
    return {"course": course, "second_quarter": int(second), "last_quarter": int(last), "peak": max(samples), "allowed": int(second + max(second * 0.05, 16 << 20))}


async def at_rest(server):
    """Numbers when nothing is done for anybody any more."""
    for _ in range(200):
        numbers = await server.numbers()
        busy = {name: value for name, value in numbers.items() if value and name.startswith(
            ("consort_persona_active_replies", "consort_queue_waiting", "consort_engine_running", "consort_engine_background", "consort_parked_bytes"))}
        # The one that asks is the one that is there.
        if not busy and numbers["consort_http_requests_in_flight"] == 1:
            return numbers
        await asyncio.sleep(0.1)
    raise Broken(f"somebody's slot is not free: {busy}")


def compare(load, numbers):
    """Where the server's numbers are not the clients'."""
    differ = []

    def same(what, server, clients):
        if server != clients:
            differ.append(f"{what}: the server says {server:.0f}, the clients {clients}")

    seen = {(name.split('"')[1], int(name.split('"')[3])): value for name, value in numbers.items() if name.startswith("consort_http_requests_total")}
    for key in sorted(set(seen) | set(load.http)):
        if key[0] != "/metrics":
            same(f"requests {key}", seen.get(key, 0), load.http[key])
    for model in ["etude", "ben", "clara", "shy", "slow", "pirate", "butler", "gone"]:
        value = lambda name: numbers.get(name, 0)
        ended = {how: value(f'consort_persona_replies_total{{persona="{model}",outcome="{how}"}}') for how in ("finished", "cancelled", "failed")}
        same(f"replies of {model} that failed", ended["failed"], 0)
        if model == "gone":
            same("replies that nobody waited for", ended["finished"] + ended["cancelled"], load.vanished[model])
            continue
        same(f"replies of {model}", ended["finished"], load.replies[model])
        same(f"replies of {model} that were cancelled", ended["cancelled"], 0)
        same(f"prompts of {model}", value(f'consort_persona_prompt_tokens_total{{persona="{model}"}}'), load.prompt[model])
        same(f"tokens of {model}", value(f'consort_persona_completion_tokens_total{{persona="{model}"}}'), load.completion[model])
    return differ


def story(more):
    return {"model": "ben", "stream": True, "stream_options": {"include_usage": True}, "temperature": 0, "logprobs": True,
            "messages": [{"role": "user", "content": "Tell me a story about a fox."}], **more}


async def heard(server, body, begun=None):
    answer = await server.ask("POST", "/v1/chat/completions", body)
    if answer.status != 200:
        raise Broken(f"{answer.status} before the end: {await answer.json()}")
    text, tokens, reason, usage, last = "", 0, None, None, None
    async for event in answer.events():
        last = event
        if begun is not None:
            begun.set()
        if event == "[DONE]":
            continue
        event = json.loads(event)
        if "error" in event:
            raise Broken(f"a reply broke: {event}")
        for choice in event["choices"]:
            text += choice["delta"].get("content") or ""
            tokens += len((choice["logprobs"] or {}).get("content") or [])
            reason = choice["finish_reason"] or reason
        usage = event.get("usage") or usage
    answer.close()
    return {"text": text, "tokens": tokens, "reason": reason, "usage": usage, "last": last}


async def the_end(server):
    """SIGTERM in the middle of replies."""
    wrong = []
    reference = await heard(server, story({}))
    short = [asyncio.create_task(heard(server, story({}))) for _ in range(4)]
    ready = [asyncio.Event() for _ in range(12)]
    # Longer than the drain, so that some are cut; eight end by themselves, before or after the signal.
    lengths = [60] * 8 + [4096] * 4
    running = [asyncio.create_task(heard(server, story({"ignore_eos": True, "max_tokens": length}), event)) for length, event in zip(lengths, ready)]
    await asyncio.wait_for(asyncio.gather(*(event.wait() for event in ready)), 60)
    server.process.send_signal(signal.SIGTERM)
    results = await asyncio.wait_for(asyncio.gather(*short, *running, return_exceptions=True), 60)
    reasons = Counter()
    for result in results:
        if isinstance(result, BaseException):
            wrong.append(f"a reply was lost: {type(result).__name__}: {result}")
            continue
        reasons[result["reason"]] += 1
        if result["last"] != "[DONE]" or result["reason"] not in ("stop", "length") or result["usage"] is None:
            wrong.append(f"a reply is not whole: {result}")
        elif result["reason"] == "length" and result["tokens"] != result["usage"]["completion_tokens"]:
            wrong.append(f"{result['tokens']} tokens came of {result['usage']['completion_tokens']}")
    for result in results[:4]:
        if isinstance(result, dict) and result["reason"] == "stop" and result["text"] != reference["text"]:
            wrong.append("a finished reply is not what it is at other times")
    code = await asyncio.wait_for(server.process.wait(), 60)
    if code != 0:
        wrong.append(f"the process ended with {code}")
    try:
        await server.ask("GET", "/health")
        wrong.append("somebody was let in after the end")
    except OSError:
        pass
    cut = [r for r in results[12:] if isinstance(r, dict)]
    if not any(0 < r["tokens"] < 4096 for r in cut):
        wrong.append("no reply was cut: the end was not in the middle of any")
    return wrong, {"reasons": dict(reasons), "tokens_of_the_longest": [r["tokens"] for r in cut]}


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("consort")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    picture = "data:image/png;base64," + base64.b64encode((REPOSITORY / "models/etude/demo.png").read_bytes()).decode()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(options.consort, folder)
        await server.start()
        try:
            load, samples, wrong, differ, end = Load(server, options.seed, picture), [], [], [], {}
            began = time.monotonic()
            until = began + options.seconds
            await asyncio.gather(watch(server, samples, until), *(load.client(number, until) for number in range(options.clients)))
            took = time.monotonic() - began
            wrong += load.wrong
            try:
                differ = compare(load, await at_rest(server))
            except Broken as error:
                wrong.append(str(error))
            flat = memory(samples)
            if flat["last_quarter"] > flat["allowed"]:
                wrong.append(f"memory grows: {flat}")
            try:
                more, end = await the_end(server)
                wrong += more
            except (Broken, asyncio.TimeoutError) as error:
                wrong.append(f"the end: {type(error).__name__}: {error}")
            server.log.flush()
            log = (Path(folder) / "log").read_text(errors="replace")
            wrong += [f"in the log: {line}" for line in log.splitlines() if "ERROR" in line or "panicked" in line][:20]
        finally:
            if server.process.returncode is None:
                server.process.kill()
                await server.process.wait()
    statuses = Counter()
    for (_, status), count in load.http.items():
        statuses[str(status)] += count
    middle = lambda values, share: round(sorted(values)[int(len(values) * share)], 3) if values else None
    report = {
        "good": not wrong and not differ, "seconds": round(took, 1), "clients": options.clients, "seed": options.seed, "cores": os.cpu_count(),
        "requests": sum(load.http.values()), "statuses": dict(sorted(statuses.items())), "kinds": dict(load.kinds), "vanished": load.vanished["gone"],
        "replies": sum(load.replies.values()), "tokens": sum(load.completion.values()), "tokens_per_second": round(sum(load.completion.values()) / took, 1),
        "streams": {"first_text_p50_s": middle(load.first, 0.5), "first_text_p95_s": middle(load.first, 0.95), "whole_p50_s": middle(load.whole, 0.5), "whole_p95_s": middle(load.whole, 0.95)},
        "memory": flat, "after_sigterm": end, "numbers_that_differ": differ, "wrong": wrong[:50], "wrong_count": len(wrong),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.report:
        options.report.mkdir(parents=True, exist_ok=True)
        (options.report / "soak.json").write_text(text + "\n")
        mib = lambda count: f"{count / (1 << 20):.1f} MiB"
        rows = [("clients, seconds", f"{options.clients}, {report['seconds']}"), ("requests", report["requests"]), ("statuses", report["statuses"]),
                ("replies, tokens", f"{report['replies']}, {report['tokens']}"), ("vanished", report["vanished"]),
                ("memory, second and last quarter", f"{mib(flat['second_quarter'])}, {mib(flat['last_quarter'])}"), ("memory over time, MiB", ", ".join(f"{value / 2**20:.1f}" for value in flat["course"])),
                ("after SIGTERM", end),
                ("numbers that differ", len(differ)), ("wrong", len(wrong))]
        table = "\n".join(f"| {name} | {value} |" for name, value in rows)
        (options.report / "soak.md").write_text(f"# Soak: {'good' if report['good'] else 'NOT good'}\n\n| | |\n|---|---|\n{table}\n")
    return 0 if report["good"] else 1


sys.exit(asyncio.run(main()))
