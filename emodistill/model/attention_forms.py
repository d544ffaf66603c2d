"""Which form of tree attention a program gets: XLA's loops, or the kernels for GPUs.

Both take the same heads and give the same result but for its last bits; each has its own plan of
what is seen, which the kernels' is made once for all layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from emodistill.configs import AttentionForm
from emodistill.errors import InputError
from emodistill.model import sharding
from emodistill.model.attention import group_size_for, tree_attention
from emodistill.model.attention_kernels import kernel_attention, seen_blocks, shapes_for

SCOPE = "tree_attention"
"""`jax.named_scope` of all that attention computes; it stands in compiled programs."""
IS_INTERPRETED = False
"""Tests set this, to run the kernels on any device, step by step in JAX."""
MIN_HEAD = 16
"""The narrowest head whose products Triton puts on tensor cores."""
MAX_HEAD = 128
"""The widest head whose blocks fit into shared memory (`attention_kernels.LARGE` and `SMALL`)."""
MIN_CAPABILITY = 8.0
"""Ampere: the first GPUs with bfloat16 and with copies that don't wait."""

Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array]
"""(q [B, T, N, H], k and v [B, T, K, H], the plan) -> [B, T, N, H]."""


def attention_form(
    asked: AttentionForm | None, mesh: Mesh | None, head_dim: int, dtype: DTypeLike
) -> AttentionForm:
    """The form for heads of `head_dim` in `dtype` on `mesh`: `asked`, or else the faster one.

    Raises:
      InputError: kernels are asked for where they can't run.
    """
    if asked == "xla" or IS_INTERPRETED:
        return asked or "pallas"
    problem = _problem(mesh, head_dim, dtype)
    if asked == "pallas" and problem is not None:
        raise InputError(f"attention='pallas' {problem}; leave --attention out, or say xla.")
    return "xla" if problem else "pallas"


def _problem(mesh: Mesh | None, head_dim: int, dtype: DTypeLike) -> str | None:
    """Why the kernels can't run there."""
    if sharding.platform(mesh) != "gpu":
        return f"takes an NVIDIA GPU, and this is a {sharding.platform(mesh).upper()}"
    capability = str(getattr(sharding.first_device(mesh), "compute_capability", "0"))
    if not capability.replace(".", "", 1).isdecimal() or float(capability) < MIN_CAPABILITY:
        return f"takes an NVIDIA GPU of compute capability {MIN_CAPABILITY} or later"
    if not MIN_HEAD <= head_dim <= MAX_HEAD or head_dim & (head_dim - 1):
        return (
            f"takes heads whose width is a power of 2 from {MIN_HEAD} to {MAX_HEAD}, and these "
            f"have {head_dim}"
        )
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"takes bfloat16, and this model is in {jnp.dtype(dtype).name}"
    return None


def planned_attention(
    form: AttentionForm, ends_BT: jax.Array, mesh: Mesh | None, num_heads: int
) -> tuple[Attend, Any]:
    """Attention for rows whose subtrees end at `ends_BT`, and the plan that it takes."""
    if form == "xla":
        group_size = group_size_for(sharding.platform(mesh), num_heads)
        return functools.partial(tree_attention, group_size=group_size), ends_BT
    shapes = shapes_for(sharding.first_device(mesh))
    attend = functools.partial(kernel_attention, shapes=shapes, interpret=IS_INTERPRETED)
    return attend, seen_blocks(ends_BT, shapes)
