"""The losses against looped NumPy, finite differences and what their definitions imply."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from emodistill.seeding import stream
from emodistill.train import losses
from emodistill.train.losses import MAX_LOG_RATIO, token_logprobs


def sft_loss(logp_BT, mask_BT, loss_mean="token"):
    """Of a step that consists of these samples; at least one token, so that none give 0."""
    return losses.sft_loss(
        logp_BT,
        mask_BT,
        loss_mean=loss_mean,
        num_samples=jnp.maximum(mask_BT.any(axis=1).sum(), 1),
        num_tokens=jnp.maximum(mask_BT.sum(), 1),
    )


def alol_loss(logp_BT, mask_BT, advantages_B):
    return losses.alol_loss(logp_BT, mask_BT, advantages_B, num_tokens=mask_BT.sum())


@functools.partial(jax.jit, static_argnames="ratio")
def jpo_loss(logp_BT, ref_logp_BT, mask_BT, advantages_B, *, kappa=1.0, **settings):
    totals = {
        "num_samples": jnp.maximum(mask_BT.any(axis=1).sum(), 1),
        "num_tokens": jnp.maximum(mask_BT.sum(), 1),
    }
    settings = {"kappa": kappa} | totals | settings
    return losses.jpo_loss(logp_BT, ref_logp_BT, mask_BT, advantages_B, **settings)


def dpo_loss(logp_BT, ref_logp_BT, mask_BT, *, beta, num_pairs=None):
    if num_pairs is None:
        num_pairs = mask_BT.any(axis=1).reshape(-1, 2).all(axis=1).sum()
    return losses.dpo_loss(logp_BT, ref_logp_BT, mask_BT, beta=beta, num_pairs=num_pairs)


RATIOS = ("mean-token", "sequence", "token")


def sample(num_rows=5, num_tokens=7, spread=0.1):
    """Log-probs, reference, ragged mask and advantages."""
    rng = stream(0, "losses", num_rows, num_tokens)
    logp_BT = rng.normal(-2.0, 0.5, (num_rows, num_tokens)).astype(np.float32)
    ref_logp_BT = (logp_BT + rng.normal(0, spread, logp_BT.shape)).astype(np.float32)
    lengths_B = rng.integers(1, num_tokens + 1, num_rows)
    mask_BT = np.arange(num_tokens) < lengths_B[:, None]
    advantages_B = rng.normal(0, 1, num_rows).astype(np.float32)
    return logp_BT, ref_logp_BT, mask_BT, advantages_B


def looped_jpo(logp_BT, ref_logp_BT, mask_BT, advantages_B, *, clip, kl_coef, kappa, ratio):
    """Eq. 19 sample by sample and token by token, in Python floats."""
    terms, kls, ratios = [], [], []
    for logp_T, ref_T, mask_T, advantage in zip(
        logp_BT, ref_logp_BT, mask_BT, advantages_B, strict=True
    ):
        logs = [float(p) - float(r) for p, r, m in zip(logp_T, ref_T, mask_T, strict=True) if m]
        if not logs:
            continue
        advantage *= 1 if advantage > 0 else kappa
        kls += [math.exp(-x) + x - 1 for x in logs]
        exponents = {"mean-token": [sum(logs) / len(logs)], "sequence": [sum(logs)], "token": logs}
        for exponent in exponents[ratio]:
            rho = math.exp(exponent)
            bounded = min(max(rho, 1 - clip), 1 + clip)
            ratios.append(rho)
            terms.append(min(rho * advantage, bounded * advantage))
    surrogate, kl = sum(terms) / len(terms), sum(kls) / len(kls)
    return {
        "policy/loss": kl_coef * kl - surrogate,
        "policy/surrogate": surrogate,
        "policy/kl_k3": kl,
        "policy/ratio_mean": sum(ratios) / len(ratios),
        "policy/clip_fraction": sum(abs(r - 1) > clip for r in ratios) / len(ratios),
    }


def test_token_logprobs_are_log_softmax_in_float32():
    rng = stream(0, "logits")
    logits = rng.normal(0, 3, (2, 3, 11))
    targets = rng.integers(0, 11, (2, 3))
    want = np.array(
        [
            [row[t] - math.log(sum(math.exp(v) for v in row)) for row, t in zip(*pair, strict=True)]
            for pair in zip(logits, targets, strict=True)
        ]
    )
    got = token_logprobs(jnp.asarray(logits, jnp.float32), jnp.asarray(targets))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    low = token_logprobs(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(targets))
    assert low.dtype == jnp.float32
    big = token_logprobs(jnp.full((1, 1, 4), 3e4, jnp.float32), jnp.zeros((1, 1), int))
    np.testing.assert_allclose(big, math.log(0.25), rtol=1e-6)


def test_sft_loss_is_a_mean_over_tokens_or_over_replies():
    logp_BT, _, mask_BT, _ = sample()
    replies = [
        [-float(p) for p, m in zip(*row, strict=True) if m]
        for row in zip(logp_BT, mask_BT, strict=True)
    ]
    replies = [reply for reply in replies if reply]
    tokens = [nll for reply in replies for nll in reply]
    per_token = sum(tokens) / len(tokens)
    for loss_mean, expected in (
        ("token", per_token),
        ("reply", sum(sum(reply) / len(reply) for reply in replies) / len(replies)),
        ("reply-sum", sum(tokens) / len(replies)),  # Eq. 16 as printed
    ):
        loss, metrics = sft_loss(logp_BT, mask_BT, loss_mean=loss_mean)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        np.testing.assert_allclose(metrics["sft/loss"], per_token, rtol=1e-6)
    with pytest.raises(ValueError, match="loss_mean='sum' is none of"):
        sft_loss(logp_BT, mask_BT, loss_mean="sum")


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("spread", "kappa"), [(0.02, 1.0), (0.6, 1.0), (0.6, 0.3), (0.6, 0.0)])
def test_jpo_loss_equals_the_loop(ratio, spread, kappa):
    args = sample(num_rows=9, spread=spread)
    settings = {"clip": 0.2, "kl_coef": 0.04, "kappa": kappa, "ratio": ratio}
    want = looped_jpo(*args, **settings)
    loss, got = jpo_loss(*args, **settings)
    assert set(got) == set(want)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
    assert loss == got["policy/loss"]
    if spread == 0.6:
        assert 0 < want["policy/clip_fraction"] < 1


@pytest.mark.parametrize("ratio", RATIOS)
def test_kappa_weighs_the_advantages_that_are_not_positive(ratio):
    *logps, advantages_B = sample()
    settings = {"clip": 0.2, "kl_coef": 0.04, "ratio": ratio}
    got = jpo_loss(*logps, advantages_B, kappa=0.3, **settings)[0]
    weighed_B = np.where(advantages_B > 0, advantages_B, 0.3 * advantages_B)
    want = jpo_loss(*logps, weighed_B, **settings)[0]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert abs(float(got - jpo_loss(*logps, advantages_B, **settings)[0])) > 1e-3


@pytest.mark.parametrize("ratio", RATIOS)
def test_gradients_agree_with_finite_differences(ratio):
    logp_BT, ref_logp_BT, mask_BT, advantages_B = sample(spread=0.3)

    def loss(logp_BT):
        settings = {"clip": 0.2, "kl_coef": 0.1, "ratio": ratio}
        return jpo_loss(logp_BT, ref_logp_BT, mask_BT, advantages_B, **settings)[0]

    check_grads(jax.jit(loss), (logp_BT,), order=1, modes=["rev"], eps=1e-2, rtol=1e-2, atol=1e-3)


def test_the_sft_gradient_agrees_with_finite_differences():
    logp_BT, _, mask_BT, _ = sample()
    loss = jax.jit(lambda x: sft_loss(x, mask_BT)[0])
    check_grads(loss, (logp_BT,), order=1, modes=["rev"], eps=1e-2, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("ratio", RATIOS)
def test_at_the_reference_ratio_is_1_kl_0_and_the_gradient_the_policy_gradient(ratio):
    logp_BT, _, mask_BT, advantages_B = sample()
    settings = {"clip": 0.2, "kl_coef": 0.04, "ratio": ratio}

    def loss(logp_BT):
        return jpo_loss(logp_BT, logp_BT_reference, mask_BT, advantages_B, **settings)

    logp_BT_reference = jnp.asarray(logp_BT)
    grad_BT, metrics = jax.grad(loss, has_aux=True)(jnp.asarray(logp_BT))
    assert float(metrics["policy/ratio_mean"]) == 1.0
    assert float(metrics["policy/kl_k3"]) == 0.0
    assert float(metrics["policy/clip_fraction"]) == 0.0

    lengths_B = mask_BT.sum(axis=1)
    per_token_B = {  # d/d logp of −E[A · log π], in the units of each ratio
        "mean-token": -advantages_B / lengths_B / len(lengths_B),
        "sequence": -advantages_B / len(lengths_B),
        "token": -advantages_B / lengths_B.sum(),
    }[ratio]
    np.testing.assert_allclose(grad_BT, np.where(mask_BT, per_token_B[:, None], 0), rtol=1e-5)


def test_no_gradient_flows_into_the_reference():
    logp_BT, ref_logp_BT, mask_BT, advantages_B = sample()
    grad = jax.grad(
        lambda ref: jpo_loss(
            logp_BT, ref, mask_BT, advantages_B, clip=0.2, kl_coef=0.5, ratio="mean-token"
        )[0]
    )(jnp.asarray(ref_logp_BT))
    assert not np.any(grad)


@pytest.mark.parametrize("ratio", RATIOS)
def test_masking_equals_deleting(ratio):
    logp_BT, ref_logp_BT, mask_BT, advantages_B = sample(num_rows=4)
    mask_BT = np.array(mask_BT)
    mask_BT[:, 5:] = False  # the last columns
    mask_BT[2] = False  # a row
    poison = np.where(mask_BT, 0, np.float32(1e30))
    settings = {"clip": 0.2, "kl_coef": 0.04, "ratio": ratio}

    def masked(logp_BT):
        return jpo_loss(logp_BT, ref_logp_BT - poison, mask_BT, advantages_B, **settings)

    def deleted(logp_BT):
        kept = [0, 1, 3]
        return jpo_loss(
            logp_BT, ref_logp_BT[kept, :5], mask_BT[kept, :5], advantages_B[kept], **settings
        )

    grad, metrics = jax.grad(masked, has_aux=True)(jnp.asarray(logp_BT + poison))
    grad_kept, metrics_kept = jax.grad(deleted, has_aux=True)(jnp.asarray(logp_BT[[0, 1, 3], :5]))
    for name in metrics:
        np.testing.assert_allclose(metrics[name], metrics_kept[name], rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(grad[np.array([0, 1, 3]), :5], grad_kept, rtol=1e-6)
    assert not np.any(grad[2])
    assert not np.any(grad[:, 5:])
    np.testing.assert_allclose(
        sft_loss(logp_BT + poison, mask_BT)[0],
        sft_loss(logp_BT[[0, 1, 3], :5], mask_BT[[0, 1, 3], :5])[0],
        rtol=1e-6,
    )


@pytest.mark.parametrize("ratio", RATIOS)
def test_micro_batches_with_the_totals_of_the_step_add_up(ratio):
    logp_BT, ref_logp_BT, mask_BT, advantages_B = sample(num_rows=6)
    settings = {"clip": 0.2, "kl_coef": 0.04, "ratio": ratio}
    whole = jpo_loss(logp_BT, ref_logp_BT, mask_BT, advantages_B, **settings)[1]
    totals = {"num_samples": 6.0, "num_tokens": float(mask_BT.sum())}
    parts = [
        jpo_loss(logp_BT[r], ref_logp_BT[r], mask_BT[r], advantages_B[r], **settings, **totals)[1]
        for r in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    for name, value in whole.items():
        np.testing.assert_allclose(sum(p[name] for p in parts), value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_value_and_gradient_are_finite_at_100_nats(ratio, dtype):
    gaps_B, advantages_B = np.array([100, 100, -100, -100]), np.array([-2.0, 2, -2, 2])
    logp_BT = jnp.full((4, 3), -1.0, dtype)
    ref_logp_BT = logp_BT + jnp.asarray(gaps_B[:, None], dtype)

    @jax.jit
    @jax.value_and_grad
    def loss(logp_BT):
        mask_BT, settings = jnp.ones((4, 3), bool), {"clip": 0.2, "kl_coef": 0.04, "ratio": ratio}
        return jpo_loss(logp_BT, ref_logp_BT, mask_BT, advantages_B, **settings)[0]

    value, grad = loss(logp_BT)
    assert np.isfinite(value)
    assert np.all(np.isfinite(grad.astype(jnp.float32)))
    assert abs(float(value)) < 10 * math.exp(MAX_LOG_RATIO)


def test_k3_is_the_bound_s_value_beyond_the_clamp_and_exact_below_it():
    def kl(delta):
        logp, ref = jnp.zeros((1, 1)), jnp.full((1, 1), delta)
        mask, advantages = jnp.ones((1, 1), bool), jnp.zeros(1)
        settings = {"clip": 0.2, "kl_coef": 1.0, "ratio": "mean-token"}
        return float(jpo_loss(logp, ref, mask, advantages, **settings)[1]["policy/kl_k3"])

    for delta in (1e-2, -1e-2, 0.5, -3.0, 19.0):
        np.testing.assert_allclose(kl(delta), math.expm1(delta) - delta, rtol=1e-3)
    assert kl(50.0) == kl(MAX_LOG_RATIO)


def test_k3_averages_to_the_enumerated_kl_over_a_toy_vocabulary():
    """Its mean under the policy is KL(π‖π_ref), here over all five tokens."""
    rng = stream(0, "toy")
    logits, ref_logits = rng.normal(size=5), rng.normal(size=5)
    logp = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    ref = jax.nn.log_softmax(jnp.asarray(ref_logits, jnp.float32))
    settings = {"clip": 0.2, "kl_coef": 1.0, "ratio": "token"}
    one, zero = np.ones((1, 1), bool), np.zeros(1, np.float32)
    k3 = [
        float(jpo_loss(logp[None, i : i + 1], ref[None, i : i + 1], one, zero, **settings)[0])
        for i in range(5)
    ]
    want = float(jnp.sum(jnp.exp(logp) * (logp - ref)))
    np.testing.assert_allclose(np.dot(np.exp(logp), k3), want, rtol=1e-5)


def test_an_empty_micro_batch_adds_nothing():
    mask = jnp.zeros((2, 3), bool)
    ones = jnp.ones((2, 3))
    for ratio in RATIOS:
        loss, metrics = jpo_loss(ones, ones, mask, jnp.ones(2), clip=0.2, kl_coef=0.04, ratio=ratio)
        assert float(loss) == 0.0
        assert not any(float(value) for value in metrics.values())
    assert float(sft_loss(ones, mask)[0]) == 0.0


def test_an_unknown_ratio_is_refused_by_name():
    with pytest.raises(ValueError, match="ratio='mean' is none of"):
        jpo_loss(*sample(), clip=0.2, kl_coef=0.04, ratio="mean")


def test_alol_is_the_likelihood_of_good_replies_weighted_by_their_advantage():
    logp_BT = jnp.log(jnp.array([[0.5, 0.25, 0.9], [0.1, 0.9, 0.9]]))
    mask_BT = jnp.array([[True, True, False], [True, False, False]])
    loss, metrics = alol_loss(logp_BT, mask_BT, jnp.array([2.0, -3.0]))
    np.testing.assert_allclose(loss, 2 * (math.log(2) + math.log(4)) / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["sft/loss"], math.log(80) / 3, rtol=1e-6)
    grad = jax.grad(lambda x: alol_loss(x, mask_BT, jnp.array([2.0, -3.0]))[0])(logp_BT)
    assert (grad[1] == 0).all()


def dpo(logp_BT, ref_logp_BT, beta=0.1):
    return dpo_loss(logp_BT, ref_logp_BT, jnp.ones(logp_BT.shape, bool), beta=beta)


def test_dpo_by_hand():
    logp_BT = jnp.array([[-1.0, -2.0], [-3.0, -1.0]])
    ref_logp_BT = jnp.array([[-1.5, -2.5], [-2.0, -1.0]])
    margin = 0.1 * ((-3.0 + 4.0) - (-4.0 + 3.0))
    loss, metrics = dpo(logp_BT, ref_logp_BT)
    np.testing.assert_allclose(loss, math.log1p(math.exp(-margin)), rtol=1e-6)
    np.testing.assert_allclose(metrics["dpo/margin"], margin, rtol=1e-6)
    assert metrics["dpo/accuracy"] == 1
    start, _ = dpo(ref_logp_BT, ref_logp_BT)
    np.testing.assert_allclose(start, math.log(2), rtol=1e-6)


def test_dpo_pairs_of_a_step_add_up_and_empty_slots_weigh_nothing():
    rng = np.random.default_rng(0)
    logp_BT, ref_logp_BT = (jnp.asarray(rng.normal(size=(6, 4)) - 3) for _ in range(2))
    mask_BT = jnp.asarray(rng.random((6, 4)) < 0.8).at[:, 0].set(True)
    whole = dpo_loss(logp_BT, ref_logp_BT, mask_BT, beta=0.3)[0]
    parts = [
        dpo_loss(
            logp_BT[i : i + 2], ref_logp_BT[i : i + 2], mask_BT[i : i + 2], beta=0.3, num_pairs=3
        )
        for i in (0, 2, 4)
    ]
    np.testing.assert_allclose(sum(loss for loss, _ in parts), whole, rtol=1e-6)
    padded = [jnp.pad(x, ((0, 4), (0, 0))) for x in (logp_BT, ref_logp_BT, mask_BT)]
    np.testing.assert_allclose(dpo_loss(*padded, beta=0.3)[0], whole, rtol=1e-6)


@pytest.mark.parametrize("gap", [100.0, -100.0])
def test_dpo_is_finite_at_100_nats_a_token(gap):
    logp_BT = jnp.array([[-1.0, -1.0], [-1.0 - gap, -1.0 - gap]])
    loss, grad = jax.value_and_grad(lambda x: dpo(x, jnp.full((2, 2), -1.0), 0.5)[0])(logp_BT)
    assert np.isfinite(loss) and np.isfinite(grad).all()
