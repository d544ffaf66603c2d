"""How the samples of an optimiser step share rows: few shapes, little padding, much merged.

`tree` merges common prefixes within a row, `sequence` puts samples side by side, and `none` gives
each sample a row of its own. The three differ in which prefixes are shared and in how many samples
a row takes; a step learns from the same samples in all of them.

The units of a step (samples, or pairs that must stay together) are cut, in the order of their
prefixes, into micro-batches. Of all ways to cut, dynamic programming finds the one with the fewest
computed positions.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emodistill.batches.prefix_trees import common_prefix, prefix_key
from emodistill.configs import Packing

MAX_ROW_LENGTHS = 6
"""Each row length is compiled into a program of its own; more of them save hardly any padding."""
LENGTH_MULTIPLE = 64
"""Row lengths are multiples of the smaller query block of `model.attention`, which is never cut."""
NUM_CANDIDATES = 32
"""Row lengths that are tried, evenly spaced up to the longest: steps of 3 % of it."""
MIN_SAVING = 0.01
"""Another row length must save this share of the positions, or it isn't worth its compilation."""


class RowShape(NamedTuple):
    """The rows of a micro-batch, and the positions of each."""

    num_rows: int
    num_positions: int


class MicroBatch(NamedTuple):
    """Which samples share which row; samples are given by their index in the data."""

    shape: RowShape
    samples: tuple[int, ...]
    """All of them, unit by unit."""
    rows: tuple[tuple[int, ...], ...]
    """The samples of each row, in the order of their prefixes."""
    num_tokens: int
    """Positions that hold a token."""


