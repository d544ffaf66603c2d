"""A scenario: one scalar negotiation with its facts, and the split into train and test."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import msgspec

from emodistill.domains.registry import DOMAINS, Domain
from emodistill.errors import InputError, refuse
from emodistill.records import SCHEMA, Record, SplitName
from emodistill.seeding import stream
from emodistill.untrusted import one_line


class Scenario(Record, frozen=True, kw_only=True):
    """One game: x runs from the counterparty's anchor to the focal agent's target.

    Values are in the domain's `unit`; `fields` are facts for the prompts (numbers or strings of
    one line, always data, never markup); `repaired` says that a number was moved to leave room to
    bargain.
    """

    schema: int = SCHEMA
    scenario_id: str
    domain: str
    split: SplitName = "train"
    focal_target: float
    counterparty_anchor: float
    unit: str
    fields: Mapping[str, Any]
    repaired: bool = False

    def __post_init__(self) -> None:
        for name in ("focal_target", "counterparty_anchor"):
            if not math.isfinite(value := getattr(self, name)):
                raise InputError(
                    f"{self.scenario_id}: {name}={value} is not a finite number; give the value "
                    f"in {self.unit}."
                )
        if self.focal_target == self.counterparty_anchor:
            raise InputError(
                f"{self.scenario_id}: focal_target and counterparty_anchor are both "
                f"{self.focal_target:g}; there is nothing to negotiate. Give them different values."
            )

    @classmethod
    def from_json(cls, obj: object, *, where: str) -> Self:
        """As `Record.from_json`; a fact that is not in one line is refused."""
        scenario = super().from_json(obj, where=where)
        for name, value in scenario.fields.items():
            if isinstance(value, str) and value != one_line(value):
                raise InputError(
                    f"{where}: field {name!r} of `fields` holds a line break or a control "
                    f"character ({value[:60]!r}); write each fact in one line."
                )
        return scenario

    @property
    def gap(self) -> float:
        """g = x* − x0; its sign is the direction in which the focal agent pulls."""
        return self.focal_target - self.counterparty_anchor


HeldOut = Literal["drawn", "last"]
"""Which scenarios are held out for the test: some drawn by a seed, or the last ones."""


class Split(NamedTuple):
    train: list[Scenario]
    validation: list[Scenario]
    test: list[Scenario]

    def all(self) -> list[Scenario]:
        return [*self.train, *self.validation, *self.test]


def split_scenarios(
    scenarios: Sequence[Scenario],
    n_test: int = 20,
    n_validation: int = 0,
    seed: int = 0,
    *,
    held_out: HeldOut = "drawn",
    test_ids: Collection[str] | None = None,
) -> Split:
    """Split by scenario; `split` is set on each.

    The test set does not depend on `n_validation`, so that asking for a validation set takes it out
    of the training scenarios and leaves the test set as it was. What is drawn is stable under the
    order of `scenarios`.

    Args:
      held_out: whether the test scenarios are drawn by `seed`, or the last `n_test`.
      test_ids: the test scenarios; `n_test` and `held_out` then play no part.
    """
    ids = sorted(scenario.scenario_id for scenario in scenarios)
    if len(set(ids)) != len(ids):
        raise InputError("two scenarios share a scenario_id; ids must be unique within a domain.")
    if test_ids is not None:
        n_test = len(test_ids)
    if n_test < 0 or n_validation < 0 or n_test + n_validation >= len(ids):
        raise InputError(
            f"n_test={n_test} and n_validation={n_validation} leave no training scenario of the "
            f"{len(ids)} given; lower --num-test and --num-validation, or give "
            "the scenarios a `split`."
        )
    order = [ids[i] for i in stream(seed, "split").permutation(len(ids))]
    if test_ids is not None:
        test = {*test_ids}
    elif held_out == "last":
        test = {scenario.scenario_id for scenario in scenarios[len(ids) - n_test :]}
    else:
        test = {*order[:n_test]}
    others = [scenario_id for scenario_id in order if scenario_id not in test]

    def part(name: SplitName, ids: Collection[str]) -> list[Scenario]:
        return [
            msgspec.structs.replace(scenario, split=name)
            for scenario in scenarios
            if scenario.scenario_id in ids
        ]

    return Split(
        train=part("train", {*others[n_validation:]}),
        validation=part("validation", {*others[:n_validation]}),
        test=part("test", test),
    )


def scenario_problems(scenario: Scenario, spec: Domain) -> list[str]:
    """What makes a scenario none of its domain, by field; nothing for one that can be played."""
    problems = []
    if scenario.domain != spec.name:
        problems.append(
            f"domain={scenario.domain!r} in a file for --domain {spec.name}; "
            + (
                f"use --domain {scenario.domain}, or keep one file per domain."
                if scenario.domain in DOMAINS
                else f"the domains are {', '.join(DOMAINS)}."
            )
        )
        return problems  # the rest is about the domain's own values
    if scenario.unit != spec.unit:
        problems.append(
            f"unit={scenario.unit!r}; scenarios of {spec.name} are in {spec.unit!r}. Convert the "
            "values and name that unit."
        )
    low, high = spec.range
    for name in ("focal_target", "counterparty_anchor"):
        if not low <= (value := getattr(scenario, name)) <= high:
            problems.append(
                f"{name}={value:g} must lie between {low:g} and {high:g} {spec.unit}. Is it in "
                "another unit?"
            )
    if scenario.gap * spec.direction < 0:
        side = "above" if spec.direction > 0 else "below"
        problems.append(
            f"focal_target={scenario.focal_target:g} must lie {side} counterparty_anchor="
            f"{scenario.counterparty_anchor:g} in {spec.name}; are the two swapped?"
        )
    for name, value in scenario.fields.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            problems.append(
                f"field {name!r} of `fields` is {value!r}; a fact is a string or a number."
            )
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(f"field {name!r} of `fields` is {value}, which is no finite number.")
    return problems


def is_split_given(rows: Sequence[tuple[bool, str]]) -> bool:
    """Whether somebody has split the scenarios: all rows name their split, or none does.

    Args:
      rows: for each scenario, whether it names its split, and where it is.

    Raises:
      InputError: some rows do; the message has those that don't.
    """
    without = [where for is_named, where in rows if not is_named]
    if without and len(without) < len(rows):
        refuse(
            [f"{where}: no `split`, which other lines have." for where in without],
            f"{len(without):,} of {len(rows):,} scenarios have no split. Give every one train, "
            "validation or test, or leave the field out everywhere to have the split drawn.",
        )
    return bool(rows) and not without


def refuse_leaks(scenarios: Sequence[tuple[Scenario, str]]) -> None:
    """Refuse scenarios, each given with where it is, that stand in two splits under two ids.

    Raises:
      InputError: facts, target and anchor of two are alike; trained on, one gives the other away.
    """
    first_of: dict[str, tuple[Scenario, str]] = {}
    problems = []
    for scenario, where in scenarios:
        game = [
            scenario.focal_target,
            scenario.counterparty_anchor,
            sorted(scenario.fields.items()),
        ]
        first, first_where = first_of.setdefault(repr(game), (scenario, where))
        if first.split != scenario.split:
            problems.append(
                f"{where}: split={scenario.split!r}, but the same facts, target and anchor are in "
                f"{first_where} with split={first.split!r}."
            )
    refuse(problems, "A scenario belongs to one split; drop or correct one of the two lines.")
