"""Training signals from finished dialogues: returns, savings, advantages, hybrid quality.

Notation (paper, Appendix D and E.5): x* is the focal target, x0 the counterparty's anchor,
g = x* − x0, d = max(1, |g|), T the cap on turns, t = 1, 2, … the focal turns, R(τ) the shaped
return, r the judge's score of a focal turn.

Departures from the paper: |A| is clipped at 10, and a scenario with fewer than 4 scores is left out
(and counted).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from emodistill.configs import IQLSignal, JPOSignal, OnPolicySignal, QualityScore, SFTSignal
from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError, refuse
from emodistill.prompts import PromptPack
from emodistill.records import Trajectory

AGREEMENT_BONUS = 2.0
"""R_term of Eq. 28; its negative without an agreement."""
MAX_MOVE = 2.0
"""Bound of one normalised concession or retreat, Eqs. 25 and 26."""
MAX_ADVANTAGE = 10.0
"""Bound of |A|: the one score that differs among hundreds of equal ones would have an A of 20 and
more, and outweigh all other samples of its step."""
EPSILON = 1e-6
"""ε of Eq. 29, which keeps the advantages of equal scores at 0."""
MIN_SCORED = 4
"""Scores that a scenario needs to be normalised: a z-score over two or three says little."""
MIN_COMPARED = 2
"""Values that a group needs: it is sampled anew for every update, so that few will do."""

Scores = Mapping[tuple[str, int | None], float]
"""(trajectory_id, turn_index) -> judge score; turn_index None holds the dialogue's own score."""
Repeats = Mapping[tuple[str, int | None], Sequence[float]]
"""By the same keys, all scores of the turns that were scored more than once."""
NO_REPEATS: Repeats = {}


class TurnLimit(NamedTuple):
    """How long a sweep's dialogues could get."""

    horizon: int = 30
    """T of Eq. 27: the focal turn from which on a move weighs nothing."""
    cap: int = 30
    """Turns of both sides together at most."""


USUAL_LIMIT = TurnLimit()


class SweepData(NamedTuple):
    """A judged sweep: what all objectives select their turns from."""

    trajectories: Sequence[Trajectory]
    """Only dialogues of training scenarios are used."""
    scenarios: Sequence[Scenario]
    scores: Scores
    pack: PromptPack
    """The prompts that the student will be given."""
    limit: TurnLimit = USUAL_LIMIT
    repeats: Repeats = NO_REPEATS
    validity: str | None = None
    """A line on what the judge's scores of turns are worth, where that is known."""


def training_dialogues(data: SweepData) -> list[Trajectory]:
    """The dialogues to learn from: those of training scenarios, in their order.

    Raises:
      InputError: there is none, or one calls its scenario a training one that is held out or
        unknown.
    """
    split_of = {scenario.scenario_id: scenario.split for scenario in data.scenarios}
    chosen = [trajectory for trajectory in data.trajectories if trajectory.split == "train"]
    refuse(
        [
            f"{t.trajectory_id}: split='train', but its scenario {t.scenario_id!r} "
            + (f"is held out for {split}." if split else "is not among those of the run.")
            for t in chosen
            if (split := split_of.get(t.scenario_id)) != "train"
        ],
        "Nothing is trained on scenarios that are held out; correct `split` in "
        "sweep/trajectories.jsonl and sweep/scenarios.jsonl, or leave these dialogues out.",
    )
    if not chosen:
        raise InputError("no dialogue belongs to a training scenario; is the sweep finished?")
    return chosen


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
    total = AGREEMENT_BONUS if accepted else -AGREEMENT_BONUS  # Eq. 28
    # Δctp − Δfoc (Eqs. 24–26): what either side moves towards the focal target counts alike, since
    # a retreat of the focal side is a move away from it, and enters with a minus sign.
    for offers, standing in (
        (counterparty_offers, counterparty_anchor),
        (focal_offers, focal_target),
    ):
        for turn, offer in enumerate(offers, start=1):
            if offer is None or math.isnan(offer):
                continue
            move = sign * (_finite(offer, "offer") - standing) / scale
            weight = max(0.0, 1.0 - turn / max_turns)  # Eq. 27
            total += weight * max(-MAX_MOVE, min(MAX_MOVE, move))
            standing = offer
    return float(total)


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


def dialogue_utility(trajectory: Trajectory) -> float:
    """Savings of a success (Eq. 30, clipped to [0, 1]), 0 for a failure (Eq. 32)."""
    if trajectory.final_value is None:
        return 0.0
    return savings(trajectory.final_value, trajectory.counterparty_anchor, trajectory.focal_target)


