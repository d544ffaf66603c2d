"""Attention over trees by an array of all queries by all keys, to compare with."""

import jax
import jax.numpy as jnp


def dense(q_BTNH, k_BTKH, v_BTKH, ends_BT):
    """The same by an array of all queries by all keys."""
    positions = jnp.arange(q_BTNH.shape[1])
    is_seen_BTS = (positions[None] <= positions[:, None])[None] & (
        positions[None, :, None] < ends_BT[:, None]
    )
    repeats = q_BTNH.shape[2] // k_BTKH.shape[2]
    k_BTNH, v_BTNH = (jnp.repeat(x, repeats, axis=2) for x in (k_BTKH, v_BTKH))
    scores = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BTNH)
    weights = jax.nn.softmax(jnp.where(is_seen_BTS[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("BNTS,BSNH->BTNH", weights, v_BTNH)
