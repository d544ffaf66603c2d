"""From a command line to a configuration, and from an error to a message.

`--config FILE.yaml` is the base of all flags, and flags override it (see `settings`).
"""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TypeVar

import tyro

from emodistill import studies
from emodistill.configs import EMBEDDED, Config, QuickstartConfig, home_expanded
from emodistill.errors import EmodistillError, InputError, StoppedError
from emodistill.logs import log_to_terminal
from emodistill.operating_system import (
    BROKEN_PIPE_CODE,
    TerminatedError,
    ended_by_signals,
    finish_output,
    is_output_closed,
    open_streams,
    raise_file_limit,
    tell,
)
from emodistill.settings import BASE, Cell, Settings
from emodistill.untrusted import brief

C = TypeVar("C", bound=Config)

ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, then start again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "get the rights to it, then start again"),
    errno.EROFS: "name a folder that can be written to, then start again",
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE),
        "let the program open more files (ulimit -n 1024), or lower --concurrency, then start "
        "again",
    ),
}
"""What to do about an error of the system."""
MODEL_FIELDS = frozenset({"focal", "counterparty", "judge", "reader", "counterparties"})
"""Settings that may name a language model by its address."""
CONFIG_HELP = "--config FILE.yaml is the base for all flags; flags override it."


def parse(
    commands: type[C] | Mapping[str, type[C]],
    description: str | None,
    args: Sequence[str] | None = None,
    *,
    preset: str | None = None,
) -> Cell:
    """The configuration that a command line asks for, and the same without its flags as the base.

    Args:
      commands: its class, or the classes of its subcommands, of which the first may be left out.
      args: `sys.argv` without the program's name, if left out.
      preset: the shipped configuration to start from where no `--config` is given.

    Raises:
      InputError: the file of `--config` can't be used, or a value is out of bounds.
      SystemExit: a flag is unknown or has a value of the wrong type.
    """
    rest = list(sys.argv[1:] if args is None else args)
    settings = None if preset is None else Settings.preset(preset)
    for i in reversed([i for i, arg in enumerate(rest) if arg.partition("=")[0] == "--config"]):
        _, _, value = rest.pop(i).partition("=")
        if not value and i == len(rest):
            raise InputError("--config needs the path of a YAML file.")
        settings = Settings.read(Path(home_expanded("--config", value or rest.pop(i))))
    file = settings or Settings()
    classes = {"": commands} if isinstance(commands, type) else commands
    names = [{field.name for field in dataclasses.fields(cls)} for cls in classes.values()]
    is_named = any(arg.partition("=")[0] == "--model" for arg in rest)
    if is_named and all("focal" in known and "model" not in known for known in names):
        raise InputError("--model is --focal now, the language model in the focal role.")
    # Flags are laid over drafts, which are unchecked and have `auto` where the student decides: a
    # flag may name another student than the file does.
    drafts: dict[str, Any] = {name: object.__new__(cls) for name, cls in classes.items()}
    for name, cls in classes.items():
        if settings is not None:
            settings.config(cls)  # a value out of bounds is the file's fault, not a flag's
        for field in dataclasses.fields(cls):
            factory = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            value = file.values(cls).get(field.name, default)
            object.__setattr__(drafts[name], field.name, value)
    # tyro joins the lines of a paragraph unless they are indented; examples stay one a line.
    lines = f"{description}\n\n{CONFIG_HELP}".splitlines()
    text = "\n".join(f"    {line.strip()}" if "python scripts/" in line else line for line in lines)
    if isinstance(commands, type):
        config: Any = tyro.cli(commands, default=drafts[""], args=rest, description=text)
    else:
        union = tyro.extras.subcommand_type_from_defaults(
            drafts, {name: str(cls.__doc__) for name, cls in classes.items()}
        )
        markers = (tyro.conf.OmitSubcommandPrefixes,)
        config = tyro.cli(union, args=rest, description=text, config=markers)
    if settings is not None and settings.path is not None:
        typed = {arg.partition("=")[0].removeprefix("--").replace("-", "_") for arg in rest}
        _check_addresses(settings, getattr(config, "provider", None), typed)
    section = BASE if BASE in file.sections else config.stage
    values = file.values(type(config), section)
    if config.student_field is not None:
        values[config.student_field] = getattr(config, config.student_field)
    return Cell(config, type(config)(**values), settings)


