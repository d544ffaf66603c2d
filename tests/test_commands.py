"""Every printed command works when it is pasted: it is read by its script, and finds what it
needs."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from tiny_run import ADAPTER, SECTIONS, copy_of

from emodistill import cli, stages
from emodistill.configs import (
    ALoLConfig,
    DPOConfig,
    EvaluateConfig,
    IQLConfig,
    JPOConfig,
    JudgeConfig,
    PlanConfig,
    ReportConfig,
    SFTConfig,
    SweepConfig,
    TournamentConfig,
)
from emodistill.errors import InputError
from emodistill.llm.usage import Usage
from emodistill.offline.workers import JobsResult
from emodistill.settings import Cell, Settings, write_settings
from emodistill.stages import round_robin
from emodistill.stages.runner import finished_cells, prepare
from emodistill.stages.stage import command

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def paste(monkeypatch):
    """`paste(line)`: the cells that the commands of a line ask for, by their scripts' parsers."""

    def read(line):
        cells = []
        for one in line.split("; "):
            python, script, *words = shlex.split(one)
            assert python == "python"
            seen = []

            def main(classes, description, action=None, *, args=words, preset=None, seen=seen):
                seen.append(cli.parse(classes, description, args, preset=preset))

            with monkeypatch.context() as patch:
                patch.setattr(cli, "main", main)
                patch.setattr(sys, "argv", [script, *words])
                runpy.run_path(str(ROOT / script), run_name="__main__")
            cells += seen
        return cells

    return read


ODD = {"domain": "hospital", "seed": 3, "provider": "openai"}
JUDGED = ODD | {"judge": "some/judge"}
PACK = Path("own packs/a b")


@pytest.mark.parametrize(
    "config",
    [
        SweepConfig(**ODD, prompt_pack=PACK),
        JudgeConfig(**JUDGED, prompt_pack=PACK),
        JudgeConfig(**JUDGED, level="dialogue"),
        IQLConfig(**ODD, expectile=0.8),
        SFTConfig(**JUDGED, prompt_pack=PACK, model="my students/qwen", quantize="int8"),
        JPOConfig(**JUDGED, model="my students/qwen", kappa=0.5, sft_cell="judge=x-1234"),
        JPOConfig(**ODD, reference="base"),
        ALoLConfig(**ODD, emotion_free=True),
        DPOConfig(**ODD, beta=0.2),
        EvaluateConfig(**ODD, student="my students/qwen", counterparty="some/model"),
    ],
    ids=lambda config: config.stage,
)
def test_what_comes_next_keeps_every_setting_of_the_command_line(config, paste, tmp_path):
    config = dataclasses.replace(config, run=tmp_path / "it's a run")
    cell = Cell(config, type(config)(**student_of(config)))
    for next_cell in paste(stages.STAGES[config.stage].followed_by(cell)):
        ahead = next_cell.config
        for name in ("run", "domain", "seed", "provider", "prompt_pack", "quantize"):
            if hasattr(ahead, name) and hasattr(config, name):
                assert getattr(ahead, name) == getattr(config, name), name
        if hasattr(ahead, "judge") and hasattr(config, "judge") and ahead.stage != "iql":
            assert ahead.judge == config.judge
        if ahead.student_field and config.student_field:
            student = getattr(ahead, ahead.student_field)
            assert student == getattr(config, config.student_field)
        if isinstance(ahead, EvaluateConfig):
            assert ahead.cells[config.stage] == cell.name != "default"
        if isinstance(ahead, ReportConfig):
            assert ahead.counterparty == "some-model"  # as the folder has it
        if isinstance(config, JudgeConfig) and config.level == "dialogue":
            assert ahead.signal == "episode-judge"


def student_of(config):
    field = config.student_field
    return {} if field is None else {field: getattr(config, field)}


def test_a_flag_over_a_file_is_said_even_where_it_is_the_default(paste, tmp_path):
    file = tmp_path / "own file.yaml"
    file.write_text("domain: hospital\nseed: 7\njudge: {judge: sim-judge-0}", encoding="utf-8")
    args = ["--config", str(file), "--domain", "crad", "--seed", "0"]
    cell = cli.parse(SweepConfig, "", args)
    (ahead,) = paste(stages.STAGES["sweep"].followed_by(cell))
    assert (ahead.config.domain, ahead.config.seed) == ("crad", 0)
    assert ahead.config.judge == "sim-judge-0"  # the file's own word for that stage
    cell = cli.parse(SweepConfig, "", ["--config", str(file)])
    assert stages.STAGES["sweep"].followed_by(cell) == (
        f"python scripts/judge.py --config '{file}'"
    )


