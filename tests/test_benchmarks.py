"""Every benchmark runs, without peers at a tiny size, and ends with the JSON that is kept of it."""

import ast
import asyncio
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from aiohttp import test_utils, web

from benchmarks import configs, gpu, rounds
from benchmarks.completion_server import seconds_on_server
from benchmarks.filled_rows import filled_step
from emodistill.errors import InputError
from emodistill.train.memory_plan import DeviceMemory, MemoryPlan

ROOT = Path(__file__).resolve().parents[1]

# Two samples in one row: a single shape, and so one program of each kind to compile.
TRAINING = {"size": "embedded", "kept": 0.001, "batch_size": 4, "max_micro_tokens": 2048}
TINY = {
    "sweep": (
        {"in_flight": 4, "latency_s": 0.01, "calls": 20, "long_calls": 20},
        {"MANY_IN_FLIGHT": 8, "MANY_CALLS": 16},
    ),
    "sft": (TRAINING, {}),
    "jpo": (TRAINING, {}),
    "mfu": (TRAINING, {"PEAK_SIZE": 64}),
    "packing": (
        {"num_samples": 60},
        {"NUM_SAMPLES": (8,), "NUM_TURNS": (), "TIMED_STEPS": 1},
    ),
    # 50 steps in a grid of one, so that all trainings run the same program.
    "iql": ({"num_steps": 50}, {"NUM_TRANSITIONS": 500, "GRID": [{"expectile": 0.9}]}),
    "generate": ({"size": "embedded", "dialogues": 2, "turns": 2, "num_slots": 2}, {}),
    "load": ({"model": "embedded", "num_layers": 2}, {}),
    # What is compiled has its own tests (test_memory_plan); here it is what is said about it.
    "memory": (
        {},
        {"plan_memory": lambda config: MemoryPlan(config.tokens, DeviceMemory(*range(8)), 1, 2)},
    ),
    "modelled-step": ({"row": 1024}, {"NUM_SCENARIOS": 1}),
}
"""By name: settings, and what of the module is smaller here."""


