"""Samples in a seeded order as right-padded arrays of a few fixed shapes.

An optimiser step takes `batch_size` samples whatever their lengths. They are dealt into
micro-batches by length: every sample goes to the shortest of at most four row lengths (chosen for
the data set so that little is padded), and rows of one length make micro-batches of one shape. A
sample's row shape therefore depends on the sample alone, so its log-probs come out of the same
arithmetic in the reference pass and in every epoch, and a trainer compiles once per shape.

Axis letters: B rows, T input tokens, U reply tokens ("utterance").
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from emodistill.batches.examples import Example
from emodistill.errors import InputError
from emodistill.seeding import stream

NUM_LENGTHS = 4
LENGTH_MULTIPLE = 64
REPLY_MULTIPLE = 16

Array = Any
"""Of a batch: np.ndarray as it is made, jax.Array within a compiled program."""


class Batch(NamedTuple):
    """One micro-batch, a pytree; the trainer knows its rows by these fields only.

    `positions_BU[b, u]` is the input position whose *next* token is `targets_BU[b, u]`, the u-th
    token of the reply; `mask_BU` is True where there is one. A row without a sample has length 1
    and an empty mask. The last token of a reply is a target and no input.
    """

    tokens_BT: Array
    """int32, prompt and reply, then zeros."""
    lengths_B: Array
    """int32, real input tokens; attention goes by these, never by token ids."""
    positions_BU: Array
    targets_BU: Array
    mask_BU: Array
    num_samples: Array
    """float32 scalar: samples of the whole optimiser step."""
    num_tokens: Array
    """float32 scalar: reply tokens of the whole optimiser step."""
    advantages_B: Array = None
    """float32, Ã; None outside JPO."""
    ref_logp_BU: Array = None
    """float32, the reference's log-probs of the targets; None outside JPO."""


class Step(NamedTuple):
    """What one optimiser step learns from."""

    batches: tuple[Batch, ...]
    sample_ids: tuple[str, ...]
    """In the order of the permutation."""


class RowShape(NamedTuple):
    """The shape of a micro-batch."""

    num_rows: int
    num_tokens: int
    num_reply_tokens: int