def aligned_offers(trajectory: Trajectory) -> tuple[list[float | None], list[float | None]]:
    """Offers per focal turn: the focal agent's own, and the last one of the replies to it.

    What the counterparty says before the first focal turn is a reply to none and is passed over. If
    it opens with an offer, its first reply is still compared with its anchor.
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


def is_truncated(trajectory: Trajectory, cap: int = 30) -> bool:
    """Whether a failure cut the dialogue off: still open, with fewer turns than it could have."""
    return trajectory.outcome == "ongoing" and len(trajectory.turns) < cap


def scenario_advantages(
    scores: Sequence[float] | np.ndarray,
    scenario_ids: Sequence[str] | np.ndarray,
    min_scored: int = MIN_SCORED,
) -> np.ndarray:
    """A = (r − μ)/(σ + ε) within each scenario (Eqs. 1 and 29), clipped at ±10.

    Args:
      scores: N scores, NaN where there is none.
      scenario_ids: the N scenarios that they belong to, over each of which σ is the population
        deviation.
      min_scored: scores that a scenario needs.

    Returns:
      N advantages (float64); NaN for a NaN score and throughout scenarios with too few scores.

    Raises:
      InputError: lengths differ, or a score is infinite.
    """
    values = np.asarray(scores, dtype=np.float64)
    ids = np.asarray(scenario_ids, dtype=np.str_)
    if values.ndim != 1 or values.shape != ids.shape:
        raise InputError(
            f"scores has shape {values.shape} and scenario_ids {ids.shape}; every score needs its "
            "scenario, so give two flat sequences of one length."
        )
    if np.isinf(values).any():
        index = int(np.flatnonzero(np.isinf(values))[0])
        raise InputError(f"scores[{index}]={values[index]} must be finite, or NaN for no score.")
    advantages = np.full(len(values), np.nan)
    scored = np.flatnonzero(~np.isnan(values))
    by_scenario = scored[np.argsort(ids[scored], kind="stable")]
    starts = np.flatnonzero(ids[by_scenario][1:] != ids[by_scenario][:-1]) + 1
    for members in np.split(by_scenario, starts):
        if len(members) >= min_scored:
            deviation = values[members] - values[members].mean()
            scale = values[members].std() + EPSILON
            advantages[members] = np.clip(deviation / scale, -MAX_ADVANTAGE, MAX_ADVANTAGE)
    return advantages


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


@dataclass(frozen=True, slots=True)
class FocalTurns:
    """The N focal turns of a data set with their scores, as aligned arrays.

    Rows run by trajectory id, then turn, so that they do not depend on which dialogue happened to
    finish first.
    """

    dialogues: np.ndarray
    """[N] the `Trajectory` of the turn."""
    trajectory_index: np.ndarray
    """[N] its index in the sequence that the turns were read from."""
    turn_index: np.ndarray
    """[N] `Turn.index` of the focal turn."""
    scenario_ids: np.ndarray
    """[N] strings."""
    emotions: np.ndarray
    """[N] the label that the turn was to express, or None."""
    is_last: np.ndarray
    """[N] whether it is the dialogue's last focal turn, T_τ."""
    scores: np.ndarray
    """[N] judge score of the turn, NaN if none."""
    dialogue_scores: np.ndarray
    """[N] judge score of the whole dialogue, NaN if none."""
    returns: np.ndarray
    """[N] R(τ) of the dialogue."""
    utilities: np.ndarray
    """[N] utility of the dialogue (Eq. 32), NaN where its scenario has no gap."""
    is_cut: np.ndarray
    """[N] whether the utterance was cut at its limit of tokens."""
    mean_scores: np.ndarray
    """[N] mean of all scores of the turn, NaN if none."""
    num_scores: np.ndarray
    """[N] how many these are."""
    score_variances: np.ndarray
    """[N] their unbiased variance, NaN for fewer than two."""

    def __len__(self) -> int:
        return len(self.scores)

    def whole(self) -> Self:
        """Without the turns that were cut, whose text nobody should learn from."""
        columns = {f.name: getattr(self, f.name)[~self.is_cut] for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **columns)

    @classmethod
    def from_trajectories(
        cls,
        trajectories: Sequence[Trajectory],
        scores: Scores,
        *,
        repeats: Repeats = NO_REPEATS,
        max_turns: int = 30,
    ) -> Self:
        """Line up every focal turn with its scores and its dialogue's return.

        Raises:
          InputError: two trajectories share an id.
        """
        order = sorted(range(len(trajectories)), key=lambda i: trajectories[i].trajectory_id)
        for before, after in itertools.pairwise(order):
            if (name := trajectories[before].trajectory_id) == trajectories[after].trajectory_id:
                raise InputError(f"trajectory_id {name!r} occurs twice; keep one of the two lines.")
        rows = []
        for index in order:
            trajectory = trajectories[index]
            name, focal_turns = trajectory.trajectory_id, trajectory.focal_turns
            has_gap = trajectory.focal_target != trajectory.counterparty_anchor
            of_dialogue = (
                scores.get((name, None), math.nan),
                trajectory_return(trajectory, max_turns),
                dialogue_utility(trajectory) if has_gap else math.nan,
            )
            for turn in focal_turns:
                is_last, score = turn is focal_turns[-1], scores.get((name, turn.index), math.nan)
                key = trajectory, index, turn.index, trajectory.scenario_id, turn.emotion
                known = [] if math.isnan(score) else [score]
                every = np.array(repeats.get((name, turn.index), known))
                mean = float(every.mean()) if len(every) else math.nan
                variance = float(every.var(ddof=1)) if len(every) > 1 else math.nan
                of_turn = turn.finish_reason == "length", mean, len(every), variance
                rows.append((*key, is_last, score, *of_dialogue, *of_turn))
        dtypes = (object, np.int64, np.int64, np.str_, object, bool)
        dtypes += (float, float, float, float, bool, float, np.int64, float)
        columns = zip(*rows, strict=True) if rows else [()] * len(dtypes)
        return cls(*(np.array(*column) for column in zip(columns, dtypes, strict=True)))


