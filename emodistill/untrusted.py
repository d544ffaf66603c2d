"""What comes from outside: bytes of a server, or of a folder that somebody else has written.

Every reader of such bytes goes through this module. It allows what an honest sender needs and
refuses the rest with a ValueError that says what was wrong, so that no input ends in a traceback,
fills the memory, or reaches the terminal as a command.
"""

from __future__ import annotations

import functools
import json
import math
import re
from pathlib import Path
from typing import Any

MAX_BYTES = 64 << 20
"""Of one JSON value: far above a manifest, a long dialogue or an answer with its log-probs."""
MAX_DEPTH = 64
"""Of nested lists and objects; our own files have six levels. Python's parser would go on to about
a thousand, and what walks through the value afterwards would then fail."""
MAX_DIGITS = 19
"""Of an integer: 64 bits. Longer ones are no counts, and turning them into text takes minutes."""
MAX_COUNT = 10**12

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e]")


def printable(text: str) -> str:
    """`text` without control characters, half surrogate pairs and marks that turn its direction.

    Tabs and line feeds stay; everything else that a terminal would obey, or that can't be written
    as UTF-8, becomes U+FFFD.
    """
    return _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """`text` in one line of printable characters, its line breaks written as spaces.

    So it can't begin a heading, or a turn of its own, in a prompt.
    """
    lines = text.splitlines()
    joined = text if lines == [text] else " ".join(filter(None, map(str.strip, lines)))
    return printable(joined)


def parse_json(data: bytes | str, *, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
      ValueError: it is no JSON, too long, too deeply nested, or holds NaN, an infinite number, or
        an integer of more than MAX_DIGITS digits.
    """
    if len(data) > max_bytes:
        raise ValueError(f"more than {max_bytes:,} bytes")
    text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
    try:
        value = _decoder().decode(text)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None
    # So few brackets can't be nested too deeply, which spares most values the walk.
    if isinstance(value, dict | list) and text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value)
    return value


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
      OSError: the file can't be read.
      ValueError: as `parse_json`.
    """
    with path.open("rb") as file:
        return parse_json(file.read(MAX_BYTES + 1))


def count(value: object) -> int | None:
    """A count, such as of tokens, that somebody else has stated; None where it is none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return int(value) if math.isfinite(value) and 0 <= value < MAX_COUNT else None


@functools.cache
def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(
        parse_int=_integer, parse_float=_finite, parse_constant=_refuse_constant
    )


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number; use null")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [item.values() if isinstance(item, dict) else item for item in level]
        level = [x for items in inner for x in items if isinstance(x, dict | list)]
        if not level:
            return
    raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
