"""Students that a server plays: their adapter is looked for first, and the record says of whom."""

import asyncio
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from served import make_adapter, served
from tiny_run import SETTINGS, copy_of, run_stage

from emodistill import stages
from emodistill.configs import (
    EvaluateConfig,
    ExportAdapterConfig,
    ServeConfig,
    TournamentConfig,
)
from emodistill.configs.studies import KappaStudy
from emodistill.errors import EmodistillError, InputError
from emodistill.evaluation import canary_making
from emodistill.evaluation.arms import read_arms
from emodistill.evaluation.methods import TrainedAdapter
from emodistill.evaluation.served_student import ServedStudents
from emodistill.model import embedded_path
from emodistill.offline.store import read_trajectories
from emodistill.records import StudentServer
from emodistill.studies.arm_runner import run_study

FULL = "iql+sft+jpo"
NAMES = "{adapter}"


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """The tiny run with an adapter that changes much, exported, and nothing evaluated yet."""
    run = copy_of(tiny_run, tmp_path_factory.mktemp("served") / "run")
    shutil.rmtree(run / "crad/eval")
    make_adapter(embedded_path(), run / "crad/jpo/default/adapter", seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canary_making, "NUM_CANDIDATES", 3)
        stages.export_adapter(ExportAdapterConfig(run=run, num_canaries=2))
    return run


@pytest.fixture(scope="module")
def server(run):
    config = ServeConfig(port=0, run=run, num_slots=4, max_tokens=2048)
    with served(config) as running:
        yield running


def evaluation(run, server, **settings):
    settings = {"method": FULL, "student_model": NAMES, "student_url": server.url} | settings
    return SETTINGS.config(EvaluateConfig, run=run, **settings)


def played(config):
    """The dialogues of an evaluation, whichever ended first."""
    found = read_trajectories(run_stage(config).path)
    return sorted(found, key=lambda dialogue: dialogue.trajectory_id)


def test_a_served_student_plays_as_it_does_here(run, server, tmp_path, capsys):
    there = copy_of(run, tmp_path / "there")
    here = copy_of(run, tmp_path / "here")
    config = evaluation(there, server, focal_temperature=0.0)
    dialogues = played(config)
    assert "jpo at http" in capsys.readouterr().out
    local = dataclasses.replace(config, run=here, student_url=None, student_model=None)
    texts = [[turn.text for turn in dialogue.turns] for dialogue in dialogues]
    assert texts == [[turn.text for turn in dialogue.turns] for dialogue in played(local)]
    focal = dialogues[0].focal
    assert (focal.model, focal.method, focal.cells["jpo"]) == ("jpo", FULL, "default")
    assert focal.server == StudentServer(url=server.url, adapter="in use")
    assert dialogues[0].counterparty.server is None
    path = there / f"crad/eval/{FULL}@sim-counterparty/default.manifest.json"
    inputs = json.loads(path.read_text())["inputs"]
    assert any(name.endswith("canaries.json") for name in inputs)


def test_the_base_is_played_where_no_adapter_answers(run, server, tmp_path):
    dialogues = played(evaluation(copy_of(run, tmp_path / "run"), server, method="vanilla-slm"))
    assert dialogues[0].focal.model == "student"
    assert dialogues[0].focal.server == StudentServer(url=server.url, adapter="none")


def refused(run, server, match, **settings):
    with pytest.raises(InputError, match=match):
        played(evaluation(run, server, **settings))
    assert not list(run.glob(f"crad/eval/{FULL}*/*.jsonl"))


def test_another_model_under_the_name_plays_nothing(run, server, tmp_path):
    copy = copy_of(run, tmp_path / "run")
    refused(copy, server, "not in use.*Nothing was played", student_model="student")
    with pytest.raises(InputError, match=r"answers with the adapter in .*the base is to play"):
        played(evaluation(copy, server, method="vanilla-slm", student_model="jpo"))
    make_adapter(embedded_path(), copy / "crad/jpo/default/adapter", seed=2)
    refused(copy, server, "is not of the adapter in .*Delete it, export the adapter again")


