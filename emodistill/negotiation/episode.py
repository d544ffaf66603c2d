"""One dialogue: the focal player opens, both take turns, the mediator says when it is over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from emodistill.domains.scenario import Scenario
from emodistill.emotions import NEUTRAL
from emodistill.negotiation.mediator import BREAKDOWN, ONGOING, mediate
from emodistill.negotiation.offers import read_offer
from emodistill.negotiation.readers import LlmReader, Read
from emodistill.negotiation.states import DialogueState
from emodistill.negotiation.writers import EmptyReplyError, Writer
from emodistill.prompts import counterparty_messages, focal_messages
from emodistill.records import (
    CounterpartyPlayer,
    DialogueUsage,
    FocalPlayer,
    Role,
    StudentServer,
    Trajectory,
    Turn,
)
from emodistill.seeding import derive

if TYPE_CHECKING:
    from emodistill.llm.usage import Completion
    from emodistill.negotiation.hearing import EmotionReader
    from emodistill.prompts import PromptPack

log = logging.getLogger("emodistill.negotiation")

ChooseEmotion = Callable[[DialogueState], str | None]
"""The emotion of the player's next turn, None for a turn without an emotion block."""


class PlannedDialogue(NamedTuple):
    """`number` tells the dialogues of a scenario apart; the record has it as its `seed`."""

    scenario: Scenario
    number: int
    trajectory_id: str
    heard: tuple[Turn, ...] = ()
    """Turns that are given: the dialogue goes on after them."""
    seeds: Mapping[Role, int] = {}
    """API seeds of its players; a role without one gets its own from the match."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """Who takes part in dialogues: a method bound to its cells, or a bare language model.

    Attributes:
      choose_for: dialogue -> who picks the emotion before each turn, on the state as the player's
        role sees it. Without it the player is neutral and the record has no emotion.
      emotion_reader: hears the other side's emotions, for a method that looks at them.
      method, cells: what the record says of a player with a method, as the focal one always is.
      server: what the record says of the server that writes as the student, if one does.
    """

    writer: Writer
    choose_for: Callable[[PlannedDialogue], ChooseEmotion] | None = None
    method: str | None = None
    emotion_reader: EmotionReader | None = None
    cells: Mapping[str, str] = field(default_factory=dict)
    server: StudentServer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Who plays whom, and by which rules.

    Attributes:
      seed: root of all dialogues' random streams.
      max_turns: of both players together.
      silence_ends: a player with a method that has nothing to say has broken off the talks,
        instead of making the dialogue fail.
      reader: reads offer and act of every utterance; without one, patterns do.
    """

    focal: Player
    counterparty: Player
    pack: PromptPack
    seed: int = 0
    max_turns: int = 30
    agreement: str = "stand"
    silence_ends: bool = False
    reader: LlmReader | None = None


def turn_cap(max_turns: int, count_turns: str) -> int:
    """Turns of a dialogue at most, both sides together.

    Args:
      count_turns: whose turns `max_turns` counts, `both` sides' or the `focal` side's.
    """
    return max_turns if count_turns == "both" else 2 * max_turns


