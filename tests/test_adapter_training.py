"""Training an adapter end to end with each objective, what it starts from, and after a kill."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from flax import nnx
from judged_sweep import SCENARIOS, SCORES, TRAJECTORIES, short_pack
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_training import leaves, lines, without_times

from emodistill.configs import ALoLConfig, DPOConfig, JPOConfig, SFTConfig
from emodistill.errors import InputError
from emodistill.model import LoRAParam, load_adapter, load_qwen2
from emodistill.offline.rewards import SweepData
from emodistill.prompts import load_pack
from emodistill.train import preparation
from emodistill.train.adapter_training import planned_steps, train_adapter
from emodistill.train.objectives import OBJECTIVES


def die_once_saved(cell_dir, step):
    """SIGKILL, as soon as the checkpoint of `step` is whole."""
    while not (cell_dir / "checkpoints" / str(step)).is_dir():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def sweep_data(pack, trajectories=TRAJECTORIES):
    return SweepData(trajectories, SCENARIOS, SCORES, pack)


def sft_stage(cell_dir, checkpoint, pack, on_step=None, **settings):
    defaults = {"model": str(checkpoint), "lora_rank": 4, "top_fraction": 0.5, "save_every": 2}
    config = SFTConfig(**(defaults | {"batch_size": 4, "learning_rate": 1e-2} | settings))
    return train_adapter(config, sweep_data(pack), cell_dir=cell_dir, on_step=on_step)


def jpo_stage(
    cell_dir,
    checkpoint,
    pack,
    adapter,
    on_step=None,
    trajectories=TRAJECTORIES,
    kind=JPOConfig,
    **settings,
):
    defaults = {"model": str(checkpoint), "lora_rank": 4, "batch_size": 4, "save_every": 2}
    config = kind(**(defaults | {"learning_rate": 1e-3} | settings))
    data = sweep_data(pack, trajectories)
    return train_adapter(config, data, cell_dir=cell_dir, sft_adapter=adapter, on_step=on_step)


@pytest.fixture(scope="module")
def pack_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    short_pack(folder)
    return folder


@pytest.fixture(scope="module")
def pack(pack_dir):
    return load_pack(pack_dir)


@pytest.fixture(scope="module")
def sft_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("run") / "sft/default"


@pytest.fixture(scope="module")
def sft_result(tiny_checkpoint, pack, sft_dir):
    return sft_stage(sft_dir, tiny_checkpoint, pack)


@pytest.fixture(scope="module")
def sft_adapter(sft_result, sft_dir):
    return sft_dir / "adapter"


@pytest.fixture(scope="module")
def jpo_whole(tmp_path_factory, tiny_checkpoint, pack, sft_adapter):
    """A training by JPO from beginning to end: its cell and its result."""
    cell = tmp_path_factory.mktemp("whole") / "jpo/default"
    return cell, jpo_stage(cell, tiny_checkpoint, pack, sft_adapter)


def reference_files(cell_dir):
    """The stored log-probs of the references, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in (cell_dir.parent / "reference").iterdir()}


def test_steps_are_announced_beside_the_papers():
    config = JPOConfig(model="student", num_epochs=2)
    assert planned_steps(config, 21_040, 1_315) == (
        "jpo: 21,040 samples, 1,315 steps an epoch, epochs: 2; "
        "the paper: 1,315 steps an epoch, epochs: 5 (Table 15)."
    )
    short = SFTConfig(model="student", domain="hospital", max_steps=7)
    assert planned_steps(short, 160, 10) == (
        "sft: 160 samples, 10 steps an epoch, epochs: 2, stopped after 7 steps."
    )
    assert "the paper: 312.5 steps an epoch" in planned_steps(SFTConfig(), 5_000, 313)


