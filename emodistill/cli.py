"""From a command line to a configuration, and from an error to a message.

`--config FILE.yaml` is the base and flags override it. The file has the settings that all stages
share at the top and one section per stage:

    domain: crad
    sweep: {num_seeds: 16}
    jpo: {kappa: 0.5}
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from emodistill import configs
from emodistill.errors import EmodistillError, InputError, StoppedError
from emodistill.logs import log_to_terminal

Config = TypeVar("Config")

_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
"""1e-4 and the like, which YAML 1.1 takes for text."""

STAGES = (
    "sweep",
    "judge",
    "iql",
    "sft",
    "jpo",
    "alol",
    "dpo",
    "evaluate",
    "tournament",
    "report",
    "quickstart",
    "pretrain",
    "simulator",
    "memory",
    "bench",
    *("study-signal", "study-kappa", "study-kl", "study-rank", "study-iql", "study-transfer"),
    *("study-counterparty", "study-emotion-free", "study-refinement", "study-emotions"),
)
PRESETS = ("quickstart", "fast", "embedded_full")


def preset_path(name: str) -> Path:
    """The file of a shipped configuration, in the checkout or inside an installed package."""
    for folder in (Path(__file__).parent / "presets", Path(__file__).parents[1] / "configs"):
        if (path := folder / f"{name}.yaml").is_file():
            return path
    raise InputError(f"the shipped configuration {name}.yaml is missing; reinstall emodistill.")


BASE = "base"
"""The section of a cell's config.yaml with the settings that its name is relative to."""


def read_settings(path: Path) -> dict[str, Any]:
    """A configuration file as plain values.

    Raises:
      InputError: the file is missing, no YAML, or no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"--config {path}: expected `name: value` lines.")
    return values


def make_config(
    cls: type[Config], stage: str, settings: Mapping[str, Any], *, where: str, **overrides: Any
) -> Config:
    """A configuration from the shared settings and the section `stage` of a file.

    Raises:
      InputError: a setting that the stage (or, at the top, any stage) does not know, or a value
        of the wrong type; the message names it.
    """
    section = settings.get(stage) or {}
    if not isinstance(section, Mapping):
        raise InputError(f"{where}: {stage} must be a section with `name: value` lines.")
    hints = typing.get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    shared = {key: value for key, value in settings.items() if key not in (*STAGES, BASE)}
    if unknown := [key for key in section if key not in names]:
        raise InputError(
            f"{where}: {stage} has no setting {unknown[0]!r}; it has {', '.join(sorted(names))}."
        )
    if unknown := [key for key in shared if key not in names | _all_names()]:
        raise InputError(
            f"{where}: no stage has a setting {unknown[0]!r}; the sections are {', '.join(STAGES)}."
        )
    values = {key: value for key, value in shared.items() if key in names} | dict(section)
    checked = {
        key: _convert(hints[key], value, f"{where}: {stage}.{key}") for key, value in values.items()
    }
    try:
        return cls(**(checked | overrides))
    except InputError as error:
        raise InputError(f"{where}: {stage}: {error}") from None


def _all_names() -> set[str]:
    """Every setting of every stage."""
    return {
        field.name
        for cls in vars(configs).values()
        if dataclasses.is_dataclass(cls)
        for field in dataclasses.fields(cls)
    }


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(arg for arg in args if arg is not type(None)), value, where)
    if origin is typing.Literal:
        if value not in args:
            raise InputError(f"{where}: {value!r} is none of {', '.join(map(str, args))}.")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where}: expected a list, found {value!r}.")
        return tuple(_convert(args[0], item, where) for item in value)
    if hint is Path:
        if not isinstance(value, str):
            raise InputError(f"{where}: expected a path, found {value!r}.")
        return Path(value)
    if hint is float and isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise InputError(f"{where}: expected {hint.__name__}, found {value!r}.")


def parse(
    cls: type[Config],
    stage: str,
    *,
    description: str | None,
    args: Sequence[str] | None = None,
    base: Callable[[Sequence[str]], Path | None] | None = None,
) -> Config:
    """The configuration that the command line asks for.

    Args:
      base: given the arguments, the file to start from where no `--config` is given.
    """
    return parse_cell(cls, stage, description=description, args=args, suits=base)[0]


def parse_cell(
    cls: type[Config],
    stage: str,
    *,
    description: str | None,
    args: Sequence[str] | None = None,
    suits: Callable[[Sequence[str]], Path | None] | None = None,
) -> tuple[Config, Config]:
    """The configuration, and the base that its flags changed, from which cells take their names."""
    import tyro

    config_file, rest = take_config(sys.argv[1:] if args is None else args)
    if config_file is None and suits is not None:
        config_file = suits(rest)
    if config_file is None:
        start = base = cls()
    else:
        settings = read_settings(config_file)
        where = f"--config {config_file}"
        start = base = make_config(cls, stage, settings, where=where)
        if BASE in settings:
            base = make_config(cls, stage, {stage: settings[BASE]}, where=f"{where}: {BASE}")
    text = f"{description}\n\n--config FILE.yaml is the base for all flags; flags override it."
    return tyro.cli(cls, default=start, args=rest, description=text), base


def parse_study(
    studies: Mapping[str, type[Config]] | type[Config],
    *,
    description: str | None,
    args: Sequence[str] | None = None,
) -> tuple[Config, dict[str, Any]]:
    """A study's settings (of the one that a subcommand names), and those of the stages it runs.

    The latter are the file's; without one, on the simulator with the embedded student, those of
    configs/quickstart.yaml, else the paper's.
    """
    import tyro

    config_file, rest = take_config(sys.argv[1:] if args is None else args)
    settings = read_settings(config_file) if config_file else {}
    where = f"--config {config_file}"
    text = f"{description}\n\n--config FILE.yaml has the settings of the stages; flags override it."
    markers = (tyro.conf.OmitSubcommandPrefixes,)
    if isinstance(studies, type):
        section = f"study-{studies.study}"  # type: ignore[attr-defined]
        default = make_config(studies, section, settings, where=where)
        config: Any = tyro.cli(studies, default=default, args=rest, description=text)
    else:
        union = tyro.extras.subcommand_type_from_defaults(
            {
                name: make_config(cls, f"study-{name}", settings, where=where)
                for name, cls in studies.items()
            },
            {name: str(cls.__doc__) for name, cls in studies.items()},
        )
        config = tyro.cli(union, args=rest, description=text, config=markers)
    is_small = config.is_simulated and config.student == configs.EMBEDDED
    if config_file is None and is_small:
        settings = read_settings(preset_path("quickstart"))
    return config, settings


def take_config(args: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file that `--config` names, and the other arguments."""
    rest: list[str] = []
    found: Path | None = None
    queue = iter(args)
    for arg in queue:
        if arg == "--config":
            value = next(queue, None)
            if value is None:
                raise InputError("--config needs the path of a YAML file.")
            found = Path(value)
        elif arg.startswith("--config="):
            found = Path(arg.partition("=")[2])
        else:
            rest.append(arg)
    return found, rest


def run(main: Callable[[], object]) -> None:
    """Run a script's body: user errors become one message and exit code 2, Ctrl-C code 130."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    log_to_terminal()
    try:
        main()
    except StoppedError as error:
        print(error, file=sys.stderr)
        raise SystemExit(130) from None
    except EmodistillError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno is None:
            raise
        name = f" ({error.filename})" if error.filename else ""
        print(
            f"error: {error.strerror}{name}; free space or rights, then start again; finished "
            "work is kept.",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; finished work is kept, start again to go on.", file=sys.stderr)
        raise SystemExit(130) from None
