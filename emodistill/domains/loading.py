"""Where scenarios come from: the built-in generator, a published table, or one's own JSONL."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from emodistill.domains.generator import generate_scenarios
from emodistill.domains.published import Table, read_table, read_text
from emodistill.domains.registry import Domain, get_domain
from emodistill.domains.scenario import (
    HeldOut,
    Scenario,
    Split,
    is_split_given,
    refuse_leaks,
    scenario_problems,
    split_scenarios,
)
from emodistill.errors import InputError, refuse
from emodistill.untrusted import MAX_CONFIG_BYTES, brief, parse_json, read_bytes, shown


class LoadedSplit(NamedTuple):
    """Scenarios, each in its split, and who has split them."""

    split: Split
    text: str
    """A clause for the terminal: whose split it is, and how many scenarios each part has."""
    where: Mapping[str, str]
    """scenario_id -> its file and line."""
    is_given: bool = False
    """Whether the file of the scenarios has split them itself."""


def load_scenarios(
    domain: str, path: str | Path | None = None, *, strict: bool = False
) -> list[Scenario]:
    """The scenarios of `domain`.

    Args:
      path: None for the 100 built-in ones; a `.csv` is read as the domain's published table, a
        `.jsonl` as one scenario a line. Nothing else is read.
      strict: refuse a table of which a row can't be used, instead of leaving that row out.

    Raises:
      InputError: unknown domain, or a file that can't be used (named with line and reason).
    """
    return _load(domain, path, strict).scenarios


def load_split(
    domain: str,
    path: str | Path | None = None,
    *,
    num_test: int,
    num_validation: int,
    seed: int,
    strict: bool = False,
    held_out: HeldOut = "drawn",
    test_ids: Path | None = None,
) -> LoadedSplit:
    """The scenarios of `domain` in their split: the file's own, or else one that is made here.

    Args:
      num_test, num_validation: scenarios to hold out; of no consequence for a file that has its own
        split, nor `num_test` with `test_ids`.
      held_out: which scenarios the test ones are (see `split_scenarios`).
      test_ids: a file that names the test scenarios (see `read_ids`).

    Raises:
      InputError: as `load_scenarios`; a file that names the split of some scenarios only; ids that
        can't be used, or beside a file that has its own split; or sizes that leave nothing to train
        on.
    """
    scenarios, is_split, where = _load(domain, path, strict)
    if is_split:
        if test_ids is not None:
            raise InputError(
                f"--test-ids {test_ids}: {path} says itself which scenarios are held out. Leave "
                "out the ids, or the splits of that file."
            )
        split = Split(*([s for s in scenarios if s.split == name] for name in Split._fields))
        whose = (
            f"split as {path} gives it (--num-test, --num-validation and --held-out play no part)"
        )
    else:
        ids = None if test_ids is None else read_ids(test_ids, [s.scenario_id for s in scenarios])
        split = split_scenarios(
            scenarios, num_test, num_validation, seed, held_out=held_out, test_ids=ids
        )
        if test_ids is not None:
            whose = f"split with those of {test_ids} held out (--num-test plays no part)"
        elif held_out == "last":
            whose = f"split with the last {num_test} of {path or 'the built-in scenarios'} held out"
        else:
            whose = f"split drawn by --seed {seed}"
        if num_validation and (test_ids is not None or held_out == "last"):
            whose += f", {num_validation} for validation drawn by --seed {seed}"
    sizes = ", ".join(
        f"{len(part)} {name}" for name, part in zip(Split._fields, split, strict=True)
    )
    where_by_id = {s.scenario_id: line for s, line in zip(scenarios, where, strict=True)}
    return LoadedSplit(split, f"{whose}: {sizes}", where_by_id, is_given=is_split)


def read_ids(path: Path, known: Collection[str]) -> list[str]:
    """The scenario ids of a text file, one a line; blank lines and comments (#) are passed over.

    Args:
      known: the ids that there are.

    Raises:
      InputError: the file can't be read, names no scenario, one that isn't known or one twice; the
        message has all such lines.
    """
    try:
        data = read_bytes(path)
        if len(data) > MAX_CONFIG_BYTES:
            raise ValueError(f"more than {MAX_CONFIG_BYTES:,} bytes")
        lines = data.decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"--test-ids {path} can't be read ({brief(reason)}). Give a text file with a "
            "scenario_id a line."
        ) from None
    line_of: dict[str, int] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        if not (name := line.partition("#")[0].strip()):
            continue
        first = line_of.setdefault(name, number)
        if first != number:
            problems.append(f"{path}:{number}: {shown(name)} stands in line {first} too.")
        elif name not in known:
            problems.append(f"{path}:{number}: there is no scenario {shown(name)}.")
    example = f" (such as {min(known)})" if known else ""
    refuse(
        problems,
        f"Name each scenario to hold out once, by its scenario_id{example}; rows of a table that "
        "are left out have none.",
    )
    if not line_of:
        raise InputError(f"--test-ids {path} names no scenario; give a scenario_id a line.")
    return [*line_of]


def _load(domain: str, path: str | Path | None, strict: bool) -> Table:
    spec = get_domain(domain)
    if path is None:
        generated = generate_scenarios(domain)
        names = [f"generated scenario {scenario.scenario_id}" for scenario in generated]
        return Table(generated, is_split=False, where=names)
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; --scenarios takes one file.")
    match path.suffix.lower():
        case ".csv":
            return read_table(path, domain, strict=strict)
        case ".jsonl":
            return _read_jsonl(path, spec)
    raise InputError(
        f"{path}: scenarios are read from .csv (the published table of {domain}) or .jsonl (one "
        f"scenario a line), not from {path.suffix or 'suffixless'} files."
    )


def _read_jsonl(path: Path, spec: Domain) -> Table:
    scenarios: list[tuple[Scenario, str]] = []
    splits: list[tuple[bool, str]] = []
    line_of: dict[str, int] = {}
    problems: list[str] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = parse_json(line)
            scenario = Scenario.from_json(value, where=where)
        except InputError as error:
            problems.append(str(error))
            continue
        except ValueError as error:
            problems.append(
                f"{where}: this line is no JSON ({brief(error)}). Each line holds one scenario."
            )
            continue
        splits.append(("split" in value, where))
        problems += [f"{where}: {problem}" for problem in scenario_problems(scenario, spec)]
        if (first := line_of.setdefault(scenario.scenario_id, number)) != number:
            problems.append(
                f"{where}: scenario_id={scenario.scenario_id!r} stands in line {first} too; "
                f"ids must be unique within a file."
            )
        scenarios.append((scenario, where))
    refuse(problems)
    if not scenarios:
        raise InputError(f"{path} holds no scenario; each line must be one JSON object.")
    is_split = is_split_given(splits)
    if is_split:
        refuse_leaks(scenarios)
    repaired = sum(scenario.repaired for scenario, _ in scenarios)
    logging.getLogger("emodistill").info(
        "%s: %d scenarios, %d of them repaired.", path, len(scenarios), repaired
    )
    read, lines = zip(*scenarios, strict=True)
    return Table(list(read), is_split, lines)
