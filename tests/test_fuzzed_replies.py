"""Good answers of a server, mutated at random in bytes, JSON, headers and timing.

Whatever comes, a call ends with an answer or an error in words, within its time-out and a bounded
memory, and what has been spent never falls.
"""

import asyncio
import json
import random

import pytest
from chat_client import ask, priced
from peak_memory import peak, reset_peak

from emodistill.errors import ApiError
from emodistill.llm import ChatClient, Provider
from emodistill.llm.client import RetryPolicy
from emodistill.negotiation.offers import read_offer

TIMEOUT_S = 0.2
ODD_VALUES = (
    *(None, True, 0, -1, 10**30, 1e308, "", "429", [], {}, [[]], {"error": {"code": 402}}),
    *("\x1b[2J", "\ud83d", "<think>", "</think>", "a" * 5_000, {"a": {"a": {"a": []}}}),
    *([{"type": "text", "text": "30 days"}] * 3, {"code": "429", "message": ["x"]}),
)
ODD_BYTES = (b"\x00", b"\xff", b"\r\n", b"\n\n", b"NaN", b"1e999", b"9" * 400, b"[" * 2_000, b'"')
ODD_HEADERS = (
    *(b"Content-Length: 5", b"Content-Length: 99999999", b"Content-Length: -1", b"Location: /x"),
    *(b"Content-Encoding: gzip", b"Content-Encoding: br", b"Transfer-Encoding: chunked"),
    *(b"Retry-After: 1e9", b"Retry-After: soon", b"retry-after-ms: -5", b"Content-Type: a" * 9),
    *(b"Content-Type: text/html", b"Content-Type: application/json; charset=utf-7"),
    *(b"Set-Cookie: a=b", b"X: \xff\xfe", b": empty", b"no colon", b"A: " + b"b" * 9_000),
)
STATUSES = (200, 200, 200, 200, 201, 204, 301, 400, 401, 402, 403, 404, 429, 500, 503, 999)


def good_answer(rng):
    message = {"role": "assistant", "content": f"I can pay within {rng.randrange(90)} days."}
    return {
        "id": "x",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {}},
    }


def mutate_json(rng, value):
    """Replace, add or drop something somewhere in a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        kept = {key: item for key, item in value.items() if key != name}
        if rng.random() < 0.15:
            return kept
        return {**kept, name: mutate_json(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        return [mutate_json(rng, value[0]), *value[1:]]
    return rng.choice(ODD_VALUES)


def mutated(rng):
    """The bytes of a whole HTTP answer, something wrong with them, and how they are sent."""
    value = good_answer(rng)
    kinds = rng.sample(
        ("json", "body", "headers", "status", "head", "timing"), rng.choice((1, 1, 2))
    )
    if "json" in kinds:
        for _ in range(rng.choice((1, 1, 2, 4))):
            value = mutate_json(rng, value)
    body = json.dumps(value).encode()
    if "body" in kinds:
        start = rng.randrange(len(body) + 1)
        body = (
            body[:start]
            + rng.choice(ODD_BYTES) * rng.choice((0, 1, 3))
            + body[start + rng.choice((0, 1, 8, 400)) :]
        )
    status = rng.choice(STATUSES) if "status" in kinds else 200
    headers = [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    if "headers" in kinds:
        headers[rng.randrange(2)] = rng.choice(ODD_HEADERS)
        headers.append(rng.choice(ODD_HEADERS))
    head = b"\r\n".join([b"HTTP/1.1 %d X" % status, *headers, b"", b""])
    if "head" in kinds:
        start = rng.randrange(len(head))
        head = head[:start] + rng.choice(ODD_BYTES) + head[start + rng.randrange(4) :]
    parts = [head + body]
    if "timing" in kinds:
        cut = rng.randrange(len(parts[0]))
        parts = [parts[0][:cut], parts[0][cut:]]
    return parts, rng.choice((0.0, 0.05, 3 * TIMEOUT_S)) if "timing" in kinds else 0.0


def test_mutations_differ_and_are_seeded():
    first, second = ([mutated(random.Random(seed)) for seed in range(50)] for _ in range(2))
    assert first == second
    assert len({b"".join(parts) for parts, _ in first}) > 40


def _fuzz(seeds):
    kinds = set()

    async def serve(reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                request = json.loads(await reader.readexactly(length))
                parts, pause_s = mutated(random.Random(request["seed"]))
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(pause_s)
                if request["seed"] % 5 == 0:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        provider = Provider(name="t", base_url=url, profiles=priced(1.0, 2.0, 0.5))
        retry = RetryPolicy(
            timeout_s=TIMEOUT_S, max_attempts=2, backoff_s=0.001, max_backoff_s=0.002
        )
        for seed in seeds:
            async with ChatClient(provider, [("sk-0123456789",)], retry=retry) as client:
                spent_usd = 0.0
                for repeat in range(2):
                    try:
                        completion = await asyncio.wait_for(
                            ask(client, seed=seed, temperature=repeat), 20 * TIMEOUT_S
                        )
                        completion.text.encode()
                        read_offer(completion.text, "crad")
                        assert completion.prompt_tokens >= 0 <= completion.completion_tokens
                        kinds.add("answer")
                    except ApiError as error:
                        assert len(str(error)) < 1_000 and str(error).isprintable()
                        assert "0123456789" not in str(error)
                        kinds.add(type(error).__name__)
                    assert spent_usd <= client.usage.cost_usd < 1
                    assert min(client.usage) >= 0
                    spent_usd = client.usage.cost_usd
        server.close()

    before = reset_peak()
    asyncio.run(main())
    assert peak() - before < 500 << 20
    return kinds


def test_a_few_mutated_answers():
    assert _fuzz(range(10)) >= {"answer", "ExhaustedError"}


@pytest.mark.slow
def test_a_thousand_mutated_answers():
    assert _fuzz(range(1_000)) >= {"answer", "ExhaustedError", "RefusedError", "ApiError"}
