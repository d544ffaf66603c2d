"""The training losses as pure functions: arrays and floats in, `(loss, metrics)` out.

SFT is token cross-entropy on the reply (Eqs. 4, 16 and 20). JPO is the clipped surrogate on judge
advantages with a K3 anchor to the reference (Eqs. 17-19):

    L = −E[min(ρ Ã, clip(ρ, 1−ε, 1+ε) Ã)] + λ_KL E[exp(Δ) − Δ − 1],   Δ = log π_ref − log π
    Ã = A if A > 0 else κ A

Every log-ratio is clamped to ±MAX_LOG_RATIO nats before the exponential: clamping after it gives
inf · 0 = NaN in the gradient. Beyond the bound the term is constant and its gradient zero; 20 nats
for a token (or the mean over a reply) is far outside what a clipped update reaches.

Departures from the printed formulas, which the settings' defaults make: `ratio="mean-token"` takes
ρ = exp(mean log-ratio of the reply's tokens), where `"sequence"` is the formula as printed and
`"token"` clips every token by itself; `loss_mean="token"` divides SFT's loss by tokens, where
`"reply-sum"` is the formula as printed and `"reply"` gives every reply one weight.

All sums are divided by the totals of the whole optimiser step, so the losses and metrics of
micro-batches add up to those of the step. T counts positions of the reply here; masking a position
is the same as deleting it, and so is masking a whole row.

Axes: B replies, T tokens of a reply, V vocabulary.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

MAX_LOG_RATIO = 20.0
"""Bound of |log ratio| in nats, applied before every exponential."""

Metrics = dict[str, jax.Array]


def token_logprobs(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """log π(target) in nats, float32 [B, T], by a float32 log-sum-exp below the largest logit.

    The largest logit is taken off both terms first. optax's cross-entropy adds it to the
    log-sum-exp instead, which loses four digits of it where logits are in the ten thousands.
    """
    chex.assert_equal_shape_prefix((logits_BTV, targets_BT), targets_BT.ndim)
    logits_BTV = logits_BTV.astype(jnp.float32)
    logits_BTV = logits_BTV - jax.lax.stop_gradient(logits_BTV.max(axis=-1, keepdims=True))
    chosen_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return chosen_BT - jnp.log(jnp.exp(logits_BTV).sum(axis=-1))


def sft_loss(
    logp_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    loss_mean: str,
    num_samples: jax.Array | float,
    num_tokens: jax.Array | float,
) -> tuple[jax.Array, Metrics]:
    """Negative log-likelihood of replies, in nats (Eq. 16).

    Args:
      logp_BT: log-probs of the reply's tokens.
      mask_BT: True where the token belongs to a reply.
      loss_mean: `token`, the mean over all response tokens; `reply`, the mean over replies of each
        one's mean; `reply-sum`, the mean over replies of each one's sum, as printed.
      num_samples, num_tokens: rows with a reply and response tokens of the whole optimiser step.

    Returns:
      The loss and `sft/loss`, which is the mean over response tokens whatever is minimised.

    Raises:
      ValueError: `loss_mean` is unknown.
    """
    nll_B = -_masked(logp_BT, mask_BT).sum(axis=1)
    per_token = nll_B.sum() / num_tokens
    if loss_mean == "token":
        loss = per_token
    elif loss_mean == "reply":
        loss = (nll_B / jnp.maximum(mask_BT.sum(axis=1), 1)).sum() / num_samples
    elif loss_mean == "reply-sum":
        loss = nll_B.sum() / num_samples
    else:
        raise ValueError(f"loss_mean={loss_mean!r} is none of 'token', 'reply', 'reply-sum'.")
    return loss, {"sft/loss": per_token}


def jpo_loss(
    logp_BT: jax.Array,
    ref_logp_BT: jax.Array,
    mask_BT: jax.Array,
    advantages_B: jax.Array,
    *,
    clip: float,
    kl_coef: float,
    kappa: float,
    ratio: str,
    num_samples: jax.Array | float,
    num_tokens: jax.Array | float,
    behavior_logp_BT: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Judge Policy Optimization (Eq. 19), and with a behaviour policy the step of PPO and GRPO.

    Offline, the ratio's denominator is the reference. On-policy it is the policy that spoke, while
    the K3 term still holds to the reference (Schulman et al., 2017, Eq. 7; Shao et al., 2024,
    Eqs. 3 and 4).

    The surrogate is a mean over samples (`ratio="token"`: over response tokens), the K3 term a
    mean over response tokens.

    Args:
      logp_BT, ref_logp_BT: log-probs of the reply's tokens under policy and reference, in nats.
        No gradient flows into the reference.
      mask_BT: True where the token belongs to a reply.
      advantages_B: A, as the judge's scores give it.
      clip: ε, in (0, 1).
      kl_coef: λ_KL.
      kappa: κ of Eq. 18, the weight of advantages that are not positive.
      ratio: `mean-token`, `sequence` or `token`.
      num_samples, num_tokens: rows with a reply and response tokens of the whole optimiser step.
      behavior_logp_BT: log-probs under the policy that spoke; the reference's if None.

    Returns:
      The loss and `policy/loss`, `policy/surrogate` (to be maximised), `policy/kl_k3` (nats per
      token), `policy/ratio_mean`, `policy/clip_fraction` (share of ratios outside [1−ε, 1+ε]).

    Raises:
      ValueError: `ratio` is unknown.
    """
    chex.assert_shape(advantages_B, mask_BT.shape[:1])
    from_ref_BT = _masked_log_ratio(logp_BT, ref_logp_BT, mask_BT)
    log_ratio_BT = from_ref_BT
    if behavior_logp_BT is not None:
        log_ratio_BT = _masked_log_ratio(logp_BT, behavior_logp_BT, mask_BT)
    lengths_B = mask_BT.sum(axis=1)
    advantages = jnp.asarray(advantages_B, jnp.float32)
    advantages = jnp.where(advantages > 0, advantages, kappa * advantages)

    if ratio == "token":
        log_ratio, counts, total = log_ratio_BT, mask_BT, num_tokens
        advantages = advantages[:, None]
    elif ratio in ("mean-token", "sequence"):
        log_ratio, counts, total = log_ratio_BT.sum(axis=1), lengths_B > 0, num_samples
        if ratio == "mean-token":
            log_ratio = log_ratio / jnp.maximum(lengths_B, 1)
    else:
        raise ValueError(f"ratio={ratio!r} is none of 'mean-token', 'sequence', 'token'.")

    def mean(values: jax.Array) -> jax.Array:
        return _masked(values, counts).sum() / total

    rho = jnp.exp(_clamp(log_ratio))
    clipped = jnp.clip(rho, 1.0 - clip, 1.0 + clip)
    surrogate = mean(jnp.minimum(rho * advantages, clipped * advantages))
    delta_BT = _clamp(-from_ref_BT)
    # expm1, since near Δ = 0, where training starts, exp(Δ) - 1 would lose all digits of Δ² / 2.
    kl_k3 = _masked(jnp.expm1(delta_BT) - delta_BT, mask_BT).sum() / num_tokens
    loss = kl_coef * kl_k3 - surrogate
    return loss, {
        "policy/loss": loss,
        "policy/surrogate": surrogate,
        "policy/kl_k3": kl_k3,
        "policy/ratio_mean": mean(rho),
        "policy/clip_fraction": mean(jnp.abs(rho - 1.0) > clip),
    }


