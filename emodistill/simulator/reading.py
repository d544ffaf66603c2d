"""How the simulated models read what they are sent: messages in, nothing else.

This is a reader of its own, apart from `emodistill.negotiation`: an error shared between the
speaker and the measuring instrument would be invisible. It knows the figures as the simulated
speakers write them ("35 days", "90 minutes", "10:45 PM").
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from emodistill.emotions import EMOTIONS

_DOMAIN_WORDS = (
    ("student", "bedtime"),
    ("student", "to go to bed"),
    ("hospital", "surgery"),
    ("disaster", "rescue"),
    ("crad", "debt"),
)
_UNITS = {"crad": "day", "disaster": "minute", "hospital": "day", "student": "clock"}
_CLOCK = re.compile(r"\b(\d{1,2})(?::(\d{2}))?\s*([AaPp])\.?[Mm]\b")
_AMOUNT = re.compile(r"(\$\s?)?\b(\d{1,9}(?:\.\d+)?)\b(?=\s+(day|minute))", re.IGNORECASE)
_FOREIGN = re.compile(
    r"\b((?<!accept )your|can't (?:wait|make|agree to)|instead of|than|not)\s*$", re.I
)
_LINE = re.compile(r"^([A-Z][\w ]{1,30}): (.*)$")
_ACCEPT = re.compile(r"^[^.!?]*\b(agreed|deal|accept)\b", re.IGNORECASE)
_NO_ACCEPT = re.compile(r"\b(no deal|can't|not|could accept|would accept|if|unless)\b", re.I)


class Speech(NamedTuple):
    is_own: bool
    text: str


class Brief(NamedTuple):
    """A speaker's system message, read: the game, its own figure, the facts of the case."""

    domain: str
    own_figure: float | None
    facts: Mapping[str, str]
    role: str


@cache
def read_brief(system: str) -> Brief:
    lowered = system.lower()
    domain = next((name for name, word in _DOMAIN_WORDS if word in lowered), "crad")
    facts: dict[str, str] = {}
    own = None
    for line in system.splitlines():
        key, colon, value = line.partition(": ")
        if not colon:
            continue
        if re.search(r"\b(target|preference|preferred)\b", key, re.IGNORECASE):
            own = last_figure(value, domain)
        facts[key.lower()] = value.strip().rstrip(".")
    role = re.search(r"[Yy]ou are the (\w+)", system)
    return Brief(domain, own, _named_facts(domain, facts), role.group(1).lower() if role else "")


def _named_facts(domain: str, lines: Mapping[str, str]) -> dict[str, str]:
    """The facts by the names that phrases use; what the prompt doesn't say is absent."""
    facts: dict[str, str] = {}

    def take(name: str, key: str, pattern: str = r"^(.+)$") -> None:
        if (value := lines.get(key)) and (found := re.search(pattern, value)):
            facts[name] = found.group(1).strip()

    if domain == "crad":
        take("days_overdue", "debt", r"(\d+) days overdue")
        take("outstanding_balance_usd", "debt", r"\$([\d,.]+\d)")
        take("recovery_stage", "stage", r"^([^;]+)")
        take("collateral", "stage", r"security: (?!no)([^;]+)")
    elif domain == "disaster":
        take("disaster_type", "disaster")
        take("survivor_condition", "survivor")
        take("critical_needs", "needs")
    elif domain == "hospital":
        take("urgency_level", "surgery", r"urgency (\w+)")
        take("required_surgery", "surgery", r"^(.+?), urgency")
        take("surgeon_availability", "surgeon")
        take("hospital_suggestion", "option")
    else:
        take("student_age", "student", r"^(\d+)")
        take("situation", "tonight")
        take("feeling", "feeling")
    return facts


def read_history(user: str, role: str) -> list[Speech]:
    """The labelled lines of the history; `role` is the reader's own label."""
    speeches = []
    for line in user.splitlines():
        if match := _LINE.match(line):
            speeches.append(Speech(match.group(1).lower() == role, match.group(2)))
    return speeches


