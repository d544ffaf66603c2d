"""Settings of the on-policy controls: the student plays, is scored, and learns from its own turns.

The paper gives reasons for not training so (Appendix G). These stages measure them: they have the
settings of a training and those of playing dialogues, and count what every round has cost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from emodistill.configs.base import ByStudent, configuration, require, setting
from emodistill.configs.data import DialogueConfig, JudgeConfig
from emodistill.configs.playing import EvaluateConfig
from emodistill.configs.training import OnPolicySignal, RatioKind, RefinementConfig


@configuration
class OnPolicyConfig(DialogueConfig, RefinementConfig):
    """What the on-policy stages share; the student plays in the focal role, from its SFT adapter.

    How long training goes on may be changed later: it then goes on from its last round.
    """

    called = ("counterparty", "judge", "reader")
    growing: ClassVar[tuple[str, ...]] = (
        *("num_rounds", "max_dialogues", "max_calls", "max_call_tokens", "max_minutes"),
    )
    """Settings that say how long training goes on."""
    has_constant_rate: ClassVar[bool] = True
    kappa: ClassVar[float] = 1.0
    """Negative advantages weigh as much as positive ones."""
    focal: ClassVar[None] = None
    emotion_free: ClassVar[bool] = False
    max_steps: ClassVar[None] = None
    warmup_fraction: ClassVar[float] = 0.0
    signal: OnPolicySignal = "turn-judge"  # type: ignore[assignment]
    """The reward: the judge's score of each turn, or the shaped return or the utility of the
    dialogue, which need no judge."""
    judge_max_tokens: int = setting(64, ge=1)
    """Tokens of the judge's answer at most, twice as many when asked again."""
    iql_cell: str = "default"
    """The IQL cell whose selector picks the emotions."""
    focal_temperature: float | None = setting(None, gt=0, le=2)
    """Temperature at which the student is sampled, and of the policy that is trained. If left out,
    0.7, and 0.4 for the embedded student, as in the evaluation."""
    num_rounds: ByStudent[int] = setting(125, embedded=15, ge=1)
    """Rounds of playing, judging and learning; 125 are 8,000 dialogues. auto: 125, for the embedded
    student 15."""
    scenarios_per_round: int = setting(8, ge=1)
    """Training scenarios that a round plays, in an order drawn by the seed."""
    group_size: int = setting(8, ge=2, hint="a single dialogue has nothing to be compared with")
    """Dialogues of each of these scenarios in a round."""
    clip: float = setting(0.2, gt=0, lt=1, hint="0.2 is usual")
    """How far the ratio may leave 1."""
    kl_coef: float = setting(0.04, ge=0, hint="0.04 is GRPO's")
    """Weight of the KL divergence from the SFT snapshot."""
    ratio: RatioKind = "token"
    """The importance ratio: per token, of a reply's mean log-ratio, or of its sum."""
    learning_rate: ByStudent[float] = setting(5e-6, embedded=2e-4, gt=0)
    """Learning rate, the same in all rounds. auto: 5e-06, for the embedded student 0.0002."""
    batch_size: int = setting(64, ge=1)
    """Samples per optimiser step."""
    num_epochs: int = setting(1, ge=1)
    """Passes over the turns of a round."""
    max_samples: int | None = setting(None, ge=1, hint="None trains on all")
    """Train on this many turns of a round, drawn by the seed; None for all."""
    max_dialogues: int | None = setting(None, ge=1)
    """Begin no round that would exceed so many dialogues in all."""
    max_calls: int | None = setting(None, ge=1)
    """Begin no round that would probably exceed so many calls to counterparty, judge and reader."""
    max_call_tokens: int | None = setting(None, ge=1)
    """Begin no round that would probably exceed so many tokens of these calls."""
    max_minutes: float | None = setting(None, gt=0)
    """Begin no round that would probably exceed so many minutes."""

    def __post_init__(self) -> None:
        DialogueConfig.__post_init__(self)
        planned = self.num_dialogues_per_round
        require(
            self.max_dialogues is None or self.max_dialogues >= planned,
            f"--max-dialogues {self.max_dialogues} allows no round of {planned} dialogues; raise "
            "it, or lower --scenarios-per-round or --group-size.",
        )

    @property
    def method(self) -> str:
        """What evaluates the trained student."""
        return f"iql+sft+{self.stage}"

    @property
    def num_dialogues_per_round(self) -> int:
        return self.scenarios_per_round * self.group_size

    def without_length(self) -> Self:
        """The settings that a round is made with, however many there will be."""
        lengths = {f.name: f.default for f in dataclasses.fields(self) if f.name in self.growing}
        return dataclasses.replace(self, **lengths)

    def playing(self, *, seed: int) -> EvaluateConfig:
        """The settings with which the student plays a round."""
        shared = self._values(DialogueConfig) | {"focal": None, "seed": seed}
        return EvaluateConfig(
            method=self.method,
            student=self.model,
            quantize=self.quantize,
            focal_temperature=self.focal_temperature,
            **shared,
        )

    def judging(self) -> JudgeConfig:
        """The settings with which a round is judged."""
        return JudgeConfig(**self._values(JudgeConfig))

    def _values(self, kind: type[Any]) -> Mapping[str, Any]:
        """The settings that another stage's have as well."""
        names = {f.name for f in dataclasses.fields(kind)} & {
            f.name for f in dataclasses.fields(self)
        }
        return {name: getattr(self, name) for name in names - {"batch_size"}}

    def check_devices(self) -> None:
        """Refuse several processes, which would each play the dialogues."""
        RefinementConfig.check_devices(self)
        require(
            self.coordinator is None,
            f"--coordinator {self.coordinator}: {self.stage} plays its dialogues in one process; "
            "leave it out (one process uses all devices of its machine).",
        )


@configuration
class GRPOConfig(OnPolicyConfig):
    """In place of JPO, on-policy: GRPO, whose advantages compare the dialogues of a round."""

    stage = "grpo"


@configuration
class PPOConfig(OnPolicyConfig):
    """In place of JPO, on-policy: PPO with a critic on the selector's state features."""

    stage = "ppo"
    discount: float = setting(1.0, ge=0, le=1)
    """The discount γ."""
    gae_lambda: float = setting(0.95, ge=0, le=1)
    """λ of generalised advantage estimation."""
    critic_steps: int = setting(200, ge=1)
    """Updates of the critic in a round, each on all of its turns."""
    critic_learning_rate: float = setting(1e-3, gt=0)
    """Adam's learning rate of the critic."""
    critic_width: int = setting(64, ge=1)
    """Width of the critic's hidden layers."""
