"""What comes from outside is bounded, finite and printable, or refused in words."""

import json
import logging
import time

import pytest

from emodistill.errors import InputError
from emodistill.files import write_json
from emodistill.jsonl import JsonlAppender
from emodistill.logs import log_to_file
from emodistill.untrusted import (
    MAX_DEPTH,
    count,
    one_line,
    parse_json,
    parse_toml,
    printable,
    read_json,
    read_typed,
    refuse_links,
    shown,
)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"{", "delimiter|Expecting"),
        (b"\xff\xfe{}", "utf-8"),
        (b"[" * 100_000 + b"]" * 100_000, "nested"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested"),
        (b"9" * 20, "20 digits"),
        (b"-" + b"9" * 5_000, "digits"),
        (b"1e999", "too large"),
        (b"NaN", "no JSON number"),
        (b"[-Infinity]", "no JSON number"),
        (b'"' + b"a" * 100 + b'"', "more than 50 bytes"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_no_honest_sender_needs_is_refused(data, problem):
    with pytest.raises(ValueError, match=problem):
        parse_json(data, max_bytes=50 if b"aaa" in data else 1 << 20)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("A  fact,\tas it is. ", "A  fact,\tas it is. "),
        ("a\nb", "a b"),
        ("\n# a\r\n \n b\n", "# a b"),
        ("a\u2028b\x0bc\x85d\x1ce", "a b c d e"),
        ("a\x1b[2J", "a\ufffd[2J"),
    ],
)
def test_one_line(text, line):
    assert one_line(text) == line


def test_ordinary_values_are_read_as_python_reads_them(tmp_path):
    value = {"a": [1, -2.5, None, True, "é 😀"], "b": {"c": []}, "n": 10**18}
    assert parse_json(json.dumps(value)) == value
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]  # with a byte-order mark
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    path = tmp_path / "value.json"
    path.write_text(json.dumps(value))
    assert read_json(path) == value


def test_a_wide_value_is_no_deep_one():
    assert len(parse_json(json.dumps([{"a": [1]}] * 1_000))) == 1_000


def test_deep_nesting_is_refused_at_once():
    started_s = time.monotonic()
    with pytest.raises(ValueError, match="nested"):
        parse_json(b"[" * 5_000_000)
    assert time.monotonic() - started_s < 5


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\ufffd[31mb"),
        ("half \ud83d pair", "half \ufffd pair"),
        ("right\u202eleft", "right\ufffdleft"),
        ("a\u2066b\u200fc\u061cd", "a\ufffdb\ufffdc\ufffdd"),
        ("bell\x07, next line\x85, csi\x9b", "bell\ufffd, next line\ufffd, csi\ufffd"),
        ("tab\tand\r\nlines\nstay, as do é and 😀", "tab\tand\nlines\nstay, as do é and 😀"),
    ],
)
def test_text_that_a_terminal_would_obey_is_replaced(text, shown):
    assert printable(text) == shown
    printable(text).encode()  # raises where a half pair is left


@pytest.mark.parametrize(
    ("value", "read"),
    [
        *((12, 12), (12.0, 12), (0, 0), (-1, None), (True, None), ("12", None), (None, None)),
        *((1e300, None), (float("nan"), None), (10**30, None), ([1], None)),
    ],
)
def test_a_count_is_whole_and_not_negative(value, read):
    assert count(value) == read


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a = 2020-01-01", "is a date"),
        ("a = 12:30:00", "is a time"),
        ("a = nan", "number nan"),
        ("a = 1e999", "too large"),
        ("a = " + "9" * 30, "more than 19 digits"),
        ("a = " + "9" * 5_000, "digits"),
        ("a = " + "[" * 3_000, "nested"),
        ("a" + ".a" * 100 + " = 1", "nested"),
        ("a" + ".a" * 50_000 + " = 1", "dots"),  # 4 GB in Python's own parser
        ("a = 'b" + "b" * (1 << 17) + "'", "bytes"),
    ],
    ids=lambda value: value[:12],
)
def test_toml_beyond_plain_values_is_refused(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse_toml(text)


def test_half_a_surrogate_pair_can_be_written_again():
    assert parse_json(r'{"a": ["\ud83d", "\ud83d\ude00"]}') == {"a": ["\ufffd", "😀"]}


def test_what_is_shown_of_a_value_is_short():
    assert len(shown("x" * 10_000)) < 210 and len(shown([["\x1b"] * 9_999])) < 210
    assert shown({"a": 1}) == "{'a': 1}"


@pytest.mark.parametrize("content", [b"[]", b"null", b'{"a": "1"}', b"\xff", b"", b"[" * 9_999])
def test_a_typed_file_is_refused_in_words(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json can't be read \(.*Do this\.") as refused:
        read_typed(path, dict[str, int], "Do this.")
    assert len(str(refused.value)) < 500


def test_nothing_is_written_through_a_symbolic_link(tmp_path):
    target = tmp_path / "bashrc"
    target.write_text("mine\n")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("a.jsonl", ".b.jsonl.lock", "c.json", "stage.log"):
        (run / name).symlink_to(target)
    with pytest.raises(InputError, match="is a symbolic link"):
        JsonlAppender(run / "a.jsonl")
    with JsonlAppender(run / "b.jsonl"):  # whose note of who writes stays unwritten
        pass
    write_json(run / "c.json", {"a": 1})  # takes the link's place
    with log_to_file(run / "stage.log"):
        logging.getLogger("emodistill").warning("a line")
    assert target.read_text() == "mine\n" and not (run / "c.json").is_symlink()


def test_linked_folders_within_a_run_are_refused_and_a_linked_run_is_not(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "crad" / "sweep").mkdir(parents=True)
    (tmp_path / "run").symlink_to(elsewhere)
    refuse_links(tmp_path / "run" / "crad" / "sweep", tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "crad").symlink_to(elsewhere / "crad")
    with pytest.raises(InputError, match=r"other/crad is a symbolic link"):
        refuse_links(tmp_path / "other" / "crad" / "sweep", tmp_path / "other")
    (elsewhere / "crad" / "sweep" / "checkpoints").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"checkpoints is a symbolic link"):
        refuse_links(elsewhere / "crad" / "sweep", elsewhere)
