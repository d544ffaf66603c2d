"""The data set's files: whole lines, torn lines, one writer, full disks, duplicates."""

import errno
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys

import pytest
from builders import JUDGEMENT, SCENARIO, TRAJECTORY

from emodistill import jsonl
from emodistill.errors import InputError
from emodistill.jsonl import JsonlAppender
from emodistill.offline import store
from emodistill.train.metrics_log import MetricsLog

LONG = 1 << 16
"""Of a line, in characters: far more than a dialogue has."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sweep" / "trajectories.jsonl"


def line_of(name):
    return json.dumps(TRAJECTORY.to_json() | {"trajectory_id": name})


def test_records_come_back_as_they_were_written(tmp_path):
    for record, read in (
        (TRAJECTORY, store.read_trajectories),
        (JUDGEMENT, store.read_judgements),
        (SCENARIO, store.read_scenarios),
    ):
        path = tmp_path / "x" / f"{type(record).__name__}.jsonl"
        with JsonlAppender(path) as lines:
            lines.append(record)
        assert read(path) == [record]


def test_scenarios_are_written_whole_and_replaced(tmp_path):
    path = tmp_path / "sweep" / "scenarios.jsonl"
    store.write_records(path, [SCENARIO, SCENARIO])
    store.write_records(path, [SCENARIO])
    assert store.read_scenarios(path) == [SCENARIO]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_appending_goes_on_where_it_ended(path):
    for number in range(3):
        with JsonlAppender(path) as lines:
            lines.append({"n": number, "text": "naïve \u2028 line\u0085break\n and 😀"})
    values = [line.value for line in jsonl.read_lines(path)]
    assert [value["n"] for value in values] == [0, 1, 2]
    assert values[0]["text"] == "naïve \u2028 line\u0085break\n and 😀"
    assert path.read_bytes().count(b"\n") == 3


def test_a_line_is_in_the_file_as_soon_as_it_is_appended(path):
    with JsonlAppender(path) as lines:
        lines.append({"n": 1})
        assert path.read_text() == '{"n": 1}\n'


@pytest.mark.parametrize("cut", [1, 20, 300])
def test_a_torn_last_line_is_cut_off(path, caplog, cut):
    path.parent.mkdir()
    whole = line_of("a") + "\n"
    path.write_text(whole + line_of("b")[:cut])
    with caplog.at_level(logging.WARNING), JsonlAppender(path):
        assert path.read_text() == whole
    assert f"torn last line of {cut} bytes" in caplog.text


def test_a_long_torn_only_line_is_cut_off(path):
    path.parent.mkdir()
    path.write_text('{"text": "' + "x" * (3 * LONG))
    JsonlAppender(path).close()
    assert path.read_bytes() == b""


def test_long_whole_lines_before_a_torn_one_are_kept(path):
    path.parent.mkdir()
    whole = json.dumps({"text": "x" * 2 * LONG}) + "\n"
    path.write_text(whole + '{"text": "' + "y" * 2 * LONG)
    JsonlAppender(path).close()
    assert path.read_text() == whole


def test_a_whole_last_line_without_newline_is_kept(path):
    path.parent.mkdir()
    path.write_text(line_of("a") + "\n" + line_of("b"))
    assert len(store.read_trajectories(path)) == 2
    with JsonlAppender(path) as lines:
        lines.append(json.loads(line_of("c")))
    assert [t.trajectory_id for t in store.read_trajectories(path)] == ["a", "b", "c"]


def test_a_reader_refuses_a_torn_line_and_says_what_to_do(path):
    path.parent.mkdir()
    path.write_text(line_of("a") + "\n" + line_of("b")[:50])
    with pytest.raises(InputError, match=r"trajectories\.jsonl:2: the last line is cut off"):
        store.read_trajectories(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}\n{nope}\n", r":2: not valid JSON"),
        ('{}\n\n{"a": NaN}\n', r":3: not valid JSON \(NaN"),
        (b"{}\n\xff\n", r":2: not valid JSON"),
    ],
)
def test_broken_lines_are_named(path, text, words):
    path.parent.mkdir()
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=words):
        list(jsonl.read_lines(path))


def test_a_missing_file_is_named(path):
    with pytest.raises(InputError, match=r"trajectories\.jsonl is missing"):
        store.read_trajectories(path)


def test_an_id_that_comes_twice_names_both_places(path):
    path.parent.mkdir()
    path.write_text(f"{line_of('a')}\n{line_of('b')}\n{line_of('a')}\n")
    with pytest.raises(InputError, match=r"jsonl:3: trajectory_id 'a' was in .*jsonl:1"):
        store.read_trajectories(path)


def test_an_unknown_schema_names_the_line(path):
    path.parent.mkdir()
    path.write_text(line_of("a") + "\n" + json.dumps(TRAJECTORY.to_json() | {"schema": 2}) + "\n")
    with pytest.raises(InputError, match=r"jsonl:2: schema=2 is not known"):
        store.read_trajectories(path)


def test_one_writer_at_a_time_and_its_process_is_named(path):
    with (
        JsonlAppender(path),
        pytest.raises(InputError, match=rf"being written by process {os.getpid()} on"),
    ):
        JsonlAppender(path)
    JsonlAppender(path).close()


def hidden(path):
    return path.with_name(f".{path.name}.lock")


def test_deleting_the_hidden_file_lets_no_second_writer_in(path):
    with JsonlAppender(path) as lines:
        hidden(path).unlink()
        with pytest.raises(InputError, match="being written by another process"):
            JsonlAppender(path)
        lines.append({"n": 1})
    with JsonlAppender(path):
        assert hidden(path).read_text(encoding="utf-8").startswith(f"process {os.getpid()} on ")


def test_a_hidden_file_that_can_not_be_written_is_no_obstacle(path):
    hidden(path).mkdir(parents=True)  # stands in for another user's: root may write anywhere
    with (
        JsonlAppender(path) as lines,
        pytest.raises(InputError, match="being written by another process"),
    ):
        lines.append({"n": 1})
        JsonlAppender(path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_warned_of(path, number, monkeypatch, caplog):
    def flock(fd, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with JsonlAppender(path) as lines:
        lines.append({"n": 1})
        with JsonlAppender(path) as other:
            other.append({"n": 2})
        with pytest.raises(InputError, match="was changed by something else"):
            lines.append({"n": 3})
    assert f"has no locks ({os.strerror(number)})" in caplog.text
    assert [line.value["n"] for line in jsonl.read_lines(path)] == [1, 2]


def test_another_trouble_of_locking_is_told_as_it_is(path, monkeypatch):
    def flock(fd, how):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match=r"Input/output error: .*trajectories\.jsonl"):
        JsonlAppender(path)


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: shutil.rmtree(path.parent),
        lambda path: path.parent.rename(path.parent.with_name("elsewhere")),
        lambda path: store.write_records(path, [SCENARIO]),
    ],
    ids=["deleted", "folder deleted", "folder moved", "replaced"],
)
def test_a_file_that_goes_away_under_its_writer_is_noticed_at_once(path, harm, monkeypatch):
    monkeypatch.setattr(jsonl, "SYNC_EVERY_S", 0.0)  # what was moved is looked for that often
    with JsonlAppender(path) as lines:
        lines.append({"n": 1})
        harm(path)
        with pytest.raises(
            InputError, match=r"was deleted or moved .* 9 bytes, among them the 1 l"
        ):
            lines.append({"n": 2})


def test_a_deleted_file_is_noticed_between_two_looks(path):
    with JsonlAppender(path) as lines:
        path.unlink()
        with pytest.raises(InputError, match="was deleted or moved"):
            lines.append({"n": 1})


def test_a_file_deleted_between_opening_and_locking_is_opened_again(path, monkeypatch):
    flock = fcntl.flock
    path.parent.mkdir()

    def delete_once(fd, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", delete_once)
    with JsonlAppender(path) as lines:
        lines.append({"n": 1})
    assert path.read_bytes() == b'{"n": 1}\n'


def test_metrics_that_go_away_under_a_training_are_noticed(tmp_path):
    with MetricsLog(tmp_path / "cell", num_steps=0) as log:
        log.write(1, {"a": 1.0})
        shutil.rmtree(tmp_path / "cell")
        with pytest.raises(InputError, match=r"deleted or moved .* before step 2\."):
            log.write(2, {"a": 1.0})


def test_a_dead_writer_holds_no_lock(path):
    code = (
        "import os, pathlib, sys; from emodistill.jsonl import JsonlAppender;"
        "lines = JsonlAppender(pathlib.Path(sys.argv[1])); lines.append({'n': 1});"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    with JsonlAppender(path) as lines:
        lines.append({"n": 2})
    assert [line.value["n"] for line in jsonl.read_lines(path)] == [1, 2]


def test_what_json_has_no_word_for_is_not_written(path):
    with JsonlAppender(path) as lines:
        with pytest.raises(ValueError):
            lines.append({"x": float("nan")})
        lines.append({"x": 1})
    assert path.read_text() == '{"x": 1}\n'


def test_a_full_disk_leaves_whole_lines_only(path):
    """A file size limit stands in for the disk: the kernel then writes a part and refuses more."""
    code = """
import pathlib, resource, signal, sys
from emodistill.errors import InputError
from emodistill.jsonl import JsonlAppender
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
lines = JsonlAppender(pathlib.Path(sys.argv[1]))
try:
    for _ in range(10):
        lines.append({"text": "x" * 300})
except InputError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert "no room left on the disk" in done.stdout
    assert len(list(jsonl.read_lines(path))) == 3
    assert path.read_bytes().endswith(b"\n")
