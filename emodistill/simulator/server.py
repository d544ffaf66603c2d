"""The simulated models behind an OpenAI-compatible HTTP endpoint.

    python scripts/simulate_api.py --port 8000

It reads only the messages and the sampling fields of a request, as a real model does; the same
request gets the same answer. It binds to 127.0.0.1 unless told otherwise and bounds body sizes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
from aiohttp import web

from emodistill.configs import BLIND_JUDGE, TYPED_COUNTERPARTIES
from emodistill.errors import InputError
from emodistill.seeding import stream
from emodistill.simulator.counterparty import counterparty_reply
from emodistill.simulator.faults import Faults
from emodistill.simulator.judge import blind_reply, judge_reply
from emodistill.simulator.offers import reader_reply
from emodistill.simulator.teacher import teacher_reply

MAX_BODY_BYTES = 1 << 20
Messages = Sequence[Mapping[str, str]]


def _teacher(messages: Messages, seed: int, rng: np.random.Generator) -> str:
    return teacher_reply(messages, rng)


def _counterparty(messages: Messages, seed: int, rng: np.random.Generator) -> str:
    return counterparty_reply(messages, seed)


def _counterparty_of(type_name: str) -> Callable[[Messages, int, np.random.Generator], str]:
    return lambda messages, seed, rng: counterparty_reply(messages, seed, type_name)


def _judge(messages: Messages, seed: int, rng: np.random.Generator) -> str:
    return judge_reply(messages, rng)


def _blind_judge(messages: Messages, seed: int, rng: np.random.Generator) -> str:
    return blind_reply(messages, rng)


def _reader(messages: Messages, seed: int, rng: np.random.Generator) -> str:
    return reader_reply(messages, rng)


MODELS: dict[str, Callable[[Messages, int, np.random.Generator], str]] = {
    "sim-teacher": _teacher,
    "sim-counterparty": _counterparty,
    **{name: _counterparty_of(kind) for name, kind in TYPED_COUNTERPARTIES.items()},
    "sim-judge": _judge,
    BLIND_JUDGE: _blind_judge,
    "sim-reader": _reader,
}


def complete(
    model: str,
    messages: Messages,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    max_tokens: int = 256,
) -> tuple[str, str]:
    """(text, finish reason) of a request; a pure function of its arguments.

    Sampling depends on the messages and the seed. At temperature 0 the teacher's wording no longer
    depends on the seed; the counterparty's character and the noise of judge and reader always do,
    the latter so that a bad answer can be asked for again.
    """
    content = json.dumps([[m.get("role"), m.get("content")] for m in messages])
    digest = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
    is_noisy = temperature > 0 or model in ("sim-judge", BLIND_JUDGE, "sim-reader")
    rng = stream(seed if is_noisy else 0, model, digest)
    text = MODELS[model](messages, seed, rng)
    words = text.split(" ")
    if len(words) > max_tokens:
        return " ".join(words[:max_tokens]), "length"
    return text, "stop"


def count_tokens(text: str) -> int:
    """The simulator's own token count: four characters a token, rounded up."""
    return -(-len(text) // 4)


class RefusalError(Exception):
    """A request that can't be answered: HTTP status and message."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def _check(body: object) -> tuple[str, list[dict[str, str]], int, float, int]:
    if not isinstance(body, dict):
        raise RefusalError(400, "the body must be a JSON object.")
    body = {name: value for name, value in body.items() if value is not None}
    model = body.get("model")
    if not isinstance(model, str) or model not in MODELS:
        raise RefusalError(
            404, f"model {model!r} is not served here; there is {', '.join(MODELS)}."
        )
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RefusalError(400, "messages must be a list with at least one message.")
    for message in messages:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(name), str) for name in ("role", "content")
        ):
            raise RefusalError(400, "every message needs a role and a content of type string.")
        if not _is_text(message["content"]):
            raise RefusalError(400, "a message holds half a surrogate pair, which is no text.")
    if body.get("stream"):
        raise RefusalError(400, "answers are not streamed here; leave stream out.")
    seed, temperature = body.get("seed", 0), body.get("temperature", 1.0)
    max_tokens = body.get("max_tokens", 256)
    if not isinstance(seed, int) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise RefusalError(400, "seed and max_tokens must be integers, max_tokens at least 1.")
    if not isinstance(temperature, (int, float)) or not 0 <= temperature <= 2:
        raise RefusalError(400, "temperature must be a number in [0, 2].")
    return model, messages, seed, float(temperature), max_tokens


def _is_text(content: str) -> bool:
    try:
        content.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_json(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusalError(400, f"the body is not JSON: {error}.") from None


async def _chat_completions(request: web.Request) -> web.Response:
    body = await request.read()
    try:
        model, messages, seed, temperature, max_tokens = _check(_read_json(body))
    except RefusalError as refusal:
        return _refuse(refusal.status, str(refusal))
    text, reason = complete(
        model, messages, seed=seed, temperature=temperature, max_tokens=max_tokens
    )
    prompt_tokens = sum(count_tokens(message["content"]) for message in messages)
    completion_tokens = count_tokens(text)
    answer: dict[str, Any] = {
        "id": "chatcmpl-sim",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": reason,
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }
    return web.json_response(answer)


def _refuse(status: int, message: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": "invalid_request"}}, status=status
    )


async def _models(request: web.Request) -> web.Response:
    return web.json_response(
        {"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]}
    )


@web.middleware
async def _json_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """What aiohttp itself refuses (a body too large, an unknown path) reads like the rest."""
    try:
        return await handler(request)
    except web.HTTPClientError as error:
        return _refuse(error.status, error.text or error.reason)


def make_app(faults: Faults | None = None) -> web.Application:
    """The endpoint as an aiohttp application, which goes wrong as `faults` has it."""
    middlewares = [_json_errors, *([faults.middleware] if faults is not None else [])]
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=middlewares)
    app.router.add_post("/v1/chat/completions", _chat_completions)
    app.router.add_get("/v1/models", _models)
    return app


async def serve(
    host: str,
    port: int,
    *,
    ready: Callable[[str], None],
    until_stdin_closes: bool = False,
    faults: Faults | None = None,
) -> None:
    """Serve until cancelled; `ready` gets the base URL once requests are taken.

    With `until_stdin_closes` the server ends with whoever holds the other end of its standard
    input, however that process ends.
    """
    runner = web.AppRunner(make_app(faults), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    try:
        bound = runner.addresses[0][1]
        ready(f"http://{host}:{bound}/v1")
        if until_stdin_closes:
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
        else:
            await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def run_server(host: str, port: int, faults: Faults | None = None) -> None:
    """Serve until Ctrl-C.

    Raises:
      InputError: the address can't be used; the message says why.
    """

    def ready(url: str) -> None:
        print(f"serving {', '.join(MODELS)} at {url}; stop with Ctrl-C.", flush=True)

    try:
        asyncio.run(serve(host, port, ready=ready, faults=faults))
    except OSError as error:
        raise InputError(
            f"--host {host} --port {port}: {error.strerror or error}. Take another port; 0 finds "
            "a free one."
        ) from None
