"""Training signals from finished dialogues: returns, savings, advantages, hybrid quality.

Notation (paper, Appendix D and E.5): x* is the focal target, x0 the counterparty's anchor,
g = x* − x0, d = max(1, |g|), T the cap on turns, t = 1, 2, … the focal turns, R(τ) the shaped
return, r the judge's score of a focal turn.

Departures from the paper: |A| is clipped at 10, and a scenario with fewer than 4 scored items is
left out of its normalisation (and counted), since a z-score over two or three values says little.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from emodistill.configs import IQLSignal, JPOSignal, SFTSignal
from emodistill.errors import InputError
from emodistill.records import Trajectory

AGREEMENT_BONUS = 2.0
"""R_term of Eq. 28; its negative without an agreement."""
MAX_MOVE = 2.0
"""Bound of one normalised concession or retreat, Eqs. 25 and 26."""
MAX_ADVANTAGE = 10.0
MIN_SCORED = 4
"""Scored items that a scenario needs for its mean and deviation to count."""

Scores = Mapping[tuple[str, int | None], float]
"""(trajectory_id, turn_index) -> judge score; turn_index None holds the dialogue's own score."""


def shaped_return(
    focal_target: float,
    counterparty_anchor: float,
    focal_offers: Sequence[float | None],
    counterparty_offers: Sequence[float | None],
    accepted: bool,
    max_turns: int = 30,
) -> float:
    """R(τ) of Eqs. 2 and 24–28: who moved towards whom, earlier moves counting more, ±2 at the end.

    Args:
      focal_offers: what the focal agent proposed in its turns 1, 2, …; None (or NaN) keeps the
        last one.
      counterparty_offers: the same for the replies to these turns. The lists may differ in length
        and pass `max_turns`; a missing entry is no move.
      max_turns: T_max of Eq. 27; from focal turn T_max on, a move weighs nothing.

    Raises:
      InputError: a value is infinite, or `max_turns` is not positive.
    """
    if max_turns < 1:
        raise InputError(f"max_turns={max_turns} must be at least 1; the paper uses 30.")
    gap = _gap(focal_target, counterparty_anchor)
    sign, scale = float(np.sign(gap)), max(1.0, abs(gap))
    concessions = _moves(counterparty_offers, counterparty_anchor, sign, scale)  # Eq. 25
    retreats = _moves(focal_offers, focal_target, -sign, scale)  # Eq. 26
    total = AGREEMENT_BONUS if accepted else -AGREEMENT_BONUS  # Eq. 28
    for moves, side in ((concessions, 1.0), (retreats, -1.0)):
        for turn, move in enumerate(moves, start=1):
            total += side * move * max(0.0, min(1.0, 1.0 - turn / max_turns))  # Eqs. 24, 27
    return float(total)


def _moves(offers: Sequence[float | None], start: float, sign: float, scale: float) -> list[float]:
    """Clipped steps between standing offers, in units of the gap, seeded with `start`."""
    standing, moves = start, []
    for offer in offers:
        if offer is None or math.isnan(offer):
            moves.append(0.0)
            continue
        move = sign * (_finite(offer, "offer") - standing) / scale
        moves.append(max(-MAX_MOVE, min(MAX_MOVE, move)))
        standing = offer
    return moves


def _gap(focal_target: float, counterparty_anchor: float) -> float:
    target = _finite(focal_target, "focal_target")
    return target - _finite(counterparty_anchor, "counterparty_anchor")


def _finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        raise InputError(f"{name}={value} must be a finite number in the domain's unit.")
    return float(value)


def savings(final_value: float, counterparty_anchor: float, focal_target: float) -> float:
    """Sav of Eq. 30, clipped to [0, 1]: the share of the way from x0 to x* that the deal covers.

    Raises:
      InputError: target and anchor coincide, so that there is no way to cover.
    """
    gap = _gap(focal_target, counterparty_anchor)
    if gap == 0:
        raise InputError(
            f"focal_target and counterparty_anchor are both {focal_target:g}; savings need a gap. "
            "Leave such scenarios out."
        )
    covered = (_finite(final_value, "final_value") - counterparty_anchor) / gap
    return float(min(1.0, max(0.0, covered)))


