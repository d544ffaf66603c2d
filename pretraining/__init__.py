"""How the embedded student was made, and the weights of the simulated judge; part of the checkout.

`fit_judge` is looked up on first use, so that `--help` doesn't wait for what it imports.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"judge_fit": ["fit_judge"]}
)
