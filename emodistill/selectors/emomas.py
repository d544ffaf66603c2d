"""EmoMAS (arXiv 2604.07003): three agents vote, and how far each is trusted is learned.

The context of a turn: own emotion, the other side's as it was heard, the phase (own turn up to 3,
up to 8, later), and whether the gap is wide. In it

- the game agent takes the largest payoff π(d, e) (`eq_negotiator`), the emotion of a win-stay
  lose-shift rule counting 1.3 times; ε = 0.1 at random, with confidence 0.3;
- the learning agent has Q[context, 7], α = 0.1, γ = 0.9, and draws by softmax(Q / 0.1), or with ε
  (0.2 at first) at random, with confidence 0.4;
- the coherence agent scores plausibility, fit and value, 0.4, 0.3 and 0.3, times 0.7 below 0.6, and
  takes the best in four cases of five, else draws by their softmax.

score(e) = Σ share(e) · confidence over the agents that name e, share their reliability vector
in this context, normalised; 2 at first. Constants are those of the published code.

Departures: the outcome is the utility, in standard deviations from the mean of those before it,
since differences between emotions are small beside 0.1; it is paid at the end, and Q learns
backwards through each dialogue. A better outcome than usual raises the reliability of an agent,
where it named what was played, by 2 q z / (1 + ln n); a worse one lowers it by 0.45 (1 − q) |z|.
q is the mean utility of the dialogues, weighted by how often the agent named what was played,
normalised over agents. The coherence agent reads tables in place of a language model's opinion: T
for plausibility, π for the fit and the other side's π for the value. The gap is wide above a
quarter of the first distance (20 days there). Equal scores are drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import softmax

from emodistill.offline.rewards import dialogue_utility
from emodistill.records import Trajectory
from emodistill.selectors.learning import (
    Setup,
    heard_groups,
    log_length,
    payment_ratio,
    states_of,
    switched,
    training_rng,
)
from emodistill.selectors.seven import (
    JOY,
    NEUTRAL_GROUP,
    SEVEN,
    SURPRISE,
    group_of,
    last_group,
    own_groups,
    published,
    spoken_label,
)

if TYPE_CHECKING:
    from emodistill.configs import SpokenLabels
    from emodistill.negotiation.states import DialogueState

AGENTS = ("game", "learning", "coherence")
CALM = (JOY, NEUTRAL_GROUP, SURPRISE)
EARLY_TURNS, MIDDLE_TURNS = 3, 8
WIDE_GAP = 0.25
GAME_EPSILON, GAME_CONFIDENCE, HINT = 0.1, 0.3, 1.3
WON_PAYOFF = 2.0
LEARNING_RATE, DISCOUNT, SAMPLING_TEMPERATURE = 0.1, 0.9, 0.1
FIRST_EPSILON, EXPLORING_CONFIDENCE = 0.2, 0.4
EPSILON_RANGE, EPSILON_FALL, EPSILON_RISE = (0.05, 0.3), 0.95, 1.05
SCORE_SHARES = (0.4, 0.3, 0.3)
WEAK_SCORE, WEAK_FACTOR, FLAT_SCORE = 0.6, 0.7, 0.5
BEST_SHARE, LEAST_CONFIDENCE = 0.8, 0.1
FIRST_RELIABILITY, GAIN, LOSS, FLOOR = 2.0, 2.0, 0.45, 0.01
FAILURE = -0.1
LEAST_DEVIATION, MOST_DEVIATIONS = 0.02, 3.0
"""Bounds of the standardised outcome; ours."""
NUM_CONTEXTS = len(SEVEN) * len(SEVEN) * 3 * 2


@dataclass(frozen=True, slots=True, kw_only=True)
class EmoMASFaults:
    """What the published code does instead; all off is the repaired form."""

    no_history: bool = False
    """The dialogue's contexts don't reach the learning agent, which never learns."""
    flat_coherence: bool = False
    """The coherence agent has no model to ask: every score is one half, joy the first of them."""
    flat_credit: bool = False
    """Credit goes to the largest entry of a reliability vector, in all contexts of the agent: to
    joy, as long as they are equal."""
    agreement_trust: bool = False
    """q is how often the agent agreed with what was played times the share of its confidence that
    was in it; outcomes don't enter."""
    middle_phase: bool = False
    """What is learned is learned for the middle phase alone."""


class Vote(NamedTuple):
    """What an agent names, as an index of `SEVEN`, and how sure it is."""

    group: int
    confidence: float


