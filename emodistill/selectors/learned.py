"""The selector that was learned from transitions: IQL's policy (paper, Eq. 15), or a control's.

Runs in NumPy: a state costs some tens of microseconds, and asking for one never compiles anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self, get_args

import numpy as np

from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError
from emodistill.negotiation.states import DialogueState, feature_names, features
from emodistill.train.selector_files import PolicyKind, Selected, load_selector


@dataclass(frozen=True, slots=True, kw_only=True)
class IQLSelector:
    """Samples an emotion from the trained policy, or takes its mode if `greedy`.

    Raises:
      InputError: a policy that is unknown or that its learner lacks, or the networks read another
        number of features than their kind of state has.
    """

    networks: Selected
    policy: PolicyKind = "network"
    greedy: bool = False

    def __post_init__(self) -> None:
        if self.policy not in get_args(PolicyKind):
            raise InputError(f"policy={self.policy!r} is neither 'network' nor 'closed-form'.")
        if self.policy not in self.networks.policies:
            raise InputError(
                f"policy={self.policy!r} is of IQL's critic and value; a selector of "
                f"learner={self.networks.learner!r} has none. Leave --policy out."
            )
        expected = len(feature_names(self.networks.state))
        if self.networks.num_features != expected:
            raise InputError(
                f"the selector reads {self.networks.num_features} features, but "
                f"state={self.networks.state!r} has {expected} in this version. Train it again."
            )

    @classmethod
    def load(cls, directory: Path, *, policy: PolicyKind = "network", greedy: bool = False) -> Self:
        """Read the selector that training left in `directory`."""
        return cls(networks=load_selector(directory), policy=policy, greedy=greedy)

    def probabilities(self, state: DialogueState) -> np.ndarray:
        """The policy at a state, float64 [A]; sums to one."""
        return self.networks.probabilities(features(state, self.networks.state), self.policy)

    def choose(self, state: DialogueState, rng: np.random.Generator) -> str:
        probabilities = self.probabilities(state)
        if self.greedy:
            return EMOTIONS[int(probabilities.argmax())]
        drawn = np.searchsorted(np.cumsum(probabilities), rng.random(), side="right")
        return EMOTIONS[min(int(drawn), len(EMOTIONS) - 1)]
