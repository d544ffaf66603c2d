"""A sweep of fifteen dialogues against the server of `chat_server`, for tests."""

import asyncio

import msgspec
from chat_client import priced
from chat_server import ChatServer, negotiating

from emodistill.configs import SweepConfig
from emodistill.domains import load_scenarios, split_scenarios
from emodistill.llm import ChatClient, Provider
from emodistill.llm.client import RetryPolicy
from emodistill.negotiation.writers import ApiWriter
from emodistill.offline.store import read_trajectories
from emodistill.offline.sweep import run_sweep
from emodistill.prompts import load_pack

SCENARIOS = split_scenarios(load_scenarios("crad")[:7], n_test=2).all()
NUM_SEEDS = 3
NUM_DIALOGUES = 15
PACK = load_pack()


def writers(client, focal="echo-focal", counterparty="echo-counterparty"):
    """The two roles of a sweep, both at one server."""
    return {
        "focal": ApiWriter(client, focal, 0.7, 160),
        "counterparty": ApiWriter(client, counterparty, 0.7, 160),
    }


def sweep(out_dir, respond=negotiating, *, price=0.0, scenarios=SCENARIOS, **settings):
    """Sweep against a server; the result and the calls that came in."""
    config = SweepConfig(**({"num_seeds": NUM_SEEDS} | settings))
    retry = RetryPolicy(backoff_s=0.001, max_backoff_s=0.002, max_attempts=2)

    async def main():
        async with ChatServer(respond) as server:
            provider = Provider(
                name="test", base_url=server.base_url, profiles=priced(price, price)
            )
            async with ChatClient(provider, (), retry=retry) as client:
                result = await run_sweep(
                    config, scenarios, out_dir=out_dir, **writers(client), pack=PACK
                )
            return result, server.calls

    return asyncio.run(main())


def content(out_dir):
    """All dialogues without their latencies, in the order of their ids."""
    found = []
    for trajectory in read_trajectories(out_dir / "trajectories.jsonl"):
        turns = tuple(msgspec.structs.replace(turn, latency_s=0.0) for turn in trajectory.turns)
        found.append(msgspec.structs.replace(trajectory, turns=turns))
    return sorted(found, key=lambda trajectory: trajectory.trajectory_id)
