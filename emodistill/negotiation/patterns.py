"""The regular expressions of a module, from the TOML file of its name: word lists are data.

A file gives patterns by name. In a pattern, `{name}` stands for the pattern of that name further
up; a line that starts with `#` is a comment; line breaks and the spaces after them count for
nothing. All other spaces do, unlike under `re.VERBOSE`: patterns of phrases are full of them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

_COMMENT = re.compile(r"^ *#.*\n", re.MULTILINE)
_LINE_BREAK = re.compile(r"\n *")
_PART = re.compile(r"\{([a-z]\w*)\}")


class Patterns:
    """The patterns of one file; each is compiled when it is first asked for, since most commands
    read no utterance and compiling all of them takes a quarter of a second."""

    def __init__(self, sources: Mapping[str, Any]) -> None:
        self._sources = sources

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._sources:
            raise AttributeError(f"there is no pattern {name!r}")
        match self._sources[name]:
            case str() as source:
                content: Any = re.compile(source)
            case dict() as table:
                content = [re.compile(source) for source in table.values()]
            case pairs:
                content = [(re.compile(source), written) for source, written in pairs]
        setattr(self, name, content)
        return content


def load_patterns(name: str, **words: Iterable[str]) -> Patterns:
    """The patterns of `<name>.toml`: a table gives the list of its patterns.

    A list of pairs gives pairs of a pattern and what is written for it. Each of `words` is one more
    pattern, of any of its words; the longest are tried first, or "minutes" would be read as "min".
    """
    parts = {key: f"(?:{'|'.join(sorted(words[key], key=len, reverse=True))})" for key in words}

    def whole(value: str) -> str:
        joined = _LINE_BREAK.sub("", _COMMENT.sub("", value))
        return _PART.sub(lambda part: parts[part[1]], joined)

    sources: dict[str, Any] = {}
    text = (
        resources.files("emodistill.negotiation")
        .joinpath(f"{name}.toml")
        .read_text(encoding="utf-8")
    )
    for key, value in tomllib.loads(text).items():
        match value:
            case str():
                sources[key] = parts[key] = whole(value)
            case dict():
                sources[key] = {part: whole(source) for part, source in value.items()}
            case _:
                sources[key] = [(whole(source), written) for source, written in value]
    return Patterns(sources)
