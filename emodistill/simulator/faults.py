"""A provider's bad day on purpose: what the simulator does wrong when it is told to.

    python scripts/simulate_api.py --faults 429=0.1 hang=0.01 --log calls.jsonl

Keys are numbered in the order in which they are first seen, and by their number mod 4 the first
has no trouble of its own, the second is limited with `Retry-After`, the third limited without,
and the fourth is dead from its tenth call on. All other faults meet any call.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from aiohttp import web

from emodistill.errors import InputError
from emodistill.seeding import stream

SHARES: Mapping[str, float] = {
    "429": 0.1,
    "500": 0.03,
    "hang": 0.003,
    "cut": 0.02,
    "empty": 0.02,
    "non-json": 0.02,
    "content-type": 0.02,
    "dead-key": 1.0,
    "400": 0.0,
}
"""The faults and the share of calls that meet them, where `--faults` gives no other."""

RETRY_AFTER_S = 1
NUM_CALLS_OF_A_DEAD_KEY = 9

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def parse_faults(texts: Sequence[str]) -> dict[str, float]:
    """`("429=0.2", "cut")` as shares of the calls; of no text at all, every fault of `SHARES`.

    Raises:
      InputError: an unknown fault, or a share outside [0, 1].
    """
    shares = {} if texts else dict(SHARES)
    for text in texts:
        kind, _, share = text.partition("=")
        if kind not in SHARES:
            raise InputError(f"--faults {text}: {kind!r} is none of {', '.join(SHARES)}.")
        try:
            shares[kind] = float(share) if share else SHARES[kind]
        except ValueError:
            shares[kind] = -1.0
        if not 0 <= shares[kind] <= 1:
            raise InputError(f"--faults {text}: the share must be a number in [0, 1].")
    return shares


class Faults:
    """Which calls go wrong and how; the n-th call of a server always draws the same lot.

    Args:
      shares: see `parse_faults`.
      log: gets a line of JSON for every call: `time_s` (of arrival), `key` (its last four
        characters), `fault` (null where there is none), `retry_after_s` (what was asked for).
    """

    def __init__(self, shares: Mapping[str, float], *, seed: int = 0, log: TextIO | None = None):
        self._shares = shares
        self._rng = stream(seed, "simulator-faults")
        self._log = log
        self._num_calls: Counter[str] = Counter()

    def draw(self, key: str) -> str | None:
        """The fault of the next call, which comes with `key`."""
        self._num_calls[key] += 1
        number = list(self._num_calls).index(key) % 4
        lot = self._rng.random()
        is_spent = self._num_calls[key] > NUM_CALLS_OF_A_DEAD_KEY
        if number == 3 and is_spent and "dead-key" in self._shares:
            return "dead-key"
        if number in (1, 2) and self._rng.random() < self._shares.get("429", 0.0):
            return "429" if number == 1 else "429-bare"
        for kind, share in self._shares.items():
            if kind in ("429", "dead-key"):  # faults of a key, drawn above
                continue
            if lot < share:
                return kind
            lot -= share
        return None

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a chat completion wrongly where its lot says so."""
        if not request.path.endswith("/chat/completions"):
            return await handler(request)
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        kind = self.draw(key)
        if self._log is not None:
            line = {
                "time_s": time.time(),
                "key": key[-4:],
                "fault": kind,
                "retry_after_s": RETRY_AFTER_S if kind == "429" else None,
            }
            print(json.dumps(line), file=self._log, flush=True)
        if kind is None:
            return await handler(request)
        await request.read()
        return await _misbehave(kind, key, request)


def open_log(path: Path) -> TextIO:
    """A file for the calls' lines; what it holds already stays."""
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--log {path}: {error.strerror}. Name another file.") from None


async def _misbehave(kind: str, key: str, request: web.Request) -> web.StreamResponse:
    quoted = f"{key[:8]}{'*' * 12}{key[-4:]} ({key})"  # real servers quote keys, masked and not
    refusals = {
        "429": (429, "Rate limit reached for requests."),
        "500": (500, "The server had an error while processing your request."),
        "dead-key": (401, f"Incorrect API key provided: {quoted}."),
        "400": (400, "The messages were flagged."),
    }
    if refusal := refusals.get(kind.removesuffix("-bare")):
        status, message = refusal
        headers = {"Retry-After": str(RETRY_AFTER_S)} if kind == "429" else None
        return web.json_response({"error": {"message": message}}, status=status, headers=headers)
    if kind == "cut":
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = 1000
        await response.prepare(request)
        await response.write(b'{"choices": [{"message": {"content": "I could')
        if request.transport is not None:
            request.transport.close()
        return response
    if kind == "empty":
        choice = {"index": 0, "message": {"role": "assistant", "content": ""}}
        return web.json_response({"choices": [choice], "usage": {}})
    if kind == "non-json":
        return web.Response(text='{"choices": [{"mess', content_type="application/json")
    if kind == "hang":
        await asyncio.sleep(3600)
    return web.Response(text="<h1>One moment, please</h1>", content_type="text/html")
