"""A run's data as Hugging Face datasets: out, read by the library itself, and in again."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import datasets
import msgspec
import numpy as np
import pytest
import yaml
from builders import JUDGEMENT, TRAJECTORY
from sweeps import SCENARIOS, sweep

from emodistill.configs import ExportConfig, ImportConfig
from emodistill.errors import InputError
from emodistill.jsonl import JsonlAppender
from emodistill.offline import rewards
from emodistill.offline.hub_datasets import export_run, import_dataset
from emodistill.offline.judging import scores_by_turn
from emodistill.offline.store import read_judgements, read_trajectories
from emodistill.prompts import focal_messages, load_pack

FILES = (
    "sweep/scenarios.jsonl",
    "sweep/trajectories.jsonl",
    "judge/a-judge.jsonl",
    "judge/b-judge.jsonl",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of fifteen dialogues, whose turns two judges have scored."""
    run = tmp_path_factory.mktemp("run")
    home = run / "crad"
    sweep(home / "sweep")
    cells = msgspec.structs.replace(
        TRAJECTORY.focal, cells={"jpo": "kappa=0.5-1f", "iql": "default"}
    )
    played = next(s for s in SCENARIOS if s.split == "train")
    own = {
        "trajectory_id": "crad/own/seed_0000",
        **{
            name: getattr(played, name)
            for name in ("scenario_id", "focal_target", "counterparty_anchor")
        },
    }
    with JsonlAppender(home / "sweep/trajectories.jsonl") as lines:
        lines.append(msgspec.structs.replace(TRAJECTORY, focal=cells, **own))
    played = read_trajectories(home / "sweep/trajectories.jsonl")
    for judge in ("a-judge", "b-judge"):
        with JsonlAppender(home / f"judge/{judge}.jsonl") as lines:
            for number, (trajectory, turn) in enumerate(
                (t, turn) for t in played for turn in t.focal_turns
            ):
                score = None if number == 3 else 1 + number % 9
                line = msgspec.structs.replace(
                    JUDGEMENT,
                    judge=judge,
                    trajectory_id=trajectory.trajectory_id,
                    turn_index=turn.index,
                    score=score,
                    status="failed" if score is None else "scored",
                    raw="Größe 😀" if score is None else f"SCORE: {score}",
                )
                lines.append(line)
    return run


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "crad"
    return export_run(ExportConfig(run=run, judge="a-judge", out=out))


def load(folder, name, tmp_path):
    return datasets.load_dataset(str(folder), name, split="train", cache_dir=str(tmp_path / "hf"))


def import_into(run, source):
    return import_dataset(ImportConfig(source=str(source), run=run))


def test_a_round_trip_writes_the_same_bytes(run, exported, tmp_path):
    written = import_into(tmp_path, exported)
    assert {str(path.relative_to(tmp_path / "crad")) for path in written} == set(FILES)
    for name in FILES:
        assert (tmp_path / "crad" / name).read_bytes() == (run / "crad" / name).read_bytes(), name


def test_load_dataset_reads_every_table(run, exported, tmp_path):
    played = read_trajectories(run / "crad/sweep/trajectories.jsonl")
    turns = load(exported, None, tmp_path)
    assert len(turns) == sum(len(t.focal_turns) for t in played)
    dialogues = load(exported, "dialogues", tmp_path)
    assert dialogues["trajectory_id"][:] == [t.trajectory_id for t in played]
    assert [len(row) for row in dialogues["turns"][:]] == [len(t.turns) for t in played]
    assert len(load(exported, "judgements", tmp_path)) == 2 * len(turns)
    scenarios = load(exported, "scenarios", tmp_path)
    assert [json.loads(text) for text in scenarios["fields"][:]] == [s.fields for s in SCENARIOS]


