"""The systems whose selectors learn from dialogues that they play, and their files.

<folder>/selector.json           what the arrays belong to: system, faults, reward, seed, budget
<folder>/selector.safetensors    matrix; payoff, answers; values, reliability, epsilon
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from emodistill.configs import SHIPPED, RewardKind, SpokenLabels
from emodistill.errors import InputError
from emodistill.files import write_json
from emodistill.selectors.emodebt import EmoDebtFaults, EmoDebtLearner
from emodistill.selectors.emomas import (
    AGENTS,
    NUM_CONTEXTS,
    EmoMASFaults,
    EmoMASLearner,
    EmoMASSelector,
)
from emodistill.selectors.eq_negotiator import EQFaults, EQLearner, EQSelector
from emodistill.selectors.evoemo import EvoEmoFaults, EvoEmoLearner
from emodistill.selectors.learning import Learner, MarkovSelector, Setup, switched
from emodistill.selectors.seven import SEVEN
from emodistill.tensor_files import write_tensors
from emodistill.train.selector_files import ARRAYS, DESCRIPTION, read_arrays
from emodistill.untrusted import read_typed

if TYPE_CHECKING:
    from emodistill.selectors.selector import Selector

SCHEMA = 1
_SQUARE = (len(SEVEN), len(SEVEN))


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A system of related work."""

    learner: Callable[[Setup], Learner]
    selector: Callable[[Mapping[str, np.ndarray], Setup], Selector]
    """The trained selector, from its arrays."""
    arrays: Mapping[str, tuple[int, ...]]
    """The shapes of its arrays."""
    faults: type[Any]
    """A dataclass with a switch for each fault of the published code."""
    dialogues: int | None
    """The budget of the publication; None for three dialogues of each training scenario."""
    reads_emotions: bool
    """Whether it looks at the other side's emotion, so that somebody has to hear it."""


def _markov(arrays: Mapping[str, np.ndarray], setup: Setup) -> Selector:
    return MarkovSelector(arrays["matrix"], setup.labels)


def _eq(arrays: Mapping[str, np.ndarray], setup: Setup) -> Selector:
    faults = switched(EQFaults, setup.faults)
    return EQSelector(arrays["payoff"], arrays["answers"], faults, setup.labels)


def _emomas(arrays: Mapping[str, np.ndarray], setup: Setup) -> Selector:
    return EmoMASSelector(
        arrays["values"],
        arrays["reliability"],
        float(arrays["epsilon"][0]),
        switched(EmoMASFaults, setup.faults),
        setup.labels,
    )


SYSTEMS: Mapping[str, System] = {
    "evoemo": System(
        learner=EvoEmoLearner,
        selector=_markov,
        arrays={"matrix": _SQUARE},
        faults=EvoEmoFaults,
        dialogues=240,
        reads_emotions=False,
    ),
    "emodebt": System(
        learner=EmoDebtLearner,
        selector=_markov,
        arrays={"matrix": _SQUARE},
        faults=EmoDebtFaults,
        dialogues=60,
        reads_emotions=False,
    ),
    "eq-negotiator": System(
        learner=EQLearner,
        selector=_eq,
        arrays={"payoff": _SQUARE, "answers": _SQUARE},
        faults=EQFaults,
        dialogues=None,
        reads_emotions=True,
    ),
    "emomas": System(
        learner=EmoMASLearner,
        selector=_emomas,
        arrays={
            "values": (NUM_CONTEXTS, len(SEVEN)),
            "reliability": (len(AGENTS), NUM_CONTEXTS, len(SEVEN)),
            "epsilon": (1,),
        },
        faults=EmoMASFaults,
        dialogues=500,
        reads_emotions=True,
    ),
}
"""By name."""


def system_of(method: str) -> System:
    """The system of a method, in either form."""
    return SYSTEMS[method.removesuffix(SHIPPED)]


