"""A trained selector as NumPy arrays: its folder on disk, and a forward pass for acting.

    <folder>/selector.json           what the arrays mean: learner, state kind, labels, settings
    <folder>/selector.safetensors    value/0/kernel, value/0/bias, …, critic/…, actor/…; of a bandit
                                     (`emotion_posterior`) posterior/mean, …/deviation, …/bounds

Free of jax, so that whoever only asks for emotions does not pay for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from scipy.special import softmax

from emodistill.configs import EmotionSet, LearnerName, StateKind
from emodistill.emotions import EMOTION_SETS, EMOTIONS
from emodistill.errors import InputError
from emodistill.files import write_json
from emodistill.tensor_files import write_tensors
from emodistill.train.emotion_posterior import NUM_PHASES, EmotionPosterior
from emodistill.untrusted import brief, read_typed

DESCRIPTION = "selector.json"
ARRAYS = "selector.safetensors"
SCHEMA = 1
HEADS = {"value": 1, "critic": len(EMOTIONS), "actor": len(EMOTIONS)}
"""The networks and how many numbers each gives for a state."""
HEADS_OF: Mapping[str, tuple[str, ...]] = {
    "iql": tuple(HEADS),
    "cloning": ("actor",),
    "dqn": ("critic",),
    "cql": ("critic",),
}
"""Learner -> the networks that it trains. Without an actor, its policy is the emotion with the
largest Q; the closed form needs all three."""
POSTERIOR = ("mean_PA", "deviation_PA", "bounds")

PolicyKind = Literal["network", "closed-form"]
"""`network` is the policy network fitted by advantage-weighted regression; `closed-form` is
exp(β(Q − V)) itself, normalised over the emotions. The two agree where the data's behaviour was
uniform, as a sweep's is, and the networks fit."""

Layers = tuple[tuple[np.ndarray, np.ndarray], ...]
"""(kernel [inputs, outputs], bias [outputs]) per layer; ReLU between layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorNetworks:
    """V, Q and the policy of a trained selector, float32, and how to read their inputs.

    A network that its learner does not train has no layers.
    """

    value: Layers = ()
    critic: Layers = ()
    actor: Layers = ()
    learner: LearnerName = "iql"
    emotions: EmotionSet = "all"
    state: StateKind
    advantage_scale: float
    settings: Mapping[str, Any]
    """The configuration that they were trained under, seed included."""

    @property
    def num_features(self) -> int:
        return (self.actor or self.critic)[0][0].shape[0]

    @property
    def policies(self) -> tuple[PolicyKind, ...]:
        """The policies that it can act by."""
        return ("network", "closed-form") if self.value else ("network",)

    def probabilities(self, observation: np.ndarray, policy: PolicyKind = "network") -> np.ndarray:
        """The policy at one state [S] or several [N, S]: float64 [A] or [N, A], sums to one."""
        if policy == "closed-form":  # Eq. 15
            advantages = forward(self.critic, observation) - forward(self.value, observation)
            logits = self.advantage_scale * advantages.astype(np.float64)
        else:
            logits = forward(self.actor or self.critic, observation).astype(np.float64)
        logits = np.where(self._is_allowed, logits, -np.inf)
        if policy == "network" and not self.actor:
            return np.eye(len(EMOTIONS))[logits.argmax(axis=-1)]
        return softmax(logits, axis=-1)

    @property
    def _is_allowed(self) -> np.ndarray:
        return np.isin(EMOTIONS, EMOTION_SETS[self.emotions])


Selected = SelectorNetworks | EmotionPosterior
"""What training leaves behind: the policy over emotions at a state."""


class _Description(msgspec.Struct):
    """`selector.json`."""

    num_features: Annotated[int, msgspec.Meta(ge=1)]
    num_layers: Annotated[int, msgspec.Meta(ge=0, le=100)]
    state: StateKind
    advantage_scale: float
    settings: dict[str, Any]
    learner: LearnerName = "iql"
    """Selectors of versions that had no other learner don't name it."""
    choice: EmotionSet = "all"


def forward(layers: Layers, observation: np.ndarray) -> np.ndarray:
    """A ReLU network on one state [S] or several [N, S]."""
    hidden = observation
    for kernel, bias in layers[:-1]:
        hidden = np.maximum(hidden @ kernel + bias, 0.0)
    kernel, bias = layers[-1]
    return hidden @ kernel + bias