async def play(dialogue: PlannedDialogue, match: Match) -> Trajectory:
    """Play a dialogue to its end: an agreement, a breakdown, or `max_turns` turns of both players.

    Each player's API seed is constant within the dialogue. Usage and cost are those of the turns
    that are played, without the ones that were given.

    Raises:
      ApiError: a writer failed for good; there is no half trajectory.
    """
    scenario, name = dialogue.scenario, dialogue.trajectory_id
    players = match.focal, match.counterparty
    choosers = [player.choose_for and player.choose_for(dialogue) for player in players]
    calls: list[Completion] = []
    turns = [await _listen(turn, match, name, calls) for turn in dialogue.heard]
    verdict = mediate(turns, scenario, match.agreement) if turns else ONGOING
    while verdict == ONGOING and len(turns) < match.max_turns:
        to_move = len(turns) % 2
        role: Role = "counterparty" if to_move else "focal"
        emotion, shown_emotion = None, NEUTRAL
        if (choose := choosers[to_move]) is not None:
            state = DialogueState.from_turns(scenario, turns, match.max_turns, role=role)
            emotion = shown_emotion = choose(state)
        try:
            reply = await _reply(dialogue, match, role, turns, shown_emotion)
        except EmptyReplyError:
            if not match.silence_ends or players[to_move].method is None:
                raise
            verdict = BREAKDOWN
            break
        text = " ".join(reply.text.split())  # as records keep it: one line, single spaces
        if not text:
            raise EmptyReplyError(f"turn {len(turns)} of {name} is empty.")
        is_cut = reply.finish_reason == "length"  # "I could pay within 4": nobody knows what it is
        read = Read() if is_cut else await _read(dialogue, match, text, turns)
        turn = Turn(
            index=len(turns),
            speaker=role,
            emotion=emotion,
            text=text,
            offer=read.offer,
            act=read.act,
            finish_reason=reply.finish_reason,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            latency_s=round(reply.latency_s, 4),
        )
        calls += [reply, *read.calls]
        turns.append(turn)
        verdict = mediate(turns, scenario, match.agreement)
        if verdict == ONGOING:
            turns[-1] = await _listen(turn, match, name, calls)
    return Trajectory(
        trajectory_id=name,
        domain=scenario.domain,
        scenario_id=scenario.scenario_id,
        seed=dialogue.number,
        split=scenario.split,
        focal_target=scenario.focal_target,
        counterparty_anchor=scenario.counterparty_anchor,
        unit=scenario.unit,
        focal=FocalPlayer(**_recorded(match.focal)),
        counterparty=CounterpartyPlayer(**_recorded(match.counterparty)),
        prompt_pack_sha256=match.pack.sha256,
        agreement_rule=match.agreement,
        turns=tuple(turns),
        outcome=verdict.outcome,
        final_value=verdict.final_value,
        usage=DialogueUsage(
            calls=len(calls),
            prompt_tokens=sum(call.prompt_tokens for call in calls),
            completion_tokens=sum(call.completion_tokens for call in calls),
        ),
        cost_usd=sum(call.cost_usd for call in calls),
    )


async def _read(dialogue: PlannedDialogue, match: Match, text: str, turns: Sequence[Turn]) -> Read:
    """What an utterance offers and does, after `turns`."""
    domain = dialogue.scenario.domain
    if match.reader is None:
        return Read(read_offer(text, domain))
    heard = turns[-1].text if turns else None
    return await match.reader.read(
        text, domain, heard=heard, dialogue_id=dialogue.trajectory_id, seed=match.seed
    )


async def _listen(turn: Turn, match: Match, name: str, calls: list[Completion]) -> Turn:
    """The turn with what the other player hears in it; the calls for that go to `calls`."""
    listener = match.counterparty if turn.speaker == "focal" else match.focal
    if listener.emotion_reader is None or turn.heard_emotion is not None:
        return turn
    heard = await listener.emotion_reader.hear(turn.text, dialogue_id=name, seed=match.seed)
    calls += heard.calls
    return msgspec.structs.replace(turn, heard_emotion=heard.emotion)


async def _reply(
    dialogue: PlannedDialogue,
    match: Match,
    role: Role,
    turns: Sequence[Turn],
    emotion: str | None,
) -> Completion:
    """The next utterance of a role; the oldest turns that don't fit its prompt are dropped."""
    prompt = focal_messages if role == "focal" else counterparty_messages
    writer: Writer = getattr(match, role).writer

    for dropped in range(len(turns) + 1):
        messages = prompt(match.pack, dialogue.scenario, turns[dropped:], emotion)
        if writer.fits(messages):
            break
    if dropped:
        log.info("%s: the %d oldest turns don't fit the prompt.", writer.model, dropped)
    return await writer.reply(
        messages,
        dialogue_id=dialogue.trajectory_id,
        seed=dialogue.seeds.get(role, player_seed(match.seed, role, dialogue.trajectory_id)),
    )


def player_seed(seed: int, role: Role, trajectory_id: str) -> int:
    """The API seed of a role throughout a dialogue."""
    return derive(seed, role, trajectory_id)


def _recorded(player: Player) -> dict[str, Any]:
    return {
        "method": player.method,
        "provider": player.writer.provider,
        "model": player.writer.model,
        "temperature": player.writer.temperature,
        "cells": dict(player.cells),
        "server": player.server,
    }
