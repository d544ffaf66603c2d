"""Settings of the studies, with the paper's grids (Appendix F)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, get_args

from emodistill.configs.base import (
    EMBEDDED,
    SIMULATED_MODELS,
    TRUTH,
    Config,
    DomainName,
    ExperimentConfig,
    Split,
    configuration,
    data_from,
    require,
    require_student_server,
    setting,
)
from emodistill.configs.selectors import SelectorMethod
from emodistill.configs.training import RatioKind

ALL_DOMAINS: tuple[DomainName, ...] = ("crad", "disaster", "hospital", "student")


@configuration
class StudyConfig(ExperimentConfig):
    """What every study shares. A setting that is left out takes its stage's default."""

    student_field = "student"
    called = ("focal", "counterparty")
    study: ClassVar[str]
    """Names the study, its subcommand and its file of arms."""
    has_choices = True
    """Whether the study compares settings, which --split validation is for."""
    data_from: Path | None = data_from()
    """Another run, whose sweep and scores are read in place of this one's, where they are."""
    focal: str | None = None
    """The language model in the focal role, for methods that one writes for: MODEL, PROVIDER:MODEL
    or URL#MODEL."""
    student: str = setting(EMBEDDED, is_path=True)
    """`embedded`, or the folder of the student's base checkpoint."""
    student_url: str | None = setting(None, operational=True)
    """A server that plays the student (see evaluate.py); arms whose adapter it doesn't serve yet
    fail, and are tried again when the study is started again."""
    student_model: str | None = None
    """The name under which that server has it, with `{adapter}` and `{domain}` in it."""
    allow_unverified: bool | None = setting(None, operational=True)
    """Play it although the canaries can't tell whether its adapter is in use."""
    counterparty: str | None = None
    """The language model in the counterparty's role: MODEL, PROVIDER:MODEL or URL#MODEL."""
    split: Split = "test"
    """`validation` (sweep with --num-validation) is for choosing settings."""
    judge: str | None = None
    """The judge whose scores are learned from; in the study of emotions, the one who gives them."""
    num_scenarios: int | None = None
    """Held-out scenarios that each arm plays."""
    num_seeds: int | None = None
    """Dialogues per scenario."""
    concurrency: int | None = setting(None, ge=1, operational=True)
    """Dialogues (or judge calls) in flight at once."""
    timeout_s: float | None = setting(None, gt=0, operational=True)
    """Seconds for one attempt at a call, which is then tried again."""
    max_cost_usd: float | None = setting(None, operational=True)
    """Stop cleanly once the study has spent this much."""
    record: Path | None = setting(None, operational=True)
    """A folder that keeps every call."""
    replay: Path | None = setting(None, operational=True)
    """A folder made by --record, which answers every call instead of any server."""
    launcher: Literal["local", "ray"] = setting("local", operational=True)
    """`ray` (extra [ray]) runs arms side by side, on every machine of a Ray cluster."""
    ray_cpus: float = setting(1.0, gt=0, operational=True)
    """CPU cores that each training and each arm holds under `--launcher ray`."""
    ray_gpus: float = setting(0.0, ge=0, operational=True)
    """GPUs that each training and each arm holds under `--launcher ray`."""

    def __init_subclass__(cls) -> None:
        cls.stage = f"study-{cls.study}"

    @property
    def num_sweep_dialogues(self) -> int:
        """Dialogues of training scenarios that the sweep of each domain needs; 0 for any."""
        return 0

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        require_student_server(self)
        for flag in ("max_cost_usd", "record"):
            require(
                self.launcher == "local" or getattr(self, flag) is None,
                f"--{flag.replace('_', '-')} needs --launcher local: arms that run side by side "
                "can't share it.",
            )
        require(
            self.split == "test" or self.has_choices,
            f"{self.study}: --split validation is for choosing settings, and there are none to be "
            "chosen here; leave it out.",
        )


@configuration
class SignalStudy(StudyConfig):
    """Which signal each stage learns from (Tables 2 and 11)."""

    study = "signal"
    stages: tuple[Literal["iql", "sft", "jpo"], ...] = ("iql", "sft", "jpo")
    """The stages whose signals are compared."""


