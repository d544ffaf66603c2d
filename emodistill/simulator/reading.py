"""How the simulated models read what they are sent: messages in, nothing else.

Prompts are read in any layout of a pack (docs/prompts.md): headings tell the talks and the tone
from what stays the same in a dialogue, be it in one message or in two.

This is a reader of its own, apart from `emodistill.negotiation`: an error shared between the
simulated models and the measuring instrument would be invisible. It knows the figures as these
models write them ("35 days", "90 minutes", "10:45 PM").
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from emodistill.domains import DOMAINS, format_value, get_domain
from emodistill.emotions import EMOTIONS
from emodistill.simulator.response_model import AFFECTS, PHRASES

# The first word that a system message holds tells the domain; without any, it is about a debt.
_DOMAIN_OF_WORD = {
    "bedtime": "student",
    "to go to bed": "student",
    "surgery": "hospital",
    "rescue": "disaster",
}
_CLOCK = re.compile(r"\b(\d{1,2})(?::(\d{2}))?\s*([AaPp])\.?[Mm]\b")
# Sums of money are matched whole, so that no part of one is read, and left out.
_AMOUNT = r"(\$\s?)?\b(\d{1,9}(?:\.\d+)?)\b(?=\s+UNIT)(?!\s+\w+\s+overdue)"
_FOREIGN = re.compile(
    r"\b((?<!accept )your|can't (?:wait|make|agree to)|instead of|than|not)\s*$", re.I
)
_REACH = 40  # characters before a figure that can tell whose it is
_LINE = re.compile(r"^([A-Z][\w ]{1,30}): (.*)$")
_HEADING = re.compile(r"^(?:#.*|[A-Z][A-Z' /-]{5,}:?)$", re.MULTILINE)
_HEADED = {
    "utterance": re.compile(r"\butterance\b", re.I),
    "ending": re.compile(r"\b(ended|ending|outcome)\b", re.I),
    "talks": re.compile(
        r"\b(talks|history|dialog(ue)?|conversation|timeline|transcript|current situation)\b", re.I
    ),
    "tone": re.compile(r"\b(tone|emotion\w*)\b", re.I),
}
"""What the parts of a prompt that change within a dialogue are headed by."""
_TONE_WORDS = re.compile(r"\b(?:sound|tone|emotion)\b[^.\n]*", re.I)
_ACCEPT = re.compile(r"^[^.!?]*\b(agreed|deal|accept)\b", re.IGNORECASE)
_NO_ACCEPT = re.compile(r"\b(no deal|can't|not|could accept|would accept|if|unless)\b", re.I)


class Request(NamedTuple):
    """A chat request as a simulated model sees it."""

    system: str
    user: str
    seed: int
    rng: np.random.Generator


class Speech(NamedTuple):
    is_own: bool
    text: str


class Sections(NamedTuple):
    """The parts of a prompt."""

    scenario: str
    """All that stays the same in a dialogue: rules, role, facts."""
    talks: str
    tone: str | None
    """What stands below the heading of the tone; None where there is no such heading."""
    utterance: str | None
    ending: str | None
    """What a judge is to score, and how a whole dialogue ended."""


class Brief(NamedTuple):
    """What a player is told of the scenario, read: the game, its own figure, the facts."""

    domain: str
    own_figure: float | None
    facts: Mapping[str, str]
    role: str


def messages_text(messages: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """The system and the user text of a chat request, several messages joined."""
    system = "\n".join(m["content"] for m in messages if m.get("role") == "system")
    user = "\n".join(m["content"] for m in messages if m.get("role") != "system")
    return system, user


def read_sections(system: str, user: str) -> Sections:
    """The parts of a prompt, by its headings: lines with a hash before them, or in capitals.

    Without a heading of the talks, these are the user's message; of a single message, the lines
    that begin with the name of a role.
    """
    text = "\n".join(filter(None, (system, user)))
    starts = [0, *(match.start() for match in _HEADING.finditer(text)), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(starts)]
    headings = ["", *(piece.partition("\n")[0] for piece in pieces[1:])]
    placed = {
        name: max((i for i, heading in enumerate(headings) if of.search(heading)), default=None)
        for name, of in _HEADED.items()
    }
    found = {
        name: None if i is None else pieces[i].partition("\n")[2] for name, i in placed.items()
    }
    talks = found.pop("talks")
    if talks is not None:
        rest = "".join(piece for i, piece in enumerate(pieces) if i not in placed.values())
        return Sections(rest.removesuffix("\n"), talks, **found)
    if system and user:
        return Sections(system, user, **found)
    lines = text.splitlines()
    said = [line for line in lines if (of := _LINE.match(line)) and _is_role(of[1])]
    toned = [line for line in lines if line not in said and _TONE_WORDS.search(line)]
    rest = "\n".join(line for line in lines if line and line not in (*said, *toned))
    return Sections(rest, "\n".join([*said, *toned[-1:]]), **found)


def _is_role(label: str) -> bool:
    games = map(get_domain, DOMAINS)
    roles = {word for game in games for word in _words(game.focal_role, game.counterparty_role)}
    return not roles.isdisjoint(_words(label))


def _words(*texts: str) -> set[str]:
    return {word for text in texts for word in text.lower().split()}


@cache
def read_brief(scenario: str) -> Brief:
    lowered = scenario.lower()
    domain = next((of for word, of in _DOMAIN_OF_WORD.items() if word in lowered), "crad")
    lines: dict[str, str] = {}
    own = None
    for line in scenario.splitlines():
        key, colon, value = line.lstrip("-*• ").partition(": ")
        if colon:
            lines[key.lower()] = value.strip().rstrip(".")
            if re.search(r"\b(target|preference|preferred)\b", key, re.IGNORECASE):
                figure = last_figure(value, domain)
                own = own if figure is None else figure
    facts = {
        name: found[1].strip()
        for name, (key, stated) in PHRASES["facts"][domain].items()
        for value in [next((v for k, v in lines.items() if re.fullmatch(key, k)), "")]
        if (found := re.search(stated, value))
    }
    role = re.search(r"you are (?:only )?the (\w+)", scenario, re.IGNORECASE)
    return Brief(domain, own, facts, role[1].lower() if role else "")


def read_history(talks: str, role: str) -> list[Speech]:
    """The labelled lines of the history; the reader's own label has a word of `role`."""
    matches, own = filter(None, map(_LINE.match, talks.splitlines())), _words(role)
    return [Speech(not own.isdisjoint(_words(match[1])), match[2]) for match in matches]


