"""A provider's bad day: two hundred dialogues through all of it, none lost, none twice."""

import asyncio
import io
import json
from collections import Counter
from datetime import datetime
from types import SimpleNamespace

import pytest
from aiohttp import web
from sweeps import writers

from emodistill.configs import SweepConfig
from emodistill.domains import load_scenarios, split_scenarios
from emodistill.errors import InputError
from emodistill.llm import ChatClient, Provider
from emodistill.llm.client import RetryPolicy
from emodistill.logs import log_to_file
from emodistill.offline.store import read_trajectories
from emodistill.offline.sweep import run_sweep
from emodistill.prompts import load_pack
from emodistill.simulator.faults import RETRY_AFTER_S, SHARES, Faults, open_log, parse_faults
from emodistill.simulator.server import make_app

KEYS = tuple(f"sk-secret-{word}-{n}{n}{n}{n}" for n, word in enumerate(("a", "b", "c", "d")))
UNDER_WAY_S = 0.3
SHARE = {"429": 0.3, "500": 0.03, "hang": 0.002, "cut": 0.02, "empty": 0.01}
SHARE |= {"non-json": 0.02, "content-type": 0.02, "dead-key": 1.0}


@pytest.fixture(scope="module")
def bad_day(tmp_path_factory):
    """200 dialogues through a server with every fault; its log, and the folder."""
    folder, log = tmp_path_factory.mktemp("faults"), io.StringIO()
    scenarios = split_scenarios(load_scenarios("crad"), n_test=20).all()

    async def main():
        runner = web.AppRunner(make_app(Faults(SHARE, log=log)), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        provider = Provider(name="test", base_url=url, key_env="TEST_KEY")
        retry = RetryPolicy(timeout_s=2.0, backoff_s=0.3, max_backoff_s=0.6)
        client = ChatClient(provider, [KEYS], max_in_flight=32, retry=retry)
        async with client:
            result = await run_sweep(
                SweepConfig(
                    num_seeds=4,
                    num_scenarios=50,
                    concurrency=32,
                ),
                scenarios,
                out_dir=folder,
                **writers(client, "sim-teacher", "sim-counterparty"),
                pack=load_pack(),
            )
        await runner.cleanup()
        return result

    with log_to_file(folder / "stage.log"):
        result = asyncio.run(main())
    calls = [json.loads(line) for line in log.getvalue().splitlines()]
    told = [json.loads(line) for line in (folder / "stage.log").read_text().splitlines()]
    return SimpleNamespace(folder=folder, calls=calls, told=told, result=result)


def test_no_dialogue_is_lost_and_none_comes_twice(bad_day):
    ids = [t.trajectory_id for t in read_trajectories(bad_day.folder / "trajectories.jsonl")]
    assert len(set(ids)) == len(ids) == bad_day.result.num_finished == 200


def test_every_fault_has_happened(bad_day):
    met = Counter(call["fault"] for call in bad_day.calls)
    assert {*SHARE, "429-bare"} <= met.keys()


def test_a_key_that_has_to_rest_gets_no_call(bad_day):
    """But for those that were under way when it was limited. The server's log says when it was
    called, the client's when a key began to rest and for how long."""
    rests = [line for line in bad_day.told if line.get("event") == "key rests"]
    assert max(line["seconds"] for line in rests) == RETRY_AFTER_S and len(rests) > 20
    for line in rests:
        from_s = datetime.fromisoformat(line["time"]).timestamp()
        for call in bad_day.calls:
            if line["key"].endswith(call["key"]):
                assert not UNDER_WAY_S < call["time_s"] - from_s < line["seconds"], (line, call)


def test_a_dead_key_is_left_alone_once_it_is_known(bad_day):
    died = [call["time_s"] for call in bad_day.calls if call["fault"] == "dead-key"]
    assert len(died) >= 1 and max(died) - min(died) < 1.0


def test_no_part_of_a_key_but_its_last_four_characters_is_in_any_file(bad_day):
    files = [path for path in bad_day.folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"stage.log", "trajectories.jsonl", "failures.jsonl"}
    parts = {key[i : i + 5] for key in KEYS for i in range(len(key) - 4)}
    for path in files:
        text = path.read_text()
        assert not [part for part in parts if part in text], path
    assert "key …0000" in "".join(line.get("key", "") for line in bad_day.told)


def test_the_log_names_every_kind_of_trouble(bad_day):
    faults = [line for line in bad_day.told if line.get("event") == "fault"]
    assert {line["kind"] for line in faults} >= {"limited", "broken", "cut", "foreign", "dead"}
    assert all(line["dialogue"].startswith("crad/") and line["attempt"] >= 1 for line in faults)
    assert sum(line.get("event") == "dialogue" for line in bad_day.told) == 200


def test_shares_as_they_are_typed():
    assert parse_faults(()) == SHARES
    assert parse_faults(("429=0.2", "cut")) == {"429": 0.2, "cut": SHARES["cut"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flood", r"--faults flood: 'flood' is none of 429, 500"),
        ("cut=2", r"--faults cut=2: the share must be a number in \[0, 1\]"),
        ("cut=x", r"the share must be a number"),
    ],
)
def test_faults_that_cannot_be(text, words):
    with pytest.raises(InputError, match=words):
        parse_faults((text,))


def test_a_log_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"--log .*: Is a directory"):
        open_log(tmp_path)


def test_the_same_seed_draws_the_same_faults():
    first, second = (Faults(SHARES, seed=3) for _ in range(2))
    drawn = [first.draw("key") for _ in range(300)]
    assert drawn == [second.draw("key") for _ in range(300)]
    assert len(set(drawn)) > 4
