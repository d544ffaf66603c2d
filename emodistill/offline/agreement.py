"""Whether two judges, or one judge twice, would teach the same: for any two sets of scores."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from emodistill.errors import InputError
from emodistill.offline.rewards import Scores, scenario_advantages
from emodistill.records import Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How two judges score the same items.

    `counts[i, j]` are the items to which the first gave i + 1 and the second j + 1.
    """

    num_items: int
    kendall_tau: float
    """τ-b, which allows for ties; NaN where a judge gives one score throughout."""
    sign_flips: float
    """Share of the advantages (Eq. 29) that are above 0 for one judge and below for the other."""
    same: float
    """Share of equal scores."""
    mean_difference: float
    """Second minus first."""
    counts: np.ndarray

    @property
    def text(self) -> str:
        """For the terminal: the figures, then the table of scores."""
        lines = [
            f"{self.num_items:,} items scored by both: Kendall's tau {self.kendall_tau:.3f}, "
            f"{self.same:.1%} equal, mean difference {self.mean_difference:+.2f}, "
            f"{self.sign_flips:.1%} of the advantages change sign.",
            "rows: the first judge's score, columns: the second's",
            "     " + "".join(f"{score:>6}" for score in range(1, 11)),
        ]
        lines += [
            f"{score:>5}" + "".join(f"{count:>6}" if count else "     ." for count in row)
            for score, row in enumerate(self.counts.tolist(), start=1)
        ]
        return "\n".join(lines)


def compare_scores(first: Scores, second: Scores, scenarios: Mapping[str, str]) -> Agreement:
    """Compare two judges on the items that both have scored.

    Args:
      scenarios: the scenario of each `trajectory_id`.

    Raises:
      InputError: there is no such item.
    """

    both = first.keys() & second.keys()
    shared = sorted((key for key in both if key[0] in scenarios), key=str)
    if not shared:
        raise InputError("the two judges have scored no item in common; judge the same dialogues.")
    a, b = (np.array([scores[key] for key in shared], float) for scores in (first, second))
    names = [scenarios[key[0]] for key in shared]
    signs = np.sign(scenario_advantages(a, names)) * np.sign(scenario_advantages(b, names))
    flips = signs[~np.isnan(signs)] < 0
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (a.astype(int) - 1, b.astype(int) - 1), 1)
    return Agreement(
        num_items=len(shared),
        kendall_tau=float(np.asarray(kendalltau(a, b))[0]) if len(a) > 1 else math.nan,
        sign_flips=float(flips.mean()) if len(flips) else math.nan,
        same=float((a == b).mean()),
        mean_difference=float((b - a).mean()),
        counts=counts,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatSpread:
    """How far a judge is from itself when it scores the same item again."""

    num_items: int
    """Those with two scores or more."""
    variance: float
    """Mean over items of the unbiased variance of an item's scores; NaN without such items."""
    reliability: float
    """1 − variance / variance of all scores: the share that is about the items."""


def repeat_spread(judgements: Iterable[Judgement]) -> RepeatSpread:
    """From the scored lines of one judge; the last line of each repeat counts."""
    last: dict[tuple[str, int | None], dict[int, int]] = defaultdict(dict)
    for line in judgements:
        if line.score is not None:
            last[line.trajectory_id, line.turn_index][line.repeat] = line.score
    repeated = [list(scores.values()) for scores in last.values() if len(scores) > 1]
    if not repeated:
        return RepeatSpread(num_items=0, variance=math.nan, reliability=math.nan)
    within = float(np.mean([np.var(scores, ddof=1) for scores in repeated]))
    total = float(np.var([score for scores in repeated for score in scores], ddof=1))
    return RepeatSpread(
        num_items=len(repeated),
        variance=within,
        reliability=1.0 - within / total if total > 0 else math.nan,
    )
