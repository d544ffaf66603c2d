"""Focal turns as token ids: the prompt that the student sees, and the reply that it learns.

The prompt is rendered exactly as at inference (`prompts.focal_messages`, the tokenizer's own chat
template). One that is too long loses its oldest turns, never the reply.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError
from emodistill.prompts import Message, PromptPack, focal_messages
from emodistill.records import Trajectory, Turn


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """One focal turn to learn from; ids are int32."""

    sample_id: str
    """`crad/debt_001/seed_0007#4`: the trajectory and the turn's index in it."""
    prompt_ids: np.ndarray
    response_ids: np.ndarray
    """The reply and the end-of-turn token."""
    num_dropped_turns: int = 0
    """Oldest turns left out so that the prompt fits."""
    asked_index: int = 0
    """Which of the turns that `build_examples` was asked for it is."""

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


class ExampleSet(NamedTuple):
    """What came of the asked turns: `len(examples) + num_dropped` of them."""

    examples: tuple[Example, ...]
    num_trimmed: int
    """Examples whose prompt lost its oldest turns."""
    num_dropped: int
    """Turns left out because they do not fit even without any history."""


def build_examples(
    trajectories: Sequence[Trajectory],
    scenarios: Iterable[Scenario],
    turns: Iterable[tuple[int, int]],
    *,
    pack: PromptPack,
    encode_chat: Callable[[list[Message]], Sequence[int]],
    encode_reply: Callable[[str], Sequence[int]],
    max_tokens: int,
    emotion_free: bool = False,
) -> ExampleSet:
    """Tokenise focal turns, in the order asked for.

    Args:
      turns: pairs (position in `trajectories`, index of a focal turn in it).
      encode_chat, encode_reply: the student's tokenizer; prompt ids end where the reply begins,
        reply ids with the end-of-turn token.
      max_tokens: bound of prompt and reply together.
      emotion_free: leave the emotion block out of every prompt.

    Raises:
      InputError: a dialogue's scenario is unknown, or a turn is not the focal agent's.
    """
    by_id = {(scenario.domain, scenario.scenario_id): scenario for scenario in scenarios}
    examples: list[Example] = []
    num_dropped = 0
    for asked_index, (position, turn_index) in enumerate(turns):
        trajectory = trajectories[position]
        turn, scenario = _focal_turn(trajectory, turn_index), _scenario(trajectory, by_id)
        render = functools.partial(
            focal_messages, pack, scenario, emotion=None if emotion_free else turn.emotion
        )
        response_ids = encode_reply(turn.text)
        fitting = _trim(
            trajectory.turns[:turn_index],
            lambda history, render=render: encode_chat(render(history)),
            max_tokens - len(response_ids),
        )
        if fitting is None:
            num_dropped += 1
            continue
        prompt_ids, num_dropped_turns = fitting
        examples.append(
            Example(
                sample_id=f"{trajectory.trajectory_id}#{turn_index}",
                prompt_ids=np.asarray(prompt_ids, np.int32),
                response_ids=np.asarray(response_ids, np.int32),
                num_dropped_turns=num_dropped_turns,
                asked_index=asked_index,
            )
        )
    num_trimmed = sum(example.num_dropped_turns > 0 for example in examples)
    return ExampleSet(tuple(examples), num_trimmed, num_dropped)


def _trim(
    turns: Sequence[Turn], encode: Callable[[Sequence[Turn]], Sequence[int]], room: int
) -> tuple[Sequence[int], int] | None:
    """The prompt's ids with the fewest oldest turns dropped to fit `room`, and how many."""
    whole = encode(turns)
    if len(whole) <= room:
        return whole, 0
    low, high, best = 1, len(turns), None
    while low <= high:  # more turns dropped, fewer tokens
        middle = (low + high) // 2
        if len(ids := encode(turns[middle:])) <= room:
            best, high = (ids, middle), middle - 1
        else:
            low = middle + 1
    return best


def _focal_turn(trajectory: Trajectory, turn_index: int) -> Turn:
    name = f"{trajectory.trajectory_id}#{turn_index}"
    if not 0 <= turn_index < len(trajectory.turns):
        raise InputError(f"{name}: the dialogue has turns 0 to {len(trajectory.turns) - 1} only.")
    turn = trajectory.turns[turn_index]
    if turn.speaker != "focal":
        raise InputError(f"{name} is the counterparty's turn; the student learns focal turns.")
    return turn


def _scenario(trajectory: Trajectory, by_id: Mapping[tuple[str, str], Scenario]) -> Scenario:
    try:
        return by_id[trajectory.domain, trajectory.scenario_id]
    except KeyError:
        raise InputError(
            f"{trajectory.trajectory_id}: scenario {trajectory.scenario_id!r} of domain "
            f"{trajectory.domain!r} is not among the {len(by_id)} scenarios given. Add its line to "
            "sweep/scenarios.jsonl."
        ) from None
