"""One run reads the sweep and the scores of another; finished work stays where settings change."""

import dataclasses
from pathlib import Path

import pytest
from builders import judgement, turns
from own_dialogues import ID, ONE, own

from emodistill.configs import (
    EvaluateConfig,
    IQLConfig,
    JPOConfig,
    JudgeConfig,
    ReportConfig,
    SFTConfig,
)
from emodistill.configs.studies import KappaStudy
from emodistill.errors import InputError, StaleInputError
from emodistill.evaluation.arms import Arm
from emodistill.offline.store import write_records
from emodistill.reports.run_data import read_run
from emodistill.runs import Job, Result, begin_stage, finish_stage
from emodistill.settings import Cell
from emodistill.stages import STAGES, prepare, required_cell
from emodistill.stages.stage import Requirement, next_command
from emodistill.studies.arm_runner import _ended


@pytest.fixture
def data(tmp_path):
    """A run of a dialogue and its score, which somebody has put in place."""
    home = tmp_path / "data/crad"
    emotions = turns(30.0, 90.0, None, emotions=("joy",))
    write_records(home / "sweep/trajectories.jsonl", [own(turns=emotions, final_value=90.0)])
    write_records(home / "sweep/scenarios.jsonl", [ONE])
    write_records(home / "judge/me.jsonl", [judgement(ID, 0, 5, judge="me")])
    return tmp_path / "data"


@pytest.mark.parametrize("kind", [IQLConfig, SFTConfig])
def test_training_reads_the_data_of_another_run_and_its_manifest_says_so(data, tmp_path, kind):
    new = tmp_path / "new"
    config = kind(run=new, data_from=data, signal="turn-judge")
    cell = Cell(config)
    prepare(cell)  # nothing is lacking
    job = STAGES[config.stage].job(cell)
    files = ("sweep/trajectories.jsonl", "sweep/scenarios.jsonl", "judge/me.jsonl (turn scores)")
    assert {f"{data.resolve()}/crad/{name}" for name in files} <= job.inputs.keys()
    assert job.directory == new / "crad" / config.stage / "default"
    assert config.identity() == dataclasses.replace(config, data_from=None).identity()
    assert f"--data-from {data}" in next_command("evaluate", EvaluateConfig, cell)
    assert "--data-from" not in next_command("judge", JudgeConfig, cell)


def test_another_spelling_of_the_same_run_changes_nothing(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole, short = (
        STAGES["iql"].job(Cell(IQLConfig(run=tmp_path / "new", data_from=path))).inputs
        for path in (data, data.relative_to(tmp_path))
    )
    assert whole == short


def test_what_another_run_lacks_is_never_made_there(tmp_path):
    cell = Cell(IQLConfig(run=tmp_path / "new", data_from=tmp_path / "old"))
    with pytest.raises(InputError, match=r"old/crad lacks sweep\. Run first:.*\n.*--run .*old"):
        prepare(cell)
    assert not list(tmp_path.iterdir())


def test_what_is_trained_first_reads_the_same_data(data, tmp_path):
    cell = Cell(JPOConfig(run=tmp_path / "new", data_from=data))
    sft = required_cell(cell, Requirement("sft")).config
    assert (sft.run, sft.data_from) == (tmp_path / "new", data)
    sweep = required_cell(cell, Requirement("sweep")).config
    assert sweep.run == data


def test_matches_and_the_report_read_the_same_data(data, tmp_path):
    config = EvaluateConfig(run=tmp_path / "new", data_from=data, method="random")
    inputs = STAGES["evaluate"].job(Cell(config)).inputs
    assert f"{data.resolve()}/crad/sweep/scenarios.jsonl" in inputs
    read = read_run(ReportConfig(run=tmp_path / "new", data_from=data))
    assert len(read.played_in("sweep")) == 1 and len(read.judgements["crad"]) == 1


def a_job(tmp_path, inputs, **settings):
    config = SFTConfig(run=tmp_path, **settings)
    output = tmp_path / "crad/sft/default/metrics.jsonl"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("{}\n")
    return Job(
        cell=Cell(config),
        name="sft",
        directory=output.parent,
        output=output,
        path=output,
        inputs=inputs,
        identity=config.identity(),
    )


def test_another_student_is_named_and_not_its_files(tmp_path):
    assert not begin_stage(a_job(tmp_path, {"other/config.json": "aa"}, model="other"))
    job = a_job(tmp_path, {"other/config.json": "aa"}, model="other")
    finish_stage(job, Result("done"))
    ours = a_job(tmp_path, {"embedded/config.json": "bb"})
    with pytest.raises(
        StaleInputError, match=r"made with model='other', now .*'embedded'; .*rate="
    ) as caught:
        begin_stage(ours)
    assert "has changed" not in str(caught.value) and "--data-from" in str(caught.value)
    for inputs, words in (
        ({}, r"made from other/config\.json, which is not read now"),
        ({"other/config.json": "aa", "x": "cc"}, "made without x"),
        ({"other/config.json": "dd"}, r"other/config\.json has changed since"),
    ):
        with pytest.raises(StaleInputError, match=words):
            begin_stage(a_job(tmp_path, inputs, model="other"))


def test_a_finished_arm_keeps_its_row_when_other_settings_fail(tmp_path, capsys):
    path = tmp_path / "crad/eval/x/k.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("")
    arm = Arm(block="b", label="κ = 1", domain="crad", method="iql", status="finished")
    there = dataclasses.replace(arm, path="crad/eval/x/k.jsonl")
    config, error = KappaStudy(run=tmp_path), StaleInputError("was made with\nanother setting.")
    kept = _ended(there, error, config)
    assert (kept.status, kept.path) == ("finished", there.path)
    assert (
        kept.reason == "was made with another setting."
        and "keeps its row" in capsys.readouterr().out
    )
    assert _ended(dataclasses.replace(arm, path="gone.jsonl"), error, config).status == "failed"
    assert _ended(dataclasses.replace(there, status="failed"), error, config).status == "failed"
    again = _ended(kept, Path(tmp_path / there.path), config)
    assert (again.status, again.reason) == ("finished", "")
