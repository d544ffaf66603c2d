"""Settings of stages 3 and 4: the emotion selector, the student's adapters, their device memory."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from emodistill.configs.base import (
    AUTO,
    EMBEDDED,
    ByStudent,
    Config,
    ExperimentConfig,
    Quantization,
    configuration,
    data_from,
    require,
    setting,
)
from emodistill.errors import InputError

StateKind = Literal["geometry", "upstream"]
IQLSignal = Literal["outcome", "utility", "episode-judge", "turn-judge"]
LearnerName = Literal["iql", "cloning", "cql", "dqn", "bandit", "best-fixed"]
CONSERVATISM = 1.0
"""α of the discrete form in CQL's own publication."""
EmotionSet = Literal["all", "ekman"]
SFTSignal = Literal["hybrid", "episode-judge", "turn-judge"]
JPOSignal = Literal["turn-judge", "episode-judge", "outcome"]
OnPolicySignal = Literal["turn-judge", "outcome", "utility"]
QualityScore = Literal["raw", "advantage"]
LossMean = Literal["token", "reply", "reply-sum"]
RatioKind = Literal["mean-token", "sequence", "token"]
Packing = Literal["tree", "sequence", "none"]
Remat = Literal["none", "full", "dots"]
AttentionForm = Literal["xla", "pallas"]


@configuration
class IQLConfig(ExperimentConfig):
    """Stage 3: discrete implicit Q-learning of the emotion selector (Eqs. 13-15), or a control."""

    stage = "iql"
    data_from: Path | None = data_from()
    """Another run, whose sweep and scores are read in place of this one's, where they are."""
    learner: LearnerName = "iql"
    """Who learns from the transitions: IQL, or one of its controls: behaviour `cloning`; `cql`,
    conservative Q-learning; `dqn`, double Q-learning; a `bandit` with a posterior for each emotion
    in each phase of the talks, which samples by Thompson's rule; or the `best-fixed` emotion."""
    emotions: EmotionSet = "all"
    """The labels to choose from: all 28, or Ekman's six and neutral."""
    num_dialogues: int | None = setting(None, ge=1, hint="leave it out for all")
    """Learn from so many dialogues of the sweep, the first of each scenario before the second of
    any; the seed says in which order the scenarios are taken."""
    signal: IQLSignal = "outcome"
    """The reward: at the end, the shaped return or the utility (savings, 0 for a failure), or the
    judge's scores of dialogues or turns."""
    judge: str | None = None
    """The judge whose scores are the signal."""
    conservatism: float = setting(CONSERVATISM, ge=0)
    """The weight of CQL's penalty, for `cql` alone."""
    expectile: float = setting(0.7, ge=0.5, lt=1)
    """The expectile of the value loss."""
    advantage_scale: float = setting(3.0, gt=0)
    """The inverse temperature β of Eq. 15."""
    discount: float = setting(0.99, ge=0, le=1)
    """The discount γ."""
    num_steps: int = setting(50_000, ge=1)
    """Updates of the networks."""
    batch_size: int = setting(256, ge=1)
    """Transitions of an update."""
    learning_rate: float = setting(3e-4, gt=0)
    """Adam's learning rate."""
    polyak: float = setting(0.005, gt=0, le=1)
    """How much of the critic the target critic takes over at each update."""
    hidden_width: int = setting(256, ge=1)
    """Width of the hidden layers."""
    weight_cap: float = setting(100.0, gt=0)
    """Upper bound of the regression weights."""
    advantage_q: Literal["target", "online"] = "target"
    """Whose Q the policy is regressed on: the target critic's, or the critic's own (as printed)."""
    state: StateKind = "geometry"
    """What the selector sees of a dialogue; `upstream` is upstream's ten numbers."""
    estimates_value: bool = setting(True, operational=True)
    """Estimate the selector's value by fitted Q once it is trained."""

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        require(
            self.learner == "cql" or self.conservatism == CONSERVATISM,
            f"--conservatism {self.conservatism:g} is the weight of CQL's penalty; add "
            "--learner cql, or leave it out.",
        )


