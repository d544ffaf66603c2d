"""The steps of training: samples in a seeded order, packed into rows of a few fixed shapes.

Which samples a step learns from is settled once and does not depend on how they are packed
(`step_order`). Every epoch takes the same steps in another order. A sample therefore always stands
in the same row, and its log-probs come out of the same arithmetic in the reference pass and in
every epoch.

Axes: B rows, T positions of a row, M scored positions of a row; S samples, U tokens of a reply
("utterance"); N samples of the whole data.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from emodistill.batches.examples import Example
from emodistill.batches.prefix_trees import lay_out
from emodistill.batches.row_packing import (
    MicroBatch,
    RowShape,
    StepSamples,
    candidate_shapes,
    choose_shapes,
    pack,
    round_up,
)
from emodistill.batches.step_order import compose_steps
from emodistill.configs import Packing
from emodistill.errors import InputError
from emodistill.seeding import stream

NUM_SAMPLED_STEPS = 64
"""Steps by which the row lengths are chosen; all of a large data set would take minutes."""
REPLY_MULTIPLE = 16
"""Scored positions and reply lengths are rounded up to this, so that shapes of arrays are few."""
COARSE_MULTIPLE = 128
"""The same where samples come in rounds, so that nearly all rounds have the same shapes."""

Array = Any
"""np.ndarray where a batch is made, jax.Array within a compiled program."""


class Batch(NamedTuple):
    """One micro-batch, a pytree; the trainer knows its rows by these fields only.

    From position `parents_BM[b, m]` of row b the model predicts `targets_BM[b, m]`, a token of a
    reply, and `logp_index_SU[s, u]` says which of those B · M predictions is the u-th token of
    sample s. A position with several children, or a reply that two samples have in common, is
    scored once for each. The last token of a reply is a target and no input."""

    tokens_BT: Array
    """int32, padded with zeros."""
    positions_BT: Array
    """int32, rotary positions: the depth of each token in its tree."""
    ends_BT: Array
    """int32, the first position after the subtree of each position; padding sees itself alone."""
    parents_BM: Array
    targets_BM: Array
    logp_index_SU: Array
    mask_SU: Array
    """True where there is a token."""
    num_samples: Array
    """float32 scalar: samples of the whole optimiser step."""
    num_tokens: Array
    """float32 scalar: reply tokens of the whole optimiser step."""
    advantages_S: Array = None
    """float32; None for losses without advantages."""
    ref_logp_SU: Array = None
    """float32, the reference's log-probs of the targets; None without a reference."""
    behavior_logp_SU: Array = None
    """float32, those of the policy that spoke; None where it isn't told from the reference."""
    temperature: Array = None
    """float32 scalar by which the logits are divided; None for 1."""


def empty_batch(shape: RowShape, num_scored: int, num_samples: int, num_reply_tokens: int) -> Batch:
    """The arrays of a micro-batch before any sample is written into them.

    Args:
      num_scored, num_samples, num_reply_tokens: M, S and U.
    """
    in_row, scored = (*shape,), (shape.num_rows, num_scored)
    replies = num_samples, num_reply_tokens
    return Batch(
        tokens_BT=np.zeros(in_row, np.int32),
        positions_BT=np.zeros(in_row, np.int32),
        ends_BT=np.tile(np.arange(1, shape.num_positions + 1, dtype=np.int32), (in_row[0], 1)),
        parents_BM=np.zeros(scored, np.int32),
        targets_BM=np.zeros(scored, np.int32),
        logp_index_SU=np.zeros(replies, np.int32),
        mask_SU=np.zeros(replies, bool),
        num_samples=np.float32(0),
        num_tokens=np.float32(0),
        advantages_S=np.zeros(num_samples, np.float32),
        ref_logp_SU=np.zeros(replies, np.float32),
    )


class Work(NamedTuple):
    """What a step computes."""

    num_positions: int
    """Positions of all rows, padding included."""
    num_tokens: int
    """Positions that hold a token."""
    num_attention_pairs: int
    """Pairs of a query and a key that it sees."""
    num_reply_tokens: int


class Step(NamedTuple):
    """What one optimiser step learns from."""

    batches: tuple[Batch, ...]
    samples: tuple[int, ...]
    """Their indices in `examples`."""
    work: Work


