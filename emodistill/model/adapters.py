"""Adapters on disk in PEFT's layout, so that PEFT and vLLM load them as they are.

    adapter_config.json         rank, alpha, targets, the base model's name
    adapter_model.safetensors   base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight, …

The safetensors metadata carry the base's fingerprint, and an adapter of another base is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from emodistill.errors import InputError
from emodistill.files import write_json
from emodistill.model.config import ATTENTION_TARGETS, TARGETS, LoRAConfig
from emodistill.model.fingerprint import base_fingerprint
from emodistill.model.lora import LoRA, LoRAParam, add_lora, target_layers
from emodistill.model.processes import is_first, to_host
from emodistill.model.qwen2 import Qwen2
from emodistill.model.sharding import place_like
from emodistill.model.weights import open_safetensors
from emodistill.tensor_files import write_tensors

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# PEFT options that change what the weights mean, and the only value understood here.
_PLAIN_OPTIONS: Mapping[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "modules_to_save": None,
    "trainable_token_indices": None,
}


def save_adapter(model: Qwen2, folder: Path | str, base_model_name: str) -> None:
    """Write `model`'s LoRA into `folder`; of several processes, the first one does.

    Args:
      base_model_name: what PEFT and vLLM are to load below it, a folder or a hub name.

    Raises:
      InputError: the model has no LoRA.
    """
    if model.lora is None:
        raise InputError("the model has no LoRA to save; add_lora or load_adapter comes first.")
    folder = Path(folder)
    tensors = {}
    for target, lora in _loras(model):
        a_LRI, b_LOR = to_host(lora.a[...]), to_host(lora.b[...])
        for layer in range(model.config.num_layers):
            tensors[_name(layer, target, "A")] = np.ascontiguousarray(a_LRI[layer], np.float32)
            tensors[_name(layer, target, "B")] = np.ascontiguousarray(b_LOR[layer], np.float32)
    metadata = {"format": "pt", "base_fingerprint": base_fingerprint(model)}
    if not is_first():
        return
    write_tensors(folder / WEIGHTS_FILE, tensors, metadata)
    alpha = model.lora.alpha
    config = {
        **_PLAIN_OPTIONS,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_name,
        "r": model.lora.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,  # vLLM wants an int
        "lora_dropout": 0.0,
        "target_modules": list(model.lora.targets),
        "init_lora_weights": True,
        "inference_mode": True,
    }
    write_json(folder / CONFIG_FILE, config)


def load_adapter(model: Qwen2, folder: Path | str) -> None:
    """Put the adapter in `folder` onto `model`, in place.

    A model without LoRA gets one of the adapter's rank, alpha and targets; a model whose LoRA is
    of that very form gets the adapter's values.

    Raises:
      InputError: a file is missing or torn, the adapter uses an option of PEFT that changes its
        meaning, or its base, layers, shapes or targets are not those of `model`.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise InputError(f"{path} is missing; an adapter folder holds it beside {CONFIG_FILE}.")
    with ExitStack() as stack:
        file = open_safetensors(path, stack)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        made_on = (file.metadata() or {}).get("base_fingerprint")
    if made_on is not None and made_on != base_fingerprint(model):
        raise InputError(
            f"{folder} was trained on another base model ({made_on[:12]}…, here "
            f"{base_fingerprint(model)[:12]}…); load {_base_name(folder)} first."
        )
    values = _stack(tensors, model, config, path)
    if model.lora is None:
        add_lora(model, config.rank, config.alpha, config.targets)
    elif model.lora != config:
        raise InputError(
            f"{folder} is {config}, but the model has {model.lora}; load the base model again."
        )
    for target, lora in _loras(model):
        lora.a = LoRAParam(place_like(values[target, "A"], lora.a[...]))
        lora.b = LoRAParam(place_like(values[target, "B"], lora.b[...]))


def adapted(model: Qwen2, folder: Path | str) -> Qwen2:
    """`model` with the adapter in `folder`, beside `model` itself: both hold the same base arrays.

    Raises:
      InputError: as `load_adapter`, or `model` has an adapter.
    """
    if model.lora is not None:
        raise InputError(f"{folder} goes onto a base model; this one has an adapter already.")
    beside = nnx.merge(*nnx.split(model))
    load_adapter(beside, folder)
    return beside


def _loras(model: Qwen2) -> Iterator[tuple[str, LoRA]]:
    layers = target_layers(model)
    for target in model.lora.targets if model.lora else ():
        yield target, layers[target].lora


def _name(layer: int, target: str, factor: str) -> str:
    module = "self_attn" if target in ATTENTION_TARGETS else "mlp"
    return f"base_model.model.model.layers.{layer}.{module}.{target}.lora_{factor}.weight"


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path} is missing; name a folder with an adapter in PEFT layout.")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no JSON ({error}); copy the file again.") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path} must hold a JSON object, not {type(fields).__name__}.")
    return fields


def _base_name(folder: Path) -> str:
    return str(_read_json(folder / CONFIG_FILE).get("base_model_name_or_path") or "its base model")


def _read_config(path: Path) -> LoRAConfig:
    fields = _read_json(path)
    for option, plain in _PLAIN_OPTIONS.items():
        value = fields.get(option, plain)
        if value != plain and not (not value and not plain):
            raise InputError(
                f"{path}: {option}={value!r} is not implemented, only {plain!r}; "
                "export a plain LoRA."
            )
    targets = fields.get("target_modules")
    if not isinstance(targets, list) or not all(target in TARGETS for target in targets):
        raise InputError(
            f"{path}: target_modules={targets!r} must be a list of {', '.join(TARGETS)}."
        )
    for name in ("r", "lora_alpha"):
        if not isinstance(fields.get(name), int | float):
            raise InputError(f"{path}: {name}={fields.get(name)!r} must be a number.")
    try:
        return LoRAConfig(
            rank=fields["r"], alpha=float(fields["lora_alpha"]), targets=tuple(targets)
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _stack(
    tensors: Mapping[str, np.ndarray], model: Qwen2, config: LoRAConfig, path: Path
) -> dict[tuple[str, str], np.ndarray]:
    """The factors [L, …] of each target, every name and shape checked."""
    expected: dict[str, tuple[int, ...]] = {}
    layers = target_layers(model)
    for target in config.targets:
        L, O, I = layers[target].weight.shape  # noqa: E741
        for layer in range(L):
            expected[_name(layer, target, "A")] = (config.rank, I)
            expected[_name(layer, target, "B")] = (O, config.rank)
    for name in [*expected, *tensors]:
        if name not in tensors:
            raise InputError(f"{path}: {name} is missing; the adapter is of another model or torn.")
        if name not in expected:
            raise InputError(f"{path}: {name} is unexpected; the model has no such adapted layer.")
        if tensors[name].shape != expected[name]:
            raise InputError(
                f"{path}: {name} has shape {list(tensors[name].shape)}, but this model and "
                f"rank {config.rank} ask for {list(expected[name])}."
            )
    return {
        (target, factor): np.stack(
            [tensors[_name(layer, target, factor)] for layer in range(model.config.num_layers)]
        ).astype(np.float32)
        for target in config.targets
        for factor in "AB"
    }
