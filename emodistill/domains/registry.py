"""The four domains, read from the toml files beside this one: a domain is data.

A file says who negotiates what, in which unit and direction, how its built-in scenarios are drawn
(`[generator]`) and how its published table maps to a scenario (`[table]`).
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import resources
from typing import Any, Literal

from emodistill.errors import InputError

DOMAINS: tuple[str, ...] = ("crad", "disaster", "hospital", "student")

_DAY_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """What is negotiated and by whom.

    Attributes:
      unit: the unit of x, as records carry it; `unit_singular` is the form for exactly one.
      direction: +1 if the focal agent's target lies above the counterparty's anchor, else -1.
      tolerance: two values this close, in `unit`, are the same value.
      range: the lowest and the highest value that a target or an anchor can have; beyond it, a
        figure is in another unit, or a slip.
      clock_origin_h: hour of the day at x = 0 where values are clock times, else None.
      fields: the keys of a scenario's `fields`, in the order in which prompts show them.
      scenario_prefix: `debt` in `debt_001`.
      generator: the pools and ranges of the built-in scenarios.
      table: columns of the published table.
    """

    name: str
    unit: str
    unit_singular: str
    focal_role: str
    counterparty_role: str
    quantity: str
    direction: Literal[1, -1]
    tolerance: float
    range: tuple[float, float]
    scenario_prefix: str
    fields: tuple[str, ...]
    generator: Mapping[str, Any]
    table: Mapping[str, Any]
    clock_origin_h: int | None = None

    def scenario_id(self, number: int) -> str:
        """`debt_001` for number 1."""
        return f"{self.scenario_prefix}_{number:03d}"


def get_domain(name: str) -> Domain:
    """The domain of that name.

    Raises:
      InputError: there is none; the message lists the four.
    """
    if name not in DOMAINS:
        raise InputError(
            f"domain={name!r} is not known; use one of {', '.join(DOMAINS)} (--domain)."
        )
    return _read_domain(name)


@functools.cache
def _read_domain(name: str) -> Domain:
    text = (
        resources.files("emodistill.domains").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    )
    content: dict[str, Any] = tomllib.loads(text)
    content |= {name: tuple(content[name]) for name in ("fields", "range")}
    return Domain(name=name, **content)


def format_value(domain: str, value: float) -> str:
    """A value as people say it: "35 days", "1 day", "90 minutes"; in student "10:45 PM"."""
    spec = get_domain(domain)
    if spec.clock_origin_h is not None:
        minutes = round(spec.clock_origin_h * 60 + value * 60) % _DAY_MINUTES
        return f"{datetime.min + timedelta(minutes=minutes):%I:%M %p}".lstrip("0")
    number = f"{round(value, 2):.2f}".rstrip("0").rstrip(".")
    return f"{number} {spec.unit_singular if number == '1' else spec.unit}"


def format_number(domain: str, value: float) -> str:
    """A value without its unit: "35", "1", "90"; a clock time, which has none, as it is."""
    shown = format_value(domain, value)
    return shown if get_domain(domain).clock_origin_h is not None else shown.split()[0]
