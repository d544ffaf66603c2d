"""Texts with {names} in them: a subset of `str.format`, and what may be put in.

There are no attributes and no format specifications, let alone a template language: packs are
hashed into every record, so that another syntax would be another experiment.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from string import Formatter
from typing import NamedTuple

from emodistill.errors import InputError
from emodistill.untrusted import one_line

_FENCE = re.compile(r"(?i)<(?=\s*/?\s*(?:case|talks|utterance)\b)")
_BLANK_LINES = re.compile(r"(\n(?:[ \t]*\n)+)")


class Template(NamedTuple):
    """A text of a pack and where it is from (`focal.toml [crad]: context`)."""

    where: str
    text: str


@cache
def parsed(text: str) -> tuple[tuple[str, str | None], ...]:
    """Pairs of plain text and the name that follows it, None at the end.

    Raises:
      ValueError: braces that don't match, or more in them than a name.
    """
    pairs = []
    for plain, name, form, conversion in Formatter().parse(text):
        if form or conversion:
            raise ValueError(f"{{{name}}} has more in its braces than a name")
        pairs.append((plain, name))
    return tuple(pairs)


@cache
def names_in(text: str) -> tuple[str, ...]:
    """The names in a text, each as often as it is there."""
    return tuple(name for _, name in parsed(text) if name is not None)


def renamed(text: str, names: Mapping[str, str]) -> str:
    """The text with other names in place of those that are keys of `names`."""
    return "".join(
        plain.replace("{", "{{").replace("}", "}}")
        + ("" if name is None else f"{{{names.get(name, name)}}}")
        for plain, name in parsed(text)
    )


def fill(template: Template, values: Mapping[str, str]) -> str:
    """Replace each {name} once; what is filled in is data and is not looked at again.

    Raises:
      InputError: names that are not among `values`.
    """
    try:
        return "".join(
            plain + ("" if name is None else values[name]) for plain, name in parsed(template.text)
        )
    except KeyError:
        check_known([(template, values)])
        raise


def check_known(templates: Iterable[tuple[Template, Collection[str]]]) -> None:
    """Refuse templates with names that are not among those beside them.

    Raises:
      InputError: with all such names.
    """
    problems = []
    for (where, text), known in templates:
        if unknown := [f"{{{n}}}" for n in dict.fromkeys(names_in(text)) if n not in known]:
            problems.append(
                f"{where}: nothing is known as {', '.join(unknown)}; there is "
                f"{', '.join(sorted(known))}."
            )
    if problems:
        raise InputError(" ".join(problems))


def without_paragraph(template: Template, name: str) -> Template:
    """The template without the paragraphs that hold {name}; blank lines are around a paragraph.

    Raises:
      InputError: such a paragraph holds other names, which would go with it.
    """
    pieces = _BLANK_LINES.split(template.text)  # paragraphs, and what is between them
    kept: list[str] = []
    for i in range(0, len(pieces), 2):
        found = set(names_in(pieces[i]))
        if name not in found:
            kept += [pieces[i - 1], pieces[i]] if kept else [pieces[i]]
        elif others := sorted(found - {name}):
            raise InputError(
                f"{template.where}: the paragraph of {{{name}}} goes where there is none, and "
                f"{', '.join(f'{{{n}}}' for n in others)} would go with it. Put a blank line "
                f"before and after what belongs to {{{name}}}."
            )
    return template._replace(text="".join(kept))


def as_data(text: str) -> str:
    """A text from outside as prompts hold it: in one line, and with no tag of a fence."""
    return _FENCE.sub("‹", one_line(text))