def test_turns_are_what_the_student_learns_from(run, exported, tmp_path):
    played = read_trajectories(run / "crad/sweep/trajectories.jsonl")
    scores = scores_by_turn(read_judgements(run / "crad/judge/a-judge.jsonl"))
    focal = rewards.FocalTurns.from_trajectories(played, scores)
    turns = load(exported, None, tmp_path)
    expected = {
        "score": focal.scores,
        "advantage": rewards.jpo_advantages(focal),
        "q": rewards.sft_quality(focal),
        "shaped_return": focal.returns,
    }
    for name, values in expected.items():
        column = np.array([np.nan if v is None else v for v in turns[name][:]])
        np.testing.assert_array_equal(column, values, err_msg=name)
    assert sum(value is None for value in turns["score"][:]) == 1
    by_id = {t.trajectory_id: t for t in played}
    scenarios = {s.scenario_id: s for s in SCENARIOS}
    pack = load_pack()
    for row in turns.select(range(0, len(turns), 7)):
        trajectory, index = by_id[row["trajectory_id"]], row["turn_index"]
        turn = trajectory.turns[index]
        scenario = scenarios[row["scenario_id"]]
        prompt = focal_messages(pack, scenario, trajectory.turns[:index], turn.emotion)
        assert row["prompt"] == prompt
        assert row["completion"] == [{"role": "assistant", "content": turn.text}]
        assert (row["emotion"], row["offer"]) == (turn.emotion, turn.offer)


def test_the_card_has_the_hubs_header_the_counts_and_every_column(exported):
    _, header, text = (exported / "README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(header)
    assert [config["config_name"] for config in values["configs"]] == [
        *("turns", "dialogues", "judgements", "scenarios")
    ]
    assert values["configs"][0]["default"] and values["license"] == "unknown"
    assert "Say here under which licence" in text and "those of a-judge" in text
    for info in values["dataset_info"]:
        assert f"| `{info['config_name']}` | {info['splits'][0]['num_examples']} |" in text
        section = text.split(f"## {info['config_name']}\n")[1].split("\n## ")[0]
        for feature in info["features"]:
            assert f"`{feature['name']}`" in section, (info["config_name"], feature["name"])


def test_the_files_lie_as_on_the_hub_and_nothing_else_does(exported):
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    names = ("data", "dialogues", "judgements", "scenarios")
    assert files == {"README.md", *(f"{name}/train-00000-of-00001.parquet" for name in names)}
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


def test_single_parquet_files_and_saved_folders_come_in(run, exported, tmp_path):
    import_into(tmp_path, exported / "scenarios/train-00000-of-00001.parquet")
    saved = tmp_path / "saved"
    dialogues = load(exported, "dialogues", tmp_path)
    datasets.DatasetDict({"train": dialogues}).save_to_disk(saved / "dialogues")
    load(exported, "judgements", tmp_path).save_to_disk(saved / "scores")
    import_into(tmp_path, saved)
    for name in FILES:
        assert (tmp_path / "crad" / name).read_bytes() == (run / "crad" / name).read_bytes(), name


def test_columns_that_have_a_default_may_be_missing(exported, tmp_path):
    import_into(tmp_path, exported / "scenarios")
    less = load(exported, "dialogues", tmp_path).remove_columns(["usage", "cost_usd"])
    less.to_parquet(tmp_path / "less.parquet")
    import_into(tmp_path, tmp_path / "less.parquet")
    assert {t.cost_usd for t in read_trajectories(tmp_path / "crad/sweep/trajectories.jsonl")} == {
        0.0
    }


def edited(exported, tmp_path, name, change):
    path = tmp_path / "edited.parquet"
    change(load(exported, name, tmp_path)).to_parquet(path)
    return path


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "judgements",
            lambda rows: rows.add_column("mood", ["joy"] * len(rows)),
            r"edited\.parquet: a table of judgements has the unknown column 'mood'\. docs/data\.md",
        ),
        (
            "dialogues",
            lambda rows: rows.remove_columns("outcome"),
            r"edited\.parquet: a table of dialogues lacks column 'outcome'",
        ),
        (
            "judgements",
            lambda rows: rows.map(lambda row: {"schema": 2}),
            r"edited\.parquet, row 0: schema=2 is not known here",
        ),
        (
            "scenarios",
            lambda rows: rows.map(lambda row: {"fields": "{"}),
            r"edited\.parquet, row 0: a column of JSON text holds none",
        ),
        (
            "scenarios",
            lambda rows: rows.map(lambda row: {"domain": "student"}),
            r"is of domain 'student'; give --domain student",
        ),
        (
            "scenarios",
            lambda rows: datasets.concatenate_datasets([rows, rows]),
            r"row 7: scenario_id 'debt_\d+' was in .*row 0 already",
        ),
        ("dialogues", lambda rows: rows, r"scenarios\.jsonl is missing"),
        (
            None,
            lambda rows: rows,
            r"judgements or scenarios; turns make no run",
        ),
    ],
)
def test_tables_that_make_no_run_are_refused(exported, tmp_path, name, change, words):
    path = edited(exported, tmp_path, name, change)
    with pytest.raises(InputError, match=words):
        import_into(tmp_path / "run", path)
    assert not (tmp_path / "run").exists()


