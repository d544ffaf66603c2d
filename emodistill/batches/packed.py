"""The steps of training: samples in a seeded order, packed into rows of a few fixed shapes.

Which samples a step learns from is settled once and does not depend on how they are packed: runs
of samples that share most of their prompts, in a seeded order, `batch_size` samples a step. Every
epoch takes the same steps in another order. A sample therefore always stands in the same row, and
its log-probs come out of the same arithmetic in the reference pass and in every epoch.

Axis letters: B rows, T places, M scored places of a row; S samples, U reply tokens ("utterance").
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from emodistill.batches.examples import Example
from emodistill.batches.packing import (
    NUM_TRIED,
    MicroBatch,
    StepSamples,
    candidate_shapes,
    choose_shapes,
    pack,
)
from emodistill.batches.trees import common_prefix, lay_out, prefix_key
from emodistill.configs import Packing
from emodistill.errors import InputError
from emodistill.seeding import stream

NUM_NEIGHBOURS = 16
"""Units that share most of their prompts come in runs of at most so many, to the same step."""
NUM_CHOICES = 32
REPLY_MULTIPLE = 16

Array = Any
"""Of a batch: np.ndarray as it is made, jax.Array within a compiled program."""


class Batch(NamedTuple):
    """One micro-batch, a pytree; the trainer knows its rows by these fields only.

    `parents_BM[b, m]` is a place in row b from which `targets_BM[b, m]`, a token of a reply, is
    predicted; `slots_SU[s, u]` says where among those B · M stands the u-th token of sample s. A
    place with several children, or a reply that two samples have in common, is scored once for
    each. The last token of a reply is a target and no input.
    """

    tokens_BT: Array
    """int32, then zeros."""
    positions_BT: Array
    """int32, depths in the tree."""
    ends_BT: Array
    """int32, the first place after each place's subtree; padding sees itself alone."""
    parents_BM: Array
    targets_BM: Array
    slots_SU: Array
    mask_SU: Array
    """True where there is a token."""
    num_samples: Array
    """float32 scalar: samples of the whole optimiser step."""
    num_tokens: Array
    """float32 scalar: reply tokens of the whole optimiser step."""
    advantages_S: Array = None
    """float32; None where no advantages are learnt from."""
    ref_logp_SU: Array = None
    """float32, the reference's log-probs of the targets; None without a reference."""


class Work(NamedTuple):
    """What a step computes."""

    num_places: int
    """In all rows, padding included."""
    num_tokens: int
    """Of them taken."""
    num_visible: int
    """Pairs of a query and a key that it sees."""
    num_replies: int
    """Reply tokens of its samples."""


class Step(NamedTuple):
    """What one optimiser step learns from."""

    batches: tuple[Batch, ...]
    numbers: tuple[int, ...]
    """Its samples, by their places in `examples`."""
    work: Work


