"""Focal turns as token ids: the prompt that the student sees, and the reply that it learns.

The prompt is rendered exactly as at inference (`prompts.focal_messages`, the tokenizer's own chat
template). One that is too long loses its oldest turns, never the reply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError
from emodistill.prompts import Message, PromptPack, focal_messages
from emodistill.records import Trajectory


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
) -> list[Example]:
    """Tokenise focal turns, in the order asked for; those that don't fit even alone are left out.

    Args:
      turns: pairs (index in `trajectories`, index of a focal turn in that dialogue).
      encode_chat, encode_reply: the student's tokenizer; prompt ids end where the reply begins,
        reply ids with the end-of-turn token.
      max_tokens: bound of prompt and reply together.
      emotion_free: leave the emotion block out of every prompt.

    Raises:
      InputError: a dialogue's scenario is unknown.
    """
    by_id = {(scenario.domain, scenario.scenario_id): scenario for scenario in scenarios}
    examples: list[Example] = []
    for asked_index, (index, turn_index) in enumerate(turns):
        trajectory = trajectories[index]
        scenario = by_id.get((trajectory.domain, trajectory.scenario_id))
        if scenario is None:
            raise InputError(
                f"{trajectory.trajectory_id}: scenario {trajectory.scenario_id!r} of domain "
                f"{trajectory.domain!r} is not among the {len(by_id)} scenarios given. Add its "
                "line to sweep/scenarios.jsonl."
            )
        turn = trajectory.turns[turn_index]
        emotion = None if emotion_free else turn.emotion
        response_ids = encode_reply(turn.text)
        for first in range(turn_index + 1):  # most fit with their whole history
            history = trajectory.turns[first:turn_index]
            prompt_ids = encode_chat(focal_messages(pack, scenario, history, emotion))
            if len(prompt_ids) + len(response_ids) <= max_tokens:
                example = Example(
                    sample_id=f"{trajectory.trajectory_id}#{turn_index}",
                    prompt_ids=np.asarray(prompt_ids, np.int32),
                    response_ids=np.asarray(response_ids, np.int32),
                    num_dropped_turns=first,
                    asked_index=asked_index,
                )
                examples.append(example)
                break
    return examples
