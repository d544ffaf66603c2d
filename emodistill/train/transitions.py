"""Dialogues as transitions (s, e, r, s', terminal) for the emotion selector (paper, Appendix C).

Free of jax. Axes: N transitions, S state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emodistill.configs import IQLSignal, StateKind
from emodistill.emotions import EMOTION_INDEX
from emodistill.errors import InputError
from emodistill.negotiation.states import DialogueState, features
from emodistill.offline.rewards import (
    FocalTurns,
    Scores,
    iql_rewards,
    is_truncated,
    left_out_scenarios,
)
from emodistill.records import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Transitions:
    """What IQL learns from, and what it had to leave out."""

    observation_NS: np.ndarray
    action_N: np.ndarray
    reward_N: np.ndarray
    next_observation_NS: np.ndarray
    """State before the dialogue's next focal turn; after the last one, of no consequence."""
    terminal_N: np.ndarray
    dialogue_N: np.ndarray
    """Which dialogue each is from; those of one dialogue stand together, in its order."""
    state: StateKind
    num_dialogues: int
    num_truncated: int
    """Dialogues cut off by a failure, left out."""
    num_without_reward: int
    """Focal turns that lack the judge's score, left out."""
    num_without_emotion: int
    """Focal turns spoken without an emotion, left out."""
    left_out_scenarios: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.action_N)

    @property
    def starts(self) -> np.ndarray:
        """The first transition of each dialogue that has one."""
        return np.flatnonzero(np.diff(self.dialogue_N, prepend=-1))


def make_transitions(
    trajectories: Sequence[Trajectory],
    scores: Scores,
    *,
    signal: IQLSignal = "outcome",
    state: StateKind = "geometry",
    max_turns: int = 30,
) -> Transitions:
    """One transition per focal turn; the last one of a dialogue is terminal, at the cap too.

    Rewards are R at the last focal turn (Eq. 13) or scenario-wise z-scores of judgements, taken
    over all dialogues given; `max_turns` is the cap that the dialogues were played under.

    Raises:
      InputError: no transition is left.
    """
    table = FocalTurns.from_trajectories(trajectories, scores, max_turns=max_turns)
    rewards = iql_rewards(table, signal)
    truncated = [is_truncated(trajectory, max_turns) for trajectory in trajectories]
    observations: list[np.ndarray] = []
    next_observations: list[np.ndarray] = []
    kept: list[tuple[int, float, bool, int]] = []
    num_without_emotion = num_without_reward = 0
    for row in range(len(table)):
        position = int(table.trajectory_index[row])
        if truncated[position]:
            continue
        trajectory, is_last = trajectories[position], bool(table.is_last[row])
        turn = trajectory.turns[table.turn_index[row]]
        if turn.emotion is None:
            num_without_emotion += 1
            continue
        if math.isnan(rewards[row]):
            num_without_reward += 1
            continue
        next_turn = len(trajectory.turns) if is_last else int(table.turn_index[row + 1])
        for turns_before, out in ((turn.index, observations), (next_turn, next_observations)):
            before = trajectory.turns[:turns_before]
            out.append(features(DialogueState.from_turns(trajectory, before, max_turns), state))
        kept.append((EMOTION_INDEX[turn.emotion], float(rewards[row]), is_last, position))
    if not kept:
        raise InputError(
            f"{len(trajectories)} trajectories give no transition for signal={signal!r}: "
            f"{sum(truncated)} are cut off, {num_without_emotion} turns have no emotion and "
            f"{num_without_reward} no score. Sweep and judge more dialogues."
        )
    action, reward, terminal, dialogue = zip(*kept, strict=True)
    return Transitions(
        observation_NS=np.stack(observations).astype(np.float32),
        action_N=np.array(action, np.int32),
        reward_N=np.array(reward, np.float32),
        next_observation_NS=np.stack(next_observations).astype(np.float32),
        terminal_N=np.array(terminal, bool),
        dialogue_N=np.array(dialogue, np.int32),
        state=state,
        num_dialogues=len(trajectories) - sum(truncated),
        num_truncated=sum(truncated),
        num_without_reward=num_without_reward,
        num_without_emotion=num_without_emotion,
        left_out_scenarios=left_out_scenarios(table, rewards),
    )