class PackedBatches:
    """Ordered and packed batches over a fixed list of samples.

    A step depends on its number alone, which is all that a resumed run needs to know. The last
    step of an epoch may have fewer samples, and stands anywhere in it.

    Args:
      examples: the samples.
      batch_size: samples (or units) per optimiser step.
      seed, num_epochs: of the order.
      packing: how samples share rows.
      max_micro_tokens: places of a micro-batch on each device (a longer sample stands alone).
      row_multiple: what the number of rows must be divisible by, for a mesh that splits them.
      unit_size: so many samples, one after the other in `examples`, belong to the same
        micro-batch: 2 for pairs.
      advantages: one per sample.

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
        packing: Packing = "tree",
        max_micro_tokens: int = 1024,
        row_multiple: int = 1,
        unit_size: int = 1,
        advantages: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        _check_examples(examples, unit_size)
        self.examples = tuple(examples)
        self.batch_size, self.seed, self.num_epochs = batch_size, seed, num_epochs
        self.packing: Packing = packing
        self.unit_size = unit_size
        self._advantages_N = _finite_advantages(advantages, self.examples)
        self._ref_logp_NU: np.ndarray | None = None
        self._steps = self._compose()
        candidates = candidate_shapes(
            self._longest_unit(), max_micro_tokens, row_multiple, packing, unit_size
        )
        stride = -(-len(self._steps) // NUM_TRIED)
        tried = [self._samples(step) for step in self._steps[::stride]]
        shapes = choose_shapes(tried, candidates)
        self._packed = [tuple(pack(self._samples(step), shapes)) for step in self._steps]
        used = {micro.shape for micro in self._micro_batches()}
        self.shapes = tuple(shape for shape in shapes if shape in used)
        replies_N = np.array([len(example.response_ids) for example in self.examples])
        self.num_reply_tokens = _rounded(int(replies_N.max()))
        most = dict.fromkeys(self.shapes, int(replies_N.reshape(-1, unit_size).sum(axis=1).max()))
        for micro in self._micro_batches():
            most[micro.shape] = max(most[micro.shape], *map(self._num_scored, micro.rows))
        self._num_scored_places = {shape: _rounded(number) for shape, number in most.items()}

    @property
    def num_steps(self) -> int:
        """Steps in `num_epochs` epochs."""
        return len(self._steps) * self.num_epochs

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of all sample ids and token ids, order included."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(example.sample_id.encode() + b"\0")
            for ids in (example.prompt_ids, example.response_ids):
                digest.update(len(ids).to_bytes(4, "little") + ids.astype("<i4").tobytes())
        return digest.hexdigest()

    @property
    def identity(self) -> dict[str, Any]:
        """What decides in which row a sample stands, beside the samples."""
        return {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "packing": self.packing,
            "unit_size": self.unit_size,
            "shapes": [list(shape) for shape in self.shapes],
        }

    def set_reference(self, ref_logp_NU: np.ndarray) -> None:
        """Give every sample the reference log-probs of its reply, [N, num_reply_tokens]."""
        expected = (len(self.examples), self.num_reply_tokens)
        if ref_logp_NU.shape != expected:
            raise InputError(
                f"reference log-probs have shape {ref_logp_NU.shape}, these samples {expected}. "
                "Delete the file; it is computed again."
            )
        if not np.isfinite(ref_logp_NU).all():
            place = int(np.flatnonzero(~np.isfinite(ref_logp_NU).all(axis=1))[0])
            raise InputError(
                f"{self.examples[place].sample_id}: a reference log-prob is not finite. Delete the "
                "file; it is computed again."
            )
        self._ref_logp_NU = ref_logp_NU

    def sample_ids(self, step: int) -> tuple[str, ...]:
        """The samples of `step` by name."""
        return tuple(self.examples[i].sample_id for i in self._steps[self._place(step)])

    def step(self, step: int) -> Step:
        """The micro-batches of `step`."""
        place = self._place(step)
        return self._built(self._packed[place], self._steps[place])

    def alone(self, number: int) -> Step:
        """A step of that sample (or of its whole unit) alone, in rows of the usual shapes."""
        first = number - number % self.unit_size
        numbers = np.arange(first, first + self.unit_size)
        return self._built(pack(self._samples(numbers), self.shapes), numbers)

    def all_rows(self) -> Iterator[tuple[list[int], Batch]]:
        """Every sample once, in the rows that training uses: (samples by slot, batch)."""
        for numbers, packed in zip(self._steps, self._packed, strict=True):
            for micro in packed:
                yield self._slots(micro, numbers), self._fill(micro, numbers)

    @property
    def num_tokens(self) -> int:
        """Places that an epoch takes; sample by sample it would be the sum of their lengths."""
        return sum(micro.num_tokens for micro in self._micro_batches())

    @property
    def num_places(self) -> int:
        """Places of an epoch's rows, padding included."""
        shapes = (micro.shape for micro in self._micro_batches())
        return sum(shape.num_rows * shape.num_tokens for shape in shapes)

    def _micro_batches(self) -> Iterator[MicroBatch]:
        for packed in self._packed:
            yield from packed

    def _place(self, step: int) -> int:
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} is not among the {self.num_steps} steps.")
        epoch, place = divmod(step, len(self._steps))
        return int(stream(self.seed, "order", epoch).permutation(len(self._steps))[place])

    def _inputs(self, number: int) -> np.ndarray:
        example = self.examples[number]
        return np.concatenate([example.prompt_ids, example.response_ids[:-1]])

    def _compose(self) -> list[np.ndarray]:
        """The samples of each step, unit by unit.

        A step takes one run of neighbours of each of its places, in a seeded order; the last is, of
        the next few, the one that makes it about as large as the others, so that few row lengths
        fit all.
        """
        num_units = len(self.examples) // self.unit_size
        num_steps, num_over = divmod(num_units, self.batch_size)
        places = _run_lengths(self.batch_size)
        pieces = [*enumerate(places)] * num_steps
        pieces += [(len(places), length) for length in _run_lengths(num_over)]  # of the short step
        units = sorted(
            range(num_units), key=lambda unit: prefix_key(self._inputs(unit * self.unit_size))
        )
        runs: list[list[list[int]]] = [[] for _ in range(len(places) + 1)]
        start = 0
        for i in stream(self.seed, "cut").permutation(len(pieces)):
            place, length = pieces[i]
            runs[place].append(units[start : start + length])
            start += length
        *full, over = runs
        shuffled = [self._shuffled(of_place, place) for place, of_place in enumerate(full)]
        sizes = {run[0]: self._run_size(run) for of_place in shuffled for run in of_place}
        target = sum(sizes.values()) / max(1, num_steps)
        steps = []
        for number in range(num_steps):
            chosen = [of_place[number] for of_place in shuffled[:-1]]
            rest = target - sum(sizes[run[0]] for run in chosen)
            few = shuffled[-1][:NUM_CHOICES]
            best = min(range(len(few)), key=lambda i: abs(sizes[few[i][0]] - rest))
            chosen.append(shuffled[-1].pop(best))
            steps.append([unit for run in chosen for unit in run])
        if over:
            steps.append([unit for run in over for unit in run])
        members = np.arange(self.unit_size)
        return [
            (np.array(step)[:, None] * self.unit_size + members[None]).reshape(-1) for step in steps
        ]

    def _shuffled(self, runs: list[list[int]], place: int) -> list[list[int]]:
        return [runs[i] for i in stream(self.seed, "runs", place).permutation(len(runs))]

    def _run_size(self, run: Sequence[int]) -> int:
        """Places that the units of a run take in one tree, about."""
        inputs = [self._inputs(unit * self.unit_size) for unit in run]
        merged = sum(common_prefix(*pair) for pair in itertools.pairwise(inputs))
        return sum(map(len, inputs)) - merged

    def _samples(self, numbers: np.ndarray) -> StepSamples:
        inputs = [self._inputs(number) for number in numbers]
        return StepSamples(numbers.tolist(), inputs, self.packing, self.unit_size)

    def _longest_unit(self) -> int:
        if self.packing == "none" or self.unit_size == 1:
            return max(example.num_tokens for example in self.examples) - 1
        numbers = np.arange(len(self.examples)).reshape(-1, self.unit_size)
        return max(self._samples(unit).places_from(0, 2**31)[0] for unit in numbers)

    def _num_scored(self, numbers: Iterable[int]) -> int:
        return sum(len(self.examples[number].response_ids) for number in numbers)

    def _tree(self, row: Sequence[int]) -> Any:
        limits = None if self.packing == "tree" else [0] * len(row)
        return lay_out([self._inputs(number) for number in row], limits)

    def _slots(self, micro: MicroBatch, numbers: np.ndarray) -> list[int]:
        """The samples of a micro-batch, unit by unit."""
        by_unit = numbers.reshape(-1, self.unit_size)
        return [int(number) for unit in micro.units for number in by_unit[unit]]

    def _built(self, packed: Sequence[MicroBatch], numbers: np.ndarray) -> Step:
        batches = tuple(self._fill(micro, numbers) for micro in packed)
        num_tokens = sum(micro.num_tokens for micro in packed)
        work = Work(
            num_places=sum(batch.tokens_BT.size for batch in batches),
            num_tokens=num_tokens,
            num_visible=num_tokens + sum(int(batch.positions_BT.sum()) for batch in batches),
            num_replies=self._num_scored(numbers),
        )
        return Step(batches, tuple(map(int, numbers)), work)

    def _fill(self, micro: MicroBatch, numbers: np.ndarray) -> Batch:
        (B, T), M = micro.shape, self._num_scored_places[micro.shape]
        S, U = self.batch_size * self.unit_size, self.num_reply_tokens
        tokens_BT, positions_BT = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
        ends_BT = np.tile(np.arange(1, T + 1, dtype=np.int32), (B, 1))
        parents_BM, targets_BM = np.zeros((B, M), np.int32), np.zeros((B, M), np.int32)
        slots_SU, mask_SU = np.zeros((S, U), np.int32), np.zeros((S, U), bool)
        members = self._slots(micro, numbers)
        slot_of = {number: slot for slot, number in enumerate(members)}
        for b, row in enumerate(micro.rows):
            tree = self._tree(row)
            size = len(tree.tokens_T)
            tokens_BT[b, :size], positions_BT[b, :size] = tree.tokens_T, tree.depths_T
            ends_BT[b, :size] = tree.ends_T
            first = 0
            for number, path in zip(row, tree.paths, strict=True):
                response, slot = self.examples[number].response_ids, slot_of[number]
                after = first + len(response)
                parents_BM[b, first:after] = path[-len(response) :]
                targets_BM[b, first:after] = response
                slots_SU[slot, : len(response)] = np.arange(b * M + first, b * M + after)
                mask_SU[slot, : len(response)] = True
                first = after
        advantages_S = ref_logp_SU = None
        if self._advantages_N is not None:
            advantages_S = np.zeros(S, np.float32)
            advantages_S[: len(members)] = self._advantages_N[members]
        if self._ref_logp_NU is not None:
            ref_logp_SU = np.zeros((S, U), np.float32)
            ref_logp_SU[: len(members)] = self._ref_logp_NU[members]
            ref_logp_SU[~mask_SU] = 0.0
        return Batch(
            tokens_BT=tokens_BT,
            positions_BT=positions_BT,
            ends_BT=ends_BT,
            parents_BM=parents_BM,
            targets_BM=targets_BM,
            slots_SU=slots_SU,
            mask_SU=mask_SU,
            num_samples=np.float32(len(numbers)),
            num_tokens=np.float32(self._num_scored(numbers)),
            advantages_S=advantages_S,
            ref_logp_SU=ref_logp_SU,
        )


