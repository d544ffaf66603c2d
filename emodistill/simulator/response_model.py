"""What moves a simulated counterparty: the planted truth that the pipeline has to find.

    rate_t = base(type) · exp(a·E_t + b·L_t + c·M_t) · lognormal noise
    p_t = p_{t−1} + rate_t·(limit − p_{t−1})

p is the counterparty's position between its own preference (0) and the focal side's first demand
(1). E is the emotional effect, L a new argument from the facts, M the focal side's own movement.
E depends on the domain, on the phase of the talks and on a hidden type, fades when an emotion is
repeated, and counts only as far as the words express it. docs/simulator.md gives the reasoning.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, Literal, NamedTuple

import numpy as np

from emodistill.emotions import EMOTIONS, NEUTRAL
from emodistill.seeding import stream

Phase = Literal["opening", "middle", "closing"]
FAMILIES = ("pressure", "warmth", "appeal", "drive", "insight")

EMOTION_GAIN = 2.5  # a
LEVERAGE_GAIN = 0.5  # b
MOVEMENT_GAIN = 0.4  # c: reciprocity, saturating at a tenth of the range
NOISE = 0.25  # standard deviation of log rate
HABITUATION = 0.5  # what is left of an emotion each time it is repeated in a row
CLARITY = (0.0, 0.6, 1.0)  # by the number of distinct markers heard
CLOSING_GAP = 0.35  # below this share of the range the talks are closing
OPENING_TURNS = 2  # focal turns that count as opening

IRRITATION_PER_TURN = 0.10
IRRITATION_PER_BAD_TONE = 0.5
IRRITATION_WHEN_STUCK = 0.12
IRRITATION_PER_REPEATED_TEXT = 0.15


class TypeTraits(NamedTuple):
    """A hidden kind of counterparty; `weights` are added to those of the domain."""

    base_rate: float
    limit: Sequence[float]
    patience: Sequence[float]
    weights: Sequence[float]


class Affect(NamedTuple):
    """An emotion in the model, the words that carry it and the word that asks for it."""

    family: str
    strength: float
    first: Sequence[str]
    second: Sequence[str]
    markers: Sequence[re.Pattern[str]]
    adjective: str = ""


def _read_toml(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files("emodistill.simulator").joinpath(name).read_text())


def _affect(markers: Sequence[str], **texts: Any) -> Affect:
    heard = [re.compile(rf"\b{re.escape(stem)}", re.IGNORECASE) for stem in markers]
    return Affect(markers=heard, **texts)


_RESPONSE, _AFFECTS = _read_toml("response.toml"), _read_toml("affect.toml")
PHASE_WEIGHTS: dict[str, dict[Phase, Sequence[float]]] = _RESPONSE["weights"]
"""By domain and phase, how the average counterparty responds to each of `FAMILIES`."""
TYPE_TRAITS = {name: TypeTraits(**traits) for name, traits in _RESPONSE["types"].items()}
TYPES = tuple(TYPE_TRAITS)
AFFECTS = {label: _affect(**_AFFECTS[label]) for label in EMOTIONS}
PHRASES = _read_toml("phrases.toml")
"""What the simulated models say, and the words by which they recognise facts and arguments."""


def arguments(text: str, domain: str) -> set[str]:
    """The words of an utterance by which a listener recognises an argument from the facts."""
    lowered = text.lower()
    return {word for word in PHRASES["keywords"][domain] if word in lowered}


class HiddenType(NamedTuple):
    """One counterparty: its kind, how far it would go at most, how much it puts up with."""

    name: str
    limit: float
    patience: float


@cache
def hidden_type(scenario_text: str, seed: int, name: str | None = None) -> HiddenType:
    """The counterparty behind a scenario's text and a dialogue's seed, constant in a dialogue.

    The text tilts the odds of the types, the seed draws one, unless `name` says which it is.
    """
    odds = stream(0, "sim-type-odds", scenario_text).dirichlet(np.full(len(TYPES), 2.0))
    rng = stream(seed, "sim-type", scenario_text)
    drawn = TYPES[int(rng.choice(len(TYPES), p=odds))]
    traits = TYPE_TRAITS[name or drawn]
    limit, patience = (
        float(rng.uniform(low, high)) for low, high in (traits.limit, traits.patience)
    )
    return HiddenType(name or drawn, limit, patience)


class Expression(NamedTuple):
    """What a listener hears in an utterance: an emotion (None: no affect) and how clearly."""

    emotion: str | None
    clarity: float


@cache
def expressed(text: str) -> Expression:
    """The emotion with the most distinct markers; a tie is a muddle and counts as fainter."""
    counts = {
        label: sum(bool(marker.search(text)) for marker in affect.markers)
        for label, affect in AFFECTS.items()
    }
    best = max(counts.values())
    if best == 0:
        return Expression(None, 0.0)
    top = [label for label, count in counts.items() if count == best]
    return Expression(top[0], CLARITY[min(best, len(CLARITY) - 1)] / len(top))


def emotional_effect(
    domain: str, phase: Phase, type_name: str | None, emotion: str | None, clarity: float, run: int
) -> float:
    """E: weight × strength × clarity × habituation^run; `run` counts immediate repetitions.

    `type_name=None` takes the weights of the domain's average counterparty.
    """
    affect = AFFECTS[emotion or NEUTRAL]
    if affect.family not in FAMILIES:
        return 0.0
    index = FAMILIES.index(affect.family)
    weight = PHASE_WEIGHTS[domain][phase][index]
    weight += TYPE_TRAITS[type_name].weights[index] if type_name is not None else 0.0
    weight *= affect.strength
    # Only what pleases wears off; what grates keeps grating.
    fade = HABITUATION**run if weight > 0 else 1.0
    return weight * clarity * fade


def phase_of(num_focal_turns: int, gap: float) -> Phase:
    """Closing once the gap is small, opening for the first focal turns, else middle."""
    if num_focal_turns > 1 and gap < CLOSING_GAP:
        return "closing"
    return "opening" if num_focal_turns <= OPENING_TURNS else "middle"


def best_emotion(domain: str, phase: Phase, type_name: str | None, previous: str | None) -> str:
    """What an oracle that knows the planted weights would express next."""

    def effect(label: str) -> float:
        return emotional_effect(domain, phase, type_name, label, 1.0, int(label == previous))

    return max(EMOTIONS, key=effect)
