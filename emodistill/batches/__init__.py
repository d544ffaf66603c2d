"""Samples as arrays: focal turns tokenised (`examples`), merged into trees (`prefix_trees`),
grouped into steps (`step_order`), packed into rows (`row_packing`) and handed out as micro-batches
(`packed_batches`). The student's pretraining reads whole dialogues instead (`dialogue_rows`)."""

from emodistill.batches.examples import Example, build_examples
from emodistill.batches.packed_batches import (
    Batch,
    PackedBatches,
    RoundBatches,
    Step,
    Work,
    empty_batch,
)
from emodistill.batches.row_packing import RowShape

__all__ = [
    "Batch",
    "Example",
    "PackedBatches",
    "RoundBatches",
    "RowShape",
    "Step",
    "Work",
    "build_examples",
    "empty_batch",
]
