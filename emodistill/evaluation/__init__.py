"""Held-out negotiations and what they say about a method.

The stub file beside this one says where each name is from; it is looked up on first use, so that
importing the package costs no pandas.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
