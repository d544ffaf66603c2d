"""The simulated models behind an OpenAI-compatible HTTP endpoint.

    python scripts/simulate_api.py --port 8000

It reads only the messages and the sampling fields of a request, as a real model does; the same
request gets the same answer. It binds to 127.0.0.1 unless told otherwise and bounds body sizes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from aiohttp import web

from emodistill.configs import JUDGE_TASTES, JUDGE_VALIDITIES, TYPED_COUNTERPARTIES
from emodistill.errors import InputError
from emodistill.seeding import stream
from emodistill.simulator.counterparty import counterparty_reply
from emodistill.simulator.faults import Faults, Handler
from emodistill.simulator.forked_seeds import read_seed
from emodistill.simulator.judge import judge_reply
from emodistill.simulator.reader import reader_reply
from emodistill.simulator.reading import Request, messages_text
from emodistill.simulator.teacher import teacher_reply

MAX_BODY_BYTES = 1 << 20
_SURROGATE = re.compile(r"[\ud800-\udfff]")
MODELS: dict[str, Callable[[Request], str]] = {
    "sim-teacher": teacher_reply,
    "sim-counterparty": counterparty_reply,
    **{
        name: functools.partial(counterparty_reply, type_name=kind)
        for name, kind in TYPED_COUNTERPARTIES.items()
    },
    **{
        name: functools.partial(judge_reply, validity=validity)
        for name, validity in JUDGE_VALIDITIES.items()
    },
    **{
        name: functools.partial(judge_reply, validity=0.0, taste=taste)
        for name, taste in JUDGE_TASTES.items()
    },
    "sim-reader": reader_reply,
}


def complete(
    model: str,
    messages: Sequence[Mapping[str, str]],
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
    if read_seed(seed).noise:
        # Forks of one turn share their luck, whatever has been said: talks grow by a line a turn.
        name = f"line {sum(m['content'].count(chr(10)) for m in messages)}"
    else:
        content = json.dumps([[m.get("role"), m.get("content")] for m in messages])
        name = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
    is_noisy = temperature > 0 or model in (*JUDGE_VALIDITIES, *JUDGE_TASTES, "sim-reader")
    rng = stream(seed if is_noisy else 0, model, name)
    text = MODELS[model](Request(*messages_text(messages), seed, rng))
    words = text.split(" ")
    if len(words) > max_tokens:
        return " ".join(words[:max_tokens]), "length"
    return text, "stop"


def count_tokens(text: str) -> int:
    """The simulator's own token count: four characters a token, rounded up."""
    return -(-len(text) // 4)


def _check(body: bytes) -> dict[str, Any]:
    """The arguments of `complete` in a request's body.

    Raises:
      web.HTTPBadRequest, web.HTTPNotFound: it can't be answered; the text says why.
    """

    def require(condition: object, refusal: str) -> None:
        if not condition:
            raise web.HTTPBadRequest(text=refusal)

    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise web.HTTPBadRequest(text=f"the body is not JSON: {error}.") from None
    require(isinstance(given, dict), "the body must be a JSON object.")
    given = {name: value for name, value in given.items() if value is not None}
    model = given.get("model")
    if not isinstance(model, str) or model not in MODELS:
        raise web.HTTPNotFound(
            text=f"model {model!r} is not served here; there is {', '.join(MODELS)}."
        )
    messages = given.get("messages") or []
    require(
        isinstance(messages, list) and messages,
        "messages must be a list with at least one message.",
    )
    for message in messages:
        require(
            isinstance(message, dict)
            and all(isinstance(message.get(name), str) for name in ("role", "content")),
            "every message needs a role and a content of type string.",
        )
        require(
            not _SURROGATE.search(message["content"]),
            "a message holds half a surrogate pair, which is no text.",
        )
    require(not given.get("stream"), "answers are not streamed here; leave stream out.")
    seed, max_tokens = given.get("seed", 0), given.get("max_tokens", 1)
    require(
        isinstance(seed, int) and isinstance(max_tokens, int) and max_tokens >= 1,
        "seed and max_tokens must be integers, max_tokens at least 1.",
    )
    temperature = given.get("temperature", 1.0)
    require(
        isinstance(temperature, (int, float)) and 0 <= temperature <= 2,
        "temperature must be a number in [0, 2].",
    )
    fields = ("model", "messages", "seed", "temperature", "max_tokens")
    return {name: given[name] for name in fields if name in given}


def completion(model: str, text: str, reason: str, prompt_tokens: int) -> dict[str, Any]:
    """The JSON with which an OpenAI-compatible server answers."""
    completion_tokens = count_tokens(text)
    return {
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


async def _chat_completions(request: web.Request) -> web.Response:
    asked = _check(await request.read())
    prompt_tokens = sum(count_tokens(message["content"]) for message in asked["messages"])
    return web.json_response(completion(asked["model"], *complete(**asked), prompt_tokens))


async def _models(request: web.Request) -> web.Response:
    return web.json_response(
        {"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]}
    )


@web.middleware
async def _json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals as JSON: ours, and aiohttp's own (a body too large, an unknown path)."""
    try:
        return await handler(request)
    except web.HTTPClientError as error:
        refusal = {"message": error.text or error.reason, "type": "invalid_request"}
        return web.json_response({"error": refusal}, status=error.status)


def make_app(faults: Faults | None = None) -> web.Application:
    """The endpoint as an aiohttp application, which goes wrong as `faults` has it."""
    middlewares = [_json_errors, *([faults.middleware] if faults is not None else [])]
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=middlewares)
    app.router.add_post("/v1/chat/completions", _chat_completions)
    app.router.add_get("/v1/models", _models)
    return app


@contextlib.asynccontextmanager
async def serving(host: str, port: int, faults: Faults | None = None) -> AsyncIterator[str]:
    """Serve for the length of the block, which gets the base URL once requests are taken."""
    runner = web.AppRunner(make_app(faults), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    try:
        yield f"http://{host}:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def run_server(host: str, port: int, faults: Faults | None = None) -> None:
    """Serve until Ctrl-C.

    Raises:
      InputError: the address can't be used; the message says why.
    """

    async def serve() -> None:
        async with serving(host, port, faults) as url:
            print(f"serving {', '.join(MODELS)} at {url}; stop with Ctrl-C.", flush=True)
            await asyncio.Event().wait()

    try:
        asyncio.run(serve())
    except OSError as error:
        raise InputError(
            f"--host {host} --port {port}: {error.strerror or error}. Take another port; 0 finds "
            "a free one."
        ) from None
