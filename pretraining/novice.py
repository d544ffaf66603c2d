"""The novice: whom a student is pretrained to be, on either side of the table.

It reads its prompt and bargains badly. It gives ground fast, argues seldom, shows an emotion in a
third of its turns and then often another than the asked one, and says all of this in short
sentences of its own. SFT and JPO thus have something to teach that a reader can see, and the
sweep's best turns differ from what the student knows. What the novice can do is read: every figure
and every fact that it names stands in its prompt.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emodistill.emotions import EMOTIONS, NEUTRAL
from emodistill.llm.usage import Completion
from emodistill.seeding import stream
from emodistill.simulator.reading import (
    Brief,
    Speech,
    accepts,
    last_figure,
    messages_text,
    read_brief,
    read_figures,
    read_history,
    read_sections,
    read_tone,
    round_figure,
    show_figure,
    step,
)
from emodistill.simulator.writer import SimulatedWriter

WORDS: Mapping[str, Any] = tomllib.loads(
    Path(__file__).with_name("novice.toml").read_text(encoding="utf-8")
)

# Shares of the turns. An emotion is shown seldom, and in two of five cases it is another one; a
# fact or chatter stands before some figures; the other side's figure is quoted often enough for
# the student to learn to read it.
ASKED_ODDS, OTHER_EMOTION_ODDS = 0.18, 0.12
FACT_ODDS, CHATTER_ODDS = 0.20, 0.15
QUOTE_ODDS = 0.35
SILENCE_ODDS = 0.03
# It takes the other side's figure early: always after a yes, mostly within a third of the first
# distance, sometimes at once. Else it mostly meets the other side halfway.
CLOSE_WITHIN, CLOSE_ODDS, SURRENDER_ODDS = 0.33, 0.8, 0.1
HOLD_ODDS, HALFWAY_ODDS = 0.1, 0.5
CONCESSION = (0.3, 0.7)
CLOCK_STEPS, OTHER_STEPS = (4, 2), (10, 5)
"""It likes round figures, in steps of the domain: whole and half hours, else tens and fives. Then
fewer of the digits that it says are arithmetic, which a small student learns late."""


def novice_reply(
    messages: Sequence[Mapping[str, str]],
    rng: np.random.Generator,
    fact_odds: float = FACT_ODDS,
) -> str:
    """The next utterance of either player for a chat request."""
    sections = read_sections(*messages_text(messages))
    brief = read_brief(sections.scenario)
    history = read_history(sections.talks, brief.role)
    before = [*_emotion(read_tone(sections), rng), *_remark(brief, rng, fact_odds)]
    return " ".join([*before, *_figures(brief, history, rng)])


def _emotion(asked: str | None, rng: np.random.Generator) -> list[str]:
    draw = rng.random()
    if asked in (None, NEUTRAL) or draw >= ASKED_ODDS + OTHER_EMOTION_ODDS:
        return []
    shown = asked if draw < ASKED_ODDS else EMOTIONS[rng.integers(len(EMOTIONS))]
    return [WORDS["clauses"][shown]]


def _remark(brief: Brief, rng: np.random.Generator, fact_odds: float) -> list[str]:
    draw = rng.random()
    if draw < fact_odds:
        stated = [
            template.format_map(brief.facts)
            for template in WORDS["facts"][brief.domain]
            if fact_name(template) in brief.facts
        ]
        # A fact with a figure of its own ("a paper due at 8 AM") would be taken for an offer.
        usable = [text for text in stated if last_figure(text, brief.domain) is None]
        return [str(rng.choice(usable))] if usable else []
    return [str(rng.choice(WORDS["chatter"]))] if draw < fact_odds + CHATTER_ODDS else []


def fact_name(template: str) -> str:
    """The fact that a template of `novice.toml` states; each states one."""
    return template.partition("{")[2].partition("}")[0]


def _figures(brief: Brief, history: Sequence[Speech], rng: np.random.Generator) -> list[str]:
    domain = brief.domain
    own, theirs = read_figures(history, domain)

    def say(move: str, value: float) -> str:
        return str(rng.choice(WORDS[move])).format(v=show_figure(value, domain))

    if not own:
        if brief.own_figure is None:
            return [str(rng.choice(WORDS["silent"]))]
        return [*_quote(theirs, domain, rng), say("open", brief.own_figure)]
    if not theirs:
        return [say("hold", own[-1])]
    distance = abs(theirs[-1] - own[-1])
    is_close = distance <= max(CLOSE_WITHIN * abs(theirs[0] - own[0]), step(domain))
    heard_yes = not history[-1].is_own and accepts(history[-1].text)
    if heard_yes or (is_close and rng.random() < CLOSE_ODDS) or rng.random() < SURRENDER_ODDS:
        return [say("accept", theirs[-1])]
    if rng.random() < SILENCE_ODDS:
        return [str(rng.choice(WORDS["silent"]))]
    draw = rng.random()
    share = 0.5 if draw < HOLD_ODDS + HALFWAY_ODDS else rng.uniform(*CONCESSION)
    value = _round_concession(own[-1], theirs[-1], share, domain)
    is_held = draw < HOLD_ODDS or abs(value - own[-1]) < step(domain)
    figure = say("hold", own[-1]) if is_held else say("concede", value)
    return [*_quote(theirs, domain, rng), figure]


def _round_concession(own: float, theirs: float, share: float, domain: str) -> float:
    """The roundest figure near a share of the way, at least a quarter of it from either side."""
    value, margin = own + share * (theirs - own), abs(theirs - own) / 4
    for steps in CLOCK_STEPS if step(domain) < 1 else OTHER_STEPS:
        size = steps * step(domain)
        rounded = size * round(value / size)
        if min(own, theirs) + margin <= rounded <= max(own, theirs) - margin:
            return rounded
    return round_figure(value, domain)


def _quote(theirs: Sequence[float], domain: str, rng: np.random.Generator) -> list[str]:
    if not theirs or rng.random() >= QUOTE_ODDS:
        return []
    return [str(rng.choice(WORDS["quote"])).format(theirs=show_figure(theirs[-1], domain))]


def gap_of(template: str) -> re.Pattern[str]:
    """What finds a template's sentence in a text; its one group is what fills the gap."""
    before, after = re.split(r"{\w+}", template)
    return re.compile(rf"(?:^|(?<= )){re.escape(before)}(.+?){re.escape(after)}(?= |$)")


