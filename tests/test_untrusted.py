"""What comes from outside is bounded, finite and printable, or refused in words."""

import json
import time

import pytest

from emodistill.untrusted import MAX_DEPTH, count, one_line, parse_json, printable, read_json


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
