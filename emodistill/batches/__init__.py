"""Samples as arrays: focal turns tokenised (`examples`), then ordered and padded (`padded`)."""

from emodistill.batches.examples import Example, ExampleSet, build_examples
from emodistill.batches.padded import Batch, PaddedBatches, RowShape, Step

__all__ = [
    "Batch",
    "Example",
    "ExampleSet",
    "PaddedBatches",
    "RowShape",
    "Step",
    "build_examples",
]
