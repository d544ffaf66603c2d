"""A forecast against what then happens, and against the limits of keys."""

import dataclasses
import json

import msgspec
import pytest
from builders import JUDGEMENT, TRAJECTORY
from tiny_run import run_stage

from emodistill import stages
from emodistill.configs import JudgeConfig, PlanConfig, SweepConfig
from emodistill.errors import InputError
from emodistill.llm.keys import Limits
from emodistill.offline.budget import read_usage
from emodistill.offline.forecast import Allowed, Forecast, Need, forecast
from emodistill.offline.store import read_judgements
from emodistill.runs import read_manifest
from emodistill.settings import Cell, Settings
from emodistill.stages.sweep_pilot import other_ways

PRICES = '[simulator]\nprofiles."*" = { price = { input = 1.0, output = 2.0 } }\n'


def test_calls_tokens_and_money_are_within_15_percent_of_what_happens(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "providers.toml").write_text(PRICES)
    monkeypatch.setenv("EMODISTILL_PROVIDERS", str(tmp_path / "providers.toml"))
    shared = {"run": tmp_path / "run", "domain": "hospital", "num_seeds": 2, "concurrency": 16}
    shared["num_scenarios"] = 40
    out = stages.plan(Cell(PlanConfig(**shared, pilot=40)))
    assert "for 80 dialogues, from a pilot of 40" in capsys.readouterr().out
    assert read_manifest(out.parent).status == "running"
    pilot = (out.parent / "trajectories.jsonl").read_bytes()
    found = json.loads(out.read_text())

    sweep = run_stage(SweepConfig(**shared)).path
    assert sweep.read_bytes().startswith(pilot), "the sweep goes on from the pilot"
    del shared["num_seeds"], shared["num_scenarios"]
    scores = run_stage(JudgeConfig(**shared)).path
    for stage, path in (("sweep", sweep), ("judge", scores)):
        used = read_usage(path)
        for name in ("num_calls", "prompt_tokens", "completion_tokens", "cost_usd"):
            assert found[stage][name] == pytest.approx(getattr(used, name), rel=0.15), (stage, name)


def pilot_of(size):
    return [msgspec.structs.replace(TRAJECTORY, trajectory_id=str(i)) for i in range(size)]


def test_hours_are_what_the_slowest_bound_allows():
    pilot = pilot_of(4)
    judged = [msgspec.structs.replace(JUDGEMENT, trajectory_id="0", turn_index=0, repeat=0)] * 6
    busy_s = sum(turn.latency_s for t in pilot for turn in t.turns)
    calls = sum(t.usage.calls for t in pilot)
    size = {"num_dialogues": 400, "concurrency": 2}
    free = forecast(pilot, judged, **size)
    assert free.sweep.num_calls == 100 * calls and free.judge.num_calls == 600
    assert free.sweep.hours == pytest.approx(100 * busy_s / 2 / 3600)
    limits = Limits(requests_per_minute=0.5)
    slow = forecast(pilot, judged, **size, allowed=[Allowed("sweep", 1.0, limits, 3)])
    assert slow.sweep.hours == pytest.approx(100 * calls / 1.5 / 60)
    assert slow.judge == free.judge
    halves = [Allowed("sweep", 0.5, limits, 3), Allowed("sweep", 0.5, limits, 1)]
    half = forecast(pilot, judged, **size, allowed=halves)
    assert half.sweep.hours == pytest.approx(100 * calls / 2 / 0.5 / 60), "the slower one's half"
    assert free.error == 0


def test_only_the_pilots_own_first_scores_of_turns_count():
    pilot = pilot_of(2)
    own = msgspec.structs.replace(JUDGEMENT, trajectory_id="1", turn_index=0, repeat=0)
    others = [
        msgspec.structs.replace(own, trajectory_id="elsewhere"),
        msgspec.structs.replace(own, turn_index=None),
        msgspec.structs.replace(own, repeat=1),
    ]
    found = forecast(pilot, [own, *others], num_dialogues=20, concurrency=1)
    assert found.judge.num_calls == 10


