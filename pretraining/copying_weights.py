"""Start weights that copy.

A negotiator lives by copying: its own figure, the other side's, a fact. A small model that starts
at random hardly learns to copy within the tokens of an hour (docs/notes.md). What it lacks is the
circuit called induction (Olsson et al., "In-context learning and induction heads", 2022), so it is
written into the weights here:

1. In the first layer, head n attends to the position n before its own. Its biases alone say so: a
   constant query and a constant key, rotated against each other by n positions. It writes what it
   finds into a part of the residual stream of its own, so that each position knows the tokens
   before it.
2. In the second layer, head n looks for positions that are preceded by the n tokens that end at its
   own position, and adds the token found there to its output.

The heads that share the first key head do this from the start and are frozen in pretraining:
trained with the rest, they lose words within a hundred steps. All other heads are trained;
those of the second and third layer lean towards the same comparison, from where figures are learned
soonest.

The residual stream is cut in two for it: half of its directions hold the token's vector, the other
half the tokens before. Only the slowest rotary frequencies compare tokens, since they hardly know
how far apart two positions are; only the fast ones count positions.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emodistill.errors import InputError
from emodistill.model.config import Qwen2Config
from emodistill.model.qwen2 import INITIAL_STD, Qwen2

Weights = dict[str, np.ndarray]
"""Writable copies of a model's weights, those of all layers stacked, by name."""

ROPE_THETA = 1e10
"""Base of the rotary frequencies: of 64 dimensions, 42 compare tokens over a thousand positions
(Qwen2.5's base leaves 28), and five frequencies count positions."""
ATTENTION_GAP = 6.0
"""How many nats the position that a head of the first layer looks for is ahead of its neighbours:
at 6 they get some 1 % of the attention."""
LARGEST_TURN = 0.5
"""A frequency may compare tokens if it turns by no more radians over the longest sample: the
cosine, by which a match is weakened, is then at least 0.88."""
MIN_FREQUENCY = 0.03
"""Frequencies from here on, in radians a position, count positions."""
EMBEDDING_STD = 0.2
"""Of the tokens' vectors, ten times Hugging Face's. AdamW moves every number equally far: so
that longer vectors should keep apart for longer what tells rare words apart (docs/notes.md)."""
READ_WIDTH = 32
"""Directions in which a position holds each token before it."""
MATCH_NATS = 8.0
"""What each token in common adds to the score of the frozen heads: three of them stand out
among a thousand positions that have one by chance."""
COPY_SCALE = 1.2
"""Output scale of the frozen heads: each adds the vector of the token that it copies, about
twice as long as the position's own."""
LEANING_MATCH_SCALE, LEANING_COPY_SCALE = 0.35, 0.4
"""Scale of queries and keys, and of outputs, of the heads that only lean: each token in common adds
about half a nat. Heads that are trained learn later where they are sure at the start, since a
softmax that is sure passes on little of the gradient."""
NUM_FROZEN_LAYERS = 2
"""Layers whose first heads are frozen: one that looks back, one that finds and copies."""
LEANING_LAYERS = (1, 2)
"""Layers whose other heads lean."""


class _Circuit(NamedTuple):
    """Directions of the residual stream, and dimensions of the heads, that the circuit uses."""

    config: Qwen2Config
    group_size: int
    """Query heads that share a key head; those of the first one are frozen."""
    token_DE: np.ndarray
    """Where the token's own vector lies."""
    before: list[np.ndarray]
    """[D, W] each: where the tokens 1, 2, … before are kept."""
    reading_WD: np.ndarray
    """What is read of a token's own vector."""
    turns: np.ndarray
    """Frequencies that count positions, the fastest first."""
    slow_dims: np.ndarray
    """A head's dimensions that compare tokens."""

    def head(self, number: int) -> slice:
        """The rows of a head in a projection."""
        size = self.config.head_dim
        return slice(number * size, (number + 1) * size)

    @property
    def readings(self) -> list[np.ndarray]:
        """[W, D] each: how a position's own token is read, and the tokens 1, 2, … before it."""
        return [self.reading_WD, *(directions.T for directions in self.before)]