@configuration
class MeshShape:
    """How many devices each axis of the mesh has (docs/scale.md)."""

    data: int = 1
    """Copies of the weights, each with rows of its own."""
    fsdp: int = 1
    """Devices over which weights and rows are split."""
    tensor: int = 1
    """Devices over which heads, MLP columns and a row's tokens are split."""

    @classmethod
    def parse(cls, text: str) -> MeshShape:
        """Read `DATAxFSDPxTENSOR`, such as 1x2x4."""
        parts = text.lower().split("x")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
            raise InputError(
                f"mesh={text!r} must be DATAxFSDPxTENSOR, each at least 1, such as 1x2x4."
            )
        return cls(**dict(zip(("data", "fsdp", "tensor"), map(int, parts), strict=True)))

    def __str__(self) -> str:
        return f"{self.data}x{self.fsdp}x{self.tensor}"


@configuration
class AdapterConfig(ExperimentConfig):
    """What all training of the student shares: the student, its LoRA, the optimiser (Appendix F).

    `auto` is one value for a checkpoint and another one for the embedded student, which has
    five million parameters.
    """

    student_field = "model"
    data_from: Path | None = data_from()
    """Another run, whose sweep and scores are read in place of this one's, where they are."""
    model: str = setting(EMBEDDED, is_path=True)
    """`embedded`, or a folder with a Qwen2-type checkpoint in safetensors."""
    judge: str | None = None
    """The judge whose scores are learned from; sim-judge on the simulator."""
    prompt_pack: Path | None = None
    """A folder with your own prompt pack."""
    signal: JPOSignal = "turn-judge"
    """What a turn's advantage is made from."""
    emotion_free: bool = False
    """Leave the emotion block out of every prompt."""
    lora_rank: int = setting(16, ge=1)
    """Rank of LoRA."""
    lora_alpha: float = setting(32.0, gt=0)
    """Scale of LoRA, which is divided by the rank."""
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Projections that get a LoRA."""
    learning_rate: ByStudent[float] = setting(1e-4, embedded=3e-3, gt=0)
    """Peak of the learning rate's cosine. auto: 0.0001, for the embedded student 0.003."""
    batch_size: int = setting(16, ge=1)
    """Samples per optimiser step."""
    num_epochs: ByStudent[int] = setting(2, embedded=1, ge=1)
    """Passes over the samples. auto: 2, for the embedded student 1."""
    max_steps: int | None = setting(None, ge=1, hint="leave it out for whole epochs")
    """Stop after this many steps, whatever the epochs say."""
    max_samples: ByStudent[int | None] = setting(
        None, embedded=2560, ge=1, hint="None trains on all"
    )
    """Train on this many of the turns that qualify, drawn by the seed; None for all. auto: None,
    for the embedded student 2560."""
    warmup_fraction: float = setting(0.03, ge=0, le=1)
    """Share of the steps over which the learning rate rises."""
    max_grad_norm: float = setting(1.0, gt=0)
    """Global norm at which gradients are clipped."""
    max_tokens: ByStudent[int] = setting(2048, embedded=1024)
    """Tokens of a prompt and its reply; longer prompts lose their oldest turns. auto: 2048, for the
    embedded student 1024."""
    quantize: Quantization | None = None
    """Hold the frozen projections in 8 or 4 bits, for small cards (extra `quantize`)."""
    mesh: str | None = setting(None, operational=True)
    """DATAxFSDPxTENSOR devices, such as 1x2x4; if left out, all of them, as --batch-size allows."""
    remat: Remat | None = setting(None, operational=True)
    """What the backward pass computes again: `none` (on CPU), `full` (elsewhere), or, with `dots`,
    everything but matrix products."""
    attention: AttentionForm | None = setting(None, operational=True)
    """How attention is computed: by XLA's loops (`xla`) or by kernels for GPUs (`pallas`); if left
    out, by kernels where they run."""
    packing: Packing = setting("tree", operational=True)
    """How samples share rows: merged where their prompts agree, side by side, or not at all."""
    max_micro_tokens: int | None = setting(None, ge=1, operational=True)
    """Tokens of a micro-batch on each device; if left out, what suits the kind of device."""
    save_every: int = setting(25, ge=1, operational=True)
    """Steps between checkpoints."""
    keep: int = setting(2, ge=1, operational=True)
    """Newest checkpoints that stay."""
    keep_every: int | None = setting(None, ge=1, operational=True)
    """Also keep the checkpoints of every this many steps."""
    coordinator: str | None = setting(None, operational=True)
    """HOST:PORT of the first of several processes; `auto` on Slurm, Open MPI and TPU pods."""
    num_processes: int | None = setting(None, operational=True)
    """How many processes train together, with --coordinator HOST:PORT."""
    process_id: int | None = setting(None, operational=True)
    """Which of them this one is, counted from 0."""

    has_constant_rate: ClassVar[bool] = False
    """Whether the learning rate stays as it is, where nobody knows how long training goes on."""

    reference: ClassVar[str] = "base"
    """What training starts from: the base model, or the SFT adapter (`sft`)."""

    def check_devices(self) -> None:
        """Refuse a mesh or a group of processes that is impossible.

        Raises:
          InputError: the mesh is no mesh, or a flag of several processes lacks the others.
        """
        if self.mesh is not None:
            MeshShape.parse(self.mesh)
        others = (self.num_processes, self.process_id)
        if self.coordinator not in (None, AUTO) and None in others:
            raise InputError(
                f"--coordinator {self.coordinator} takes --num-processes and --process-id beside "
                "it."
            )
        if self.coordinator is None and others != (None, None):
            raise InputError(
                "--num-processes and --process-id take --coordinator HOST:PORT beside them."
            )

    @property
    def is_watched(self) -> bool:
        """Whether checkpoints play while training goes on."""
        return False


