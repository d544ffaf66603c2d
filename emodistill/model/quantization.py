"""Frozen projections in 8 or 4 bits: integers or QLoRA's NormalFloat codes, scaled by blocks.

Weights only: a layer's projections become full numbers again just before they are used, so the
arithmetic is that of the model's dtype. Embedding, head, norms and biases stay as they are. The
work is qwix's (extra `quantize`).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from emodistill.configs import Quantization
from emodistill.errors import InputError
from emodistill.model.config import ParamPath

SCALE_BLOCK = 64
"""Inputs that share a scale, as in QLoRA (arXiv 2305.14314)."""


def is_quantizable(path: ParamPath) -> bool:
    """Whether the parameter with that path is a projection's weight."""
    return path[0] == "layers" and path[-2].endswith("_proj") and path[-1] == "weight"


@functools.partial(jax.jit, static_argnums=1)
def quantized(weight_LOI: jax.Array, kind: Quantization) -> Any:
    """A qwix.QArray of `weight_LOI`: same shape, a scale for every (up to) 64 inputs.

    Raises:
      InputError: the extra `quantize` is not installed.
    """
    try:
        import qwix  # optional
    except ModuleNotFoundError:
        raise InputError(
            f"quantize={kind!r} takes the extra `quantize`: pip install 'emodistill[quantize]'."
        ) from None
    return qwix.quantize(
        weight_LOI,
        kind,
        channelwise_axes=(0, 1),
        tiled_axes={2: math.gcd(weight_LOI.shape[2], SCALE_BLOCK)},
    )


def quantize_abstractly(model: Any, kind: Quantization) -> None:
    """Quantize the projections of a model that has shapes only (`nnx.eval_shape`), in place."""
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if is_quantizable(path):
            variable.set_value(quantized(variable.get_value(), kind))


def dequantized(weight: Any, dtype: Any) -> jax.Array:
    """Full numbers again; arrays that are none of qwix's pass through.

    NormalFloat codes are looked up by comparing with each, not by qwix's gather: that compiles for
    TPUs in a ninth of the time and leaves a sharded weight where it is.
    """
    if isinstance(weight, jax.Array):
        return weight
    # Without the barrier XLA unpacks the codes of all layers before the loop over them.
    values = jax.lax.optimization_barrier(weight.qvalue)
    if weight.qtype == "nf4":
        codes = values.astype(jnp.int32)
        values = functools.reduce(
            lambda out, item: jnp.where(codes == item[0], item[1], out),
            enumerate(_normal_float_table()),
            jnp.zeros(codes.shape, dtype),
        )
    width = weight.shape[-1] // weight.scale.shape[-1]
    return values.astype(dtype) * jnp.repeat(weight.scale.astype(dtype), width, axis=-1)


@functools.cache
def _normal_float_table() -> tuple[float, ...]:
    import qwix  # optional

    with jax.ensure_compile_time_eval():
        codes = jnp.arange(16, dtype=jnp.uint4)
        table = qwix.QArray(qvalue=codes, scale=jnp.ones(1, jnp.float32), qtype="nf4")
        return tuple(map(float, qwix.dequantize(table)))
