"""The seven emotions of the related systems, the 28 labels that belong to them, and their tables.

The seven are GoEmotions labels themselves, so that a system acts in this vocabulary as it is. What
it reads, of itself or of the other side, may be any of the 28; it is mapped by GoEmotions' own
grouping into Ekman's emotions. That mapping is ours: the systems never met 28 labels.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from emodistill.emotions import EKMAN, EMOTIONS

if TYPE_CHECKING:
    from emodistill.configs import SpokenLabels
    from emodistill.negotiation.states import DialogueState

SEVEN = EKMAN
JOY, SADNESS, ANGER, FEAR, SURPRISE, DISGUST, NEUTRAL_GROUP = range(7)
_MEMBERS: Mapping[int, tuple[str, ...]] = {
    SADNESS: ("sadness", "disappointment", "embarrassment", "grief", "remorse"),
    ANGER: ("anger", "annoyance", "disapproval"),
    FEAR: ("fear", "nervousness"),
    SURPRISE: ("surprise", "realization", "confusion", "curiosity"),
    DISGUST: ("disgust",),
    NEUTRAL_GROUP: ("neutral",),
}
_GROUPS = {label: group for group, labels in _MEMBERS.items() for label in labels}


def group_of(label: str | None) -> int:
    """The index in `SEVEN` of a GoEmotions label; None is neutral, all other labels are joy."""
    return NEUTRAL_GROUP if label is None else _GROUPS.get(label, JOY)


def members(group: int) -> tuple[str, ...]:
    """The labels of a group."""
    return tuple(label for label in EMOTIONS if group_of(label) == group)


def spoken_label(group: int, labels: SpokenLabels, rng: np.random.Generator) -> str:
    """What is asked of the writer for a group: its own name, or under `wide` any member of it."""
    if labels == "seven":
        return SEVEN[group]
    return str(rng.choice(members(group)))


def own_groups(state: DialogueState) -> list[int]:
    """The groups of the player's own emotions so far."""
    return [group_of(label) for label in state.emotions]


def last_group(groups: Sequence[int]) -> int:
    """The latest group; neutral before the first."""
    return groups[-1] if groups else NEUTRAL_GROUP


@cache
def published(system: str) -> Mapping[str, np.ndarray]:
    """The tables that a system starts from, float64; chances are normalised to rows of one.

    Payoffs stay as they are. A table with an `order` of its own is put in the order of `SEVEN`.
    """
    path = resources.files("emodistill.selectors").joinpath("relatives.toml")
    tables: dict[str, Any] = dict(tomllib.loads(path.read_text(encoding="utf-8"))[system])
    order = [tables.get("order", SEVEN).index(name) for name in SEVEN]
    found = {}
    for name, rows in tables.items():
        if name == "order":
            continue
        table = np.array(rows, dtype=np.float64)
        if name == "start":
            table = table[np.ix_(order, order)]
        if not name.startswith("payoff"):
            table /= table.sum(axis=-1, keepdims=True)
        table.flags.writeable = False
        found[name] = table
    return found
