"""Built-in scenarios: 100 per domain, drawn from the pools and ranges in the domain's toml.

    [generator.values]   field or number -> how it is drawn, for every scenario
    [[generator.cases]]  what belongs together (a trade and its purchases); overrides `values`

A draw is a string (fixed), a list of strings (pick one), a range `{low, high, step}`, or
`{by = "field", <value of that field> = <draw>}`. Of `focal_target`, `counterparty_anchor` and
`gap` (= |target − anchor|) two are drawn and the third follows. Every draw has its own random
stream, under a fixed seed: the same scenarios on every machine and in every experiment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emodistill.domains.registry import Domain, get_domain
from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError
from emodistill.seeding import stream

NUM_SCENARIOS = 100
_SEED = 0
_MAX_ATTEMPTS = 500
_GAME = ("focal_target", "counterparty_anchor", "gap")

Draw = str | list[str] | Mapping[str, Any]


def generate_scenarios(domain: str, num_scenarios: int = NUM_SCENARIOS) -> list[Scenario]:
    """The built-in scenarios of `domain`; the first n are the same whatever n is asked for.

    Raises:
        InputError: the domain's pools do not hold so many different scenarios.
    """
    spec = get_domain(domain)
    cases = spec.generator["cases"]
    scenarios: list[Scenario] = []
    seen: set[tuple[str | float, ...]] = set()
    for index in range(num_scenarios):
        lap, turn = divmod(index, len(cases))
        order = stream(_SEED, "generator", domain, "cases", lap).permutation(len(cases))
        draws = {**spec.generator["values"], **cases[order[turn]]}
        attempt = 0
        while (facts := _facts(spec, values := _draw_all(spec, draws, index, attempt))) in seen:
            attempt += 1
            if attempt == _MAX_ATTEMPTS:
                raise InputError(
                    f"domain {domain!r}: the pools of its toml file hold no more than about "
                    f"{index} different scenarios, {num_scenarios} asked for; widen the pools."
                )
        seen.add(facts)
        scenarios.append(_scenario(spec, index + 1, values))
    return scenarios


def _facts(spec: Domain, values: Mapping[str, str | float]) -> tuple[str | float, ...]:
    return tuple(values[name] for name in spec.fields)


def _scenario(spec: Domain, number: int, values: Mapping[str, str | float]) -> Scenario:
    drawn = {name: float(value) for name, value in values.items() if name in _GAME}
    pull = spec.direction * drawn.get("gap", 0.0)
    target = drawn.get("focal_target", drawn.get("counterparty_anchor", 0.0) + pull)
    anchor = drawn.get("counterparty_anchor", target - pull)
    return Scenario(
        scenario_id=spec.scenario_id(number),
        domain=spec.name,
        focal_target=target,
        counterparty_anchor=anchor,
        unit=spec.unit,
        fields=dict(zip(spec.fields, _facts(spec, values), strict=True)),
    )


def _draw_all(
    spec: Domain, draws: Mapping[str, Draw], index: int, attempt: int
) -> dict[str, str | float]:
    def draw(name: str, how: Draw) -> str | float:
        rng = stream(_SEED, "generator", spec.name, index, name, attempt)
        if isinstance(how, str):
            return how
        if isinstance(how, list):
            return how[rng.integers(len(how))]
        low, high, step = how["low"], how["high"], how["step"]
        return low + step * int(rng.integers(round((high - low) / step) + 1))

    def is_dependent(how: Draw) -> bool:
        return isinstance(how, Mapping) and "by" in how

    values = {name: draw(name, how) for name, how in draws.items() if not is_dependent(how)}
    for name, how in draws.items():
        if is_dependent(how):
            values[name] = draw(name, how[values[how["by"]]])  # type: ignore[index]
    return {name: values[name] for name in draws}
