"""`sim-counterparty`: concedes by the response model, replayed from the messages at each turn.

Stateless, as a real endpoint is: hidden type and noise come from the scenario's text and the
request's seed (`forked_seeds`), everything else from the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emodistill.seeding import stream
from emodistill.simulator import response_model as rm
from emodistill.simulator.forked_seeds import ForkedSeed, read_seed
from emodistill.simulator.reading import (
    Request,
    Speech,
    accepts,
    last_figure,
    read_brief,
    read_figures,
    read_history,
    read_sections,
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
    value: float  # the figure it puts on the table
    move: str  # how it does: "open", "move" or "hold"


def counterparty_reply(request: Request, type_name: str | None = None) -> str:
    """The next counterparty utterance for a chat request; `type_name` fixes the hidden type."""
    scenario, talks, *_ = read_sections(request.system, request.user)
    seed, brief = read_seed(request.seed), read_brief(scenario)
    history = read_history(talks, brief.role)
    texts = rm.PHRASES["counterparty"]
    num_heard = sum(not speech.is_own for speech in history)
    # Its words depend on the seed at any temperature, as its character does.
    rng = stream(seed.at(num_heard), "sim-counterparty-words", scenario, num_heard)
    if brief.own_figure is None or not num_heard:
        return str(rng.choice(texts["flat"])) or "I am listening."
    kind = rm.hidden_type(scenario, seed.own, type_name)
    stance = react(scenario, brief.domain, brief.own_figure, history, kind, seed)
    shown = show_figure(stance.value, brief.domain)
    if stance.accepts_offer:
        return str(rng.choice(texts["accept"])).format(v=shown)
    if stance.irritation > kind.patience:
        return str(rng.choice(texts["walk"]))
    mood = "pleased" if stance.effect > 0.2 else "cross" if stance.effect < -0.2 else "flat"
    opening, figure = rng.choice(texts[mood]), rng.choice(texts[brief.domain][stance.move])
    return f"{opening} {str(figure).format(v=shown)}".strip()


def react(
    scenario: str,
    domain: str,
    preference: float,
    history: Sequence[Speech],
    kind: rm.HiddenType,
    seed: ForkedSeed,
) -> Stance:
    """Replay the talks through the response model up to the last focal utterance."""
    own, asked = read_figures(history, domain)
    if not asked or asked[0] == preference:
        return Stance(0.0, 0.0, 0.0, bool(asked), preference, "hold" if own else "open")
    focal = [speech.text for speech in history if not speech.is_own]
    span = asked[0] - preference
    position, irritation, effect, stood = 0.0, 0.0, 0.0, 1.0
    arguments: set[str] = set()
    emotion, run = None, 0  # the last tone, and how often in a row it has been repeated
    for turn, text in enumerate(focal, start=1):
        value = last_figure(text, domain)
        offered = stood if value is None else (value - preference) / span
        movement = max(0.0, stood - offered)
        phase = rm.phase_of(turn, max(0.0, min(1.0, offered) - position))
        expression = rm.expressed(text)
        is_same_tone = expression.emotion is not None and expression.emotion == emotion
        emotion, run = expression.emotion, run + 1 if is_same_tone else 0
        effect = rm.emotional_effect(domain, phase, kind.name, emotion, expression.clarity, run)
        new_arguments = rm.arguments(text, domain) - arguments
        arguments |= new_arguments
        is_repeat = text in focal[: turn - 1]
        rng = stream(seed.at(turn), "sim-counterparty-noise", scenario, turn)
        drive = (
            rm.EMOTION_GAIN * effect
            + rm.LEVERAGE_GAIN * bool(new_arguments)
            + rm.MOVEMENT_GAIN * min(1.0, movement / 0.1)
            + rng.normal(0.0, rm.NOISE)
        )
        rate = min(1.0, rm.TYPE_TRAITS[kind.name].base_rate * float(np.exp(drive)))
        irritation += rm.IRRITATION_PER_TURN + rm.IRRITATION_PER_BAD_TONE * max(0.0, -effect)
        if turn > 1:  # the first reply states the preference
            position += 0.0 if is_repeat else rate * max(0.0, kind.limit - position)
            irritation += rm.IRRITATION_WHEN_STUCK if movement <= 0 else 0.0
        irritation += rm.IRRITATION_PER_REPEATED_TEXT if is_repeat else 0.0
        stood = offered
    value = round_figure(preference + position * span, domain)
    move = "open"
    if own:  # a figure once named is not taken back
        value = max(value, own[-1]) if span > 0 else min(value, own[-1])
        move = "move" if abs(value - own[-1]) >= step(domain) else "hold"
    is_told_yes = bool(own) and accepts(focal[-1]) and asked[-1] == own[-1]
    is_within_reach = (asked[-1] - value) / span * abs(span) < step(domain) * 0.99
    if accepts_offer := is_told_yes or is_within_reach:
        value = asked[-1]
    return Stance(position, irritation, effect, accepts_offer, value, move)
