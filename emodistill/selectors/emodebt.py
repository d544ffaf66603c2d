"""EmoDebt (arXiv 2503.21080, from v5 on): Bayesian optimisation of a matrix of transitions.

A Gaussian process on the 49 numbers of P and the mean reward of a block of dialogues under it; of
20 matrices whose rows are drawn around another one, Dirichlet(10 row + 0.1), the one with the
largest expected improvement (ξ = 0.01) plays the next block. Constants are those of the published
code, as is the budget of 60 dialogues, 20 matrices with three each.

Departures: the reward is the utility; the noise of the process is learned, as its length is there
too, both on a grid in place of ten restarts; a matrix keeps all dialogues of its block; candidates
are drawn around the matrix with the best posterior mean, which is also what the incumbent is and
what training ends with. Until there are three observations the next matrix is drawn around the
start, Dirichlet(5 row + 0.5), as in an older version. Other budgets than 60 let the matrices and
their dialogues grow alike, which is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from emodistill.offline.rewards import dialogue_utility
from emodistill.records import Trajectory
from emodistill.seeding import stream
from emodistill.selectors.gaussian_process import (
    NOISES,
    GaussianProcess,
    expected_improvement,
)
from emodistill.selectors.learning import MarkovSelector, Setup, switched
from emodistill.selectors.seven import SEVEN, published

DIALOGUES_SHARE = 0.15
"""Dialogues of a matrix over the number of matrices: 3 and 20 in the published 60."""
NUM_CANDIDATES = 20
CONCENTRATION, FLOOR = 10.0, 0.1
FIRST_CONCENTRATION, FIRST_FLOOR = 5.0, 0.5
NUM_FIRST = 3
MARGIN = 0.01
NUM_DUMMIES = 5
FAILURE = -180.0
NU = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class EmoDebtFaults:
    """What the published code does instead; all off is the repaired form."""

    dummies: bool = False
    """It starts from five random matrices that nobody plays, with a reward of 0. Under its own
    reward, which is at most 0, one of them is the incumbent for ever."""
    late_reward: bool = False
    """The reward is −100 ln(n) / value, −180 for a failure: it rises with later payment."""
    moving_matrix: bool = False
    """P changes after each booking, so that the later dialogues of a block are booked to matrices
    that didn't play them."""
    around_current: bool = False
    """Candidates are drawn around the current matrix instead of the best one."""
    fixed_noise: bool = False
    """The noise is 1e-6, whatever the rewards; the incumbent is the largest reward seen."""
    keeps_last: bool = False
    """Training ends with the matrix that it has come to, not with the best one."""


class EmoDebtLearner:
    """Optimises the transition matrix; see the module."""

    repeated_rows = None

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.faults: EmoDebtFaults = switched(EmoDebtFaults, setup.faults)
        self.matrix = published("emodebt")["start"]
        self.points: list[np.ndarray] = []
        self.rewards: list[float] = []
        if self.faults.dummies:
            rng = stream(setup.seed, "emodebt-dummies")
            for _ in range(NUM_DUMMIES):
                self._observe(rng.dirichlet(np.ones(len(SEVEN)), size=len(SEVEN)), 0.0)
        self._num_proposed = 0
        self._left = setup.dialogues
        self._size = max(1, round(math.sqrt(DIALOGUES_SHARE * setup.dialogues)))

    @property
    def block_size(self) -> int:
        return min(self._size, self._left)

    def selector_for(self, position: int) -> MarkovSelector:
        return MarkovSelector(self.matrix, self.setup.labels)

    def learn(self, dialogues: Sequence[Trajectory | None]) -> None:
        self._left -= len(dialogues)
        rewards = [self.reward(dialogue) for dialogue in dialogues if dialogue is not None]
        if not rewards:
            return
        for booked in rewards if self.faults.moving_matrix else [float(np.mean(rewards))]:
            self._observe(self.matrix, booked)
            self.matrix = self._next_matrix()

    def reward(self, dialogue: Trajectory) -> float:
        """The utility; or the system's own reward."""
        if not (self.faults.late_reward or self.setup.reward == "own"):
            return dialogue_utility(dialogue)
        if dialogue.final_value is None:
            return FAILURE
        return -100.0 * math.log(max(2, len(dialogue.turns))) / max(dialogue.final_value, 1e-9)

    @property
    def incumbent(self) -> int:
        """The index of the best observation: by posterior mean, or by the reward seen."""
        if self.faults.fixed_noise or len(self.points) < NUM_FIRST:
            return int(np.argmax(self.rewards))
        mean_N, _ = self._process().predict(np.array(self.points))
        return int(np.argmax(mean_N))

    def arrays(self) -> Mapping[str, np.ndarray]:
        if self.faults.keeps_last or not self.points:
            return {"matrix": np.array(self.matrix)}
        return {"matrix": self.points[self.incumbent].reshape(self.matrix.shape)}

    def _observe(self, matrix: np.ndarray, reward: float) -> None:
        self.points.append(matrix.ravel())
        self.rewards.append(reward)

    def _process(self) -> GaussianProcess:
        noises = (1e-6,) if self.faults.fixed_noise else NOISES
        points, rewards = np.array(self.points), np.array(self.rewards)
        return GaussianProcess.fit(points, rewards, nu=NU, noises=noises)

    def _next_matrix(self) -> np.ndarray:
        rng = stream(self.setup.seed, "emodebt", self._num_proposed)
        self._num_proposed += 1
        if len(self.points) < NUM_FIRST:
            start = published("emodebt")["start"]
            return _around(start, FIRST_CONCENTRATION, FIRST_FLOOR, rng)
        process = self._process()
        mean, _ = process.predict(np.array(self.points))
        best = max(self.rewards) if self.faults.fixed_noise else float(mean.max())
        center = self.matrix
        if not self.faults.around_current:
            center = self.points[int(np.argmax(mean))].reshape(center.shape)
        candidates = [_around(center, CONCENTRATION, FLOOR, rng) for _ in range(NUM_CANDIDATES)]
        flat = np.array([candidate.ravel() for candidate in candidates])
        improvement = expected_improvement(*process.predict(flat), best, MARGIN)
        return candidates[int(np.argmax(improvement))]


def _around(
    matrix: np.ndarray, concentration: float, floor: float, rng: np.random.Generator
) -> np.ndarray:
    return np.array([rng.dirichlet(concentration * row + floor) for row in matrix])
