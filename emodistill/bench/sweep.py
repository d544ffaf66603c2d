"""Calls per second through one client, many in flight, against a server that only waits.

The server answers every call after a fixed latency, so the ideal rate is calls in flight ÷ latency.
Each contender runs in a process of its own, by turns; its CPU time is that of the whole process
from its first call on.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

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
    print(result("sweep", "share of ideal calls/s", measured[0], measured[1:], extra))


def _client(name: str, url: str, in_flight: int, calls: int) -> dict[str, Any]:
    arguments = (name, url, str(in_flight), str(calls))
    command = [sys.executable, "-m", "emodistill.bench.sweep", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise EmodistillError(f"bench sweep: {name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


Call = Callable[[int], Awaitable[object]]


async def _drive(call: Call, in_flight: int, calls: int) -> dict[str, Any]:
    numbers = iter(range(calls))
    failed = 0
    early_mib = 0.0

    async def worker() -> None:
        nonlocal failed, early_mib
        for number in numbers:
            try:
                await call(number)
            except Exception:  # whatever a peer raises is a call that failed
                failed += 1
            if number == calls // 10:
                early_mib = _rss_mib()

    cpu_s, started_s = time.process_time(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return {
        "seconds": time.perf_counter() - started_s,
        "cpu_s": time.process_time() - cpu_s,
        "failed": failed,
        "rss_mib": [early_mib, _rss_mib()],
    }


def _rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def _ours(url: str, in_flight: int, calls: int) -> dict[str, Any]:
    from emodistill.llm import ChatClient, Price, Provider

    provider = Provider(name="bench", base_url=url, prices={"m": Price(1.0, 2.0)})
    async with ChatClient(provider, ("key-for-the-bench",), max_in_flight=in_flight) as client:
        return await _drive(
            lambda n: client.chat(MESSAGES, sticky=str(n), **SETTINGS), in_flight, calls
        )


async def _openai(url: str, in_flight: int, calls: int) -> dict[str, Any]:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=url, api_key="k") as client:  # takes 1,000 connections
        create: Any = client.chat.completions.create
        return await _drive(lambda n: create(messages=MESSAGES, **SETTINGS), in_flight, calls)


async def _litellm(url: str, in_flight: int, calls: int) -> dict[str, Any]:
    import litellm

    litellm.suppress_debug_info = True
    ask = {"model": "openai/m", "api_base": url, "api_key": "k", "messages": MESSAGES}
    return await _drive(lambda n: litellm.acompletion(**(SETTINGS | ask)), in_flight, calls)


async def _serve(latency_s: float) -> None:
    from aiohttp import web

    body = json.dumps(ANSWER).encode()

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(latency_s)
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    await runner.cleanup()


def _main() -> None:
    if sys.argv[1] == "serve":
        return asyncio.run(_serve(float(sys.argv[2])))
    name, url, in_flight, calls = sys.argv[1:]
    contender = {"emodistill": _ours, "openai": _openai, "litellm": _litellm}[name]
    print(json.dumps(asyncio.run(contender(url, int(in_flight), int(calls)))))


if __name__ == "__main__":
    _main()
