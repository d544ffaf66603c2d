"""How much arithmetic a step is, and how much the devices could do: throughput and MFU.

Only useful work counts: tokens that rows hold (no padding), pairs of a query and a key that it
sees (no masked ones), the head at replies' tokens. With frozen weights the backward pass is one
matrix product a weight, that of the input's gradient; what it computes again is not counted.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from emodistill.batches import Work
from emodistill.model import Qwen2Config

PEAK_FLOPS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "TPU v6": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}
"""Dense bfloat16 products a second by the makers' data sheets; whole words, in this order."""

CPU_MATRIX, MATRIX = 1536, 8192
"""Sizes of the products by which the peak of a device that is not listed is measured: large enough
to reach it, small enough for a few tenths of a second."""


def forward_flops(config: Qwen2Config, work: Work) -> float:
    """Operations of the forward pass over a step's rows: two for each weight and token."""
    weights = _qkv_weights(config) + config.hidden_size * (
        config.num_heads * config.head_dim + 3 * config.intermediate_size
    )
    head = config.vocab_size * config.hidden_size
    products = config.num_layers * weights * work.num_tokens + head * work.num_reply_tokens
    return 2.0 * products + _attention_flops(config, work)


def training_flops(config: Qwen2Config, work: Work) -> float:
    """Operations of forward and backward pass.

    Attention's backward pass is two products for each one. The first layer's projections of
    queries, keys and values have none: the frozen embedding, which they take, needs no gradient.
    """
    unneeded = 2 * _qkv_weights(config) * work.num_tokens
    return 2 * forward_flops(config, work) + _attention_flops(config, work) - unneeded


def _qkv_weights(config: Qwen2Config) -> int:
    """Numbers in a layer's projections of queries, keys and values."""
    return config.hidden_size * config.head_dim * (config.num_heads + 2 * config.num_kv_heads)


def _attention_flops(config: Qwen2Config, work: Work) -> int:
    """Scores and weighted sums of the forward pass: two products for each pair and head."""
    width = config.num_heads * config.head_dim
    return 4 * config.num_layers * width * work.num_attention_pairs


def peak_flops(devices: Sequence[Any], dtype: DTypeLike) -> float:
    """What the devices could do together in `dtype`; measured where they are not listed."""
    first = devices[0]
    each = listed_peak(first.device_kind) if jnp.dtype(dtype) == jnp.bfloat16 else None
    if each is None:
        size = CPU_MATRIX if first.platform == "cpu" else MATRIX
        each = _measured_once(size, jnp.dtype(dtype).name)
    # The virtual CPU devices of a process share its processor.
    return each * len({d.process_index if d.platform == "cpu" else d.id for d in devices})


def listed_peak(kind: str) -> float | None:
    """The data sheet's figure for a device of that kind."""
    for name, peak in PEAK_FLOPS.items():
        if re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", kind):
            return peak
    return None


def measured_peak(size: int, dtype: str = "float32") -> float:
    """The best of three products of two square matrices, operations a second."""
    square = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(square, square))
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        jax.block_until_ready(product(square, square))
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


_measured_once = functools.cache(measured_peak)
