"""Calls per second through one client, many in flight, against a server that only waits.

The server answers every call after a fixed latency, so the ideal rate is calls in flight ÷ latency.
Each contender runs in a process of its own, by turns. The clock starts after one call for each of
those in flight; CPU time is that of the whole process.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

from emodistill.bench.report import Measured, result
from emodistill.configs import BenchSweepConfig
from emodistill.errors import EmodistillError

MESSAGES = [
    {
        "role": "system",
        "content": "You bargain over one figure, the days until a debt is paid. " * 8,
    },
    {"role": "user", "content": "Debtor: I can pay in 90 days.\nYour reply as the Creditor:"},
]
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "I can go to 40 days."},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 120, "completion_tokens": 8, "total_tokens": 128},
}
_BODY = json.dumps(ANSWER).encode()
_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(_BODY),
    _BODY,
)
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
SETTINGS: dict[str, Any] = {"model": "m", "temperature": 0.7, "max_tokens": 160, "seed": 5}


def run(config: BenchSweepConfig) -> None:
    """Measure, print a line a contender, then the result."""
    names = ("emodistill", *config.peers)
    shares: dict[str, list[float]] = {name: [] for name in names}
    cpu_ms: dict[str, list[float]] = {name: [] for name in names}
    failed: dict[str, int] = dict.fromkeys(names, 0)
    with subprocess.Popen(
        [sys.executable, "-m", "emodistill.bench.sweep", "serve", str(config.latency_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None and server.stdin is not None
        url = server.stdout.readline().strip()
        for number in range(config.rounds):
            for name in names:
                found = _client(name, url, config.in_flight, config.calls)
                ideal = config.in_flight / config.latency_s
                shares[name].append(config.calls / found["seconds"] / ideal)
                cpu_ms[name].append(1e3 * found["cpu_s"] / config.calls)
                failed[name] += found["failed"]
                print(
                    f"round {number + 1}, {name}: {shares[name][-1]:.1%} of ideal, "
                    f"{cpu_ms[name][-1]:.2f} ms CPU a call, {found['failed']} failed",
                    flush=True,
                )
        many = _client("emodistill", url, 1_000, 4_000)
        long = _client("emodistill", url, config.in_flight, config.long_calls)
        rss = {"after_a_tenth_mib": long["rss_mib"][0], "at_the_end_mib": long["rss_mib"][1]}
        server.stdin.close()
    measured = [Measured(name, shares[name]) for name in names]
    print("share of the ideal rate, median (lowest to highest)")
    print("\n".join(one.text for one in measured))
    extra = {
        "cpu_ms_per_call": {name: Measured(name, cpu_ms[name]).median for name in names},
        "failed": failed,
        "failed_of_1000_in_flight": many["failed"],
        "share_with_1000_in_flight": 4_000 / many["seconds"] / (1_000 / config.latency_s),
        "memory_over_calls": {"calls": config.long_calls} | rss,
        "in_flight": config.in_flight,
        "latency_s": config.latency_s,
    }
    print(result(config, "share of ideal calls/s", measured[0], measured[1:], extra))


def _client(name: str, url: str, in_flight: int, calls: int) -> dict[str, Any]:
    arguments = (name, url, str(in_flight), str(calls))
    command = [sys.executable, "-m", "emodistill.bench.sweep", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise EmodistillError(f"bench sweep: {name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


Call = Callable[[int], Awaitable[object]]
Queue = Callable[[Iterable[int], Callable[[int], Awaitable[None]], int], Awaitable[object]]


async def _drive(call: Call, in_flight: int, calls: int, queue: Queue) -> dict[str, Any]:
    failed = 0
    early_mib = 0.0

    async def one(number: int) -> None:
        nonlocal failed, early_mib
        try:
            await call(number)
        except Exception:  # whatever a peer raises is a call that failed
            failed += 1
        if number == calls // 10:
            early_mib = _rss_mib()

    await queue(range(in_flight), one, in_flight)  # connections are made, modules loaded
    cpu_s, started_s = time.process_time(), time.perf_counter()
    await queue(range(calls), one, in_flight)
    return {
        "seconds": time.perf_counter() - started_s,
        "cpu_s": time.process_time() - cpu_s,
        "failed": failed,
        "rss_mib": [early_mib, _rss_mib()],
    }


async def _our_queue(
    numbers: Iterable[int], one: Callable[[int], Awaitable[None]], in_flight: int
) -> None:
    from emodistill.offline.workers import run_bounded

    await run_bounded(numbers, one, concurrency=in_flight, on_failure=lambda number, error: None)


async def _plain_queue(
    numbers: Iterable[int], one: Callable[[int], Awaitable[None]], in_flight: int
) -> None:
    shared = iter(numbers)

    async def worker() -> None:
        for number in shared:
            await one(number)

    await asyncio.gather(*(worker() for _ in range(in_flight)))


def _rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def _ours(url: str, in_flight: int, calls: int) -> dict[str, Any]:
    from emodistill.llm import ChatClient, Price, Provider

    provider = Provider(name="bench", base_url=url, prices={"m": Price(1.0, 2.0)})
    async with ChatClient(provider, ("key-for-the-bench",), max_in_flight=in_flight) as client:
        return await _drive(
            lambda n: client.chat(MESSAGES, sticky=str(n), **SETTINGS),
            in_flight,
            calls,
            _our_queue,
        )


async def _openai(url: str, in_flight: int, calls: int) -> dict[str, Any]:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=url, api_key="k") as client:  # takes 1,000 connections
        create: Any = client.chat.completions.create
        return await _drive(
            lambda n: create(messages=MESSAGES, **SETTINGS), in_flight, calls, _plain_queue
        )


async def _litellm(url: str, in_flight: int, calls: int) -> dict[str, Any]:
    import litellm

    litellm.suppress_debug_info = True
    ask = {"model": "openai/m", "api_base": url, "api_key": "k", "messages": MESSAGES}
    return await _drive(
        lambda n: litellm.acompletion(**(SETTINGS | ask)), in_flight, calls, _plain_queue
    )


class _Waiting(asyncio.Protocol):
    """A connection of the server: every request is answered `latency_s` after its last byte.

    No framework, so that the server's own work stays small beside the clients'.
    """

    def __init__(self, latency_s: float) -> None:
        self._latency_s = latency_s
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and len(body) >= (int(length[1]) if length else 0):
            self._received = b""
            asyncio.get_running_loop().call_later(self._latency_s, self._answer)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(_RESPONSE)


async def _serve(latency_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Waiting(latency_s), "127.0.0.1", 0, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)


def _main() -> None:
    if sys.argv[1] == "serve":
        return asyncio.run(_serve(float(sys.argv[2])))
    name, url, in_flight, calls = sys.argv[1:]
    contender = {"emodistill": _ours, "openai": _openai, "litellm": _litellm}[name]
    print(json.dumps(asyncio.run(contender(url, int(in_flight), int(calls)))))


if __name__ == "__main__":
    _main()
