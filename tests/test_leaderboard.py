"""The leaderboard: its arms, a small one run for real, what it has cost, and its figure."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from tiny_run import SECTIONS, copy_of, run_stage

from emodistill.configs import (
    EvaluateConfig,
    IQLConfig,
    LeaderboardStudy,
    ReportConfig,
    SweepConfig,
)
from emodistill.errors import InputError, StoppedError
from emodistill.evaluation.arms import read_arms, write_arms
from emodistill.evaluation.methods import METHODS
from emodistill.llm.usage import Usage
from emodistill.offline.rewards import dialogue_utility
from emodistill.offline.store import read_trajectories
from emodistill.reports import report_study
from emodistill.runs import read_manifest
from emodistill.settings import Settings
from emodistill.stages import Output, training
from emodistill.studies import arm_runner as runner
from emodistill.studies import launchers
from emodistill.studies.arm_runner import run_study
from emodistill.studies.launchers import training_costs_usd
from emodistill.studies.planned_arms import plan_arms
from emodistill.train import selector_training

SETTINGS = Settings({name: value for name, value in SECTIONS.items() if name != "iql"})


def test_every_cell_is_another_one_and_steps_grow_with_the_data():
    study = LeaderboardStudy(targets=("crad",))
    plans = plan_arms(study)
    tasks = [(plan, runner._task(plan, study, SETTINGS)) for plan in plans if plan.budget]
    num_rows = len({plan.row for plan, _ in tasks})
    assert len(tasks) == len(study.targets) * len(study.budgets) * study.trainings * num_rows
    own = {}
    for _, task in tasks:
        for cell in task.trainings[0]:
            where = cell.config.domain, cell.config.stage, cell.name
            assert own.setdefault(where, cell.config) == cell.config
        (played,) = (n for s, n in task.match.config.cells.items())
        assert played in {cell.name for cell in task.trainings[0]}
    matches = [(p.domain, p.method, task.match.name) for p, task in tasks]
    assert len({*matches}) == len(matches)
    steps = {c.num_dialogues: c.num_steps for c in own.values() if isinstance(c, IQLConfig)}
    assert steps == {60: 1_000, 240: 1_500, 8_000: 50_000}
    changed = {plan.row for plan in plan_arms(LeaderboardStudy(ablations=True))}
    assert {"iql, own reward", "evoemo, own reward", "evoemo, saves_start"} <= changed
    learning = {name for name, one in METHODS.items() if one.stages == (one.selector_stage,)}
    assert {*study.methods} == learning


def test_what_can_t_stand_on_a_leaderboard_is_refused():
    for wrong in ("random", "iql+sft"):
        with pytest.raises(InputError, match=r"is no selector that learns .* use some of iql, "):
            plan_arms(LeaderboardStudy(methods=(wrong,)))
    for wrong in ("iql", "fixed", "evoemo"):
        with pytest.raises(
            InputError, match=rf"--references {wrong} is no method that learns noth"
        ):
            plan_arms(LeaderboardStudy(references=("random", wrong)))
    with pytest.raises(InputError, match=r"--budgets 0: a budget is at least 1"):
        LeaderboardStudy(budgets=(60, 0))
    with pytest.raises(InputError, match="references is empty"):
        LeaderboardStudy(references=())
    with pytest.raises(InputError, match="the oracle knows the simulator's hidden truth"):
        LeaderboardStudy(provider="openai", references=("random", "oracle"))
    real = plan_arms(LeaderboardStudy(provider="openai", targets=("crad",)))
    assert "oracle" not in {plan.method for plan in real}
    with pytest.raises(InputError, match=r"--conservatism 2 is .* add --learner cql"):
        IQLConfig(conservatism=2.0)
    with pytest.raises(InputError, match="--in-process plays simulated models"):
        EvaluateConfig(provider="openai", in_process=True)


def test_trainings_that_play_have_the_models_and_the_ceiling_of_the_study(tmp_path):
    study = LeaderboardStudy(
        run=tmp_path,
        targets=("crad",),
        budgets=(6,),
        trainings=1,
        methods=("iql", "evoemo"),
        base_url="http://127.0.0.1:1/v1",
        focal="one",
        counterparty="other",
        max_cost_usd=5.0,
    )
    tasks = {
        plan.method: runner._task(plan, study, SETTINGS) for plan in plan_arms(study) if plan.budget
    }
    ((of_sweep,),), ((playing,),) = (tasks[name].trainings for name in study.methods)
    config = playing.config
    assert (config.focal, config.counterparty, config.max_cost_usd) == ("one", "other", 5.0)
    assert config.yes and of_sweep.config.stage == "iql"
    # What the training has cost is no longer there for the held-out dialogues.
    spent = tmp_path / "crad/selector" / playing.name / "dialogues.usage.json"
    spent.parent.mkdir(parents=True)
    spent.write_text(json.dumps(Usage(cost_usd=4.0)._asdict()))
    assert training_costs_usd(tasks["evoemo"].trainings) == {spent.parent: 4.0}
    left = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            launchers, "run_stage", lambda cell: left.append(cell.config) or Output("", "")
        )
        tasks["evoemo"].play()
        spent.write_text(json.dumps(Usage(cost_usd=5.0)._asdict()))
        with pytest.raises(StoppedError, match="its training has spent what --max-cost-usd allows"):
            tasks["evoemo"].play()
    assert [one.max_cost_usd for one in left] == [1.0]


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """Two budgets of a learner with networks and one without, two trainings each, from nothing."""
    run = tmp_path_factory.mktemp("runs") / "board"
    study = LeaderboardStudy(
        run=run,
        targets=("crad",),
        budgets=(3, 6),
        trainings=2,
        methods=("cloning", "best-fixed"),
        references=("random", "oracle"),
        min_steps=20,
        steps_per_dialogue=1.0,
        num_scenarios=3,
        num_seeds=2,
    )
    calls = []
    original = selector_training.train_networks

    def counted(transitions, configs, **kwargs):
        calls.append([config.seed for config in configs])
        return original(transitions, configs, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selector_training, "train_networks", counted)
        (path,) = run_study(study, SETTINGS)
    return study, path, calls


def test_the_seeds_of_a_learner_are_one_program(board):
    assert board[2] == [[0, 1], [0, 1]]


def test_the_table_says_what_was_won_and_what_it_took(board):
    study, path, _ = board
    rows = list(csv.DictReader(path.with_suffix(".csv").open(newline="")))
    assert [(row["method"], row["budget"]) for row in rows] == [
        *(("random", "0"), ("oracle", "0")),
        *((method, budget) for budget in "36" for method in study.methods),
    ]
    swept = read_trajectories(study.run / "crad/sweep/trajectories.jsonl")
    num_calls = sum(t.usage.calls for t in swept)
    arms = [arm for arm in read_arms(study.run, "leaderboard") if arm.row == "best-fixed"]
    for row in (row for row in rows if row["method"] == "best-fixed"):
        own = [arm for arm in arms if str(arm.budget) == row["budget"]]
        played = [read_trajectories(study.run / arm.path) for arm in own]
        utility = [100 * dialogue_utility(t) for one in played for t in one]
        assert float(row["utility"]) == pytest.approx(np.mean(utility))
        assert int(row["num_dialogues"]) == len(utility) == 12
        cells = [next(iter(one)).focal.cells["iql"] for one in played]
        spent = [read_manifest(study.run / "crad/iql" / c).summary["spent"] for c in cells]
        assert [one["num_dialogues"] for one in spent] == [int(row["budget"])] * 2
        assert float(row["calls"]) == pytest.approx(np.mean([one["num_calls"] for one in spent]))
        assert (max(one["num_calls"] for one in spent) == num_calls) == (row["budget"] == "6")
    assert (path.parent / "leaderboard.png").is_file()


def test_without_its_first_method_nothing_is_compared(board, tmp_path):
    run = copy_of(board[0].run, tmp_path / "run")
    arms = read_arms(run, "leaderboard")
    lost = [
        dataclasses.replace(a, path=None, status="failed") if a.row == "random" else a for a in arms
    ]
    write_arms(run, "leaderboard", lost)
    report_study(SETTINGS.config(ReportConfig, run=run), "leaderboard")
    rows = list(csv.DictReader((run / "report/leaderboard.csv").open(newline="")))
    assert rows[0]["method"] == "oracle"
    assert not any(row["difference"] or row["p_holm"] for row in rows)


def test_called_again_it_trains_and_plays_nothing(board, monkeypatch, capsys):
    study, path, _ = board
    before = path.read_text()

    def refuse(*args, **kwargs):
        raise AssertionError("called")

    monkeypatch.setattr(selector_training, "train_selectors", refuse)
    monkeypatch.setattr("emodistill.evaluation.players.SimulatedWriter.reply", refuse)
    run_study(study, SETTINGS)
    assert path.read_text() == before
    assert "2 finished before" in capsys.readouterr().out


@pytest.mark.slow
def test_arms_side_by_side_on_ray_give_the_same_table(board, tmp_path):
    """Networks, a posterior and a system that plays; needs the extra `ray`."""
    ray = pytest.importorskip("ray")
    methods = ("cloning", "best-fixed", "evoemo")
    tables = []
    try:
        for launcher in ("local", "ray"):
            run = copy_of(board[0].run / "crad/sweep", tmp_path / launcher / "crad/sweep")
            study = dataclasses.replace(
                board[0], run=run.parents[1], methods=methods, launcher=launcher
            )
            (path,) = run_study(study, SETTINGS)
            tables.append(path.with_suffix(".csv").read_text())
    finally:
        ray.shutdown()
    assert tables[0] == tables[1] and "evoemo" in tables[0]


def test_dialogues_in_this_process_are_those_of_a_server(board, tmp_path):
    study, *_ = board
    run = copy_of(study.run / "crad/sweep", tmp_path / "crad/sweep").parents[1]
    run_stage(SETTINGS.config(EvaluateConfig, run=run, method="random", num_scenarios=2))
    played = "crad/eval/random@sim-counterparty/default.jsonl"
    here = {t.trajectory_id: t for t in read_trajectories(study.run / played)}
    served = list(read_trajectories(run / played))
    assert len(served) == 2
    for one in served:
        same = here[one.trajectory_id]
        assert [(t.text, t.emotion, t.offer, t.prompt_tokens) for t in one.turns] == [
            (t.text, t.emotion, t.offer, t.prompt_tokens) for t in same.turns
        ]
        assert one.outcome == same.outcome and one.usage == same.usage


def test_a_sweep_of_this_run_grows_to_the_largest_budget(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(runner, "prepare", lambda *args, **kwargs: None)
    home = EvaluateConfig(run=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", lambda cell: asked.append(cell.config))
        for sections, num_seeds in (
            ({}, 3),
            ({"num_validation": 10}, 4),  # taken out of the 80 training scenarios
            ({"num_scenarios": 6}, 40),
        ):
            settings = Settings({"sweep": sections})
            runner._make_sweep(runner.Cell(home, None, settings), 240)
            assert isinstance(asked[-1], SweepConfig) and asked[-1].num_seeds == num_seeds
        other = dataclasses.replace(home, data_from=tmp_path / "other")
        runner._make_sweep(runner.Cell(other, None, SETTINGS), 240)
        assert len(asked) == 3
    few = runner.Cell(home, None, Settings({"sweep": {"num_scenarios": 2, "max_turns": 4}}))
    for num_dialogues, num_played in ((2, 2), (3, 4), (1, 4)):
        runner._make_sweep(few, num_dialogues)
        assert len(read_trajectories(tmp_path / "crad" / "sweep/trajectories.jsonl")) == num_played


def test_the_command_after_a_training_plays_its_method():
    for name, method in METHODS.items():
        if method.writer == "llm" and method.selector == "iql":
            config = IQLConfig(**method.settings.get("iql", {}))
            assert training._selector_method(config) == name
    assert training._selector_method(IQLConfig(learner="cql", emotions="ekman")) == "cql"
