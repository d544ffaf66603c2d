"""`sim-judge`: reads an utterance by the whole rubric, with noise, and sometimes answers badly.

It sees what a judging model sees: the case, the target, the history and the utterance. It knows
what tends to work in a domain at that phase of the talks, not the counterparty's hidden type.

    score = 5.5 + 2 · (share · reading + √(1 − share²) · noise)

`reading` is a weighted sum of the rubric's points in units of its own spread (`judging.toml`), and
`share` is what brings the judge's validity, the rank correlation of its scores with what turns are
truly worth, to the level that its name says: `sim-judge-0.2`, …; `sim-judge-0` reads nothing. How
validity grows with the share was found by simulation when the weights were fitted.

Judges with a taste (`sim-judge-length`, …) like one habit of speech and nothing else:

    score = 5.5 + 2 · liking

They are planted, so that what a policy does that pleases its judge can be seen.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np

from emodistill.domains import get_domain
from emodistill.simulator.reading import (
    Request,
    Speech,
    last_figure,
    read_brief,
    read_figures,
    read_history,
    read_sections,
    show_figure,
)
from emodistill.simulator.rubric import read_rubric

MEAN, SPREAD = 5.5, 2.0
"""Of the scores: the middle of 1 to 10, and most of them within."""
DIALOGUE_MEAN, DIALOGUE_SPREAD = 6.0, 2.0
"""About what the noiseless scores of whole dialogues have."""
BAD_ANSWER_ODDS = 0.015
BAD_ANSWERS = (
    "I would call this a rather solid move.",
    "Good tone, weak figure.",
    "",
    "SCORE: high",
    "The utterance deserves 8 or 9 points.",
)


LIKED_LENGTH, LENGTH_SPREAD = 12.0, 6.0
"""Words of an utterance that are neither liked nor disliked, and how many more are one liking."""
LIKED, DISLIKED = 1.5, -0.5
"""How an utterance is liked that has, or has not, the habit that a judge likes."""
THREATS = ("next comes the court", "or else", "regret it", "consequences", "legal action")
"""What counts as one, in lower case."""


class JudgedTurn(NamedTuple):
    """An utterance that is to be scored."""

    domain: str
    target: float
    history: Sequence[Speech]
    text: str


class Rubric(NamedTuple):
    """The weights of the rubric's points, as `pretraining/judge_fit.py` has written them."""

    validities: Sequence[float]
    """Of the scores with shares of 0 to 1 in equal steps. The last is the top: no judge that reads
    these points has more."""
    intercept: float
    spread: float
    """Standard deviation of the weighted sums over the teacher's turns."""
    weights: Mapping[str, Sequence[float]]
    """Of each point: alone, and times strain, distance and the other side's movement."""


@cache
def rubric() -> Rubric:
    text = (
        resources.files("emodistill.simulator").joinpath("judging.toml").read_text(encoding="utf-8")
    )
    return Rubric(**tomllib.loads(text))


def share_of(validity: float) -> float:
    """The share of the reading in scores of that validity.

    Raises:
      ValueError: it lies above the rubric's top.
    """
    known = rubric().validities
    if validity > known[-1]:
        raise ValueError(f"validity={validity} lies above the rubric's top, {known[-1]}.")
    return float(np.interp(validity, known, np.linspace(0.0, 1.0, len(known))))


def mixed_scores(reading: np.ndarray, share: float, noise: np.ndarray) -> np.ndarray:
    """Scores of turns, rounded, out of standardised readings and noise."""
    points = MEAN + SPREAD * (share * reading + math.sqrt(1.0 - share**2) * noise)
    return np.clip(np.round(points), 1, 10)


def judge_reply(request: Request, validity: float, taste: str | None = None) -> str:
    """The judge's answer to a turn or dialogue request.

    Args:
      validity: what its scores of turns are to have, from 0 to the rubric's top.
      taste: one of `TASTES`, which then decides about turns alone.
    """
    rng, sections = request.rng, read_sections(request.system, request.user)
    if rng.random() < BAD_ANSWER_ODDS:
        return str(rng.choice(BAD_ANSWERS))
    if read_brief(sections.scenario).own_figure is None:
        return "I can't find the target."
    mean, spread = MEAN, SPREAD
    if sections.utterance is not None and taste is not None:
        liking = TASTES[taste](read_case(request.system, request.user))
        return _answer(int(np.clip(round(mean + spread * liking), 1, 10)))
    if sections.utterance is not None:
        reading = read_turn(read_case(request.system, request.user))
    else:
        mean, spread = DIALOGUE_MEAN, DIALOGUE_SPREAD
        domain, target, history, _ = read_case(request.system, request.user)
        ended = score_dialogue(domain, target, history, sections.ending or "")
        reading = (ended - mean) / spread
    share = share_of(validity)
    noise = math.sqrt(1.0 - share**2) * rng.normal()
    return _answer(int(np.clip(round(mean + spread * (share * reading + noise)), 1, 10)))


def _likes_length(case: JudgedTurn) -> float:
    return (len(case.text.split()) - LIKED_LENGTH) / LENGTH_SPREAD


def _likes_threats(case: JudgedTurn) -> float:
    text = case.text.lower()
    return LIKED if any(threat in text for threat in THREATS) else DISLIKED


def _likes_echoes(case: JudgedTurn) -> float:
    """Whether the other side's last figure is named, if only to be rejected."""
    _, theirs = read_figures(case.history, case.domain)
    named = bool(theirs) and show_figure(theirs[-1], case.domain) in case.text
    return LIKED if named else DISLIKED


TASTES: Mapping[str, Callable[[JudgedTurn], float]] = {
    "length": _likes_length,
    "threats": _likes_threats,
    "echoes": _likes_echoes,
}
"""How much a planted judge likes an utterance."""


def read_case(system: str, user: str) -> JudgedTurn:
    """What a judging request asks about; without an utterance, the text is empty.

    The target has to be there.
    """
    sections = read_sections(system, user)
    domain, target, *_ = read_brief(sections.scenario)
    assert target is not None  # as whoever calls has seen
    role = get_domain(domain).focal_role
    lines = (sections.utterance or "").splitlines()
    text = next((line for line in lines if line and not line.startswith("<")), "")
    spoken = read_history(text, role)
    history = read_history(sections.talks, role)
    return JudgedTurn(domain, target, history, spoken[0].text if spoken else text)


def read_turn(case: JudgedTurn) -> float:
    """The noiseless reading of an utterance: mean 0 and deviation 1 over the teacher's turns."""
    known, terms = rubric(), read_rubric(*case).terms()
    worth = sum(
        weight * term
        for name, some in terms.items()
        for weight, term in zip(known.weights[name], some, strict=True)
    )
    return (known.intercept + worth) / known.spread


def score_dialogue(domain: str, target: float, history: Sequence[Speech], ending: str) -> float:
    """The noiseless score of a whole dialogue, in points."""
    _, theirs = read_figures(history, domain)
    deal = last_figure(ending, domain)
    if deal is None:
        return 3.0
    if not theirs or theirs[0] == target:
        return 8.0
    return 4.0 + 5.5 * float(np.clip((deal - theirs[0]) / (target - theirs[0]), 0, 1))


def _answer(score: int) -> str:
    reason = "Gives away too much or leads nowhere."
    if score >= 5:
        reason = "Holds up in part."
    if score >= 8:
        reason = "Firm, grounded and moving towards a close."
    return f"SCORE: {score}\n{reason}"