@dataclass(frozen=True, slots=True)
class EmoMASSelector:
    """The vote; see the module.

    Attributes:
      values: Q [contexts, 7].
      reliability: [3 agents, contexts, 7].
      epsilon: of the learning agent.
    """

    values: np.ndarray
    reliability: np.ndarray
    epsilon: float
    faults: EmoMASFaults
    labels: SpokenLabels = "seven"

    def choose(self, state: DialogueState, rng: np.random.Generator) -> str:
        _, group = self.votes(state, rng)
        return spoken_label(group, self.labels, rng)

    def votes(self, state: DialogueState, rng: np.random.Generator) -> tuple[list[Vote], int]:
        """What each agent names, and what wins; equal scores are drawn from."""
        where = context_of(state)
        votes = [self._game(state, rng), self._learned(where, rng), self._coherent(state, rng)]
        scores = np.zeros(len(SEVEN))
        for reliability, vote in zip(self.reliability[:, where], votes, strict=True):
            scores[vote.group] += reliability[vote.group] / reliability.sum() * vote.confidence
        return votes, int(rng.choice(np.flatnonzero(scores == scores.max())))

    def _game(self, state: DialogueState, rng: np.random.Generator) -> Vote:
        own, heard = own_groups(state), heard_groups(state)
        d = last_group(heard)
        if rng.random() < GAME_EPSILON:
            return Vote(int(rng.integers(len(SEVEN))), GAME_CONFIDENCE)
        table = published("eq-negotiator")["payoff"]
        hint = NEUTRAL_GROUP
        if own:
            is_won = table[last_group(heard[:-1]), own[-1]] >= WON_PAYOFF
            hint = (own[-1] if is_won else d) if d in CALM else NEUTRAL_GROUP
        payoffs = table[d].copy()
        payoffs[hint] *= HINT
        return Vote(int(payoffs.argmax()), float(payoffs.max() / payoffs.sum()))

    def _learned(self, where: int, rng: np.random.Generator) -> Vote:
        if rng.random() < self.epsilon:
            return Vote(int(rng.integers(len(SEVEN))), EXPLORING_CONFIDENCE)
        chances = softmax(self.values[where] / SAMPLING_TEMPERATURE)
        group = int(rng.choice(len(SEVEN), p=chances))
        return Vote(group, float(chances[group]))

    def _coherent(self, state: DialogueState, rng: np.random.Generator) -> Vote:
        scores = np.full(len(SEVEN), FLAT_SCORE)
        if not self.faults.flat_coherence:
            tables = published("eq-negotiator")
            c, d = last_group(own_groups(state)), last_group(heard_groups(state))
            parts = tables["own"][c], tables["payoff"][d], tables["payoff_other"][d]
            scores = sum(
                share * part / part.max() for share, part in zip(SCORE_SHARES, parts, strict=True)
            )
        scores = np.where(scores < WEAK_SCORE, WEAK_FACTOR * scores, scores)
        second, first = np.sort(scores)[-2:]
        confidence = max(LEAST_CONFIDENCE, float((first - second) / first))
        if rng.random() < BEST_SHARE:
            return Vote(int(scores.argmax()), confidence)
        return Vote(int(rng.choice(len(SEVEN), p=softmax(scores))), confidence)


def context_of(state: DialogueState, phase: int | None = None) -> int:
    """The index of the context of a turn; `phase` takes the place of the state's own."""
    turn = len(state.emotions) + 1
    if phase is None:
        phase = (turn > EARLY_TURNS) + (turn > MIDDLE_TURNS)
    first = abs(state.focal_target - state.counterparty_anchor)
    own_offer, other_offer = (
        next((offer for offer in reversed(offers) if offer is not None), start)
        for offers, start in (
            (state.focal_offers, state.focal_target),
            (state.counterparty_offers, state.counterparty_anchor),
        )
    )
    is_wide = abs(own_offer - other_offer) > WIDE_GAP * first
    c, d = last_group(own_groups(state)), last_group(heard_groups(state))
    return ((c * len(SEVEN) + d) * 3 + phase) * 2 + is_wide


class _Step(NamedTuple):
    where: int
    played: int
    votes: Sequence[Vote]


