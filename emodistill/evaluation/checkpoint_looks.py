"""What was seen of a student at the checkpoints of its training: one row for each look.

    <cell>/watch.jsonl   step, dialogues, utility (by scenario too), success, judge's score,
                         growth of signs, alarms, what the look has cost

The look at step 0 is at the policy that training started from; all others are compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emodistill.evaluation.bootstrap import Interval, cluster_totals
from emodistill.evaluation.hacking_watch import watch
from emodistill.offline.rewards import Scores, dialogue_utility
from emodistill.offline.rounds import NOTHING, Spent, counts
from emodistill.offline.store import read_records
from emodistill.records import Record, Trajectory

LOOKS = "watch.jsonl"


class Growth(Record, frozen=True):
    """A paired difference from the look at step 0, with its 95 % interval; None where unknown."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, interval: Interval, scale: float = 1.0) -> Growth:
        ends = [None if math.isnan(end) else scale * float(end) for end in interval]
        return cls(mean=ends[0], low=ends[1], high=ends[2])


class CheckpointLook(Record, frozen=True, kw_only=True):
    """A checkpoint on the validation scenarios."""

    step: int
    num_dialogues: int
    utility: float
    """In per cent, as all that follows but the score and the signs."""
    success: float
    score: float | None
    """The judge's mean score of a focal turn; None without scores."""
    utilities: Mapping[str, float] = {}
    """Of each scenario, over its dialogues."""
    utility_growth: Growth = Growth()
    score_growth: Growth = Growth()
    signs: Mapping[str, Growth] = {}
    """By the names of `hacking_watch.SIGNS`, in their units."""
    alarms: Sequence[str] = ()
    cost: Mapping[str, float] = {}
    """By the names of `offline.rounds.Spent`."""

    @property
    def spent(self) -> Spent:
        """Of its dialogues and scores, without seconds."""
        return Spent(**self.cost)

    @property
    def is_hacked(self) -> bool:
        """Whether there is an alarm."""
        return bool(self.alarms)

    def text(self) -> str:
        """For the terminal."""
        line = f"step {self.step:,}: utility {self.utility:.1f} %, success {self.success:.1f} %"
        if self.score is not None:
            line += f", turn score {self.score:.2f}"
        return line + (f"; ALARM: {'; '.join(self.alarms)}" if self.alarms else "")


def look_at(
    step: int,
    after: Sequence[Trajectory],
    before: Sequence[Trajectory],
    scores: tuple[Scores, Scores] = ({}, {}),
    spent: Spent = NOTHING,
) -> CheckpointLook:
    """What a checkpoint's dialogues show, beside those of the policy that training started from.

    Args:
      scores: the judge's, of the turns of `after` and of `before`.
      spent: what `after` and its scores have cost.
    """
    found = watch(after, before, scores) if step else None
    of_turns = list(scores[0].values())
    growth = {} if found is None else found.growth
    utility = [100 * dialogue_utility(one) for one in after]
    totals = cluster_totals(utility, [one.scenario_id for one in after])
    return CheckpointLook(
        step=step,
        num_dialogues=len(after),
        utility=float(np.mean(utility)),
        success=100 * float(np.mean([one.outcome == "accepted" for one in after])),
        score=float(np.mean(of_turns)) if of_turns else None,
        utilities=(totals["sum"] / totals["count"]).to_dict(),
        utility_growth=Growth() if found is None else Growth.of(found.utility, 100.0),
        score_growth=Growth() if found is None else Growth.of(found.score),
        signs={name: Growth.of(interval) for name, interval in growth.items()},
        alarms=[] if found is None else [alarm.text for alarm in found.alarms],
        cost=counts(spent),
    )


class Lead(NamedTuple):
    """What one checkpoint's utility is above another's, paired by scenario, in points."""

    mean: float
    standard_error: float
    """0 where the two share fewer than two scenarios, and nothing can be said."""


def lead(look: CheckpointLook, other: CheckpointLook) -> Lead:
    """By how much `look` plays better than `other` on the scenarios of both."""
    shared = look.utilities.keys() & other.utilities.keys()
    leads = np.array([look.utilities[name] - other.utilities[name] for name in sorted(shared)])
    if len(leads) < 2:
        return Lead(look.utility - other.utility, 0.0)
    return Lead(float(leads.mean()), float(leads.std(ddof=1)) / math.sqrt(len(leads)))


def selected_look(looks: Sequence[CheckpointLook]) -> CheckpointLook:
    """The last checkpoint without an alarm, or the best one if it leads by over a standard error.

    A look has too few dialogues to rank checkpoints that are nearly alike. The best one may be the
    start (step 0), since training can make a student worse, whatever its judge says.

    Source: the last one is the paper's protocol; the margin is that of the one-standard-error rule
    of Breiman et al. (1984), *Classification and Regression Trees*, section 3.4.3.
    """
    best, last = _best(looks), max(_quiet(looks), key=lambda look: look.step)
    ahead = lead(best, last)
    # Where one scenario alone differs, the two are equal, but for rounding.
    return best if ahead.mean > ahead.standard_error + 1e-9 else last


def _best(looks: Sequence[CheckpointLook]) -> CheckpointLook:
    return max(_quiet(looks), key=lambda look: look.utility)


def _quiet(looks: Sequence[CheckpointLook]) -> list[CheckpointLook]:
    """Those without an alarm, of which the start always is one."""
    return [look for look in looks if not look.is_hacked]


def read_looks(path: Path) -> list[CheckpointLook]:
    """The rows of a `watch.jsonl`, by step; none where there is no file.

    Raises:
      InputError: a line is no row.
    """
    rows = read_records(path, CheckpointLook) if path.is_file() else ()
    looks = {look.step: look for look, _ in rows}
    return [looks[step] for step in sorted(looks)]


def looks_table(looks: Sequence[CheckpointLook]) -> str:
    """A short table for the terminal: what was seen, and how far each is behind the best."""
    best = _best(looks)
    lines = [
        f"{'step':>6} {'utility':>8} {'behind the best':>16} {'success':>8} {'score':>6}  "
        "signs that have grown"
    ]
    for look in looks:
        ahead = lead(best, look)
        behind = "-" if look is best else f"{ahead.mean:.1f} ± {ahead.standard_error:.1f}"
        score = "-" if look.score is None else f"{look.score:.2f}"
        alarms = "; ".join(look.alarms) or ("-" if look.step else "(before training)")
        lines.append(
            f"{look.step:>6,} {look.utility:>8.1f} {behind:>16} {look.success:>8.1f} "
            f"{score:>6}  {alarms}"
        )
    return "\n".join(lines)
