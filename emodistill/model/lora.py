"""Low-rank adapters on frozen linear layers: y = W x + (alpha / rank) B A x (arXiv 2106.09685).

A and B are float32 `LoRAParam`s, stacked over layers like the weights that they adapt, so that
`nnx.split(model, LoRAParam, ...)` separates what is trained from what is frozen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, Sharding

from emodistill import seeding
from emodistill.errors import InputError
from emodistill.model.config import ATTENTION_TARGETS, TARGETS, LoRAConfig
from emodistill.model.qwen2 import Linear, Qwen2
from emodistill.model.sharding import param_sharding


class LoRAParam(nnx.Variable):
    """A trainable factor of an adapter; no `nnx.Param`, so that the two can be split apart."""


class LoRA(nnx.Module):
    """The factors of one linear layer: `a` [L, R, I] and `b` [L, O, R], as PEFT lays them out.

    They lie on the mesh like the weight that they adapt.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        config: LoRAConfig,
        key: jax.Array,
        mesh: Mesh | None,
    ) -> None:
        L, O, I = shape  # noqa: E741
        shapes = {"a": (L, config.rank, I), "b": (L, O, config.rank)}
        shardings = [param_sharding((name, "lora", k), shapes[k], mesh) for k in shapes]
        a_LRI, b_LOR = _start(*shapes.values(), *shardings)(key)
        self.a, self.b = LoRAParam(a_LRI), LoRAParam(b_LOR)
        self.scale = config.scale

    def __call__(self, x: jax.Array) -> jax.Array:
        """The adapter's share of the output, float32 throughout.

        The default precision would round the operands to bfloat16 on TPUs, to TF32 on GPUs.
        """
        product = functools.partial(jnp.einsum, precision="highest")
        low = product("...i,ri->...r", x.astype(jnp.float32), self.a[...])
        return product("...r,or->...o", low, self.b[...]) * self.scale


@functools.cache
def _start(
    a_shape: tuple[int, ...],
    b_shape: tuple[int, ...],
    a_sharding: Sharding,
    b_sharding: Sharding,
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """What makes the factors of an adapter that changes nothing yet; compiled once for a shape."""
    # PEFT's start: kaiming_uniform(a=sqrt(5)) is uniform in +-1/sqrt(I); B = 0 is identity.
    bound = a_shape[-1] ** -0.5

    def start(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        a_LRI = jax.random.uniform(key, a_shape, jnp.float32, -bound, bound)
        return a_LRI, jnp.zeros(b_shape, jnp.float32)

    return jax.jit(start, out_shardings=(a_sharding, b_sharding))


def target_layers(model: Qwen2) -> dict[str, Linear]:
    """The adaptable projections of `model` by name (each stacked over all layers)."""
    return {name: getattr(getattr(model.layers, module), name) for name, module in TARGETS.items()}


def add_lora(
    model: Qwen2,
    rank: int = 16,
    alpha: float = 32,
    targets: Sequence[str] = ATTENTION_TARGETS,
    rng: jax.Array | None = None,
) -> None:
    """Give `model` an adapter, in place; its output stays the same until B is trained.

    Args:
      rng: the key of A's random start; the stream (0, "lora") without it.

    Raises:
      InputError: the model has an adapter already, or a rank, alpha or target is impossible.
    """
    config = LoRAConfig(rank=rank, alpha=alpha, targets=tuple(targets))
    if model.lora is not None:
        raise InputError(
            f"the model already has a LoRA of rank {model.lora.rank}; load the base model again "
            "to give it another one."
        )
    rng = seeding.jax_key(0, "lora") if rng is None else rng
    layers = target_layers(model)
    for name in config.targets:
        key = jax.random.fold_in(rng, list(TARGETS).index(name))
        shape = layers[name].weight.shape
        layers[name].lora = LoRA(name, shape, config, key, model.mesh)
    model.lora = config
