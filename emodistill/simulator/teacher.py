"""`sim-teacher`: focal utterances of varied quality and wording under the asked emotion.

Skill varies from utterance to utterance and has nothing to do with the emotion: how clearly the
emotion is put into words, whether facts back the figure, and how much ground is given. What the
teacher says on average is what the embedded student is pretrained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import NamedTuple

import numpy as np

from emodistill.simulator.reading import (
    Brief,
    Speech,
    accepts,
    last_figure,
    messages_text,
    read_brief,
    read_history,
    read_tone,
    round_figure,
    show_figure,
    step,
)
from emodistill.simulator.response_model import affects, phrases

# How clearly the emotion is said: two markers, one, none; and where the argument comes from.
CLARITY_ODDS = (0.35, 0.40, 0.25)
ARGUMENT_ODDS = (0.40, 0.30, 0.30)  # grounded, vague, none
REJECTION_ODDS = 0.25

# How much of the distance to the other side is given up in one utterance.
CONCESSIONS: tuple[tuple[float, tuple[float, float]], ...] = (
    (0.20, (0.0, 0.0)),
    (0.34, (0.04, 0.20)),
    (0.28, (0.20, 0.40)),
    (0.18, (0.40, 0.75)),
)
SILENCE_ODDS = 0.05
SURRENDER_ODDS = 0.07
CLOSE_WITHIN = 0.12  # share of the first distance at which the teacher usually closes
CLOSE_ODDS = 0.7


class Table(NamedTuple):
    """The figures on the table as a speaker sees them; None before a side has named one."""

    own_first: float | None
    own: float | None
    theirs_first: float | None
    theirs: float | None


def read_table(history: Sequence[Speech], domain: str) -> Table:
    own = [v for s in history if s.is_own and (v := last_figure(s.text, domain)) is not None]
    theirs = [v for s in history if not s.is_own and (v := last_figure(s.text, domain)) is not None]
    return Table(
        own[0] if own else None,
        own[-1] if own else None,
        theirs[0] if theirs else None,
        theirs[-1] if theirs else None,
    )


def teacher_reply(messages: Sequence[Mapping[str, str]], rng: np.random.Generator) -> str:
    """The next focal utterance for a chat request."""
    system, user = messages_text(messages)
    brief = read_brief(system)
    history = read_history(user, brief.role)
    table = read_table(history, brief.domain)
    said = _figure_sentence(brief, history, table, rng)
    sentences = [*_affect(read_tone(user), rng), *_argument(brief, rng), said]
    if rng.random() < 0.3 and len(sentences) > 1:
        sentences[-1], sentences[-2] = sentences[-2], sentences[-1]
    return " ".join(sentences)


def _affect(emotion: str | None, rng: np.random.Generator) -> list[str]:
    if emotion is None or not affects()[emotion].markers:
        return []
    affect = affects()[emotion]
    kind = rng.choice(3, p=CLARITY_ODDS)
    if kind == 2:
        return []
    if kind == 1:
        return [str(rng.choice(affect.first if rng.random() < 0.7 else affect.second))]
    return [str(rng.choice(affect.first)), str(rng.choice(affect.second))]


def _argument(brief: Brief, rng: np.random.Generator) -> list[str]:
    texts = phrases()[brief.domain]
    kind = rng.choice(3, p=ARGUMENT_ODDS)
    if kind == 2:
        return []
    if kind == 1:
        return [str(rng.choice(texts["vague"]))]
    known = (t.format(**brief.facts) for t in texts["leverage"] if names(t) <= brief.facts.keys())
    # A fact with a figure of its own ("a paper due at 8 AM") would be taken for an offer.
    usable = [argument for argument in known if last_figure(argument, brief.domain) is None]
    return [str(rng.choice(usable))] if usable else []


def names(template: str) -> set[str]:
    """The placeholders of a phrase."""
    return {name for _, name, _, _ in Formatter().parse(template) if name}


def _figure_sentence(
    brief: Brief, history: Sequence[Speech], table: Table, rng: np.random.Generator
) -> str:
    domain, texts = brief.domain, phrases()[brief.domain]

    def say(move: str, value: float) -> str:
        return str(rng.choice(texts[move])).format(v=show_figure(value, domain))

    if table.own is None:
        if brief.own_figure is None:
            return str(rng.choice(texts["silent"]))
        return say("open", brief.own_figure)
    if table.theirs is None or table.theirs_first is None or table.own_first is None:
        return say("hold", table.own)
    distance = abs(table.theirs - table.own)
    reach = max(abs(table.theirs_first - table.own_first), step(domain))
    heard_yes = bool(history) and not history[-1].is_own and accepts(history[-1].text)
    close = distance <= max(CLOSE_WITHIN * reach, step(domain)) and rng.random() < CLOSE_ODDS
    if heard_yes or close or rng.random() < SURRENDER_ODDS:
        return say("accept", table.theirs)
    if rng.random() < SILENCE_ODDS:
        return str(rng.choice(texts["silent"]))
    odds, ranges = zip(*CONCESSIONS, strict=True)
    low, high = ranges[rng.choice(len(ranges), p=odds)]
    value = table.own + rng.uniform(low, high) * (table.theirs - table.own)
    value = round_figure(value, domain)
    move = "hold" if abs(value - table.own) < step(domain) else "concede"
    sentence = say(move, table.own if move == "hold" else value)
    if rng.random() < REJECTION_ODDS:
        rejection = str(rng.choice(texts["reject"]))
        sentence = f"{rejection.format(theirs=show_figure(table.theirs, domain))} {sentence}"
    return sentence
