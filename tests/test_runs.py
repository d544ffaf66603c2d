"""Manifests: finished, resumed, refused; files that are replaced whole."""

import json
import resource
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file

from emodistill import files, runs
from emodistill.configs import JudgeConfig
from emodistill.errors import InputError, StaleInputError
from emodistill.runs import Result
from emodistill.settings import Cell
from emodistill.tensor_files import write_tensors


@pytest.fixture
def run(tmp_path):
    (tmp_path / "data.jsonl").write_text("one\n")
    return tmp_path


def job(run, identity=None, **changes):
    directory = run / "crad" / "judge"
    directory.mkdir(parents=True, exist_ok=True)
    output = directory / "scores.jsonl"
    output.write_text("{}\n")
    arguments = {
        "cell": Cell(JudgeConfig()),
        "name": "judge",
        "directory": directory,
        "output": output,
        "path": output,
        "inputs": runs.input_hashes([run / "data.jsonl"], run),
        "identity": {"judge": "a", "repeats": 1} | (identity or {}),
    }
    return runs.Job(**(arguments | changes))


def begin(run, identity=None, **changes):
    """Whether the stage was finished."""
    return runs.begin_stage(job(run, identity, **changes))


def test_an_unchanged_stage_is_found_as_it_was_left(run):
    assert not begin(run)
    assert not begin(run)
    runs.finish_stage(job(run), Result("all scored", 1.5, {"scored": 3}))
    assert begin(run)
    manifest = runs.read_manifest(run / "crad" / "judge")
    assert (manifest.status, manifest.cost_usd) == ("finished", 1.5)
    assert manifest.summary == {"text": "all scored", "scored": 3}
    assert manifest.inputs == runs.input_hashes([run / "data.jsonl"], run)
    settings = yaml.safe_load((run / "crad/judge/config.yaml").read_text())
    assert set(settings) == {"judge"}


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
    runs.finish_stage(job(run), Result("done"))
    assert not begin(run, {"repeats": 2}, growing=["repeats"])
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


def test_a_manifest_that_vanished_is_named(run):
    with pytest.raises(InputError, match=r"manifest\.json has vanished"):
        runs.finish_stage(job(run), Result("done"))


def test_json_is_replaced_whole(run):
    path = run / "a" / "b.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        files.write_json(path, _circular())
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["b.json"]


def test_writers_of_the_same_file_do_not_meet(tmp_path):
    path = tmp_path / "reference.safetensors"
    tensors = {f"{n}": np.full(5_000, n) for n in range(5)}
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write_tensors, path, tensors) for _ in range(40)]:
            done.result()
    np.testing.assert_array_equal(load_file(path)["4"], np.full(5_000, 4))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_an_error_of_any_kind_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "a") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def _circular():
    value = {}
    value["self"] = value
    return value


def test_what_has_made_nothing_yet_may_change(run):
    output = run / "crad" / "judge" / "sim-judge.jsonl"
    leftover = run / "failures.jsonl"
    begin(run, output=output)
    leftover.touch()
    begin(run, {"judge": "b"}, output=output, leftovers=[leftover])
    assert runs.read_manifest(output.parent).config["judge"] == "b" and not leftover.exists()
    output.write_text("{}\n")
    with pytest.raises(StaleInputError, match="judge='b', now judge='c'"):
        begin(run, {"judge": "c"}, output=output)


def test_tensors_are_written_whole_and_readable_by_others(tmp_path):
    path = tmp_path / "new" / "a.safetensors"
    write_tensors(path, {"a": np.arange(3.0)}, {"key": "value"})
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
        write_tensors(path, {"b": np.ones(3), "a": np.arange(3.0)}, metadata)
        written.add(path.read_bytes())
    assert len(written) == 1
    with safe_open(path, "numpy") as file:
        assert file.metadata() == metadata
        np.testing.assert_array_equal(file.get_tensor("a"), [0, 1, 2])


def test_a_full_disk_keeps_the_old_tensors(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.ones(3)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"a\.safetensors could not be written .*free space"):
            write_tensors(path, {"a": np.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    np.testing.assert_array_equal(load_file(path)["a"], np.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="there such links are just missing files")
def test_a_link_that_leads_in_a_circle_is_refused(tmp_path):
    link = tmp_path / "scores.jsonl"
    link.symlink_to(link)
    with pytest.raises(InputError, match=r"scores\.jsonl is a link that leads in a circle"):
        runs.name_in_run(link, tmp_path)
