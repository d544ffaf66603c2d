"""Drawing tokens: the softmax, the nucleus, and what a seed decides."""

import jax
import numpy as np
import pytest

from emodistill.model.sampling import GROUP, Sampling, draw, logprobs
from emodistill.seeding import stream

compiled_draw = jax.jit(draw)


def drawn(logits_V, num_draws, *, temperature=1.0, top_p=1.0, step=0):
    """Tokens under the seeds 0, 1, 2, …"""
    logits_BV = np.tile(logits_V.astype(np.float32), (num_draws, 1))
    sampling = Sampling(
        np.arange(num_draws, dtype=np.uint32),
        np.full(num_draws, temperature, np.float32),
        np.full(num_draws, top_p, np.float32),
    )
    return np.asarray(compiled_draw(logits_BV, sampling, np.full(num_draws, step)))


def softmax(logits_V):
    weights_V = np.exp(logits_V - logits_V.max())
    return weights_V / weights_V.sum()


@pytest.mark.parametrize(
    "vocab_size", [7, 3 * GROUP + 5, pytest.param(GROUP, marks=pytest.mark.slow)]
)
def test_draws_follow_the_softmax(vocab_size):
    logits_V = stream(0, "logits").normal(size=vocab_size) * 2
    counts_V = np.bincount(drawn(logits_V, 4000, temperature=0.7), minlength=vocab_size)
    expected_V = softmax(logits_V / 0.7)
    spread_V = 4.5 * np.sqrt(expected_V * (1 - expected_V) / 4000) + 1e-3
    assert (np.abs(counts_V / 4000 - expected_V) < spread_V).all()
    assert len(set(drawn(logits_V, 4000, step=1)[:50]) - {0}) > 1


def test_a_seed_and_a_step_give_one_token():
    logits_V = np.zeros(500)
    first = drawn(logits_V, 6)
    assert (first == drawn(logits_V, 6)).all()
    assert (first != drawn(logits_V, 6, step=1)).any()
    assert first[0] == drawn(logits_V, 1)[0]


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.99])
def test_the_nucleus_is_that_of_sorting(top_p):
    logits_V = stream(0, "logits").normal(size=3 * GROUP + 5) * 3
    order = np.argsort(-logits_V)
    is_needed = np.cumsum(softmax(logits_V)[order]) - softmax(logits_V)[order] < top_p
    nucleus = set(order[is_needed].tolist())
    found = set(drawn(logits_V, 4000, top_p=top_p).tolist())
    assert found <= nucleus
    weights_V = np.where(np.isin(np.arange(len(logits_V)), list(nucleus)), softmax(logits_V), 0)
    likely = {token for token in nucleus if weights_V[token] / weights_V.sum() > 0.003}
    assert likely <= found


def test_a_row_s_neighbours_change_nothing():
    """Greedy, warm and nucleus rows beside each other draw what they draw alone."""
    logits_BV = stream(0, "rows").normal(size=(6, 500)).astype(np.float32)
    settings = [
        (0, 0.0, 1.0),
        (1, 1.0, 1.0),
        (2, 0.7, 0.5),
        (3, 1.0, 0.9),
        (4, 0.0, 0.3),
        (5, 2, 1),
    ]

    def tokens(rows):
        columns = zip(*(settings[row] for row in rows), strict=True)
        types = (np.uint32, np.float32, np.float32)
        sampling = Sampling(*map(np.array, columns, types))
        steps = np.zeros(len(rows), int)
        return np.asarray(compiled_draw(logits_BV[list(rows)], sampling, steps))

    together = tokens(range(6))
    assert together.tolist() == [int(tokens([row])[0]) for row in range(6)]
    assert together[0] == logits_BV[0].argmax() and together[4] == logits_BV[4].argmax()


def test_logprobs_are_those_of_the_softmax():
    logits_BV = stream(0, "rows").normal(size=(3, 50))
    found_B = jax.jit(logprobs)(logits_BV.astype(np.float32), np.array([4, 0, 49]))
    expected_B = [
        np.log(softmax(row)[token]) for row, token in zip(logits_BV, (4, 0, 49), strict=True)
    ]
    np.testing.assert_allclose(found_B, expected_B, rtol=1e-5)