def signal_of(turns: FocalTurns, signal: JPOSignal | OnPolicySignal) -> np.ndarray:
    """[N] What turns are told apart by, before any scaling; NaN where there is none."""
    signals = {
        "turn-judge": turns.scores,
        "episode-judge": turns.dialogue_scores,
        "outcome": turns.returns,
        "utility": turns.utilities,
    }
    return _by_signal(signal, signals)


def sft_quality(
    turns: FocalTurns, signal: SFTSignal = "hybrid", score: QualityScore = "raw"
) -> np.ndarray:
    """[N] What SFT ranks turns by (Eq. 23, Appendix D.2), NaN without a score.

    Args:
      score: what r is in `hybrid`: the judge's score, or its advantage within the scenario.
    """
    scores = turns.scores if score == "raw" else jpo_advantages(turns)
    qualities = {
        "hybrid": scores + 0.5 * turns.returns,
        "episode-judge": turns.dialogue_scores,
        "turn-judge": turns.scores,
    }
    return _by_signal(signal, qualities)


def jpo_advantages(turns: FocalTurns, signal: JPOSignal = "turn-judge") -> np.ndarray:
    """[N] A for JPO (Appendix D.3), before κ; NaN without a score or in a scenario with too few.

    `episode-judge` and `outcome` give each turn its dialogue's.
    """
    values = signal_of(turns, signal)
    if signal == "turn-judge":
        return scenario_advantages(values, turns.scenario_ids)
    return _dialogue_advantages(turns, values, MIN_SCORED)


def group_advantages(turns: FocalTurns, signal: OnPolicySignal) -> np.ndarray:
    """[N] A for GRPO: the z-score within the group (Shao et al., 2024, §4.1.2), NaN without one.

    The group of a judged turn are all turns of its scenario with its index; where the signal is of
    dialogues, each has that of its dialogue among all dialogues of the scenario. A group of equal
    values has A = 0, and one of a single value none, since there is nothing to compare it with.
    """
    values = signal_of(turns, signal)
    if signal != "turn-judge":
        return _dialogue_advantages(turns, values, MIN_COMPARED)
    groups = [f"{s}#{t}" for s, t in zip(turns.scenario_ids, turns.turn_index, strict=True)]
    return scenario_advantages(values, groups, MIN_COMPARED)


def _dialogue_advantages(turns: FocalTurns, values: np.ndarray, min_scored: int) -> np.ndarray:
    """Each turn has its dialogue's advantage; a dialogue counts once, however many turns it has."""
    _, first, dialogue = np.unique(turns.trajectory_index, return_index=True, return_inverse=True)
    ids = turns.scenario_ids[first]
    return scenario_advantages(values[first], ids, min_scored)[dialogue]


ENDINGS = ("outcome", "utility")
"""Signals that no judge has a say in: what a dialogue has come to."""


def iql_rewards(turns: FocalTurns, signal: IQLSignal | OnPolicySignal = "outcome") -> np.ndarray:
    """[N] Rewards for IQL (Appendix D.1): R at the last focal turn (Eq. 13), or JPO's advantages.

    Ours: `utility` pays the dialogue's utility there. NaN where a turn has none.
    """
    if signal in ENDINGS:
        return np.where(turns.is_last, signal_of(turns, signal), 0.0)
    return jpo_advantages(turns, signal)


def left_out_scenarios(turns: FocalTurns, values: np.ndarray) -> tuple[str, ...]:
    """The scenarios none of whose turns has a value: their scores were too few for a mean."""
    ids = turns.scenario_ids
    return tuple(np.setdiff1d(ids, ids[~np.isnan(values)]).tolist())


def _by_signal(signal: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
    if signal not in values:
        raise InputError(f"signal={signal!r} is none of {', '.join(values)}.")
    return values[signal]
