"""A dialogue's samples in one row, prompts scored too: `lay_out` in the order of the turns.

The student's pretraining reads whole dialogues this way: for the same replies it computes about
half the tokens. A token sees the tokens before it in its own sample, and no others.

Axes: B rows, T positions in a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from emodistill.batches.examples import Example
from emodistill.batches.prefix_trees import lay_out
from emodistill.errors import InputError
from emodistill.seeding import stream

Array = Any
"""In a batch: np.ndarray when it is built, jax.Array within a compiled program."""

ROW_MULTIPLE = 128
"""Row lengths are multiples of this, since each length compiles a program of its own."""


class Rows(NamedTuple):
    """Dialogues as rows of one length, padded on the right; padding has weight 0.

    `weights_BT` weighs the prediction of `targets_BT`. Where two samples part, the next token of
    the first one is predicted.
    """

    tokens_BT: Array
    positions_BT: Array
    ends_BT: Array
    targets_BT: Array
    weights_BT: Array
    is_reply_BT: Array
    is_digit_BT: Array
    """True at the digits of replies."""

    @property
    def num_tokens(self) -> int:
        """Positions in each row, padding included."""
        return self.tokens_BT.shape[1]


def merge_samples(
    examples: Sequence[Example],
    *,
    prompt_weight: float,
    digit_ids: Collection[int] = (),
    digit_weight: float = 1.0,
) -> Rows:
    """A dialogue's samples in one row (B = 1), each starting where it leaves the one before.

    Args:
      prompt_weight: weight of predicting a prompt token; a reply token has weight 1.
      digit_weight: weight of predicting one of `digit_ids` in a reply.
    """
    sequences = [np.concatenate([one.prompt_ids, one.response_ids]) for one in examples]
    # Samples share at most their prompts' tokens but the last, so that every reply token is
    # predicted at a position of its own.
    tree = lay_out(sequences, [len(one.prompt_ids) - 1 for one in examples])
    T = len(tree.tokens_T)
    targets_T, weights_T = np.zeros(T, np.int32), np.zeros(T, np.float32)
    is_reply_T, is_digit_T = np.zeros(T, bool), np.zeros(T, bool)
    digits = np.fromiter(digit_ids, np.int32)
    # Backwards, so that at a shared position the first sample's target is the one that stays.
    for one, ids, path in reversed(list(zip(examples, sequences, tree.paths, strict=True))):
        first = len(one.prompt_ids) - 1
        targets_T[path[:-1]] = ids[1:]
        weights_T[path[:first]] = prompt_weight
        is_digit = np.isin(one.response_ids, digits)
        weights_T[path[first:-1]] = np.where(is_digit, digit_weight, 1.0)
        is_reply_T[path[first:-1]], is_digit_T[path[first:-1]] = True, is_digit
    in_tree = tree.tokens_T, tree.depths_T, tree.ends_T
    return Rows(*(x[None] for x in (*in_tree, targets_T, weights_T, is_reply_T, is_digit_T)))


def stack_rows(rows: Sequence[Rows], length: int) -> Rows:
    """All rows, of at most `length` tokens each, as one batch."""

    def stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.pad(x, ((0, 0), (0, length - x.shape[1]))) for x in arrays])

    return Rows(*map(stacked, zip(*rows, strict=True)))


def endless_batches(rows: Sequence[Rows], *, tokens_per_step: int, seed: int) -> Iterator[Rows]:
    """Batches of rows of similar length, in a seeded order, epoch after epoch.

    A length with too few rows for a step joins the next longer one; the few longest rows form a
    batch of their own. An epoch leaves out what does not fill a batch, each epoch other rows.

    Raises:
      InputError: all rows together do not fill a step.
    """
    by_length: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        length = -(-row.num_tokens // ROW_MULTIPLE) * ROW_MULTIPLE
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
        for index in rng.permutation(len(batches)):
            length, members = batches[index]
            yield stack_rows([rows[int(i)] for i in members], length)
