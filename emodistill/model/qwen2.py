"""Qwen2 (and its relatives Llama and Qwen3) as a Flax NNX module with stacked, scanned layers.

Module and parameter names are those of Hugging Face, as are the weights' layouts ([out, in]);
the parameters of all blocks are stacked along a leading layer axis L, and one `lax.scan` runs
over them, so that compile time does not grow with depth. Norms, rotary angles, softmax and
logits are computed in float32, whatever the weights' dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from emodistill.configs import Quantization, Remat
from emodistill.errors import InputError
from emodistill.model import sharding
from emodistill.model.attention import Rope, lanes_of, rope_angles, rotate, tree_attention
from emodistill.model.config import LoRAConfig, ParamPath, Qwen2Config
from emodistill.model.quantization import dequantized

INITIAL_STD = 0.02
MLP_TOKENS, MLP_BLOCKS = 4096, 8
"""More tokens on a device than the first take the MLP in so many blocks, where the backward pass
computes again: fewer of its columns are alive. Below, blocks would cost more than they save."""
_KEPT_DOTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable


class _Keys:
    """Hands out one key after another, so that constructors stay short."""

    def __init__(self, key: jax.Array) -> None:
        self.key = key

    def normal(self, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        self.key, key = jax.random.split(self.key)
        return (INITIAL_STD * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


def _along(vector: jax.Array, x: jax.Array) -> jax.Array:
    """`vector` as an array of x's rank that lies along its last axis."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


class Linear(nnx.Module):
    """x W^T + b, plus an adapter's share where `lora` is set.

    `weight` is [L, O, I] ([O, I] inside the scan), `bias` [L, O].
    """

    def __init__(self, shape: tuple[int, ...], keys: _Keys, dtype: Any, *, has_bias: bool = False):
        self.weight = nnx.Param(keys.normal(shape, dtype))
        self.bias = nnx.data(nnx.Param(jnp.zeros(shape[:-1], dtype)) if has_bias else None)
        self.lora: Any = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        weight_OI = dequantized(self.weight.get_value(), x.dtype)
        y = jnp.einsum("...i,oi->...o", x, weight_OI)
        if self.bias is not None:
            y = y + _along(self.bias[...], y)
        if self.lora is not None:
            y = y + self.lora(x).astype(y.dtype)
        return y


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, computed in float32."""

    def __init__(self, shape: tuple[int, ...], eps: float, dtype: Any):
        self.weight = nnx.Param(jnp.ones(shape, dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * scale * _along(self.weight[...].astype(jnp.float32), x)).astype(x.dtype)


class Attention(nnx.Module):
    """The four projections of grouped-query attention."""

    def __init__(self, config: Qwen2Config, keys: _Keys, dtype: Any):
        L, D = config.num_layers, config.hidden_size
        query_width = config.num_heads * config.head_dim
        key_width = config.num_kv_heads * config.head_dim
        has_bias = config.has_qkv_bias
        self.q_proj = Linear((L, query_width, D), keys, dtype, has_bias=has_bias)
        self.k_proj = Linear((L, key_width, D), keys, dtype, has_bias=has_bias)
        self.v_proj = Linear((L, key_width, D), keys, dtype, has_bias=has_bias)
        self.o_proj = Linear((L, D, query_width), keys, dtype)
        has_norm, shape = config.has_qk_norm, (L, config.head_dim)
        self.q_norm = nnx.data(RMSNorm(shape, config.norm_eps, dtype) if has_norm else None)
        self.k_norm = nnx.data(RMSNorm(shape, config.norm_eps, dtype) if has_norm else None)
        self.head_dim = config.head_dim

    def queries_keys_values(
        self, x_BTD: jax.Array, rope: Rope
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q [B, T, N, H] (rotated and scaled), k [B, T, K, H] (rotated), v [B, T, K, H]."""
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BTNH = self.q_proj(x_BTD).reshape(heads)
        k_BTKH = self.k_proj(x_BTD).reshape(heads)
        v_BTKH = self.v_proj(x_BTD).reshape(heads)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTNH, k_BTKH = self.q_norm(q_BTNH), self.k_norm(k_BTKH)
        q_BTNH = (rotate(q_BTNH, rope) * self.head_dim**-0.5).astype(x_BTD.dtype)
        return q_BTNH, rotate(k_BTKH, rope).astype(x_BTD.dtype), v_BTKH


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, config: Qwen2Config, keys: _Keys, dtype: Any):
        L, D, F = config.num_layers, config.hidden_size, config.intermediate_size
        self.gate_proj = Linear((L, F, D), keys, dtype)
        self.up_proj = Linear((L, F, D), keys, dtype)
        self.down_proj = Linear((L, D, F), keys, dtype)

    def __call__(self, x_BTD: jax.Array, block: int | None = None) -> jax.Array:
        """All tokens at once, or `block` of each row at a time, whose [B, block, F] arrays the
        backward pass makes again."""
        T = x_BTD.shape[1]
        if block is None or block >= T:
            return self._project(x_BTD)
        project = jax.checkpoint(self._project)
        parts = [project(x_BTD[:, start : start + block]) for start in range(0, T, block)]
        return jnp.concatenate(parts, axis=1)

    def _project(self, x_BTD: jax.Array) -> jax.Array:
        return self.down_proj(_gated(self.gate_proj(x_BTD), self.up_proj(x_BTD)))