@dataclass(slots=True)
class EmoMASLearner:
    """Learns Q, ε and the reliabilities after each dialogue; see the module."""

    setup: Setup
    faults: EmoMASFaults = field(init=False)
    values: np.ndarray = field(init=False)
    reliability: np.ndarray = field(init=False)
    epsilon: float = FIRST_EPSILON
    block_size: int = 1
    repeated_rows: None = None
    _outcomes: tuple[int, float, float] = (0, 0.0, 0.0)
    """How many there were, their mean, and the sum of their squared deviations from it."""
    _trust: np.ndarray = field(init=False)
    """Sums by agent: of the share (of turns, or of confidence), and of that times the outcome."""

    def __post_init__(self) -> None:
        self.faults = switched(EmoMASFaults, self.setup.faults)
        self.values = np.zeros((NUM_CONTEXTS, len(SEVEN)))
        shape = (len(AGENTS), NUM_CONTEXTS, len(SEVEN))
        self.reliability = np.full(shape, FIRST_RELIABILITY)
        self._trust = np.zeros((2, len(AGENTS)))

    def selector_for(self, position: int) -> EmoMASSelector:
        tables = self.values.copy(), self.reliability.copy()
        return EmoMASSelector(*tables, self.epsilon, self.faults, self.setup.labels)

    def learn(self, dialogues: Sequence[Trajectory | None]) -> None:
        for dialogue in dialogues:
            if dialogue is not None and dialogue.focal_turns:
                self._learn(dialogue)

    def _learn(self, dialogue: Trajectory) -> None:
        steps = self._steps(dialogue)
        is_own = self.setup.reward == "own"
        outcome = payment_ratio(dialogue) if is_own else dialogue_utility(dialogue)
        gained = outcome if self.faults.flat_credit else self._standardised(outcome)
        self._learn_reliability(steps, outcome, gained, dialogue)
        if not self.faults.no_history:
            self._learn_values(steps, outcome if is_own else gained, dialogue)
        is_won = dialogue.final_value is not None
        self.epsilon = float(
            np.clip(self.epsilon * (EPSILON_FALL if is_won else EPSILON_RISE), *EPSILON_RANGE)
        )

    def _standardised(self, outcome: float) -> float:
        """How far an outcome lies from those before it, in their standard deviations."""
        num, mean, squares = self._outcomes
        deviation = max(LEAST_DEVIATION, math.sqrt(squares / num)) if num else 1.0
        standardised = (outcome - mean) / deviation if num else 0.0
        new_mean = mean + (outcome - mean) / (num + 1)
        self._outcomes = num + 1, new_mean, squares + (outcome - mean) * (outcome - new_mean)
        return max(-MOST_DEVIATIONS, min(MOST_DEVIATIONS, standardised))

    def _steps(self, dialogue: Trajectory) -> list[_Step]:
        """Each focal turn with the votes behind it: those of the selector that played it."""
        selector = self.selector_for(0)
        rng = training_rng(self.setup.seed, dialogue.trajectory_id)
        steps = []
        for state, turn in zip(states_of(dialogue), dialogue.focal_turns, strict=True):
            votes, group = selector.votes(state, rng)
            spoken_label(group, self.setup.labels, rng)  # draws what playing has drawn
            where = context_of(state, phase=1 if self.faults.middle_phase else None)
            steps.append(_Step(where, group_of(turn.emotion), votes))
        return steps

    def _learn_values(self, steps: Sequence[_Step], outcome: float, dialogue: Trajectory) -> None:
        length = len(steps)
        following = 0.0
        for i in range(length - 1, -1, -1):
            where, played, _ = steps[i]
            reward = outcome if i == length - 1 else 0.0
            if self.setup.reward == "own":
                paid = outcome / (1.0 + math.log(length)) / max(1, length - 1)
                reward = DISCOUNT**i * (paid if dialogue.final_value is not None else FAILURE)
            target = reward + DISCOUNT * following
            self.values[where, played] += LEARNING_RATE * (target - self.values[where, played])
            following = float(self.values[where].max())

    def _learn_reliability(
        self, steps: Sequence[_Step], outcome: float, gained: float, dialogue: Trajectory
    ) -> None:
        named = np.array([[vote.group == s.played for vote in s.votes] for s in steps])
        confidence = np.array([[vote.confidence for vote in s.votes] for s in steps])
        share = named.mean(axis=0)
        if self.faults.agreement_trust:
            agreed = (named * confidence).sum(axis=0) / confidence.sum(axis=0)
            self._trust += np.stack([np.ones(len(AGENTS)), share * agreed])
        else:
            self._trust += np.stack([share, share * outcome])
        quality = np.maximum(self._trust[1] / np.maximum(self._trust[0], 1e-9), FLOOR)
        quality /= quality.sum()
        if gained > 0:
            change = GAIN * quality * gained / log_length(dialogue)
        else:
            change = -LOSS * (1.0 - quality) * (1.0 if self.faults.flat_credit else -gained)
        for agent in range(len(AGENTS)):
            self._credit(agent, steps, float(change[agent]))
        np.maximum(self.reliability, FLOOR, out=self.reliability)

    def _credit(self, agent: int, steps: Sequence[_Step], change: float) -> None:
        vectors = self.reliability[agent]
        if self.faults.flat_credit:
            vectors[np.arange(len(vectors)), vectors.argmax(axis=1)] += change
            return
        for where, played, votes in steps:
            if votes[agent].group == played:
                vectors[where, played] += change

    def arrays(self) -> Mapping[str, np.ndarray]:
        return {
            "values": self.values,
            "reliability": self.reliability,
            "epsilon": np.array([self.epsilon]),
        }