def read_figures(history: Sequence[Speech], domain: str) -> tuple[list[float], list[float]]:
    """The figures that the reader itself and the other side have put on the table, in order."""
    own, theirs = (
        [
            v
            for s in history
            if s.is_own == is_own and (v := last_figure(s.text, domain)) is not None
        ]
        for is_own in (True, False)
    )
    return own, theirs


def read_tone(sections: Sections) -> str | None:
    """The emotion that a prompt asks for, by its label or adjective; None where none is asked."""
    tone = sections.tone
    if tone is None:
        unsaid = (line for line in sections.talks.splitlines() if not _LINE.match(line))
        match = _TONE_WORDS.search("\n".join(unsaid))
        tone = match[0] if match else ""
    first = tone.strip().split(".")[0].lower()
    words = [(label, label) for label in EMOTIONS]
    words += [(affect.adjective, name) for name, affect in AFFECTS.items() if affect.adjective]
    return next((label for word, label in words if re.search(rf"\b{word}\b", first)), None)


@cache
def last_figure(text: str, domain: str) -> float | None:
    """The last figure that is put on the table, None where there is none."""
    figure = None
    amount = _AMOUNT.replace("UNIT", get_domain(domain).unit_singular)
    for match in re.finditer(_CLOCK if _is_clock(domain) else re.compile(amount, re.I), text):
        if _FOREIGN.search(text, max(0, match.start() - _REACH), match.start()):
            continue
        if _is_clock(domain):
            hour = int(match[1]) % 12 + (12 if match[3].lower() == "p" else 0)
            past_nine = hour + int(match[2] or 0) / 60 - 21
            figure = past_nine + 24 if past_nine < -9 else past_nine
        elif not match[1]:
            figure = float(match[2])
    return figure


def accepts(text: str) -> bool:
    """Whether an utterance says yes to what the other side has put forward."""
    return any(
        _ACCEPT.search(sentence) and not _NO_ACCEPT.search(sentence)
        for sentence in re.split(r"(?<=[.!?])\s+", text)
    )


def _is_clock(domain: str) -> bool:
    return get_domain(domain).clock_origin_h is not None


def show_figure(value: float, domain: str) -> str:
    """A figure as the simulated models write it: whole units, or a clock time."""
    return format_value(domain, value if _is_clock(domain) else round(value))


def round_figure(value: float, domain: str) -> float:
    """Quarter hours for clock times, whole units elsewhere."""
    return round(value * 4) / 4 if _is_clock(domain) else float(max(1, round(value)))


def step(domain: str) -> float:
    """The smallest difference that players of the domain care about."""
    return 0.25 if _is_clock(domain) else 1.0
