"""What a dialogue has heard before a stop, it hears again: no call is paid twice."""

import asyncio

import pytest
from chat_server import ChatServer, fault, negotiating
from sweeps import content, sweep

from emodistill.errors import ApiError, InputError
from emodistill.llm import ChatClient, Provider
from emodistill.llm.usage import Completion
from emodistill.offline import unfinished
from emodistill.offline.budget import read_usage
from emodistill.offline.store import read_trajectories
from emodistill.offline.unfinished import UnfinishedAnswers

ANSWER = Completion("I can pay in 60 days.", 100, 8, 0.5, 0.25)


def breaks_after(num_calls, seen):
    async def respond(call):
        if len(seen) >= num_calls:
            return fault(404, "gone")
        seen.append(call)
        return await negotiating(call)

    return respond


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The sweep as it is without a stop: its folder, and the calls that it made."""
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    return folder, sweep(folder, price=1.0)[1]


@pytest.mark.parametrize("concurrency", [1, 6])
def test_a_stop_loses_no_call_that_was_answered(whole, tmp_path, concurrency):
    whole_dir, calls = whole
    answered = []
    for more in (10, 17, 24):  # three stops, each in the middle of dialogues
        with pytest.raises(ApiError, match="404"):
            respond = breaks_after(len(answered) + more, answered)
            sweep(tmp_path / "stopped", respond, price=1.0, concurrency=concurrency)
    assert (tmp_path / "stopped/trajectories.unfinished").stat().st_size > 0
    result, rest = sweep(tmp_path / "stopped", price=1.0, concurrency=concurrency)
    assert len(answered) == 51 and len(answered) + len(rest) == len(calls)
    assert content(tmp_path / "stopped") == content(whole_dir)
    assert not (tmp_path / "stopped/trajectories.unfinished").exists()
    cost_usd = sum(t.cost_usd for t in read_trajectories(tmp_path / "stopped/trajectories.jsonl"))
    assert result.cost_usd == pytest.approx(cost_usd)
    usage = read_usage(tmp_path / "stopped/trajectories.jsonl")
    assert usage.cost_usd == pytest.approx(cost_usd)


def test_what_a_killed_process_had_heard_does_not_count_as_lost_money(whole, tmp_path):
    """The ceiling leaves room for exactly what is still to be asked."""
    whole_dir, calls = whole
    whole_usd = read_usage(whole_dir / "trajectories.jsonl").cost_usd
    with pytest.raises(ApiError):
        sweep(tmp_path / "stopped", breaks_after(len(calls) - 3, []), price=1.0, concurrency=1)
    result, _ = sweep(tmp_path / "stopped", price=1.0, concurrency=1, max_cost_usd=1.2 * whole_usd)
    assert result.is_complete and result.stopped is None


def test_other_requests_are_not_answered_from_the_cache(tmp_path):
    with UnfinishedAnswers(tmp_path / "t.unfinished", ()) as cache:
        cache.begin("d")
        cache.add("d", b"a request", ANSWER)
    with UnfinishedAnswers(tmp_path / "t.unfinished", ()) as cache:
        cache.begin("d")
        assert cache.get("d", b"another") is None
        assert cache.get("e", b"a request") is None
        assert cache.get("d", b"a request") == ANSWER
        assert cache.get("d", b"a request") is None
        cache.begin("d")
        assert cache.get("d", b"a request") == ANSWER
        assert cache.usage.cost_usd == 0.25


def test_answers_of_finished_dialogues_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "NUM_STALE_LINES", 10)
    path = tmp_path / "t.unfinished"
    with UnfinishedAnswers(path, ()) as cache:
        cache.add("open", b"x", ANSWER)
        for number in range(25):
            cache.add(f"d{number}", b"x", ANSWER)
            cache.forget(f"d{number}")
        assert len(path.read_text().splitlines()) <= 12
    assert path.exists()
    done = {"open", *(f"d{number}" for number in range(25))}
    with UnfinishedAnswers(path, done) as cache:
        cache.begin("open")
        assert cache.get("open", b"x") is None
    assert not path.exists()


def test_a_file_of_something_else_is_named(tmp_path):
    path = tmp_path / "t.unfinished"
    path.write_text('{"schema": 1}\n')
    with pytest.raises(InputError, match=r"t.unfinished:1: no answer .* Delete the file"):
        UnfinishedAnswers(path, ())


def test_a_server_is_not_asked_for_what_is_known(tmp_path):
    async def main():
        async with ChatServer(negotiating) as server:
            provider = Provider(name="test", base_url=server.base_url)
            with UnfinishedAnswers(tmp_path / "t.unfinished", ()) as cache:
                async with ChatClient(provider, ()) as client:
                    client.cache = cache
                    asked = {"model": "echo-focal", "temperature": 0.7, "max_tokens": 9, "seed": 1}
                    message = [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]
                    first = await client.chat(message, sticky="d", **asked)
                    cache.begin("d")
                    second = await client.chat(message, sticky="d", **asked)
            return first, second, server.calls

    first, second, calls = asyncio.run(main())
    assert first == second and len(calls) == 1
