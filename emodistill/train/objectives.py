"""What an adapter learns from: an objective is the turns that it takes and a loss on them.

| stage | turns | loss |
| --- | --- | --- |
| `sft` | the best quarter by q = r + ½R(τ) (Eqs. 16, 23) | cross-entropy |
| `jpo` | all with a score (Eqs. 17-19) | clipped surrogate on A, K3 anchor to the reference |
| `alol` | those with A > 0 (Baheti et al., 2024) | A times the cross-entropy |
| `dpo` | pairs of turns (Rafailov et al., 2023) | preference of the better reply |
| `grpo` | the student's own (Shao et al., 2024) | JPO's loss, the ratio to the policy that spoke |
| `ppo` | the same, A by a critic (Schulman et al., 2017) | as `grpo` |

Another objective is another `Objective`, passed to `train_adapter` (docs/extending.md).
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from emodistill.batches import Batch
from emodistill.configs import (
    AdapterConfig,
    ALoLConfig,
    DPOConfig,
    JPOConfig,
    OnPolicyConfig,
    SFTConfig,
)
from emodistill.errors import InputError
from emodistill.offline.reliability import shrunk_advantages
from emodistill.offline.rewards import (
    FocalTurns,
    group_advantages,
    jpo_advantages,
    sft_quality,
    top_fraction,
)
from emodistill.train.losses import Metrics, alol_loss, dpo_loss, jpo_loss, sft_loss


class Selection(NamedTuple):
    """The turns that an objective trains on."""

    groups: np.ndarray
    """[groups, samples of a group] rows of the focal turns. The samples of a group come in this
    order into the same micro-batch; where the loss needs no groups, each is a sample alone."""
    advantages: np.ndarray | None = None
    """[N] one per focal turn, finite for all that are trained on; None for a loss without any."""


class Objective(NamedTuple):
    """How one kind of adapter is trained. Both functions get the stage's configuration first."""

    select: Callable[[Any, FocalTurns], Selection]
    """The turns to train on, from all focal turns of the training scenarios."""
    loss: Callable[[Any, jax.Array, Batch], tuple[jax.Array, Metrics]]
    """(configuration, log-probs of the replies [S, U], micro-batch) -> (loss, metrics).

    Both are shares of the step's: sums divided by the totals of the whole step that the batch
    carries, so that the shares of its micro-batches add up."""
    shown_metric: str
    """The metric that is shown beside the progress bar."""
    needs_reference: bool = False
    """Whether the loss reads `ref_logp_SU`, the log-probs of the adapter that training starts
    from."""
    is_on_policy: bool = False
    """Whether the loss reads `behavior_logp_SU`, those of the policy that spoke, beside it."""
    loss_settings: tuple[str, ...] | None = None
    """The fields of the configuration that the loss reads, which then gets no others; None: any.

    Trainings that agree on those that are no numbers share the loss's compiled programs."""

    def loss_under(
        self, config: AdapterConfig
    ) -> Callable[[jax.Array, Batch], tuple[jax.Array, Metrics]]:
        """The loss under `config`, as a trainer takes it.

        Numbers that it is known to read are arguments of its program. For the rest, configurations
        that agree on what the loss may read get the same function, so that their trainers share
        compiled programs.
        """
        if self.loss_settings is not None:
            read = {name: getattr(config, name) for name in self.loss_settings}
            numbers = {name: np.float32(x) for name, x in read.items() if isinstance(x, float)}
            constants = tuple((name, x) for name, x in read.items() if name not in numbers)
            return Partial(_bound_to_some(self.loss, constants), numbers)
        operational = {
            field.name: field.default
            for field in dataclasses.fields(config)
            if field.metadata.get("operational")
        }
        return _bound(self.loss, dataclasses.replace(config, **operational))


@functools.cache
def _bound(loss: Callable[..., Any], config: AdapterConfig) -> Callable[..., Any]:
    return functools.partial(loss, config)


@functools.cache
def _bound_to_some(
    loss: Callable[..., Any], constants: tuple[tuple[str, Any], ...]
) -> Callable[..., Any]:
    def under(numbers: Mapping[str, jax.Array], *args: Any) -> Any:
        return loss(types.SimpleNamespace(**dict(constants), **numbers), *args)

    return under


def select_best(config: SFTConfig, turns: FocalTurns) -> Selection:
    """The best `top_fraction` of the turns."""
    quality = sft_quality(turns, config.signal, config.quality_score)
    return Selection(np.sort(top_fraction(quality, config.top_fraction))[:, None])


