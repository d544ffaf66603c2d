"""Token sequences merged by their longest common prefixes, laid out depth-first in one row.

The turns of a dialogue repeat its history, and the dialogues of a scenario its context: in a row
each shared token stands once. The rotary position of a token is its depth in the tree, and `ends_T`
says which later tokens see it (`model.attention`).

Axis: T positions of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class PrefixTree(NamedTuple):
    """One row; arrays are int32."""

    tokens_T: np.ndarray
    depths_T: np.ndarray
    ends_T: np.ndarray
    """The first position after the subtree of each position."""
    paths: tuple[np.ndarray, ...]
    """For each sequence, the positions of its tokens."""


def common_prefix(first: np.ndarray, second: np.ndarray) -> int:
    """How many leading tokens two sequences share."""
    length = min(len(first), len(second))
    differences = np.flatnonzero(first[:length] != second[:length])
    return int(differences[0]) if differences.size else length


def prefix_key(ids: np.ndarray) -> bytes:
    """A sort key that puts the sequences which share most side by side, prefixes first."""
    return ids.astype(">u4").tobytes()


def lay_out(sequences: Sequence[np.ndarray], limits: Sequence[int] | None = None) -> PrefixTree:
    """Lay the sequences into one row, each from where it leaves the one before.

    In the order of `prefix_key` the row is their prefix tree. In any other order each sequence is
    still exact, but some shared tokens stand there more than once.

    Args:
      limits: the most leading tokens that each sequence may share.
    """
    tokens_T, depths_T, ends_T = np.zeros((3, sum(map(len, sequences))), np.int32)
    paths = [np.zeros(0, np.int32)]
    num_positions = 0
    limits = limits or [len(ids) for ids in sequences]
    for i, ids in enumerate(sequences):
        shared = min(common_prefix(sequences[i - 1], ids), limits[i]) if i else 0
        first, num_positions = num_positions, num_positions + len(ids) - shared
        path = np.append(paths[-1][:shared], np.arange(first, num_positions, dtype=np.int32))
        # Whatever has been laid out since a position of this path lies below it, so that every
        # subtree on the path reaches to here; a later sequence that shares a position extends it.
        tokens_T[path], depths_T[path], ends_T[path] = ids, np.arange(len(ids)), num_positions
        paths.append(path)
    row = slice(num_positions)
    return PrefixTree(tokens_T[row], depths_T[row], ends_T[row], tuple(paths[1:]))
