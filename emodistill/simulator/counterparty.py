"""`sim-counterparty`: concedes by the response model, replayed from the messages at each turn.

Stateless, as a real endpoint is: hidden type and noise come from the scenario's text and the
request's seed, everything else from the history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from emodistill.seeding import stream
from emodistill.simulator import response_model as rm
from emodistill.simulator.reading import (
    Speech,
    accepts,
    last_figure,
    messages_text,
    read_brief,
    read_history,
    round_figure,
    show_figure,
    step,
)


class Stance(NamedTuple):
    """Where the counterparty stands after hearing the last focal utterance."""

    position: float  # 0 its own preference, 1 the focal side's first demand
    irritation: float
    effect: float  # emotional effect of the last utterance
    accepts_offer: bool
    value: float | None  # the figure it puts on the table
    has_moved: bool


def counterparty_reply(
    messages: Sequence[Mapping[str, str]], seed: int, type_name: str | None = None
) -> str:
    """The next counterparty utterance for a chat request; `type_name` fixes the hidden type."""
    system, user = messages_text(messages)
    brief = read_brief(system)
    history = read_history(user, brief.role)
    texts = rm.phrases()["counterparty"]
    moves = texts[brief.domain]
    focal = [speech.text for speech in history if not speech.is_own]
    rng = stream(seed, "sim-counterparty-words", system, len(focal))
    if brief.own_figure is None or not focal:
        return str(rng.choice(texts["flat"])) or "I am listening."
    kind = rm.hidden_type(system, seed, type_name)
    stance = react(system, brief.domain, brief.own_figure, history, kind, seed)

    def say(options: Sequence[str], value: float) -> str:
        return str(rng.choice(options)).format(v=show_figure(value, brief.domain))

    if stance.accepts_offer and stance.value is not None:
        return say(texts["accept"], stance.value)
    if stance.irritation > kind.patience:
        return str(rng.choice(texts["walk"]))
    mood = "pleased" if stance.effect > 0.2 else "cross" if stance.effect < -0.2 else "flat"
    spoken = [s for s in history if s.is_own and last_figure(s.text, brief.domain) is not None]
    move = "open" if not spoken else "move" if stance.has_moved else "hold"
    value = brief.own_figure if stance.value is None else stance.value
    return f"{rng.choice(texts[mood])} {say(moves[move], value)}".strip()


def react(
    system: str,
    domain: str,
    preference: float,
    history: Sequence[Speech],
    kind: rm.HiddenType,
    seed: int,
) -> Stance:
    """Replay the talks through the response model up to the last focal utterance."""
    base_rate = rm.TYPE_TRAITS[kind.name].base_rate
    focal = [speech.text for speech in history if not speech.is_own]
    demand = next((v for t in focal if (v := last_figure(t, domain)) is not None), None)
    own_values = [v for s in history if s.is_own and (v := last_figure(s.text, domain)) is not None]
    if demand is None or demand == preference:
        yes = demand is not None
        return Stance(0.0, 0.0, 0.0, yes, demand if yes else preference, False)
    span = demand - preference
    position, irritation, effect = 0.0, 0.0, 0.0
    stood, heard, arguments, tones = 1.0, set[str](), set[str](), list[str | None]()
    for turn, text in enumerate(focal, start=1):
        value = last_figure(text, domain)
        offered = stood if value is None else (value - preference) / span
        movement = max(0.0, stood - offered)
        gap = max(0.0, min(1.0, offered) - position)
        phase = rm.phase_of(turn, gap)
        expression = rm.expressed(text)
        tones.append(expression.emotion)
        effect = rm.emotional_effect(
            domain, phase, kind.name, expression.emotion, expression.clarity, _run(tones)
        )
        spoken = {word for word in rm.phrases()["keywords"][domain] if word in text.lower()}
        is_new = bool(spoken - arguments)
        arguments |= spoken
        is_repeat = text in heard
        heard.add(text)
        noise = stream(seed, "sim-counterparty-noise", system, turn).normal(0.0, rm.NOISE)
        drive = (
            rm.EMOTION_GAIN * effect
            + rm.LEVERAGE_GAIN * is_new
            + rm.MOVEMENT_GAIN * min(1.0, movement / 0.1)
            + noise
        )
        rate = min(1.0, base_rate * float(np.exp(drive)))
        if turn > 1:  # the first reply states the preference
            position += 0.0 if is_repeat else rate * max(0.0, kind.limit - position)
        irritation += rm.IRRITATION_PER_TURN + rm.IRRITATION_PER_BAD_TONE * max(0.0, -effect)
        if turn > 1 and movement <= 0:
            irritation += rm.IRRITATION_WHEN_STUCK
        if is_repeat:
            irritation += rm.IRRITATION_PER_REPEATED_TEXT
        stood = offered
    value = round_figure(preference + position * span, domain)
    if own_values:  # a figure once named is not taken back
        value = max(value, own_values[-1]) if span > 0 else min(value, own_values[-1])
    standing = next((v for t in reversed(focal) if (v := last_figure(t, domain)) is not None), None)
    asked = (standing - value) / span if standing is not None else 1.0
    said_yes = bool(own_values) and accepts(focal[-1]) and standing in (None, own_values[-1])
    if said_yes:
        return Stance(position, irritation, effect, True, own_values[-1], False)
    if standing is not None and asked * abs(span) < step(domain) * 0.99:
        return Stance(position, irritation, effect, True, standing, True)
    moved = bool(own_values) and abs(value - own_values[-1]) >= step(domain)
    return Stance(position, irritation, effect, False, value, moved)


def _run(tones: Sequence[str | None]) -> int:
    """How often the last tone has been repeated in a row."""
    run = 0
    for later, earlier in pairwise(reversed(tones)):
        if later is None or later != earlier:
            break
        run += 1
    return run
