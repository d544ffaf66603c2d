"""Manifests: finished, resumed, refused; cells; atomic JSON."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from emodistill import runs
from emodistill.errors import InputError, StaleInputError


@pytest.fixture
def run(tmp_path):
    (tmp_path / "data.jsonl").write_text("one\n")
    return tmp_path


def begin(run, config=None, **changes):
    arguments = {
        "stage": "judge",
        "config": {"judge": "a", "repeats": 1} | (config or {}),
        "seed": 0,
        "inputs": runs.input_hashes([run / "data.jsonl"], run),
    }
    return runs.begin_stage(run / "crad" / "judge", **(arguments | changes))


def test_an_unchanged_stage_is_found_as_it_was_left(run):
    assert not begin(run).is_finished
    assert not begin(run).is_finished
    runs.finish_stage(run / "crad" / "judge", cost_usd=1.5, summary={"scored": 3})
    found = begin(run)
    assert found.is_finished
    assert (found.cost_usd, found.summary) == (1.5, {"scored": 3})
    assert found.inputs == {"data.jsonl": runs.file_sha256(run / "data.jsonl")}


def test_a_changed_input_is_refused_by_name(run):
    begin(run)
    (run / "data.jsonl").write_text("two\n")
    with pytest.raises(StaleInputError, match=r"data\.jsonl has changed"):
        begin(run)


def test_an_added_or_vanished_input_is_a_change(run):
    (run / "more.jsonl").write_text("x")
    begin(run)
    with pytest.raises(StaleInputError, match=r"more\.jsonl"):
        begin(run, inputs=runs.input_hashes([run / "data.jsonl", run / "more.jsonl"], run))


def test_a_changed_setting_is_refused_unless_it_may_grow(run):
    begin(run)
    with pytest.raises(StaleInputError, match="repeats=1, now repeats=2"):
        begin(run, {"repeats": 2})
    runs.finish_stage(run / "crad" / "judge")
    grown = begin(run, {"repeats": 2}, growing=["repeats"])
    assert not grown.is_finished
    assert grown.config["repeats"] == 2
    assert runs.read_manifest(run / "crad" / "judge").config["repeats"] == 2


def test_ready_made_hashes_are_inputs_too(run):
    begin(run, inputs={"prompt pack": "aa"})
    with pytest.raises(StaleInputError, match="prompt pack has changed"):
        begin(run, inputs={"prompt pack": "bb"})


def test_a_missing_input_is_named(run):
    with pytest.raises(InputError, match=r"absent\.jsonl is missing"):
        runs.input_hashes([run / "absent.jsonl"], run)


def test_a_torn_manifest_is_named(run):
    begin(run)
    (run / "crad" / "judge" / runs.MANIFEST).write_text('{"stage": "jud')
    with pytest.raises(InputError, match=r"manifest\.json can't be read"):
        begin(run)


def test_finish_needs_a_begun_stage(run):
    with pytest.raises(InputError, match="begin_stage"):
        runs.finish_stage(run / "nowhere")


def test_cells_are_named_after_what_differs():
    defaults = {"kappa": 1.0, "clip": 0.2}
    assert runs.cell_name(defaults, defaults) == "default"
    name = runs.cell_name({"kappa": 0.5, "clip": 0.2}, defaults)
    assert name.startswith("kappa=0.5-")
    assert name != runs.cell_name({"kappa": 0.25, "clip": 0.2}, defaults)
    assert name == runs.cell_name({"clip": 0.2, "kappa": 0.5}, defaults)
    assert "/" not in runs.cell_name({"model": "/models/x"}, {"model": "embedded"})


def test_json_is_replaced_whole(run):
    path = run / "a" / "b.json"
    runs.write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        runs.write_json(path, _circular())
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["b.json"]


def test_writers_of_the_same_file_do_not_meet(tmp_path):
    path = tmp_path / "reference.safetensors"
    tensors = {f"{n}": np.full(5_000, n) for n in range(5)}
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(runs.write_tensors, path, tensors) for _ in range(40)]:
            done.result()
    np.testing.assert_array_equal(load_file(path)["4"], np.full(5_000, 4))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_an_error_of_any_kind_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), runs.replacing(tmp_path / "a") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def _circular():
    value = {}
    value["self"] = value
    return value


def test_what_has_made_nothing_yet_may_change(run):
    output = run / "crad" / "judge" / "sim-judge.jsonl"
    begin(run, output=output)
    assert begin(run, {"judge": "b"}, output=output).config["judge"] == "b"
    output.write_text("{}\n")
    with pytest.raises(StaleInputError, match="judge='b', now judge='c'"):
        begin(run, {"judge": "c"}, output=output)


def test_tensors_are_written_whole_and_readable_by_others(tmp_path):
    path = tmp_path / "new" / "a.safetensors"
    runs.write_tensors(path, {"a": np.arange(3.0)}, {"key": "value"})
    np.testing.assert_array_equal(load_file(path)["a"], [0, 1, 2])
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def test_equal_tensors_give_equal_bytes(tmp_path):
    """The library writes metadata in another order from one call to the next."""
    metadata = {
        name: f"π {name}" for name in ["format", "base", "key", "seed", "model", "made_from"]
    }
    written = set()
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        runs.write_tensors(path, {"b": np.ones(3), "a": np.arange(3.0)}, metadata)
        written.add(path.read_bytes())
    assert len(written) == 1
    with safe_open(path, "numpy") as file:
        assert file.metadata() == metadata
        np.testing.assert_array_equal(file.get_tensor("a"), [0, 1, 2])


FULL_DISK = """
import pathlib, resource, signal, sys
import numpy as np
from emodistill import cli, runs
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
cli.run(lambda: runs.write_tensors(pathlib.Path(sys.argv[1]), {"a": np.zeros(10_000)}))
"""


def test_a_full_disk_keeps_the_old_tensors(tmp_path):
    path = tmp_path / "a.safetensors"
    runs.write_tensors(path, {"a": np.ones(3)})
    failed = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=120
    )
    assert failed.returncode == 2
    assert "a.safetensors could not be written" in failed.stderr
    assert "free space or rights" in failed.stderr and "Traceback" not in failed.stderr
    np.testing.assert_array_equal(load_file(path)["a"], np.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
