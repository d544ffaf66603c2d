"""EQ-Negotiator (arXiv 2511.03370): a table of payoffs, and a hidden Markov model in bad times.

With d the other side's emotion as it was heard and c the player's last one: while fewer than four
of the last five d are sadness, anger, fear or disgust, the emotion with the largest payoff π(d, ·),
or the second one if the last payoff was below 2. Else the best answer to what a hidden state of the
other side (cooperative, confrontational, distressed, strategic) makes probable. Tables and
constants are those of the newer published code. It learns after each dialogue: π(d, e) of the
emotions that were played moves by 0.05 times the outcome, E(e, d) by 0.03.

Ours, since the code's is none (see `EQFaults`) and nothing else is known: P(d | state) is the table
w; P(d′ | state, e) is proportional to w(state, d′) E(e, d′); the model's choice is the e with the
largest π(d, e) · P(d′ is none of the four | e). The outcome is 1.5 u − 0.5, which is the code's 1
for all that can be won and its −0.5 for a failure. Equal payoffs are drawn from. No choice
explores, so that an emotion which no table recommends is tried only once those that it does
recommend have lost: that is its form, and stays.

The own transitions T of the code are read by none of its choices, and are left out; the sampling
temperature of the writer is one for all methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from emodistill.offline.rewards import dialogue_utility
from emodistill.records import Trajectory
from emodistill.selectors.learning import (
    Setup,
    heard_groups,
    states_of,
    switched,
)
from emodistill.selectors.seven import (
    ANGER,
    DISGUST,
    FEAR,
    NEUTRAL_GROUP,
    SADNESS,
    group_of,
    last_group,
    own_groups,
    published,
    spoken_label,
)

if TYPE_CHECKING:
    from emodistill.configs import SpokenLabels
    from emodistill.negotiation.states import DialogueState

BAD = (SADNESS, ANGER, FEAR, DISGUST)
WINDOW, NUM_BAD = 5, 4
LOST_PAYOFF = 2.0
PAYOFF_STEP, ANSWER_STEP = 0.05, 0.03
WON, LOST = 1.0, -0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class EQFaults:
    """What the published code does instead; all off is the repaired form."""

    deaf_belief: bool = False
    """P(d, c | state) is w(c, state) · E(c, d), in which E cancels: what was heard is lost."""
    constant_answer: bool = False
    """P(d′ | state, e) is the largest entry of E's row, and w weighs the choice: always joy."""
    lagged_pairs: bool = False
    """What was heard is paired with the own emotion of the turn before."""
    first_of_equals: bool = False
    """Of equal payoffs the first is taken: joy after neutral."""


@dataclass(frozen=True, slots=True)
class EQSelector:
    """The choice; see the module.

    Attributes:
      payoff: π [7 heard, 7 own].
      answers: E [7 own, 7 heard], rows sum to one.
    """

    payoff: np.ndarray
    answers: np.ndarray
    faults: EQFaults
    labels: SpokenLabels = "seven"

    def choose(self, state: DialogueState, rng: np.random.Generator) -> str:
        own, heard = own_groups(state), heard_groups(state)
        if sum(d in BAD for d in heard[-WINDOW:]) >= NUM_BAD:
            group = self._first(self.model_values(own, heard), rng)
        else:
            group = self._by_payoff(own, heard, rng)
        return spoken_label(group, self.labels, rng)

    def belief(self, own: Sequence[int], heard: Sequence[int]) -> np.ndarray:
        """P(hidden state) [4] after all that was heard."""
        tables = published("eq-negotiator")
        belief = tables["prior"]
        for turn, d in enumerate(heard):
            i = turn - self.faults.lagged_pairs
            c = own[i] if 0 <= i < len(own) else NEUTRAL_GROUP
            predicted = tables["transitions"].T @ belief
            seen = tables["weights"][:, c if self.faults.deaf_belief else d]
            belief = seen * predicted
            belief = belief / belief.sum()
        return belief

    def model_values(self, own: Sequence[int], heard: Sequence[int]) -> np.ndarray:
        """What the hidden Markov model expects of each own emotion [7]."""
        tables = published("eq-negotiator")
        weights = tables["weights"]
        predicted = tables["transitions"].T @ self.belief(own, heard)
        if self.faults.constant_answer:
            return (predicted @ weights) * self.answers.max(axis=1)
        chances = weights[:, None, :] * self.answers[None, :, :]  # state, own, heard next
        calm = 1.0 - chances[:, :, BAD].sum(axis=2) / chances.sum(axis=2)
        return self.payoff[last_group(heard)] * (predicted @ calm)

    def _by_payoff(self, own: Sequence[int], heard: Sequence[int], rng: np.random.Generator) -> int:
        payoffs = self.payoff[last_group(heard)]
        best = self._first(payoffs, rng)
        if own and self.payoff[last_group(heard[:-1]), own[-1]] < LOST_PAYOFF:
            rest = payoffs.copy()
            rest[best] = -np.inf
            return self._first(rest, rng)
        return best

    def _first(self, values: np.ndarray, rng: np.random.Generator) -> int:
        """The index of the largest value; equals are drawn from."""
        best = np.flatnonzero(values >= values.max() - 1e-12)
        return int(best[0]) if self.faults.first_of_equals else int(rng.choice(best))


class EQLearner:
    """Moves the tables after each dialogue; see the module."""

    block_size = 1
    repeated_rows = None

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.faults: EQFaults = switched(EQFaults, setup.faults)
        tables = published("eq-negotiator")
        self.payoff, self.answers = tables["payoff"].copy(), tables["other"].copy()

    def selector_for(self, position: int) -> EQSelector:
        return EQSelector(self.payoff, self.answers, self.faults, self.setup.labels)

    def learn(self, dialogues: Sequence[Trajectory | None]) -> None:
        for dialogue in dialogues:
            if dialogue is not None:
                self._learn(dialogue)

    def _learn(self, dialogue: Trajectory) -> None:
        is_won = dialogue.final_value is not None
        outcome = (WON if is_won else LOST) if self.setup.reward == "own" else None
        if outcome is None:
            outcome = LOST + (WON - LOST) * dialogue_utility(dialogue)
        payoff, answers = self.payoff.copy(), self.answers.copy()
        heard: list[int] = []
        for state, turn in zip(states_of(dialogue), dialogue.focal_turns, strict=True):
            heard = heard_groups(state)
            payoff[last_group(heard), group_of(turn.emotion)] += PAYOFF_STEP * outcome
            if heard:  # the answer to the turn before
                answers[own_groups(state)[-1], heard[-1]] += ANSWER_STEP
        self.payoff, self.answers = payoff, answers / answers.sum(axis=1, keepdims=True)

    def arrays(self) -> Mapping[str, np.ndarray]:
        return {"payoff": self.payoff, "answers": self.answers}
