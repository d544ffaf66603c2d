"""A dialogue's samples in one row, prompts scored too: `lay_out` in the order of the turns.

The student's pretraining reads whole dialogues this way: for the same replies it computes about
half the tokens. A token sees the tokens before it in its own sample, and no others.

Axes: B rows, T positions in a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from emodistill.batches.prefix_trees import lay_out
from emodistill.batches.row_packing import round_up
from emodistill.errors import InputError
from emodistill.seeding import stream

Array = Any
"""In a batch: np.ndarray when it is built, jax.Array within a compiled program."""

ROW_MULTIPLE = 128
"""Row lengths are multiples of this, since each length compiles a program of its own."""


NOTHING, PROMPT, REPLY, FREE_DIGIT, GIVEN, FOREIGN_START = range(6)
"""What a target is: padding, or the end of a sample; a token of a prompt; of a reply; a reply's
digit that is drawn; a token of a figure or a fact that the prompt decides; one of the first tokens
of what somebody else says than the novice."""


class Rows(NamedTuple):
    """Dialogues as rows of one length, padded on the right; all arrays are int32.

    Where two samples part, the next token of the first one is predicted.
    """

    tokens_BT: Array
    positions_BT: Array
    ends_BT: Array
    targets_BT: Array
    kinds_BT: Array
    """Of each position, one of the six above, by what is to be predicted."""

    @property
    def num_tokens(self) -> int:
        """Positions in each row, padding included."""
        return self.tokens_BT.shape[1]


class TokenSample(NamedTuple):
    """A prompt and a reply as token ids, and what is to be predicted in the reply."""

    prompt_ids: Sequence[int]
    reply_ids: Sequence[int]
    reply_kinds: Sequence[int]


def merge_samples(samples: Sequence[TokenSample]) -> Rows:
    """A dialogue's samples in one row (B = 1), each starting where it leaves the one before."""
    sequences = [np.asarray([*one.prompt_ids, *one.reply_ids], np.int32) for one in samples]
    # Samples share at most their prompts' tokens but the last, so that every reply token is
    # predicted at a position of its own.
    tree = lay_out(sequences, [len(one.prompt_ids) - 1 for one in samples])
    targets_T, kinds_T = np.zeros((2, len(tree.tokens_T)), np.int32)
    # Backwards, so that at a shared position the first sample's target is the one that stays.
    for one, ids, path in reversed(list(zip(samples, sequences, tree.paths, strict=True))):
        first = len(one.prompt_ids) - 1
        targets_T[path[:-1]] = ids[1:]
        kinds_T[path[:first]] = PROMPT
        kinds_T[path[first:-1]] = one.reply_kinds
    in_tree = tree.tokens_T, tree.depths_T, tree.ends_T
    return Rows(*(array_T[None] for array_T in (*in_tree, targets_T, kinds_T)))


def stack_rows(rows: Sequence[Rows], length: int) -> Rows:
    """All rows, of at most `length` tokens each, as one batch."""
    padded = [
        [np.pad(array_BT, ((0, 0), (0, length - row.num_tokens))) for array_BT in row]
        for row in rows
    ]
    return Rows(*map(np.concatenate, zip(*padded, strict=True)))


def endless_batches(rows: Sequence[Rows], *, tokens_per_step: int, seed: int) -> Iterator[Rows]:
    """Batches of rows of similar length, in a seeded order, epoch after epoch.

    The rows are cut into batches from the shortest to the longest; those of one length come in
    another order in each epoch, so that all epochs have the same shapes. A row that is longer than
    a step stands alone.

    Raises:
      InputError: all rows together do not fill a step.
    """
    lengths = [round_up(row.num_tokens, ROW_MULTIPLE) for row in rows]
    if (len(rows) + 1) * max(lengths, default=0) <= tokens_per_step:
        raise InputError(
            f"{len(rows)} dialogues do not fill a step of tokens_per_step={tokens_per_step}; "
            "play more, or lower it."
        )
    for epoch in itertools.count():
        rng = stream(seed, "dialogue rows", epoch)
        batches: list[list[int]] = [[]]
        for index in sorted(rng.permutation(len(rows)).tolist(), key=lengths.__getitem__):
            if batches[-1] and (len(batches[-1]) + 1) * lengths[index] > tokens_per_step:
                batches.append([])
            batches[-1].append(index)
        for number in rng.permutation(len(batches)):
            members = batches[int(number)]
            yield stack_rows([rows[index] for index in members], lengths[members[-1]])
