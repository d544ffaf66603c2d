"""Calls per second through one client, many in flight, against a server that only waits.

The server answers every call after a fixed latency, so the ideal rate is calls in flight ÷ latency.
Each contender's round runs in a process of its own. The clock starts after one call for each of
those in flight; CPU time is that of the whole process.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from benchmarks.configs import SweepBenchmark
from benchmarks.rounds import (
    OURS,
    Figures,
    alternate,
    in_own_process,
    medians,
    peak_bytes,
    report,
)
from benchmarks.waiting_server import waiting_server
from emodistill.llm import ChatClient, Provider
from emodistill.offline.workers import run_bounded

MANY_IN_FLIGHT, MANY_CALLS = 1_000, 4_000
MIB = 2**20
MESSAGES = [
    {
        "role": "system",
        "content": "You bargain over one figure, the days until a debt is paid. " * 8,
    },
    {"role": "user", "content": "Debtor: I can pay in 90 days.\nYour reply as the Creditor:"},
]
SETTINGS: dict[str, Any] = {"model": "m", "temperature": 0.7, "max_tokens": 160, "seed": 5}
Call = Callable[[int], Awaitable[object]]
"""Makes the call of that number."""


def run(config: SweepBenchmark) -> None:
    """Measure, print a line per round and contender, then the result."""
    with waiting_server(config.latency_s) as url:

        def measure(name: str, in_flight: int, calls: int, number: int = 0) -> Figures:
            figures = in_own_process(client_figures, name, url, in_flight, calls)
            return {**figures, "share": figures["rate"] * config.latency_s / in_flight}

        contenders = {
            name: partial(measure, name, config.in_flight, config.calls)
            for name in (OURS, *config.peers)
        }
        line = "{share:.1%} of ideal, {cpu_ms:.2f} ms CPU a call, {failed} failed"
        rounds = alternate(contenders, config.rounds, line)
        many = measure(OURS, MANY_IN_FLIGHT, MANY_CALLS)
        long = measure(OURS, config.in_flight, config.long_calls)
    extra = {
        "cpu_ms_per_call": medians(rounds, "cpu_ms"),
        "failed": {name: sum(one["failed"] for one in each) for name, each in rounds.items()},
        "failed_of_1000_in_flight": many["failed"],
        "share_with_1000_in_flight": many["share"],
        "memory_over_calls": {
            "calls": config.long_calls,
            "after_a_tenth_mib": long["early_mib"],
            "at_the_end_mib": long["final_mib"],
        },
        "in_flight": config.in_flight,
        "latency_s": config.latency_s,
    }
    report(config, "share of ideal calls/s", rounds, "share", extra)


@asynccontextmanager
async def _emodistill(url: str, in_flight: int) -> AsyncIterator[Call]:
    provider = Provider(
        name="bench", base_url=url, profiles=(("m", {"price": {"input": 1.0, "output": 2.0}}),)
    )
    async with ChatClient(provider, [("key-for-the-bench",)], max_in_flight=in_flight) as client:
        yield lambda number: client.chat(MESSAGES, sticky=str(number), **SETTINGS)


@asynccontextmanager
async def _openai(url: str, in_flight: int) -> AsyncIterator[Call]:
    from openai import AsyncOpenAI  # in this contender's process alone; takes the extra `bench`

    async with AsyncOpenAI(base_url=url, api_key="k") as client:  # opens up to 1,000 connections
        create: Any = client.chat.completions.create
        yield lambda _: create(messages=MESSAGES, **SETTINGS)


@asynccontextmanager
async def _litellm(url: str, in_flight: int) -> AsyncIterator[Call]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else importing it fetches a price list
    import litellm  # in this contender's process alone; takes the extra `bench`

    litellm.suppress_debug_info = True
    settings = SETTINGS | {"model": "openai/m", "api_base": url, "api_key": "k"}
    yield lambda _: litellm.acompletion(messages=MESSAGES, **settings)


CLIENTS: dict[str, Callable[[str, int], AbstractAsyncContextManager[Call]]] = {
    OURS: _emodistill,
    "openai": _openai,
    "litellm": _litellm,
}


async def _plain_queue(jobs: Iterable[int], work: Call, *, concurrency: int) -> None:
    """What a user of the peers would write."""
    shared = iter(jobs)

    async def worker() -> None:
        for number in shared:
            await work(number)

    await asyncio.gather(*(worker() for _ in range(concurrency)))


def client_figures(name: str, url: str, in_flight: int, calls: int) -> Figures:
    """Make `calls` calls, `in_flight` at a time, in this process."""
    queue: Any = _plain_queue
    if name == OURS:
        queue = partial(run_bounded, on_failure=lambda number, error: None)
    failed, early_mib = 0, 0.0

    async def measure() -> Figures:
        async with CLIENTS[name](url, in_flight) as call:

            async def work(number: int) -> None:
                nonlocal failed, early_mib
                try:
                    await call(number)
                except Exception:  # whatever a peer raises is a call that failed
                    failed += 1
                if number == calls // 10:
                    early_mib = peak_bytes() / MIB

            # First one call each, so that connections are open and modules loaded.
            await queue(range(in_flight), work, concurrency=in_flight)
            cpu_s, started_s = time.process_time(), time.perf_counter()
            await queue(range(calls), work, concurrency=in_flight)
            return {
                "rate": calls / (time.perf_counter() - started_s),
                "cpu_ms": 1e3 * (time.process_time() - cpu_s) / calls,
                "failed": failed,
                "early_mib": early_mib,
                "final_mib": peak_bytes() / MIB,
            }

    return asyncio.run(measure())