class TestStages:
    def test_sft_keeps_the_best_turns_and_leaves_a_peft_adapter(
        self, sft_result, sft_adapter, tiny_checkpoint
    ):
        assert (sft_result.num_samples, sft_result.num_steps) == (8, 4)
        assert (sft_result.num_dropped, sft_result.num_trimmed) == (0, 0)
        fields = json.loads((sft_adapter / "adapter_config.json").read_text())
        assert (fields["peft_type"], fields["r"]) == ("LORA", 4)
        model = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
        load_adapter(model, sft_adapter)
        assert any(np.any(leaf) for leaf in leaves(nnx.state(model, LoRAParam)))

    def test_jpo_starts_as_its_reference_and_shares_it_between_kappas(
        self, jpo_whole, sft_adapter, tiny_checkpoint, pack, tmp_path
    ):
        whole, one = jpo_whole
        assert (one.num_samples, one.num_steps) == (16, 8)
        shutil.copytree(whole.parent / "reference", tmp_path / "jpo/reference")
        written = {path: path.stat().st_mtime_ns for path in (tmp_path / "jpo/reference").iterdir()}
        (path,) = written
        first, second, *_, last = lines(whole)
        np.testing.assert_allclose(first["policy/ratio_mean"], 1, rtol=1e-5)
        assert first["policy/kl_k3"] < 1e-9 < last["policy/kl_k3"]
        short = {"kappa": 0.5, "max_steps": 2}
        kappa = jpo_stage(tmp_path / "jpo/kappa", tiny_checkpoint, pack, sft_adapter, **short)
        assert reference_files(tmp_path / "jpo/kappa") == written
        assert kappa.metrics["policy/surrogate"] != second["policy/surrogate"]

        logp = load_file(path)["ref_logp"]
        path.write_bytes(path.read_bytes()[:-40])
        torn = jpo_stage(tmp_path / "jpo/torn", tiny_checkpoint, pack, sft_adapter, **short)
        np.testing.assert_array_equal(load_file(path)["ref_logp"], logp)
        assert torn.metrics["policy/surrogate"] == kappa.metrics["policy/surrogate"]

        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
        for wrong, told in (
            (logp[:-1], metadata),
            (np.full_like(logp, np.nan), metadata),
            (logp, metadata | {"key": "0"}),
        ):
            save_file({"ref_logp": wrong}, path, metadata=told)
            again = short | {"max_steps": 1}
            jpo_stage(tmp_path / "jpo/again", tiny_checkpoint, pack, sft_adapter, **again)
            np.testing.assert_array_equal(load_file(path)["ref_logp"], logp)
            with safe_open(path, framework="numpy") as file:
                assert file.metadata() == metadata

    def test_alol_learns_the_good_turns_without_a_reference(
        self, sft_adapter, tiny_checkpoint, pack, tmp_path
    ):
        cell = tmp_path / "alol/default"
        settings = {"learning_rate": 1e-2, "num_epochs": 3}
        run = jpo_stage(cell, tiny_checkpoint, pack, sft_adapter, kind=ALoLConfig, **settings)
        assert 0 < run.num_samples < 16
        first, *_, last = lines(cell)
        assert last["alol/loss"] < first["alol/loss"]
        assert not (tmp_path / "alol/reference").exists()

    def test_dpo_starts_as_its_reference(self, sft_adapter, tiny_checkpoint, pack, tmp_path):
        cell = tmp_path / "dpo/default"
        run = jpo_stage(cell, tiny_checkpoint, pack, sft_adapter, kind=DPOConfig)
        assert run.num_samples == 16
        first, *_ = lines(cell)
        np.testing.assert_allclose(first["dpo/loss"], math.log(2), rtol=1e-5)

    def test_a_turn_that_does_not_fit_takes_its_pair_along(
        self, sft_adapter, tiny_checkpoint, pack
    ):
        first, *others = TRAJECTORIES
        long = msgspec.structs.replace(first.turns[0], text="Let us say 20 days. " * 40)
        trajectories = [msgspec.structs.replace(first, turns=(long, *first.turns[1:])), *others]
        config = DPOConfig(model=str(tiny_checkpoint), lora_rank=4, max_tokens=300)
        data = sweep_data(pack, trajectories)
        selected = preparation.select_turns(config, data, OBJECTIVES["dpo"])
        start = preparation.load_start(config, sft_adapter)
        samples = preparation.pack_samples(config, data, selected, start)
        assert (len(samples.batches.examples), samples.num_dropped) == (14, 2)

    def test_every_dependency_of_the_reference_makes_another_file(
        self, sft_adapter, tiny_checkpoint, pack, tmp_path
    ):
        for cell, adapter, changes in (
            ("a", sft_adapter, {}),
            ("b", None, {"reference": "base"}),
            ("c", sft_adapter, {"emotion_free": True}),
            ("d", sft_adapter, {"trajectories": TRAJECTORIES[:4]}),
        ):
            jpo_stage(
                tmp_path / "jpo" / cell, tiny_checkpoint, pack, adapter, max_steps=1, **changes
            )
        assert len(reference_files(tmp_path / "jpo/a")) == 4

    def test_scenarios_with_too_few_scores_are_left_out_and_named(
        self, sft_adapter, tiny_checkpoint, pack, tmp_path
    ):
        run = jpo_stage(
            tmp_path / "jpo/few",
            tiny_checkpoint,
            pack,
            sft_adapter,
            trajectories=TRAJECTORIES[:5],
            max_steps=1,
        )
        assert run.left_out_scenarios == (SCENARIOS[1].scenario_id,)
        assert run.num_samples == 8

    def test_what_cannot_be_started_is_refused(self, sft_adapter, tiny_checkpoint, pack, tmp_path):
        with pytest.raises(InputError, match="jpo starts from an SFT adapter, and there is none"):
            jpo_stage(tmp_path / "jpo/x", tiny_checkpoint, pack, None)
        with pytest.raises(InputError, match=r"lora_rank=8, but the SFT adapter in .* has 4"):
            jpo_stage(tmp_path / "jpo/x", tiny_checkpoint, pack, sft_adapter, lora_rank=8)
        held_out = [msgspec.structs.replace(t, split="test") for t in TRAJECTORIES]
        with pytest.raises(InputError, match="no dialogue belongs to a training scenario"):
            jpo_stage(
                tmp_path / "jpo/x",
                tiny_checkpoint,
                pack,
                sft_adapter,
                trajectories=held_out,
            )

    @pytest.mark.parametrize("stage", [pytest.param("sft", marks=pytest.mark.slow), "jpo"])
    def test_after_sigkill_the_result_is_that_of_the_uninterrupted_run(
        self, stage, sft_result, jpo_whole, sft_adapter, tiny_checkpoint, pack, pack_dir, tmp_path
    ):
        start = {
            "sft": "sft_stage(cell, base, pack",
            "jpo": f"jpo_stage(cell, base, pack, Path({str(sft_adapter)!r})",
        }
        code = (
            "import sys; sys.modules['torch'] = None  # tensorboardX would load it, for nothing\n"
            "from test_adapter_training import *\n"
            "cell, base, words = map(Path, sys.argv[1:]); pack = load_pack(words)\n"
            f"{start[stage]}, on_step=lambda n: n == 3 and die_once_saved(cell, 2))"
        )
        cut = tmp_path / "run" / stage / "cut"
        done = subprocess.run(
            [sys.executable, "-c", code, str(cut), str(tiny_checkpoint), str(pack_dir)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
            },
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        steps = []
        if stage == "sft":
            sft_stage(cut, tiny_checkpoint, pack, steps.append)
            whole, num_steps = sft_adapter.parent, sft_result.num_steps
        else:
            jpo_stage(cut, tiny_checkpoint, pack, sft_adapter, steps.append)
            whole, num_steps = jpo_whole[0], jpo_whole[1].num_steps
        assert steps == list(range(3, num_steps + 1))
        assert without_times(lines(cut)) == without_times(lines(whole))
        for name, tensor in load_file(whole / "adapter/adapter_model.safetensors").items():
            resumed = load_file(cut / "adapter/adapter_model.safetensors")[name]
            np.testing.assert_array_equal(resumed, tensor)
