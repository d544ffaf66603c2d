"""Named streams of randomness: the only place that makes generators and keys.

A stream is named by what it is for (`stream(seed, "sweep", trajectory_id)`), never by when it is
asked for, so that resuming, reordering or running in parallel changes no result.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jax

Name = str | int


def _digest(seed: int, names: tuple[Name, ...]) -> bytes:
    if not names:
        raise ValueError("a random stream needs a name, e.g. stream(seed, 'sweep', trajectory_id).")
    path = "\x1f".join([str(int(seed)), *(f"{type(name).__name__}:{name}" for name in names)])
    return hashlib.sha256(path.encode()).digest()


def derive(seed: int, *names: Name) -> int:
    """A 31-bit integer for whoever takes a plain seed (an API's `seed` field, a library)."""
    return int.from_bytes(_digest(seed, names)[:4], "little") >> 1


def stream(seed: int, *names: Name) -> np.random.Generator:
    """The NumPy generator of the stream `names` under `seed`."""
    words = np.frombuffer(_digest(seed, names), dtype=np.uint32)
    return np.random.Generator(np.random.PCG64(words.tolist()))


def jax_key(seed: int, *names: Name) -> jax.Array:
    """The JAX key of the stream `names` under `seed`."""
    import jax  # heavy: kept off --help

    return jax.random.key(derive(seed, *names))