def select_scored(config: JPOConfig, turns: FocalTurns) -> Selection:
    """All turns with an advantage; with `data="top"`, those of them that SFT takes by default.

    Raises:
      InputError: advantages are to be shrunk, and no turn has several scores.
    """
    if config.shrink and config.signal != "turn-judge":
        raise InputError(f"--shrink is for scores of turns, not for --signal {config.signal}.")
    advantages = shrunk_advantages(turns) if config.shrink else jpo_advantages(turns, config.signal)
    rows = np.arange(len(turns))
    if config.data == "top":
        rows = np.sort(top_fraction(sft_quality(turns), config.top_fraction))
    return Selection(rows[np.isfinite(advantages[rows])][:, None], advantages)


def select_positive(config: ALoLConfig, turns: FocalTurns) -> Selection:
    """The turns with A > 0."""
    advantages = jpo_advantages(turns, config.signal)
    return Selection(np.flatnonzero(advantages > 0)[:, None], advantages)


def select_pairs(config: DPOConfig, turns: FocalTurns) -> Selection:
    """Pairs of turns that were to express the same emotion at the same point of a scenario.

    The best is paired with the worst, the second best with the second worst, and so on, as long as
    their advantages differ; the better one comes first.

    Raises:
      InputError: there is no pair.
    """
    advantages = jpo_advantages(turns, config.signal)
    same_prompt: dict[tuple[str, int, str | None], list[int]] = defaultdict(list)
    for row in np.flatnonzero(np.isfinite(advantages)).tolist():
        key = turns.scenario_ids[row], turns.turn_index[row], turns.emotions[row]
        same_prompt[key].append(row)
    pairs = []
    for rows in same_prompt.values():
        ranked = sorted(rows, key=lambda row: -advantages[row])
        for better, worse in zip(ranked[: len(ranked) // 2], reversed(ranked), strict=False):
            if advantages[better] > advantages[worse]:
                pairs.append((better, worse))
    if not pairs:
        raise InputError(
            "no two turns share scenario, turn index and emotion and differ in "
            f"signal={config.signal!r}: DPO has no pair to learn from. Play more seeds."
        )
    return Selection(np.array(sorted(pairs)), advantages)


def select_compared(config: OnPolicyConfig, turns: FocalTurns) -> Selection:
    """All turns that have others to be compared with."""
    return with_advantages(group_advantages(turns, config.signal))


def with_advantages(advantages: np.ndarray) -> Selection:
    """The turns that have an advantage."""
    return Selection(np.flatnonzero(np.isfinite(advantages))[:, None], advantages)


def _sft(config: SFTConfig, logp_SU: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    return sft_loss(
        logp_SU,
        batch.mask_SU,
        loss_mean=config.loss_mean,
        num_samples=batch.num_samples,
        num_tokens=batch.num_tokens,
    )


def _clipped(
    config: JPOConfig | OnPolicyConfig, logp_SU: jax.Array, batch: Batch
) -> tuple[jax.Array, Metrics]:
    return jpo_loss(
        logp_SU,
        batch.ref_logp_SU,
        batch.mask_SU,
        batch.advantages_S,
        clip=config.clip,
        kl_coef=config.kl_coef,
        kappa=config.kappa,
        ratio=config.ratio,
        num_samples=batch.num_samples,
        num_tokens=batch.num_tokens,
        behavior_logp_BT=batch.behavior_logp_SU,
    )


def _alol(config: ALoLConfig, logp_SU: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    return alol_loss(logp_SU, batch.mask_SU, batch.advantages_S, num_tokens=batch.num_tokens)


def _dpo(config: DPOConfig, logp_SU: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    num_pairs = batch.num_samples / 2
    return dpo_loss(
        logp_SU, batch.ref_logp_SU, batch.mask_SU, beta=config.beta, num_pairs=num_pairs
    )


OBJECTIVES: Mapping[str, Objective] = {
    "sft": Objective(select_best, _sft, "sft/loss", loss_settings=("loss_mean",)),
    "jpo": Objective(
        select_scored,
        _clipped,
        "policy/surrogate",
        needs_reference=True,
        loss_settings=("clip", "kl_coef", "kappa", "ratio"),
    ),
    "alol": Objective(select_positive, _alol, "alol/loss", loss_settings=()),
    "dpo": Objective(
        select_pairs, _dpo, "dpo/accuracy", needs_reference=True, loss_settings=("beta",)
    ),
    **dict.fromkeys(
        ("grpo", "ppo"),  # which takes its advantages from a critic (`train.on_policy`)
        Objective(
            select_compared,
            _clipped,
            "policy/surrogate",
            needs_reference=True,
            is_on_policy=True,
            loss_settings=("clip", "kl_coef", "kappa", "ratio"),
        ),
    ),
}
"""By the stage that it trains."""
