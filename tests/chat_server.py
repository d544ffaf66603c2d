"""A small OpenAI-compatible server for tests: answers, or misbehaves, as it is told.

`python tests/chat_server.py PORT_FILE [LATENCY_S]` serves the negotiating models of `negotiate`.
"""

import asyncio
import contextlib
import hashlib
import json
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web


@dataclass
class Call:
    number: int
    time_s: float
    key: str
    body: dict
    headers: dict = field(default_factory=dict)


@dataclass
class ChatServer:
    """`respond(call)`, a coroutine function, gives the response; `calls` is what has come in."""

    respond: object
    calls: list = field(default_factory=list)
    base_url: str = ""

    async def __aenter__(self):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *exc_info):
        await self._runner.cleanup()

    async def _handle(self, request):
        if request.path.endswith("/num_calls"):
            return web.Response(text=str(len(self.calls)))
        if not request.path.endswith("/v1/chat/completions"):
            return web.json_response({"error": {"message": f"no {request.path}"}}, status=404)
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        body = json.loads(await request.read())
        headers = dict(request.headers)
        call = Call(len(self.calls), time.monotonic(), key, body, headers)
        self.calls.append(call)
        response = await self.respond(call)
        return await response(request) if response in (cut, endless) else response


async def cut(request):
    """Respond with this to send half a body and hang up."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = 1000
    await response.prepare(request)
    await response.write(b'{"choices": [{"message": {"content": "Hal')
    request.transport.close()
    return response


async def endless(request):
    """Respond with this to send a body that never ends."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b" " * 65_536)
    return response


def ok(text, prompt_tokens=10, completion_tokens=5, **more):
    return web.json_response(
        {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
        },
        **more,
    )


def fault(status, message="no", **headers):
    return web.json_response(
        {"error": {"message": message}}, status=status, headers=headers or None
    )


def scripted(*responses):
    """Gives the responses in order, the last one again and again. Callables are called afresh."""

    async def respond(call):
        response = responses[min(call.number, len(responses) - 1)]
        return response() if callable(response) else response

    return respond


def negotiate(body):
    """What the models `echo-focal` and `echo-counterparty` say: the same to the same request."""
    text = json.dumps(body, sort_keys=True)
    draw = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
    if body["model"] == "echo-focal":
        return f"I need payment within {25 + draw % 20} days."
    asked = re.findall(r"(\d+) days", body["messages"][-1]["content"])[-1]
    if draw % 4 == 0:
        return f"Agreed, {asked} days it is."
    if draw % 4 == 1:
        return "I'm walking away from these talks."
    return f"I can do {70 + draw % 30} days."


async def negotiating(call):
    return ok(negotiate(call.body))


async def _serve(port_file, latency_s):
    async def respond(call):
        await asyncio.sleep(latency_s)
        return await negotiating(call)

    async with ChatServer(respond) as server:
        partial = port_file.with_suffix(".partial")
        partial.write_text(server.base_url)
        partial.rename(port_file)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0))
