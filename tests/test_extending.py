"""The examples of docs/extending.md are run as they stand there."""

import csv
import functools
import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from judged_sweep import SCENARIOS, SCORES, TRAJECTORIES, short_pack
from report_runs import make_dialogue, write_dialogues
from tiny_training import lines

from emodistill import cli, stages
from emodistill.offline.store import write_records
from emodistill.records import Judgement

PAGE = (Path(__file__).parents[1] / "docs/extending.md").read_text(encoding="utf-8")


def example(section: str) -> str:
    """The Python file of a section."""
    text = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return code


@pytest.fixture
def weighted_sft(tmp_path, monkeypatch):
    """The page's file, imported."""
    code = example("A new objective")
    path = tmp_path / "weighted_sft.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("weighted_sft", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "weighted_sft", module)
    spec.loader.exec_module(module)
    yield module
    del stages.STAGES["weighted-sft"]


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record.to_json()) + "\n" for record in records))


@pytest.fixture
def run(tmp_path):
    """A run folder with a judged sweep."""
    home = tmp_path / "run/crad"
    write_lines(home / "sweep/trajectories.jsonl", TRAJECTORIES)
    write_records(home / "sweep/scenarios.jsonl", SCENARIOS)
    judgements = [
        Judgement(
            trajectory_id=trajectory_id,
            turn_index=turn_index,
            judge="sim-judge",
            repeat=0,
            attempt=0,
            rubric_sha256="0",
            raw=f"SCORE: {score}",
            status="scored",
            score=score,
        )
        for (trajectory_id, turn_index), score in SCORES.items()
    ]
    write_lines(home / "judge/sim-judge.jsonl", judgements)
    return tmp_path / "run"


def test_the_new_objective_trains_an_adapter(
    weighted_sft, run, tiny_checkpoint, tmp_path, monkeypatch, capsys
):
    pack = tmp_path / "pack"
    pack.mkdir()
    short_pack(pack)
    (flags,) = re.findall(r"python weighted_sft\.py (--learning-rate .*)", PAGE)
    tiny = f"--run {run} --model {tiny_checkpoint} --prompt-pack {pack} --lora-rank 4"
    more = f"{tiny} --batch-size 4 --num-epochs 4 --temperature 1.5"
    base = stages.STAGES["weighted-sft"].config(run=run)
    monkeypatch.setattr(cli, "parse", functools.partial(parsed_without_base, cli.parse))
    args = [*flags.split(), *more.split()]
    cli.main(weighted_sft.WeightedSFTConfig, weighted_sft.__doc__, args=args)
    shown = capsys.readouterr().out
    assert "weighted-sft: 16 steps on 16 of 16 turns" in shown
    assert "--method iql+sft+weighted-sft" in shown and base.stage == "weighted-sft"
    cell_dir = run / "crad/weighted-sft/default"
    assert (cell_dir / "adapter/adapter_model.safetensors").is_file()
    logged = lines(cell_dir)
    assert np.mean([row["weighted-sft/loss"] for row in logged[-4:]]) < np.mean(
        [row["weighted-sft/loss"] for row in logged[:4]]
    )


def parsed_without_base(parse, *args, **keys):
    """A cell called `default`, whatever flags the test adds."""
    return parse(*args, **keys)._replace(base=None)


def test_a_new_table_is_one_file(tmp_path, monkeypatch):
    script = tmp_path / "words_table.py"
    script.write_text(example("A new table"), encoding="utf-8")
    run = tmp_path / "run"
    played = {
        method: [make_dialogue(number=n, share=0.5, method=method, turns=4) for n in (1, 2)]
        for method in ("vanilla-slm", "iql")
    }
    for method, dialogues in played.items():
        write_dialogues(run / f"crad/eval/{method}@sim-counterparty/default.jsonl", dialogues)
    args = ["words_table.py", "--run", str(run), "--num-resamples", "10"]
    monkeypatch.setattr(sys, "argv", args)
    runpy.run_path(str(script), run_name="__main__")
    rows = list(csv.DictReader((run / "report/words.csv").open(newline="")))
    assert [row["method"] for row in rows] == ["vanilla-slm", "iql"]
    for row in rows:
        turns = [turn for t in played[row["method"]] for turn in t.focal_turns]
        words = sum(len(turn.text.split()) for turn in turns)
        assert int(row["num_turns"]) == len(turns)
        assert float(row["words"]) == words / len(turns)
    assert "Words of an utterance" in (run / "report/index.html").read_text()
    assert "nothing about real models" in (run / "report/words.md").read_text()
