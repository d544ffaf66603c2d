"""A dialogue's samples in one row, their shared history laid down once.

The student's pretraining reads whole dialogues this way: for the same replies it computes about
half the tokens. A token sees what stands before it on its own sample's path, and nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from emodistill.batches.examples import Example
from emodistill.batches.padded import Array
from emodistill.errors import InputError
from emodistill.seeding import stream

ROW_MULTIPLE = 128
"""Row lengths are multiples of this; each is a program of its own."""


class Row(NamedTuple):
    """The samples of one dialogue (T tokens).

    `weights_T` belongs to the prediction of `targets_T`; where two samples part, the first one's
    next token is predicted.
    """

    tokens_T: np.ndarray
    positions_T: np.ndarray
    targets_T: np.ndarray
    weights_T: np.ndarray
    is_reply_T: np.ndarray
    is_digit_T: np.ndarray
    """Of a reply."""
    paths: tuple[tuple[np.ndarray, int], ...]
    """Per sample: its tokens' places in the row, and how many of them an earlier sample owns."""


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
    tokens, positions, targets, weights, is_reply, is_digit = [], [], [], [], [], []
    paths: list[tuple[np.ndarray, int]] = []
    before: np.ndarray = np.zeros(0, np.int32)
    path: list[int] = []
    for example in examples:
        ids = np.concatenate([example.prompt_ids, example.response_ids])
        both = min(len(before), len(ids), len(example.prompt_ids) - 1)
        differs = np.flatnonzero(before[:both] != ids[:both])
        shared = int(differs[0]) if len(differs) else both
        path = path[:shared] + list(range(len(tokens), len(tokens) + len(ids) - shared))
        for place in range(shared, len(ids)):
            is_last = place + 1 == len(ids)
            target = 0 if is_last else int(ids[place + 1])
            says = not is_last and place + 1 >= len(example.prompt_ids)
            says_digit = says and target in digit_ids
            of_reply = digit_weight if says_digit else 1.0
            tokens.append(ids[place])
            positions.append(place)
            targets.append(target)
            is_reply.append(says)
            is_digit.append(says_digit)
            weights.append(0.0 if is_last else of_reply if says else prompt_weight)
        paths.append((np.array(path, np.int32), shared))
        before = ids
    return Row(
        np.array(tokens, np.int32),
        np.array(positions, np.int32),
        np.array(targets, np.int32),
        np.array(weights, np.float32),
        np.array(is_reply, bool),
        np.array(is_digit, bool),
        tuple(paths),
    )


def path_mask(row: Row, length: int) -> np.ndarray:
    """Which keys each query of the row sees, `[T, T]` of bool, T = `length`."""
    mask_TT = np.zeros((length, length), bool)
    for path, shared in row.paths:
        for place in range(shared, len(path)):
            mask_TT[path[place], path[: place + 1]] = True
    return mask_TT


class Rows(NamedTuple):
    """Right-padded rows of one length; padding weighs 0."""

    tokens_BT: Array
    positions_BT: Array
    targets_BT: Array
    weights_BT: Array
    is_reply_BT: Array
    is_digit_BT: Array
    mask_BTS: Array


def stack_rows(rows: Sequence[Row], length: int) -> Rows:
    """Rows of at most `length` tokens as one batch."""

    def stacked(arrays: Iterator[np.ndarray]) -> np.ndarray:
        return np.stack([np.pad(array, (0, length - len(array))) for array in arrays])

    return Rows(
        stacked(row.tokens_T for row in rows),
        stacked(row.positions_T for row in rows),
        stacked(row.targets_T for row in rows),
        stacked(row.weights_T for row in rows),
        stacked(row.is_reply_T for row in rows),
        stacked(row.is_digit_T for row in rows),
        np.stack([path_mask(row, length) for row in rows]),
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
        length = -(-len(row.tokens_T) // ROW_MULTIPLE) * ROW_MULTIPLE
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