def aligned_offers(trajectory: Trajectory) -> tuple[list[float | None], list[float | None]]:
    """Offers per focal turn: the focal agent's own, and the last one of the replies to it.

    What the counterparty says before the first focal turn answers none and is passed over; where
    it opened with an offer, the way from its anchor shows in its first reply.
    """
    focal: list[float | None] = []
    replies: list[float | None] = []
    for turn in trajectory.turns:
        if turn.speaker == "focal":
            focal.append(turn.offer)
            replies.append(None)
        elif replies and turn.offer is not None:
            replies[-1] = turn.offer
    return focal, replies


def trajectory_return(trajectory: Trajectory, max_turns: int = 30) -> float:
    """R(τ) of one dialogue (Eq. 24); see `shaped_return`."""
    focal_offers, counterparty_offers = aligned_offers(trajectory)
    return shaped_return(
        trajectory.focal_target,
        trajectory.counterparty_anchor,
        focal_offers,
        counterparty_offers,
        trajectory.outcome == "accepted",
        max_turns,
    )


def is_truncated(trajectory: Trajectory, max_turns: int = 30) -> bool:
    """Whether a failure cut the dialogue off: still open, and not for lack of turns."""
    return trajectory.outcome == "ongoing" and len(trajectory.turns) < max_turns


def scenario_advantages(
    scores: Sequence[float] | np.ndarray,
    scenario_ids: Sequence[str] | np.ndarray,
    epsilon: float = 1e-6,
) -> np.ndarray:
    """A = (r − μ)/(σ + ε) within each scenario (Eqs. 1 and 29), clipped at ±10.

    Args:
      scores: N scores, NaN where there is none.
      scenario_ids: the N scenarios that they belong to.
      epsilon: ε; σ is the population deviation of the scenario's scores.

    Returns:
      N advantages (float64); NaN for a NaN score and throughout scenarios with under 4 scores.

    Raises:
      InputError: lengths differ, a score is infinite or ε is negative.
    """
    values, groups, counts, _ = _grouped(scores, scenario_ids)
    if not epsilon >= 0:
        raise InputError(f"epsilon={epsilon} must be >= 0; the default is 1e-6.")
    is_scored = ~np.isnan(values)
    filled = np.where(is_scored, values, 0.0)
    num = np.maximum(counts, 1)
    mean = np.bincount(groups, weights=filled, minlength=len(counts)) / num
    deviation = np.where(is_scored, values - mean[groups], 0.0)
    sigma = np.sqrt(np.bincount(groups, weights=deviation**2, minlength=len(counts)) / num)
    scale = (sigma + epsilon)[groups]
    advantages = np.divide(deviation, scale, out=np.zeros_like(deviation), where=scale > 0)
    has_advantage = is_scored & (counts >= MIN_SCORED)[groups]
    return np.where(has_advantage, np.clip(advantages, -MAX_ADVANTAGE, MAX_ADVANTAGE), np.nan)


def left_out_scenarios(
    scores: Sequence[float] | np.ndarray, scenario_ids: Sequence[str] | np.ndarray
) -> tuple[str, ...]:
    """The scenarios that `scenario_advantages` leaves out for having fewer than 4 scores."""
    _, _, counts, names = _grouped(scores, scenario_ids)
    return tuple(str(name) for name in names[counts < MIN_SCORED])