def write_copying_weights(model: Qwen2, rng: np.random.Generator, max_tokens: int) -> nnx.State:
    """Overwrite the embeddings and the first layers' attention of a new model.

    Args:
      model: its q, k and v have biases.
      max_tokens: positions of the longest sample.

    Returns:
      What of the model's parameters is to be trained: 1 there, 0 where the circuit is frozen.

    Raises:
      InputError: the model has a single layer, or too few frequencies that compare tokens.
    """
    circuit = _circuit(model.config, rng, max_tokens)
    attention = model.layers.self_attn
    params = {
        **{f"{name}_bias": getattr(attention, f"{name}_proj").bias for name in "qkv"},
        **{f"{name}_weight": getattr(attention, f"{name}_proj").weight for name in "qkvo"},
    }
    weights = {name: np.array(param[...]) for name, param in params.items()}
    _look_back(weights, circuit)
    _find_and_copy(weights, circuit, rng)
    for layer in LEANING_LAYERS:
        if layer < model.config.num_layers:
            _lean(weights, circuit, layer, rng)
    for name, param in params.items():
        param[...] = weights[name].astype(param.dtype)

    embedding, norm = model.embed_tokens.weight, model.norm.weight
    vectors = rng.normal(size=(embedding.shape[0], circuit.token_DE.shape[1]))
    # As long as if all directions were drawn; the logits are as small as those of a new model.
    vectors = EMBEDDING_STD * np.sqrt(2) * vectors @ circuit.token_DE.T
    embedding[...] = vectors.astype(embedding.dtype)
    norm[...] = norm[...] * (INITIAL_STD / EMBEDDING_STD)
    return _trained(model, circuit)


