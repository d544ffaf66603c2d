"""The learned selector: samples the policy that IQL extracted (paper, Eq. 15).

`network` is the policy network fitted by advantage-weighted regression; `closed-form` is
exp(β(Q − V)) itself, normalised over the emotions. The two agree where the data's behaviour was
uniform, as a sweep's is, and the networks fit. Runs in NumPy: a state costs some tens of
microseconds, and asking for one never compiles anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np

from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError
from emodistill.negotiation.states import DialogueState, features, num_features
from emodistill.train.selector_files import SelectorNetworks, load_selector

PolicyKind = Literal["network", "closed-form"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IQLSelector:
    """Samples an emotion from the trained policy, or takes its mode if `greedy`.

    Raises:
      InputError: the networks read another number of features than their kind of state has.
    """

    networks: SelectorNetworks
    policy: PolicyKind = "network"
    greedy: bool = False

    def __post_init__(self) -> None:
        if self.policy not in ("network", "closed-form"):
            raise InputError(f"policy={self.policy!r} is neither 'network' nor 'closed-form'.")
        expected = num_features(self.networks.state)
        if self.networks.num_features != expected:
            raise InputError(
                f"the selector reads {self.networks.num_features} features, but "
                f"state={self.networks.state!r} has {expected} in this version. Train it again."
            )

    @classmethod
    def load(cls, directory: Path, *, policy: PolicyKind = "network", greedy: bool = False) -> Self:
        """Read the selector that training left in `directory`."""
        return cls(networks=load_selector(directory), policy=policy, greedy=greedy)

    def logits(self, observation_S: np.ndarray) -> np.ndarray:
        """Unnormalised log-probabilities of the emotions, float64 [A]."""
        if self.policy == "network":
            return self.networks.policy_logits(observation_S).astype(np.float64)
        advantages = self.networks.advantages(observation_S).astype(np.float64)
        return self.networks.advantage_scale * advantages

    def probabilities(self, state: DialogueState) -> np.ndarray:
        """The policy at a state, float64 [A]; sums to one."""
        logits = self.logits(features(state, self.networks.state))
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    def choose(self, state: DialogueState, rng: np.random.Generator) -> str:
        probabilities = self.probabilities(state)
        if self.greedy:
            return EMOTIONS[int(probabilities.argmax())]
        drawn = np.searchsorted(np.cumsum(probabilities), rng.random(), side="right")
        return EMOTIONS[min(int(drawn), len(EMOTIONS) - 1)]
