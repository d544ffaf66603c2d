"""The example of docs/extending.md is run as it stands there."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro
from judged_sweep import SCENARIOS, SCORES, TRAJECTORIES, short_pack
from tiny_training import lines

from emodistill.offline.store import write_scenarios
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
    return module


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record.to_json()) + "\n" for record in records))


@pytest.fixture
def run(tmp_path):
    """A run folder with a judged sweep."""
    home = tmp_path / "run/crad"
    write_lines(home / "sweep/trajectories.jsonl", TRAJECTORIES)
    write_scenarios(home / "sweep/scenarios.jsonl", SCENARIOS)
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


def test_the_new_objective_trains_an_adapter(weighted_sft, run, tiny_checkpoint, tmp_path):
    pack = tmp_path / "pack"
    pack.mkdir()
    short_pack(pack)
    (flags,) = re.findall(r"python weighted_sft\.py --run runs/quickstart (.*)", PAGE)
    tiny = f"--run {run} --model {tiny_checkpoint} --prompt-pack {pack} --lora-rank 4"
    more = f"{tiny} --batch-size 4 --num-epochs 4 --temperature 1.5"
    config = tyro.cli(weighted_sft.WeightedSFTConfig, args=[*flags.split(), *more.split()])
    result = weighted_sft.train(config)
    assert (result.num_samples, result.num_steps) == (16, 16)
    assert result.adapter_dir == run / "crad/weighted-sft/default/adapter"
    assert (result.adapter_dir / "adapter_model.safetensors").is_file()
    logged = lines(result.adapter_dir.parent)
    assert np.mean([row["weighted-sft/loss"] for row in logged[-4:]]) < np.mean(
        [row["weighted-sft/loss"] for row in logged[:4]]
    )