@configuration
class KappaStudy(StudyConfig):
    """The weight of negative advantages in JPO (Table 6)."""

    study = "kappa"
    values: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """The values of κ."""


@configuration
class KLStudy(StudyConfig):
    """The KL coefficient of JPO."""

    study = "kl"
    values: tuple[float, ...] = (0.01, 0.04, 0.1, 0.5)
    """The values of λ_KL."""


@configuration
class RankStudy(StudyConfig):
    """The rank of LoRA, of SFT and JPO alike."""

    study = "rank"
    values: tuple[int, ...] = (4, 16, 64)
    """The ranks."""


@configuration
class IQLStudy(StudyConfig):
    """Expectile, advantage scale and discount of the selector, every combination."""

    study = "iql"
    expectiles: tuple[float, ...] = (0.7, 0.8, 0.9)
    """The values of τ."""
    advantage_scales: tuple[float, ...] = (1.0, 3.0, 10.0)
    """The values of β."""
    discounts: tuple[float, ...] = (0.95, 0.99)
    """The values of γ."""


@configuration
class TransferStudy(StudyConfig):
    """Selector and adapter of each domain in each domain (Table 4)."""

    study = "transfer"
    sources: tuple[DomainName, ...] = ALL_DOMAINS
    """Domains to train in."""
    targets: tuple[DomainName, ...] = ALL_DOMAINS
    """Domains to play in."""
    selector: Literal["source", "target"] = "source"
    """`target` plays another domain's adapter with the selector of the domain that is played."""


@configuration
class CounterpartyStudy(StudyConfig):
    """Counterparties that nobody has trained against (Tables 5 and 10)."""

    study = "counterparty"
    called = (*StudyConfig.called, "counterparties")
    counterparties: tuple[str, ...] = ()
    """Language models to negotiate with, each as MODEL, PROVIDER:MODEL or URL#MODEL; if left out,
    the simulator's three types."""
    methods: tuple[str, ...] = ("vanilla-llm", "iql", "iql+sft", "iql+sft+jpo")
    """Methods to compare."""


@configuration
class EmotionFreeStudy(StudyConfig):
    """Training and playing without the emotion block (Tables 3, 12 and 15)."""

    study = "emotion-free"
    has_choices = False
    targets: tuple[DomainName, ...] = ALL_DOMAINS
    """Domains to play in."""
    methods: tuple[str, ...] = (
        "vanilla-slm-free",
        "free-sft",
        "free-jpo",
        "free-sft+jpo",
        "iql+sft+jpo",
        "iql+sft+jpo-stripped",
    )
    """Methods to compare."""
    long_epochs: int = setting(5, ge=0)
    """Epochs of further emotion-free JPO runs, which show its stability; 0 leaves them out."""
    long_domains: tuple[DomainName, ...] = ("crad", "disaster", "student")
    """The domains of those runs."""


@configuration
class RefinementStudy(StudyConfig):
    """A-LoL and DPO in place of JPO, from the same SFT snapshot (Table 14)."""

    study = "refinement"
    has_choices = False
    targets: tuple[DomainName, ...] = ALL_DOMAINS
    """Domains to play in."""
    methods: tuple[str, ...] = ("iql+sft+alol", "iql+sft+jpo", "iql+sft+dpo")
    """Methods to compare."""


