"""`sim-judge`: reads an utterance with noise and sometimes answers badly.

It sees what a judging model sees: the case, the target, the history and the utterance. It knows
what tends to work in a domain at that phase of the talks, not the counterparty's hidden type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from emodistill.simulator import response_model as rm
from emodistill.simulator.reading import (
    Speech,
    accepts,
    last_figure,
    messages_text,
    read_brief,
    read_history,
)
from emodistill.simulator.teacher import read_table

NOISE = 0.8  # standard deviation in points
BAD_ANSWER_ODDS = 0.015
BAD_ANSWERS = (
    "I would call this a rather solid move.",
    "Good tone, weak figure.",
    "",
    "SCORE: high",
    "The utterance deserves 8 or 9 points.",
)
_CASE = re.compile(r"# Case\s+(.*?)\n(?:Target of the (\w+): (.*?)\n)", re.DOTALL)


def blind_reply(messages: Sequence[Mapping[str, str]], rng: np.random.Generator) -> str:
    """A score that has nothing to do with what is judged, each from 1 to 10 as often."""
    score = int(rng.integers(1, 11))
    return f"SCORE: {score}\n{_rationale(score)}"


def judge_reply(messages: Sequence[Mapping[str, str]], rng: np.random.Generator) -> str:
    """The judge's answer to a turn or dialogue request."""
    if rng.random() < BAD_ANSWER_ODDS:
        return str(rng.choice(BAD_ANSWERS))
    system, user = messages_text(messages)
    case = _CASE.search(user)
    if case is None:
        return "I can't find a case to judge."
    role = case.group(2).lower()
    domain = read_brief(f"{system}\n{case.group(1)}").domain
    target = last_figure(case.group(3), domain)
    if target is None:
        return "I can't find the target."
    # The target's own line looks like an utterance, so the talks are read from behind it.
    before, mark, after = user[case.end() :].partition("# Utterance to score")
    if mark:
        history = read_history(before, role)
        (utterance,) = read_history(after, role)[:1] or [Speech(True, after)]
        points = score_turn(domain, target, history, utterance.text)
    else:
        points = score_dialogue(domain, target, read_history(before, role), user)
    score = int(np.clip(round(points + rng.normal(0.0, NOISE)), 1, 10))
    return f"SCORE: {score}\n{_rationale(score)}"


def score_turn(domain: str, target: float, history: Sequence[Speech], text: str) -> float:
    """The noiseless score of a focal utterance, in points."""
    table = read_table(history, domain)
    value = last_figure(text, domain)
    own_turns = [speech.text for speech in history if speech.is_own]
    anchor = table.theirs_first
    points = 5.5
    gap = 1.0
    if value is None:
        points -= 1.0 if accepts(text) else 2.0
    elif anchor is not None and anchor != target:
        worth = (value - anchor) / (target - anchor)
        stood = 1.0 if table.own is None else (table.own - anchor) / (target - anchor)
        reached = (table.theirs - anchor) / (target - anchor) if table.theirs is not None else 0.0
        given = max(0.0, stood - worth)
        gap = max(0.0, worth - reached)
        points += 2.0 * (float(np.clip(worth, 0, 1)) - 0.5)
        points -= 5.0 * max(0.0, given - 0.15)
        if table.own is not None and 0 < given <= 0.15:
            points += 0.7
        if accepts(text):
            points += 1.0 if reached > 0.6 else -0.5
    expression = rm.expressed(text)
    phase = rm.phase_of(len(own_turns) + 1, gap)
    effect = rm.emotional_effect(domain, phase, None, expression.emotion, expression.clarity, 0)
    points += 1.8 * effect
    keywords = rm.phrases()["keywords"][domain]
    lowered = text.lower()
    points += 1.2 if any(word in lowered for word in keywords) else -0.3
    if text in own_turns:
        points -= 1.5
    return points


def score_dialogue(domain: str, target: float, history: Sequence[Speech], user: str) -> float:
    """The noiseless score of a whole dialogue, in points."""
    table = read_table(history, domain)
    ending = user.partition("# How they ended")[2]
    deal = last_figure(ending, domain)
    if deal is None or table.theirs_first is None or table.theirs_first == target:
        return 3.0 if deal is None else 8.0
    worth = (deal - table.theirs_first) / (target - table.theirs_first)
    return 4.0 + 5.5 * float(np.clip(worth, 0, 1))


def _rationale(score: int) -> str:
    if score >= 8:
        return "Firm, grounded and moving towards a close."
    return "Holds up in part." if score >= 5 else "Gives away too much or leads nowhere."