def test_a_pilot_of_a_sweep_that_is_there_judges_itself_alone(tmp_path, capsys):
    shared = {"run": tmp_path, "num_seeds": 1, "num_scenarios": 6, "offer_reader": "llm"}
    run_stage(SweepConfig(**shared))
    out = stages.plan(Cell(PlanConfig(**shared, pilot=3)))
    judged = list(read_judgements(tmp_path / "crad/judge/sim-judge.jsonl"))
    assert len({j.trajectory_id for j in judged}) == 3
    found = json.loads(out.read_text())
    used = read_usage(tmp_path / "crad/sweep/trajectories.jsonl")
    assert found["sweep"]["num_calls"] == pytest.approx(used.num_calls, rel=0.5)
    settings = tmp_path / "crad/sweep/config.yaml"
    assert f"go on with python scripts/sweep.py --config {settings}" in capsys.readouterr().out


def test_the_judging_by_batch_stands_beside_it_where_there_is_one():
    lines = [msgspec.structs.replace(JUDGEMENT, trajectory_id="1", turn_index=0, cost_usd=0.02)]
    shared = {"num_dialogues": 20, "concurrency": 1}
    found = forecast(pilot_of(2), lines, batch_share=0.5, **shared)
    assert found.batch_usd == pytest.approx(found.judge.cost_usd / 2) and found.batch_usd > 0
    assert "judge.py --batch would cost 0.10 instead of 0.20" in found.text
    assert "--batch" not in forecast(pilot_of(2), lines, **shared).text


def test_one_dialogue_is_no_pilot():
    with pytest.raises(InputError, match="pilot of 1 dialogues says nothing"):
        forecast(pilot_of(1), [], num_dialogues=9, concurrency=1)
    with pytest.raises(InputError, match="pilot=1 must be at least 2"):
        PlanConfig(pilot=1)


def test_what_else_the_provider_sells_is_priced(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    need = Need("sweep", 1000, 2e6, 1e6, 0.70, 1.0)
    expected = Forecast(100, 10, need, need._replace(stage="judge"), 0.1)
    openai, judge = PlanConfig(provider="openai"), JudgeConfig(provider="openai")
    ways = other_ways(openai, judge, expected)
    # gpt-6-luna by Flex: two million tokens at $0.05, one at $0.25.
    assert ways == [
        f"{stage} with --provider openai-flex would cost 0.35; an answer may take 15 minutes."
        for stage in ("sweep", "judge")
    ]
    mixed = PlanConfig(provider="openai", counterparty="openai:gpt-4o-mini")
    assert other_ways(mixed, judge, expected) == ways[1:]
    read = dataclasses.replace(openai, offer_reader="llm", reader="openai:gpt-4o-mini")
    assert other_ways(read, judge, expected) == ways[1:], "the reader is a model of the sweep"
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-test")
    dashscope = {"provider": "dashscope"}
    found = other_ways(PlanConfig(**dashscope), JudgeConfig(**dashscope), expected)
    assert "with --provider dashscope-batch would cost 0.45; an answer may take 60" in found[1]
    assert found[1].endswith("its keys are those in DASHSCOPE_BEIJING_API_KEY.")
    assert other_ways(PlanConfig(), JudgeConfig(), expected) == []


LIMITED = """
[simulator.profiles."sim-judge"]
price = { input = 1000, output = 1000, batch = 0.25 }
[simulator.profiles."sim-judge-0"]
price = { input = 1000, output = 1000, batch = 0.5 }
[simulator.profiles."sim-reader"]
limits = { requests_per_minute = 600 }
[simulator-slow]
base_url = "http://127.0.0.1:1/v1"
profiles."*" = { price = { input = 500, output = 500 } }
"""


def test_the_judge_of_the_file_and_the_reader_are_in_the_forecast(tmp_path, monkeypatch, capsys):
    path = tmp_path / "providers.toml"
    path.write_text(LIMITED)
    monkeypatch.setenv("EMODISTILL_PROVIDERS", str(path))
    settings = Settings({"judge": {"judge": "sim-judge-0"}})
    small = {"run": tmp_path / "run", "num_seeds": 1, "num_scenarios": 4, "max_turns": 2}
    config = PlanConfig(**small, pilot=2, offer_reader="llm", concurrency=4)
    found = json.loads(stages.plan(Cell(config, settings=settings)).read_text())
    judging, sweep = found["judge"], found["sweep"]
    assert found["batch_usd"] == pytest.approx(0.5 * judging["cost_usd"])
    assert sweep["hours"] == pytest.approx(sweep["num_calls"] / 2 / 600 / 60), "half are readings"
    said = capsys.readouterr().out
    assert f"judge with --provider simulator-slow would cost {judging['cost_usd'] / 2:,.2f}" in said
    assert "sweep with --provider" not in said