@configuration
class DoseStudy(StudyConfig):
    """What JPO gains over SFT by how valid its judge is, up to the truth itself."""

    study = "dose"
    has_choices = False
    judges: tuple[str, ...] = (
        *("sim-judge-0", "sim-judge-0.2", "sim-judge-0.4"),
        *(SIMULATED_MODELS["judge"], TRUTH),
    )
    """Judges to learn from, the least valid first; `truth` are worths of turns by forks."""
    judge: str | None = SIMULATED_MODELS["judge"]
    """The judge whose scores SFT learns from, in all arms."""
    learners: tuple[Literal["jpo", "iql"], ...] = ("jpo",)
    """`iql` also has the selector learn from the judges' scores of turns."""
    kappas: tuple[float, ...] = (1.0,)
    """The values of κ."""
    ratios: tuple[RatioKind, ...] = ("mean-token",)
    """Importance ratios of JPO: mean-token, sequence, token."""
    rate_factors: tuple[float, ...] = (1.0, 5.0)
    """What the learning rate of JPO is multiplied by. Each training keeps a checkpoint as by
    --select best, and the one of the best utility on validation scenarios is played; what training
    started from, only where all have kept that."""
    num_turns: int = setting(2_048, ge=1)
    """Focal turns whose worth is found for `truth`; with `jpo: data: top` a quarter of them is
    learned from."""
    continuations: int = setting(8, ge=2, le=999)
    """Forks of each of these turns in each of its two arms."""
    own_seeds: int = setting(0, ge=0)
    """In one more arm JPO learns from dialogues that the student of iql+sft plays itself, so many
    on each training scenario, and that --judge scores; 0 leaves it out."""
    num_scenarios: int | None = 20
    """Held-out scenarios that each arm plays."""
    num_seeds: int | None = 10
    """Dialogues per scenario."""

    def __post_init__(self) -> None:
        StudyConfig.__post_init__(self)
        for ratio in self.ratios:
            require(ratio in get_args(RatioKind), f"ratios: {ratio!r} is no ratio of JPO.")
        require(len(self.rate_factors) > 0, "rate_factors is empty; 1 keeps the stage's own rate.")


@configuration
class EmotionStudy(StudyConfig):
    """Every emotion at every turn, judged (Figure 1, Appendix B)."""

    study = "emotions"
    has_choices = False
    num_scenarios: int | None = 20
    """Held-out scenarios that each emotion plays."""
    num_seeds: int | None = 20
    """Dialogues per scenario."""


@configuration
class LeaderboardStudy(StudyConfig):
    """Whoever learns to choose emotions, at equal budgets of training dialogues."""

    study = "leaderboard"
    has_choices = False
    targets: tuple[DomainName, ...] = ALL_DOMAINS
    """Domains to train and play in."""
    budgets: tuple[int, ...] = (60, 240, 8_000)
    """Training dialogues of a domain: what EmoDebt and EvoEmo take, and the paper's sweep."""
    trainings: int = setting(5, ge=1)
    """Training seeds of each method at each budget, from --seed on."""
    methods: tuple[str, ...] = (
        *("iql", "iql-7", "cloning", "cql", "dqn", "bandit", "best-fixed"),
        *get_args(SelectorMethod),
    )
    """Methods that learn: from a sweep, or by dialogues that they play themselves."""
    references: tuple[str, ...] | None = None
    """Methods that learn nothing, of which the first is what all are compared with. If left out,
    random, random-7, neutral, and on the simulator the oracle."""
    ablations: bool = False
    """Also IQL and the systems of related work on their own rewards in place of the utility, and
    each fault of a system's published code alone."""
    advantage_scale: float = setting(30.0, gt=0)
    """β of IQL's policy, whose advantages are in utility here, a tenth of the shaped return's."""
    steps_per_dialogue: float = setting(6.25, gt=0)
    """Updates of the networks for each dialogue: the paper's 50,000 for 8,000."""
    min_steps: int = setting(1_000, ge=1)
    """Updates at least; with fewer, networks stay near their start."""
    num_scenarios: int | None = 20
    """Held-out scenarios that each method plays."""
    num_seeds: int | None = 5
    """Dialogues per scenario."""

    def __post_init__(self) -> None:
        StudyConfig.__post_init__(self)
        require(self.references != (), "references is empty; name one to compare with.")
        for budget in self.budgets:
            require(
                budget >= 1,
                f"--budgets {budget}: a budget is at least 1 training dialogue; methods that learn "
                "nothing are named by --references.",
            )
        require(
            self.is_simulated or "oracle" not in (self.references or ()),
            "--references: the oracle knows the simulator's hidden truth and plays no real model; "
            "leave it out.",
        )

    @property
    def num_sweep_dialogues(self) -> int:
        return max(self.budgets, default=0)


ABLATIONS: dict[str, type[StudyConfig]] = {
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
        DoseStudy,
    )
}
"""What `ablate.py` has a subcommand for."""
STUDIES: dict[str, type[StudyConfig]] = {
    **ABLATIONS,
    EmotionStudy.study: EmotionStudy,
    LeaderboardStudy.study: LeaderboardStudy,
}
