"""One line of a table back into its cells, where commas inside text were not quoted.

The tables' convention is that a comma followed by a space belongs to a text, and a comma without
one ends a cell. A line that keeps to it has one reading. Otherwise what is certain decides:
numbers, clock times, words from a closed list and quoted cells can only stand in their own
columns. A reading may depart from the convention only where such a cell borders on the place (and a
cell that starts after a comma and a space starts with a capital), or inside a text with such
cells on both sides; the reading with the fewest departures is taken if it is the only one.
Anything else is no reading: a cell is never moved to another column on a guess.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["text", "word", "speech", "figure", "number", "clock", "choice"]
"""text: anything; word: no comma inside; speech: a text in quotation marks; figure: a number or
date that only informs; number, clock: needed to play, or a stated absence; choice: a closed list.
"""

_TOKEN = re.compile(r'[ \t]*"((?:[^"]|"")*)"[ \t]*(?=,|$)|([^,]*)')
_OPENING_QUOTES = ("“", "„", "«", '"', "‘")
_CLOCK = re.compile(r"(\d{1,2})(?::(\d{2}))?\s*([ap])\.?\s*m\.?", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_ABSENT = re.compile(
    r"(n/?a\b|not (applicable|available|known|stated|specified|set|sure)\b|none\b|unknown\b|"
    r"nil\b|null\b|variable\b|varies\b|undetermined\b|undecided\b|uncertain\b|unclear\b|"
    r"flexible\b|indefinite|tbd\b|tba\b|depends\b|[-–—?]*$)",
    re.IGNORECASE,
)
_MAX_TOKENS_PER_COLUMN = 20
_FIGURE = re.compile(r"[-+]?[$€£]?\d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table; `choices` (lower case) belong to kind `choice`.

    Where given, each text of the column is known to hold one of `words` (beginnings of words).
    """

    name: str
    kind: Kind
    choices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def fits(self, text: str, *, is_quoted: bool = False) -> bool:
        """Whether `text` can be a cell of this column."""
        match self.kind:
            case "word":
                return is_quoted or "," not in text
            case "figure":
                return is_quoted or "," not in text or read_number(text) is not None
            case "number":
                return read_number(text) is not None or is_absent(text)
            case "clock":
                return read_clock(text) is not None or is_absent(text)
            case "choice":
                return re.sub(r"\s*\(.*", "", text).strip().lower() in self.choices
            case "speech":
                return "“" not in text or text.startswith(_OPENING_QUOTES)
        return True

    def pins(self, text: str) -> bool:
        """Whether this cell's borders are certain from what stands in it."""
        match self.kind:
            case "text":
                return False
            case "speech":
                return text.startswith(_OPENING_QUOTES)
            case "figure":
                return _FIGURE.match(text) is not None
        return True

    def speaks(self, text: str) -> bool:
        """Whether one of the column's `words` stands in `text`."""
        return any(re.search(rf"\b{word}", text, re.IGNORECASE) for word in self.words)


def read_number(text: str) -> float | None:
    """A plain number that is not negative, thousands separators allowed; else None."""
    return float(text.replace(",", "")) if _NUMBER.fullmatch(text.strip()) else None


def read_clock(text: str) -> float | None:
    """The hour of the day, in [0, 24), of "10:30 PM", "1 am" or "midnight"; else None.

    A remark in brackets may follow ("1 AM (at most)") if it holds no other number.
    """
    words = re.sub(r"\s*\([^()\d]*\)$", "", text.strip().lower())
    if words in ("midnight", "noon"):
        return {"midnight": 0.0, "noon": 12.0}[words]
    if not (found := _CLOCK.fullmatch(words)):
        return None
    hour, minute = int(found[1]), int(found[2] or 0)
    if not (1 <= hour <= 12 and minute < 60):
        return None
    return hour % 12 + minute / 60 + (12 if found[3] == "p" else 0)


