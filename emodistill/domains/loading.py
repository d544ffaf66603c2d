"""Where scenarios come from: the built-in generator, a published table, or one's own JSONL."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from emodistill.domains.generator import generate_scenarios
from emodistill.domains.published import Table, read_table, read_text
from emodistill.domains.registry import Domain, get_domain
from emodistill.domains.scenario import (
    Scenario,
    Split,
    is_split_given,
    refuse_leaks,
    scenario_problems,
    split_scenarios,
)
from emodistill.errors import InputError, refuse
from emodistill.untrusted import brief, parse_json


class LoadedSplit(NamedTuple):
    """Scenarios, each in its split, and who has split them."""

    split: Split
    text: str
    """A clause for the terminal: whose split it is, and how many scenarios each part has."""
    where: Mapping[str, str]
    """scenario_id -> its file and line."""


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
) -> LoadedSplit:
    """The scenarios of `domain` in their split: the file's own, or else drawn by `seed`.

    Args:
      num_test, num_validation: scenarios to hold out where the split is drawn; of no consequence
        for a file that has its own.

    Raises:
      InputError: as `load_scenarios`; a file that names the split of some scenarios only; or sizes
        that leave nothing to train on.
    """
    scenarios, is_split, where = _load(domain, path, strict)
    if is_split:
        split = Split(*([s for s in scenarios if s.split == name] for name in Split._fields))
        whose = f"as {path} gives it (--num-test and --num-validation play no part)"
    else:
        split = split_scenarios(scenarios, num_test, num_validation, seed)
        whose = f"drawn by --seed {seed}"
    sizes = ", ".join(
        f"{len(part)} {name}" for name, part in zip(Split._fields, split, strict=True)
    )
    where_by_id = {s.scenario_id: line for s, line in zip(scenarios, where, strict=True)}
    return LoadedSplit(split, f"split {whose}: {sizes}", where_by_id)


def _load(domain: str, path: str | Path | None, strict: bool) -> Table:
    spec = get_domain(domain)
    if path is None:
        generated = generate_scenarios(domain)
        names = [f"generated scenario {scenario.scenario_id}" for scenario in generated]
        return Table(generated, is_split=False, where=names)
    path = Path(path)
    match path.suffix.lower():
        case ".csv":
            return read_table(path, domain, strict=strict)
        case ".jsonl":
            return _read_jsonl(path, spec)
    raise InputError(
        f"{path}: scenarios are read from .csv (the published table of {domain}) or .jsonl (one "
        f"scenario a line), not from {path.suffix or 'a file without a suffix'!r} files."
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
