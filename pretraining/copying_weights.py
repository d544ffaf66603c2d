"""Start weights that lean towards copying.

A negotiator lives by copying: its own figure, the other side's, a fact. A small model that starts at
random hardly learns to copy within the tokens of an hour (docs/notes.md). What it lacks is the
two-layer circuit called induction (Olsson et al., "In-context learning and induction heads", 2022),
so it is written into the weights here, and everything is trained from there:

1. In the first layer, head n attends to the position n before its own. Its biases alone say so: a
   constant query and a constant key, rotated against each other by n positions. It writes what it
   finds into a part of the residual stream of its own. Each position then knows the tokens before it.
2. In the next layers a head looks for positions that are preceded by what its own position ends
   with, the last one, two, three … tokens, and adds the token found there to its output.

The residual stream is cut in two for it: half of its directions hold the token's vector, the other
half the tokens before. Only the slowest rotary frequencies compare tokens, since they hardly know
how far apart two positions are; only the fast ones count positions.
"""

from __future__ import annotations

import numpy as np
from flax import nnx

from emodistill.errors import InputError
from emodistill.model.config import Qwen2Config
from emodistill.model.qwen2 import INITIAL_STD, Qwen2

ATTENTION_GAP = 6.0
"""How many nats the position that a head of the first layer looks for is ahead of its neighbours:
at 6 they get less than 1 % of the attention."""
LARGEST_TURN = 0.5
"""A frequency may compare tokens if it turns by no more radians over the longest sample: the cosine,
by which a match is weakened, is then at least 0.88."""
MIN_FREQUENCY = 0.03
"""Frequencies from here on, in radians a position, count positions."""
MATCH_SCALE = 0.35
"""Scale of the queries and keys that compare tokens: each token in common adds about half a nat.
Starts that are sharp enough to copy untrained learn later: a softmax that is sure passes on little
of the gradient (docs/notes.md)."""
COPY_SCALE = 0.1
"""Scale of the copied token's vector: with it the residual stream is about twice as long as before,
so that where heads agree on a token it counts."""
NUM_COPYING_LAYERS = 2
"""Layers with heads that find and copy; with two, digits are learned sooner than with one."""


