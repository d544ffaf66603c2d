"""What the student learns from the turns of a round that it has spoken itself: GRPO and PPO.

Both minimise JPO's loss with another denominator of the ratio, the policy that spoke, and differ in
their advantages alone (`offline.rewards.group_advantages`, `train.critic`):

    L = −E[min(ρ A, clip(ρ, 1−ε, 1+ε) A)] + λ_KL E[exp(Δ) − Δ − 1],
    ρ = π / π_spoke,    Δ = log π_SFT − log π

A round's first step has ρ = 1 throughout, so its clip is inactive. All log-probs are of the policy
as it was sampled, that is of logits over the temperature. Departures from DeepSeekMath's GRPO: the
loss is a mean over the tokens of a step, not over those of each reply first (Yu et al., 2025, §3.3,
do the same), and a turn is scored, where theirs scores a whole answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from emodistill.configs import OnPolicyConfig, PPOConfig
from emodistill.offline.rewards import SweepData
from emodistill.train.adapter_training import (
    OPT_STATE,
    AdapterResult,
    SpokenTurns,
    train_adapter,
)
from emodistill.train.critic import Critic, critic_advantages
from emodistill.train.objectives import OBJECTIVES, with_advantages
from emodistill.train.preparation import training_turns

CRITIC = "critic.safetensors"
"""PPO's critic after a round, in its folder."""


class LearntRound(NamedTuple):
    """What a round of learning has come to; the adapter is in the round's folder."""

    adapter: AdapterResult
    metrics: dict[str, float]
    """Of the last step, and the critic's error on the round before it was fitted."""


def train_round(
    config: OnPolicyConfig,
    data: SweepData,
    *,
    directory: Path,
    spoke: Path,
    reference: Path,
    temperature: float,
    before: Path | None,
) -> LearntRound:
    """Learn from the dialogues of a round, or go on from the newest checkpoint in its folder.

    Args:
      data: the dialogues, all with scenarios to train on, and their scores.
      directory: the round's folder.
      spoke: the adapter that the student had.
      reference: the SFT adapter.
      temperature: at which the student was sampled.
      before: the folder of the round before.

    Raises:
      InputError, DivergenceError, StoppedError: as `train_adapter`.
    """
    objective = OBJECTIVES[config.stage]
    more: dict[str, float] = {}
    if isinstance(config, PPOConfig):
        critic = Critic.initial(config) if before is None else Critic.load(before / CRITIC)
        dialogues, turns = training_turns(data)
        found = critic_advantages(config, critic, dialogues, turns.whole())
        objective = objective._replace(select=lambda *_: with_advantages(found.advantages_N))
        fitted, error = critic.fitted(found.observation_NS, found.target_N, config)
        more["critic/loss"] = error
    adapter = train_adapter(
        config,
        data,
        cell_dir=directory,
        sft_adapter=spoke,
        objective=objective,
        spoken=SpokenTurns(reference, temperature, before and before / OPT_STATE),
    )
    if isinstance(config, PPOConfig):
        fitted.save(directory / CRITIC)
    # How fast the machine was is no result; a round that was cut off reads it out of its log.
    metrics = {name: v for name, v in adapter.metrics.items() if not name.startswith("time/")}
    return LearntRound(adapter, metrics | more)
