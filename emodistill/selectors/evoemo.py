"""EvoEmo (arXiv 2509.04310): a matrix of emotional transitions, evolved by generations of talks.

    P ← λ P + (1 − λ) (counts + α) / (row + 7 α)

Counts are the transitions of a generation's elite. The form is that of the published code (one
matrix that all draw from); the paper's individuals, each with sequences and a matrix of its own,
have sizes that are not known. Constants are the code's: elite one half, crossover 0.8, mutation
0.15, λ = 0.6, smoothing 5 / transitions, 0.1 at least; 24 dialogues in each of 10 generations.

Departures: offspring are played, from the second generation on as the second half of each (the code
counts them unplayed); the fitness is the utility. In either form, two parents are always crossed by
a cut in each (half of the code's children take turns from both), and no emotion is inserted or
deleted (the code does so with half the chance of a mutation); the sampling temperature of the
writer does not evolve, since one writer plays all methods; the whole budget is spent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from emodistill.offline.rewards import dialogue_utility
from emodistill.records import Trajectory
from emodistill.seeding import stream
from emodistill.selectors.learning import (
    MarkovSelector,
    Setup,
    focal_groups,
    log_length,
    switched,
)
from emodistill.selectors.seven import NEUTRAL_GROUP, SEVEN, published

GENERATIONS_SHARE = 2.4
"""Dialogues of a generation over the number of generations: 24 and 10 in the code's 240. Other
budgets keep that proportion, which is ours."""
ELITE_SHARE = 0.5
CROSSOVER, MUTATION = 0.8, 0.15
KEPT = 0.6
LEAST_SMOOTHING, SMOOTHING = 0.1, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvoEmoFaults:
    """What the published code does instead; all off is the repaired form."""

    saves_start: bool = False
    """The matrix that is kept is the start matrix."""
    early_fitness: bool = False
    """Fitness is 100 · max(0, (target − value) / target) / (1 + ln(n + 1)) / (1 + 0.1 L), which is
    0 unless a deal beats the target; equal dialogues are ranked by their row."""
    unplayed_offspring: bool = False
    """Offspring are counted without having been played."""
    row_restart: bool = False
    """Every generation plays the same first scenarios."""


class EvoEmoLearner:
    """Evolves the transition matrix; see the module."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.faults: EvoEmoFaults = switched(EvoEmoFaults, setup.faults)
        self.matrix = published("evoemo")["start"]
        self.offspring: list[list[int]] = []
        self.generation = 0
        self._left = setup.dialogues
        self._size = max(2, round(math.sqrt(GENERATIONS_SHARE * setup.dialogues)))

    @property
    def block_size(self) -> int:
        return min(self._size, self._left)

    @property
    def repeated_rows(self) -> int | None:
        return self._size if self.faults.row_restart else None

    def selector_for(self, position: int) -> MarkovSelector:
        first_child = self.block_size - len(self.offspring)
        script = () if position < first_child else self.offspring[position - first_child]
        return MarkovSelector(self.matrix, self.setup.labels, script)

    def learn(self, dialogues: Sequence[Trajectory | None]) -> None:
        rng = stream(self.setup.seed, "evoemo", self.generation)
        ended = [dialogue for dialogue in dialogues if dialogue is not None]
        self._left -= len(dialogues)
        self.generation += 1
        if not ended:
            return
        fitness = np.array([self.fitness(dialogue) for dialogue in ended])
        # Among equals chance decides, not the row, which would favour the first scenarios.
        order = np.arange(len(ended)) if self.faults.early_fitness else rng.permutation(len(ended))
        ranked = order[np.argsort(-fitness[order], kind="stable")]
        elite = [focal_groups(ended[i]) for i in ranked[: math.ceil(ELITE_SHARE * len(ended))]]
        children = offspring(elite, min(self._size // 2, self._left), rng)
        if self.faults.unplayed_offspring:
            elite += children
        else:
            self.offspring = children
        self.matrix = KEPT * self.matrix + (1 - KEPT) * transition_shares(elite)

    def fitness(self, dialogue: Trajectory) -> float:
        """The utility; the ratio of the paper as the system's own; or the code's."""
        if self.faults.early_fitness:
            target, value = dialogue.focal_target, dialogue.final_value
            if value is None or target == 0:  # 0 is 9 PM in the student's domain
                return 0.0
            early = (target - value) / abs(target)
            talk = 1.0 + math.log(len(dialogue.turns) + 1)
            return 100.0 * max(0.0, early) / talk / (1.0 + 0.1 * len(dialogue.focal_turns))
        if self.setup.reward == "own":
            return dialogue_utility(dialogue) / log_length(dialogue)
        return dialogue_utility(dialogue)

    def arrays(self) -> Mapping[str, np.ndarray]:
        kept = published("evoemo")["start"] if self.faults.saves_start else self.matrix
        return {"matrix": np.array(kept)}


def offspring(
    parents: Sequence[Sequence[int]], count: int, rng: np.random.Generator
) -> list[list[int]]:
    """Children of sequences: a cut in each of two parents, then each emotion may mutate."""
    children = []
    for _ in range(count):
        first, second = (parents[int(i)] for i in rng.integers(len(parents), size=2))
        child = list(first)
        if rng.random() < CROSSOVER and min(len(first), len(second)) > 1:
            cut, other_cut = rng.integers(1, len(first)), rng.integers(1, len(second))
            child = [*first[:cut], *second[other_cut:]]
        is_mutated = rng.random(len(child)) < MUTATION
        drawn = rng.integers(len(SEVEN), size=len(child))
        children.append(np.where(is_mutated, drawn, child).astype(int).tolist())
    return children


def transition_shares(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """The smoothed shares of the transitions in sequences that all start at neutral, [7, 7]."""
    counts = np.zeros((len(SEVEN), len(SEVEN)))
    for sequence in sequences:
        np.add.at(counts, ([NEUTRAL_GROUP, *sequence[:-1]], list(sequence)), 1.0)
    smoothing = max(LEAST_SMOOTHING, SMOOTHING / max(1.0, counts.sum()))
    smoothed = counts + smoothing
    return smoothed / smoothed.sum(axis=1, keepdims=True)