@configuration
class SFTConfig(AdapterConfig):
    """Stage 4a: supervised fine-tuning on the best quarter of the turns (Eqs. 16, 23)."""

    stage = "sft"
    signal: SFTSignal = "hybrid"  # type: ignore[assignment]
    """What ranks the turns: score and shaped return, or the judge's scores alone."""
    quality_score: QualityScore = "raw"
    """r of the hybrid r + R/2: the judge's 1 to 10, or its signed advantage as in Appendix Q."""
    top_fraction: float = setting(0.25, gt=0, le=1)
    """Share of a domain's scored turns that is kept."""
    num_epochs: int = setting(2, ge=1)  # type: ignore[assignment]
    """Passes over the samples."""
    loss_mean: LossMean = "token"
    """What the loss is a mean over: all tokens; replies, of each one's mean; or replies, of each
    one's sum (as printed)."""


@configuration
class RefinementConfig(AdapterConfig):
    """What the stages share that go on from the SFT adapter."""

    sft_cell: str = "default"
    """The SFT cell whose adapter training starts from."""
    learning_rate: ByStudent[float] = setting(5e-6, embedded=2e-4, gt=0)
    """Peak of the learning rate's cosine. auto: 5e-06, for the embedded student 0.0002."""
    max_samples: ByStudent[int | None] = setting(
        None, embedded=768, ge=1, hint="None trains on all"
    )
    """Train on this many of the turns that qualify, drawn by the seed; None for all. auto: None,
    for the embedded student 768."""
    reference = "sft"


@configuration
class RecordedRefinementConfig(RefinementConfig):
    """What the refinements share that learn from dialogues which were played before: whose these
    are, and who looks at their checkpoints."""

    turns: Literal["recorded", "own"] = "recorded"
    """Whose turns to learn from: the sweep's, or the `own` ones of the SFT student, which plays the
    training scenarios first and is judged (docs/on_policy.md). Where training starts from the base
    model or is emotion-free, they are the sweep's."""
    own_seeds: int = setting(12, ge=1, operational=True)
    """With --turns own: dialogues on each training scenario; those that aren't there are played."""
    watch: bool = False
    """Have the student play the validation scenarios at checkpoints (sweep with --num-validation),
    and compare it with the one that training started from: utility, the judge's scores, and signs
    that it pleases the judge instead of its opponent. --select best and --stop-when-hacked do."""
    select: Literal["last", "best"] = "last"
    """The checkpoint that becomes the adapter: the last one; or, of those without an alarm, the
    last one again, unless another has a utility on the validation scenarios that is higher by more
    than a standard error: then the best, which may be what training started from."""
    stop_when_hacked: bool = False
    """Stop at the first checkpoint with an alarm."""
    watch_every: ByStudent[int] = setting(100, embedded=16, ge=1)
    """Steps between the checkpoints that are watched; the last one is in any case. auto: 100, for
    the embedded student 16."""
    watch_seeds: int = setting(4, ge=1)
    """Dialogues that a watched checkpoint plays on each validation scenario."""

    @property
    def is_watched(self) -> bool:
        return self.watch or self.stop_when_hacked or self.select == "best"


