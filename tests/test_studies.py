"""Studies: their arms, a small one run for real, what fails and what is finished."""

import csv
import dataclasses
import json

import pytest
from tiny_run import ADAPTER, SECTIONS, SETTINGS, copy_of, run_stage

from emodistill.configs import (
    EvaluateConfig,
    IQLConfig,
    JudgeConfig,
    ReportConfig,
    SweepConfig,
)
from emodistill.configs.studies import (
    ABLATIONS,
    STUDIES,
    CounterpartyStudy,
    EmotionFreeStudy,
    EmotionStudy,
    IQLStudy,
    KappaStudy,
    RankStudy,
    RefinementStudy,
    SignalStudy,
    TransferStudy,
)
from emodistill.domains import DOMAINS
from emodistill.errors import InputError
from emodistill.evaluation.arms import TABLES_OF, read_arms, study_path, write_arms
from emodistill.evaluation.methods import METHODS, get_method
from emodistill.offline.store import read_trajectories
from emodistill.reports import RECIPES, report_study
from emodistill.reports.build import ALL_FIGURES
from emodistill.reports.paper import numbers
from emodistill.settings import Settings
from emodistill.studies import arm_runner as runner
from emodistill.studies import planned_arms as planning
from emodistill.studies.arm_runner import run_study
from emodistill.studies.planned_arms import plan_arms


@pytest.mark.parametrize("name", STUDIES)
def test_arms_are_told_apart_and_name_what_there_is(name):
    arms = plan_arms(STUDIES[name]())
    assert len({(arm.block, arm.label) for arm in arms}) == len(arms)
    assert all(arm.domain in DOMAINS for arm in arms)
    assert all(arm.method is None or arm.method in METHODS for arm in arms)
    assert set(TABLES_OF[name]) <= {*(recipe.name for recipe in RECIPES), *ALL_FIGURES}


def test_every_study_has_tables_and_every_ablation_a_subcommand():
    assert set(TABLES_OF) == set(STUDIES) == {*ABLATIONS, "emotions", "leaderboard"}
    assert len(ABLATIONS) == 10


@pytest.mark.parametrize(
    ("study", "table", "num_known"),
    [
        (KappaStudy(), "table-6", 5),
        (SignalStudy(), "table-2", 9),
        (TransferStudy(), "table-4", 24),
        (EmotionFreeStudy(long_epochs=0), "table-12", 16),
        (
            CounterpartyStudy(
                base_url="http://127.0.0.1:1/v1",
                counterparties=(
                    "deepseek/deepseek-chat",
                    "openai/gpt-4o-mini",
                    "qwen/qwen-2.5-3b-instruct",
                ),
            ),
            "table-5",
            12,
        ),
    ],
)
def test_arms_go_by_the_names_of_the_papers_rows(study, table, num_known):
    found = [numbers(table, arm.block, arm.label) for arm in plan_arms(study)]
    assert sum(row is not None for row in found) == num_known


def test_empty_grids_and_unnamed_counterparties_are_refused():
    with pytest.raises(InputError, match="kappa: nothing to run"):
        plan_arms(KappaStudy(values=()))
    with pytest.raises(InputError, match="by --counterparties"):
        plan_arms(CounterpartyStudy(provider="openai"))
    for study in (EmotionStudy, EmotionFreeStudy, RefinementStudy):
        with pytest.raises(InputError, match="there are none to be chosen here"):
            study(split="validation")
    with pytest.raises(InputError, match=r"crad, iql\+sft\+jpo: κ = 1 is asked for twice"):
        plan_arms(KappaStudy(values=(1.0, 0.5, 1.0)))
    for wrong in ({"record": "tape"}, {"max_cost_usd": 1.0}):
        with pytest.raises(InputError, match="needs --launcher local"):
            KappaStudy(launcher="ray", **wrong)
    for wrong in ({"ray_cpus": 0.0}, {"ray_gpus": -1.0}):
        with pytest.raises(InputError, match=r"ray_.pus=.* must"):
            KappaStudy(**wrong)


