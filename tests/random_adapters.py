"""Models with an adapter that changes what they say, and tokens to ask them about."""

import jax.numpy as jnp

from emodistill import seeding
from emodistill.model import load_qwen2
from emodistill.model.lora import LoRAParam, add_lora, target_layers

TOKENS_BT = seeding.stream(0, "test-adapters").integers(0, 100, (2, 12))


def with_random_adapter(folder, **arguments):
    model = load_qwen2(folder, dtype=jnp.float32)
    add_lora(model, **arguments)
    rng = seeding.stream(0, "random-b")
    for layer in target_layers(model).values():
        if layer.lora is not None:
            b = 0.1 * rng.standard_normal(layer.lora.b.shape)
            layer.lora.b = LoRAParam(jnp.asarray(b, jnp.float32))
    return model
