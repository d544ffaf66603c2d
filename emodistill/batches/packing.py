"""How the samples of an optimiser step share rows: few shapes, little padding, much merged.

`tree` merges common prefixes within a row, `sequence` sets samples side by side, `none` gives each
a row of its own. The three differ in the prefixes that may be shared and in how many samples a row
takes, nothing else; what a step learns from is the same.

A step's units (samples, or pairs that must stay together) are cut, in their order, into
micro-batches; of all ways to cut, dynamic programming finds the one that computes the fewest
places.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emodistill.batches.trees import common_prefix, prefix_key
from emodistill.configs import Packing

NUM_LENGTHS = 6
"""Row lengths at most, each a program of its own."""
LENGTH_MULTIPLE = 64
LENGTH_STEPS = 32
"""Row lengths are tried in so many steps up to the longest."""
NUM_TRIED = 64
"""Steps by which the row lengths are chosen."""
WORTH_A_SHAPE = 0.01
"""Another row length must save this share of the places."""


class RowShape(NamedTuple):
    """Rows of a micro-batch, and places of each."""

    num_rows: int
    num_tokens: int


class MicroBatch(NamedTuple):
    """Which samples share which row, by number."""

    shape: RowShape
    units: tuple[int, ...]
    """Of the step, in its order."""
    rows: tuple[tuple[int, ...], ...]
    """Samples; in the order of their prefixes."""
    num_tokens: int
    """Places that they take."""


class StepSamples:
    """The samples of one step and what they share.

    Args:
      numbers: of the samples, unit by unit, `unit_size` each.
      inputs: their input tokens.
    """

    def __init__(
        self, numbers: Sequence[int], inputs: Sequence[np.ndarray], packing: Packing, unit_size: int
    ) -> None:
        self.packing, self.unit_size = packing, unit_size
        order = sorted(range(len(numbers)), key=lambda i: prefix_key(inputs[i]))
        if packing == "none":
            order.sort(key=lambda i: len(inputs[i]))
        self.numbers = [int(numbers[i]) for i in order]
        self.lengths = [len(inputs[i]) for i in order]
        n = len(order)
        adjacent = np.zeros(max(n - 1, 0), np.int64)
        if packing == "tree":
            pairs = itertools.pairwise(inputs[i] for i in order)
            adjacent[:] = [common_prefix(first, second) for first, second in pairs]
        # [i][j - i - 1]: leading tokens that the samples of ranks i < j have in common
        self._shared = [np.minimum.accumulate(adjacent[i:]).tolist() for i in range(n)]
        members: list[list[int]] = [[] for _ in range(n // unit_size)]
        for rank, i in enumerate(order):
            members[i // unit_size].append(rank)
        self.units = sorted(range(len(members)), key=lambda unit: members[unit][0])
        self.ranks = [members[unit] for unit in self.units]

    def shared(self, rank: int, later: int) -> int:
        """Leading tokens that the samples of two ranks, in their order, have in common."""
        return self._shared[rank][later - rank - 1]

    def places(self, row: Sequence[int]) -> int:
        """Places that the samples of these ranks, in their order, take in one row."""
        merged = sum(self.shared(*pair) for pair in itertools.pairwise(row))
        return sum(self.lengths[rank] for rank in row) - merged

    def places_from(self, start: int, at_most: int) -> list[int]:
        """Places that the units from `start` to each later one take in one row, up to a bound."""
        kept: list[int] = []
        total, totals = 0, []
        for ranks in self.ranks[start:]:
            for rank in ranks:
                at = bisect.bisect(kept, rank)
                total += self.lengths[rank]
                if at:
                    total -= self.shared(kept[at - 1], rank)
                if at < len(kept):
                    total -= self.shared(rank, kept[at])
                    if at:
                        total += self.shared(kept[at - 1], kept[at])
                kept.insert(at, rank)
            if total > at_most:
                break
            totals.append(total)
        return totals

    def row_end(self, start: int, num_tokens: int, totals: Sequence[int]) -> int:
        """How far the units from `start` fit into one row (with `none`, into one row each sample).

        Args:
          totals: `places_from(start, ...)`.
        """
        if self.packing != "none":
            return start + bisect.bisect_right(totals, num_tokens)
        fits = all(self.lengths[rank] <= num_tokens for rank in self.ranks[start])
        return start + fits

    def rows(self, start: int, stop: int, num_tokens: int) -> list[list[int]]:
        """The units from `start` to `stop`, each wholly in a row of at most `num_tokens`, as ranks;
        with `none` every sample has a row of its own."""
        if self.packing == "none":
            return [[rank] for ranks in self.ranks[start:stop] for rank in ranks]
        found = []
        while start < stop:
            end = self.row_end(start, num_tokens, self.places_from(start, num_tokens))
            end = min(end, stop)
            found.append(sorted(rank for ranks in self.ranks[start:end] for rank in ranks))
            start = end
        return found


def reaches(step: StepSamples, shapes: Sequence[RowShape]) -> list[list[int]]:
    """[unit][shape]: where a micro-batch that begins with that unit ends."""
    n = len(step.ranks)
    most = max(shape.num_tokens for shape in shapes)
    totals = [step.places_from(start, most) for start in range(n)]
    columns = []
    for shape in shapes:
        ends = [step.row_end(start, shape.num_tokens, totals[start]) for start in range(n)] + [n]
        num_rows = shape.num_rows // (step.unit_size if step.packing == "none" else 1)
        reach = list(range(n))
        for _ in range(num_rows):
            reach = [ends[at] for at in reach]
        columns.append(reach)
    return [list(of_unit) for of_unit in zip(*columns, strict=True)]


class Cut(NamedTuple):
    """A micro-batch: the units from `start` to `stop`, in the shape of that number."""

    start: int
    stop: int
    shape: int


def cheapest_cuts(
    reach: Sequence[Sequence[int]], shapes: Sequence[RowShape], allowed: Sequence[int]
) -> tuple[float, list[Cut]]:
    """The cuts that compute the fewest places, and how many those are.

    A micro-batch that begins somewhere takes all that fits: fewer samples never cost more.
    """
    n = len(reach)
    best: list[float] = [0.0] + [math.inf] * n
    last: list[Cut | None] = [None] * (n + 1)
    for start in range(n):
        for number in allowed:
            stop = reach[start][number]
            cost = best[start] + shapes[number].num_rows * shapes[number].num_tokens
            if stop > start and cost < best[stop]:
                best[stop], last[stop] = cost, Cut(start, stop, number)
    cuts, cut = [], last[n]
    while cut is not None:
        cuts.append(cut)
        cut = last[cut.start]
    return best[n], cuts[::-1]


def choose_shapes(steps: Sequence[StepSamples], candidates: Sequence[RowShape]) -> list[RowShape]:
    """At most `NUM_LENGTHS` of the candidates that together compute few places in all `steps`.

    The largest is among them; the others are added one by one as long as that is worth it.
    """
    largest = max(range(len(candidates)), key=lambda i: candidates[i].num_tokens)
    found = [reaches(step, candidates) for step in steps]

    def cost(allowed: list[int]) -> float:
        return sum(cheapest_cuts(reach, candidates, allowed)[0] for reach in found)

    chosen = [largest]
    total = cost(chosen)
    while len(chosen) < NUM_LENGTHS:
        others = [i for i in range(len(candidates)) if i not in chosen]
        costs = {i: cost([*chosen, i]) for i in others}
        if not costs:
            break
        best = min(costs, key=lambda i: (costs[i], i))
        if costs[best] > (1 - WORTH_A_SHAPE) * total:
            break
        chosen.append(best)
        total = costs[best]
    return sorted((candidates[i] for i in chosen), key=lambda shape: shape.num_tokens)


def candidate_shapes(
    longest: int, max_tokens: int, row_multiple: int, packing: Packing, unit_size: int = 1
) -> list[RowShape]:
    """Shapes to choose from.

    Args:
      longest: places of the longest unit in one row; with `none`, of the longest sample.
      max_tokens: places of a micro-batch on each device; a longer unit stands alone.
      row_multiple: what the number of rows must be divisible by.
    """
    top = longest if packing == "none" else max(longest, max_tokens)
    lengths = sorted({_rounded(top * i / LENGTH_STEPS) for i in range(1, LENGTH_STEPS + 1)})
    if packing != "none":
        return [RowShape(row_multiple, length) for length in lengths]
    least = -(-unit_size // row_multiple)
    return [RowShape(row_multiple * max(least, max_tokens // length), length) for length in lengths]


def _rounded(num_tokens: float) -> int:
    return math.ceil(num_tokens / LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def pack(step: StepSamples, shapes: Sequence[RowShape]) -> list[MicroBatch]:
    """The micro-batches of a step that compute the fewest places."""
    _, cuts = cheapest_cuts(reaches(step, shapes), shapes, range(len(shapes)))
    found = []
    for start, stop, number in cuts:
        rows = step.rows(start, stop, shapes[number].num_tokens)
        numbers = tuple(tuple(step.numbers[rank] for rank in row) for row in rows)
        taken = sum(step.places(row) for row in rows)
        found.append(MicroBatch(shapes[number], tuple(step.units[start:stop]), numbers, taken))
    return found