class PaddedBatches:
    """Ordered and padded batches over a fixed list of samples.

    Every epoch is a permutation of its own, `stream(seed, "order", epoch)`; steps cut through the
    epochs laid end to end, so all have `batch_size` samples but perhaps the very last. A step
    depends on its number alone, which is all that a resumed run needs to know.

    Args:
      examples: the samples.
      batch_size: samples per optimiser step.
      seed, num_epochs: of the order.
      max_micro_tokens: bound of rows × row length of a micro-batch (a longer row stands alone).
      row_multiple: what the number of rows must be divisible by, for a mesh that splits them.
      advantages: Ã per sample, for JPO.

    Raises:
      InputError: no samples, a sample without a reply, or advantages that don't match or are not
        finite.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int,
        seed: int,
        num_epochs: int,
        max_micro_tokens: int = 1024,
        row_multiple: int = 1,
        advantages: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        if not examples:
            raise InputError("there is no sample to train on; are there judged focal turns?")
        for example in examples:
            if not len(example.response_ids) or not len(example.prompt_ids):
                raise InputError(
                    f"{example.sample_id}: the batch would be masked throughout, since prompt or "
                    "reply has no token. Leave the turn out."
                )
        self.examples = tuple(examples)
        self.batch_size, self.seed, self.num_epochs = batch_size, seed, num_epochs
        self._advantages_N = None
        if advantages is not None:
            self._advantages_N = np.asarray(advantages, np.float32)
            if self._advantages_N.shape != (len(examples),):
                raise InputError(
                    f"advantages has shape {self._advantages_N.shape} for {len(examples)} samples."
                )
            if not np.isfinite(self._advantages_N).all():
                place = int(np.flatnonzero(~np.isfinite(self._advantages_N))[0])
                raise InputError(
                    f"{examples[place].sample_id}: advantage {self._advantages_N[place]} is not "
                    "finite; leave out turns without a score."
                )
        self._ref_logp_NU: np.ndarray | None = None
        num_inputs = np.array([example.num_tokens - 1 for example in self.examples])
        lengths = row_lengths(num_inputs)
        longest = max(len(example.response_ids) for example in self.examples)
        num_reply_tokens = -(-longest // REPLY_MULTIPLE) * REPLY_MULTIPLE
        self.shapes = tuple(
            RowShape(
                max(1, min(batch_size, max_micro_tokens // length) // row_multiple) * row_multiple,
                length,
                min(num_reply_tokens, length),
            )
            for length in lengths
        )
        self._shape_N = np.searchsorted(lengths, num_inputs)

    @property
    def num_steps(self) -> int:
        """Steps in `num_epochs` epochs."""
        return -(-len(self.examples) * self.num_epochs // self.batch_size)

    @property
    def num_reply_tokens(self) -> int:
        """U of the widest shape."""
        return max(shape.num_reply_tokens for shape in self.shapes)

    def set_reference(self, ref_logp_NU: np.ndarray) -> None:
        """Give every sample the reference log-probs of its reply, [N, num_reply_tokens]."""
        expected = (len(self.examples), self.num_reply_tokens)
        if ref_logp_NU.shape != expected:
            raise InputError(
                f"reference log-probs have shape {ref_logp_NU.shape}, these samples {expected}. "
                "Delete the file; it is computed again."
            )
        self._ref_logp_NU = ref_logp_NU

    def indices(self, step: int) -> np.ndarray:
        """Positions (in `examples`) of the samples of `step`, counted from 0."""
        size = len(self.examples)
        start = step * self.batch_size
        stop = min(start + self.batch_size, size * self.num_epochs)
        if not 0 <= start < stop:
            raise IndexError(f"step {step} is not among the {self.num_steps} steps.")
        epochs = range(start // size, (stop - 1) // size + 1)
        order = np.concatenate([_permutation(self.seed, epoch, size) for epoch in epochs])
        offset = epochs[0] * size
        return order[start - offset : stop - offset]

    def sample_ids(self, step: int) -> tuple[str, ...]:
        """The samples of `step` by name."""
        return tuple(self.examples[i].sample_id for i in self.indices(step))

    def step(self, step: int) -> Step:
        """The micro-batches of `step`."""
        indices = self.indices(step)
        num_tokens = sum(len(self.examples[i].response_ids) for i in indices)
        totals = np.float32(len(indices)), np.float32(num_tokens)
        batches = tuple(self._pad(shape, rows, *totals) for shape, rows in self._deal(indices))
        return Step(batches, self.sample_ids(step))

    def all_rows(self) -> Iterator[tuple[np.ndarray, Batch]]:
        """Every sample once, in the rows that training uses: (positions in `examples`, batch)."""
        for shape, rows in self._deal(np.arange(len(self.examples))):
            yield rows, self._pad(shape, rows, np.float32(1), np.float32(1))

    def _deal(self, indices: np.ndarray) -> Iterator[tuple[RowShape, np.ndarray]]:
        for number, shape in enumerate(self.shapes):
            members = indices[self._shape_N[indices] == number]
            for start in range(0, len(members), shape.num_rows):
                yield shape, members[start : start + shape.num_rows]

    def _pad(
        self, shape: RowShape, rows: np.ndarray, num_samples: np.float32, num_tokens: np.float32
    ) -> Batch:
        B, T, U = shape
        tokens_BT, lengths_B = np.zeros((B, T), np.int32), np.ones(B, np.int32)
        positions_BU, targets_BU = np.zeros((B, U), np.int32), np.zeros((B, U), np.int32)
        mask_BU = np.zeros((B, U), bool)
        for b, i in enumerate(rows):
            prompt, response = self.examples[i].prompt_ids, self.examples[i].response_ids
            p, u = len(prompt), len(response)
            tokens_BT[b, :p], tokens_BT[b, p : p + u - 1] = prompt, response[:-1]
            lengths_B[b] = p + u - 1
            positions_BU[b, :u] = np.arange(p - 1, p - 1 + u)
            targets_BU[b, :u], mask_BU[b, :u] = response, True
        advantages_B = ref_logp_BU = None
        if self._advantages_N is not None:
            advantages_B = np.zeros(B, np.float32)
            advantages_B[: len(rows)] = self._advantages_N[rows]
        if self._ref_logp_NU is not None:
            ref_logp_BU = np.zeros((B, U), np.float32)
            ref_logp_BU[: len(rows)] = self._ref_logp_NU[rows, :U]
            ref_logp_BU[~mask_BU] = 0.0
        return Batch(
            tokens_BT=tokens_BT,
            lengths_B=lengths_B,
            positions_BU=positions_BU,
            targets_BU=targets_BU,
            mask_BU=mask_BU,
            num_samples=num_samples,
            num_tokens=num_tokens,
            advantages_B=advantages_B,
            ref_logp_BU=ref_logp_BU,
        )


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return stream(seed, "order", epoch).permutation(size)


def row_lengths(
    lengths: np.ndarray, *, num_lengths: int = NUM_LENGTHS, multiple: int = LENGTH_MULTIPLE
) -> list[int]:
    """At most `num_lengths` row lengths, multiples of `multiple`, that pad the least in total.

    Exact, by dynamic programming over the lengths that occur (rounded up); ascending.
    """
    candidates, counts = np.unique(-(-lengths // multiple) * multiple, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    best = candidates * below[1:]  # tokens of all rows up to candidate j in rows of its length
    last: list[np.ndarray] = [np.full(len(candidates), -1)]
    for _ in range(min(num_lengths, len(candidates)) - 1):
        # [i, j]: candidates up to i as before, those of i+1..j in rows of length j
        cost = best[:, None] + candidates * (below[1:] - below[1:, None])
        cost = np.where(np.tri(len(candidates), dtype=bool), np.iinfo(np.int64).max, cost)
        choice = cost.argmin(axis=0)
        better = cost[choice, np.arange(len(candidates))] < best
        last.append(np.where(better, choice, -1))
        best = np.minimum(best, cost[choice, np.arange(len(candidates))])
    chosen, end = set(), len(candidates) - 1
    for choice in reversed(last):
        chosen.add(int(candidates[end]))
        end = int(choice[end]) if choice[end] >= 0 else end
    return sorted(chosen)
