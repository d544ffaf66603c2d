"""The whole pipeline, small: stages find their inputs, resume, and refuse what has changed."""

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from tiny_run import ADAPTER, SECTIONS, SETTINGS, copy_of, run_stage

from emodistill import stages
from emodistill.configs import (
    ALoLConfig,
    EvaluateConfig,
    IQLConfig,
    JPOConfig,
    JudgeConfig,
    ReplayConfig,
    ReportConfig,
    SFTConfig,
    SweepConfig,
)
from emodistill.errors import InputError, StaleInputError
from emodistill.evaluation.players import writing_temperature
from emodistill.model import embedded_path
from emodistill.offline.run_files import SCENARIOS, TRAJECTORIES, data_run, read_sweep
from emodistill.offline.store import (
    read_judgements,
    read_scenarios,
    read_trajectories,
    write_records,
)
from emodistill.prompts import load_pack
from emodistill.reports import report
from emodistill.runs import read_manifest
from emodistill.settings import Cell, Settings
from emodistill.stages import Requirement
from emodistill.stages.inputs import model_hashes
from emodistill.stages.judge import JUDGE
from emodistill.stages.stage import command, next_command

SWEEP = SECTIONS["sweep"]


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A finished small run of one domain, which grows from test to test."""
    return copy_of(tiny_run, tmp_path_factory.mktemp("runs") / "small")


def test_stages_leave_what_the_next_ones_read(tiny_run):
    trajectories = read_trajectories(tiny_run / "crad/sweep/trajectories.jsonl")
    assert len(trajectories) == 12
    judgements = read_judgements(tiny_run / "crad/judge/sim-judge.jsonl")
    scored = {(j.trajectory_id, j.turn_index) for j in judgements if j.status == "scored"}
    assert len(scored) >= 0.9 * sum(len(t.focal_turns) for t in trajectories)
    assert (tiny_run / "crad/iql/default/selector.safetensors").is_file()
    for stage in ("sft", "jpo"):
        assert (tiny_run / f"crad/{stage}/default/adapter/adapter_model.safetensors").is_file()
    played = read_trajectories(tiny_run / "crad/eval/iql+sft+jpo@sim-counterparty/default.jsonl")
    assert len(played) == 2
    assert dict(played[0].focal.cells) == {"iql": "default", "jpo": "default"}
    assert {t.split for t in played} == {"test"}
    assert not {t.scenario_id for t in played} & {t.scenario_id for t in trajectories}
    manifests = [read_manifest(tiny_run / f"crad/{stage}/default") for stage in ("sft", "jpo")]
    folder = tiny_run / "crad/eval/iql+sft+jpo@sim-counterparty"
    manifests.append(read_manifest(folder, "default.manifest.json"))
    assert len({one.inputs["chat template"] for one in manifests}) == 1


@pytest.mark.parametrize("stage", [pytest.param("alol", marks=pytest.mark.slow), "dpo"])
def test_evaluation_trains_the_refinement_that_its_method_lacks(stage, run):
    method = f"iql+sft+{stage}"
    config = EvaluateConfig(run=run, method=method, num_scenarios=1, max_turns=2)
    run_stage(config, settings=Settings({stage: ADAPTER}))
    trained = read_manifest(run / "crad" / stage / "default")
    assert trained.status == "finished"
    assert trained.config["max_samples"] == 2
    (played,) = read_trajectories(run / f"crad/eval/{method}@sim-counterparty/default.jsonl")
    assert dict(played.focal.cells) == {"iql": "default", stage: "default"}
    assert (run / "crad" / stage / "reference").exists() == (stage == "dpo")


def test_methods_meet_the_same_counterparties(tiny_run):
    methods = ("vanilla-slm", "random", "iql+sft+jpo")
    folders = [tiny_run / f"crad/eval/{name}@sim-counterparty/default.jsonl" for name in methods]
    ids = [{t.trajectory_id for t in read_trajectories(path)} for path in folders]
    assert ids[0] == ids[1] == ids[2]


def test_the_report_holds_the_table_and_the_page(run, capsys):
    page = report(ReportConfig(run=run, num_resamples=200))
    assert page == run / "report" / "index.html"
    html = page.read_text()
    assert "iql+sft+jpo" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    table = (run / "report" / "table-1.csv").read_text()
    assert "vanilla-slm" in table


def test_a_run_has_measured_what_on_policy_steps_would_take(run):
    path = report(ReportConfig(run=run, only="policy-cost", num_resamples=200))

    def lines(name):
        return [json.loads(line) for line in (run / "crad" / name).read_text().splitlines()]

    talks = [t["turns"] for t in lines("sweep/trajectories.jsonl")]
    usage = json.loads((run / "crad/judge/sim-judge.usage.json").read_text())
    num_answers = len(lines("judge/sim-judge.jsonl"))
    sample_s = sum(turn["latency_s"] for turns in talks for turn in turns) / len(talks)
    num_focal = sum(turn["speaker"] == "focal" for turns in talks for turn in turns)
    sample_s += num_focal / len(talks) * usage["latency_s"] / num_answers
    batch_size = read_manifest(run / "crad/jpo/default").config["batch_size"]
    (step_s,) = [line["time/step_s"] for line in lines("jpo/default/metrics.jsonl")]
    (row,) = csv.DictReader(path.with_suffix(".csv").open(newline=""))
    assert float(row["offline_step_s"]) == step_s
    assert int(row["concurrency"]) == SWEEP["concurrency"]
    assert float(row["on_policy_step_s"]) == pytest.approx(batch_size * sample_s / 8)
    assert float(row["ratio"]) == pytest.approx(batch_size * sample_s / 8 / step_s)


def test_a_finished_stage_is_recognised(run, capsys):
    before = (run / "crad/sweep/trajectories.jsonl").stat().st_mtime_ns
    run_stage(SweepConfig(run=run, **SWEEP))
    run_stage(SweepConfig(run=run, **(SWEEP | {"num_seeds": 1})))
    run_stage(SFTConfig(run=run, **ADAPTER))
    out = capsys.readouterr().out
    assert out.count("sweep: finished before") == 2
    assert "sft: finished before" in out
    assert (run / "crad/sweep/trajectories.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize("named", ["sim-judge", "simulator:sim-judge"])
def test_a_judge_that_is_named_is_the_one_that_was_there_alone(run, capsys, named):
    run_stage(SFTConfig(run=run, judge=named, **ADAPTER))
    run_stage(SETTINGS.config(IQLConfig, run=run, judge=named))  # learns without scores
    said = capsys.readouterr().out
    assert "sft: finished before" in said and "iql: finished before" in said


def test_what_the_flags_change_is_a_cell_of_its_own(run):
    base = JPOConfig(run=run, **ADAPTER)
    made = run_stage(dataclasses.replace(base, kappa=0.5), base)
    assert made.path.parent.name.startswith("kappa=0.5-")
    assert f"--cells jpo {made.path.parent.name}" in made.next_command
    found = read_manifest(made.path.parent)
    assert found.config["kappa"] == 0.5
    assert found.inputs.keys() >= {
        "crad/sweep/trajectories.jsonl",
        "crad/judge/sim-judge.jsonl (turn scores)",
    }
    assert len(list((run / "crad/jpo/reference").glob("*.safetensors"))) == 1


def test_config_yaml_makes_the_same_configuration_again(tiny_run):
    settings = Settings.read(tiny_run / "crad/sft/default/config.yaml")
    assert settings.config(SFTConfig) == SFTConfig(run=tiny_run, **ADAPTER)


@pytest.mark.parametrize(
    ("settings", "temperature"),
    [
        ({}, 0.4),
        ({"focal_temperature": 0.0}, 0.0),
        ({"student": "/models/qwen"}, 0.7),
        ({"method": "iql"}, 0.7),
    ],
)
def test_the_embedded_student_is_sampled_cooler_than_others(settings, temperature):
    config = EvaluateConfig(**settings)
    assert writing_temperature(config, config.method) == temperature


def test_a_judge_that_scores_dialogues_does_not_unmake_its_turn_scores(tiny_run, tmp_path):
    copy = copy_of(tiny_run, tmp_path / "copy")
    run_stage(JudgeConfig(run=copy, level="dialogue"))
    manifest = copy / "crad/judge/sim-judge.dialogue.manifest.json"
    manifest.write_text(manifest.read_text().replace('"finished"', '"running"'))
    assert JUDGE.is_there(copy / "crad", Requirement("judge", {"level": "turn"}))
    assert not JUDGE.is_there(copy / "crad", Requirement("judge", {"level": "dialogue"}))


def test_a_signal_of_whole_dialogues_gets_them_judged(tmp_path):
    run_stage(SweepConfig(run=tmp_path, **SWEEP))
    config = SFTConfig(run=tmp_path, **(ADAPTER | {"signal": "episode-judge"}))
    stages.prepare(Cell(config))
    levels = {j.turn_index for j in read_judgements(tmp_path / "crad/judge/sim-judge.jsonl")}
    assert levels == {None}


def test_other_settings_in_the_same_cell_are_refused(run):
    with pytest.raises(StaleInputError, match=r"learning_rate=0\.001, now learning_rate=0\.002"):
        run_stage(SFTConfig(run=run, **(ADAPTER | {"learning_rate": 2e-3})))
    with pytest.raises(StaleInputError, match="max_turns"):
        run_stage(SweepConfig(run=run, **SWEEP, max_turns=8))


def test_changed_inputs_are_refused_by_name(tiny_run, tmp_path):
    copy = copy_of(tiny_run, tmp_path / "copy")
    scores = copy / "crad/judge/sim-judge.jsonl"
    scores.write_text("".join(scores.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(
        StaleInputError, match=r"crad/judge/sim-judge\.jsonl \(turn scores\) has changed"
    ):
        run_stage(SFTConfig(run=copy, **ADAPTER))


def test_scores_are_never_joined_to_other_utterances(tiny_run, tmp_path):
    copy = copy_of(tiny_run, tmp_path / "copy")
    dialogues = copy / "crad/sweep/trajectories.jsonl"
    text = dialogues.read_text()
    dialogues.write_text(text.replace('"text": "I', '"text": "Well, I', 1))
    with pytest.raises(StaleInputError, match="no longer begins with the dialogues that were"):
        run_stage(JudgeConfig(run=copy, concurrency=8))


def test_a_grown_sweep_is_judged_before_it_is_trained_on(tiny_run, tmp_path):
    copy = copy_of(tiny_run, tmp_path / "copy")
    for stage in ("sft", "jpo", "iql"):
        shutil.rmtree(copy / "crad" / stage)
    run_stage(SweepConfig(run=copy, **(SWEEP | {"num_seeds": 3})))
    run_stage(SFTConfig(run=copy, **ADAPTER))
    judged = read_judgements(copy / "crad/judge/sim-judge.jsonl")
    assert len({j.trajectory_id for j in judged}) == 18


def test_the_student_is_no_cell_and_commands_carry_it(tmp_path):
    config = SFTConfig(model="/models/qwen", run=tmp_path)
    assert Cell(config, SFTConfig(run=tmp_path)).name != "default"  # of another size
    assert Cell(config, SFTConfig(run=tmp_path, model="/models/qwen")).name == "default"
    assert next_command("train_jpo", JPOConfig, Cell(config)).endswith("--model /models/qwen")
    played = next_command("evaluate", EvaluateConfig, Cell(config))
    assert played.endswith("--student /models/qwen")
    evaluation = EvaluateConfig(student="/models/qwen", run=tmp_path)
    assert Cell(evaluation, EvaluateConfig(run=tmp_path)).name == "default"
    trained = next_command("train_sft", SFTConfig, Cell(evaluation))
    assert trained.endswith("--model /models/qwen")


def test_another_student_of_the_same_size_is_another_student(tmp_path):
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        shutil.copy(embedded_path() / name, tmp_path)
    before = model_hashes(str(tmp_path))
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert model_hashes(str(tmp_path)) != before
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no \*\.safetensors"):
        model_hashes(str(tmp_path))


def test_a_report_shows_cells_and_does_not_mix_counterparties(tiny_run, tmp_path, capsys):
    copy = copy_of(tiny_run, tmp_path / "copy")
    home = copy / "crad/eval/random@sim-counterparty"
    shutil.copy(home / "default.jsonl", home / "max_turns=4-0000.jsonl")
    table = {"run": copy, "only": "table-1", "num_resamples": 200}
    report(ReportConfig(**table))
    assert "random (max_turns=4-0000)" in (copy / "report/table-1.csv").read_text()
    shutil.copytree(home, copy / "crad/eval/random@deepseek-chat")
    report(ReportConfig(**table))
    assert (
        "crad also has dialogues against deepseek-chat; --counterparty" in capsys.readouterr().out
    )
    for met in (copy / "crad/eval").glob("*@sim-counterparty"):
        met.rename(met.with_name(met.name.replace("sim-counterparty", "sim-other")))
    with pytest.raises(InputError, match=r"deepseek-chat, sim-other .* --counterparty"):
        report(ReportConfig(**table))
    report(ReportConfig(**table, counterparty="deepseek-chat"))
    assert "vanilla-slm" not in (copy / "report/table-1.csv").read_text()


def test_with_a_provider_named_nothing_is_made_unasked(tmp_path):
    with pytest.raises(InputError) as refused:
        run_stage(SFTConfig(run=tmp_path / "r", domain="hospital", provider="dashscope"))
    message = str(refused.value)
    for script in ("sweep", "judge"):
        assert f"python scripts/{script}.py --run {tmp_path / 'r'} --domain hospital" in message
    assert "--provider dashscope" in message
    assert not (tmp_path / "r").exists()


def test_real_dialogues_are_never_judged_by_the_simulator(tiny_run, tmp_path):
    home = tmp_path / "real/crad/sweep"
    home.mkdir(parents=True)
    for name in ("trajectories.jsonl", "scenarios.jsonl"):
        home.joinpath(name).write_bytes((tiny_run / "crad/sweep" / name).read_bytes())
    with pytest.raises(InputError, match="lacks judge"):
        run_stage(SFTConfig(run=tmp_path / "real", **ADAPTER))


def test_own_files_without_manifests_are_used_as_they_are(tiny_run, tmp_path):
    own = tmp_path / "own"
    for name in ("sweep/trajectories.jsonl", "sweep/scenarios.jsonl", "judge/my-judge.jsonl"):
        source = tiny_run / "crad" / name.replace("my-judge", "sim-judge")
        target = own / "crad" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text().replace("sim-judge", "my-judge"))
    run_stage(IQLConfig(run=own, num_steps=20, signal="turn-judge"))
    found = read_manifest(own / "crad/iql/default")
    assert found.status == "finished"
    assert "crad/judge/my-judge.jsonl (turn scores)" in found.inputs


def test_manifests_name_inputs_that_can_be_traced(tiny_run):
    found = json.loads((tiny_run / "crad/jpo/default/manifest.json").read_text())
    assert found["status"] == "finished"
    assert any(name.startswith("crad/sft/default/adapter/") for name in found["inputs"])
    assert found["inputs"]["prompt pack"]
    assert Path(tiny_run / "crad/sweep/trajectories.jsonl").is_file()


def test_printed_commands_say_all_that_differs(tmp_path):
    file = tmp_path / "own file.yaml"
    settings = Settings({"jpo": {"kappa": 0.5}}, f"--config {file}", file)
    config = JPOConfig(run=tmp_path, provider="openai", kappa=0.0, lora_targets=("q_proj",), seed=3)
    shown = command("train_jpo", config, settings)
    assert shown == (
        f"python scripts/train_jpo.py --config '{file}' --run {tmp_path} --seed 3 "
        "--provider openai --lora-targets q_proj --kappa 0.0"
    )
    same = dataclasses.replace(config, kappa=0.5)
    assert "--kappa" not in command("train_jpo", same, settings)
    qwen = ALoLConfig(model="/models/qwen", emotion_free=True)
    shown = command("train_alol", qwen, Settings())
    assert shown == "python scripts/train_alol.py --model /models/qwen --emotion-free"
    free = stages.STAGES["jpo"].followed_by(Cell(JPOConfig(emotion_free=True)))
    assert "--method free-sft+jpo" in free
    base = stages.STAGES["jpo"].followed_by(Cell(JPOConfig(reference="base")))
    assert base.endswith("--method iql+jpo")


def test_dialogues_of_a_method_become_the_sweep_of_another_run(tiny_run, tmp_path):
    """To be scored there and learned from; with more of them, those that are there stay first."""
    run, own = copy_of(tiny_run, tmp_path / "run"), tmp_path / "own"

    def play(num_seeds, method="random", as_sweep=own):
        base = SETTINGS.config(EvaluateConfig, run=run, method=method)
        changes = {"split": "train", "num_seeds": num_seeds, "as_sweep": as_sweep}
        run_stage(dataclasses.replace(base, **changes), base)
        return (own / "crad" / TRAJECTORIES).read_text(encoding="utf-8")

    first = play(1)
    run_stage(SETTINGS.config(JudgeConfig, run=own))
    assert play(1) == first
    assert (more := play(2)).startswith(first) and more != first
    run_stage(SETTINGS.config(JudgeConfig, run=own))
    sweep = read_sweep(own / "crad", load_pack(), own / "crad/judge/sim-judge.jsonl")
    assert {t.focal.method for t in sweep.trajectories} == {"random"}
    assert {t.split for t in sweep.trajectories} == {"train"}
    turns = {(t.trajectory_id, u.index) for t in sweep.trajectories for u in t.focal_turns}
    assert len(sweep.trajectories) == 4 and len(sweep.scores) > 0 and set(sweep.scores) <= turns
    with pytest.raises(InputError, match="holds other dialogues, or more of them"):
        play(2, method="neutral")
    with pytest.raises(InputError, match="is a sweep of its own; name another run"):
        play(2, as_sweep=run)
    assert (own / "crad" / TRAJECTORIES).read_text(encoding="utf-8") == more
    with pytest.raises(InputError, match="needs --split train: nothing is learned"):
        run_stage(SETTINGS.config(EvaluateConfig, run=run, as_sweep=own))
    with pytest.raises(InputError, match=r"--as-sweep .* is for evaluate\.py"):
        run_stage(SETTINGS.config(ReplayConfig, run=run, as_sweep=own))


def test_jpo_learns_from_the_dialogues_of_the_student_that_it_starts_from(tiny_run, tmp_path):
    run = copy_of(tiny_run, tmp_path / "run")
    home = run / "own/default"
    base = SETTINGS.config(JPOConfig, run=run)
    config = dataclasses.replace(base, turns="own", own_seeds=2)
    assert planned(Cell(config, base)) == ["evaluate", "judge"]

    playing = SETTINGS.config(EvaluateConfig, run=run, method="iql+sft")
    changes = {"split": "train", "num_seeds": 2, "as_sweep": home}
    run_stage(dataclasses.replace(playing, **changes), playing)
    played = {t.scenario_id for t in read_trajectories(home / "crad" / TRAJECTORIES)}
    file = home / "crad" / SCENARIOS  # of which the others would take long to play
    write_records(file, [one for one in read_scenarios(file) if one.scenario_id in played])
    run_stage(SETTINGS.config(JudgeConfig, run=home))
    run_stage(config, base)
    (own,) = (run / "crad/jpo").glob("turns=own-*")
    assert read_manifest(own).inputs.keys() >= {
        f"own/default/crad/{name}"
        for name in ("sweep/trajectories.jsonl", "judge/sim-judge.jsonl (turn scores)")
    }
    played_from = home / "crad/sweep/played_from.json"
    kept = played_from.read_text(encoding="utf-8")
    played_from.write_text(re.sub('(adapter_model[^:]*: ?)"..', r'\1"00', kept), encoding="utf-8")
    with pytest.raises(StaleInputError, match=r"adapter_model.* has changed since these dialogues"):
        run_stage(dataclasses.replace(config, kappa=0.5), base)
    played_from.write_text(kept, encoding="utf-8")
    by_outcome = dataclasses.replace(config, signal="outcome")
    assert [need.stage for need in stages.STAGES["jpo"].needs(by_outcome)] == ["sft", "evaluate"]
    assert planned(Cell(dataclasses.replace(config, own_seeds=3))) == ["evaluate", "judge"]
    run_stage(SETTINGS.config(EvaluateConfig, run=run, method="iql+sft"))
    page = report(SETTINGS.config(ReportConfig, run=run, only="table-1"))
    shown = (page.parent / "table-1.md").read_text(encoding="utf-8")
    assert "| iql+sft " in shown and "split=train" not in shown
    from_base = dataclasses.replace(config, reference="base")
    assert data_run(from_base) == run  # whose turns the base model's would be, nobody plays


def planned(cell):
    """The stages that would be made for a cell, in their order."""
    with pytest.raises(InputError) as error:
        stages.prepare(cell, is_read_only=True)
    return re.findall(r"scripts/(?:train_)?(\w+)\.py", str(error.value))


@pytest.mark.parametrize(
    "changes", [{}, {"lora_rank": 8}, {"seed": 1}, {"judge": "sim-judge-0.2"}], ids=str
)
def test_own_dialogues_are_played_by_the_one_snapshot_that_training_starts_from(tmp_path, changes):
    config = JPOConfig(run=tmp_path / "run", turns="own", own_seeds=3, **changes)
    assert planned(Cell(config)) == ["sweep", "judge", "sft", "iql", "evaluate", "judge"]
    with pytest.raises(InputError) as error:
        stages.prepare(Cell(config, JPOConfig(run=config.run)), is_read_only=True)
    *_, playing, judging = [line for line in str(error.value).splitlines() if "scripts/" in line]
    sft = re.search(r"--sft-cell (\S+)", str(error.value))
    home = f"{config.run}/own/{sft[1] if sft else 'default'}"
    for words in ("--num-seeds 3", "--split train", "--method iql+sft", f"--as-sweep {home}"):
        assert f"{words} " in f"{playing} "
    assert f"scripts/judge.py --run {home} " in f"{judging} "
    free = dataclasses.replace(config, emotion_free=True)
    assert planned(Cell(free)) == ["sweep", "judge", "sft"]
