"""Recorded calls: a replay connects to nothing and repeats the recording byte for byte."""

import asyncio
import json

import pytest
from chat_client import priced
from chat_server import ChatServer, fault, negotiating, ok
from sweeps import writers

from emodistill.configs import SweepConfig
from emodistill.domains import load_scenarios, split_scenarios
from emodistill.errors import InputError
from emodistill.llm import ChatClient, Provider
from emodistill.llm.cassette import CALLS, Recorder, Replayer
from emodistill.llm.client import RetryPolicy
from emodistill.offline.sweep import run_sweep
from emodistill.prompts import load_pack

SCENARIOS = split_scenarios(load_scenarios("crad")[:12], n_test=2).all()
PACK = load_pack()
NOWHERE = "http://127.0.0.1:1/v1"


def provider(base_url):
    return Provider(name="test", base_url=base_url, profiles=priced(1.0, 2.0))


async def play(client, out_dir, *, concurrency=6, num_seeds=2):
    config = SweepConfig(
        num_seeds=num_seeds,
        concurrency=concurrency,
    )
    return await run_sweep(config, SCENARIOS, out_dir=out_dir, **writers(client), pack=PACK)


def record(folder, out_dir, respond=negotiating):
    async def main():
        async with ChatServer(respond) as server:
            with Recorder(folder, "run") as recorder:
                retry = RetryPolicy(backoff_s=0.001)
                async with ChatClient(
                    provider(server.base_url), (), retry=retry, tape=recorder
                ) as client:
                    return await play(client, out_dir)

    return asyncio.run(main())


def replay(folder, out_dir, **settings):
    async def main():
        async with ChatClient(provider(NOWHERE), (), tape=Replayer(folder)) as client:
            return await play(client, out_dir, **settings)

    return asyncio.run(main())


def content(out_dir):
    return (out_dir / "trajectories.jsonl").read_bytes()


async def uneven(call):
    """Answers that overtake each other, and one dialogue that is refused."""
    await asyncio.sleep(call.number * 7919 % 13 / 1000)
    if "debt_00" in json.dumps(call.body) and call.body["seed"] % 9 == 0:
        return fault(400, "flagged")
    return await negotiating(call)


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    """A recording of `uneven`; the dialogues that were played meanwhile lie in `a` beside it."""
    folder = tmp_path_factory.mktemp("recording")
    return folder / "tape", folder / "a", record(folder / "tape", folder / "a", uneven)


def test_a_replay_equals_its_recording_byte_for_byte(tape, tmp_path):
    folder, out_dir, recorded = tape
    again = replay(folder, tmp_path / "b")
    assert content(out_dir) == content(tmp_path / "b")
    assert recorded.num_new == again.num_new == 20
    assert recorded.cost_usd == pytest.approx(again.cost_usd)
    assert recorded.cost_usd > 0


def test_failures_are_replayed_as_well(tmp_path):
    async def refusing(call):
        return fault(400, "flagged") if call.body["seed"] % 3 == 0 else await negotiating(call)

    recorded = record(tmp_path / "tape", tmp_path / "a", refusing)
    again = replay(tmp_path / "tape", tmp_path / "b")
    assert recorded.num_failed == again.num_failed > 0
    assert (tmp_path / "a/failures.jsonl").read_bytes() == (
        tmp_path / "b/failures.jsonl"
    ).read_bytes()


@pytest.mark.parametrize("concurrency", [1, 3, 40])
def test_at_another_concurrency_the_dialogues_are_the_same(tape, tmp_path, concurrency):
    folder, out_dir, _ = tape
    replay(folder, tmp_path / "b", concurrency=concurrency)
    a, b = (sorted(content(path).splitlines()) for path in (out_dir, tmp_path / "b"))
    assert a == b


def test_an_interrupted_replay_goes_on(tape, tmp_path):
    folder, out_dir, _ = tape
    replay(folder, tmp_path / "b", num_seeds=1)
    replay(folder, tmp_path / "b")
    a, b = (sorted(content(path).splitlines()) for path in (out_dir, tmp_path / "b"))
    assert a == b


def test_what_was_never_asked_is_said(tmp_path):
    record(tmp_path / "tape", tmp_path / "a")
    with pytest.raises(InputError, match=r"calls\.jsonl holds no answer to this request of crad/"):
        replay(tmp_path / "tape", tmp_path / "b", num_seeds=3)


def test_keys_are_not_recorded(tmp_path):
    async def main():
        async with ChatServer(negotiating) as server:
            with Recorder(tmp_path / "tape", "run") as recorder:
                keys = [("sk-secret-AAAA1111",)]
                async with ChatClient(provider(server.base_url), keys, tape=recorder) as client:
                    await play(client, tmp_path / "a", num_seeds=1)
            return server.calls

    calls = asyncio.run(main())
    assert {call.key for call in calls} == {"sk-secret-AAAA1111"}
    assert "secret" not in (tmp_path / "tape" / CALLS).read_text()


def test_a_file_that_is_no_recording_is_named(tmp_path):
    (tmp_path / CALLS).write_text('{"text": "hello"}\n')
    with pytest.raises(InputError, match=r"calls\.jsonl:1: no recorded call"):
        Replayer(tmp_path)


def test_the_same_request_twice_gets_both_answers_in_order(tmp_path):
    async def counting(call):
        return ok(f"answer {call.number}")

    ask = {"model": "m", "temperature": 0.0, "max_tokens": 9, "sticky": "d"}

    async def main():
        async with ChatServer(counting) as server:
            with Recorder(tmp_path, "run") as recorder:
                async with ChatClient(provider(server.base_url), (), tape=recorder) as client:
                    first = [(await client.chat([], **ask)).text for _ in range(2)]
        async with ChatClient(provider(NOWHERE), (), tape=Replayer(tmp_path)) as client:
            return first, [(await client.chat([], **ask)).text for _ in range(2)]

    first, second = asyncio.run(main())
    assert first == second == ["answer 0", "answer 1"]


def test_a_folder_holds_the_recording_of_one_run(tmp_path):
    record(tmp_path / "tape", tmp_path / "a")
    with Recorder(tmp_path / "tape", "run"):
        pass  # which may go on
    with pytest.raises(InputError, match=r"holds the recording of run; .* Name an empty one"):
        Recorder(tmp_path / "tape", "another")