def test_a_missing_split_is_named(exported, tmp_path):
    (tmp_path / "scenarios").mkdir()
    shutil.copy(
        exported / "scenarios/train-00000-of-00001.parquet",
        tmp_path / "scenarios/test-00000-of-00001.parquet",
    )
    with pytest.raises(InputError, match=r"scenarios has no split 'train', only test"):
        import_into(tmp_path / "run", tmp_path)


def test_nothing_is_overwritten(run, exported):
    with pytest.raises(InputError, match=r"scenarios\.jsonl exists; import into another --run"):
        import_into(run, exported)
    with pytest.raises(InputError, match=r"--out .* exists; delete it"):
        export_run(ExportConfig(run=run, judge="a-judge", out=exported))


def test_what_is_no_dataset_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "data.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="holds no Parquet file"):
        import_into(tmp_path / "run", tmp_path)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"torn\.parquet can't be read"):
        import_into(tmp_path / "run", tmp_path / "torn.parquet")
    for name in ("", "nobody/nothing-of-the-kind"):
        with pytest.raises(InputError, match=f"--source {name}: there is no such file or folder"):
            import_into(tmp_path / "run", name)


def test_which_judges_scores_has_to_be_said(run, tmp_path):
    with pytest.raises(InputError, match="holds scores of a-judge, b-judge; say which"):
        export_run(ExportConfig(run=run, out=tmp_path / "out"))
    with pytest.raises(InputError, match=r"c-judge\.jsonl is missing"):
        export_run(ExportConfig(run=run, out=tmp_path / "out", judge="c-judge"))


def test_a_sweep_without_scores_is_a_dataset_too(run, tmp_path):
    shutil.copytree(run / "crad/sweep", tmp_path / "crad/sweep")
    with pytest.raises(InputError, match=r"a-judge\.jsonl is missing"):
        export_run(ExportConfig(run=tmp_path, judge="a-judge"))
    out = export_run(ExportConfig(run=tmp_path))
    assert out == tmp_path / "crad/dataset"
    turns = load(out, None, tmp_path)
    assert set(turns["q"][:]) == {None} and None not in turns["shaped_return"][:]
    assert "Nobody has scored the turns." in (out / "README.md").read_text()
    import_into(tmp_path / "again", out)
    with pytest.raises(InputError, match="holds no dialogue; sweep first"):
        (tmp_path / "crad/sweep/trajectories.jsonl").write_text("")
        export_run(ExportConfig(run=tmp_path, out=tmp_path / "empty"))


def test_the_script_exports_and_imports(run, tmp_path, monkeypatch):
    script = Path(__file__).parents[1] / "scripts/dataset.py"
    for arguments in (
        ["export", "--run", run, "--judge", "b-judge", "--out", tmp_path / "out"],
        ["import", "--source", tmp_path / "out", "--run", tmp_path / "again"],
    ):
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        runpy.run_path(str(script), run_name="__main__")
    assert (tmp_path / "again/crad/judge/b-judge.jsonl").is_file()
