"""One line of a table back into its cells, where commas inside text were not quoted.

The tables' convention is that a comma followed by a space belongs to a text, and a comma without
one ends a cell. A line that keeps to it has one reading. Otherwise what is certain decides:
numbers, clock times, words from a closed list and quoted cells can only stand in their own
columns. A reading may depart from the convention only at a comma that borders on such a cell (and a
cell that starts after a comma and a space starts with a capital), or inside a text with such
cells on both sides; the reading with the fewest departures counts if it is the only one.
Anything else is no reading: a cell is never moved to another column on a guess.

Where nothing but the borders between neighbouring texts is uncertain, `read_joined` gives these
texts as one.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
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
# A cell that says that it has no value: "N/A (…)", "Variable", "", "-".
_ABSENT = re.compile(
    r"(n/?a\b|not (applicable|available|known|stated|specified|set|sure)\b|none\b|unknown\b|"
    r"nil\b|null\b|variable\b|varies\b|undetermined\b|undecided\b|uncertain\b|unclear\b|"
    r"flexible\b|indefinite|tbd\b|tba\b|depends\b|[-–—?]*$)",
    re.IGNORECASE,
)
# A line with more commas is no row of a table; trying its readings would take minutes.
_MAX_TOKENS_PER_COLUMN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvColumn:
    """A column of a published table.

    Attributes:
      choices: the closed list (lower case) of kind `choice`.
      words: where given, each text of the column is known to hold one of them (their beginnings).
      field: the name of a scenario's field that the column gives, if it gives one.
      number: the name of a number of the game that it gives, if it gives one.
    """

    name: str
    kind: Kind
    choices: Sequence[str] = ()
    words: Sequence[str] = ()
    field: str = ""
    number: str = ""

    @property
    def is_open(self) -> bool:
        """Whether nothing that stands in a cell proves that it is this column's."""
        return self.kind in ("text", "word", "speech")

    @property
    def is_needed(self) -> bool:
        """Whether a scenario can't be made without it."""
        return bool(self.field or self.number)

    def fits(self, text: str, *, is_quoted: bool = False) -> bool:
        """Whether `text` can be a cell of this column."""
        match self.kind:
            case "word":
                return is_quoted or "," not in text
            case "figure":
                return is_quoted or "," not in text or read_number(text) is not None
            case "number" | "clock":
                return self.read(text) is not None or _ABSENT.match(text.strip()) is not None
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
                return re.match(r"[-+]?[$€£]?\d", text) is not None
        return True

    def read(self, text: str) -> float | None:
        """The number or hour of the day in a cell of kind `number` or `clock`; else None."""
        return read_clock(text) if self.kind == "clock" else read_number(text)

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
    if not (match := _CLOCK.fullmatch(words)):
        return None
    hour, minute = int(match[1]), int(match[2] or 0)
    if not (1 <= hour <= 12 and minute < 60):
        return None
    return hour % 12 + minute / 60 + (12 if match[3] == "p" else 0)


class _Token(NamedTuple):
    """What stands between two commas.

    `is_quoted`: its double quotes make it a whole cell; `is_continuation`: by convention the comma
    before it is no border, as a space follows or “ and ” enclose it.
    """

    text: str
    is_quoted: bool
    is_continuation: bool


def _tokens(line: str) -> list[_Token]:
    tokens: list[_Token] = []
    start = depth = 0
    while True:
        match = _TOKEN.match(line, start)
        assert match is not None  # the second alternative matches anywhere
        is_quoted = match[1] is not None
        text = match[1].replace('""', '"') if is_quoted else match[2]
        is_continuation = depth > 0 or (not is_quoted and text[:1].isspace())
        tokens.append(_Token(text, is_quoted, is_continuation))
        if not is_quoted:
            depth = max(0, depth + text.count("“") - text.count("”"))
        if match.end() >= len(line):
            return tokens
        start = match.end() + 1


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


def read_cells(line: str, columns: Sequence[CsvColumn]) -> list[str] | None:
    """The cells of `line`, one per column; None where it has no reading, or several as good."""
    tokens = _row_tokens(line, len(columns))

    @functools.cache
    def best(column: int, start: int, is_pinned: bool) -> list[tuple[int, tuple[str, ...]]]:
        """The readings of columns and tokens from `column` and `start` on, best ones only.

        Each is its departures from the convention and its cells. Two are enough to know that there
        is no single one. `is_pinned`: whether the border before `start` is certain.
        """
        if column == len(columns):
            return [(0, ())] if start == len(tokens) else []
        readings: list[tuple[int, tuple[str, ...]]] = []
        for stop in range(start + 1, len(tokens) - len(columns) + column + 2):
            of_cell = tokens[start:stop]
            is_quoted = any(token.is_quoted for token in of_cell)
            if is_quoted and len(of_cell) > 1:
                break
            text = _text(of_cell)
            if not columns[column].fits(text, is_quoted=is_quoted):
                continue
            pins = columns[column].pins(text) or is_quoted
            departs = start > 0 and of_cell[0].is_continuation
            if departs and (text[:1].islower() or not (pins or is_pinned)):
                continue
            merged = sum(not token.is_continuation for token in of_cell[1:])
            for num_departures, cells in best(column + 1, stop, pins):
                readings.append((departs + merged + num_departures, (text, *cells)))
        fewest = min(num_departures for num_departures, _ in readings) if readings else 0
        return [reading for reading in readings if reading[0] == fewest][:2]

    readings = best(0, 0, True) if tokens else []
    return list(readings[0][1]) if len(readings) == 1 else None


