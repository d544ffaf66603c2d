"""Settings of the selectors that learn from dialogues which they play themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from emodistill.configs.base import (
    configuration,
    data_from,
    require,
    setting,
)
from emodistill.configs.data import DialogueConfig, EmotionReaderKind

SHIPPED = "-shipped"
"""Ends the name of a system with all faults of its published code."""
DEFAULT_SELECTOR = "evoemo"
SelectorMethod = Literal[
    "evoemo",
    "evoemo-shipped",
    "emodebt",
    "emodebt-shipped",
    "eq-negotiator",
    "eq-negotiator-shipped",
    "emomas",
    "emomas-shipped",
]
RewardKind = Literal["utility", "own"]
SpokenLabels = Literal["seven", "wide"]


@configuration
class SelectorConfig(DialogueConfig):
    """A selector of related work, trained by dialogues on the training scenarios
    (docs/relatives.md)."""

    stage = "selector"
    method: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(get_args(SelectorMethod))}}}")] = (
        DEFAULT_SELECTOR
    )
    """The system, repaired, or with all faults of its published code (`-shipped`)."""
    data_from: Path | None = data_from()
    """Another run, whose scenarios are read in place of this one's."""
    dialogues: int | None = setting(None, ge=1, hint="leave it out for the system's own budget")
    """The budget: 240 for evoemo, 60 for emodebt, 500 for emomas and three for each scenario for
    eq-negotiator, if left out."""
    faults: tuple[str, ...] = ()
    """Faults of its published code that are switched on one by one, by their names in
    docs/relatives.md."""
    reward: RewardKind = "utility"
    """What is learned from: the utility of a dialogue, or the system's own formula."""
    labels: SpokenLabels = "seven"
    """What is asked of the writer: one of seven emotions, or (`wide`) a label of its group."""
    emotion_reader: EmotionReaderKind | None = None
    """Who hears the other side's emotion: a language model (`--reader`), the simulator's ear, or
    nobody (`none`). If left out, the model, and on the simulator its ear."""
    focal_temperature: float = setting(0.7, ge=0, le=2)
    """Sampling temperature in the focal role."""

    def __post_init__(self) -> None:
        DialogueConfig.__post_init__(self)
        systems = get_args(SelectorMethod)
        require(
            self.method in systems,
            f"--method {self.method} is no system that learns from dialogues of its own; use one "
            f"of {', '.join(systems)}. IQL and its controls are trained by train_iql.py.",
        )
        require(
            not (self.is_shipped and (self.faults or self.reward != "utility")),
            f"--method {self.method} has all faults and its own reward; leave out --faults and "
            f"--reward, or name {self.system}.",
        )
        require(len(set(self.faults)) == len(self.faults), "--faults names one twice.")

    @property
    def is_shipped(self) -> bool:
        """Whether all faults are on."""
        return self.method.endswith(SHIPPED)

    @property
    def system(self) -> str:
        """The system, whichever its form."""
        return self.method.removesuffix(SHIPPED)