@pytest.mark.slow
def test_what_the_canaries_can_t_tell_is_played_where_it_is_allowed(tiny_run, tmp_path):
    """After one step of training, an adapter changes less than formats of numbers do."""
    copy = copy_of(tiny_run, tmp_path / "run")
    shutil.rmtree(copy / "crad/eval")
    stages.export_adapter(ExportAdapterConfig(run=copy, num_canaries=2))
    with served(ServeConfig(port=0, run=copy, num_slots=4, max_tokens=2048)) as server:
        # The base under the adapter's name, which so small an adapter can't be told from.
        refused(copy, server, "is unknown.*--allow-unverified", student_model="sft")
        config = evaluation(copy, server, student_model="sft", allow_unverified=True)
        assert played(config)[0].focal.server.adapter == "unknown"


def test_an_adapter_has_to_be_exported_first(tiny_run, server, tmp_path):
    copy = copy_of(tiny_run, tmp_path / "run")
    refused_by = r"export_adapter\.py --run .*/run --domain crad --stage jpo --cell default"
    for folder in ("sft", "jpo"):  # nor is anything trained for it
        shutil.rmtree(copy / "crad" / folder)
        with pytest.raises(InputError, match=refused_by):
            played(evaluation(copy, server))
        assert not (copy / "crad" / folder).exists()


def test_its_key_is_its_own(run, server, monkeypatch):
    monkeypatch.setenv("EMODISTILL_API_KEY", "sk-of-another-server")
    assert ServedStudents(evaluation(run, server))._client.provider.read_keys() == ()
    monkeypatch.setenv("EMODISTILL_STUDENT_API_KEY", "sk-own")
    assert ServedStudents(evaluation(run, server))._client.provider.read_keys() == (("sk-own",),)


def test_two_adapters_need_two_names(run, server):
    async def main():
        config = evaluation(run, server, student_model="jpo")
        async with ServedStudents(config) as students:
            await students.writer(TrainedAdapter(run / "crad", "jpo", "default"), 0.7)
            await students.writer(None, 0.7)

    with pytest.raises(InputError, match=r"two adapters under one name; put \{adapter\}"):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"student_model": None}, "--student-url and --student-model go together"),
        ({"quantize": "int8"}, "--quantize int8: the server"),
        ({"record": Path("calls")}, "leave out --record and"),
        ({"student_url": "ftp://x"}, "--student-url: the base URL must look like"),
        ({"student_url": "http://127.0.0.1:9/v1"}, "127.0.0.1:9"),
    ],
)
def test_settings_that_don_t_fit_are_refused(run, server, settings, message):
    with pytest.raises(EmodistillError, match=message):
        played(evaluation(run, server, **settings))


@pytest.mark.slow
def test_a_tournament_of_served_students(run, server, tmp_path):
    copy = copy_of(run, tmp_path / "run")
    methods = (FULL, "vanilla-slm")
    config = SETTINGS.config(
        TournamentConfig,
        run=copy,
        methods=methods,
        student_url=server.url,
        student_model=NAMES,
        num_scenarios=1,
        max_turns=4,
    )
    stages.tournament(config)
    (dialogue,) = read_trajectories(copy / f"crad/tournament/{FULL}@vanilla-slm.jsonl")
    assert dialogue.focal.server.adapter == "in use"
    assert dialogue.counterparty.server.adapter == "none"
    assert (dialogue.focal.model, dialogue.counterparty.model) == ("jpo", "student")


@pytest.mark.slow
def test_a_study_plays_arms_once_they_are_served(run, server, tmp_path):
    """It trains what it lacks; the arm whose adapter nobody serves yet fails and says why."""
    copy = copy_of(run, tmp_path / "run")
    study = KappaStudy(run=copy, values=(0.5, 1.0), student_url=server.url, student_model=NAMES)
    run_study(study, SETTINGS)
    half, whole = read_arms(copy, "kappa")
    assert (half.status, whole.status) == ("failed", "finished")
    assert "export_adapter.py" in half.reason
    (dialogue, *_) = read_trajectories(copy / whole.path)
    assert dialogue.focal.server.adapter == "in use"
    (cell,) = (path.name for path in (copy / "crad/jpo").glob("kappa=0.5-*"))
    make_adapter(embedded_path(), copy / f"crad/jpo/{cell}/adapter", seed=3)
    stages.export_adapter(ExportAdapterConfig(run=copy, cell=cell, num_canaries=2))
    with served(ServeConfig(port=0, run=copy, num_slots=4, max_tokens=2048)) as again:
        run_study(dataclasses.replace(study, student_url=again.url), SETTINGS)
    assert [arm.status for arm in read_arms(copy, "kappa")] == ["finished", "finished"]
