"""Every stage as one record, in one table, run by one function.

`run(Cell(SFTConfig(...)))` makes what the stage lacks, compares its manifest, and goes on where
it was.

The stub file beside this one says where each name is from; it is looked up on first use, as stages
are in the table: a sweep doesn't wait for what trainings import.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
