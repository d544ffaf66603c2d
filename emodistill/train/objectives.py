"""What refines an adapter: JPO, A-LoL or DPO, each as the turns that it takes and a loss.

JPO (Eqs. 17-19) takes all scored turns, A-LoL (Baheti et al., 2024) those with A > 0, DPO (Rafailov
et al., 2023) pairs of turns that were to express the same emotion at the same point of the same
scenario, the better one against the worse.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from emodistill.batches import Batch
from emodistill.configs import ALoLConfig, DPOConfig, JPOConfig, RefinementConfig
from emodistill.errors import InputError
from emodistill.offline import rewards
from emodistill.offline.rewards import FocalTurnTable
from emodistill.records import Trajectory
from emodistill.train.losses import Metrics, alol_loss, dpo_loss, jpo_loss
from emodistill.train.trainer import LossFn


class Objective(NamedTuple):
    """What a refinement learns from."""

    units: np.ndarray
    """[units, samples of a unit] rows of the table; of a pair the better one comes first."""
    advantages: np.ndarray | None
    """A per row of the table, as the loss wants it."""
    needs_reference: bool
    loss_fn: LossFn
    left_out_scenarios: tuple[str, ...]
    """Scenarios with too few scores to be normalised."""


def objective_of(
    config: RefinementConfig, table: FocalTurnTable, trajectories: Sequence[Trajectory]
) -> Objective:
    """The objective of `config` over the turns of `table`.

    Raises:
      InputError: no turn qualifies.
    """
    values, _, left_out = rewards.jpo_advantages(table, config.signal)
    advantages: np.ndarray | None = values
    if isinstance(config, JPOConfig):
        rows = np.arange(len(table))
        if config.data == "top":
            quality = rewards.sft_quality(table).values
            rows = np.sort(rewards.top_fraction(quality, config.top_fraction))
        units = rows[np.isfinite(values[rows])][:, None]
    elif isinstance(config, ALoLConfig):
        units = np.flatnonzero(values > 0)[:, None]
    else:
        units, advantages = pairs(table, values, trajectories), None
        if not len(units):
            raise InputError(
                "no two turns share scenario, turn index and emotion and differ in "
                f"signal={config.signal!r}: DPO has no pair to learn from. Play more seeds."
            )
    return Objective(
        units, advantages, not isinstance(config, ALoLConfig), loss_of(config), left_out
    )


def pairs(
    table: FocalTurnTable, values: np.ndarray, trajectories: Sequence[Trajectory]
) -> np.ndarray:
    """[pairs, 2] rows: of each scenario, turn index and emotion the best with the worst, the second
    best with the second worst, and so on, as long as their values differ."""
    groups: dict[tuple[str, int, str | None], list[int]] = defaultdict(list)
    for row in np.flatnonzero(np.isfinite(values)):
        turn_index = int(table.turn_index[row])
        emotion = trajectories[table.trajectory_index[row]].turns[turn_index].emotion
        groups[str(table.scenario_ids[row]), turn_index, emotion].append(int(row))
    found = []
    for rows in groups.values():
        rows.sort(key=lambda row: (-values[row], row))
        for better, worse in zip(rows[: len(rows) // 2], reversed(rows), strict=False):
            if values[better] > values[worse]:
                found.append((better, worse))
    return np.array(sorted(found), np.int64).reshape(-1, 2)


def loss_of(config: RefinementConfig) -> LossFn:
    """The loss of a micro-batch under `config`."""

    def jpo(logp_SU: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        assert isinstance(config, JPOConfig)
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
        )

    def alol(logp_SU: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        return alol_loss(logp_SU, batch.mask_SU, batch.advantages_S, num_tokens=batch.num_tokens)

    def dpo(logp_SU: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        assert isinstance(config, DPOConfig)
        return dpo_loss(
            logp_SU,
            batch.ref_logp_SU,
            batch.mask_SU,
            beta=config.beta,
            num_pairs=batch.num_samples / 2,
        )

    return {JPOConfig: jpo, ALoLConfig: alol, DPOConfig: dpo}[type(config)]
