"""What comes from outside: bytes of a server, or of a folder that somebody else has written.

Every reader of such bytes goes through this module. It allows what an honest sender needs and
refuses the rest with a ValueError that says what was wrong, so that no input ends in a traceback,
fills the memory, or reaches the terminal as a command. `read_typed` turns that into the InputError
that names the file.
"""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import re
import stat
import tomllib
import typing
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import yaml

from emodistill.errors import InputError

T = TypeVar("T")
N = TypeVar("N", bound=tuple[Any, ...])

MAX_BYTES = 64 << 20
"""Of one JSON value: far above a manifest, a long dialogue or an answer with its log-probs."""
MAX_DEPTH = 64
"""Of nested lists and objects; our own files have six levels. Python's parser would go on to about
a thousand, and what walks through the value afterwards would then fail."""
MAX_DIGITS = 19
"""Of an integer: 64 bits. Longer ones are no counts, and turning them into text takes minutes."""
MAX_COUNT = 10**12
MAX_CONFIG_BYTES = 1 << 17
"""Of a file of settings or texts in YAML or TOML; the largest of ours has 4 KB, and
YAML is read at some 50 KB a second."""
MAX_DOTS = 256
"""In a line of TOML: the parser takes memory by the square of the names in a.b.c = 1."""
MAX_SHOWN = 200
"""Characters of a foreign value that an error message quotes."""

_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)


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


def file_name(text: str) -> str:
    """A text as a name of files: characters that no such name should have become dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")


def brief(text: object) -> str:
    """A text, or that of an error, for a message: on one line, printable and short."""
    line = " ".join(printable(str(text)[: 2 * MAX_SHOWN]).split())
    return line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}…"


def shown(value: object) -> str:
    """A value as an error message quotes it, cut where it is long."""
    return brief(repr(value[: 2 * MAX_SHOWN] if isinstance(value, str) else value))


def parse_json(data: bytes | str, *, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a JSON text in UTF-8; halves of surrogate pairs in it become U+FFFD.

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
    if _MAYBE_SURROGATE.search(text):
        value = _writable(value)
    return value


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
      OSError: the file can't be read, or is a pipe or a device.
      ValueError: as `parse_json`.
    """
    return parse_json(read_bytes(path, MAX_BYTES))


def read_typed(path: Path, kind: type[T], advice: str) -> T:
    """The JSON value of a file as a `kind`, which may be anything that msgspec converts to.

    Args:
      advice: what to do where the file can't be used, a whole sentence.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it can't be read, is no JSON within bounds, or none of `kind`.
    """
    try:
        return msgspec.convert(read_json(path), kind)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} can't be read ({brief(reason)}). {advice}") from None


def setting_of(stage: str, settings: Mapping[str, Any], name: str, kind: Any) -> Any:
    """A setting that the manifest of a stage has kept, of a type as msgspec has them.

    Raises:
      InputError: it is not there, or of another type.
    """
    try:
        return msgspec.convert(settings[name], kind)
    except (KeyError, msgspec.ValidationError):
        raise InputError(
            f"the manifest of stage {brief(stage)} has {name}={shown(settings.get(name))}, which "
            "can't be used. Make that stage again."
        ) from None


def named_tuple(value: object, kind: type[N]) -> N:
    """A JSON object as a named tuple of `kind`, whose numbers are none of them negative.

    Raises:
      ValueError: a field is missing, unknown, negative or of another type.
    """
    return kind(**msgspec.structs.asdict(msgspec.convert(value, _record_of(kind))))


def parse_yaml(data: bytes | str) -> Any:
    """The value of a YAML text in UTF-8: lists, mappings with texts as keys, and plain values.

    Dates are texts; 1e-4 is a number, as in Python.

    Raises:
      ValueError: it is no YAML, too long or too deeply nested, or holds an anchor, an alias, a tag,
        a key that is no text or comes twice, or a number that `parse_json` would refuse.
    """
    try:
        value = yaml.load(_config_text(data), _YamlLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None
    _check_depth(value)
    return value


def parse_toml(data: bytes | str) -> dict[str, Any]:
    """The tables of a TOML text in UTF-8.

    Raises:
      ValueError: it is no TOML, too long or too deeply nested, or holds a date, a time, or a number
        that `parse_json` would refuse.
    """
    text = _config_text(data)
    if any(line.count(".") > MAX_DOTS for line in text.splitlines()):
        raise ValueError(f"a line with more than {MAX_DOTS} dots")
    try:
        value = tomllib.loads(text, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None
    _check_depth(value)
    _check_plain(value)
    return value


def open_unlinked(path: Path, flags: int) -> int:
    """A descriptor of a file to write, made if it isn't there, but never through a symbolic link.

    Raises:
      InputError: `path` is such a link; a received folder could name any file of the user's by it.
    """
    try:
        return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise linked(path) from None


def refuse_links(directory: Path, below: Path) -> None:
    """Refuse to write in a folder that has symbolic links in it, or on the way to it from `below`.

    Raises:
      InputError: there is one; names it.
    """
    way = [directory, *directory.parents]
    for folder in way[: way.index(below)] if below in way else ():
        if folder.is_symlink():
            raise linked(folder)
    for folder, folders, files in os.walk(directory):
        for path in (Path(folder, name) for name in (*folders, *files)):
            if path.is_symlink():
                raise linked(path)


def linked(path: Path) -> InputError:
    """What is said of a symbolic link where something is to be written."""
    return InputError(
        f"{path} is a symbolic link, and nothing is written through one within a run: it could "
        "stand for any file. Put the file or folder itself there, or link the whole run."
    )


def read_bytes(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> bytes:
    """The bytes of a file, one more than `max_bytes` at most.

    Raises:
      OSError: it can't be read, or is a pipe or a device, which might never end.
    """
    with open(_open_regular(path), "rb") as file:
        return file.read(max_bytes + 1)


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
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:20]} is too large, or not one")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number; use null")