def test_arms_of_the_two_splits_stand_side_by_side(tmp_path):
    sweep = {"num_seeds": 1, "num_scenarios": 1, "num_validation": 2, "max_turns": 4}
    settings = Settings(SECTIONS | {"sweep": sweep, "judge": {}})
    common = {"run": tmp_path, "methods": ("random",), "counterparties": ("sim-proud",)}
    for split in ("test", "validation"):
        run_study(CounterpartyStudy(split=split, **common), settings)
    arms = read_arms(tmp_path, "counterparty")
    assert sorted(arm.split for arm in arms) == ["test", "validation"]
    for arm in arms:
        assert {t.split for t in read_trajectories(tmp_path / arm.path)} == {arm.split}
    first, second = sorted(arms, key=lambda arm: arm.split)
    failed = dataclasses.replace(second, status="failed", path=None, reason="no answer")
    write_arms(tmp_path, "counterparty", [first, failed])
    report_study(ReportConfig(run=tmp_path), "counterparty")
    text = (tmp_path / "report/table-5.md").read_text()
    assert "Missing: CRAD: sim-proud, validation random (no answer)." in text
    write_arms(tmp_path, "counterparty", arms)
    report_study(ReportConfig(run=tmp_path), "counterparty")
    table = (tmp_path / "report/table-5.md").read_text()
    assert "CRAD: sim-proud\n" in table and "CRAD: sim-proud, validation\n" in table


def test_what_is_typed_overrides_the_stages_settings(tmp_path):
    settings = Settings({"evaluate": {"concurrency": 32, "timeout_s": 9.0}})

    def played(**typed):
        study = KappaStudy(run=tmp_path, **typed)
        return runner._task(plan_arms(study)[0], study, settings).match.config

    assert (played().concurrency, played().timeout_s) == (32, 9.0)
    typed = played(concurrency=6, timeout_s=120.0)
    assert (typed.concurrency, typed.timeout_s) == (6, 120.0)


@pytest.fixture(scope="module")
def kappa(tiny_run, tmp_path_factory):
    """A small study of two arms, one of which is the usual training."""
    run = copy_of(tiny_run, tmp_path_factory.mktemp("runs") / "study")
    config = KappaStudy(run=run, values=(0.5, 1.0))
    return config, run_study(config, SETTINGS)


def test_a_study_ends_in_its_table(kappa):
    config, (path,) = kappa
    assert path == config.run / "report/table-6.md"
    rows = list(csv.DictReader(path.with_suffix(".csv").open(newline="")))
    assert [row["method"] for row in rows] == ["κ = 0.5", "κ = 1"]
    for row, arm in zip(rows, read_arms(config.run, "kappa"), strict=True):
        played = read_trajectories(config.run / arm.path)
        assert int(row["num_dialogues"]) == len(played) == 2
        won = [t.outcome == "accepted" for t in played]
        assert float(row["success"]) == pytest.approx(100 * sum(won) / len(won))
    first, second = read_arms(config.run, "kappa")
    assert "kappa=0.5" in first.path and second.path.endswith("/default.jsonl")


def test_called_again_it_makes_no_call_and_no_step(kappa, monkeypatch, capsys):
    config, _ = kappa

    def refuse(*args, **kwargs):
        raise AssertionError("called")

    monkeypatch.setattr("emodistill.llm.client.ChatClient.chat", refuse)
    monkeypatch.setattr("emodistill.train.adapter_training.train_adapter", refuse)
    monkeypatch.setattr("emodistill.train.q_learning.train_networks", refuse)
    written = {path: path.stat().st_mtime_ns for path in config.run.rglob("metrics.jsonl")}
    run_study(config, SETTINGS)
    assert written == {path: path.stat().st_mtime_ns for path in config.run.rglob("metrics.jsonl")}
    assert capsys.readouterr().out.count("finished before") >= 6


def test_the_judge_that_is_named_is_the_one_whose_scores_are_made_and_learned_from(
    tiny_run, tmp_path
):
    for run in (tmp_path, tmp_path / "b"):
        copy_of(tiny_run / "crad/sweep", run / "crad/sweep")
    iql = IQLConfig(run=tmp_path, signal="turn-judge", num_steps=20, judge="sim-judge-0")
    run_stage(iql)
    assert [path.name for path in (tmp_path / "crad/judge").glob("*.jsonl")] == [
        "sim-judge-0.jsonl"
    ]
    run_stage(JudgeConfig(run=tmp_path))
    with pytest.raises(InputError, match=r"sim-judge-0, sim-judge; say which with --judge"):
        run_stage(dataclasses.replace(iql, judge=None))
    other = {"run": tmp_path / "b", "judge": "sim-judge-0", "expectiles": (0.8,)}
    few = {"advantage_scales": (3.0,), "discounts": (0.99,)}
    learning = Settings(SECTIONS | {"iql": {"num_steps": 20, "signal": "turn-judge"}})
    run_study(IQLStudy(**other, **few), learning)
    assert [path.stem for path in (tmp_path / "b/crad/judge").glob("*.jsonl")] == ["sim-judge-0"]
    study = KappaStudy(run=tmp_path, judge="sim-judge-0")
    (plan, *_) = plan_arms(study)
    trainings = runner._task(plan, study, SETTINGS).trainings
    cells = {group[0].config.stage: group[0] for group in trainings}
    assert {cell.config.judge for cell in cells.values()} == {"sim-judge-0"}
    assert cells["sft"].name == "default"