class StepSamples:
    """The samples of one step in the order of their prefixes, and what they share.

    A sample's *rank* is its index in that order.

    Args:
      samples: their indices in the data, unit by unit, `unit_size` each.
      inputs: their input tokens.
    """

    def __init__(
        self, samples: Sequence[int], inputs: Sequence[np.ndarray], packing: Packing, unit_size: int
    ) -> None:
        self.packing, self.unit_size = packing, unit_size
        order = sorted(range(len(samples)), key=lambda i: prefix_key(inputs[i]))
        if packing == "none":
            order.sort(key=lambda i: len(inputs[i]))
        self.samples = [int(samples[i]) for i in order]
        self.lengths = [len(inputs[i]) for i in order]
        with_next = [
            common_prefix(inputs[i], inputs[j]) if packing == "tree" else 0
            for i, j in itertools.pairwise(order)
        ]
        # [i][j - i - 1]: leading tokens that the samples of ranks i < j have in common.
        self._shared = [np.minimum.accumulate(with_next[i:]).tolist() for i in range(len(order))]
        ranks = np.argsort(order).reshape(-1, unit_size)
        self.units: list[list[int]] = ranks[np.argsort(ranks.min(axis=1))].tolist()
        """The ranks of the samples of each unit, the units in the order of their first ranks."""

    def num_positions(self, row: Sequence[int]) -> int:
        """Positions that the samples of these ranks, in their order, take in one row."""
        merged = sum(self._shared[i][j - i - 1] for i, j in itertools.pairwise(row))
        return sum(self.lengths[rank] for rank in row) - merged

    def row_sizes(self, start: int, max_positions: int) -> list[int]:
        """Positions that the units from `start` to each later one take in one row, to a bound."""
        row: list[int] = []
        total, sizes = 0, []
        for ranks in self.units[start:]:
            for rank in ranks:
                i = bisect.bisect(row, rank)
                # Only the neighbours of a sample in the row decide how much of it is merged.
                before, after = row[max(i - 1, 0) : i], row[i : i + 1]
                total += self.num_positions([*before, rank, *after])
                total -= self.num_positions([*before, *after])
                row.insert(i, rank)
            if total > max_positions:
                break
            sizes.append(total)
        return sizes

    def row_end(self, start: int, num_positions: int, sizes: Sequence[int]) -> int:
        """The first unit after those from `start` that fit into one row.

        With `none`, every sample of a unit has a row of its own.

        Args:
          sizes: `row_sizes(start, …)`.
        """
        if self.packing != "none":
            return start + bisect.bisect_right(sizes, num_positions)
        return start + all(self.lengths[rank] <= num_positions for rank in self.units[start])

    def rows(self, start: int, stop: int, num_positions: int) -> list[list[int]]:
        """The units from `start` to `stop` in rows of at most `num_positions`, as ranks."""
        rows = []
        while start < stop:
            end = self.row_end(start, num_positions, self.row_sizes(start, num_positions))
            ranks = sorted(itertools.chain(*self.units[start : min(end, stop)]))
            rows += [[rank] for rank in ranks] if self.packing == "none" else [ranks]
            start = end
        return rows

    def reaches(self, shapes: Sequence[RowShape]) -> list[list[int]]:
        """[shape][unit]: the first unit after a micro-batch that begins with that unit."""
        num_units = len(self.units)
        longest = max(shape.num_positions for shape in shapes)
        sizes = [self.row_sizes(start, longest) for start in range(num_units)]
        reaches = []
        for shape in shapes:
            ends = [self.row_end(i, shape.num_positions, sizes[i]) for i in range(num_units)]
            ends.append(num_units)
            reach = list(range(num_units))
            for _ in range(shape.num_rows // (self.unit_size if self.packing == "none" else 1)):
                reach = [ends[i] for i in reach]
            reaches.append(reach)
        return reaches


Cut = tuple[int, int, RowShape]
"""A micro-batch: the units from the first number to the second, and the shape that holds them."""


def cheapest_cuts(
    reaches: Sequence[Sequence[int]], shapes: Sequence[RowShape]
) -> tuple[float, list[Cut]]:
    """The fewest positions that a step can compute, and the cuts that do so.

    A micro-batch that begins somewhere takes all that fits, since fewer samples never cost more.

    Args:
      reaches: `StepSamples.reaches(shapes)`.
    """
    num_units = len(reaches[0])
    costs: list[float] = [0.0] + [math.inf] * num_units
    last: dict[int, Cut] = {}
    for start in range(num_units):
        for reach, shape in zip(reaches, shapes, strict=True):
            stop = reach[start]
            cost = costs[start] + math.prod(shape)
            if stop > start and cost < costs[stop]:
                costs[stop], last[stop] = cost, (start, stop, shape)
    cuts, stop = [], num_units
    while stop in last:
        cuts.append(last[stop])
        stop = cuts[-1][0]
    return costs[num_units], cuts[::-1]


def choose_shapes(steps: Sequence[StepSamples], candidates: Sequence[RowShape]) -> list[RowShape]:
    """At most `MAX_ROW_LENGTHS` of the candidates that compute few positions in all `steps`.

    The longest is among them; the others are added one by one as long as that is worth it.

    Args:
      candidates: shapes in the order of their row lengths.
    """
    reaches = [step.reaches(candidates) for step in steps]

    def cost(chosen: Sequence[int]) -> float:
        shapes = [candidates[i] for i in chosen]
        return sum(cheapest_cuts([of_step[i] for i in chosen], shapes)[0] for of_step in reaches)

    *others, longest = range(len(candidates))
    chosen, total = [longest], cost([longest])
    while others and len(chosen) < MAX_ROW_LENGTHS:
        new_total, best = min((cost([*chosen, i]), i) for i in others)
        if new_total > (1 - MIN_SAVING) * total:
            break
        others.remove(best)
        chosen, total = [*chosen, best], new_total
    return [candidates[i] for i in sorted(chosen)]


def candidate_shapes(
    longest: int, max_positions: int, row_multiple: int, packing: Packing, unit_size: int
) -> list[RowShape]:
    """Shapes to choose from, in the order of their row lengths.

    Args:
      longest: positions of the longest unit in one row; with `none`, of the longest sample.
      max_positions: of a micro-batch on each device; a longer unit stands alone.
      row_multiple: what the number of rows must be divisible by.
    """
    top = longest if packing == "none" else max(longest, max_positions)
    fractions = np.arange(1, NUM_CANDIDATES + 1) / NUM_CANDIDATES
    lengths = sorted({round_up(top * fraction, LENGTH_MULTIPLE) for fraction in fractions})
    if packing != "none":
        return [RowShape(row_multiple, length) for length in lengths]
    fewest = -(-unit_size // row_multiple)
    return [
        RowShape(row_multiple * max(fewest, max_positions // length), length) for length in lengths
    ]


def round_up(number: float, multiple: int) -> int:
    """The smallest multiple that is not below `number`."""
    return math.ceil(number / multiple) * multiple


def pack(step: StepSamples, shapes: Sequence[RowShape]) -> list[MicroBatch]:
    """The micro-batches of a step that compute the fewest positions."""
    micro_batches = []
    for start, stop, shape in cheapest_cuts(step.reaches(shapes), shapes)[1]:
        rows = step.rows(start, stop, shape.num_positions)
        units = itertools.chain(*step.units[start:stop])
        micro_batches.append(
            MicroBatch(
                shape,
                samples=tuple(step.samples[rank] for rank in units),
                rows=tuple(tuple(step.samples[rank] for rank in row) for row in rows),
                num_tokens=sum(map(step.num_positions, rows)),
            )
        )
    return micro_batches
