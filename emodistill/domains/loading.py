"""Where scenarios come from: the built-in generator, a published table, or one's own JSONL."""

from __future__ import annotations

import logging
from pathlib import Path

from emodistill.domains.generator import generate_scenarios
from emodistill.domains.published import read_table, read_text
from emodistill.domains.registry import Domain, get_domain
from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError
from emodistill.untrusted import brief, parse_json, shown


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
    spec = get_domain(domain)
    if path is None:
        return generate_scenarios(domain)
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


def _read_jsonl(path: Path, spec: Domain) -> list[Scenario]:
    scenarios: list[Scenario] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            scenario = Scenario.from_json(parse_json(line), where=where)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(
                f"{where}: this line is no JSON ({brief(error)}). Each line holds one scenario."
            ) from None
        _check(scenario, spec, where)
        if (first := line_of.setdefault(scenario.scenario_id, number)) != number:
            raise InputError(
                f"{where}: scenario_id={scenario.scenario_id!r} stands in line {first} too; "
                f"ids must be unique within a file."
            )
        scenarios.append(scenario)
    if not scenarios:
        raise InputError(f"{path} holds no scenario; each line must be one JSON object.")
    repaired = sum(scenario.repaired for scenario in scenarios)
    logging.getLogger("emodistill").info(
        "%s: %d scenarios, %d of them repaired.", path, len(scenarios), repaired
    )
    return scenarios


def _check(scenario: Scenario, spec: Domain, where: str) -> None:
    if scenario.domain != spec.name:
        raise InputError(
            f"{where}: domain={scenario.domain!r} in a file for --domain {spec.name}; use "
            f"--domain {scenario.domain}, or keep one file per domain."
        )
    if scenario.unit != spec.unit:
        raise InputError(
            f"{where}: unit={scenario.unit!r}; scenarios of {spec.name} are in {spec.unit!r}. "
            f"Convert the values and name that unit."
        )
    for name, value in scenario.fields.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InputError(
                f"{where}: field {shown(name)} of `fields` is {shown(value)}; a fact is a string "
                "or a number."
            )