@functools.cache
def _record_of(kind: type[Any]) -> type[msgspec.Struct]:
    not_negative = {hint: Annotated[hint, msgspec.Meta(ge=0)] for hint in (int, float)}
    hints = typing.get_type_hints(kind)
    fields: list[Any] = [(name, not_negative.get(hint, hint)) for name, hint in hints.items()]
    defaults = kind._field_defaults
    fields = [(*field, *([defaults[field[0]]] if field[0] in defaults else [])) for field in fields]
    return msgspec.defstruct(kind.__name__, fields, forbid_unknown_fields=True)


_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MAYBE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
"""In a JSON text, where two escapes may make a whole pair."""


def _writable(value: Any) -> Any:
    """The value with U+FFFD for halves of surrogate pairs, which can't be written as UTF-8."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_writable(item) for item in value]
    if isinstance(value, dict):
        return {_writable(key): _writable(item) for key, item in value.items()}
    return value


def _open_regular(path: Path) -> int:
    # O_NONBLOCK: a pipe without a writer would keep even the opening waiting.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(mode := os.fstat(fd).st_mode):
        os.close(fd)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "No regular file", str(path))
    return fd


def _config_text(data: bytes | str) -> str:
    if len(data) > MAX_CONFIG_BYTES:
        raise ValueError(f"more than {MAX_CONFIG_BYTES:,} bytes")
    return data.decode("utf-8-sig") if isinstance(data, bytes) else data


def _check_plain(value: Any) -> None:
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, dict):
            rest += item.values()
        elif isinstance(item, list):
            rest += item
        elif isinstance(item, int) and not -(10**MAX_DIGITS) < item < 10**MAX_DIGITS:
            raise ValueError(f"an integer of more than {MAX_DIGITS} digits")
        elif not isinstance(item, str | int | float):
            raise ValueError(f"{item} is a {type(item).__name__}; write it in quotes")


PYTHON_FLOAT = re.compile(r"^[+-]?\d+(\.\d*)?[eE][+-]?\d+$")
"""What YAML 1.1 takes for text and Python for a number, such as 1e-4."""
_DECIMAL = re.compile(r"[+-]?(0|[1-9][0-9]*)")


class _YamlLoader(yaml.SafeLoader):
    """Plain values only; each rule stands beside what it keeps out."""

    num_open = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        is_alias = self.check_event(yaml.AliasEvent)
        if is_alias or event.anchor is not None:
            # A few aliases of aliases stand for gigabytes.
            self._refuse("anchors (&) and aliases (*) are not read; write the value out", event)
        if event.tag is not None:  # !!set, !!binary, !!python/…
            self._refuse(f"tags ({brief(event.tag)}) are not read", event)
        self.num_open += 1
        if self.num_open > MAX_DEPTH:
            self._refuse(f"nested more than {MAX_DEPTH} levels deep", event)
        node = super().compose_node(parent, index)
        self.num_open -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":  # also `on:` and `1:`, and `<<:`
                self._refuse("a key is a text; put it in quotes", key)
            if key.value in keys:  # the first one would be dropped without a word
                self._refuse(f"{brief(key.value)} comes twice", key)
            keys.add(key.value)
        return super().construct_mapping(node, deep)

    def plain_int(self, node: Any) -> int:
        text = node.value.replace("_", "")
        if not _DECIMAL.fullmatch(text):  # 010 would be 8, and 1:30 would be 90
            self._refuse(f"{brief(text)} is no decimal number; put it in quotes", node)
        if len(text.lstrip("+-")) > MAX_DIGITS:
            self._refuse(f"an integer of {len(text)} digits", node)
        return int(text)

    def plain_float(self, node: Any) -> float:
        if ":" in node.value:
            self._refuse(f"{brief(node.value)} is no number; put it in quotes", node)
        value = self.construct_yaml_float(node)
        if not math.isfinite(value):
            self._refuse(f"{brief(node.value)} is no finite number", node)
        return value

    def _refuse(self, problem: str, where: Any) -> None:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":timestamp", ":merge"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_YamlLoader.add_implicit_resolver("tag:yaml.org,2002:float", PYTHON_FLOAT, list("+-0123456789"))
_YamlLoader.add_constructor("tag:yaml.org,2002:int", _YamlLoader.plain_int)
_YamlLoader.add_constructor("tag:yaml.org,2002:float", _YamlLoader.plain_float)


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inner = [item.values() if isinstance(item, dict) else item for item in level]
        level = [x for items in inner for x in items if isinstance(x, dict | list)]
        if not level:
            return
    raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
