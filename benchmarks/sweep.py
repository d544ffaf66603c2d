"""Calls per second through one client, many in flight, against a server that only waits.

The server answers every call after a fixed latency, so the ideal rate is calls in flight ÷ latency.
Each contender's round runs in a process of its own. The clock starts after one call for each of
those in flight; CPU time is that of the whole process.
"""

from __future__ import annotations

from functools import partial

from benchmarks.clients import run_client
from benchmarks.configs import SweepBenchmark
from benchmarks.rounds import OURS, Figures, alternate, in_own_process, medians, report
from benchmarks.waiting_server import waiting_server

MANY_IN_FLIGHT, MANY_CALLS = 1_000, 4_000


def run(config: SweepBenchmark) -> None:
    """Measure, print a line per round and contender, then the result."""
    with waiting_server(config.latency_s) as url:

        def measure(name: str, in_flight: int, calls: int, number: int = 0) -> Figures:
            figures = in_own_process(run_client, name, url, in_flight, calls)
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
