"""The samples of a dialogue in one row, their shared history laid out once.

The student's pretraining reads whole dialogues this way: for the same replies it computes about
half the tokens. A token sees what precedes it on the path of its own sample, and nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from emodistill.batches.examples import Example
from emodistill.batches.prefix_trees import PrefixTree, lay_out
from emodistill.batches.row_packing import round_up
from emodistill.errors import InputError
from emodistill.seeding import stream

Array = Any
"""np.ndarray where a batch is made, jax.Array within a compiled program."""

ROW_MULTIPLE = 128
"""Row lengths are multiples of a query block; each of them is compiled into a program of its
own."""


class DialogueRow(NamedTuple):
    """The samples of one dialogue (T tokens).

    `weights_T` belongs to the prediction of `targets_T`; where two samples part, the next token of
    the first one is predicted.
    """

    tree: PrefixTree
    targets_T: np.ndarray
    weights_T: np.ndarray
    is_reply_T: np.ndarray
    is_digit_T: np.ndarray
    """Digits of a reply."""

    @property
    def num_tokens(self) -> int:
        return len(self.tree.tokens_T)


def merge_samples(
    examples: Sequence[Example],
    *,
    prompt_weight: float,
    digit_ids: Collection[int] = (),
    digit_weight: float = 1.0,
) -> DialogueRow:
    """Lay the samples of a dialogue into one row, each beginning where it leaves the one before.

    Args:
      prompt_weight: of predicting a prompt token, where a reply token has weight 1.
      digit_weight: of predicting one of `digit_ids` in a reply.
    """
    sequences = [np.append(example.prompt_ids, example.response_ids) for example in examples]
    # No sample shares the position before its reply: every reply token is predicted from a position
    # of its own.
    tree = lay_out(sequences, [len(example.prompt_ids) - 1 for example in examples])
    T = len(tree.tokens_T)
    targets_T, weights_T = np.zeros(T, np.int32), np.zeros(T, np.float32)
    is_reply_T, is_digit_T = np.zeros((2, T), bool)
    digits = np.fromiter(digit_ids, np.int32)
    # Backwards, so that the first sample has the last word on what they share.
    for example, ids, path in reversed(list(zip(examples, sequences, tree.paths, strict=True))):
        first = len(example.prompt_ids) - 1
        targets_T[path[:-1]] = ids[1:]
        weights_T[path[:first]] = prompt_weight
        is_digit_U = np.isin(example.response_ids, digits)
        weights_T[path[first:-1]] = np.where(is_digit_U, digit_weight, 1.0)
        is_reply_T[path[first:-1]], is_digit_T[path[first:-1]] = True, is_digit_U
    return DialogueRow(tree, targets_T, weights_T, is_reply_T, is_digit_T)


class DialogueBatch(NamedTuple):
    """Right-padded rows of one length; padding has weight 0."""

    tokens_BT: Array
    positions_BT: Array
    ends_BT: Array
    targets_BT: Array
    weights_BT: Array
    is_reply_BT: Array
    is_digit_BT: Array


def stack_rows(rows: Sequence[DialogueRow], length: int) -> DialogueBatch:
    """Rows of at most `length` tokens as one batch."""
    padded = [
        [np.pad(array, (0, length - len(array))) for array in (*row.tree[:3], *row[1:])]
        for row in rows
    ]
    return DialogueBatch(*map(np.stack, zip(*padded, strict=True)))


def endless_batches(
    rows: Sequence[DialogueRow], *, tokens_per_step: int, seed: int
) -> Iterator[DialogueBatch]:
    """Batches of rows of about one length, in a seeded order, epoch after epoch.

    A length with too few rows for a step joins the next longer one; the longest few make a batch of
    their own. The rows of a length that an epoch leaves over are others in the next epoch.

    Raises:
      InputError: all rows together don't fill a step.
    """
    by_length: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        by_length.setdefault(round_up(row.num_tokens, ROW_MULTIPLE), []).append(index)
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
        for i in rng.permutation(len(batches)):
            length, members = batches[i]
            yield stack_rows([rows[index] for index in members], length)