def given_characters(text: str) -> np.ndarray:
    """Of each character in a text of the novice, whether the prompt alone decides it: bool [C].

    These are the digits, but for the figures of its concessions, and the facts.
    """
    given = np.array([character.isdigit() for character in text], bool)
    for pattern, is_given in (*((p, False) for p in _CONCESSIONS), *((p, True) for p in _FACTS)):
        for match in pattern.finditer(text):
            given[slice(*match.span(1))] = is_given
    return given


_CONCESSIONS = [gap_of(template) for template in WORDS["concede"]]
_FACTS = [gap_of(template) for domain in WORDS["facts"].values() for template in domain]


@dataclass(frozen=True, slots=True)
class NoviceWriter:
    """The novice as a writer of dialogues; in some of its turns another model speaks instead."""

    other: SimulatedWriter
    novice_share: float
    model: str = "novice"
    provider: str = ""
    temperature: float = 1.0

    def fits(self, messages: Sequence[Mapping[str, str]]) -> bool:
        return True

    async def reply(
        self, messages: Sequence[Mapping[str, str]], *, dialogue_id: str, seed: int
    ) -> Completion:
        rng = stream(seed, "novice", messages[-1]["content"])
        if rng.random() >= self.novice_share:
            return await self.other.reply(messages, dialogue_id=dialogue_id, seed=seed)
        return Completion(novice_reply(messages, rng), 0, 0, latency_s=0.0, cost_usd=0.0)