@configuration
class JPOConfig(RecordedRefinementConfig):
    """Stage 4b: Judge Policy Optimization (Eqs. 17-19)."""

    stage = "jpo"
    reference: Literal["sft", "base"] = "sft"
    """Start from, and stay near, the SFT snapshot or the base model (`iql+jpo`)."""
    kappa: float = setting(1.0, ge=0, le=1, hint="the paper uses 1")
    """κ of Eq. 18: the weight of negative advantages."""
    clip: float = setting(0.2, gt=0, lt=1, hint="the paper uses --clip 0.2")
    """ε of Eq. 19: how far the ratio may leave 1."""
    kl_coef: float = setting(0.04, ge=0, hint="the paper uses 0.04")
    """λ_KL of Eq. 19: the weight of the KL divergence from the reference."""
    ratio: RatioKind = "mean-token"
    """A reply's importance ratio: of its mean log-ratio, of its sum (as printed), or per token."""
    shrink: bool = False
    """Draw advantages towards what is to be expected of such turns, the more the less reliable
    repeated scores are (judge.py --repeats 2); an exact judge's stay as they are."""
    data: Literal["all", "top"] = "all"
    """All scored turns, or SFT's best quarter (Eq. 19 as printed)."""
    top_fraction: float = setting(0.25, gt=0, le=1)
    """Share of the scored turns that --data top keeps."""


@configuration
class ALoLConfig(RecordedRefinementConfig):
    """In place of JPO: A-LoL, the likelihood of turns with A > 0 weighted by A."""

    stage = "alol"


@configuration
class DPOConfig(RecordedRefinementConfig):
    """In place of JPO: DPO on pairs of the same scenario, turn index and emotion."""

    stage = "dpo"
    max_samples: ByStudent[int | None] = setting(
        None, embedded=384, ge=1, hint="None trains on all"
    )
    """Train on this many of the pairs, drawn by the seed; None for all. auto: None, for the
    embedded student 384."""
    beta: float = setting(0.1, gt=0, hint="0.1 is usual")
    """β: how much a reply's log-ratio to the reference counts."""


@configuration
class MemoryConfig(Config):
    """What a training step needs on each device, without weights and without the device."""

    stage = "memory"
    model: str = setting("qwen2.5-7b", is_path=True)
    """qwen2.5-0.5b, -1.5b, -3b, -7b, -14b, -32b, -72b, `embedded`, or a checkpoint folder."""
    objective: Literal["sft", "jpo"] = "jpo"
    """The training stage whose step is compiled."""
    mesh: str | None = None
    """DATAxFSDPxTENSOR devices; if left out, what training takes on all devices of --topology."""
    topology: str | None = None
    """GPUs to compile for (extra `gpu-aot`), h100:1, h100:8, a100-80:1, a100-40:1, l40s:1,
    rtx4090:1, or TPUs (extra `tpu-aot`), such as v6e:1x1 or v5e:2x4; CPUs if left out."""
    tokens: int = setting(4_096, ge=1)
    """Tokens of a row; every device that has rows of its own has one."""
    fit_gb: float | None = setting(None, gt=0)
    """Also find the longest row that takes at most so many GB (1e9 bytes) on each device."""
    lora_rank: int = setting(16, ge=1)
    """Rank of LoRA."""
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Projections that get a LoRA."""
    remat: Remat = "full"
    """What the backward pass computes again: `none`, `full`, or, with `dots`, everything but matrix
    products."""
    quantize: Quantization | None = None
    """Hold the frozen projections in 8 or 4 bits."""
    attention: AttentionForm | None = None
    """How attention is computed, as in training: `xla`, `pallas`, or what --topology can."""

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        if self.mesh is not None:
            MeshShape.parse(self.mesh)
