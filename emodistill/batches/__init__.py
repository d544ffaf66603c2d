"""Samples as arrays: focal turns tokenised (`examples`), merged into trees (`trees`), packed into
rows (`packing`) and dealt out in steps (`packed`)."""

from emodistill.batches.examples import Example, ExampleSet, build_examples
from emodistill.batches.packed import Batch, PackedBatches, Step, Work
from emodistill.batches.packing import RowShape

__all__ = [
    "Batch",
    "Example",
    "ExampleSet",
    "PackedBatches",
    "RowShape",
    "Step",
    "Work",
    "build_examples",
]
