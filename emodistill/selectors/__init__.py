"""Who picks the emotion of a player's next turn.

The stub file beside this one says where each name is from; it is looked up on first use, so that a
sweep, whose emotions are a seeded plan, doesn't load what trained selectors need.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