SLOW = ("sweep", "sft", "jpo", "iql", "load", "packing")
"""Each has a sibling that the default suite runs, or takes seconds of compiling; `mfu` trains as
`sft` and `jpo` do."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in configs.BENCHMARKS
        if name != "gpu"  # its parts have files of their own; no GPU has written any yet
    ],
)
def test_a_tiny_run_ends_with_the_json_that_is_kept(name, tiny_checkpoint, monkeypatch, capsys):
    benchmark, (settings, smaller) = configs.BENCHMARKS[name], TINY[name]
    module = importlib.import_module(f"benchmarks.{benchmark.module}")
    if hasattr(module, "embedded_path"):
        smaller = smaller | {"embedded_path": lambda: tiny_checkpoint}
    for constant, value in smaller.items():
        monkeypatch.setattr(module, constant, value)
    fields = benchmark.__dataclass_fields__
    few = {"rounds": 1, "peers": (), "model": str(tiny_checkpoint)}
    module.run(benchmark(**({key: few[key] for key in few if key in fields} | settings)))
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["ours"] > 0
    assert result["rounds"] == 1
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    kept = json.loads(path.read_text())
    assert list(result) == list(kept)
    assert set(result["extra"]) - {"ratio"} == set(kept["extra"]) - {"ratio"}


@pytest.mark.parametrize("packing", ["tree", "sequence"])
def test_a_filled_row_is_as_long_as_asked(packing):
    size = gpu.size_of(DRY)
    step = filled_step(200, packing, size.num_scenarios, size.shape)
    (batch,) = step.batches
    assert batch.tokens_BT.shape == batch.positions_BT.shape == (1, 200)
    assert step.work.num_tokens < step.work.num_positions == 200
    np.testing.assert_array_equal(
        batch.ends_BT[0, step.work.num_tokens :], np.arange(200)[step.work.num_tokens :] + 1
    )
    assert step.work.num_attention_pairs == step.work.num_tokens + batch.positions_BT.sum()


def test_each_part_of_a_gpu_run_leaves_its_file(tmp_path, monkeypatch, capsys):
    def fail(self):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "prepare_dry_run", lambda: None)
    monkeypatch.setattr(gpu.Parts, "iql", fail)
    settings = {"parts": ("matmul", "iql"), "dir": tmp_path}
    with pytest.raises(RuntimeError, match="out of memory"):
        gpu.run(configs.GPUBenchmark(dry_run=True, **settings))
    kept = json.loads((tmp_path / "matmul.json").read_text())
    assert kept["is_dry_run"] and kept["figures"]["measured_flops"] > 0
    assert not (tmp_path / "iql.json").exists()
    with pytest.raises(InputError, match="JAX sees no GPU here, but a CPU"):
        gpu.run(configs.GPUBenchmark(**settings))
    # On a GPU the next part runs all the same.
    monkeypatch.setattr(gpu, "check_device", lambda: None)
    monkeypatch.setattr(gpu, "size_of", lambda config, size=gpu.size_of: size(DRY))
    gpu.run(configs.GPUBenchmark(**settings))
    assert (
        "RuntimeError: out of memory"
        in json.loads((tmp_path / "iql.json").read_text())["figures"]["error"]
    )
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["name"] == "gpu"


DRY = configs.GPUBenchmark(dry_run=True)


@pytest.mark.slow
def test_a_dry_run_goes_through_all_parts(tmp_path):
    command = [sys.executable, "scripts/bench.py", "gpu", "--dry-run", "--dir", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, timeout=900)
    names = {path.stem for path in tmp_path.glob("*.json")}
    assert names == set(gpu.Parts(gpu.size_of(DRY)).parts())


def test_contenders_alternate(capsys):
    calls = []

    def contender(name):
        return lambda number: calls.append((name, number)) or {"rate": 10.0 * number}

    measured = rounds.alternate({n: contender(n) for n in ("a", "b")}, 2, "{rate:.0f}/s")
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert measured == {name: [{"rate": 0.0}, {"rate": 10.0}] for name in ("a", "b")}
    assert rounds.medians(measured, "rate") == {"a": 5.0, "b": 5.0}
    assert "round 2, b: 10/s" in capsys.readouterr().out


@pytest.mark.parametrize(("is_more_better", "ratio"), [(True, 2.0), (False, 0.5)])
def test_more_is_better_in_ratios_which_count_at_the_default_size(is_more_better, ratio, capsys):
    measured = {
        "emodistill": [{"x": value} for value in (4.0, 8.0, 6.0)],
        "peer": [{"x": 3.0}] * 3,
        "still": [{"x": 0.0}] * 3,
    }

    def reported(config):
        rounds.report(config, "x", measured, "x", {"more": 1}, is_more_better=is_more_better)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    result = reported(configs.IQLBenchmark(rounds=9, peers=()))
    assert (result["ours"], result["peers"]) == (6.0, {"peer": 3.0, "still": 0.0})
    assert result["ratio"] == {"peer": ratio, "still": None if is_more_better else 0.0}
    assert result["extra"] == {"more": 1}
    small = reported(configs.IQLBenchmark(num_steps=2))
    assert (small["ratio"], small["extra"]["ratio"]) == ({}, result["ratio"])


@pytest.mark.parametrize(
    ("benchmark", "settings", "message"),
    [
        (configs.SweepBenchmark, {"rounds": 0}, "rounds=0 must be at least 1"),
        (configs.SweepBenchmark, {"calls": 2}, "in_flight=256 must lie between 1 and calls=2"),
        (configs.SFTBenchmark, {"kept": 0.0}, r"kept=0.0 must lie in \(0, 1\]"),
        (configs.MFUBenchmark, {"num_layers": 0}, "num_layers=0 must be at least 1"),
        (configs.IQLBenchmark, {"num_steps": 0}, "num_steps=0 must be at least 1"),
    ],
)
def test_impossible_settings(benchmark, settings, message):
    with pytest.raises(InputError, match=message):
        benchmark(**settings)


def test_the_package_does_without_the_checkout_s_packages():
    imported = {
        name.split(".")[0]
        for path in (ROOT / "emodistill").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
    }
    assert "jax" in imported
    assert not imported & {"benchmarks", "pretraining"}


def test_a_server_plays_all_dialogues_at_once_and_each_turn_by_turn():
    """Replies have the lengths that were asked for, or the figure would be of something else."""
    dialogues = [[(np.arange(n + turn), 2 + turn) for turn in range(3)] for n in (3, 5)]
    bodies, in_flight = [], []

    async def complete(request):
        bodies.append(body := await request.json())
        in_flight.append(len(bodies))
        await asyncio.sleep(0.01)
        in_flight.append(-1)
        return web.json_response({"tokens_predicted": min(body["n_predict"], 4)})

    async def main(dialogues):
        app = web.Application()
        app.router.add_post("/completion", complete)
        async with test_utils.TestServer(app) as server:
            return await asyncio.to_thread(seconds_on_server, str(server.make_url("/")), dialogues)

    assert asyncio.run(main(dialogues)) > 0.03
    assert in_flight[:2] == [1, 2], "the second dialogue waits for the first"
    prompts = [body["prompt"] for body in bodies]
    assert sorted(map(len, prompts)) == [3, 4, 5, 5, 6, 7] and all(b["ignore_eos"] for b in bodies)
    with pytest.raises(InputError, match="HTTP 200 to a request for 5 tokens"):
        asyncio.run(main([[(np.arange(3), 5)]]))
    with pytest.raises(InputError, match=r"--server-url http://127\.0\.0\.1:9"):
        seconds_on_server("http://127.0.0.1:9", dialogues)