def test_with_a_provider_a_study_makes_no_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    for study in (KappaStudy, EmotionStudy):
        config = study(run=tmp_path, provider="openai")
        with pytest.raises(InputError, match=r"(?s)lacks sweep.*sweep\.py .*--provider openai"):
            run_study(config, Settings())
    assert not list(tmp_path.iterdir())


def test_what_was_made_otherwise_is_refused_and_what_is_known_stays(kappa):
    config, _ = kappa
    half = KappaStudy(run=config.run, values=(0.5,))
    run_study(half, SETTINGS)
    assert [arm.status for arm in read_arms(config.run, "kappa")] == ["finished"] * 2
    other = Settings(SECTIONS | {"jpo": ADAPTER | {"learning_rate": 2e-3}})
    run_study(KappaStudy(run=config.run, values=(0.25, 1.0)), other)
    arms = {arm.label: arm for arm in read_arms(config.run, "kappa")}
    assert set(arms) == {"κ = 0.25", "κ = 0.5", "κ = 1"}
    assert arms["κ = 1"].status == "finished"  # its row stays, and says why it is an old one
    table = (config.run / "report/table-6.md").read_text()
    assert "| κ = 1 " in table and "κ = 1 with other settings, so that its row" in table
    assert "was made with learning_rate=0.001, now learning_rate=0.002" in arms["κ = 1"].reason
    run_study(KappaStudy(run=config.run, values=(0.5, 1.0)), SETTINGS)
    kept = [arm for arm in read_arms(config.run, "kappa") if arm.label != "κ = 0.25"]
    write_arms(config.run, "kappa", kept)


def test_scores_of_whole_dialogues_leave_what_learned_from_turns_as_it_is(kappa, monkeypatch):
    config, _ = kappa
    monkeypatch.setitem(planning.SIGNALS, "sft", ("hybrid", "episode-judge"))
    run_study(SignalStudy(run=config.run, stages=("sft",)), SETTINGS)
    judged = (config.run / "crad/judge/sim-judge.jsonl").read_text()
    assert '"turn_index": null' in judged or '"turn_index":null' in judged
    rows = list(csv.DictReader((config.run / "report/table-2.csv").open(newline="")))
    assert [row["method"] for row in rows] == ["hybrid", "episode-judge"]
    run_study(config, SETTINGS)  # nothing is stale
    assert {arm.status for arm in read_arms(config.run, "kappa")} == {"finished"}


def test_an_arm_that_fails_is_named_and_the_others_go_on(kappa):
    config, _ = kappa
    (path,) = run_study(RankStudy(run=config.run, values=(0, 16)), SETTINGS)
    arms = read_arms(config.run, "rank")
    assert [arm.status for arm in arms] == ["failed", "finished", "failed", "finished"]
    assert "lora_rank=0 must be at least 1" in arms[0].reason
    assert "Missing: CRAD: iql+sft r = 0 (lora_rank=0 must be at least 1)" in path.read_text()
    with pytest.raises(InputError, match=r"all 2 arms failed; .*lora_rank=0"):
        run_study(RankStudy(run=config.run, values=(0,)), SETTINGS)


def test_arms_of_other_domains_stay(kappa):
    config, _ = kappa
    path = study_path(config.run, "kappa")
    arms = json.loads(path.read_text())
    other = arms[0] | {"domain": "hospital", "status": "failed", "reason": "later"}
    path.write_text(json.dumps([other, *arms]))
    run_study(config, SETTINGS)
    assert [arm.domain for arm in read_arms(config.run, "kappa")] == ["crad", "crad", "hospital"]
    path.write_text(json.dumps(arms))
    path.with_name("kl.json").write_text("[{}]")
    with pytest.raises(InputError, match=r"kl\.json can't be read .* Run the study again"):
        read_arms(config.run, "kl")
    path.with_name("kl.json").unlink()


@pytest.mark.parametrize(
    "method", ["iql+sft+jpo-stripped", pytest.param("free-sft+jpo", marks=pytest.mark.slow)]
)
def test_emotion_free_methods_are_trained_and_played_without_a_block(kappa, method):
    config, _ = kappa
    few = {"run": config.run, "num_scenarios": 2, "max_turns": 4, "concurrency": 8}
    path = run_stage(EvaluateConfig(method=method, **few), settings=SETTINGS).path
    assert path.name == "default.jsonl"
    played = read_trajectories(path)
    assert {turn.emotion for t in played for turn in t.focal_turns} == {None}
    (cell,) = {t.focal.cells["jpo"] for t in played}
    found = json.loads((config.run / "crad/jpo" / cell / "manifest.json").read_text())
    assert found["config"]["emotion_free"] is (method == "free-sft+jpo")
    sft = config.run / "crad/sft" / found["config"]["sft_cell"] / "manifest.json"
    assert json.loads(sft.read_text())["config"]["emotion_free"] is (method == "free-sft+jpo")


