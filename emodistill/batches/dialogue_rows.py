"""A dialogue's samples in one row, their shared history laid down once.

The student's pretraining reads whole dialogues this way: for the same replies it computes about
half the tokens. A token sees what stands before it on its own sample's path, and nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from emodistill.batches.examples import Example
from emodistill.batches.prefix_trees import PrefixTree, lay_out
from emodistill.errors import InputError
from emodistill.seeding import stream

Array = Any
"""Of a batch: np.ndarray as it is made, jax.Array within a compiled program."""

ROW_MULTIPLE = 128
"""Row lengths are multiples of this; each is a program of its own."""


class Row(NamedTuple):
    """The samples of one dialogue (T tokens).

    `weights_T` belongs to the prediction of `targets_T`; where two samples part, the first one's
    next token is predicted.
    """

    tree: PrefixTree
    targets_T: np.ndarray
    weights_T: np.ndarray
    is_reply_T: np.ndarray
    is_digit_T: np.ndarray
    """Of a reply."""

    def __len__(self) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        return len(self.tree.tokens_T)


def merge_samples(
    examples: Sequence[Example],
    *,
    prompt_weight: float,
    digit_ids: Collection[int] = (),
    digit_weight: float = 1.0,
) -> Row:
    """Lay a dialogue's samples into one row, each beginning where it leaves the one before.

    Args:
      prompt_weight: of predicting a prompt token, beside 1 for a reply token.
      digit_weight: of predicting one of `digit_ids` in a reply.
    """
    sequences = [np.concatenate([one.prompt_ids, one.response_ids]) for one in examples]
    # Every reply token is predicted from a place of its own.
    tree = lay_out(sequences, [len(one.prompt_ids) - 1 for one in examples])
    num_places = len(tree.tokens_T)
    targets_T, weights_T = np.zeros(num_places, np.int32), np.zeros(num_places, np.float32)
    is_reply_T, is_digit_T = np.zeros(num_places, bool), np.zeros(num_places, bool)
    digits = np.fromiter(digit_ids, np.int32)
    for one, ids, path in reversed(list(zip(examples, sequences, tree.paths, strict=True))):
        first = len(one.prompt_ids) - 1
        targets_T[path[:-1]] = ids[1:]
        weights_T[path[:first]] = prompt_weight
        says_digit = np.isin(one.response_ids, digits)
        weights_T[path[first:-1]] = np.where(says_digit, digit_weight, 1.0)
        is_reply_T[path[first:-1]], is_digit_T[path[first:-1]] = True, says_digit
    return Row(tree, targets_T, weights_T, is_reply_T, is_digit_T)


class Rows(NamedTuple):
    """Right-padded rows of one length; padding weighs 0."""

    tokens_BT: Array
    positions_BT: Array
    ends_BT: Array
    targets_BT: Array
    weights_BT: Array
    is_reply_BT: Array
    is_digit_BT: Array


def stack_rows(rows: Sequence[Row], length: int) -> Rows:
    """Rows of at most `length` tokens as one batch."""

    def stacked(arrays: Iterator[np.ndarray]) -> np.ndarray:
        return np.stack([np.pad(array, (0, length - len(array))) for array in arrays])

    return Rows(
        stacked(row.tree.tokens_T for row in rows),
        stacked(row.tree.depths_T for row in rows),
        stacked(row.tree.ends_T for row in rows),
        stacked(row.targets_T for row in rows),
        stacked(row.weights_T for row in rows),
        stacked(row.is_reply_T for row in rows),
        stacked(row.is_digit_T for row in rows),
    )


def endless_batches(rows: Sequence[Row], *, tokens_per_step: int, seed: int) -> Iterator[Rows]:
    """Batches of rows of about one length, in a seeded order, epoch after epoch.

    A length with too few rows for a step joins the next longer one; the longest few make a batch
    of their own. What is left over of a length in an epoch is another choice in the next.

    Raises:
      InputError: all rows together don't fill a step.
    """
    by_length: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        length = -(-len(row) // ROW_MULTIPLE) * ROW_MULTIPLE
        by_length.setdefault(length, []).append(index)
    groups: list[tuple[int, int, list[int]]] = []
    waiting: list[int] = []
    for length, members in sorted(by_length.items()):
        waiting += members
        size = max(1, tokens_per_step // length)
        if len(waiting) >= size or (groups and length == max(by_length)):
            groups.append((length, min(size, len(waiting)), waiting))
            waiting = []
    if not groups:
        raise InputError(
            f"{len(rows)} dialogues do not fill a step of tokens_per_step={tokens_per_step}; "
            "play more, or lower it."
        )
    for epoch in itertools.count():
        rng = stream(seed, "dialogue rows", epoch)
        batches = []
        for length, size, members in groups:
            order = rng.permutation(members)
            batches += [
                (length, order[i : i + size]) for i in range(0, len(order) - size + 1, size)
            ]
        for position in rng.permutation(len(batches)):
            length, members = batches[position]
            yield stack_rows([rows[i] for i in members], length)