def alol_loss(
    logp_BT: jax.Array,
    mask_BT: jax.Array,
    advantages_B: jax.Array,
    *,
    num_tokens: jax.Array | float,
) -> tuple[jax.Array, Metrics]:
    """Advantage-leftover-lunch RL, reference-free (Baheti et al., 2024): A · NLL per reply token.

    Args:
      advantages_B: A; samples with A <= 0 weigh nothing.
      mask_BT, num_tokens: as for `sft_loss`.

    Returns:
      The loss, and `alol/loss`, `sft/loss` (the same without A).
    """
    chex.assert_shape(advantages_B, mask_BT.shape[:1])
    nll_B = -_masked(logp_BT, mask_BT).sum(axis=1)
    loss = (jnp.maximum(jnp.asarray(advantages_B, jnp.float32), 0.0) * nll_B).sum() / num_tokens
    return loss, {"alol/loss": loss, "sft/loss": nll_B.sum() / num_tokens}


def dpo_loss(
    logp_BT: jax.Array,
    ref_logp_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    beta: float,
    num_pairs: jax.Array | float,
) -> tuple[jax.Array, Metrics]:
    """Direct preference optimisation (Rafailov et al., 2023, Eq. 7) on consecutive pairs of rows.

    Args:
      logp_BT, ref_logp_BT, mask_BT: as for `jpo_loss`; of rows 2p and 2p + 1 the first is the
        better reply, each to its own prompt.
      beta: β.
      num_pairs: of the whole optimiser step.

    Returns:
      The loss, and `dpo/loss`, `dpo/margin` (mean difference of the rewards β log π / π_ref),
      `dpo/accuracy` (share of pairs with a positive one).
    """
    rewards_B = beta * _masked_log_ratio(logp_BT, ref_logp_BT, mask_BT).sum(axis=1)
    margins = rewards_B[0::2] - rewards_B[1::2]
    has_reply_B = mask_BT.astype(bool).any(axis=1)
    is_pair = has_reply_B[0::2] & has_reply_B[1::2]

    def mean(values: jax.Array) -> jax.Array:
        return _masked(values, is_pair).sum() / num_pairs

    loss = mean(-jax.nn.log_sigmoid(margins))
    return loss, {
        "dpo/loss": loss,
        "dpo/margin": mean(margins),
        "dpo/accuracy": mean(margins > 0),
    }


def _masked(values: jax.Array, mask: jax.Array) -> jax.Array:
    """`values` in float32, 0 outside the mask, where they may even be NaN."""
    chex.assert_equal_shape((values, mask))
    return jnp.where(mask.astype(bool), jnp.asarray(values, jnp.float32), 0.0)


def _masked_log_ratio(logp_BT: jax.Array, ref_logp_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    chex.assert_rank(logp_BT, 2)
    return _masked(logp_BT, mask_BT) - _masked(jax.lax.stop_gradient(ref_logp_BT), mask_BT)


def _clamp(log_ratio: jax.Array) -> jax.Array:
    return jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
