"""One row of a given length, filled with samples as far as whole ones go, and then with padding."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from benchmarks.workload import dialogue_examples
from emodistill.batches import Example, PackedBatches, Step
from emodistill.configs import Packing
from emodistill.errors import InputError
from emodistill.seeding import stream


@functools.cache
def _examples(num_scenarios: int, shape: tuple[tuple[str, int], ...]) -> list[Example]:
    return dialogue_examples(
        num_scenarios=num_scenarios, num_dialogues=20, vocab_size=250, **dict(shape)
    )


def filled_step(row: int, packing: Packing, num_scenarios: int, shape: Mapping[str, int]) -> Step:
    """A step of as many neighbouring samples as one row of `row` positions takes.

    Its only micro-batch is that row. The samples come with advantages and log-probs of a reference,
    as JPO wants them.

    Raises:
      InputError: not even one sample fits.
    """
    examples = _examples(num_scenarios, tuple(sorted(shape.items())))

    def packed(number: int) -> PackedBatches:
        return PackedBatches(
            examples[:number],
            batch_size=number,
            seed=0,
            num_epochs=1,
            packing=packing,
            max_micro_tokens=row,
            advantages=stream(0, "bench", "advantages").normal(size=number),
        )

    def fits(number: int) -> bool:
        batches = packed(number)
        return batches.num_positions <= row and len(batches.step(0).batches) == 1

    if not fits(1):
        raise InputError(f"not one of the workload's samples fits into a row of {row} tokens.")
    low, high = 1, 2
    while high <= len(examples) and fits(high):
        low, high = high, 2 * high
    high = min(high, len(examples) + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    batches = packed(low)
    batches.set_reference(np.full((low, batches.num_reply_tokens), -9.0, np.float32))
    step = batches.step(0)
    padding = ((0, 0), (0, row - step.work.num_positions))
    (batch,) = step.batches
    own_end_T = np.arange(1, row + 1, dtype=np.int32)
    ends_BT = np.pad(batch.ends_BT, padding)
    batch = batch._replace(
        tokens_BT=np.pad(batch.tokens_BT, padding),
        positions_BT=np.pad(batch.positions_BT, padding),
        # Padding sees itself alone.
        ends_BT=np.where(ends_BT > 0, ends_BT, own_end_T),
    )
    return step._replace(batches=(batch,), work=step.work._replace(num_positions=row))
