"""An adapter merged into its base: W + scale · B A, as a checkpoint folder that needs no adapter.

The sum is formed in float32 and stored in the base's own dtype. In bfloat16 the rounding may be as
large as the update of a weight, so it is measured and told: an adapter beside its base stays exact.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emodistill.errors import InputError
from emodistill.model.adapters import layer_factors
from emodistill.model.peft_options import module_path
from emodistill.model.qwen2 import Qwen2
from emodistill.model.weights import INDEX_FILE, open_safetensors, weight_files
from emodistill.tensor_files import write_tensors

COPIED = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("chat_template.jinja", "chat_template.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", INDEX_FILE),
)
"""What stands beside the weights of a checkpoint and is as true of the merged one."""


class MergeErrors(NamedTuple):
    """By how much the stored weights differ from the exact sum, over all adapted weights."""

    largest: float
    mean: float
    mean_update: float
    """The mean of |scale · B A|, to compare with."""
    share: float
    """Root mean square of the error over that of the update."""

    def __str__(self) -> str:
        return (
            f"rounding error of the merged weights: {self.mean:.2g} on average, {self.largest:.2g} "
            f"at most; the adapter changes a weight by {self.mean_update:.2g} on average (error "
            f"over change, root mean squares: {self.share:.2%})"
        )


def save_merged(model: Qwen2, source: Path, folder: Path) -> MergeErrors:
    """Write the base checkpoint in `source` with `model`'s adapter merged in, to `folder`.

    One file of weights at a time; names, files and dtypes stay those of `source`.

    Raises:
      InputError: the model has no LoRA, or `source` is no checkpoint or `folder` itself.
    """
    if model.lora is None:
        raise InputError("the model has no LoRA to merge; add_lora or load_adapter comes first.")
    if folder.resolve() == source.resolve():
        raise InputError(f"{folder} is the base model's own folder; name another one.")
    updates = {
        f"{module_path(layer, target)}.weight": (a_RI, b_OR)
        for layer, target, a_RI, b_OR in layer_factors(model)
    }
    scale = np.float32(model.lora.scale)
    largest = total = total_update = squares = squares_update = 0.0
    num_weights = 0
    folder.mkdir(parents=True, exist_ok=True)
    for path in weight_files(source):
        with open_safetensors(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        for name in tensors.keys() & updates.keys():
            a_RI, b_OR = updates[name]
            update_OI = scale * (b_OR @ a_RI)
            exact_OI = tensors[name].astype(np.float32) + update_OI
            tensors[name] = exact_OI.astype(tensors[name].dtype)
            error_OI = np.abs(tensors[name].astype(np.float32) - exact_OI)
            largest = max(largest, float(error_OI.max()))
            total += float(error_OI.sum(dtype=np.float64))
            total_update += float(np.abs(update_OI).sum(dtype=np.float64))
            squares += float(np.square(error_OI, dtype=np.float64).sum())
            squares_update += float(np.square(update_OI, dtype=np.float64).sum())
            num_weights += error_OI.size
        write_tensors(folder / path.name, tensors, metadata or {"format": "pt"})
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return MergeErrors(
        largest,
        total / num_weights,
        total_update / num_weights,
        math.sqrt(squares / squares_update) if squares_update else 0.0,
    )
