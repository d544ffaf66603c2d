"""Focal turns as token ids: the prompt that the student sees, and the reply that it learns.

The prompt is rendered exactly as at inference (`prompts.focal_messages`, the tokenizer's own chat
template). One that is too long loses its oldest turns, never the reply.
"""

from __future__ import annotations

import bisect
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
    """The samples of `len(examples) + num_dropped` turns that were asked for."""

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
      turns: pairs (index in `trajectories`, index of a focal turn in that dialogue).
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
    for asked_index, (index, turn_index) in enumerate(turns):
        trajectory = trajectories[index]
        turn, scenario = _focal_turn(trajectory, turn_index), _scenario(trajectory, by_id)
        render = functools.partial(
            focal_messages, pack, scenario, emotion=None if emotion_free else turn.emotion
        )
        response_ids = encode_reply(turn.text)
        history = trajectory.turns[:turn_index]
        prompts = functools.cache(
            lambda first, history=history, render=render: encode_chat(render(history[first:]))
        )
        num_dropped_turns = _first_fitting(prompts, turn_index, max_tokens - len(response_ids))
        if num_dropped_turns is None:
            num_dropped += 1
            continue
        examples.append(
            Example(
                sample_id=f"{trajectory.trajectory_id}#{turn_index}",
                prompt_ids=np.asarray(prompts(num_dropped_turns), np.int32),
                response_ids=np.asarray(response_ids, np.int32),
                num_dropped_turns=num_dropped_turns,
                asked_index=asked_index,
            )
        )
    num_trimmed = sum(example.num_dropped_turns > 0 for example in examples)
    return ExampleSet(tuple(examples), num_trimmed, num_dropped)


def _first_fitting(
    prompts: Callable[[int], Sequence[int]], num_turns: int, max_tokens: int
) -> int | None:
    """The earliest turn with which `prompts(turn)` has at most `max_tokens`; None without any.

    Most prompts fit with their whole history, so that is tried before the search by halves.
    """

    def fits(first: int) -> bool:
        return len(prompts(first)) <= max_tokens

    if fits(0):
        return 0
    first = bisect.bisect_left(range(num_turns + 1), True, lo=1, key=fits)
    return first if first <= num_turns else None


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