def _circuit(config: Qwen2Config, rng: np.random.Generator, max_tokens: int) -> _Circuit:
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-np.arange(half) / half)
    slow = np.flatnonzero(frequencies * max_tokens < LARGEST_TURN)
    if config.num_layers < 2 or not len(slow):
        raise InputError(
            f"num_layers={config.num_layers}, heads of {config.head_dim}, rotary base "
            f"{config.rope_theta:g}: a student that copies has two layers or more, and frequencies "
            f"that turn by less than {LARGEST_TURN:g} over {max_tokens} positions. "
            "Raise --num-layers or lower --num-heads."
        )
    group_size = config.num_heads // config.num_kv_heads
    width = min(READ_WIDTH, config.hidden_size // 2 // group_size, config.head_dim)
    token_DE, rest = np.split(_orthonormal(rng, config.hidden_size, config.hidden_size), 2, axis=1)
    return _Circuit(
        config,
        group_size,
        token_DE,
        before=[rest[:, n * width : (n + 1) * width] for n in range(group_size)],
        reading_WD=_orthonormal(rng, width, token_DE.shape[1]) @ token_DE.T,
        turns=frequencies[frequencies > MIN_FREQUENCY],
        slow_dims=np.concatenate([slow, slow + half]),
    )


def _look_back(weights: Weights, circuit: _Circuit) -> None:
    """The first layer: head n copies a part of the n-th token before into `before[n - 1]`."""
    config, turns, key = circuit.config, circuit.turns, circuit.head(0)
    first = slice(0, len(turns))
    second = slice(config.head_dim // 2, config.head_dim // 2 + len(turns))
    # A score is sum(size² cos(turn · distance)) / sqrt(head_dim); this size gives the gap between
    # a distance of 0 and of 1.
    size = np.sqrt(ATTENTION_GAP * np.sqrt(config.head_dim) / np.sum(1 - np.cos(turns)))
    weights["k_weight"][0, key] = 0.0
    weights["k_bias"][0, key][first] = size
    width, num_directions = len(circuit.reading_WD), circuit.token_DE.shape[1]
    weights["v_weight"][0, key] = 0.0
    weights["v_weight"][0, key][:width] = circuit.reading_WD
    # What other heads of this layer would add is noise to those that compare.
    weights["o_weight"][0] = 0.0
    # What is told of a token is as long as its embedding: the norm divides by EMBEDDING_STD, and
    # the reading keeps a part of the directions.
    scale = EMBEDDING_STD * np.sqrt(num_directions / width)
    for n, directions in enumerate(circuit.before, 1):
        head = circuit.head(n - 1)
        weights["q_weight"][0, head] = 0.0
        weights["q_bias"][0, head][first] = size * np.cos(n * turns)
        weights["q_bias"][0, head][second] = -size * np.sin(n * turns)
        weights["o_weight"][0, :, head][:, :width] = scale * directions


def _find_and_copy(weights: Weights, circuit: _Circuit, rng: np.random.Generator) -> None:
    """Head n of the second layer compares the n tokens that end at its position with the n before
    each other position, and copies the token there."""
    config, key = circuit.config, circuit.head(0)
    shape = len(circuit.slow_dims), len(circuit.reading_WD)
    # At random: what is compared of several tokens shares the few slow dimensions, and overlaps.
    compared = [rng.normal(size=shape) / np.sqrt(shape[0]) for _ in circuit.before]
    # The normed stream holds a position's own token and those before it, each as long; of its own
    # token a part is read.
    length = np.sqrt(config.hidden_size / (1 + len(circuit.before)))
    own_length = length * np.sqrt(shape[1] / circuit.token_DE.shape[1])
    lengths = [own_length, *(length for _ in circuit.before)]
    scale = np.sqrt(MATCH_NATS * np.sqrt(config.head_dim))
    readings = [scale / size * r for size, r in zip(lengths, circuit.readings, strict=True)]
    weights["k_weight"][1, key] = 0.0
    weights["k_weight"][1, key][circuit.slow_dims] = _sum(compared, readings[1:])
    value = _value(circuit, rng)
    weights["v_weight"][1, key] = value
    for n in range(1, circuit.group_size + 1):
        head = circuit.head(n - 1)
        weights["q_weight"][1, head] = 0.0
        weights["q_weight"][1, head][circuit.slow_dims] = _sum(compared[:n], readings[:n])
        weights["o_weight"][1, :, head] = COPY_SCALE * value.T


def _lean(weights: Weights, circuit: _Circuit, layer: int, rng: np.random.Generator) -> None:
    """The heads of `layer` that are trained make the same comparison, but weakly."""
    shape = len(circuit.slow_dims), len(circuit.reading_WD)
    compared = [LEANING_MATCH_SCALE * _orthonormal(rng, *shape) for _ in circuit.before]
    readings, size = circuit.readings, circuit.group_size
    for group in range(1 if layer < NUM_FROZEN_LAYERS else 0, circuit.config.num_kv_heads):
        key, value = circuit.head(group), _value(circuit, rng)
        weights["k_weight"][layer, key][circuit.slow_dims] += _sum(compared, readings[1:])
        weights["v_weight"][layer, key] = value
        for n in range(1, size + 1):
            head = circuit.head(group * size + n - 1)
            at_query = _sum(compared[:n], readings[:n])
            weights["q_weight"][layer, head][circuit.slow_dims] += at_query
            weights["o_weight"][layer, :, head] = LEANING_COPY_SCALE * value.T


def _value(circuit: _Circuit, rng: np.random.Generator) -> np.ndarray:
    """[H, D]: what a head gathers of a token, as much as it has dimensions for."""
    shape = circuit.config.head_dim, circuit.token_DE.shape[1]
    return _orthonormal(rng, *shape) @ circuit.token_DE.T


def _sum(compared: list[np.ndarray], readings: list[np.ndarray]) -> np.ndarray:
    return sum(c @ r for c, r in zip(compared, readings, strict=True))


def _trained(model: Qwen2, circuit: _Circuit) -> nnx.State:
    """1, but 0 for the frozen heads and for the norms before them, which others share."""
    trained = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    attention = trained["layers"]["self_attn"]
    queries, keys = circuit.head(0).stop * circuit.group_size, circuit.head(0).stop
    for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        for param in attention[name].values():
            param[...] = param[...].at[:NUM_FROZEN_LAYERS, :rows].set(0)
    outputs = attention["o_proj"]["weight"]
    outputs[...] = outputs[...].at[:NUM_FROZEN_LAYERS, :, :queries].set(0)
    norms = trained["layers"]["input_layernorm"]["weight"]
    norms[...] = norms[...].at[:NUM_FROZEN_LAYERS].set(0)
    return trained


def _orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Rows or columns, whichever are fewer, of length 1 and at right angles."""
    size = max(rows, columns)
    return np.linalg.qr(rng.normal(size=(size, size)))[0][:rows, :columns]
