"""One dialogue: the focal agent opens, the sides alternate, the mediator says when it is over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from emodistill.domains.scenario import Scenario
from emodistill.negotiation.mediator import BREAKDOWN, ONGOING, Verdict, mediate
from emodistill.negotiation.readers import PATTERNS, OfferReader, Read
from emodistill.negotiation.speakers import EmptyReplyError, Reply, Speaker
from emodistill.negotiation.states import DialogueState, mirrored
from emodistill.prompts import Message, counterparty_messages, focal_messages
from emodistill.records import (
    CounterpartyPlayer,
    DialogueUsage,
    FocalPlayer,
    Role,
    Trajectory,
    Turn,
)
from emodistill.seeding import derive

if TYPE_CHECKING:
    from emodistill.prompts import PromptPack

log = logging.getLogger("emodistill.negotiation")

ChooseEmotion = Callable[[DialogueState], str | None]


class PlannedDialogue(NamedTuple):
    """`number` tells the dialogues of a scenario apart; the record has it as its `seed`."""

    scenario: Scenario
    number: int
    trajectory_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Who takes a side's turns.

    Attributes:
      choose_for: dialogue -> who picks the emotion before each turn, on the state as the seat sees
        it (the counterparty's is `mirrored`); None leaves the emotion block out. Without it a
        counterparty is neutral and records no emotion.
      method, cells: what the record says of a side that plays by a method, as the focal one does.
    """

    speaker: Speaker
    choose_for: Callable[[PlannedDialogue], ChooseEmotion] | None = None
    method: str | None = None
    cells: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Who plays whom, and by which rules.

    Attributes:
      seed: root of all dialogues' random streams.
      max_turns: of both sides together.
      silence_ends: a speaker that plays by a method and has nothing to say has broken off the
        talks, instead of making the dialogue fail.
      reader: reads the offers out of the utterances.
    """

    focal: Seat
    counterparty: Seat
    pack: PromptPack
    seed: int = 0
    max_turns: int = 30
    agreement: str = "stand"
    silence_ends: bool = False
    reader: OfferReader = PATTERNS


async def play(dialogue: PlannedDialogue, match: Match) -> Trajectory:
    """Play a dialogue to its end: an agreement, a breakdown, or `max_turns` turns of both sides.

    Each side's API seed derives from the match's seed and the `trajectory_id` and is constant
    within the dialogue.

    Raises:
      ApiError: a speaker failed for good; there is no half trajectory.
    """
    scenario, name = dialogue.scenario, dialogue.trajectory_id
    sides = _Side("focal", dialogue, match), _Side("counterparty", dialogue, match)
    turns: list[Turn] = []
    reads: list[Read] = []
    verdict, replies_usd = ONGOING, 0.0
    while verdict == ONGOING and len(turns) < match.max_turns:
        side = sides[len(turns) % 2]
        emotion = side.emotion(turns)
        try:
            reply = await side.reply(turns, emotion)
        except EmptyReplyError:
            if not match.silence_ends or side.seat.method is None:
                raise
            verdict = BREAKDOWN
            break
        text = _said(reply, len(turns), name)
        read = await match.reader.read(text, scenario.domain, dialogue_id=name, seed=match.seed)
        turn = Turn(
            index=len(turns),
            speaker=side.role,
            emotion=emotion,
            text=text,
            offer=read.offer,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            latency_s=round(reply.latency_s, 4),
        )
        turns.append(turn)
        reads.append(read)
        replies_usd += reply.cost_usd
        verdict = mediate(
            turns,
            domain=scenario.domain,
            focal_target=scenario.focal_target,
            counterparty_anchor=scenario.counterparty_anchor,
            rule=match.agreement,
        )
    return _trajectory(dialogue, match, turns, reads, verdict, replies_usd)


class _Side:
    """A seat in one dialogue: what its speaker feels, is told and says."""

    def __init__(self, role: Role, dialogue: PlannedDialogue, match: Match) -> None:
        self.role: Role = role
        self.seat = match.focal if role == "focal" else match.counterparty
        self._dialogue = dialogue
        self._match = match
        self._seed = derive(match.seed, role, dialogue.trajectory_id)
        self._choose = self.seat.choose_for(dialogue) if self.seat.choose_for else None

    def emotion(self, turns: Sequence[Turn]) -> str | None:
        """What the next turn is to express, as the record says it."""
        if self._choose is None:
            return None
        game = self._dialogue.scenario
        seen = (game, turns) if self.role == "focal" else mirrored(game, turns)
        return self._choose(DialogueState.from_turns(*seen, self._match.max_turns))

    async def reply(self, turns: Sequence[Turn], emotion: str | None) -> Reply:
        messages = self._prompt(turns, emotion)
        dropped = 0
        while not self.seat.speaker.fits(messages) and dropped < len(turns):
            dropped += 1
            messages = self._prompt(turns[dropped:], emotion)
        if dropped:
            model = self.seat.speaker.model
            log.info("%s: the %d oldest turns don't fit the prompt.", model, dropped)
        return await self.seat.speaker.reply(
            messages, dialogue_id=self._dialogue.trajectory_id, seed=self._seed
        )

    def _prompt(self, turns: Sequence[Turn], emotion: str | None) -> list[Message]:
        pack, scenario = self._match.pack, self._dialogue.scenario
        if self.role == "focal":
            return focal_messages(pack, scenario, turns, emotion)
        if self._choose is None:
            return counterparty_messages(pack, scenario, turns)
        return counterparty_messages(pack, scenario, turns, emotion)


def clean(text: str) -> str:
    """An utterance as records keep it: one line, single spaces."""
    return " ".join(text.split())


def _said(reply: Reply, index: int, trajectory_id: str) -> str:
    text = clean(reply.text)
    if not text:
        raise EmptyReplyError(f"turn {index} of {trajectory_id} is empty.")
    return text


def _trajectory(
    dialogue: PlannedDialogue,
    match: Match,
    turns: Sequence[Turn],
    reads: Sequence[Read],
    verdict: Verdict,
    replies_usd: float,
) -> Trajectory:
    scenario = dialogue.scenario
    return Trajectory(
        trajectory_id=dialogue.trajectory_id,
        domain=scenario.domain,
        scenario_id=scenario.scenario_id,
        seed=dialogue.number,
        split=scenario.split,
        focal_target=scenario.focal_target,
        counterparty_anchor=scenario.counterparty_anchor,
        unit=scenario.unit,
        focal=FocalPlayer(**_party(match.focal)),
        counterparty=CounterpartyPlayer(**_party(match.counterparty)),
        prompt_pack_sha256=match.pack.sha256,
        agreement_rule=match.agreement,
        turns=tuple(turns),
        outcome=verdict.outcome,
        final_value=verdict.final_value,
        usage=DialogueUsage(
            calls=len(turns) + sum(read.num_calls for read in reads),
            prompt_tokens=sum(one.prompt_tokens for one in (*turns, *reads)),
            completion_tokens=sum(one.completion_tokens for one in (*turns, *reads)),
        ),
        cost_usd=replies_usd + sum(read.cost_usd for read in reads),
    )


def _party(seat: Seat) -> dict[str, Any]:
    return {
        "method": seat.method,
        "model": seat.speaker.model,
        "temperature": seat.speaker.temperature,
        "cells": dict(seat.cells),
    }
