"""The sweep: the planned dialogues, through refusals, trouble, kills, restarts and ceilings."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from chat_server import fault, negotiating, ok
from sweeps import NUM_DIALOGUES, NUM_SEEDS, SCENARIOS, content, sweep

from emodistill import progress
from emodistill.emotions import EMOTIONS
from emodistill.errors import ApiError, InputError, StaleInputError
from emodistill.jsonl import JsonlAppender, read_lines
from emodistill.offline import workers
from emodistill.offline.budget import read_usage
from emodistill.offline.store import read_scenarios, read_trajectories
from emodistill.offline.sweep import plan_sweep, planned_emotions

CONCURRENCY = 4
PRICE_OF_A_CALL = 0.015  # 15 tokens at a thousand dollars a million
SERVER = Path(__file__).with_name("chat_server.py")


def ids(out_dir):
    return [t.trajectory_id for t in read_trajectories(out_dir / "trajectories.jsonl")]


def failures(out_dir):
    return [line.value for line in read_lines(out_dir / "failures.jsonl")]


def belongs_to(call, *scenarios):
    """Whether a request is about one of these scenarios: their facts stand in the prompt."""
    text = call.body["messages"][0]["content"]
    return any(s.fields["creditor"] in text and s.fields["debtor"] in text for s in scenarios)


def test_the_planned_dialogues_are_played_once_each(tmp_path):
    result, calls = sweep(tmp_path)
    planned = [dialogue.trajectory_id for dialogue in plan_sweep(SCENARIOS, num_seeds=NUM_SEEDS)]
    assert (
        len(planned) == NUM_DIALOGUES == result.num_planned == result.num_finished == result.num_new
    )
    assert sorted(ids(tmp_path)) == sorted(planned)
    assert failures(tmp_path) == [] and result.is_complete and result.stopped is None
    assert read_scenarios(tmp_path / "scenarios.jsonl") == SCENARIOS
    trajectories = read_trajectories(tmp_path / "trajectories.jsonl")
    assert sum(t.usage.calls for t in trajectories) == len(calls)
    assert {t.split for t in trajectories} == {"train"}
    assert len({(t.scenario_id, t.seed) for t in trajectories}) == NUM_DIALOGUES
    for trajectory in trajectories:
        emotions = [turn.emotion for turn in trajectory.focal_turns]
        plan = planned_emotions(0, trajectory.trajectory_id, 15)
        assert emotions == plan[: len(emotions)]


@pytest.mark.parametrize(("count_turns", "num_turns"), [("both", 4), ("focal", 8)])
def test_the_cap_may_count_the_focal_sides_turns_alone(tmp_path, count_turns, num_turns):
    async def stubborn(call):
        return ok("I can't move.")

    settings = {"num_seeds": 1, "max_turns": 4, "count_turns": count_turns, "keep_unread": True}
    sweep(tmp_path, stubborn, **settings)
    for trajectory in read_trajectories(tmp_path / "trajectories.jsonl"):
        emotions = [turn.emotion for turn in trajectory.focal_turns]
        assert len(trajectory.turns) == num_turns == 2 * len(emotions)
        assert emotions == planned_emotions(0, trajectory.trajectory_id, num_turns // 2)


def test_the_plan_visits_every_scenario_before_any_again():
    plan = plan_sweep(SCENARIOS, num_seeds=2)
    assert [d.trajectory_id for d in plan[:2]] == [
        f"crad/{s.scenario_id}/seed_0000" for s in SCENARIOS if s.split == "train"
    ][:2]
    assert [d.number for d in plan] == [0] * 5 + [1] * 5
    assert len(plan_sweep(SCENARIOS, num_seeds=2, num_scenarios=3)) == 6


def test_emotions_are_uniform_and_depend_on_seed_and_dialogue_only():
    drawn = Counter(e for i in range(400) for e in planned_emotions(0, f"d{i}", 14))
    assert set(drawn) == set(EMOTIONS)
    expected = 400 * 14 / 28
    chi2 = sum((count - expected) ** 2 / expected for count in drawn.values())
    assert chi2 < 55  # 27 degrees of freedom: 0.1 %
    assert planned_emotions(0, "d", 15) != planned_emotions(1, "d", 15)
    assert planned_emotions(0, "d", 15)[:4] == planned_emotions(0, "d", 4)


def test_concurrency_bounds_what_is_in_flight_and_changes_no_dialogue(tmp_path):
    flying, peak = 0, 0

    async def respond(call):
        nonlocal flying, peak
        flying += 1
        peak = max(peak, flying)
        await asyncio.sleep(0.005)
        flying -= 1
        return await negotiating(call)

    sweep(tmp_path / "a", respond, concurrency=4)
    assert peak == 4
    sweep(tmp_path / "b", respond, concurrency=1)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_another_seed_is_another_sweep(tmp_path):
    sweep(tmp_path / "a")
    sweep(tmp_path / "b", seed=1)
    assert content(tmp_path / "a") != content(tmp_path / "b")


def test_a_finished_sweep_makes_no_call_and_grows_by_what_is_new(tmp_path):
    sweep(tmp_path)
    before = content(tmp_path)
    result, calls = sweep(tmp_path)
    assert calls == [] and result.is_complete and result.num_new == 0
    result, _ = sweep(tmp_path, num_seeds=4)
    assert result.num_new == 5 and result.num_finished == 20
    assert [t for t in content(tmp_path) if t.seed < 3] == before


def test_what_is_refused_is_listed_counted_and_not_tried_again(tmp_path):
    refused = [s for s in SCENARIOS if s.split == "train"][:2]

    async def respond(call):
        return fault(400, "too long") if belongs_to(call, *refused) else await negotiating(call)

    result, calls = sweep(tmp_path, respond)
    assert (result.num_finished, result.num_failed) == (9, 6)
    assert result.is_complete and "6 failed for good" in result.summary
    assert sum(belongs_to(call, *refused) for call in calls) == 6
    lines = failures(tmp_path)
    assert {line["trajectory_id"] for line in lines}.isdisjoint(ids(tmp_path))
    assert {line["kind"] for line in lines} == {"refused"}
    assert all("HTTP 400: too long" in line["reason"] for line in lines)
    assert sweep(tmp_path)[1] == []
    (tmp_path / "failures.jsonl").unlink()
    result, _ = sweep(tmp_path)
    assert (result.num_finished, result.num_failed, result.num_new) == (NUM_DIALOGUES, 0, 6)


def test_a_dialogue_without_words_has_failed(tmp_path):
    one = next(s for s in SCENARIOS if s.split == "train")

    async def respond(call):
        return ok("") if belongs_to(call, one) else await negotiating(call)

    result, _ = sweep(tmp_path, respond)
    assert (result.num_finished, result.num_failed) == (12, 3)
    assert {line["kind"] for line in failures(tmp_path)} == {"empty"}


def test_trouble_that_passes_leaves_no_failure(tmp_path):
    one = next(s for s in SCENARIOS if s.split == "train")

    async def respond(call):
        is_bad = belongs_to(call, one) and len(bad) < 2 * NUM_SEEDS
        if is_bad:
            bad.append(call)
        return fault(500) if is_bad else await negotiating(call)

    bad = []
    result, _ = sweep(tmp_path, respond)
    assert len(bad) == 6
    assert (result.num_finished, result.num_failed) == (NUM_DIALOGUES, 0)


def test_trouble_that_stays_has_failed_after_a_second_round(tmp_path):
    one = next(s for s in SCENARIOS if s.split == "train")

    async def respond(call):
        return fault(500) if belongs_to(call, one) else await negotiating(call)

    result, calls = sweep(tmp_path, respond)
    assert (result.num_finished, result.num_failed) == (12, 3)
    assert {line["kind"] for line in failures(tmp_path)} == {"exhausted"}
    assert sum(belongs_to(call, one) for call in calls) == 3 * 2 * 2


def test_an_outage_stops_the_sweep_and_marks_nothing_as_failed(tmp_path):
    async def respond(call):
        return await negotiating(call) if is_up else fault(503, "overloaded")

    is_up = False
    with pytest.raises(ApiError, match=r"20 calls in a row failed.*overloaded"):
        sweep(tmp_path, respond, num_seeds=8)
    assert failures(tmp_path) == []
    is_up = True
    assert sweep(tmp_path, respond, num_seeds=8)[0].num_finished == 40


def test_a_wrong_model_name_stops_at_once(tmp_path):
    async def respond(call):
        return fault(404, "no such model")

    with pytest.raises(ApiError, match="no such model"):
        sweep(tmp_path, respond, concurrency=2)
    assert failures(tmp_path) == [] and ids(tmp_path) == []


def test_a_ceiling_on_the_cost_stops_cleanly_and_later_goes_on(tmp_path):
    result, _ = sweep(tmp_path, price=1e3, max_cost_usd=0.3, concurrency=2)
    assert result.stopped == "cost" and "--max-cost-usd" in result.summary
    assert 0 < result.num_finished < NUM_DIALOGUES
    spent_usd = sum(t.cost_usd for t in read_trajectories(tmp_path / "trajectories.jsonl"))
    assert spent_usd <= result.cost_usd <= 0.3 + 2 * PRICE_OF_A_CALL
    again, calls = sweep(tmp_path, price=1e3, max_cost_usd=spent_usd)
    assert calls == [] and again.stopped == "cost"
    assert sweep(tmp_path, price=1e3)[0].num_finished == NUM_DIALOGUES


def test_a_ceiling_holds_before_any_dialogue_has_ended(tmp_path):
    """All begin at once, and nobody knows yet what one costs."""
    result, calls = sweep(tmp_path, price=1e3, max_cost_usd=0.1, concurrency=12)
    assert result.stopped == "cost" and result.num_finished < NUM_DIALOGUES
    assert 0.1 <= result.cost_usd <= 0.1 + 12 * PRICE_OF_A_CALL
    assert result.cost_usd == pytest.approx(len(calls) * PRICE_OF_A_CALL)
    whole, more = sweep(tmp_path, price=1e3, concurrency=12)
    assert whole.num_finished == NUM_DIALOGUES and whole.stopped is None
    num_calls = sum(t.usage.calls for t in read_trajectories(tmp_path / "trajectories.jsonl"))
    assert len(calls) + len(more) == num_calls, "nothing was paid twice"


def test_what_a_kill_has_kept_from_the_ledger_is_counted_from_the_dialogues(tmp_path):
    sweep(tmp_path, price=1e3, num_seeds=1)
    whole = read_usage(tmp_path / "trajectories.jsonl")
    (tmp_path / "trajectories.usage.json").write_text(
        json.dumps(whole._replace(num_calls=1, prompt_tokens=3, cost_usd=0.0)._asdict())
    )
    result, calls = sweep(tmp_path, price=1e3, num_seeds=1)
    assert calls == [] and result.cost_usd == pytest.approx(whole.cost_usd)
    assert read_usage(tmp_path / "trajectories.jsonl") == pytest.approx(whole)


def test_other_scenarios_in_the_same_place_are_refused(tmp_path):
    sweep(tmp_path)
    with pytest.raises(StaleInputError, match=r"scenarios\.jsonl holds other scenarios"):
        sweep(tmp_path, scenarios=SCENARIOS[:-1])


def test_a_second_sweep_into_the_same_place_is_refused(tmp_path):
    with (
        JsonlAppender(tmp_path / "trajectories.jsonl"),
        pytest.raises(InputError, match=f"process {os.getpid()}"),
    ):
        sweep(tmp_path)


def test_nothing_to_train_on_is_said(tmp_path):
    with pytest.raises(InputError, match="split='train'"):
        sweep(tmp_path, scenarios=[s for s in SCENARIOS if s.split == "test"])


# Killed and interrupted

JOB = """
import asyncio, pathlib, sys
from emodistill.configs import SweepConfig
from emodistill.domains import load_scenarios, split_scenarios
from emodistill.llm import ChatClient, Provider
from emodistill.negotiation.writers import ApiWriter
from emodistill.offline.sweep import run_sweep
from emodistill.prompts import load_pack