def write_copying_weights(model: Qwen2, rng: np.random.Generator, max_tokens: int) -> None:
    """Overwrite the embeddings and the first layers' attention of a new model.

    Args:
      model: has one set of weights for each layer, biases at q, k and v, and as many heads as the
        hidden size has room for.
      max_tokens: positions of the longest sample.

    Raises:
      InputError: the model has one layer only, or its heads are too narrow.
    """
    config = model.config
    frequencies = config.rope_theta ** (-np.arange(config.head_dim // 2) / (config.head_dim // 2))
    slow = np.flatnonzero(frequencies * max_tokens < LARGEST_TURN)
    width = config.hidden_size // 2 // config.num_heads  # directions for each token before
    if config.num_layers < 2 or not len(slow) or width > config.head_dim:
        raise InputError(
            f"A student of {config.num_layers} layers with {config.num_heads} heads of "
            f"{config.head_dim} can't be given weights that copy: it needs two layers, and heads "
            f"of at least {width} with a rotary base of more than {config.rope_theta:g}. "
            "Raise --num-layers or lower --num-heads."
        )
    directions = _orthonormal(rng, config.hidden_size, config.hidden_size)
    half = config.hidden_size // 2
    token_DE, rest = directions[:, :half], directions[:, half:]
    before = [rest[:, n * width :][:, :width] for n in range(config.num_heads)]

    # What else the first layer would add is noise to the heads that compare.
    o_weight = _array(model.layers.self_attn.o_proj.weight)
    o_weight[0] = 0.0
    _set(model.layers.self_attn.o_proj.weight, o_weight)
    vectors = rng.normal(size=(config.vocab_size, half)) @ token_DE.T
    _set(model.embed_tokens.weight, INITIAL_STD * np.sqrt(2) * vectors)
    reading_WD = _orthonormal(rng, width, half) @ token_DE.T  # what is told of a token before
    _look_back(model, frequencies, reading_WD, before)
    slow_dims = np.concatenate([slow, slow + config.head_dim // 2])
    for layer in range(1, min(1 + NUM_COPYING_LAYERS, config.num_layers)):
        _find_and_copy(model, layer, rng, slow_dims, [reading_WD, *(d.T for d in before)], token_DE)


def _look_back(
    model: Qwen2, frequencies: np.ndarray, reading_WD: np.ndarray, before: list[np.ndarray]
) -> None:
    """The first layer: head n copies a part of the n-th token before into `before[n - 1]`."""
    attention, config = model.layers.self_attn, model.config
    fast = np.flatnonzero(frequencies > MIN_FREQUENCY)
    turns = frequencies[fast]
    # A score is sum(size² cos(turn · distance)) / sqrt(head_dim); this size gives the gap between
    # a distance of 0 and of 1.
    size = np.sqrt(ATTENTION_GAP * np.sqrt(config.head_dim) / np.sum(1 - np.cos(turns)))
    q_bias, k_bias, v_weight, o_weight = map(
        _array,
        (
            attention.q_proj.bias,
            attention.k_proj.bias,
            attention.v_proj.weight,
            attention.o_proj.weight,
        ),
    )
    width = len(reading_WD)
    for head in _heads(config.num_kv_heads, config):
        k_bias[0, head][fast] = size
        v_weight[0, head][:width] = reading_WD
    for n, head in enumerate(_heads(config.num_heads, config), 1):
        q_bias[0, head][fast] = size * np.cos(n * turns)
        q_bias[0, head][fast + config.head_dim // 2] = -size * np.sin(n * turns)
        # As long as the token's own vector: the norm before the projection made it 1 / std longer.
        o_weight[0, :, head][:, :width] = 2 * INITIAL_STD * before[n - 1]
    _set(attention.q_proj.bias, q_bias)
    _set(attention.k_proj.bias, k_bias)
    _set(attention.v_proj.weight, v_weight)
    _set(attention.o_proj.weight, o_weight)


def _find_and_copy(
    model: Qwen2,
    layer: int,
    rng: np.random.Generator,
    slow_dims: np.ndarray,
    readings: list[np.ndarray],
    token_DE: np.ndarray,
) -> None:
    """Head n of `layer` compares the last n tokens at its position, this one included, with those
    before each other position, and copies the token there.

    Args:
      readings: [width, D] each: what a position holds of its own token, and of those 1, 2, … before.
    """
    attention, config = model.layers.self_attn, model.config
    q_weight, k_weight, v_weight, o_weight = map(
        _array,
        (
            attention.q_proj.weight,
            attention.k_proj.weight,
            attention.v_proj.weight,
            attention.o_proj.weight,
        ),
    )
    width = len(readings[0])
    compared = [_orthonormal(rng, len(slow_dims), width) for _ in readings[1:]]
    values = [
        _orthonormal(rng, config.head_dim, token_DE.shape[1]) @ token_DE.T
        for _ in range(config.num_kv_heads)
    ]
    for head, value in zip(_heads(config.num_kv_heads, config), values, strict=True):
        pairs = zip(compared, readings[1:], strict=True)
        k_weight[layer, head][slow_dims] += MATCH_SCALE * sum(c @ r for c, r in pairs)
        v_weight[layer, head] = value
    for n, head in enumerate(_heads(config.num_heads, config), 1):
        pairs = list(zip(compared, readings[:-1], strict=True))[:n]
        q_weight[layer, head][slow_dims] += MATCH_SCALE * sum(c @ r for c, r in pairs)
        value = values[(n - 1) * config.num_kv_heads // config.num_heads]
        o_weight[layer, :, head] = COPY_SCALE * value.T
    _set(attention.q_proj.weight, q_weight)
    _set(attention.k_proj.weight, k_weight)
    _set(attention.v_proj.weight, v_weight)
    _set(attention.o_proj.weight, o_weight)


def _heads(number: int, config: Qwen2Config) -> list[slice]:
    """The rows of each head in a projection of `number` heads."""
    return [slice(n * config.head_dim, (n + 1) * config.head_dim) for n in range(number)]


def _orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Rows or columns, whichever are fewer, of length 1 and at right angles."""
    size = max(rows, columns)
    return np.linalg.qr(rng.normal(size=(size, size)))[0][:rows, :columns]


def _array(param: nnx.Param) -> np.ndarray:
    return np.array(param[...])


def _set(param: nnx.Param, values: np.ndarray) -> None:
    param[...] = values.astype(param.dtype)
