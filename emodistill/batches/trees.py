"""Token sequences merged by their longest common prefixes, laid out depth-first in one row.

Turns of a dialogue repeat its history, dialogues of a scenario its context: in a row each shared
token stands once. A token's position is its depth, and `ends` says who sees it (`model.attention`).

Axis: T places of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Tree(NamedTuple):
    """A row; arrays are int32."""

    tokens_T: np.ndarray
    depths_T: np.ndarray
    ends_T: np.ndarray
    """The first place after each place's subtree."""
    paths: tuple[np.ndarray, ...]
    """Of each sequence: the places of its tokens."""


def common_prefix(first: np.ndarray, second: np.ndarray) -> int:
    """How many leading tokens two sequences share."""
    both = min(len(first), len(second))
    differs = first[:both] != second[:both]
    place = int(differs.argmax()) if both else 0
    return place if both and differs[place] else both


def prefix_key(ids: np.ndarray) -> bytes:
    """Sorts sequences so that those which share most stand side by side, prefixes first."""
    return ids.astype(">u4").tobytes()


def lay_out(sequences: Sequence[np.ndarray], limits: Sequence[int] | None = None) -> Tree:
    """Lay the sequences into one row, each from where it leaves the one before.

    In the order of `prefix_key` this is their prefix tree; in any order each is exact.

    Args:
      limits: how many leading tokens of each sequence may be shared at most.
    """
    num_places = 0
    tokens, depths, paths = [], [], []
    ends: list[np.ndarray] = []  # per stretch of new tokens
    stretches: list[tuple[int, np.ndarray]] = []  # open ones: depth of the first token, its ends
    before = np.zeros(0, np.int32)
    path = np.zeros(0, np.int32)
    for index, ids in enumerate(sequences):
        shared = common_prefix(before, ids)
        if limits is not None:
            shared = min(shared, limits[index])
        while stretches:
            depth, open_ends = stretches[-1]
            open_ends[max(0, shared - depth) :] = num_places
            if depth < shared:
                stretches[-1] = depth, open_ends[: shared - depth]
                break
            stretches.pop()
        new = np.arange(num_places, num_places + len(ids) - shared, dtype=np.int32)
        path = np.concatenate([path[:shared], new])
        tokens.append(ids[shared:])
        depths.append(np.arange(shared, len(ids), dtype=np.int32))
        ends.append(np.zeros(len(new), np.int32))
        stretches.append((shared, ends[-1]))
        paths.append(path)
        num_places += len(new)
        before = ids
    for _, open_ends in stretches:
        open_ends[:] = num_places
    return Tree(
        np.concatenate(tokens).astype(np.int32),
        np.concatenate(depths),
        np.concatenate(ends),
        tuple(paths),
    )
