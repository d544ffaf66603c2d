"""What every selector is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from emodistill.negotiation.states import DialogueState


class Selector(Protocol):
    """A policy over emotions.

    It keeps no memory between calls: what it may look at is in `state`, what it may draw with is
    `rng`, so that dialogues can be interleaved, resumed and replayed.
    """

    def choose(self, state: DialogueState, rng: np.random.Generator) -> str | None:
        """The label for the turn to come, None for a turn without an emotion block."""
        ...
