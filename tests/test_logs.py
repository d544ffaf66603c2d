"""A stage's log: lines of JSON with the faults that were met, and never a key."""

import json
import logging

from emodistill.logs import fields, log_to_file

log = logging.getLogger("emodistill.test")


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_the_message_and_what_the_caller_names(tmp_path):
    path = tmp_path / "stage.log"
    with log_to_file(path):
        log.debug("It was %s.", "limited", extra=fields(event="fault", status=429, key=None))
    (line,) = lines_of(path)
    assert line["message"] == "It was limited." and line["level"] == "DEBUG"
    assert (line["event"], line["status"]) == ("fault", 429) and "key" not in line
    assert line["time"].endswith("Z")


def test_it_grows_and_ends_with_the_block(tmp_path):
    path = tmp_path / "stage.log"
    before = logging.getLogger("emodistill").level
    for word in ("one", "two"):
        with log_to_file(path):
            log.info(word)
    log.warning("outside")
    assert [line["message"] for line in lines_of(path)] == ["one", "two"]
    assert logging.getLogger("emodistill").level == before


def test_without_a_line_there_is_no_file(tmp_path):
    with log_to_file(tmp_path / "stage.log"):
        logging.getLogger("another").warning("not ours")
    assert not (tmp_path / "stage.log").exists()


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path, capsys):
    with log_to_file(tmp_path / "nowhere" / "stage.log"):
        log.warning("lost")
    assert "Traceback" not in capsys.readouterr().err


def test_half_a_surrogate_pair_does_not_silence_what_comes_after(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger("emodistill"), "propagate", False)  # to pytest's own
    path = tmp_path / "stage.log"
    with log_to_file(path):
        log.warning("half \ud83d")
        log.warning("whole")
    assert [line["message"] for line in lines_of(path)] == ["half \ud83d", "whole"]