def save_selector(directory: Path, selected: Selected) -> None:
    """Write the folder; the description comes last, so that a torn write is no selector."""
    directory.mkdir(parents=True, exist_ok=True)
    if isinstance(selected, EmotionPosterior):
        arrays = {f"posterior/{name}": getattr(selected, name) for name in POSTERIOR}
        num_layers, advantage_scale = 0, 0.0
    else:
        arrays = {
            f"{name}/{layer}/{part}": array
            for name in HEADS_OF[selected.learner]
            for layer, pair in enumerate(getattr(selected, name))
            for part, array in zip(("kernel", "bias"), pair, strict=True)
        }
        num_layers = len(selected.actor or selected.critic)
        advantage_scale = selected.advantage_scale
    write_tensors(
        directory / ARRAYS,
        {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()},
    )
    description = {
        "schema": SCHEMA,
        "learner": selected.learner,
        "choice": selected.emotions,
        "state": selected.state,
        "num_features": selected.num_features,
        "emotions": list(EMOTIONS),
        "num_layers": num_layers,
        "advantage_scale": advantage_scale,
        "settings": dict(selected.settings),
    }
    write_json(directory / DESCRIPTION, description)


def read_arrays(directory: Path) -> dict[str, np.ndarray]:
    """The arrays of a trained selector, of whatever kind.

    Raises:
      InputError: the file is missing or torn.
    """
    try:
        return load_file(directory / ARRAYS)
    except (SafetensorError, OSError, KeyError, AttributeError) as error:
        raise InputError(
            f"{directory} holds no readable selector ({brief(error)}). Train it again."
        ) from None


def load_selector(directory: Path) -> Selected:
    """Read the folder that `save_selector` wrote.

    Raises:
      InputError: a file is missing, torn, of another schema or of other emotions.
    """
    path = directory / DESCRIPTION
    if not path.is_file():
        raise InputError(f"{path} is missing: no trained selector there. Run train_iql.py first.")
    description = read_typed(path, dict[str, Any], "Train the selector again.")
    if description.get("schema") != SCHEMA:
        raise InputError(f"{path}: this version reads schema={SCHEMA}. Train the selector again.")
    if description.get("emotions") != list(EMOTIONS):
        raise InputError(f"{path}: its emotions are not the 28 labels used here. Train it again.")
    described = read_typed(path, _Description, "Train the selector again.")
    arrays = read_arrays(directory)
    read = _read_posterior if described.learner in NUM_PHASES else _read_networks
    try:
        return read(directory, described, arrays)
    except KeyError as error:
        raise InputError(
            f"{directory}: {error} is missing from the selector. Train it again."
        ) from None


def _read_networks(
    directory: Path, described: _Description, arrays: Mapping[str, np.ndarray]
) -> SelectorNetworks:
    networks = {
        name: tuple(
            (arrays[f"{name}/{layer}/kernel"], arrays[f"{name}/{layer}/bias"])
            for layer in range(described.num_layers)
        )
        for name in HEADS_OF[described.learner]
    }
    for name, layers in networks.items():
        width = described.num_features
        for layer, (kernel, bias) in enumerate(layers):
            _check_values(directory, f"{name}/{layer}", kernel, bias)
            if kernel.ndim != 2 or kernel.shape[0] != width or bias.shape != kernel.shape[1:]:
                raise InputError(
                    f"{directory / ARRAYS}: {name}/{layer} has kernel {kernel.shape} and bias "
                    f"{bias.shape} where {width} inputs arrive. Train the selector again."
                )
            width = kernel.shape[1]
        if width != HEADS[name]:
            raise InputError(
                f"{directory / ARRAYS}: {name} gives {width} numbers, not {HEADS[name]}."
            )
    return SelectorNetworks(
        **networks,
        learner=described.learner,
        emotions=described.choice,
        state=described.state,
        advantage_scale=described.advantage_scale,
        settings=described.settings,
    )


def _read_posterior(
    directory: Path, described: _Description, arrays: Mapping[str, np.ndarray]
) -> EmotionPosterior:
    values = {name: arrays[f"posterior/{name}"] for name in POSTERIOR}
    _check_values(directory, "posterior", *values.values())
    shape = NUM_PHASES[described.learner], len(EMOTIONS)
    expected = {"mean_PA": shape, "deviation_PA": shape, "bounds": (shape[0] - 1,)}
    if wrong := [name for name in POSTERIOR if values[name].shape != expected[name]]:
        raise InputError(
            f"{directory / ARRAYS}: posterior/{wrong[0]} has shape {values[wrong[0]].shape}, not "
            f"{expected[wrong[0]]}. Train the selector again."
        )
    return EmotionPosterior(
        **values,
        learner=described.learner,
        emotions=described.choice,
        state=described.state,
        settings=described.settings,
    )


def _check_values(directory: Path, name: str, *arrays: np.ndarray) -> None:
    """Refuse arrays that are no finite float32."""
    for array in arrays:
        if array.dtype != np.float32:
            raise InputError(
                f"{directory / ARRAYS}: {name} is {array.dtype}, not float32. Train the selector "
                "again."
            )
        if not np.isfinite(array).all():
            raise InputError(
                f"{directory / ARRAYS}: {name} is not finite. Train the selector again."
            )