def _grouped(scores, scenario_ids) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores as float64, each one's group, the scored items of every group, the groups' names."""
    values = np.asarray(scores, dtype=np.float64)
    ids = np.asarray(scenario_ids, dtype=np.str_)
    if values.ndim != 1 or values.shape != ids.shape:
        raise InputError(
            f"scores has shape {values.shape} and scenario_ids {ids.shape}; every score needs its "
            "scenario, so give two flat sequences of one length."
        )
    if np.isinf(values).any():
        place = int(np.flatnonzero(np.isinf(values))[0])
        raise InputError(f"scores[{place}]={values[place]} must be finite, or NaN for no score.")
    names, groups = np.unique(ids, return_inverse=True)
    counts = np.bincount(groups, weights=~np.isnan(values), minlength=len(names)).astype(np.int64)
    return values, groups, counts, names


def asymmetric(advantages: Sequence[float] | np.ndarray, kappa: float) -> np.ndarray:
    """Ã of Eq. 18: A where A > 0, κA elsewhere; NaN stays NaN.

    Raises:
      InputError: κ lies outside [0, 1].
    """
    if not 0 <= kappa <= 1:
        raise InputError(f"kappa={kappa} must lie in [0, 1]; the paper uses 1.")
    values = np.asarray(advantages, dtype=np.float64)
    return np.where(values > 0, values, kappa * values)


def hybrid_quality(
    scores: Sequence[float] | np.ndarray, returns: Sequence[float] | np.ndarray
) -> np.ndarray:
    """q = r + ½R(τ) of Eq. 23, per focal turn; NaN where there is no score."""
    return np.asarray(scores, np.float64) + 0.5 * np.asarray(returns, np.float64)


def top_fraction(quality: Sequence[float] | np.ndarray, fraction: float = 0.25) -> np.ndarray:
    """Indices of the best `fraction` of the N items that have a quality, best first.

    ⌊fraction · N⌋ items, one at least (none of none); items of one quality keep their order.

    Raises:
      InputError: `fraction` lies outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise InputError(f"top_fraction={fraction} must lie in (0, 1]; the paper uses 0.25.")
    values = np.asarray(quality, dtype=np.float64)
    candidates = np.flatnonzero(~np.isnan(values))
    if not len(candidates):
        return candidates
    keep = max(1, math.floor(fraction * len(candidates) + 1e-9))
    return candidates[np.argsort(-values[candidates], kind="stable")[:keep]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FocalTurnTable:
    """The N focal turns of a data set as aligned arrays.

    Rows run by trajectory id, then turn, so that they do not depend on which dialogue happened to
    finish first; `trajectory_index` leads back into the sequence that the table was made from.
    """

    trajectory_ids: tuple[str, ...]
    """One per row."""
    scenario_ids: np.ndarray
    """[N] strings."""
    trajectory_index: np.ndarray
    """[N] position of the dialogue in the given sequence."""
    turn_index: np.ndarray
    """[N] `Turn.index` of the focal turn."""
    is_last: np.ndarray
    """[N] whether it is the dialogue's last focal turn, T_τ."""
    scores: np.ndarray
    """[N] judge score of the turn, NaN if none."""
    dialogue_scores: np.ndarray
    """[N] judge score of the whole dialogue, NaN if none."""
    returns: np.ndarray
    """[N] R(τ) of the dialogue."""

    def __len__(self) -> int:
        return len(self.trajectory_ids)

    def sample_id(self, row: int) -> str:
        """`crad/debt_001/seed_0007#4`: the turn's name across stages."""
        return f"{self.trajectory_ids[row]}#{self.turn_index[row]}"


class Signal(NamedTuple):
    """A stage's signal, one value a row of the table, and what is missing from it."""

    values: np.ndarray
    """[N] float64, NaN where the turn has no signal."""
    num_missing: int
    left_out_scenarios: tuple[str, ...]
    """Scenarios whose items were too few to be normalised."""


def focal_turn_table(
    trajectories: Sequence[Trajectory], scores: Scores, *, max_turns: int = 30
) -> FocalTurnTable:
    """Line up every focal turn with its scores and its dialogue's return.

    Raises:
      InputError: two trajectories share an id.
    """
    order = sorted(range(len(trajectories)), key=lambda i: trajectories[i].trajectory_id)
    for before, after in itertools.pairwise(order):
        if (name := trajectories[before].trajectory_id) == trajectories[after].trajectory_id:
            raise InputError(f"trajectory_id {name!r} occurs twice; keep one of the two lines.")
    rows = []
    for position in order:
        trajectory = trajectories[position]
        name, focal_turns = trajectory.trajectory_id, trajectory.focal_turns
        shared = (trajectory_return(trajectory, max_turns), scores.get((name, None), math.nan))
        for turn in focal_turns:
            is_last = turn.index == focal_turns[-1].index
            score = scores.get((name, turn.index), math.nan)
            rows.append((position, turn.index, is_last, score, *shared))
    columns = list(zip(*rows, strict=True)) or [()] * 6
    index = np.array(columns[0], dtype=np.int64)
    return FocalTurnTable(
        trajectory_ids=tuple(trajectories[i].trajectory_id for i in index),
        scenario_ids=np.array([trajectories[i].scenario_id for i in index], dtype=np.str_),
        trajectory_index=index,
        turn_index=np.array(columns[1], dtype=np.int64),
        is_last=np.array(columns[2], dtype=bool),
        scores=np.array(columns[3], dtype=np.float64),
        returns=np.array(columns[4], dtype=np.float64),
        dialogue_scores=np.array(columns[5], dtype=np.float64),
    )


def sft_quality(table: FocalTurnTable, signal: SFTSignal = "hybrid") -> Signal:
    """What SFT ranks turns by (Appendix D.2); `top_fraction` of the values is kept."""
    make: Mapping[str, Callable[[], np.ndarray]] = {
        "hybrid": lambda: hybrid_quality(table.scores, table.returns),
        "turn-judge": lambda: table.scores.copy(),
        "episode-judge": lambda: table.dialogue_scores.copy(),
    }
    return _signal(make[_known(signal, make)](), ())


def jpo_advantages(table: FocalTurnTable, signal: JPOSignal = "turn-judge") -> Signal:
    """A for JPO (Appendix D.3), before κ: per turn, or a dialogue's own for each of its turns."""
    make: Mapping[str, Callable[[], Signal]] = {
        "turn-judge": lambda: _per_turn(table, table.scores),
        "episode-judge": lambda: _per_dialogue(table, table.dialogue_scores),
        "outcome": lambda: _per_dialogue(table, table.returns),
    }
    return make[_known(signal, make)]()


def iql_rewards(table: FocalTurnTable, signal: IQLSignal = "outcome") -> Signal:
    """Rewards for IQL (Appendix D.1): R at the last focal turn (Eq. 13), or z-scored judgements."""
    make: Mapping[str, Callable[[], Signal]] = {
        "outcome": lambda: _signal(np.where(table.is_last, table.returns, 0.0), ()),
        "episode-judge": lambda: _per_dialogue(table, table.dialogue_scores),
        "turn-judge": lambda: _per_turn(table, table.scores),
    }
    return make[_known(signal, make)]()


def _known(signal: str, choices: Mapping[str, object]) -> str:
    if signal not in choices:
        raise InputError(f"signal={signal!r} is none of {', '.join(choices)}.")
    return signal


def _signal(values: np.ndarray, left_out: tuple[str, ...]) -> Signal:
    return Signal(values, int(np.isnan(values).sum()), left_out)


def _per_turn(table: FocalTurnTable, values: np.ndarray) -> Signal:
    ids = table.scenario_ids
    return _signal(scenario_advantages(values, ids), left_out_scenarios(values, ids))


def _per_dialogue(table: FocalTurnTable, values: np.ndarray) -> Signal:
    """Normalised over the scenario's dialogues, each counting once, then spread over its turns."""
    _, first, row_dialogue = np.unique(
        table.trajectory_index, return_index=True, return_inverse=True
    )
    ids = table.scenario_ids[first]
    advantages = scenario_advantages(values[first], ids)
    return _signal(advantages[row_dialogue], left_out_scenarios(values[first], ids))
