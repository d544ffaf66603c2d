"""The losses against looped NumPy, finite differences and what their definitions imply."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emodistill.seeding import stream
from emodistill.train import losses
from emodistill.train.losses import MAX_LOG_RATIO, token_logprobs


def compiled(loss, argnums=0, **static):
    """The loss with its gradient: one program for each shape, whatever a test asks of it."""
    return jax.jit(jax.value_and_grad(loss, argnums, has_aux=True), **static)


_sft = compiled(losses.sft_loss, static_argnames="loss_mean")
_alol = compiled(losses.alol_loss)
_jpo = compiled(losses.jpo_loss, argnums=(0, 1), static_argnames="ratio")
_dpo = compiled(losses.dpo_loss)


def totals_of(mask_BT):
    """Of a step that consists of these samples; at least one of each, so that none give 0."""
    mask_BT = np.asarray(mask_BT)
    num_samples, num_tokens = mask_BT.any(axis=1).sum(), mask_BT.sum()
    return {"num_samples": float(max(num_samples, 1)), "num_tokens": float(max(num_tokens, 1))}


def sft_loss_and_gradient(logp_BT, mask_BT, loss_mean="token"):
    return _sft(logp_BT, mask_BT, loss_mean=loss_mean, **totals_of(mask_BT))


def sft_loss(*args, **settings):
    return sft_loss_and_gradient(*args, **settings)[0]


def jpo_loss_and_gradients(
    logp_BT, ref_logp_BT, mask_BT, advantages_B, *, kappa=1.0, clip=0.2, kl_coef=0.04, **settings
):
    """Loss and metrics, and the gradients of the policy's and of the reference's log-probs."""
    settings = {"kappa": kappa, "clip": clip, "kl_coef": kl_coef} | totals_of(mask_BT) | settings
    return _jpo(logp_BT, ref_logp_BT, mask_BT, advantages_B, **settings)


def jpo_loss(*args, **settings):
    return jpo_loss_and_gradients(*args, **settings)[0]


def dpo_loss_and_gradient(logp_BT, ref_logp_BT, mask_BT, *, beta, num_pairs=None):
    if num_pairs is None:
        num_pairs = int(mask_BT.any(axis=1).reshape(-1, 2).all(axis=1).sum())
    return _dpo(logp_BT, ref_logp_BT, mask_BT, beta=beta, num_pairs=num_pairs)


def dpo_loss(*args, **settings):
    return dpo_loss_and_gradient(*args, **settings)[0]


RATIOS = ("mean-token", "sequence", "token")


SHAPE = NUM_ROWS, NUM_TOKENS = 9, 7
"""Of nearly all samples, so that they share the programs of the losses."""


def sample(spread=0.1):
    """Log-probs, reference, ragged mask and advantages."""
    rng = stream(0, "losses", *SHAPE)
    logp_BT = rng.normal(-2.0, 0.5, SHAPE).astype(np.float32)
    ref_logp_BT = (logp_BT + rng.normal(0, spread, logp_BT.shape)).astype(np.float32)
    lengths_B = rng.integers(1, NUM_TOKENS + 1, NUM_ROWS)
    mask_BT = np.arange(NUM_TOKENS) < lengths_B[:, None]
    advantages_B = rng.normal(0, 1, NUM_ROWS).astype(np.float32)
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
    compute = jax.jit(token_logprobs)
    got = compute(logits.astype(np.float32), targets)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    low = jax.eval_shape(token_logprobs, logits.astype(jnp.bfloat16), targets)
    assert low.dtype == jnp.float32
    big = compute(np.full(logits.shape, 3e4, np.float32), targets)
    np.testing.assert_allclose(big, -math.log(11), rtol=1e-6)


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
    args = sample(spread)
    settings = {"clip": 0.2, "kl_coef": 0.04, "kappa": kappa, "ratio": ratio}
    want = looped_jpo(*args, **settings)
    loss, got = jpo_loss(*args, **settings)
    assert set(got) == set(want)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
    assert float(loss) == float(got["policy/loss"])
    if spread == 0.6:
        assert 0 < want["policy/clip_fraction"] < 1


@pytest.mark.parametrize("ratio", RATIOS)
def test_kappa_weighs_the_advantages_that_are_not_positive(ratio):
    *logps, advantages_B = sample()
    settings = {"ratio": ratio}
    got = jpo_loss(*logps, advantages_B, kappa=0.3, **settings)[0]
    weighed_B = np.where(advantages_B > 0, advantages_B, 0.3 * advantages_B)
    want = jpo_loss(*logps, weighed_B, **settings)[0]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert abs(float(got) - float(jpo_loss(*logps, advantages_B, **settings)[0])) > 1e-3


def assert_slopes(loss_and_gradient, logp_BT):
    """The gradient in random directions against the differences of the loss."""
    _, gradient_BT = loss_and_gradient(logp_BT)
    rng = stream(0, "directions")
    for _ in range(3):
        step_BT = 1e-2 * rng.normal(size=logp_BT.shape).astype(np.float32)
        ahead, behind = (loss_and_gradient(logp_BT + s * step_BT)[0] for s in (1, -1))
        slope = (float(ahead) - float(behind)) / 2e-2
        np.testing.assert_allclose(
            np.vdot(gradient_BT, step_BT) / 1e-2, slope, rtol=1e-2, atol=1e-3
        )


@pytest.mark.parametrize("ratio", RATIOS)
def test_gradients_agree_with_finite_differences(ratio):
    logp_BT, *others = sample(spread=0.3)

    def loss_and_gradient(logp_BT):
        (loss, _), (gradient_BT, _) = jpo_loss_and_gradients(
            logp_BT, *others, kl_coef=0.1, ratio=ratio
        )
        return loss, gradient_BT

    assert_slopes(loss_and_gradient, logp_BT)


def test_the_sft_gradient_agrees_with_finite_differences():
    logp_BT, _, mask_BT, _ = sample()

    def loss_and_gradient(logp_BT):
        (loss, _), gradient_BT = sft_loss_and_gradient(logp_BT, mask_BT)
        return loss, gradient_BT

    assert_slopes(loss_and_gradient, logp_BT)


@pytest.mark.parametrize("ratio", RATIOS)
def test_at_the_reference_ratio_is_1_kl_0_and_the_gradient_the_policy_gradient(ratio):
    logp_BT, _, mask_BT, advantages_B = sample()
    (_, metrics), (grad_BT, _) = jpo_loss_and_gradients(
        logp_BT, logp_BT, mask_BT, advantages_B, ratio=ratio
    )
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
    _, (_, grad_BT) = jpo_loss_and_gradients(*sample(), kl_coef=0.5, ratio="mean-token")
    assert not np.asarray(grad_BT).any()


@pytest.mark.parametrize("ratio", RATIOS)
def test_masking_equals_deleting(ratio):
    logp_BT, ref_logp_BT, mask_BT, advantages_B = sample()
    mask_BT[:, 5:] = False  # the last columns
    mask_BT[2] = False  # a row
    poison = np.where(mask_BT, 0, np.float32(1e30))
    kept = np.arange(NUM_ROWS) != 2
    (_, metrics), (grad, _) = jpo_loss_and_gradients(
        logp_BT + poison, ref_logp_BT - poison, mask_BT, advantages_B, ratio=ratio
    )
    (_, metrics_kept), (grad_kept, _) = jpo_loss_and_gradients(
        *(array_BT[kept, :5] for array_BT in (logp_BT, ref_logp_BT, mask_BT)),
        advantages_B[kept],
        ratio=ratio,
    )
    for name in metrics:
        np.testing.assert_allclose(metrics[name], metrics_kept[name], rtol=1e-6, err_msg=name)
    grad = np.asarray(grad)
    np.testing.assert_allclose(grad[kept, :5], grad_kept, rtol=1e-6)
    assert not np.any(grad[2])
    assert not np.any(grad[:, 5:])
    np.testing.assert_allclose(
        sft_loss(logp_BT + poison, mask_BT)[0],
        sft_loss(logp_BT[kept, :5], mask_BT[kept, :5])[0],
        rtol=1e-6,
    )


@pytest.mark.parametrize("ratio", RATIOS)
def test_micro_batches_with_the_totals_of_the_step_add_up(ratio):
    """Each has the rows of the step, and those of the others are masked."""
    logp_BT, ref_logp_BT, mask_BT, advantages_B = sample()
    whole = jpo_loss(logp_BT, ref_logp_BT, mask_BT, advantages_B, ratio=ratio)[1]
    part_B, totals = np.repeat([0, 1, 2], [1, 5, 3]), totals_of(mask_BT)
    parts = [
        jpo_loss(
            logp_BT,
            ref_logp_BT,
            mask_BT & (part_B == part)[:, None],
            advantages_B,
            ratio=ratio,
            **totals,
        )[1]
        for part in range(3)
    ]
    for name, value in whole.items():
        np.testing.assert_allclose(
            sum(float(p[name]) for p in parts), value, rtol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_value_and_gradient_are_finite_at_100_nats(ratio, dtype):
    gaps_B = np.resize([100, 100, -100, -100], NUM_ROWS)
    advantages_B = np.resize(np.float32([-2, 2, -2, 2]), NUM_ROWS)
    logp_BT = np.full(SHAPE, -1.0, dtype)
    ref_logp_BT = (logp_BT + gaps_B[:, None]).astype(dtype)
    (value, _), (grad, _) = jpo_loss_and_gradients(
        logp_BT, ref_logp_BT, np.ones(SHAPE, bool), advantages_B, ratio=ratio
    )
    assert np.isfinite(value)
    assert grad.dtype == dtype
    assert np.all(np.isfinite(np.asarray(grad, np.float32)))
    assert abs(float(value)) < 10 * math.exp(MAX_LOG_RATIO)


def k3_of(logp, ref_logp, ratio):
    """The loss of tokens that are all alike, by their K3 alone."""
    arrays = [np.full(SHAPE, value, np.float32) for value in (logp, ref_logp)]
    mask, advantages = np.ones(SHAPE, bool), np.zeros(NUM_ROWS, np.float32)
    return jpo_loss(*arrays, mask, advantages, kl_coef=1.0, ratio=ratio)


def test_k3_is_the_bound_s_value_beyond_the_clamp_and_exact_below_it():
    def kl(delta):
        return float(k3_of(0.0, delta, "mean-token")[1]["policy/kl_k3"])

    for delta in (1e-2, -1e-2, 0.5, -3.0, 19.0):
        np.testing.assert_allclose(kl(delta), math.expm1(delta) - delta, rtol=1e-3)
    assert kl(50.0) == kl(MAX_LOG_RATIO)


def test_k3_averages_to_the_enumerated_kl_over_a_toy_vocabulary():
    """Its mean under the policy is KL(π‖π_ref), here over all five tokens."""
    rng = stream(0, "toy")
    logits, ref_logits = rng.normal(size=5), rng.normal(size=5)
    logp, ref = (x - np.log(np.exp(x).sum()) for x in (logits, ref_logits))
    k3 = [float(k3_of(*pair, "token")[0]) for pair in zip(logp, ref, strict=True)]
    want = np.sum(np.exp(logp) * (logp - ref))
    np.testing.assert_allclose(np.dot(np.exp(logp), k3), want, rtol=1e-5)


def test_an_empty_micro_batch_adds_nothing():
    mask, ones = np.zeros(SHAPE, bool), np.ones(SHAPE, np.float32)
    for ratio in RATIOS:
        loss, metrics = jpo_loss(ones, ones, mask, ones[:, 0], ratio=ratio)
        assert float(loss) == 0.0
        assert not any(float(value) for value in metrics.values())
    assert float(sft_loss(ones, mask)[0]) == 0.0


def test_an_unknown_ratio_is_refused_by_name():
    with pytest.raises(ValueError, match="ratio='mean' is none of"):
        jpo_loss(*sample(), ratio="mean")


def test_alol_is_the_likelihood_of_good_replies_weighted_by_their_advantage():
    logp_BT = np.log(np.float32([[0.5, 0.25, 0.9], [0.1, 0.9, 0.9]]))
    mask_BT = np.array([[True, True, False], [True, False, False]])
    (loss, metrics), grad = _alol(
        logp_BT, mask_BT, np.float32([2.0, -3.0]), num_tokens=mask_BT.sum()
    )
    np.testing.assert_allclose(loss, 2 * (math.log(2) + math.log(4)) / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["sft/loss"], math.log(80) / 3, rtol=1e-6)
    assert (np.asarray(grad)[1] == 0).all()


def test_dpo_by_hand():
    logp_BT = np.float32([[-1.0, -2.0], [-3.0, -1.0]])
    ref_logp_BT = np.float32([[-1.5, -2.5], [-2.0, -1.0]])
    mask_BT = np.ones((2, 2), bool)
    margin = 0.1 * ((-3.0 + 4.0) - (-4.0 + 3.0))
    loss, metrics = dpo_loss(logp_BT, ref_logp_BT, mask_BT, beta=0.1)
    np.testing.assert_allclose(loss, math.log1p(math.exp(-margin)), rtol=1e-6)
    np.testing.assert_allclose(metrics["dpo/margin"], margin, rtol=1e-6)
    assert float(metrics["dpo/accuracy"]) == 1
    start, _ = dpo_loss(ref_logp_BT, ref_logp_BT, mask_BT, beta=0.1)
    np.testing.assert_allclose(start, math.log(2), rtol=1e-6)


def test_dpo_pairs_of_a_step_add_up_and_empty_slots_weigh_nothing():
    rng = np.random.default_rng(0)
    logp_BT, ref_logp_BT = (rng.normal(size=(6, 4)).astype(np.float32) - 3 for _ in range(2))
    mask_BT = rng.random((6, 4)) < 0.8
    mask_BT[:, 0] = True
    whole = dpo_loss(logp_BT, ref_logp_BT, mask_BT, beta=0.3)[0]
    pair_B = np.arange(6) // 2
    parts = [
        dpo_loss(logp_BT, ref_logp_BT, mask_BT & (pair_B == pair)[:, None], beta=0.3, num_pairs=3)
        for pair in range(3)
    ]
    np.testing.assert_allclose(sum(float(loss) for loss, _ in parts), whole, rtol=1e-6)
    padded = [np.pad(x, ((0, 4), (0, 0))) for x in (logp_BT, ref_logp_BT, mask_BT)]
    np.testing.assert_allclose(dpo_loss(*padded, beta=0.3)[0], whole, rtol=1e-6)


@pytest.mark.parametrize("gap", [100.0, -100.0])
def test_dpo_is_finite_at_100_nats_a_token(gap):
    logp_BT = np.float32([[-1.0, -1.0], [-1.0 - gap, -1.0 - gap]])
    (loss, _), grad = dpo_loss_and_gradient(
        logp_BT, np.full((2, 2), -1.0, np.float32), np.ones((2, 2), bool), beta=0.5
    )
    assert np.isfinite(loss) and np.isfinite(grad).all()
