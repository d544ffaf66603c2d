"""Which samples an optimiser step learns from, however they are packed.

Units that share most of their prompts go to the same step in runs, so that a step has much to
merge; which runs meet in a step is random, so that a step is no single scenario."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from emodistill.batches.prefix_trees import common_prefix, prefix_key
from emodistill.seeding import stream

MAX_RUN = 16
"""The longest run of units that share most of their prompts."""
NUM_CHOICES = 32
"""Runs among which the last run of a step is chosen: enough to hit the intended size closely."""


def compose_steps(inputs: Sequence[np.ndarray], *, batch_size: int, seed: int) -> list[list[int]]:
    """The units of each step: `batch_size` of them, and the rest in a last step.

    A step has one run of neighbours from each of several lists of runs, in a seeded order. From the
    last list it takes, of the next few runs, the one that makes it about as large as the other
    steps, so that few row lengths fit all.

    Args:
      inputs: the input tokens of each unit, of its first sample where it has several.
    """
    num_steps, num_left = divmod(len(inputs), batch_size)
    full_lengths = _run_lengths(batch_size)
    pieces = [*enumerate(full_lengths)] * num_steps
    pieces += [(len(full_lengths), length) for length in _run_lengths(num_left)]
    units = iter(sorted(range(len(inputs)), key=lambda unit: prefix_key(inputs[unit])))
    runs: list[list[list[int]]] = [[] for _ in range(len(full_lengths) + 1)]
    for i in stream(seed, "cut").permutation(len(pieces)):
        number, length = pieces[i]
        runs[number].append(list(itertools.islice(units, length)))

    *full, left = runs
    orders = [stream(seed, "runs", n).permutation(num_steps) for n in range(len(full))]
    full = [[runs[i] for i in order] for runs, order in zip(full, orders, strict=True)]
    # A run is known by its first unit.
    sizes = {run[0]: _size([inputs[unit] for unit in run]) for runs in full for run in runs}
    target = sum(sizes.values()) / max(1, num_steps)
    steps = []
    *free, fitted = full
    for chosen in zip(*free, strict=True) if free else [()] * num_steps:
        missing = target - sum(sizes[run[0]] for run in chosen)
        misses = [abs(sizes[run[0]] - missing) for run in fitted[:NUM_CHOICES]]
        steps.append([*chosen, fitted.pop(int(np.argmin(misses)))])
    return [list(itertools.chain(*runs)) for runs in [*steps, left] if runs]


def _run_lengths(num_units: int) -> list[int]:
    """So many units in runs of about the same length, `MAX_RUN` at most."""
    num_runs = -(-num_units // MAX_RUN)
    return [len(part) for part in np.array_split(range(num_units), num_runs)] if num_runs else []


def _size(inputs: Sequence[np.ndarray]) -> int:
    """Positions that sequences in the order of their prefixes take in one tree."""
    merged = sum(itertools.starmap(common_prefix, itertools.pairwise(inputs)))
    return sum(map(len, inputs)) - merged
