"""`sim-judge`: reads an utterance with noise and sometimes answers badly.

It sees what a judging model sees: the case, the target, the history and the utterance. It knows
what tends to work in a domain at that phase of the talks, not the counterparty's hidden type.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emodistill.domains import get_domain
from emodistill.simulator import response_model as rm
from emodistill.simulator.reading import (
    Request,
    Speech,
    accepts,
    last_figure,
    read_brief,
    read_figures,
    read_history,
    read_sections,
)

NOISE = 0.8  # standard deviation in points
BAD_ANSWER_ODDS = 0.015
BAD_ANSWERS = (
    "I would call this a rather solid move.",
    "Good tone, weak figure.",
    "",
    "SCORE: high",
    "The utterance deserves 8 or 9 points.",
)


def blind_reply(request: Request) -> str:
    """A score that has nothing to do with what is judged, each from 1 to 10 as often."""
    return _answer(int(request.rng.integers(1, 11)))


def judge_reply(request: Request) -> str:
    """The judge's answer to a turn or dialogue request."""
    rng, sections = request.rng, read_sections(request.system, request.user)
    if rng.random() < BAD_ANSWER_ODDS:
        return str(rng.choice(BAD_ANSWERS))
    target = read_brief(sections.scenario).own_figure
    if target is None:
        return "I can't find the target."
    domain = read_brief(sections.scenario).domain
    role = get_domain(domain).focal_role
    history = read_history(sections.talks, role)
    if sections.utterance is not None:
        lines = sections.utterance.splitlines()
        text = next((line for line in lines if line and not line.startswith("<")), "")
        spoken = read_history(text, role)
        points = score_turn(domain, target, history, spoken[0].text if spoken else text)
    else:
        points = score_dialogue(domain, target, history, sections.ending or "")
    return _answer(int(np.clip(round(points + rng.normal(0.0, NOISE)), 1, 10)))


def score_turn(domain: str, target: float, history: Sequence[Speech], text: str) -> float:
    """The noiseless score of a focal utterance, in points."""
    own, theirs = read_figures(history, domain)
    value = last_figure(text, domain)
    own_turns = [speech.text for speech in history if speech.is_own]
    points = 5.5
    gap = 1.0
    if value is None:
        points -= 1.0 if accepts(text) else 2.0
    elif theirs and theirs[0] != target:
        anchor, span = theirs[0], target - theirs[0]
        worth = (value - anchor) / span
        stood = (own[-1] - anchor) / span if own else 1.0
        reached = (theirs[-1] - anchor) / span
        given = max(0.0, stood - worth)
        gap = max(0.0, worth - reached)
        points += 2.0 * (float(np.clip(worth, 0, 1)) - 0.5)
        points -= 5.0 * max(0.0, given - 0.15)
        if own and 0 < given <= 0.15:
            points += 0.7
        if accepts(text):
            points += 1.0 if reached > 0.6 else -0.5
    expression = rm.expressed(text)
    phase = rm.phase_of(len(own_turns) + 1, gap)
    effect = rm.emotional_effect(domain, phase, None, expression.emotion, expression.clarity, 0)
    points += 1.8 * effect
    points += 1.2 if rm.arguments(text, domain) else -0.3
    if text in own_turns:
        points -= 1.5
    return points


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