@functools.partial(jax.checkpoint, prevent_cse=False)
def _gated(gate_BTF: jax.Array, up_BTF: jax.Array) -> jax.Array:
    """silu(gate) * up, of which a scan over layers keeps no more than the two for its way back."""
    return jax.nn.silu(gate_BTF) * up_BTF


class Block(nnx.Module):
    """One pre-norm transformer layer, cut in two: what precedes attention and what follows it."""

    def __init__(self, config: Qwen2Config, keys: _Keys, dtype: Any, mesh: Mesh | None = None):
        shape = (config.num_layers, config.hidden_size)
        self.mesh = mesh
        self.input_layernorm = RMSNorm(shape, config.norm_eps, dtype)
        self.self_attn = Attention(config, keys, dtype)
        self.post_attention_layernorm = RMSNorm(shape, config.norm_eps, dtype)
        self.mlp = MLP(config, keys, dtype)

    def before_attention(
        self, x_BTD: jax.Array, rope: Rope
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of the layer's input."""
        normed_BTD = sharding.into_projection(self.input_layernorm(x_BTD), self.mesh)
        return self.self_attn.queries_keys_values(normed_BTD, rope)

    def after_attention(
        self, x_BTD: jax.Array, attended_BTNH: jax.Array, mlp_block: int | None = None
    ) -> jax.Array:
        """The layer's output from its input and what the heads gathered (`MLP` has `block`)."""
        gathered_BTO = attended_BTNH.reshape(*x_BTD.shape[:2], -1)
        x_BTD = x_BTD + sharding.between_layers(self.self_attn.o_proj(gathered_BTO), self.mesh)
        normed_BTD = sharding.into_projection(self.post_attention_layernorm(x_BTD), self.mesh)
        return x_BTD + sharding.between_layers(self.mlp(normed_BTD, mlp_block), self.mesh)


class Embedding(nnx.Module):
    """Token vectors: `weight` is [V, D]."""

    def __init__(self, config: Qwen2Config, keys: _Keys, dtype: Any):
        self.weight = nnx.Param(keys.normal((config.vocab_size, config.hidden_size), dtype))

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        return jnp.take(self.weight[...], tokens_BT, axis=0)


class Qwen2(nnx.Module):
    """A causal language model.

    `model(tokens_BT)` gives the logits of each next token; `model.hidden` and `model.logits` are
    its two halves, for losses that need the head at few positions only.

    Attributes:
      remat: what the backward pass computes again instead of keeping it: nothing (`none`), the
        whole of each layer (`full`), or each layer but its matrix products (`dots`).
      mesh: over which the arrays are spread; None on a single device.
      lora: rank, scale and targets of the adapter, None without one (see `lora.add_lora`).
      quantization, fingerprint: how the frozen projections are held, and what they were made from,
        where `weights.load_qwen2` was told to quantize; else None.
    """

    def __init__(
        self,
        config: Qwen2Config,
        *,
        key: jax.Array,
        dtype: Any = jnp.float32,
        remat: Remat = "none",
        mesh: Mesh | None = None,
    ):
        keys = _Keys(key)
        self.config = config
        self.embed_tokens = Embedding(config, keys, dtype)
        self.layers = Block(config, keys, dtype, mesh)
        self.norm = RMSNorm((config.hidden_size,), config.norm_eps, dtype)
        head = (config.vocab_size, config.hidden_size)
        self.lm_head = nnx.data(None if config.is_tied else Linear(head, keys, dtype))
        self.remat: Remat = remat
        self.lora: LoRAConfig | None = None
        self.quantization: Quantization | None = None
        self.fingerprint: str | None = None

    @property
    def mesh(self) -> Mesh | None:
        return self.layers.mesh

    @property
    def dtype(self) -> Any:
        return self.embed_tokens.weight.dtype

    def __call__(
        self,
        tokens_BT: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        ends_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Logits [B, T, V] in float32; arguments as for `hidden`."""
        return self.logits(self.hidden(tokens_BT, positions_BT=positions_BT, ends_BT=ends_BT))

    def hidden(
        self,
        tokens_BT: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        ends_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Final hidden states [B, T, D] in the model's dtype, after the last norm.

        What stands on the right of a token never matters to it, so right-padded rows need neither
        of the two; token ids don't tell padding.

        Args:
          tokens_BT: token ids.
          positions_BT: rotary positions; 0, 1, 2, … without them.
          ends_BT: int32, for rows that hold trees: the first place after each place's subtree (see
            `attention`).

        Raises:
          InputError: a shape is wrong.
        """
        if tokens_BT.ndim != 2:
            raise InputError(f"tokens must be [B, T]; got shape {tokens_BT.shape}.")
        B, T = tokens_BT.shape
        if ends_BT is not None and ends_BT.shape != (B, T):
            raise InputError(f"ends must be {(B, T)}; got {ends_BT.shape}.")
        if positions_BT is None:
            positions_BT = jnp.arange(T)[None, :]
        if ends_BT is None:
            ends_BT = jnp.full((B, T), T, jnp.int32)
        rope = rope_angles(positions_BT, self.config.head_dim, self.config.rope_theta)
        lanes = lanes_of(sharding.platform(self.mesh), self.config.num_heads)
        attend = functools.partial(tree_attention, lanes=lanes)
        mlp_block = None
        tokens_per_device = B * T // sharding.num_row_shards(self.mesh)
        if self.remat == "full" and tokens_per_device > MLP_TOKENS:
            mlp_block = -(-T // MLP_BLOCKS)

        def layer(block: Block, x_BTD: jax.Array, _: None) -> tuple[jax.Array, None]:
            heads = sharding.split_heads(*block.before_attention(x_BTD, rope), self.mesh)
            attended_BTNH = sharding.by_head(attend, *heads, ends_BT, self.mesh)
            return block.after_attention(x_BTD, attended_BTNH, mlp_block), None

        embedded_BTD = self.embed_tokens(sharding.everywhere(tokens_BT, self.mesh))
        x_BTD, _ = self.scan_layers(layer, sharding.between_layers(embedded_BTD, self.mesh))
        return self.norm(x_BTD)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Float32 logits [..., V] of hidden states [..., D] at any positions."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        weight_VD = head.weight[...]
        return jnp.einsum("...d,vd->...v", hidden, weight_VD, preferred_element_type=jnp.float32)

    def scan_layers(
        self, step: Callable[[Block, Any, Any], tuple[Any, Any]], carry: Any, per_layer: Any = None
    ) -> tuple[Any, Any]:
        """`lax.scan` of `step(block, carry, one of per_layer) -> (carry, output)` over layers."""
        graphdef, state = nnx.split(self.layers)

        def body(carry: Any, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
            layer_state, extra = inputs
            return step(nnx.merge(graphdef, layer_state), carry, extra)

        if self.remat != "none":
            policy = _KEPT_DOTS if self.remat == "dots" else None
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        return jax.lax.scan(body, carry, (state, per_layer), length=self.config.num_layers)


def flat_state(state: nnx.State) -> dict[ParamPath, Any]:
    """The variables of `state` by where they are."""
    return {tuple(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
