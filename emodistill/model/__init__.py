"""The language model: Qwen2 in Flax NNX, its files, LoRA, generation and tokenization.

The stub file beside this one says where each name is from; it is looked up on first use, so that
importing the package costs no jax.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
