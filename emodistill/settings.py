"""A configuration file: what all stages share at the top, and a section for each stage.

domain: crad
sweep: {num_seeds: 16}
jpo: {kappa: 0.5}
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import operator
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import yaml

from emodistill.configs import CONFIGS, DEFAULT_CELL, Config
from emodistill.errors import InputError
from emodistill.files import canonical_json, replacing
from emodistill.untrusted import PYTHON_FLOAT, parse_yaml, read_bytes, shown

C = TypeVar("C", bound=Config)

BASE = "base"
"""The section of a cell's config.yaml with the settings that the cell's name is relative to."""


class _Dumper(yaml.SafeDumper):
    """Quotes a text that would be read as a number."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", PYTHON_FLOAT, list("+-0123456789"))


@dataclass(frozen=True, slots=True)
class Settings:
    """The sections of a configuration file; without a file, every stage's defaults."""

    sections: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    name: str = "the defaults"
    """What an error message calls the file."""
    path: Path | None = None
    """The file, where a user has named one."""

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read a file.

        Raises:
          InputError: the file is missing, no YAML of plain values, or no mapping.
        """
        try:
            sections = parse_yaml(read_bytes(path))
        except OSError as error:
            raise InputError(f"--config {path}: {error.strerror}.") from None
        except ValueError as error:
            raise InputError(f"--config {path}: not valid YAML: {error}.") from None
        if not isinstance(sections, dict):
            raise InputError(f"--config {path}: expected `name: value` lines.")
        return cls(sections, f"--config {path}", path)

    @classmethod
    def preset(cls, name: str) -> Settings:
        """A configuration that ships, in the checkout's configs/ or inside an installed package."""
        package = Path(__file__).parent
        for folder in (package / "presets", package.parent / "configs"):
            if (path := folder / f"{name}.yaml").is_file():
                return dataclasses.replace(cls.read(path), name=f"configs/{name}.yaml", path=None)
        raise InputError(f"the shipped configuration {name}.yaml is missing; reinstall emodistill.")

    def values(self, cls: type[Config], section: str | None = None) -> dict[str, Any]:
        """What the file says about a stage's settings, by the types of its fields.

        Args:
          section: where the stage's own settings are; the section of its name if left out.

        Raises:
          InputError: a setting that the stage (at the top of the file: every stage) lacks, or a
            value of the wrong type; the message names it.
        """
        section = section or cls.stage
        own = self.sections.get(section) or {}
        if not isinstance(own, Mapping):
            raise InputError(f"{self.name}: {section} must be a section with `name: value` lines.")
        known = {f.name for f in dataclasses.fields(cls)}
        known_anywhere = known.union(
            *({f.name for f in dataclasses.fields(other)} for other in CONFIGS.values())
        )
        reserved = {*CONFIGS, cls.stage, BASE}
        shared = {key: value for key, value in self.sections.items() if key not in reserved}
        for key in own:
            if key not in known:
                renamed = "`model` is `focal` now; " if key == "model" and "focal" in known else ""
                raise InputError(
                    f"{self.name}: {section} has no setting {shown(key)}; {renamed}it has "
                    f"{', '.join(sorted(known))}."
                )
        for key in shared:
            if key not in known_anywhere:
                raise InputError(
                    f"{self.name}: no stage has a setting {shown(key)}; the sections are "
                    f"{', '.join(CONFIGS)}."
                )
        given = {key: value for key, value in shared.items() if key in known} | dict(own)
        hints = _hints_of(cls)
        values = {}
        for key, value in given.items():
            hint = _hint_for(value, hints[key])
            try:
                values[key] = msgspec.convert(value, hint, dec_hook=_path)
            except msgspec.ValidationError as error:
                expected = hint.__name__ if isinstance(hint, type) else str(hint)
                expected = re.sub(r"(typing|pathlib|collections\.abc)\.", "", expected)
                raise InputError(
                    f"{self.name}: {section}.{key}={shown(value)}: expected {expected} ({error})."
                ) from None
        return values

    def config(self, cls: type[C], **overrides: Any) -> C:
        """The settings of a stage: its defaults, then the file, then `overrides`.

        Raises:
          InputError: as `values`, or a value out of bounds.
        """
        try:
            return cls(**(self.values(cls) | overrides))
        except InputError as error:
            where = "" if self.name in str(error) else f"{self.name}: {cls.stage}: "
            raise InputError(f"{where}{error}") from None


class Cell(NamedTuple):
    """One configuration of a stage, which is all that is needed to run it, here or elsewhere."""

    config: Any
    base: Any = None
    """The settings that the cell's name is relative to; None for `config` itself."""
    settings: Settings | None = None
    """The file by which earlier stages that are missing are configured; configs/quickstart.yaml if
    None."""

    @property
    def name(self) -> str:
        """`default`, or what differs from `base` and a short hash of it (`kappa=0.5-e21b`)."""
        ours, theirs = self.config.identity(), (self.base or self.config).identity()
        names = ours.keys() - self.config.outside_cell
        changes = {name: ours[name] for name in names if ours[name] != theirs.get(name)}
        return cell_name(changes) if changes else DEFAULT_CELL


def cell_name(changes: Mapping[str, Any]) -> str:
    """The name of the cell that differs from `default` by `changes`."""
    words = "_".join(f"{key}={value}" for key, value in sorted(changes.items()))
    readable = "".join(c if c.isalnum() or c in "=._-" else "-" for c in words)[:60]
    return f"{readable}-{hashlib.sha256(canonical_json(changes).encode()).hexdigest()[:4]}"


_hints_of = functools.cache(typing.get_type_hints)


def _hint_for(value: Any, hint: Any) -> Any:
    """The part of a type that `value` is to be read as: msgspec has no union of a path and more."""
    kinds = typing.get_args(hint)
    mappings = [kind for kind in kinds if typing.get_origin(kind) is Mapping]
    if not mappings:
        return hint
    if isinstance(value, Mapping):
        return mappings[0]
    return functools.reduce(operator.or_, (kind for kind in kinds if kind not in mappings))


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"Expected `path`, got `{type(value).__name__}`")


def write_settings(path: Path, cell: Cell) -> None:
    """Write a `config.yaml`: passed as --config it makes the same again, in a cell of that name."""
    configs = {cell.config.stage: cell.config}
    if cell.base not in (None, cell.config):
        configs[BASE] = cell.base
    sections = {
        name: {f.name: getattr(one, f.name) for f in dataclasses.fields(one)}
        for name, one in configs.items()
    }
    # Through JSON, so that nothing is one object twice, which YAML would write by reference.
    plain = msgspec.json.decode(msgspec.json.encode(sections, enc_hook=str))
    with replacing(path) as partial:
        partial.write_text(yaml.dump(plain, Dumper=_Dumper, sort_keys=False), encoding="utf-8")
