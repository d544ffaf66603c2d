"""Adapters on disk in PEFT's layout, so that PEFT and vLLM load them as they are.

    adapter_config.json         rank, alpha, targets, the base model's name
    adapter_model.safetensors   base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight, …

The safetensors metadata carry the base's fingerprint, and an adapter of another base is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from flax import nnx

from emodistill.errors import InputError
from emodistill.files import write_json
from emodistill.model.config import LoRAConfig, read_json_object
from emodistill.model.fingerprint import base_fingerprint
from emodistill.model.lora import LoRAParam, add_lora, target_layers
from emodistill.model.peft_options import PLAIN_OPTIONS, ModuleForm, PeftOptions, module_path
from emodistill.model.processes import is_first, to_host
from emodistill.model.qwen2 import Qwen2
from emodistill.model.sharding import put_like
from emodistill.model.weights import check_dtype, open_safetensors
from emodistill.tensor_files import write_tensors
from emodistill.untrusted import brief

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


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
    for layer, target, a_RI, b_OR in layer_factors(model):
        tensors[_name(layer, target, "A")], tensors[_name(layer, target, "B")] = a_RI, b_OR
    metadata = {"format": "pt", "base_fingerprint": base_fingerprint(model)}
    if not is_first():
        return
    write_tensors(folder / WEIGHTS_FILE, tensors, metadata)
    alpha = model.lora.alpha
    config = {
        **PLAIN_OPTIONS,
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


def load_adapter(model: Qwen2, folder: Path | str) -> LoRAConfig:
    """Put the adapter in `folder` onto `model`, in place, and give its form.

    A model without LoRA gets one of the adapter's rank, alpha and targets; a model whose LoRA is
    of that very form gets the adapter's values. Where ranks or scales differ between modules, the
    LoRA has the largest rank and the scale 1: zeros fill up the others, and B takes their scales.

    Raises:
      InputError: a file is missing or torn, the adapter uses an option of PEFT that is not
        implemented, or numbers that are not finite, or its base, layers, shapes or targets are not
        `model`'s.
    """
    folder = Path(folder)
    fields = read_json_object(folder / CONFIG_FILE, "name a folder with an adapter in PEFT layout")
    options = PeftOptions.read(fields, folder / CONFIG_FILE)
    forms = options.forms(model.config.num_layers)
    config = options.lora_config(forms)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise InputError(f"{path} is missing; an adapter folder holds it beside {CONFIG_FILE}.")
    with open_safetensors(path) as file:
        names = list(file.keys())
        for name in names:
            check_dtype(path, name, file.get_slice(name))
        tensors = {name: file.get_tensor(name) for name in names}
        fingerprint = (file.metadata() or {}).get("base_fingerprint")
    if fingerprint is not None and fingerprint != base_fingerprint(model):
        base = fields.get("base_model_name_or_path") or "its base model"
        raise InputError(
            f"{folder} was trained on another base model ({fingerprint[:12]}…, here "
            f"{base_fingerprint(model)[:12]}…); load {base} first."
        )
    values = _stack(tensors, model, config, forms, path)
    if model.lora is None:
        add_lora(model, config.rank, config.alpha, config.targets)
    elif model.lora != config:
        raise InputError(
            f"{folder} is {config}, but the model has {model.lora}; load the base model again."
        )
    for target, factor, variable in _factors(model):
        variable.set_value(put_like(values[target, factor], variable[...]))
    return config


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


def layer_factors(model: Qwen2) -> Iterator[tuple[int, str, np.ndarray, np.ndarray]]:
    """Layer, target, A [R, I] and B [O, R] of each adapted projection, float32 on the host."""
    layers = target_layers(model)
    for target in model.lora.targets if model.lora else ():
        lora = layers[target].lora
        stacked = zip(to_host(lora.a[...]), to_host(lora.b[...]), strict=True)
        for layer, factors in enumerate(stacked):
            a_RI, b_OR = (np.ascontiguousarray(factor, np.float32) for factor in factors)
            yield layer, target, a_RI, b_OR


def _factors(model: Qwen2) -> Iterator[tuple[str, str, LoRAParam]]:
    """The factors A and B of each adapted projection, stacked over layers."""
    layers = target_layers(model)
    for target in model.lora.targets if model.lora else ():
        lora = layers[target].lora
        yield target, "A", lora.a
        yield target, "B", lora.b


def _name(layer: int, target: str, factor: str) -> str:
    return f"base_model.model.{module_path(layer, target)}.lora_{factor}.weight"


def _stack(
    tensors: dict[str, np.ndarray],
    model: Qwen2,
    config: LoRAConfig,
    forms: Mapping[str, Sequence[ModuleForm]],
    path: Path,
) -> dict[tuple[str, str], np.ndarray]:
    """The factors [L, …] of each target out of `tensors`, every name and shape checked.

    Factors of a smaller rank than `config` has are filled up with zeros, which add nothing to
    B A; what a module's scale has over that of `config` goes into its B.
    """
    layers, stacked = target_layers(model), {}
    for target in config.targets:
        num_layers, O, I = layers[target].weight.shape  # noqa: E741
        for layer, (rank, _) in enumerate(forms[target]):  # before anything of that rank is made
            for factor, shape in (("A", (rank, I)), ("B", (O, rank))):
                name = _name(layer, target, factor)
                if name not in tensors:
                    raise InputError(
                        f"{path}: {name} is missing; the adapter is of another model or torn."
                    )
                if tensors[name].shape != shape:
                    raise InputError(
                        f"{path}: {name} has shape {list(tensors[name].shape)}, but this model and "
                        f"rank {rank} ask for {list(shape)}."
                    )
        a_LRI = np.zeros((num_layers, config.rank, I), np.float32)
        b_LOR = np.zeros((num_layers, O, config.rank), np.float32)
        for layer, (rank, scale) in enumerate(forms[target]):
            a_LRI[layer, :rank] = tensors.pop(_name(layer, target, "A"))
            b_LOR[layer, :, :rank] = tensors.pop(_name(layer, target, "B"))
            if scale != config.scale:
                b_LOR[layer] *= np.float32(scale / config.scale)
        for factor, values in (("A", a_LRI), ("B", b_LOR)):
            if not np.isfinite(values).all():
                raise InputError(f"{path}: {target} has factors {factor} that are not finite.")
            stacked[target, factor] = values
    for name in tensors:
        raise InputError(
            f"{path}: {brief(name)} is unexpected; the model has no such adapted layer."
        )
    return stacked
