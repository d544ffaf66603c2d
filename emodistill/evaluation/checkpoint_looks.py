"""What was seen of a student at the checkpoints of its training: one row for each look.

    <cell>/watch.jsonl   step, dialogues, utility, success, judge's score, growth of signs, alarms,
                         what the look has cost

The look at step 0 is at the policy that training started from; all others are compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from emodistill.evaluation.bootstrap import Interval
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
    return CheckpointLook(
        step=step,
        num_dialogues=len(after),
        utility=100 * float(np.mean([dialogue_utility(one) for one in after])),
        success=100 * float(np.mean([one.outcome == "accepted" for one in after])),
        score=float(np.mean(of_turns)) if of_turns else None,
        utility_growth=Growth() if found is None else Growth.of(found.utility, 100.0),
        score_growth=Growth() if found is None else Growth.of(found.score),
        signs={name: Growth.of(interval) for name, interval in growth.items()},
        alarms=[] if found is None else [alarm.text for alarm in found.alarms],
        cost=counts(spent),
    )


def best_look(looks: Sequence[CheckpointLook]) -> CheckpointLook:
    """The checkpoint of the best utility without an alarm, the earlier one of equals.

    It may be the start, step 0: training can make a student worse, whatever its judge says.
    """
    quiet = [look for look in looks if not look.is_hacked]
    return max(quiet, key=lambda look: (look.utility, -look.step))


def read_looks(path: Path) -> list[CheckpointLook]:
    """The rows of a `watch.jsonl`, by step; none where there is no file.

    Raises:
      InputError: a line is no row.
    """
    rows = read_records(path, CheckpointLook) if path.is_file() else ()
    looks = {look.step: look for look, _ in rows}
    return [looks[step] for step in sorted(looks)]


def looks_table(looks: Sequence[CheckpointLook]) -> str:
    """A short table for the terminal."""
    lines = [f"{'step':>6} {'utility':>8} {'success':>8} {'score':>6}  signs that have grown"]
    for look in looks:
        score = "-" if look.score is None else f"{look.score:.2f}"
        alarms = "; ".join(look.alarms) or ("-" if look.step else "(before training)")
        lines.append(
            f"{look.step:>6,} {look.utility:>8.1f} {look.success:>8.1f} {score:>6}  {alarms}"
        )
    return "\n".join(lines)