class JoinedCells(NamedTuple):
    """The cells of a line, one per column, some of which hold the text of several columns."""

    cells: list[str]
    joined: list[list[str]]
    """The columns whose texts can't be told apart: one of them holds the text of them all, commas
    included, and the others are empty."""


def read_joined(
    line: str, columns: Sequence[CsvColumn], *, optional: str | None = None
) -> JoinedCells | None:
    """The cells of `line` where no more than borders between neighbouring texts are uncertain.

    Neighbouring columns of texts are read as one column, whose borders to all others must be
    certain: there has to be one reading of the others, whatever it departs from. Within such a run
    the texts at both ends that can't be but their columns' own are kept apart.

    Args:
      optional: a column that rows may lack.
    """
    if line.count('"') % 2:  # who knows where that cell was meant to end?
        return None
    tokens = _row_tokens(line, len(columns))
    groups = [
        list(group)
        for is_open, same in itertools.groupby(columns, key=lambda column: column.is_open)
        for group in ([[*same]] if is_open else ([column] for column in same))
    ]

    @functools.cache
    def readings(number: int, start: int) -> list[tuple[int, ...]]:
        """Where each group from `number` on stops, the first beginning at `start`; two at most."""
        if number == len(groups):
            return [()] if start == len(tokens) else []
        found: list[tuple[int, ...]] = []
        for stop in range(start + 1, len(tokens) - len(groups) + number + 2):
            if _is_certain(groups[number], tokens[start:stop]):
                found += ((stop, *stops) for stops in readings(number + 1, stop))
            if len(found) > 1:
                break
        return found[:2]

    if not tokens or len(all_stops := readings(0, 0)) != 1:
        return None
    cells: list[str] = []
    joined: list[list[str]] = []
    start = 0
    for group, stop in zip(groups, all_stops[0], strict=True):
        of_group, uncertain = _apart(group, tokens[start:stop], optional)
        cells += of_group
        joined += [uncertain] if uncertain else []
        start = stop
    return JoinedCells(cells, joined)


def _row_tokens(line: str, num_columns: int) -> list[_Token]:
    """The tokens of a row; none for a line that is too long to be one."""
    tokens = _tokens(line)
    while len(tokens) > num_columns and not tokens[-1].text.strip():
        tokens.pop()  # empty cells that a spreadsheet adds at the end
    return tokens if len(tokens) <= _MAX_TOKENS_PER_COLUMN * num_columns else []


def _text(tokens: Sequence[_Token]) -> str:
    return ",".join(token.text for token in tokens).strip()


def _is_certain(group: Sequence[CsvColumn], tokens: Sequence[_Token]) -> bool:
    """Whether the tokens can be all that stands in these columns, several of which are texts."""
    if len(group) > 1:
        return True
    (column,) = group
    is_quoted = any(token.is_quoted for token in tokens)
    text = _text(tokens)
    if (is_quoted and len(tokens) > 1) or not column.fits(text, is_quoted=is_quoted):
        return False
    # A figure that only informs might be any word; here nothing else would say where it stands.
    return column.kind != "figure" or not text or column.pins(text)


def _apart(
    group: Sequence[CsvColumn], tokens: Sequence[_Token], optional: str | None
) -> tuple[list[str], list[str]]:
    """The cells of neighbouring columns, and the names of those whose texts stand in one cell."""
    texts = [*_chunks(tokens)]
    if len(texts) == len(group):
        cells = [_text(text) for text in texts]
        if all(column.fits(cell) for column, cell in zip(group, cells, strict=True)):
            return cells, []
    is_short = len(texts) < len(group)
    is_whole = optional is None and len(tokens) >= len(group)  # no text is missing

    def stands_alone(column: CsvColumn, text: list[_Token]) -> bool:
        """Whether the outermost text is that of the outermost column and of no other."""
        if is_short:  # a text holds those of several columns, or a column has none
            is_spoken = column.name != optional and column.speaks(_text(text))
            return is_spoken or (is_whole and len(text) == 1)
        is_speech = column.kind == "speech" and column.pins(_text(text))
        return text[0].is_quoted or is_speech

    num_inner = min(len(texts), len(group))  # one at least is kept for what stands together
    first, last = 0, 0  # texts that are kept apart at the beginning and at the end
    while num_inner > 1 and stands_alone(group[first], texts[first]):
        first, num_inner = first + 1, num_inner - 1
    while num_inner > 1 and stands_alone(group[-1 - last], texts[-1 - last]):
        last, num_inner = last + 1, num_inner - 1
    inner = group[first : len(group) - last]
    usual = [column for column in inner if column.is_needed and column.name != optional]
    holder = [*usual, *(column for column in inner if column.is_needed), *inner][0]
    num_before, num_behind = (
        sum(map(len, part)) for part in (texts[:first], texts[len(texts) - last :])
    )
    together = _text(tokens[num_before : len(tokens) - num_behind])
    cells = [
        *map(_text, texts[:first]),
        *(together if column is holder else "" for column in inner),
        *map(_text, texts[len(texts) - last :]),
    ]
    return cells, [column.name for column in inner] if len(inner) > 1 else []


def _chunks(tokens: Sequence[_Token]) -> Iterator[list[_Token]]:
    """Tokens by the cells that they make under the convention."""
    chunk: list[_Token] = []
    for token in tokens:
        if chunk and (token.is_quoted or chunk[-1].is_quoted or not token.is_continuation):
            yield chunk
            chunk = []
        chunk.append(token)
    yield chunk