class PackedBatches:
    """Ordered and packed batches over a fixed list of samples.

    A step depends on its number alone, which is all that a resumed run needs to know. The last step
    of an epoch may have fewer samples; it comes at a random point of the epoch.

    Args:
      examples: the samples.
      batch_size: samples (or units) per optimiser step.
      seed, num_epochs: of the order.
      packing: how samples share rows.
      max_micro_tokens: positions of a micro-batch on each device (a longer sample stands alone).
      row_multiple: what the number of rows must be divisible by, for a mesh that splits them.
      unit_size: so many samples, one after the other in `examples`, belong to the same
        micro-batch: 2 for pairs.
      advantages: one per sample.

    Attributes:
      temperature: at which the policy that is trained is sampled: its logits are divided by it.

    Raises:
      InputError: no samples, a sample without a reply, or an advantage that is not finite.
    """

    _multiple = REPLY_MULTIPLE

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
        self.packing: Packing = packing
        self.unit_size = unit_size
        self._advantages_N = None if advantages is None else np.asarray(advantages, np.float32)
        if self._advantages_N is not None:
            self._check_finite(
                self._advantages_N,
                "advantage {value} is not finite; leave out turns without a score.",
            )
        self._ref_logp_NU: np.ndarray | None = None
        self._behavior_logp_NU: np.ndarray | None = None
        self.temperature: float | None = None
        self._inputs = [
            np.concatenate([example.prompt_ids, example.response_ids[:-1]]) for example in examples
        ]
        self._num_replied_N = np.array([len(example.response_ids) for example in examples])
        self.num_reply_tokens = round_up(int(self._num_replied_N.max()), self._multiple)

        units_N = np.arange(len(examples)).reshape(-1, unit_size)
        first_inputs = [self._inputs[unit[0]] for unit in units_N]
        composed = compose_steps(first_inputs, batch_size=batch_size, seed=seed)
        self._steps = [units_N[step].reshape(-1) for step in composed]
        longest = max(map(len, self._inputs))
        if packing != "none" and unit_size > 1:
            longest = max(self._samples(unit).row_sizes(0, 2**31)[0] for unit in units_N)
        candidates = candidate_shapes(longest, max_micro_tokens, row_multiple, packing, unit_size)
        shapes = self._chosen(candidates)
        self._packed = [pack(self._samples(step), shapes) for step in self._steps]
        used = {micro.shape for micro in self._micro_batches()}
        self.shapes = tuple(shape for shape in shapes if shape in used)
        # A row has room for the replies of any unit, so that `step_of_sample` can use its shape.
        fewest = max(map(self._num_scored, units_N))
        self._row_scores = dict.fromkeys(self.shapes, fewest)
        for micro in self._micro_batches():
            most = max(map(self._num_scored, micro.rows))
            self._row_scores[micro.shape] = max(self._row_scores[micro.shape], most)

    @property
    def steps_per_epoch(self) -> int:
        return len(self._steps)

    @property
    def num_steps(self) -> int:
        """Steps in `num_epochs` epochs."""
        return self.steps_per_epoch * self.num_epochs

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
            **({} if self.temperature is None else {"temperature": self.temperature}),
        }

    def set_reference(self, ref_logp_NU: np.ndarray) -> None:
        """Give every sample the reference log-probs of its reply, [N, num_reply_tokens]."""
        self._ref_logp_NU = self._of_replies(ref_logp_NU, "reference")

    def set_behavior(self, behavior_logp_NU: np.ndarray) -> None:
        """Give every sample the log-probs of its reply under the policy that spoke."""
        self._behavior_logp_NU = self._of_replies(behavior_logp_NU, "behavior")

    def _of_replies(self, logp_NU: np.ndarray, name: str) -> np.ndarray:
        """Log-probs with zeros after each reply's end, once they are seen to be usable."""
        expected = (len(self.examples), self.num_reply_tokens)
        if logp_NU.shape != expected:
            raise InputError(
                f"{name} log-probs have shape {logp_NU.shape}, these samples {expected}. "
                "Delete the file; it is computed again."
            )
        self._check_finite(
            logp_NU,
            f"a {name} log-prob is not finite. Delete the file; it is computed again.",
        )
        is_reply_NU = np.arange(self.num_reply_tokens)[None] < self._num_replied_N[:, None]
        return np.where(is_reply_NU, logp_NU, np.float32(0))

    def sample_ids(self, step: int) -> tuple[str, ...]:
        """The samples of `step` by name."""
        return tuple(self.examples[i].sample_id for i in self._steps[self._unshuffled(step)])

    def step(self, step: int) -> Step:
        """The micro-batches of `step`."""
        index = self._unshuffled(step)
        return self._built(self._packed[index], self._steps[index])

    def step_of_sample(self, sample: int) -> Step:
        """A step of that sample (or of its whole unit) alone, in rows of the usual shapes."""
        first = sample - sample % self.unit_size
        unit = np.arange(first, first + self.unit_size)
        return self._built(pack(self._samples(unit), self.shapes), unit)

    def each_batch(self) -> Iterator[tuple[list[int], Batch]]:
        """Every sample once, in the rows that training uses: (the samples along S, micro-batch)."""
        for samples, packed in zip(self._steps, self._packed, strict=True):
            for micro in packed:
                yield list(micro.samples), self._filled(micro, samples)

    @property
    def num_tokens(self) -> int:
        """Positions with a token in an epoch; sample by sample they would be all tokens."""
        return sum(micro.num_tokens for micro in self._micro_batches())

    @property
    def num_positions(self) -> int:
        """Positions of an epoch's rows, padding included."""
        shapes = (micro.shape for micro in self._micro_batches())
        return sum(shape.num_rows * shape.num_positions for shape in shapes)

    def _micro_batches(self) -> Iterator[MicroBatch]:
        for packed in self._packed:
            yield from packed

    def _unshuffled(self, step: int) -> int:
        """Which of an epoch's steps the `step`-th of the run is."""
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} is not among the {self.num_steps} steps.")
        epoch, index = divmod(step, len(self._steps))
        return int(stream(self.seed, "order", epoch).permutation(len(self._steps))[index])

    def _chosen(self, candidates: Sequence[RowShape]) -> Sequence[RowShape]:
        """The shapes of rows, those of `candidates` that suit these samples."""
        stride = -(-len(self._steps) // NUM_SAMPLED_STEPS)
        return choose_shapes([self._samples(step) for step in self._steps[::stride]], candidates)

    def _samples(self, samples: np.ndarray) -> StepSamples:
        inputs = [self._inputs[i] for i in samples]
        return StepSamples(samples.tolist(), inputs, self.packing, self.unit_size)

    def _num_scored(self, samples: Iterable[int]) -> int:
        return int(self._num_replied_N[list(samples)].sum())

    def _built(self, packed: Sequence[MicroBatch], samples: np.ndarray) -> Step:
        batches = tuple(self._filled(micro, samples) for micro in packed)
        num_tokens = sum(micro.num_tokens for micro in packed)
        work = Work(
            num_positions=sum(batch.tokens_BT.size for batch in batches),
            num_tokens=num_tokens,
            # A token sees itself and as many others as it is deep.
            num_attention_pairs=num_tokens + sum(int(b.positions_BT.sum()) for b in batches),
            num_reply_tokens=self._num_scored(samples),
        )
        return Step(batches, tuple(samples.tolist()), work)

    def _filled(self, micro: MicroBatch, samples: np.ndarray) -> Batch:
        """The arrays of a micro-batch of the step that has these samples."""
        M = round_up(self._row_scores[micro.shape], self._multiple)
        S = self.batch_size * self.unit_size
        batch = empty_batch(micro.shape, M, S, self.num_reply_tokens)
        for b, row in enumerate(micro.rows):
            limits = None if self.packing == "tree" else [0] * len(row)
            tree = lay_out([self._inputs[i] for i in row], limits)
            size = len(tree.tokens_T)
            batch.tokens_BT[b, :size] = tree.tokens_T
            batch.positions_BT[b, :size] = tree.depths_T
            batch.ends_BT[b, :size] = tree.ends_T
            first = 0
            for sample, path in zip(row, tree.paths, strict=True):
                response, s = self.examples[sample].response_ids, micro.samples.index(sample)
                length, after = len(response), first + len(response)
                batch.parents_BM[b, first:after] = path[-length:]
                batch.targets_BM[b, first:after] = response
                batch.logp_index_SU[s, :length] = np.arange(b * M + first, b * M + after)
                batch.mask_SU[s, :length] = True
                first = after

        def given(values_S: np.ndarray, values_N: np.ndarray | None) -> np.ndarray | None:
            """What the samples were given, along S; zeros where there is no sample."""
            if values_N is None:
                return None
            values_S[: len(micro.samples)] = values_N[list(micro.samples)]
            return values_S

        return batch._replace(
            num_samples=np.float32(len(samples)),
            num_tokens=np.float32(self._num_scored(samples)),
            advantages_S=given(batch.advantages_S, self._advantages_N),
            ref_logp_SU=given(batch.ref_logp_SU, self._ref_logp_NU),
            behavior_logp_SU=given(np.zeros_like(batch.ref_logp_SU), self._behavior_logp_NU),
            temperature=None if self.temperature is None else np.float32(self.temperature),
        )

    def _check_finite(self, values_N: np.ndarray, message: str) -> None:
        """Refuse the first sample with a value that is not finite, by its name."""
        for example, values in zip(self.examples, values_N, strict=True):
            if not np.isfinite(values).all():
                raise InputError(f"{example.sample_id}: {message.format(value=values)}")


class RoundBatches(PackedBatches):
    """Batches of samples that come in rounds, each of which is packed by itself.

    Shapes that suit the samples of a round would differ from round to round, and programs be
    compiled for each. These are the same in nearly all rounds, and hold more padding.
    """

    _multiple = COARSE_MULTIPLE

    def _chosen(self, candidates: Sequence[RowShape]) -> Sequence[RowShape]:
        return candidates[-1:]
