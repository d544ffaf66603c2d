"""Qwen2 (and its relatives Llama and Qwen3) as a Flax NNX module with stacked, scanned layers.

Module and parameter names are those of Hugging Face, as are the weights' layouts ([out, in]);
the parameters of all layers are stacked along a leading layer axis L, and one `lax.scan` runs
over them, so that compile time does not grow with depth. Norms, rotary angles, softmax and
logits are computed in float32, whatever the weights' dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from emodistill.configs import AttentionForm, Quantization, Remat
from emodistill.model import sharding
from emodistill.model.attention import Rope, rope_angles, rotate
from emodistill.model.attention_forms import SCOPE, attention_form, planned_attention
from emodistill.model.config import LoRAConfig, Qwen2Config
from emodistill.model.quantization import dequantized
from emodistill.model.sharding import constrain

INITIAL_STD = 0.02
"""The standard deviation of Hugging Face's random weights."""
MLP_TOKENS, MLP_PARTS = 4096, 8
"""Rows with more tokens on a device go through the MLP in so many parts, where the backward pass
computes it again: fewer of its columns are alive then. Shorter ones would lose more than they win,
since a weight that several products use is copied out of the stack of layers first
(docs/notes.md)."""


class _Keys:
    """Hands out one key after another, so that constructors stay short."""

    def __init__(self, key: jax.Array) -> None:
        self.key = key

    def normal(self, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        self.key, key = jax.random.split(self.key)
        return (INITIAL_STD * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


def _along(vector: jax.Array, x: jax.Array) -> jax.Array:
    """`vector` with leading axes of size 1 up to the rank of `x`: ranks are never promoted
    silently."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


class Linear(nnx.Module):
    """x W^T + b, plus an adapter's share where `lora` is set.

    `weight` is [L, O, I] ([O, I] inside the scan), `bias` [L, O]. With `is_input_major` it is
    [L, I, O] (see `generation_form`).
    """

    def __init__(self, shape: tuple[int, ...], keys: _Keys, dtype: Any, *, has_bias: bool = False):
        self.weight = nnx.Param(keys.normal(shape, dtype))
        self.bias = nnx.data(nnx.Param(jnp.zeros(shape[:-1], dtype)) if has_bias else None)
        self.lora: Any = nnx.data(None)
        self.is_input_major = False

    def __call__(self, x: jax.Array) -> jax.Array:
        weight = dequantized(self.weight.get_value(), x.dtype)
        y = jnp.einsum("...i,io->...o" if self.is_input_major else "...i,oi->...o", x, weight)
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
    """The four projections of grouped-query attention, and the norms of Qwen3's heads."""

    def __init__(self, config: Qwen2Config, keys: _Keys, dtype: Any):
        L, D = config.num_layers, config.hidden_size
        query_width = config.num_heads * config.head_dim
        key_width = config.num_kv_heads * config.head_dim
        linear = functools.partial(Linear, keys=keys, dtype=dtype, has_bias=config.has_qkv_bias)
        self.q_proj = linear((L, query_width, D))
        self.k_proj = linear((L, key_width, D))
        self.v_proj = linear((L, key_width, D))
        self.o_proj = linear((L, D, query_width), has_bias=False)
        norm = functools.partial(RMSNorm, (L, config.head_dim), config.norm_eps, dtype)
        self.q_norm = nnx.data(norm() if config.has_qk_norm else None)
        self.k_norm = nnx.data(norm() if config.has_qk_norm else None)
        self.head_dim = config.head_dim


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, config: Qwen2Config, keys: _Keys, dtype: Any, mesh: Mesh | None):
        self.mesh = mesh
        L, D, F = config.num_layers, config.hidden_size, config.intermediate_size
        self.gate_proj = Linear((L, F, D), keys, dtype)
        self.up_proj = Linear((L, F, D), keys, dtype)
        self.down_proj = Linear((L, D, F), keys, dtype)

    def __call__(self, x_BTD: jax.Array, num_parts: int = 1) -> jax.Array:
        """All tokens at once, or the tokens of each row in parts, whose [B, T / num_parts, F]
        arrays the backward pass computes again."""
        project = self._project if num_parts == 1 else jax.checkpoint(self._project)
        size = -(-x_BTD.shape[1] // num_parts)
        starts = range(0, x_BTD.shape[1], size)
        return jnp.concatenate([project(x_BTD[:, i : i + size]) for i in starts], axis=1)

    def _project(self, x_BTD: jax.Array) -> jax.Array:
        # Unless it is told, XLA may gather the rows of all devices instead of the weights.
        gate_BTF, up_BTF = (
            constrain(project(x_BTD), self.mesh, sharding.COLUMNS)
            for project in (self.gate_proj, self.up_proj)
        )
        return self.down_proj(_gated(gate_BTF, up_BTF))


# Without the checkpoint a scan over layers keeps four arrays for the backward pass: gate, its
# sigmoid, their product and up. With it, gate and up alone: 5 to 10 % of a step (docs/notes.md).
@functools.partial(jax.checkpoint, prevent_cse=False)
def _gated(gate_BTF: jax.Array, up_BTF: jax.Array) -> jax.Array:
    return jax.nn.silu(gate_BTF) * up_BTF


class DecoderLayer(nnx.Module):
    """One pre-norm transformer layer, cut in two: what precedes attention and what follows it."""

    def __init__(self, config: Qwen2Config, keys: _Keys, dtype: Any, mesh: Mesh | None):
        shape = (config.num_layers, config.hidden_size)
        self.mesh = mesh
        self.input_layernorm = RMSNorm(shape, config.norm_eps, dtype)
        self.self_attn = Attention(config, keys, dtype)
        self.post_attention_layernorm = RMSNorm(shape, config.norm_eps, dtype)
        self.mlp = MLP(config, keys, dtype, mesh)

    def before_attention(
        self, x_BTD: jax.Array, rope: Rope
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q [B, T, N, H] (rotated and scaled), k [B, T, K, H] (rotated), v [B, T, K, H]."""
        attn = self.self_attn
        normed_BTD = constrain(self.input_layernorm(x_BTD), self.mesh, sharding.PROJECTED)
        q_BTNH, k_BTKH, v_BTKH = (
            project(normed_BTD).reshape(*x_BTD.shape[:2], -1, attn.head_dim)
            for project in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        if attn.q_norm is not None and attn.k_norm is not None:
            q_BTNH, k_BTKH = attn.q_norm(q_BTNH), attn.k_norm(k_BTKH)
        q_BTNH = (rotate(q_BTNH, rope) * attn.head_dim**-0.5).astype(x_BTD.dtype)
        return q_BTNH, rotate(k_BTKH, rope).astype(x_BTD.dtype), v_BTKH

    def after_attention(
        self, x_BTD: jax.Array, attended_BTNH: jax.Array, mlp_parts: int = 1
    ) -> jax.Array:
        """The layer's output from its input and what the heads gathered."""
        gathered_BTO = attended_BTNH.reshape(*x_BTD.shape[:2], -1)
        x_BTD = x_BTD + constrain(self.self_attn.o_proj(gathered_BTO), self.mesh, sharding.RESIDUAL)
        normed_BTD = constrain(self.post_attention_layernorm(x_BTD), self.mesh, sharding.PROJECTED)
        return x_BTD + constrain(self.mlp(normed_BTD, mlp_parts), self.mesh, sharding.RESIDUAL)


class Embedding(nnx.Module):
    """Token vectors: `weight` is [V, D]."""

    def __init__(self, config: Qwen2Config, keys: _Keys, dtype: Any):
        self.weight = nnx.Param(keys.normal((config.vocab_size, config.hidden_size), dtype))

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        return jnp.take(self.weight[...], tokens_BT, axis=0)


class Head(nnx.Module):
    """What makes logits, but no checkpoint's: `weight` is [D, V] (see `generation_form`)."""

    def __init__(self, weight_DV: jax.Array) -> None:
        self.weight = nnx.Param(weight_DV)


class Qwen2(nnx.Module):
    """A causal language model.

    `model(tokens_BT)` gives the logits of each next token; `model.hidden` and `model.logits` are
    its two halves, for losses that need the head at few positions only.

    Attributes:
      remat: what the backward pass computes again instead of keeping it: nothing (`none`), the
        whole of each layer (`full`), or each layer but its matrix products (`dots`).
      mesh: over which the arrays are spread; None on a single device.
      attention: how it is computed, by XLA's loops or by kernels (see `attention_forms`).
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
        attention: AttentionForm | None = None,
    ):
        keys = _Keys(key)
        self.config = config
        self.embed_tokens = Embedding(config, keys, dtype)
        self.layers = DecoderLayer(config, keys, dtype, mesh)
        self.norm = RMSNorm((config.hidden_size,), config.norm_eps, dtype)
        head = (config.vocab_size, config.hidden_size)
        self.lm_head = nnx.data(None if config.is_tied else Linear(head, keys, dtype))
        self.remat: Remat = remat
        self.attention = attention_form(attention, mesh, config.head_dim, dtype)
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

        A token never sees what follows it in its row, so right-padded rows need neither of the two
        other arguments; padding may have any token ids.

        Args:
          tokens_BT: token ids.
          positions_BT: rotary positions; 0, 1, 2, … without them.
          ends_BT: int32, for rows that hold trees: the first position after the subtree of each
          position
            (see `attention`).
        """
        chex.assert_rank(tokens_BT, 2)
        B, T = tokens_BT.shape
        if positions_BT is None:
            positions_BT = jnp.arange(T)[None, :]
        if ends_BT is None:
            ends_BT = jnp.full((B, T), T, jnp.int32)
        chex.assert_shape(positions_BT, ({1, B}, T))
        chex.assert_shape(ends_BT, (B, T))
        rope = rope_angles(positions_BT, self.config.head_dim, self.config.rope_theta)
        with jax.named_scope(SCOPE):
            attend, plan = planned_attention(
                self.attention, ends_BT, self.mesh, self.config.num_heads
            )
        tokens_per_device = B * T // sharding.num_row_shards(self.mesh)
        is_split = self.remat == "full" and tokens_per_device > MLP_TOKENS
        mlp_parts = MLP_PARTS if is_split else 1

        def step(layer: DecoderLayer, x_BTD: jax.Array, _: None) -> tuple[jax.Array, None]:
            heads = layer.before_attention(x_BTD, rope)
            with jax.named_scope(SCOPE):
                attended_BTNH = sharding.by_head(attend, *heads, plan, self.mesh)
            return layer.after_attention(x_BTD, attended_BTNH, mlp_parts), None

        embedded_BTD = self.embed_tokens(sharding.everywhere(tokens_BT, self.mesh))
        x_BTD, _ = self.scan_layers(step, constrain(embedded_BTD, self.mesh, sharding.RESIDUAL))
        return self.norm(x_BTD)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Float32 logits [..., V] of hidden states [..., D] at any positions."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        equation = "...d,dv->...v" if isinstance(head, Head) else "...d,vd->...v"
        return jnp.einsum(equation, hidden, head.weight[...], preferred_element_type=jnp.float32)

    def scan_layers(
        self,
        step: Callable[[DecoderLayer, Any, Any], tuple[Any, Any]],
        carry: Any,
        per_layer: Any = None,
        *,
        is_unrolled: bool = False,
    ) -> tuple[Any, Any]:
        """`lax.scan` of `step(layer, carry, one of per_layer) -> (carry, output)` over layers."""
        graphdef, state = nnx.split(self.layers)

        def body(carry: Any, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
            layer_state, extra = inputs
            return step(nnx.merge(graphdef, layer_state), carry, extra)

        if self.remat != "none":
            kept_dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            policy = kept_dots if self.remat == "dots" else None
            # Within a scan nothing can be merged across the two passes, which is what
            # `prevent_cse` guards against with barriers that would keep XLA from fusing.
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        L = self.config.num_layers
        return jax.lax.scan(body, carry, (state, per_layer), L, unroll=is_unrolled)