def fault_names(method: str) -> tuple[str, ...]:
    """The switches of a method's system."""
    return system_of(method).faults.__slots__


def make_learner(setup: Setup) -> Learner:
    """A learner that has seen nothing yet."""
    return SYSTEMS[setup.method].learner(setup)


class _TrainedDescription(msgspec.Struct):
    """`selector.json`."""

    system: Literal["evoemo", "emodebt", "eq-negotiator", "emomas"]
    seed: int
    dialogues: int
    faults: tuple[str, ...]
    reward: RewardKind
    labels: SpokenLabels
    emotion_reader: Literal["model", "simulator", "none"]


def save_trained(
    directory: Path, setup: Setup, arrays: Mapping[str, np.ndarray], emotion_reader: str
) -> None:
    """Write the folder; the description comes last, so that a torn write is no selector.

    Args:
      emotion_reader: who heard the other side's emotions in training.
    """
    directory.mkdir(parents=True, exist_ok=True)
    kept = {name: np.ascontiguousarray(array, np.float64) for name, array in arrays.items()}
    write_tensors(directory / ARRAYS, kept)
    rest = setup._asdict()
    description = {
        "schema": SCHEMA,
        "system": rest.pop("method"),
        **rest,
        "emotion_reader": emotion_reader,
        "emotions": list(SEVEN),
    }
    write_json(directory / DESCRIPTION, description)


def trained_setup(directory: Path) -> tuple[Setup, str]:
    """What a trained selector was made from, and who heard the other side's emotions.

    Raises:
      InputError: there is none, or another version wrote it.
    """
    path = directory / DESCRIPTION
    if not path.is_file():
        raise InputError(
            f"{path} is missing: no trained selector there. Run train_selector.py first."
        )
    again = "Train it again with train_selector.py."
    if read_typed(path, dict[str, Any], again).get("schema") != SCHEMA:
        raise InputError(f"{path}: this version reads schema={SCHEMA}. {again}")
    found = read_typed(path, _TrainedDescription, again)
    if unknown := set(found.faults) - set(fault_names(found.system)):
        raise InputError(f"{path}: {found.system} has no fault {min(unknown)!r}. {again}")
    setup = Setup(
        found.system, found.seed, found.dialogues, found.faults, found.reward, found.labels
    )
    return setup, found.emotion_reader


def is_trained_for(directory: Path, method: str) -> bool:
    """Whether a folder's selector is of that system, and in its form: `-shipped` has all faults and
    its own reward."""
    setup, _ = trained_setup(directory)
    is_shipped = set(setup.faults) == set(fault_names(setup.method)) and setup.reward == "own"
    return (setup.method, is_shipped) == (method.removesuffix(SHIPPED), method.endswith(SHIPPED))


def load_trained(directory: Path, method: str | None = None) -> Selector:
    """The selector that training left in a folder.

    Args:
      method: whose selector it has to be, `-shipped` for one as published; any if None.

    Raises:
      InputError: it is missing, torn, not finite, or another system's.
    """
    setup, _ = trained_setup(directory)
    if method is not None and not is_trained_for(directory, method):
        found = ", ".join(setup.faults) or "none"
        raise InputError(
            f"{directory} holds a selector of {setup.method} (faults: {found}; reward: "
            f"{setup.reward}), not of {method}. "
            "Name a cell of that method with --cells selector CELL, or leave --cells out."
        )
    arrays = read_arrays(directory)
    system = SYSTEMS[setup.method]
    shapes = {name: array.shape for name, array in arrays.items()}
    if shapes != dict(system.arrays) or any(a.dtype != np.float64 for a in arrays.values()):
        raise InputError(
            f"{directory / ARRAYS} has arrays {shapes}, where {setup.method} has "
            f"{dict(system.arrays)} in float64. Train the selector again."
        )
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(
                f"{directory / ARRAYS}: {name} is not finite. Train the selector again."
            )
    return system.selector(arrays, setup)
