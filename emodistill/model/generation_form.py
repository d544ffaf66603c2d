"""A model's weights in the form from which a processor generates fastest.

Decoding reads all weights for a few rows of tokens. XLA's products on processors want them as
[in, out] and would turn those of the checkpoints around at every step; an adapter beside its base
means eight more small products a layer. So an engine on a processor gets a copy in which the
weights lie the other way and the adapter is merged. That takes memory, so large models stay as they
are, and it is done in float32 alone, where merging loses nothing that counts. Models with and
without adapters then share their programs as well.
"""

from __future__ import annotations

import weakref

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emodistill.model.lora import target_layers
from emodistill.model.qwen2 import Head, Linear, Qwen2

MAX_BYTES = 2**30
"""Of weights that are held once more, and once for each adapter that a server has loaded those that
it changes."""


def generation_form(model: Qwen2) -> Qwen2:
    """`model` itself, or a copy for processors that gives the same up to float32's rounding."""
    is_plain = model.mesh is None and model.quantization is None and model.dtype == jnp.float32
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    if not is_plain or size > MAX_BYTES or jax.default_backend() != "cpu":
        return model
    turned: Qwen2 = nnx.merge(*nnx.split(model))
    for layer in target_layers(turned).values():
        layer.weight = nnx.Param(
            _turned(layer.weight.get_value()) if layer.lora is None else _merged(layer)
        )
        layer.lora = nnx.data(None)
        layer.is_input_major = True
    turned.lora = None
    head = turned.embed_tokens if turned.lm_head is None else turned.lm_head
    turned.lm_head = nnx.data(Head(_turned(head.weight.get_value())))
    return turned


def _merged(layer: Linear) -> jax.Array:
    """The weight [L, I, O] of a layer with its adapter in it."""
    weight_LOI = layer.weight.get_value()
    a_LRI, b_LOR = np.asarray(layer.lora.a[...]), np.asarray(layer.lora.b[...])
    merged_LOI = np.asarray(weight_LOI) + np.float32(layer.lora.scale) * (b_LOR @ a_LRI)
    return _on_device(merged_LOI, weight_LOI)


_KNOWN: dict[int, tuple[weakref.ref[jax.Array], weakref.ref[jax.Array]]] = {}
"""By an array's id: the array, since an id may come again, and what it is turned around."""


def _turned(weight: jax.Array) -> jax.Array:
    """[…, I, O] of […, O, I], made once while engines use it: those of several adapters share what
    no adapter changes."""
    known = _KNOWN.get(id(weight))
    made = known[1]() if known is not None and known[0]() is weight else None
    if made is None:
        made = _on_device(np.asarray(weight), weight)
        key = id(weight)
        _KNOWN[key] = weakref.ref(weight, lambda _: _KNOWN.pop(key, None)), weakref.ref(made)
    return made


def _on_device(weight: np.ndarray, like: jax.Array) -> jax.Array:
    """`weight`, turned around, where `like` lies."""
    return jax.device_put(np.ascontiguousarray(weight.swapaxes(-1, -2)), like.sharding)