def is_absent(text: str) -> bool:
    """Whether a cell says that it has no value ("N/A (…)", "Variable", "", "-")."""
    return _ABSENT.match(text.strip()) is not None


class _Token(NamedTuple):
    """What stands between two commas; `is_quoted`: its double quotes make it a whole cell."""

    text: str
    is_quoted: bool
    is_inside: bool
    """The comma before it stands between “ and ”."""

    @property
    def is_continuation(self) -> bool:
        """By convention no border: a space follows the comma, or quotation marks enclose it."""
        return self.is_inside or (not self.is_quoted and self.text[:1].isspace())


def _tokens(line: str) -> list[_Token]:
    tokens: list[_Token] = []
    place = depth = 0
    while True:
        found = _TOKEN.match(line, place)
        assert found is not None  # the second alternative matches anywhere
        is_quoted = found[1] is not None
        text = found[1].replace('""', '"') if is_quoted else found[2]
        tokens.append(_Token(text, is_quoted, depth > 0))
        if not is_quoted:
            depth = max(0, depth + text.count("“") - text.count("”"))
        if found.end() >= len(line):
            return tokens
        place = found.end() + 1


def conventional_cells(line: str) -> list[str]:
    """The cells of a line under the convention alone."""
    cells: list[str] = []
    was_quoted = True
    for token in _tokens(line):
        if cells and token.is_continuation and not was_quoted:
            cells[-1] += "," + token.text
        else:
            cells.append(token.text)
        was_quoted = token.is_quoted
    return [cell.strip() for cell in cells]


def plain_cells(line: str) -> list[str]:
    """The cells of a line in which every comma outside quotes ends a cell."""
    return [token.text.strip() for token in _tokens(line)]


def read_cells(line: str, columns: Sequence[Column]) -> list[str] | None:
    """The cells of `line`, one per column; None where it has no reading, or several as good."""
    tokens = _tokens(line)
    while len(tokens) > len(columns) and not tokens[-1].text.strip():
        tokens.pop()  # empty cells that a spreadsheet adds at the end
    if len(tokens) > _MAX_TOKENS_PER_COLUMN * len(columns):
        return None  # no row of a table; trying its readings would take minutes
    return _reading(tuple(tokens), tuple(columns))


def _reading(tokens: tuple[_Token, ...], columns: tuple[Column, ...]) -> list[str] | None:
    def cell(start: int, stop: int) -> str | None:
        if stop - start > 1 and any(token.is_quoted for token in tokens[start:stop]):
            return None
        return ",".join(token.text for token in tokens[start:stop]).strip()

    @functools.cache
    def best(column: int, start: int, is_pinned: bool) -> tuple[int, int, tuple[str, ...]] | None:
        """(departures, how many readings have so few, one of them) from `start` on."""
        if column == len(columns):
            return (0, 1, ()) if start == len(tokens) else None
        fewest: tuple[int, int, tuple[str, ...]] | None = None
        last = len(tokens) - (len(columns) - column - 1)
        for stop in range(start + 1, last + 1):
            text = cell(start, stop)
            is_quoted = tokens[start].is_quoted
            if text is None or not columns[column].fits(text, is_quoted=is_quoted):
                continue
            pins = columns[column].pins(text) or is_quoted
            departs = start > 0 and tokens[start].is_continuation
            if departs and (text[:1].islower() or not (pins or is_pinned)):
                continue
            rest = best(column + 1, stop, pins)
            if rest is None:
                continue
            merged = sum(not token.is_continuation for token in tokens[start + 1 : stop])
            cost = departs + merged + rest[0]
            if fewest is None or cost < fewest[0]:
                fewest = (cost, rest[1], (text, *rest[2]))
            elif cost == fewest[0]:
                fewest = (cost, fewest[1] + rest[1], fewest[2])
        return fewest

    found = best(0, 0, True)
    return list(found[2]) if found is not None and found[1] == 1 else None
