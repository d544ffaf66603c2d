"""Selectors that nothing was trained for: one emotion at every turn, or a uniform draw (Eq. 12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from emodistill.emotions import EMOTION_INDEX, EMOTIONS
from emodistill.errors import InputError

if TYPE_CHECKING:
    from emodistill.negotiation.states import DialogueState


@dataclass(frozen=True, slots=True)
class FixedSelector:
    """Always `emotion`; None leaves the emotion block out.

    Raises:
      InputError: `emotion` is no GoEmotions label.
    """

    emotion: str | None

    def __post_init__(self) -> None:
        if self.emotion is not None and self.emotion not in EMOTION_INDEX:
            raise InputError(
                f"emotion={self.emotion!r} is none of the 28 labels: {', '.join(EMOTION_INDEX)}."
            )

    def choose(self, state: DialogueState, rng: np.random.Generator) -> str | None:
        return self.emotion


@dataclass(frozen=True, slots=True)
class RandomSelector:
    """Every emotion of `emotions` is as likely as any other, whatever the state."""

    emotions: Sequence[str] = EMOTIONS

    def choose(self, state: DialogueState, rng: np.random.Generator) -> str:
        return self.emotions[rng.integers(len(self.emotions))]
