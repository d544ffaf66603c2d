"""Start weights that lean towards copying.

A negotiator lives by copying: its own figure, the other side's, a fact. A small model that starts
at random hardly learns to copy within the tokens of an hour (docs/notes.md). What it lacks is the
circuit called induction (Olsson et al., "In-context learning and induction heads", 2022), so it is
written into the weights here, and everything is trained from there:

1. In the first layer, head n attends to the position n before its own. Its biases alone say so: a
   constant query and a constant key, rotated against each other by n positions. It writes what it
   finds into a part of the residual stream of its own, so that each position knows the tokens
   before it.
2. In the next layers head n looks for positions that are preceded by the n tokens that end at its
   own position, and adds the token found there to its output.

The residual stream is cut in two for it: half of its directions hold the token's vector, the other
half the tokens before. Only the slowest rotary frequencies compare tokens, since they hardly know
how far apart two positions are; only the fast ones count positions.
"""

from __future__ import annotations

import numpy as np

from emodistill.errors import InputError
from emodistill.model.config import Qwen2Config
from emodistill.model.qwen2 import INITIAL_STD, Qwen2

Weights = dict[str, np.ndarray]
"""Writable copies of a model's weights, those of all layers stacked, by name."""

ATTENTION_GAP = 6.0
"""How many nats the position that a head of the first layer looks for is ahead of its neighbours:
at 6 they get some 1 % of the attention."""
LARGEST_TURN = 0.5
"""A frequency may compare tokens if it turns by no more radians over the longest sample: the
cosine, by which a match is weakened, is then at least 0.88."""
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
      model: its q, k and v have biases.
      max_tokens: positions of the longest sample.

    Raises:
      InputError: the model has a single layer, or too few frequencies that compare tokens.
    """
    config = model.config
    width = config.hidden_size // 2 // config.num_heads  # directions for each token before
    frequencies = config.rope_theta ** (-np.arange(config.head_dim // 2) / (config.head_dim // 2))
    slow = np.flatnonzero(frequencies * max_tokens < LARGEST_TURN)
    if config.num_layers < 2 or not len(slow) or width > config.head_dim:
        raise InputError(
            f"num_layers={config.num_layers}, num_heads={config.num_heads} of {config.head_dim}: "
            "a student that leans towards copying has two layers or more, heads of no less than "
            f"{width}, and a rotary base above {config.rope_theta:g} for heads so narrow. "
            "Raise --num-layers or lower --num-heads."
        )
    attention = model.layers.self_attn
    params = {
        "q_bias": attention.q_proj.bias,
        "k_bias": attention.k_proj.bias,
        **{f"{name}_weight": getattr(attention, f"{name}_proj").weight for name in "qkvo"},
        "embedding": model.embed_tokens.weight,
    }
    weights = {name: np.array(param[...]) for name, param in params.items()}

    directions = _orthonormal(rng, config.hidden_size, config.hidden_size)
    token_DE, rest = np.split(directions, 2, axis=1)
    before = np.split(rest[:, : width * config.num_heads], config.num_heads, axis=1)
    vectors = rng.normal(size=(config.vocab_size, token_DE.shape[1])) @ token_DE.T
    weights["embedding"] = INITIAL_STD * np.sqrt(2) * vectors
    reading_WD = _orthonormal(rng, width, token_DE.shape[1]) @ token_DE.T
    _look_back(weights, config, frequencies, reading_WD, before)
    slow_dims = np.concatenate([slow, slow + config.head_dim // 2])
    readings = [reading_WD, *(directions.T for directions in before)]
    for layer in range(1, min(1 + NUM_COPYING_LAYERS, config.num_layers)):
        _find_and_copy(weights, config, layer, rng, slow_dims, readings, token_DE)

    for name, param in params.items():
        param[...] = weights[name].astype(param.dtype)


def _look_back(
    weights: Weights,
    config: Qwen2Config,
    frequencies: np.ndarray,
    reading_WD: np.ndarray,
    before: list[np.ndarray],
) -> None:
    """The first layer: head n copies a part of the n-th token before into `before[n - 1]`."""
    fast = np.flatnonzero(frequencies > MIN_FREQUENCY)
    turns, other_half = frequencies[fast], fast + config.head_dim // 2
    # A score is sum(size² cos(turn · distance)) / sqrt(head_dim); this size gives the gap between
    # a distance of 0 and of 1.
    size = np.sqrt(ATTENTION_GAP * np.sqrt(config.head_dim) / np.sum(1 - np.cos(turns)))
    for head in _heads(config.num_kv_heads, config):
        weights["k_bias"][0, head][fast] = size
        weights["v_weight"][0, head][: len(reading_WD)] = reading_WD
    # What else the first layer would add is noise to the heads that compare.
    weights["o_weight"][0] = 0.0
    for n, head in enumerate(_heads(config.num_heads, config), 1):
        weights["q_bias"][0, head][fast] = size * np.cos(n * turns)
        weights["q_bias"][0, head][other_half] = -size * np.sin(n * turns)
        # What is told of a token is then as long as its embedding: half of the length of the normed
        # stream came through, which is 1 / INITIAL_STD of the embedding's.
        weights["o_weight"][0, :, head][:, : len(reading_WD)] = 2 * INITIAL_STD * before[n - 1]


def _find_and_copy(
    weights: Weights,
    config: Qwen2Config,
    layer: int,
    rng: np.random.Generator,
    slow_dims: np.ndarray,
    readings: list[np.ndarray],
    token_DE: np.ndarray,
) -> None:
    """Head n of `layer` compares the n tokens that end at its position with the n before each other
    position, and copies the token there.

    Args:
      readings: [width, D] each: what a position holds of its own token, and of the tokens 1, 2, …
        before it.
    """
    compared = [_orthonormal(rng, len(slow_dims), len(readings[0])) for _ in readings[1:]]
    at_key = sum(c @ r for c, r in zip(compared, readings[1:], strict=True))
    values = [
        _orthonormal(rng, config.head_dim, token_DE.shape[1]) @ token_DE.T
        for _ in range(config.num_kv_heads)
    ]
    for head, value in zip(_heads(config.num_kv_heads, config), values, strict=True):
        weights["k_weight"][layer, head][slow_dims] += MATCH_SCALE * at_key
        weights["v_weight"][layer, head] = value
    for n, head in enumerate(_heads(config.num_heads, config), 1):
        at_query = sum(c @ r for c, r in zip(compared[:n], readings[:n], strict=True))
        weights["q_weight"][layer, head][slow_dims] += MATCH_SCALE * at_query
        value = values[(n - 1) * config.num_kv_heads // config.num_heads]
        weights["o_weight"][layer, :, head] = COPY_SCALE * value.T


def _heads(number: int, config: Qwen2Config) -> list[slice]:
    """The rows of each head in a projection of `number` heads."""
    return [slice(n * config.head_dim, (n + 1) * config.head_dim) for n in range(number)]


def _orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Rows or columns, whichever are fewer, of length 1 and at right angles."""
    size = max(rows, columns)
    return np.linalg.qr(rng.normal(size=(size, size)))[0][:rows, :columns]
