"""A model's weights in the form from which a processor generates fastest.

Decoding reads all weights for a few rows of tokens. XLA's products on processors want them as
[in, out] and would turn those of the checkpoints around at every step; an adapter beside its base
means eight more small products a layer. So an engine on a processor gets a copy in which the
weights lie the other way and the adapter is merged. That takes the memory of the weights once
more, and is done in float32 alone, where merging loses nothing that counts; models with and
without adapters then share their programs as well.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emodistill.model.lora import target_layers
from emodistill.model.qwen2 import Head, Linear, Qwen2

MAX_BYTES = 2**30
"""Of weights that are held once more: each adapter that a server has loaded takes a copy."""


def generation_form(model: Qwen2) -> Qwen2:
    """`model` itself, or a copy for processors that gives the same up to float32's rounding."""
    is_plain = model.mesh is None and model.quantization is None and model.dtype == jnp.float32
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    if not is_plain or size > MAX_BYTES or jax.default_backend() != "cpu":
        return model
    turned: Qwen2 = nnx.merge(*nnx.split(model))
    for layer in target_layers(turned).values():
        _turn(layer)
    turned.lora = None
    head = turned.embed_tokens if turned.lm_head is None else turned.lm_head
    turned.lm_head = nnx.data(Head(_turned(np.asarray(head.weight[...]))))
    return turned


def _turn(layer: Linear) -> None:
    weight_LOI = np.asarray(layer.weight[...])
    if (lora := layer.lora) is not None:
        a_LRI, b_LOR = np.asarray(lora.a[...]), np.asarray(lora.b[...])
        weight_LOI = weight_LOI + np.float32(lora.scale) * (b_LOR @ a_LRI)
        layer.lora = nnx.data(None)
    layer.weight = nnx.Param(_turned(weight_LOI))
    layer.is_input_major = True


def _turned(weight: np.ndarray) -> jax.Array:
    return jax.device_put(np.ascontiguousarray(weight.swapaxes(-1, -2)))
