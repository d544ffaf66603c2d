"""The selector's networks as NumPy arrays: their folder on disk, and a forward pass for acting.

    <folder>/selector.json           what the arrays mean: state kind, labels, widths, settings
    <folder>/selector.safetensors    value/0/kernel, value/0/bias, …, critic/…, actor/…

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

from emodistill.configs import StateKind
from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError
from emodistill.files import write_json
from emodistill.tensor_files import write_tensors
from emodistill.untrusted import brief, read_typed

DESCRIPTION = "selector.json"
ARRAYS = "selector.safetensors"
SCHEMA = 1
HEADS = {"value": 1, "critic": len(EMOTIONS), "actor": len(EMOTIONS)}
"""The three networks and how many numbers each gives for a state."""

PolicyKind = Literal["network", "closed-form"]
"""`network` is the policy network fitted by advantage-weighted regression; `closed-form` is
exp(β(Q − V)) itself, normalised over the emotions. The two agree where the data's behaviour was
uniform, as a sweep's is, and the networks fit."""

Layers = tuple[tuple[np.ndarray, np.ndarray], ...]
"""(kernel [inputs, outputs], bias [outputs]) per layer; ReLU between layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorNetworks:
    """V, Q and the policy of a trained selector, float32, and how to read their inputs."""

    value: Layers
    critic: Layers
    actor: Layers
    state: StateKind
    advantage_scale: float
    settings: Mapping[str, Any]
    """The configuration that they were trained under, seed included."""

    @property
    def num_features(self) -> int:
        return self.actor[0][0].shape[0]

    def probabilities(self, observation: np.ndarray, policy: PolicyKind = "network") -> np.ndarray:
        """The policy at one state [S] or several [N, S]: float64 [A] or [N, A], sums to one."""
        if policy == "network":
            return softmax(forward(self.actor, observation).astype(np.float64), axis=-1)
        advantages = forward(self.critic, observation) - forward(self.value, observation)  # Eq. 15
        return softmax(self.advantage_scale * advantages.astype(np.float64), axis=-1)


class _Description(msgspec.Struct):
    """`selector.json`."""

    num_features: Annotated[int, msgspec.Meta(ge=1)]
    num_layers: Annotated[int, msgspec.Meta(ge=1, le=100)]
    state: StateKind
    advantage_scale: float
    settings: dict[str, Any]


def forward(layers: Layers, observation: np.ndarray) -> np.ndarray:
    """A ReLU network on one state [S] or several [N, S]."""
    hidden = observation
    for kernel, bias in layers[:-1]:
        hidden = np.maximum(hidden @ kernel + bias, 0.0)
    kernel, bias = layers[-1]
    return hidden @ kernel + bias


def save_selector(directory: Path, networks: SelectorNetworks) -> None:
    """Write the folder; the description comes last, so that a torn write is no selector."""
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{name}/{layer}/{part}": np.ascontiguousarray(array, dtype=np.float32)
        for name in HEADS
        for layer, pair in enumerate(getattr(networks, name))
        for part, array in zip(("kernel", "bias"), pair, strict=True)
    }
    write_tensors(directory / ARRAYS, arrays)
    description = {
        "schema": SCHEMA,
        "state": networks.state,
        "num_features": networks.num_features,
        "emotions": list(EMOTIONS),
        "num_layers": len(networks.actor),
        "advantage_scale": networks.advantage_scale,
        "settings": dict(networks.settings),
    }
    write_json(directory / DESCRIPTION, description)


def load_selector(directory: Path) -> SelectorNetworks:
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
    try:
        arrays = load_file(directory / ARRAYS)
    except (SafetensorError, OSError, KeyError, AttributeError) as error:
        raise InputError(
            f"{directory} holds no readable selector ({brief(error)}). Train it again."
        ) from None
    num_features = described.num_features
    try:
        networks = {
            name: tuple(
                (arrays[f"{name}/{layer}/kernel"], arrays[f"{name}/{layer}/bias"])
                for layer in range(described.num_layers)
            )
            for name in HEADS
        }
    except KeyError as error:
        raise InputError(
            f"{directory}: {error} is missing from the selector. Train it again."
        ) from None
    for name, layers in networks.items():
        width = num_features
        for layer, (kernel, bias) in enumerate(layers):
            if kernel.dtype != np.float32 or bias.dtype != np.float32:
                raise InputError(
                    f"{directory / ARRAYS}: {name}/{layer} is {kernel.dtype}, not float32. Train "
                    "the selector again."
                )
            if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
                raise InputError(
                    f"{directory / ARRAYS}: {name}/{layer} is not finite. Train the selector again."
                )
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
        state=described.state,
        advantage_scale=described.advantage_scale,
        settings=described.settings,
    )
