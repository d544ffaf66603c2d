"""A uniform draw from all 28 emotions at every turn (paper, Eq. 12, second line)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from emodistill.emotions import EMOTIONS

if TYPE_CHECKING:
    from emodistill.negotiation.states import DialogueState


@dataclass(frozen=True, slots=True)
class RandomSelector:
    """Every emotion is as likely as any other, whatever the state."""

    def choose(self, state: DialogueState, rng: np.random.Generator) -> str:
        return EMOTIONS[rng.integers(len(EMOTIONS))]