def test_a_method_of_another_domain_brings_its_selector_and_adapter(kappa):
    config, _ = kappa
    few = {"run": config.run, "num_scenarios": 1, "max_turns": 4, "concurrency": 8}
    hospital = {"run": config.run, "domain": "hospital"}
    run_stage(SETTINGS.config(SweepConfig, **hospital))
    base = EvaluateConfig(method="iql+sft+jpo", domain="hospital", **few)
    path = run_stage(dataclasses.replace(base, trained_on="crad"), base).path
    assert path.name.startswith("trained_on=crad")
    manifest = json.loads(path.with_suffix(".manifest.json").read_text())
    inputs = set(manifest["inputs"])
    assert "crad/iql/default/selector.safetensors" in inputs
    assert "crad/jpo/default/adapter/adapter_model.safetensors" in inputs
    assert not (config.run / "hospital/iql").exists()


def test_settings_can_be_chosen_on_validation_scenarios(tmp_path):
    run = {"run": tmp_path, "num_seeds": 1, "num_scenarios": 1, "max_turns": 4}
    run_stage(SweepConfig(num_validation=2, **run))
    base = EvaluateConfig(method="random", **run)
    path = run_stage(dataclasses.replace(base, split="validation"), base).path
    (played,) = read_trajectories(path)
    assert played.split == "validation" and path.name.startswith("split=validation")
    run_stage(SweepConfig(**run | {"run": tmp_path / "b"}))
    with pytest.raises(InputError, match=r"split='validation'. Sweep .* --num-validation 10"):
        run_stage(dataclasses.replace(base, run=tmp_path / "b", split="validation"))


def test_single_emotions_are_played_judged_and_ranked(kappa, monkeypatch):
    config, _ = kappa
    labels = ("anger", "joy", "neutral")
    monkeypatch.setattr(planning, "EMOTIONS", labels)
    study = EmotionStudy(run=config.run, num_scenarios=2, num_seeds=1)
    run_study(study, SETTINGS)
    rows = list(csv.DictReader((config.run / "report/emotions.csv").open(newline="")))
    assert {row["emotion"] for row in rows} == {"anger", "joy"}
    assert all(row["num_scenarios"] == "2" for row in rows)
    for arm in read_arms(config.run, "emotions"):
        played = read_trajectories(config.run / arm.path)
        assert {turn.emotion for t in played for turn in t.focal_turns} == {arm.label}
    assert (config.run / "report/figure-1.svg").is_file()


def test_methods_name_the_stages_that_they_need():
    assert get_method("iql+sft+jpo").stages == ("iql", "sft", "jpo")
    assert get_method("iql+jpo").stages == ("iql", "jpo")
    assert get_method("free-jpo").stages == ("jpo",)
    assert get_method("free-sft+jpo").stages == ("sft", "jpo")
    assert get_method("iql+sft+jpo-stripped").stages == ("sft", "jpo")
    assert get_method("random").stages == ()


def test_arms_side_by_side_are_those_that_run_one_by_one(kappa, tmp_path):
    """On two Ray workers: the same dialogues, shared stages trained once, failures isolated."""
    ray = pytest.importorskip("ray")
    config, _ = kappa
    side_by_side = dataclasses.replace(config, run=tmp_path / "ray", launcher="ray")
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        run_study(dataclasses.replace(side_by_side, values=(0.5, 1.0, -1.0)), SETTINGS)
    finally:
        ray.shutdown()
    *arms, failed = read_arms(side_by_side.run, "kappa")
    assert failed.status == "failed" and "kappa=-1" in failed.reason
    expected = {arm.label: arm for arm in read_arms(config.run, "kappa")}
    for arm in arms:
        path = expected[arm.label].path
        assert arm.path == path
        ours, theirs = (read_trajectories(run / path) for run in (side_by_side.run, config.run))
        assert {t.trajectory_id: t.outcome for t in ours} == {
            t.trajectory_id: t.outcome for t in theirs
        }
        for one, other in zip(ours, theirs, strict=True):
            assert [(t.text, t.emotion) for t in one.turns] == [
                (t.text, t.emotion) for t in other.turns
            ]
