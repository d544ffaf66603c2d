"""Dialogues as transitions (s, e, r, s', terminal) for the emotion selector (paper, Appendix C).

The selector decides at focal turns with an emotion. What a focal turn without one brings about
belongs to the transition of the decision before it, which leads to the next decision; after the
last decision a dialogue is over for the selector, whose last transition is therefore terminal and
gets R. Were it left out with a last turn that has no emotion, dialogues that end in such a turn
would have no outcome, and as people break off without ceremony, those would be the breakdowns.

Free of jax. Axes: N transitions, S state.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emodistill.configs import IQLSignal, StateKind
from emodistill.emotions import EMOTION_INDEX
from emodistill.errors import InputError
from emodistill.negotiation.states import DialogueState, features
from emodistill.offline.rewards import (
    USUAL_LIMIT,
    FocalTurns,
    Scores,
    TurnLimit,
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
    """State before the dialogue's next decision; after the last one, of no consequence."""
    terminal_N: np.ndarray
    dialogue_N: np.ndarray
    """Which dialogue each is from; those of one dialogue stand together, in its order."""
    state: StateKind
    num_dialogues: int
    num_turns: int = 0
    """Focal turns of all dialogues, those that are left out included."""
    num_truncated: int = 0
    """Dialogues cut off by a failure, left out."""
    num_truncated_turns: int = 0
    """Their focal turns."""
    num_without_reward: int = 0
    """Focal turns that lack the judge's score, left out."""
    num_without_emotion: int = 0
    """Focal turns spoken without an emotion, left out."""
    num_cut: int = 0
    """Focal turns that were cut at their limit of tokens, left out."""
    num_early_ends: int = 0
    """Dialogues whose last focal turn is one of them, so that an earlier one is terminal."""
    num_without_decision: int = 0
    """Dialogues all of whose focal turns are spoken without an emotion, left out."""
    left_out_scenarios: tuple[str, ...] = ()
    """Scenarios with too few scores to be normalised."""

    def __len__(self) -> int:
        return len(self.action_N)

    @property
    def starts(self) -> np.ndarray:
        """The first transition of each dialogue that has one."""
        return np.flatnonzero(np.diff(self.dialogue_N, prepend=-1))


def joined_transitions(parts: Sequence[Transitions]) -> Transitions:
    """The transitions of several data sets one after the other; the counts are the first one's."""
    if len(parts) == 1:
        return parts[0]
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("observation_NS", "action_N", "reward_N", "next_observation_NS", "terminal_N")
    }
    offsets = np.cumsum([0, *(1 + int(part.dialogue_N.max()) for part in parts[:-1])])
    dialogue_N = np.concatenate(
        [part.dialogue_N + offset for part, offset in zip(parts, offsets, strict=True)]
    )
    return dataclasses.replace(parts[0], **arrays, dialogue_N=dialogue_N)


def make_transitions(
    trajectories: Sequence[Trajectory],
    scores: Scores,
    *,
    signal: IQLSignal = "outcome",
    state: StateKind = "geometry",
    limit: TurnLimit = USUAL_LIMIT,
) -> Transitions:
    """One transition per whole focal turn with an emotion; the last of a dialogue is terminal.

    Rewards are R at that one (Eq. 13) or scenario-wise z-scores of judgements, taken
    over all dialogues given; `limit` is what the dialogues were played under.

    Raises:
      InputError: no transition is left.
    """
    table = FocalTurns.from_trajectories(trajectories, scores, max_turns=limit.horizon)
    is_truncated_D = np.array([is_truncated(t, limit.cap) for t in trajectories], bool)
    has_emotion = np.array([emotion is not None for emotion in table.emotions], bool)
    is_decision = has_emotion & ~table.is_cut
    decisions = np.flatnonzero(is_decision)
    dialogues = table.trajectory_index[decisions]
    is_last = np.zeros(len(table), bool)  # rows run dialogue by dialogue
    is_last[decisions[np.append(dialogues[1:] != dialogues[:-1], True)[: len(decisions)]]] = True
    next_decision = dict(itertools.pairwise(decisions.tolist()))
    # The outcome counts for the last decision, whatever is said after it.
    rewards = iql_rewards(dataclasses.replace(table, is_last=is_last), signal)
    has_reward = ~np.isnan(rewards)
    is_whole = ~is_truncated_D[table.trajectory_index]
    num_without_emotion = int(np.sum(is_whole & ~has_emotion))
    num_cut = int(np.sum(is_whole & has_emotion & table.is_cut))
    num_without_reward = int(np.sum(is_whole & is_decision & ~has_reward))
    rows = np.flatnonzero(is_whole & is_decision & has_reward).tolist()
    if not rows:
        raise InputError(
            f"{len(trajectories)} trajectories give no transition for signal={signal!r}: "
            f"{is_truncated_D.sum()} are cut off, {num_without_emotion} turns have no emotion, "
            f"{num_cut} were cut at their limit of tokens and {num_without_reward} have no score. "
            "Sweep and judge more dialogues."
        )

    def observed(row: int, num_turns: int | None) -> np.ndarray:
        trajectory = trajectories[table.trajectory_index[row]]
        before = trajectory.turns[:num_turns]
        return features(DialogueState.from_turns(trajectory, before, limit.cap), state)

    def next_turn(row: int) -> int | None:
        return None if is_last[row] else int(table.turn_index[next_decision[row]])

    num_early_ends = int(np.sum(is_whole & is_last & ~table.is_last))
    num_whole = len({*table.trajectory_index[is_whole].tolist()})
    num_deciding = len({*table.trajectory_index[is_whole & is_decision].tolist()})

    return Transitions(
        observation_NS=np.stack([observed(row, table.turn_index[row]) for row in rows]),
        action_N=np.array([EMOTION_INDEX[emotion] for emotion in table.emotions[rows]], np.int32),
        reward_N=rewards[rows].astype(np.float32),
        next_observation_NS=np.stack([observed(row, next_turn(row)) for row in rows]),
        terminal_N=is_last[rows],
        dialogue_N=table.trajectory_index[rows].astype(np.int32),
        state=state,
        num_dialogues=int(np.sum(~is_truncated_D)),
        num_turns=len(table),
        num_truncated=int(np.sum(is_truncated_D)),
        num_truncated_turns=int(np.sum(~is_whole)),
        num_without_reward=num_without_reward,
        num_without_emotion=num_without_emotion,
        num_cut=num_cut,
        num_early_ends=num_early_ends,
        num_without_decision=num_whole - num_deciding,
        left_out_scenarios=left_out_scenarios(table, rewards),
    )
