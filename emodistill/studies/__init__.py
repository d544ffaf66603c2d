"""All stages in order, and grids of them: the quickstart, and the studies behind the tables.

The stub file beside this one says where each name is from; it is looked up on first use, so that
`--help` doesn't load what they run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
