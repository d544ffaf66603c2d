"""The settings of the studies, with the paper's grids (Appendix F). Free of jax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from emodistill.configs import (
    EMBEDDED,
    DomainName,
    ExperimentConfig,
    operational,
    require,
)

ALL_DOMAINS: tuple[DomainName, ...] = ("crad", "disaster", "hospital", "student")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyConfig(ExperimentConfig):
    """What every study shares; what is left out is as the stages' settings have it."""

    study: ClassVar[str]
    model: str | None = None
    """The focal language model of methods that an LLM writes for."""
    student: str = EMBEDDED
    """`embedded`, or the folder of the student's base checkpoint."""
    counterparty: str | None = None
    """The language model on the other side."""
    split: Literal["test", "validation"] = "test"
    """`validation` (sweep with --num-validation) is for choosing settings."""
    judge: str | None = None
    """Whose scores are learned from; in the study of emotions, who gives them."""
    num_scenarios: int | None = None
    """Held-out scenarios that each arm plays."""
    num_seeds: int | None = None
    """Dialogues per scenario."""
    concurrency: int | None = operational(None)
    """Dialogues (or judge calls) in flight at once."""
    timeout_s: float | None = operational(None)
    """For one attempt at a call; it is then tried again."""
    max_cost_usd: float | None = operational(None)
    """Stop cleanly once the study has spent this much."""
    record: Path | None = operational(None)
    """A folder that keeps every call."""
    replay: Path | None = operational(None)
    """A folder made by --record, which answers every call instead of any server."""
    launcher: Literal["local", "ray"] = operational("local")
    """`ray` (extra [ray]) runs arms side by side, on every machine of a Ray cluster."""
    ray_cpus: float = operational(1.0)
    """CPU cores that each training and each arm holds under `--launcher ray`."""
    ray_gpus: float = operational(0.0)
    """GPUs, likewise."""

    def __post_init__(self) -> None:
        require(
            self.launcher == "local" or self.max_cost_usd is None,
            "--max-cost-usd needs --launcher local: arms that run side by side can't share a "
            "ceiling.",
        )
        require(
            self.launcher == "local" or self.record is None,
            "--record needs --launcher local: arms that run side by side can't share a recording.",
        )
        require(self.ray_cpus > 0, f"ray_cpus={self.ray_cpus:g} must be positive.")
        require(self.ray_gpus >= 0, f"ray_gpus={self.ray_gpus:g} must not be negative.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalStudy(StudyConfig):
    """Which signal each stage learns from (Tables 2 and 11)."""

    study: ClassVar[str] = "signal"
    stages: tuple[Literal["iql", "sft", "jpo"], ...] = ("iql", "sft", "jpo")


@dataclass(frozen=True, slots=True, kw_only=True)
class KappaStudy(StudyConfig):
    """The weight of negative advantages in JPO (Table 6)."""

    study: ClassVar[str] = "kappa"
    values: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class KLStudy(StudyConfig):
    """The KL coefficient of JPO."""

    study: ClassVar[str] = "kl"
    values: tuple[float, ...] = (0.01, 0.04, 0.1, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStudy(StudyConfig):
    """The rank of LoRA, of SFT and JPO alike."""

    study: ClassVar[str] = "rank"
    values: tuple[int, ...] = (4, 16, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class IQLStudy(StudyConfig):
    """Expectile, advantage scale and discount of the selector, every combination."""

    study: ClassVar[str] = "iql"
    expectiles: tuple[float, ...] = (0.7, 0.8, 0.9)
    advantage_scales: tuple[float, ...] = (1.0, 3.0, 10.0)
    discounts: tuple[float, ...] = (0.95, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferStudy(StudyConfig):
    """Selector and adapter of each domain in each domain (Table 4)."""

    study: ClassVar[str] = "transfer"
    sources: tuple[DomainName, ...] = ALL_DOMAINS
    targets: tuple[DomainName, ...] = ALL_DOMAINS
    selector: Literal["source", "target"] = "source"
    """`target` plays another domain's adapter with the selector of the domain that is played."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterpartyStudy(StudyConfig):
    """Counterparties that nobody has trained against (Tables 5 and 10)."""

    study: ClassVar[str] = "counterparty"
    counterparties: tuple[str, ...] = ()
    """Language models; the simulator's three types without any."""
    methods: tuple[str, ...] = ("vanilla-llm", "iql", "iql+sft", "iql+sft+jpo")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmotionFreeStudy(StudyConfig):
    """Training and playing without the emotion block (Tables 3, 12 and 15)."""

    study: ClassVar[str] = "emotion-free"
    targets: tuple[DomainName, ...] = ALL_DOMAINS
    methods: tuple[str, ...] = (
        "vanilla-slm",
        "free-sft",
        "free-jpo",
        "free-sft+jpo",
        "iql+sft+jpo",
        "iql+sft+jpo-stripped",
    )
    long_epochs: int = 5
    """Epochs of further emotion-free JPO runs, for their stability; 0 leaves them out."""
    long_domains: tuple[DomainName, ...] = ("crad", "disaster", "student")


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinementStudy(StudyConfig):
    """A-LoL and DPO in place of JPO, from the same SFT snapshot (Table 14)."""

    study: ClassVar[str] = "refinement"
    targets: tuple[DomainName, ...] = ALL_DOMAINS
    methods: tuple[str, ...] = ("iql+sft+alol", "iql+sft+jpo", "iql+sft+dpo")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmotionStudy(StudyConfig):
    """Every emotion at every turn, judged (Figure 1, Appendix B)."""

    study: ClassVar[str] = "emotions"
    num_scenarios: int | None = 20
    num_seeds: int | None = 20


ABLATIONS: Mapping[str, type[StudyConfig]] = {
    cls.study: cls
    for cls in (
        SignalStudy,
        KappaStudy,
        KLStudy,
        RankStudy,
        IQLStudy,
        TransferStudy,
        CounterpartyStudy,
        EmotionFreeStudy,
        RefinementStudy,
    )
}
"""What `ablate.py` has a subcommand for."""
STUDIES: Mapping[str, type[StudyConfig]] = {**ABLATIONS, EmotionStudy.study: EmotionStudy}
