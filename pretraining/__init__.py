"""How a student like the one that ships is made, and the weights of the simulated judge.

Part of the checkout. Names are looked up on first use, so that `--help` doesn't wait for JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "judge_fit": ["fit_judge"],
        "pretrain": ["make_embedded"],
        "reading_check": ["reading_table"],
        "voice_check": ["voice_table"],
    },
)