def _run_lengths(number: int) -> list[int]:
    """So many units in runs of about the same length, `NUM_NEIGHBOURS` at most."""
    num_runs = -(-number // NUM_NEIGHBOURS)
    return [number // num_runs + (i < number % num_runs) for i in range(num_runs)]


def _rounded(number: int) -> int:
    return -(-number // REPLY_MULTIPLE) * REPLY_MULTIPLE


def _check_examples(examples: Sequence[Example], unit_size: int) -> None:
    if not examples:
        raise InputError("there is no sample to train on; are there judged focal turns?")
    if len(examples) % unit_size:
        raise InputError(f"{len(examples)} samples can't be taken by {unit_size}.")
    for example in examples:
        if not len(example.response_ids) or not len(example.prompt_ids):
            raise InputError(
                f"{example.sample_id}: the batch would be masked throughout, since prompt or reply "
                "has no token. Leave the turn out."
            )


def _finite_advantages(
    advantages: Sequence[float] | np.ndarray | None, examples: Sequence[Example]
) -> np.ndarray | None:
    if advantages is None:
        return None
    advantages_N = np.asarray(advantages, np.float32)
    if advantages_N.shape != (len(examples),):
        raise InputError(f"advantages has shape {advantages_N.shape} for {len(examples)} samples.")
    if not np.isfinite(advantages_N).all():
        place = int(np.flatnonzero(~np.isfinite(advantages_N))[0])
        raise InputError(
            f"{examples[place].sample_id}: advantage {advantages_N[place]} is not finite; leave "
            "out turns without a score."
        )
    return advantages_N
