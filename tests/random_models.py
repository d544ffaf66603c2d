"""Random models whose numbers NumPy makes: JAX would compile a program for the shape of each."""

import numpy as np
from flax import nnx

from emodistill.model.qwen2 import INITIAL_STD
from emodistill.seeding import stream


def random_parts(make):
    """`nnx.split` of a new model, as `make` would make it, with arrays of NumPy."""
    graphdef, shapes = nnx.split(nnx.eval_shape(make))
    rng = stream(0, "model")
    flat = sorted(nnx.to_flat_state(shapes), key=lambda item: item[0])
    return graphdef, nnx.from_flat_state([(path, _start(path, like, rng)) for path, like in flat])


def _start(path, like, rng):
    """Norms are 1; biases and LoRA's B are 0."""
    name = path[-1]
    if name == "a":
        value = rng.uniform(-1, 1, like.shape) / np.sqrt(like.shape[-1])
    elif name == "weight" and "norm" not in "".join(map(str, path)):
        value = INITIAL_STD * rng.normal(size=like.shape)
    else:
        value = np.full(like.shape, float(name == "weight"))
    return like.replace(value.astype(like.dtype))
