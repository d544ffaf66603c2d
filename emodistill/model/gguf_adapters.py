"""Adapters as GGUF files for llama.cpp (`--lora FILE`), in float32, written by the package `gguf`.

llama.cpp computes W x + (alpha / rank) B A x, with the names of its own weights and `.lora_a`,
`.lora_b` behind them. Its Llama-type models rotate neighbouring pairs of a head's rows where
Hugging Face's rotate its two halves, so the rows of q and k are stored in another order there; B's
rows go with them. Qwen2 and Qwen3 are stored as they are.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from emodistill.errors import InputError
from emodistill.files import replacing
from emodistill.model.adapters import layer_factors
from emodistill.model.qwen2 import Qwen2

NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
"""What llama.cpp calls the projections of a layer, the same for all our architectures."""


def save_gguf_adapter(model: Qwen2, path: Path, name: str) -> None:
    """Write `model`'s LoRA to the GGUF file `path`.

    Args:
      name: what the file says it is called.

    Raises:
      InputError: the model has no LoRA, or the package `gguf` is not installed.
    """
    if model.lora is None:
        raise InputError("the model has no LoRA to save; add_lora or load_adapter comes first.")
    gguf = gguf_package()
    config = model.config
    num_heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
    with replacing(path) as partial:
        writer = gguf.GGUFWriter(partial, config.architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, model.lora.alpha)
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for layer, target, a_RI, b_OR in layer_factors(model):
            if config.architecture == "llama" and target in num_heads:
                b_OR = paired_rows(b_OR, num_heads[target])
            weight = f"blk.{layer}.{NAMES[target]}.weight"
            writer.add_tensor(f"{weight}.lora_a", a_RI)
            writer.add_tensor(f"{weight}.lora_b", np.ascontiguousarray(b_OR))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def paired_rows(matrix_OX: np.ndarray, num_heads: int) -> np.ndarray:
    """The rows of each head with those next to each other that are rotated together.

    Row i of a head's first half and row i of its second half become rows 2i and 2i + 1.
    """
    O, X = matrix_OX.shape  # noqa: E741
    return matrix_OX.reshape(num_heads, 2, -1, X).swapaxes(1, 2).reshape(O, X)


def halved_rows(matrix: np.ndarray, num_heads: int) -> np.ndarray:
    """The inverse of `paired_rows`; a bias [O] has its rows in the same order."""
    rows, *rest = matrix.shape
    paired = matrix.reshape(num_heads, rows // num_heads // 2, 2, *rest)
    return paired.swapaxes(1, 2).reshape(matrix.shape)


def gguf_package() -> Any:
    """The package `gguf`.

    Raises:
      InputError: it is not installed.
    """
    try:
        return importlib.import_module("gguf")
    except ModuleNotFoundError:
        raise InputError(
            "GGUF files are read and written by the package gguf: pip install 'emodistill[gguf]'."
        ) from None
