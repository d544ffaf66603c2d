"""What learns to choose emotions from dialogues that it plays itself, a block at a time.

A learner says how many dialogues its next block has and who plays them, and learns from them once
all have ended. It is a function of its seed and of the dialogues alone: a training that was stopped
shows it the recorded ones again, so that there is no checkpoint beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from emodistill.negotiation.states import DialogueState
from emodistill.records import Trajectory
from emodistill.seeding import stream
from emodistill.selectors.seven import NEUTRAL_GROUP, group_of, spoken_label

if TYPE_CHECKING:
    from emodistill.configs import RewardKind, SpokenLabels
    from emodistill.selectors.selector import Selector


class Learner(Protocol):
    """A selector in training."""

    @property
    def block_size(self) -> int:
        """Dialogues of the next block."""
        ...

    @property
    def repeated_rows(self) -> int | None:
        """Dialogues after which the scenarios begin anew; None where they don't."""
        ...

    def selector_for(self, position: int) -> Selector:
        """Who plays the dialogue at `position` of the block."""
        ...

    def learn(self, dialogues: Sequence[Trajectory | None]) -> None:
        """Take in a block in its order; None is a dialogue that failed for good."""
        ...

    def arrays(self) -> Mapping[str, np.ndarray]:
        """What has been learned so far, as it is kept on disk."""
        ...


class Setup(NamedTuple):
    """What a learner is made from; the description of a trained selector has it too."""

    method: str
    """The system's name, without `-shipped`."""
    seed: int
    dialogues: int
    """The budget."""
    faults: Sequence[str] = ()
    """The faults that are switched on, by their field in the system's dataclass of faults."""
    reward: RewardKind = "utility"
    labels: SpokenLabels = "seven"


@dataclass(frozen=True, slots=True)
class MarkovSelector:
    """Draws the next emotion from the row of the player's last one; it starts at neutral.

    Attributes:
      matrix: float64 [7, 7], rows sum to one.
      script: groups that are played first, one a turn.
    """

    matrix: np.ndarray
    labels: SpokenLabels = "seven"
    script: Sequence[int] = ()

    def choose(self, state: DialogueState, rng: np.random.Generator) -> str:
        turn = len(state.emotions)
        last = group_of(state.emotions[-1]) if state.emotions else NEUTRAL_GROUP
        drawn = int(rng.choice(len(self.matrix), p=self.matrix[last]))
        group = self.script[turn] if turn < len(self.script) else drawn
        return spoken_label(group, self.labels, rng)


def payment_ratio(dialogue: Trajectory) -> float:
    """ρ = target / final value within [0, 1], 0 without an agreement; EmoMAS's own outcome.

    A value at or below the target has 1, also where the target is 0 or negative.
    """
    target, value = dialogue.focal_target, dialogue.final_value
    if value is None:
        return 0.0
    return 1.0 if value <= target else max(0.0, target / max(value, 1e-9))


def log_length(dialogue: Trajectory) -> float:
    """1 + ln n, n the turns of both sides: what two systems divide their rewards by."""
    return 1.0 + math.log(max(1, len(dialogue.turns)))


def focal_groups(dialogue: Trajectory) -> list[int]:
    """The groups that the focal player expressed, in order."""
    return [group_of(turn.emotion) for turn in dialogue.focal_turns]


def states_of(dialogue: Trajectory) -> list[DialogueState]:
    """The state before each focal turn."""
    return [
        DialogueState.from_turns(dialogue, dialogue.turns[: turn.index], max_turns=1)
        for turn in dialogue.focal_turns
    ]


def training_rng(seed: int, trajectory_id: str) -> np.random.Generator:
    """What the selector of a training dialogue draws with, turn by turn."""
    return stream(seed, "training-emotions", trajectory_id)


def heard_groups(state: DialogueState) -> list[int]:
    """The groups that were heard of the other side, one a turn of it."""
    return [group_of(label) for label in state.heard_emotions]


def switched(kind: type[Any], names: Sequence[str]) -> Any:
    """A system's faults with those of `names` on."""
    return kind(**dict.fromkeys(names, True))