def _check_addresses(settings: Settings, provider: str | None, typed: Set[str]) -> None:
    """Refuse a file's own address where it would be sent a key that lies in the environment.

    Args:
      provider: the one that the command names.
      typed: the settings that it names; they are not the file's.

    Raises:
      InputError: such an address; a file from elsewhere could collect keys by it.
    """
    from emodistill.llm.providers import get_provider, is_loopback  # only where a file is given

    sections = [settings.sections, *settings.sections.values()]
    found: list[tuple[str, object, set[Any]]] = []
    for section in (one for one in sections if isinstance(one, Mapping)):
        names = {provider, section.get("provider"), settings.sections.get("provider")}
        for field in () if typed & {"base_url", "url"} else ("base_url", "url"):
            found.append((field, section.get(field), names))
        for field in MODEL_FIELDS - typed:
            value = section.get(field)
            values = value if isinstance(value, list) else [value]
            found += [(field, v, {None}) for v in values if "://" in str(v)]  # URL#model
    for field, value, names in found:
        address = value.partition("#")[0] if isinstance(value, str) else ""
        if not address or is_loopback(address):
            continue
        for name in names:
            if name == "simulator" or not isinstance(name, str | None):
                continue
            named = get_provider(name, base_url=address)
            usual = get_provider(name).base_url if name else ""
            if named.base_url != usual and named.key_env and os.environ.get(named.key_env):
                raise InputError(
                    f"{settings.name}: {field}={brief(value)} would be sent your key in "
                    f"{named.key_env}. If you trust that address, confirm it with "
                    f"--{field.replace('_', '-')} {brief(value)}, or make it a provider of your "
                    "own (EMODISTILL_PROVIDERS)."
                )


def main(
    commands: type[C] | Mapping[str, type[C]],
    description: str | None,
    action: Callable[[Cell], object] | None = None,
    *,
    args: Sequence[str] | None = None,
    preset: str | None = None,
) -> None:
    """Run a script: read its command line, then do what it asks for.

    User errors become one message and exit code 2, Ctrl-C exit code 130, SIGTERM 143; where nobody
    reads the output any more, the end is silent and the exit code 141.

    Args:
      action: what to do; if None, run the stage and say what to run next.
      commands, args, preset: see `parse`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    open_streams()
    raise_file_limit()
    log_to_terminal()
    try:
        with ended_by_signals():
            cell = parse(commands, description, args, preset=preset)
            if action is not None:
                action(cell)
            else:
                from emodistill import stages  # --help must not wait for what the stages import

                print(f"next: {stages.run(cell).next_command}")
        code = 0
    except SystemExit as stop:  # of --help, or of a flag that is unknown
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except StoppedError as error:
        tell(str(error))
        code = 130
    except EmodistillError as error:
        tell(f"error: {error}")
        code = 2
    except KeyboardInterrupt as error:
        tell("stopped; finished work is kept, start again to go on.")
        code = 128 + (error.signal_number if isinstance(error, TerminatedError) else signal.SIGINT)
    except OSError as error:
        if error.errno is None:
            raise
        is_of_output = error.errno == errno.EPIPE and is_output_closed()
        if not is_of_output:  # as in `… | head`, whose reader has had enough
            name = f" ({error.filename})" if error.filename else ""
            advice = ADVICE.get(error.errno, "start again once that is mended")
            tell(f"error: {error.strerror}{name}; {advice}; finished work is kept.")
        code = BROKEN_PIPE_CODE if is_of_output else 2
    if code := finish_output(code):
        raise SystemExit(code)


def run_study(cell: Cell) -> None:
    """Run a study; without a file, on the simulator, its stages are as in the quickstart."""
    config, settings = cell.config, cell.settings
    if settings is None:
        is_small = config.is_simulated and config.student == EMBEDDED
        settings = Settings.preset("quickstart") if is_small else Settings()
    studies.run_study(config, settings)


def quickstart(description: str | None = None) -> None:
    """The command line of the quickstart, which is also the console script of the package."""

    def action(cell: Cell) -> None:
        if cell.config.fast:
            cell = parse(QuickstartConfig, description, preset="fast")
        assert cell.settings is not None  # the preset at least
        studies.quickstart(cell.config, cell.settings)

    main(QuickstartConfig, description or studies.__doc__, action, preset="quickstart")
