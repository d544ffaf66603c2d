"""Checkpoints: a run that was cut off anywhere ends as the uninterrupted one; damage is named."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import mesh_worker
import numpy as np
import pytest
from tiny_training import lines, without_times

from emodistill.errors import InputError, StaleInputError
from emodistill.seeding import stream
from emodistill.train.checkpoints import Checkpoints

STATE = {"lora": jnp.arange(6.0).reshape(2, 3), "step": jnp.int32(4)}
KEPT = {"keep": 2, "keep_every": None}


def save(directory, *steps, identity=None, state=STATE, **settings):
    with Checkpoints(directory, identity or {}, **(KEPT | settings)) as checkpoints:
        for step in steps:
            checkpoints.save(step, state, cursor={"next_samples": [f"s{step}"]}, metrics={"x": 1.0})


def restore(directory, identity=None, shape=(2, 3)):
    with Checkpoints(directory, identity or {}, **KEPT) as checkpoints:
        return checkpoints.restore({"lora": jnp.zeros(shape), "step": jnp.int32(0)})


def trace(cell_dir):
    return [json.loads(line) for line in (cell_dir / "trace.jsonl").read_text().splitlines()]


def assert_equal_runs(cell, whole):
    """Losses to the bit, and the same samples in every step, however often it was begun."""
    assert without_times(lines(cell)) == without_times(lines(whole))
    expected = dict(trace(whole))
    assert list(expected) == list(range(1, 9))
    begun = trace(cell)
    assert {step for step, _ in begun} == set(expected)
    for step, samples in begun:
        assert samples == expected[step]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "num_stops"), [("sft", 2), ("jpo", 2)])
def test_a_run_cut_off_at_random_steps_ends_as_the_whole_one(stage, num_stops, tmp_path):
    mesh_worker.run(tmp_path / "whole", None, 8, stage=stage)
    stops = sorted(
        int(n) for n in stream(0, "stops", stage).choice(np.arange(1, 8), num_stops, False)
    )
    for number in stops:
        with pytest.raises(SystemExit):
            mesh_worker.run(tmp_path / "cut", None, number, stage=stage)
    mesh_worker.run(tmp_path / "cut", None, 8, stage=stage)
    assert_equal_runs(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "jpo"])
def test_a_run_killed_at_five_random_steps_ends_as_the_whole_one(stage, tmp_path):
    """By SIGKILL, so that a checkpoint under way is lost."""

    def start(cell, command, number):
        return subprocess.run(
            [sys.executable, mesh_worker.__file__, str(cell), command, stage, "1x1x1", str(number)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
            },
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
        )

    assert start(tmp_path / "whole", "train", 8).returncode == 0
    # Each further than the one before, so that it is reached from whatever checkpoint is left.
    stops = stream(1, "stops", stage).choice(np.arange(1, 8), 5, replace=False)
    for number in sorted(map(int, stops)):
        done = start(tmp_path / "cut", "die", number)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert start(tmp_path / "cut", "train", 8).returncode == 0
    assert_equal_runs(tmp_path / "cut", tmp_path / "whole")


def test_what_was_saved_comes_back(tmp_path):
    save(tmp_path / "c", 1, 2, identity={"seed": 7})
    found = restore(tmp_path / "c", {"seed": 7})
    np.testing.assert_array_equal(found.state["lora"], STATE["lora"])
    assert (int(found.state["step"]), found.cursor) == (4, {"next_samples": ["s2"]})
    record = json.loads((tmp_path / "c/2/record/metadata").read_text())
    assert record["metrics"] == {"x": 1.0}


def test_without_a_checkpoint_the_state_stays_as_it_is(tmp_path):
    found = restore(tmp_path / "c")
    assert (float(found.state["lora"].sum()), found.cursor) == (0.0, {})


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [8, 9]),
        ({"keep": 1}, [9]),
        ({"keep": 3}, [7, 8, 9]),
        ({"keep": 1, "keep_every": 4}, [4, 8, 9]),
    ],
    ids=str,
)
def test_so_many_are_kept(settings, kept, tmp_path):
    save(tmp_path / "c", *range(1, 10), **settings)
    assert sorted(int(path.name) for path in (tmp_path / "c").iterdir()) == kept


def test_another_identity_is_refused_by_name(tmp_path):
    save(tmp_path / "c", 3, identity={"config": {"kappa": 1.0}})
    with pytest.raises(StaleInputError, match=r"c/3 was made with config\[kappa\]=1.0, now .*=0.5"):
        restore(tmp_path / "c", {"config": {"kappa": 0.5}})


def largest_file(folder):
    files = [path for path in (folder / "state").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def rewrite(folder, **changes):
    path = folder / "record/metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE = {
    "no record": lambda folder: shutil.rmtree(folder / "record"),
    "no state": lambda folder: shutil.rmtree(folder / "state"),
    "empty": lambda folder: [shutil.rmtree(path) for path in folder.iterdir() if path.is_dir()],
    "torn record": lambda folder: (folder / "record/metadata").write_text('{"made_from": '),
    "another record": lambda folder: (folder / "record/metadata").write_text("[1, 2]"),
    "made from a list": lambda folder: rewrite(folder, made_from=[1]),
    "no checksums": lambda folder: rewrite(folder, checksums=None),
    "cursor no object": lambda folder: rewrite(folder, data="s2"),
    "torn array": lambda folder: os.truncate(largest_file(folder), 10),
    "lost array": lambda folder: largest_file(folder).unlink(),
    "flipped bits": lambda folder: flip(largest_file(folder)),
}


def test_damage_is_named_and_the_older_one_offered(tmp_path):
    noise = jnp.asarray(stream(0, "noise").normal(size=(300, 300)), jnp.float32)
    save(tmp_path / "whole", 1, 2, state=STATE | {"lora": noise})
    for name, damage in DAMAGE.items():
        directory = tmp_path / name
        shutil.copytree(tmp_path / "whole", directory)
        damage(directory / "2")
        with pytest.raises(InputError) as caught:
            restore(directory, shape=noise.shape)
        message = str(caught.value)
        assert f"{directory}/2 is damaged or no checkpoint of this program" in message, name
        end = "Delete that folder to go on from the checkpoint of step 1."
        assert message.endswith(end), name
        shutil.rmtree(directory / "2")
        restored = restore(directory, shape=noise.shape)
        np.testing.assert_array_equal(restored.state["lora"], noise, err_msg=name)


def test_a_foreign_folder_is_no_checkpoint(tmp_path):
    (tmp_path / "c/12").mkdir(parents=True)
    (tmp_path / "c/12/pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"c/12 is damaged or no checkpoint .* from the start\.$"):
        restore(tmp_path / "c")


def test_other_numbers_than_were_written_are_found_by_the_checksum(tmp_path):
    """Whole files of another state in its place: nothing but the checksum can tell."""
    save(tmp_path / "c", 2)
    save(tmp_path / "other", 2, state=STATE | {"lora": STATE["lora"] + 1})
    shutil.rmtree(tmp_path / "c/2/state")
    shutil.copytree(tmp_path / "other/2/state", tmp_path / "c/2/state")
    with pytest.raises(InputError, match=r"c/2 is damaged .*lora is not what was written"):
        restore(tmp_path / "c")


def test_a_full_disk_is_said_and_loses_nothing(tmp_path):
    """The limit on a file's size stands for it: the write of the array fails."""
    save(tmp_path / "c", 1)
    noise = jnp.asarray(stream(0, "noise").normal(size=(300, 300)), jnp.float32)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"could not be written .* the checkpoint of step 1\."):
            save(tmp_path / "c", 2, state={"lora": noise, "step": jnp.int32(2)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert restore(tmp_path / "c").cursor == {"next_samples": ["s1"]}