async def main():
    scenarios = split_scenarios(load_scenarios("crad")[:7], n_test=2).all()
    provider = Provider(name="test", base_url=sys.argv[1])
    config = SweepConfig(num_seeds=int(sys.argv[3]), concurrency=4)
    async with ChatClient(provider, ()) as client:
        return await run_sweep(
            config, scenarios, out_dir=pathlib.Path(sys.argv[2]), pack=load_pack(),
            focal=ApiWriter(client, "echo-focal"),
            counterparty=ApiWriter(client, "echo-counterparty"),
        )

print(asyncio.run(main()).summary)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The negotiating server in a process of its own, 10 ms a call."""
    port_file = tmp_path_factory.mktemp("server") / "url"
    process = subprocess.Popen([sys.executable, str(SERVER), str(port_file), "0.01"])
    try:
        for _ in range(1200):
            if port_file.exists():
                break
            assert process.poll() is None
            time.sleep(0.05)
        yield port_file.read_text()
    finally:
        process.kill()
        process.wait()


def start(server, out_dir, num_seeds=8):
    return subprocess.Popen(
        [sys.executable, "-c", JOB, server, str(out_dir), str(num_seeds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def num_calls_of(server):
    """How many calls the server process has got so far."""
    with urllib.request.urlopen(f"{server}/num_calls") as response:
        return int(response.read())


def wait_for_lines(out_dir, count, process):
    path = out_dir / "trajectories.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("num_kills", "num_seeds"), [(2, 8), pytest.param(20, 40, marks=pytest.mark.slow)]
)
def test_killed_at_any_moment_it_ends_with_exactly_the_planned_dialogues(
    server, tmp_path, num_kills, num_seeds
):
    moments, planned = random.Random(0), 5 * num_seeds
    before = num_calls_of(server)
    for kill in range(num_kills):
        process = start(server, tmp_path / "killed", num_seeds)
        goal = planned * (kill + moments.random()) / (num_kills + 1)
        wait_for_lines(tmp_path / "killed", goal, process)
        time.sleep(moments.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    with (tmp_path / "killed" / "trajectories.jsonl").open("ab") as file:
        file.write(b'{"schema": 1, "trajectory_id": "crad/debt_0')  # as a kill within write would
    out, err = start(server, tmp_path / "killed", num_seeds).communicate(timeout=120)
    assert f"{planned} of {planned} dialogues finished" in out, err
    sweep(tmp_path / "whole", num_seeds=num_seeds)
    found = ids(tmp_path / "killed")
    assert len(found) == len(set(found)) == planned
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    num_calls = sum(t.usage.calls for t in read_trajectories(tmp_path / "whole/trajectories.jsonl"))
    assert num_calls_of(server) - before <= num_calls + CONCURRENCY * num_kills


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_interrupted_it_stops_cleanly_and_says_so(server, tmp_path, number):
    process = start(server, tmp_path)
    wait_for_lines(tmp_path, 5, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    finished = len(ids(tmp_path))
    assert 5 <= finished < 40
    assert f"{finished} of 40 dialogues finished" in out and "start again to go on" in out
    assert "Traceback" not in err


def test_jobs_that_wait_for_nothing_are_stopped_too():
    """Simulated models in this process answer at once: nothing else would let a signal in."""
    done = []

    async def work(job):
        done.append(job)
        if job == 2:
            signal.raise_signal(signal.SIGINT)

    def refuse(job, error):
        raise AssertionError(error)

    jobs = workers.run_bounded(range(1_000), work, concurrency=2, on_failure=refuse)
    assert asyncio.run(jobs) is False and len(done) < 50


def test_progress_is_told_in_lines_where_there_is_no_terminal(server, tmp_path):
    sweep(tmp_path, num_seeds=8)
    lines = (tmp_path / "trajectories.jsonl").read_text().splitlines()
    (tmp_path / "trajectories.jsonl").write_text("\n".join(lines[:30]) + "\n")
    _, err = start(server, tmp_path).communicate(timeout=120)
    assert "sweep: 30 of 40 dialogues (75%) are there already" in err
    assert "sweep: 40 of 40 dialogues (100%)" in err and "accepted" in err
    assert json.loads(lines[0])["schema"] == 1


def test_what_failed_dialogues_cost_is_counted_over_restarts(tmp_path):
    async def refusing(call):
        messages = call.body["messages"]
        is_third = call.body["model"] == "echo-focal" and "Debtor: " in str(messages[1])
        if is_third and call.body["seed"] % 2:
            return fault(400, "too long")
        return await negotiating(call)

    made, calls = sweep(tmp_path, refusing, price=1e5)
    usage = read_usage(tmp_path / "trajectories.jsonl")
    finished = sum(t.cost_usd for t in read_trajectories(tmp_path / "trajectories.jsonl"))
    assert made.num_failed > 0
    assert usage.num_calls == len(calls) and usage.num_retries == 0
    assert usage.cost_usd == pytest.approx(made.cost_usd)
    assert usage.cost_usd > finished
    (tmp_path / "failures.jsonl").unlink()
    capped, calls = sweep(tmp_path, refusing, price=1e5, max_cost_usd=made.cost_usd)
    assert capped.stopped == "cost" and not calls


def test_while_nothing_finishes_it_says_what_is_going_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workers, "TICK_S", 0.02)
    monkeypatch.setattr(progress, "QUIET_LINE_EVERY_S", 0.1)

    async def slow(call):
        await asyncio.sleep(0.15)
        return await negotiating(call)

    sweep(tmp_path, slow, price=1e3, num_seeds=1, concurrency=5)
    lines = [line for line in capsys.readouterr().err.splitlines() if " 0 of 5 dialogues" in line]
    assert lines and "M tokens, $" in lines[-1]
