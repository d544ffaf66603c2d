"""The regular expressions of a module, from the TOML file of its name: word lists are data.

A file gives patterns by name. In a pattern, `{name}` stands for the pattern of that name further
up; a line that starts with `#` is a comment; line breaks and the spaces after them count for
nothing. All other spaces do, unlike under `re.VERBOSE`: patterns of phrases are full of them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from importlib import resources
from types import SimpleNamespace

_COMMENT = re.compile(r"^ *#.*\n", re.MULTILINE)
_LINE_BREAK = re.compile(r"\n *")
_PART = re.compile(r"\{([a-z]\w*)\}")


def load_patterns(name: str, **words: Iterable[str]) -> SimpleNamespace:
    """The patterns of `<name>.toml`: a table gives the list of its patterns.

    A list of pairs gives pairs of a pattern and what is written for it. Each of `words` is one more
    pattern, of any of its words; the longest are tried first, or "minutes" would be read as "min".
    """
    parts = {key: f"(?:{'|'.join(sorted(words[key], key=len, reverse=True))})" for key in words}

    def compiled(value: str) -> re.Pattern[str]:
        joined = _LINE_BREAK.sub("", _COMMENT.sub("", value))
        return re.compile(_PART.sub(lambda part: parts[part[1]], joined))

    patterns = SimpleNamespace()
    text = (
        resources.files("emodistill.negotiation")
        .joinpath(f"{name}.toml")
        .read_text(encoding="utf-8")
    )
    for key, value in tomllib.loads(text).items():
        match value:
            case str():
                content = compiled(value)
                parts[key] = content.pattern
            case dict():
                content = [compiled(source) for source in value.values()]
            case _:
                content = [(compiled(source), written) for source, written in value]
        setattr(patterns, key, content)
    return patterns