def read_tone(user: str) -> str | None:
    """The emotion that a prompt asks for, by its adjective or label; None where none is asked."""
    _, mark, tone = user.rpartition("# Tone")
    if not mark:
        match = re.search(r"\b(?:sound|tone|emotion)\b[^.\n]*", user, re.IGNORECASE)
        tone = match.group(0) if match else ""
    first = tone.strip().split(".")[0].lower()
    return next((label for word, label in _ADJECTIVES if re.search(rf"\b{word}\b", first)), None)


_ADJECTIVES: tuple[tuple[str, str], ...] = (
    *((label, label) for label in EMOTIONS),
    ("admiring", "admiration"), ("amused", "amusement"), ("angry", "anger"),
    ("annoyed", "annoyance"), ("approving", "approval"), ("confused", "confusion"),
    ("curious", "curiosity"), ("longing|desiring", "desire"),
    ("disappointed", "disappointment"), ("disapproving", "disapproval"),
    ("disgusted", "disgust"), ("embarrassed", "embarrassment"), ("excited", "excitement"),
    ("fearful", "fear"), ("grateful", "gratitude"), ("grieving", "grief"), ("joyful", "joy"),
    ("loving", "love"), ("nervous", "nervousness"), ("optimistic", "optimism"),
    ("proud", "pride"), ("insightful|discerning", "realization"), ("relieved", "relief"),
    ("remorseful", "remorse"), ("sad", "sadness"), ("surprised", "surprise"),
)  # fmt: skip


@cache
def last_figure(text: str, domain: str) -> float | None:
    """The last figure that the speaker puts on the table, None where there is none."""
    found = None
    if _UNITS[domain] == "clock":
        for match in _CLOCK.finditer(text):
            if not _FOREIGN.search(text[: match.start()]):
                found = _hours_past_nine(match)
        return found
    for match in _AMOUNT.finditer(text):
        unit, rest = match.group(3).lower(), text[match.end() :]
        if unit != _UNITS[domain] or match.group(1) or re.match(r"\s+\w+\s+overdue", rest):
            continue
        if not _FOREIGN.search(text[: match.start()]):
            found = float(match.group(2))
    return found


def _hours_past_nine(match: re.Match[str]) -> float:
    hour = int(match.group(1)) % 12 + (12 if match.group(3).lower() == "p" else 0)
    past = hour + int(match.group(2) or 0) / 60 - 21
    return past + 24 if past < -9 else past


def accepts(text: str) -> bool:
    """Whether an utterance says yes to what the other side has put forward."""
    return any(
        _ACCEPT.search(sentence) and not _NO_ACCEPT.search(sentence)
        for sentence in re.split(r"(?<=[.!?])\s+", text)
    )


def show_figure(value: float, domain: str) -> str:
    """A figure as the simulated speakers write it."""
    unit = _UNITS[domain]
    if unit == "clock":
        minutes = round((value + 21) * 60) % (24 * 60)
        hour, minute = divmod(minutes, 60)
        return f"{(hour - 1) % 12 + 1}:{minute:02d} {'PM' if hour >= 12 else 'AM'}"
    number = round(value)
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def round_figure(value: float, domain: str) -> float:
    """Quarter hours for clock times, whole units elsewhere."""
    return round(value * 4) / 4 if _UNITS[domain] == "clock" else float(max(1, round(value)))


def step(domain: str) -> float:
    """The smallest difference that speakers of the domain care about."""
    return 0.25 if _UNITS[domain] == "clock" else 1.0


def messages_text(messages: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """The system and the user text of a chat request, several messages joined."""
    system = "\n".join(m["content"] for m in messages if m.get("role") == "system")
    user = "\n".join(m["content"] for m in messages if m.get("role") != "system")
    return system, user