def test_a_server_without_default_models_gets_them_named(paste, tmp_path):
    url = "http://127.0.0.1:9/v1"
    sweep = SweepConfig(run=tmp_path, base_url=url, focal="m", counterparty="c")
    (judge,) = paste(stages.STAGES["sweep"].followed_by(Cell(sweep)))
    assert (judge.config.judge, judge.config.base_url) == ("m", url)
    home = tmp_path / "crad/sweep"
    home.mkdir(parents=True)
    played = {"focal": "m", "counterparty": "c", "num_seeds": 1, "num_scenarios": 1}
    manifest = {"stage": "sweep", "status": "finished", "config_sha256": "", "code_version": ""}
    manifest |= {"seed": 0, "inputs": {}, "config": played}
    home.joinpath("manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    trained = Cell(IQLConfig(run=tmp_path, base_url=url))
    (ahead,) = paste(stages.STAGES["iql"].followed_by(trained))
    assert (ahead.config.focal, ahead.config.counterparty) == ("m", "c")


def test_the_forecast_goes_on_from_a_folder_with_spaces(paste, tmp_path, monkeypatch, capsys):
    run = tmp_path / "it's a run"
    config = PlanConfig(run=run, pilot=2, num_scenarios=2, num_seeds=1, max_turns=4)
    stages.plan(Cell(config))
    (line,) = re.findall(r"go on with (.*)", capsys.readouterr().out)
    (ahead,) = paste(line)
    assert ahead.config.run == run and ahead.config.num_scenarios == 2


def test_a_tournament_is_followed_by_its_report(tiny_run, paste, tmp_path, monkeypatch, capsys):
    played = tiny_run / "crad/eval/random@sim-counterparty/default.jsonl"
    monkeypatch.setattr(round_robin, "prepare", lambda cell: None)
    monkeypatch.setattr(round_robin, "run", lambda cell, work: stages.Output(played, ""))
    config = TournamentConfig(run=tmp_path / "it's a run", methods=("random",), seed=2)
    (report,) = paste(stages.tournament(config).next_command)
    assert (report.config.run, report.config.seed) == (config.run, 2)
    pair = Cell(config.pair("random", "random"))
    (report,) = paste(stages.STAGES["tournament"].followed_by(pair))
    assert report.config.run == config.run


# Commands that make what is lacking


def refusal(cell):
    with pytest.raises(InputError) as refused:
        prepare(cell)
    first, *lines = str(refused.value).splitlines()
    then = [line for line in lines if line.startswith("Then ")]
    return first, "; ".join(line.strip() for line in lines if line not in then), then


@pytest.mark.parametrize(
    ("config", "made"),
    [
        (JPOConfig(**JUDGED, lora_rank=8), ["sweep", "judge", "sft"]),
        (IQLConfig(**ODD, signal="episode-judge"), ["sweep", "judge"]),
        (EvaluateConfig(**ODD), ["sweep", "iql", "judge", "sft", "jpo"]),
        (EvaluateConfig(**ODD, method="iql+jpo"), ["sweep", "iql", "judge", "jpo"]),
        (EvaluateConfig(**ODD, method="free-sft+jpo"), ["sweep", "judge", "sft", "jpo"]),
        (
            EvaluateConfig(**ODD, trained_on="crad"),
            ["sweep", "sweep", "iql", "judge", "sft", "jpo"],
        ),
    ],
    ids=lambda value: getattr(value, "stage", ""),
)
def test_what_is_to_be_run_first_can_be_pasted(config, made, paste, tmp_path, monkeypatch):
    """And makes just what is then found: the cells have the names that the last line says."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    config = dataclasses.replace(config, run=tmp_path / "it's a run")
    cell = Cell(config)
    _, commands, then = refusal(cell)
    cells = paste(commands)
    assert [one.config.stage for one in cells] == made
    for one in cells:
        assert (one.config.run, one.config.seed, one.config.provider) == (config.run, 3, "openai")
    named = dict(
        re.findall(r"(iql|sft|jpo) (\S+=\S+)", " ".join(then).replace("--sft-cell", "sft"))
    )
    for one in cells:
        if one.config.stage in ("iql", "sft", "jpo"):
            assert named.get(one.config.stage, "default") == one.name
        if getattr(one.config, "sft_cell", "default") != "default":
            assert one.config.sft_cell == named["sft"]


def test_models_that_a_server_of_ones_own_does_not_name_have_a_place_to_be_named(paste, tmp_path):
    config = SFTConfig(run=tmp_path / "r", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(InputError, match="in place of MODEL") as caught:
        prepare(Cell(config))
    lines = [line.strip() for line in str(caught.value).splitlines() if "scripts/" in line]
    sweep, judge = (cell.config for cell in paste("; ".join(lines)))
    assert (sweep.focal, sweep.counterparty, judge.judge) == ("MODEL",) * 3


def test_real_dialogues_are_judged_by_who_has_played_them(tiny_run, paste, tmp_path):
    home = tmp_path / "real/crad/sweep"
    home.mkdir(parents=True)
    for name in ("trajectories.jsonl", "scenarios.jsonl"):
        shutil.copy(tiny_run / "crad/sweep" / name, home)
    sweep = SweepConfig(run=tmp_path / "real", provider="deepseek")
    write_settings(home / "config.yaml", Cell(sweep))
    _, commands, _ = refusal(Cell(SFTConfig(run=tmp_path / "real")))
    (judge,) = paste(commands)
    assert judge.config.provider == "deepseek"


@pytest.fixture
def run(tiny_run, tmp_path):
    return copy_of(tiny_run, tmp_path / "it's a run")


def test_cells_that_are_there_under_another_name_are_found(run, paste, capsys):
    """A selector and an adapter of another seed, each from its command line, then what follows."""
    for name in ("iql", "sft", "jpo"):
        shutil.rmtree(run / "crad" / name)
    selector = IQLConfig(run=run, seed=1, num_steps=20)
    stages.run(Cell(selector, IQLConfig(run=run, num_steps=20)))
    settings = Settings(SECTIONS)
    base = settings.config(SFTConfig, run=run)
    trained = stages.run(Cell(dataclasses.replace(base, seed=1), base))
    assert finished_cells(run / "crad/sft") == [trained.path.parent.name]
    (played,) = paste(trained.next_command)
    assert played.config.cells["sft"] == trained.path.parent.name
    assert [played.config.cells["iql"]] == finished_cells(run / "crad/iql")
    assert played.config.seed == 1
    with pytest.raises(InputError, match=r"finished in other cells .* --sft-cell seed=1-") as told:
        file = run.parent / "own.yaml"
        file.write_text(yaml.dump({"sft": {**ADAPTER}, "jpo": {**ADAPTER}}), encoding="utf-8")
        prepare(cli.parse(JPOConfig, "", ["--config", str(file), "--run", str(run), "--seed", "1"]))
    (cell,) = re.findall(r"--sft-cell (\S+)\.$", str(told.value))
    assert shlex.split(cell) == [trained.path.parent.name]


def test_the_next_commands_of_a_run_really_run(run, paste, capsys):
    """From the sweep to the report, each as its predecessor has printed it."""
    file = run.parent / "own file.yaml"
    file.write_text(yaml.dump(json.loads(json.dumps(SECTIONS))), encoding="utf-8")
    cell = cli.parse(SweepConfig, "", ["--config", str(file), "--run", str(run)])
    done = []
    while True:
        output = stages.run(cell)
        done.append(cell.config.stage)
        cell = paste(output.next_command)[-1]
        if isinstance(cell.config, ReportConfig):
            break
        if isinstance(cell.config, EvaluateConfig):
            cell = cell._replace(config=dataclasses.replace(cell.config, method="random"))
    assert done == ["sweep", "judge", "sft", "evaluate"]
    assert cell.config.run == run and cell.config.num_resamples == 50


def test_a_snapshot_that_is_missing_is_named_with_those_that_are_there(run):
    with pytest.raises(InputError, match="name another with --sft-cell: default"):
        stages.run(Cell(JPOConfig(run=run, sft_cell="no", **ADAPTER)))


# Where everything has failed


@pytest.mark.parametrize(
    ("script", "where", "flags"),
    [
        ("sweep", "emodistill.stages.sweep.run_sweep", ["--num-seeds", "4"]),
        ("judge", "emodistill.stages.judge.run_judging", ["--retry-unanswered"]),
        (
            "evaluate",
            "emodistill.evaluation.players.play_all",
            ["--method", "random", "--num-seeds", "3", "--max-turns", "4"],
        ),
    ],
)
def test_where_everything_has_failed_nothing_comes_next(
    script, where, flags, run, monkeypatch, capsys
):
    async def fail(*args, path=None, out_dir=None, **options):
        return JobsResult(
            num_planned=8,
            num_finished=0,
            num_failed=8,
            num_new=0,
            cost_usd=0.0,
            stopped=None,
            path=path or out_dir,
            finished="done",
            failed="failed for good",
            on_interrupt="",
            usage=Usage(),
        )

    monkeypatch.setattr(where, fail)
    file = run.parent / "own.yaml"
    file.write_text(yaml.dump(json.loads(json.dumps(SECTIONS))), encoding="utf-8")
    config = cli.parse(stages.STAGES[script].config, "", ["--config", str(file)]).config
    kind, args = type(config), ["--config", str(file), "--run", str(run), *flags]
    with pytest.raises(SystemExit) as ended:
        cli.main(kind, "", args=args)
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert "0 of 8 done, 8 failed for good" in shown.err and "next:" not in shown.out


def test_a_command_turns_settings_off_as_well(paste):
    settings = Settings({"sft": {"emotion_free": True, "max_samples": 3}}, "x", None)
    line = command("train_sft", SFTConfig(max_samples=None), settings)
    assert line == "python scripts/train_sft.py --no-emotion-free --max-samples None"
    (cell,) = paste(line)
    assert cell.config.max_samples is None and cell.config.emotion_free is False
