"""Regular expressions written over several lines, with names for their parts."""

from __future__ import annotations

import re

_COMMENT = re.compile(r"^ *#.*\n", re.MULTILINE)
_LINE_BREAK = re.compile(r"\n *")
_PART = re.compile(r"\{([A-Z_]+)\}")


def pattern(source: str, **parts: re.Pattern[str]) -> re.Pattern[str]:
    """The regular expression of `source`, in which `{NAME}` stands for the pattern of that name.

    A line that starts with `#` is a comment; line breaks and the spaces after them count for
    nothing. All other spaces do, unlike under `re.VERBOSE`: patterns of phrases are full of them.
    """
    joined = _LINE_BREAK.sub("", _COMMENT.sub("", source))
    return re.compile(_PART.sub(lambda name: parts[name[1]].pattern, joined))
