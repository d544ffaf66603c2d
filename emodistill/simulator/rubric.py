"""The points of the judge's rubric, as figures that are read out of the messages alone.

None of them knows the counterparty's hidden type. They say what an utterance gives up and how much
of the way that is; whether it stands still, or takes what is offered; its tone, its argument, a
figure that is missing, words that were said before. What each is worth depends on the
circumstances: how much the other side has put up with already, how far the two are apart, and
whether the other side is moving. So each has four weights, which are in `judging.toml`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from emodistill.simulator import response_model as rm
from emodistill.simulator.reading import Speech, accepts, last_figure, read_figures

PATIENCE = 1.5
"""Irritation that most counterparties put up with. Strain is the irritation so far as a share of
that, so that at a strain of 1 the usual patience is used up."""
SMALL_SHARE = 0.1
"""Of the range: a concession that is answered in full (reciprocity saturates there)."""
LARGE_SHARE = 0.4
"""Of the distance: more than that at once is a large concession."""
MOOD_ODDS = 0.9
"""That a reply's mood is the one that the counterparty's type would have."""


class _Positions(NamedTuple):
    """Where both sides stand on the range, 0 the counterparty's anchor and 1 the target."""

    before: float
    """The own side's last figure, before the utterance."""
    after: float
    """The own side's figure after it; the last one where it names none."""
    reached: float
    """The other side's last figure."""
    moved: float
    """How far the other side's last reply has moved."""


class _Heard(NamedTuple):
    """An own utterance as the counterparty hears it."""

    expression: rm.Expression
    run: int
    """How often its tone has been repeated in a row."""
    phase: rm.Phase
    is_still: bool
    """Whether it moved nothing."""
    mood: str
    """Of the reply: `pleased`, `cross` or `flat`; empty where there is none yet."""


class RubricReading(NamedTuple):
    """An utterance as the rubric sees it."""

    points: dict[str, float]
    """What it does, by name; each about 0 to 1."""
    strain: float
    """How much of the usual patience the talks had used up before it, from 0 to 1."""
    distance: float
    """How far the sides were apart before it, of the whole range."""
    moved: float
    """How far the other side's last reply had moved."""

    def terms(self) -> dict[str, tuple[float, ...]]:
        """What is weighted: each point alone, and times each of the circumstances."""
        circumstances = 1.0, self.strain, self.distance, self.moved
        return {
            name: tuple(point * one for one in circumstances) for name, point in self.points.items()
        }


def read_rubric(domain: str, target: float, history: Sequence[Speech], text: str) -> RubricReading:
    """The points of a focal utterance and the circumstances."""
    own_texts = [speech.text for speech in history if speech.is_own]
    own, theirs = read_figures(history, domain)
    value = last_figure(text, domain)
    positions = _positions(target, own, theirs, value)
    *heard, now = _heard(domain, target, history, text)
    distance = min(1.0, max(0.0, positions.before - positions.reached))
    given = min(1.0, max(0.0, positions.before - positions.after))
    share = min(1.0, given / distance) if distance > 0 else 0.0
    is_taken = bool(theirs) and (accepts(text) or value == theirs[-1])
    tone = _tone(domain, heard, now) if own_texts else 0.0
    points = {
        "given": given,
        "given_share": share,
        "small_concession": min(1.0, given / SMALL_SHARE),
        "large_concession": max(0.0, share - LARGE_SHARE),
        "stands": float(bool(own_texts) and given <= 0 and not is_taken),
        "taken": float(is_taken),
        "no_figure": float(value is None and not is_taken),
        "tone": tone,
        "tone_now": tone * min(1.0, max(0.0, positions.after - positions.reached)),
        "harsh_tone": max(0.0, -tone),
        "argument": float(_is_new_argument(domain, own_texts, text)),
        "repeated": float(text in own_texts),
    }
    return RubricReading(points, _strain(domain, heard), distance, positions.moved)


def _positions(
    target: float, own: Sequence[float], theirs: Sequence[float], value: float | None
) -> _Positions:
    if not theirs or theirs[0] == target:
        return _Positions(1.0, 1.0, 0.0, 0.0)
    anchor, span = theirs[0], target - theirs[0]

    def position(figure: float) -> float:
        return (figure - anchor) / span

    before = position(own[-1]) if own else 1.0
    after = before if value is None else position(value)
    reached = [position(figure) for figure in theirs[-2:]]
    return _Positions(before, after, reached[-1], reached[-1] - reached[0])


def _heard(domain: str, target: float, history: Sequence[Speech], text: str) -> Iterator[_Heard]:
    """All own utterances, the one that is judged at the end."""
    talks = [*history, Speech(True, text)]
    emotion, run, stood = None, 0, 1.0
    turns = [i for i, speech in enumerate(talks) if speech.is_own]
    for number, index in enumerate(turns, start=1):
        spoken = talks[index].text
        _, theirs = read_figures(talks[:index], domain)
        positions = _positions(target, [], theirs, last_figure(spoken, domain))
        offered = stood if last_figure(spoken, domain) is None else positions.after
        expression = rm.expressed(spoken)
        is_same = expression.emotion is not None and expression.emotion == emotion
        emotion, run = expression.emotion, run + 1 if is_same else 0
        phase = rm.phase_of(number, max(0.0, offered - positions.reached))
        reply = talks[index + 1].text if index + 1 < len(talks) else ""
        yield _Heard(expression, run, phase, number > 1 and offered >= stood, _mood(reply))
        stood = offered


def _mood(reply: str) -> str:
    if not reply:
        return ""
    said: Mapping[str, Sequence[str]] = rm.PHRASES["counterparty"]
    moods = ("pleased", "cross")
    return next((m for m in moods if any(reply.startswith(one) for one in said[m])), "flat")


def _effect(domain: str, heard: _Heard, kind: str | None) -> float:
    return rm.emotional_effect(domain, heard.phase, kind, *heard.expression, heard.run)


def _strain(domain: str, heard: Sequence[_Heard]) -> float:
    """How much of the usual patience the talks have used up so far."""
    irritation = sum(
        rm.IRRITATION_PER_TURN
        + rm.IRRITATION_WHEN_STUCK * one.is_still
        + rm.IRRITATION_PER_BAD_TONE * max(0.0, -_effect(domain, one, None))
        for one in heard
    )
    return min(1.0, irritation / PATIENCE)


def _tone(domain: str, heard: Sequence[_Heard], now: _Heard) -> float:
    """The effect of the tone that the other side's moods so far let one expect."""
    odds = dict.fromkeys(rm.TYPES, 1.0)
    for one, kind in itertools.product(heard, rm.TYPES):
        effect = _effect(domain, one, kind)
        expected = "pleased" if effect > 0.2 else "cross" if effect < -0.2 else "flat"
        odds[kind] *= MOOD_ODDS if one.mood == expected else (1.0 - MOOD_ODDS) / 2
    effects = (odds[kind] * _effect(domain, now, kind) for kind in rm.TYPES)
    return sum(effects) / sum(odds.values())


def _is_new_argument(domain: str, own_texts: Sequence[str], text: str) -> bool:
    used = set().union(*(rm.arguments(earlier, domain) for earlier in own_texts))
    return bool(rm.arguments(text, domain) - used)
