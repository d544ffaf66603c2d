"""Built-in scenarios: 100 per domain, drawn from the pools and ranges in the domain's toml.

    [generator.values]   field or number -> how it is drawn, for every scenario
    [[generator.cases]]  what belongs together (a trade and its purchases); overrides `values`

A draw is a string (fixed), a list of strings (pick one), a range `{low, high, step}`, or
`{by = "field", <value of that field> = <draw>}`. Of `focal_target`, `counterparty_anchor` and
`gap` (= |target − anchor|) two are drawn and the third follows. Every draw has its own random
stream, under a fixed seed: the same scenarios on every machine and in every experiment. Another
seed makes scenarios that no experiment uses, such as those on which the simulated judge was fitted.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from emodistill.domains.registry import Domain, get_domain
from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError
from emodistill.seeding import stream

NUM_SCENARIOS = 100
_SEED = 0
_MAX_ATTEMPTS = 500

Draw = str | list[str] | Mapping[str, Any]


def generate_scenarios(
    domain: str, num_scenarios: int = NUM_SCENARIOS, seed: int = _SEED
) -> list[Scenario]:
    """The built-in scenarios of `domain`; the first n are the same whatever n is asked for.

    Raises:
        InputError: the domain's pools do not hold so many different scenarios.
    """
    return list(_generated(domain, num_scenarios, seed))


@functools.cache  # several stages of a process ask for the same ones
def _generated(domain: str, num_scenarios: int, seed: int) -> tuple[Scenario, ...]:
    spec = get_domain(domain)
    cases = spec.generator["cases"]
    scenarios: list[Scenario] = []
    known: set[tuple[Any, ...]] = set()
    for index in range(num_scenarios):
        lap, turn = divmod(index, len(cases))
        order = stream(seed, "generator", domain, "cases", lap).permutation(len(cases))
        draws = {**spec.generator["values"], **cases[order[turn]]}
        for attempt in range(_MAX_ATTEMPTS):
            scenario = _scenario(spec, index + 1, _draw_all(spec, draws, seed, index, attempt))
            if (texts := tuple(scenario.fields.values())) not in known:
                break
        else:
            raise InputError(
                f"domain {domain!r}: the pools of its toml file hold no more than about "
                f"{index} different scenarios, {num_scenarios} asked for; widen the pools."
            )
        scenarios.append(scenario)
        known.add(texts)
    return tuple(scenarios)


def _scenario(spec: Domain, number: int, values: Mapping[str, Any]) -> Scenario:
    pull = spec.direction * values.get("gap", 0)
    target = values.get("focal_target", values.get("counterparty_anchor", 0) + pull)
    anchor = values.get("counterparty_anchor", target - pull)
    return Scenario(
        scenario_id=spec.scenario_id(number),
        domain=spec.name,
        focal_target=float(target),
        counterparty_anchor=float(anchor),
        unit=spec.unit,
        fields={name: values[name] for name in spec.fields},
    )


def _draw_all(
    spec: Domain, draws: Mapping[str, Draw], seed: int, index: int, attempt: int
) -> dict[str, Any]:
    def draw(name: str) -> Any:
        how = draws[name]
        if isinstance(how, Mapping) and "by" in how:
            how = how[draw(how["by"])]
        if isinstance(how, str):
            return how
        rng = stream(seed, "generator", spec.name, index, name, attempt)
        if isinstance(how, list):
            return how[rng.integers(len(how))]
        low, high, step = how["low"], how["high"], how["step"]
        return low + step * int(rng.integers(round((high - low) / step) + 1))

    return {name: draw(name) for name in draws}
