"""The example of docs/extending.md is run as it stands there."""

import functools
import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from judged_sweep import SCENARIOS, SCORES, TRAJECTORIES, short_pack
from tiny_training import lines

from emodistill import cli, stages
from emodistill.offline.store import write_records
from emodistill.records import Judgement

PAGE = (Path(__file__).parents[1] / "docs/extending.md").read_text(encoding="utf-8")


@pytest.fixture
def weighted_sft(tmp_path, monkeypatch):
    """The page's file, imported."""
    (code,) = re.findall(r"`weighted_sft\.py`:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
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
    assert "weighted-sft: 16 steps on 16 turns" in shown
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
