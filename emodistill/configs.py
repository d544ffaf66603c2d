"""The settings of every stage: one frozen dataclass each, with the paper's defaults (Appendix F).

Free of jax, so that `--help` answers at once. A field marked `operational` changes how a stage
runs but not what it makes; it stays out of manifests and cell names.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from emodistill.emotions import EMOTION_INDEX
from emodistill.errors import InputError

DomainName = Literal["crad", "disaster", "hospital", "student"]
AgreementRule = Literal["stand", "upstream"]
OfferReaderKind = Literal["pattern", "llm"]
StateKind = Literal["geometry", "upstream"]
IQLSignal = Literal["outcome", "episode-judge", "turn-judge"]
SFTSignal = Literal["hybrid", "episode-judge", "turn-judge"]
JPOSignal = Literal["turn-judge", "episode-judge", "outcome"]
RatioKind = Literal["mean-token", "sequence", "token"]
Packing = Literal["tree", "sequence", "none"]
Remat = Literal["none", "full", "dots"]
Quantization = Literal["int8", "nf4"]

SIMULATED_MODELS = {
    "focal": "sim-teacher",
    "counterparty": "sim-counterparty",
    "judge": "sim-judge",
    "reader": "sim-reader",
}
TYPED_COUNTERPARTIES = {
    "sim-proud": "proud",
    "sim-anxious": "anxious",
    "sim-practical": "practical",
}
"""Simulated counterparties that are all of one type, which `sim-counterparty` draws by lot."""
BLIND_JUDGE = "sim-blind-judge"
"""A simulated judge whose scores are noise and nothing else."""
SIMULATED = (*SIMULATED_MODELS.values(), *TYPED_COUNTERPARTIES, BLIND_JUDGE)
"""Every model that the simulator serves."""
EMBEDDED = "embedded"
AUTO = "auto"
TEMPERATURE, EMBEDDED_TEMPERATURE = 0.7, 0.4


DEFAULT_RUN = Path("runs/default")


def operational(default: Any) -> Any:
    """A field that changes speed or place, never results."""
    return field(default=default, metadata={"operational": True})


def require(condition: bool, message: str) -> None:
    """Raise InputError with `message` unless `condition`."""
    if not condition:
        raise InputError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentConfig:
    """What every stage shares."""

    run: Path = operational(DEFAULT_RUN)
    """The folder of the experiment."""
    domain: DomainName = "crad"
    """crad, disaster, hospital or student."""
    seed: int = 0
    """Names every random stream of the stage."""
    provider: str | None = operational(None)
    """dashscope, openai, deepseek, openrouter, vllm, llamacpp; the simulator without one."""
    base_url: str | None = operational(None)
    """Any OpenAI-compatible endpoint, e.g. http://127.0.0.1:8000/v1."""

    @property
    def is_simulated(self) -> bool:
        """Whether no real language model was asked for."""
        return self.provider in (None, "simulator") and self.base_url is None

    def identity(self) -> dict[str, Any]:
        """The settings that change the result, for manifests and cell names."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if not f.metadata.get("operational")
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiConfig(ExperimentConfig):
    """A stage that calls language models; with neither provider nor base URL, the simulator."""

    concurrency: int = operational(6)
    """Dialogues (or judge calls) in flight at once."""
    max_cost_usd: float | None = operational(None)
    """Stop cleanly once this much has been spent."""
    timeout_s: float = operational(120.0)
    """For one attempt at a call; it is then tried again."""
    record: Path | None = operational(None)
    """A folder that keeps every call."""
    replay: Path | None = operational(None)
    """A folder made by --record, which answers every call instead of any server."""

    def __post_init__(self) -> None:
        require(self.concurrency >= 1, f"concurrency={self.concurrency} must be at least 1.")
        require(self.timeout_s > 0, f"timeout_s={self.timeout_s:g} must be positive.")
        require(
            self.record is None or self.replay is None,
            "--record and --replay exclude each other: a replay hears nothing new.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig(ApiConfig):
    """Stage 1: dialogues under seeded random emotions (paper §3.1, Appendix E.2)."""

    scenarios: Path | None = None
    """A published table (.csv) or scenario lines (.jsonl); the built-in generator without it."""
    strict: bool = False
    """Refuse a table with unplayable rows instead of leaving those rows out."""
    num_scenarios: int | None = None
    """Training scenarios to play; all without it."""
    num_seeds: int = 100
    """Dialogues per scenario."""
    num_test: int = 20
    """Scenarios held out for evaluation."""
    num_validation: int = 0
    """Scenarios taken from the training ones for choosing settings."""
    model: str | None = None
    """The focal language model."""
    counterparty: str | None = None
    """The language model on the other side."""
    focal_temperature: float = 0.7
    counterparty_temperature: float = 0.7
    max_reply_tokens: int = 160
    max_turns: int = 30
    """Turns of both sides together."""
    agreement: AgreementRule = "stand"
    """`upstream` reproduces the |difference| <= 5 rule for comparison."""
    offer_reader: OfferReaderKind = "pattern"
    """`llm` asks a language model which figure each utterance puts forward."""
    reader: str | None = None
    """That language model."""
    prompt_pack: Path | None = None
    """A folder with your own prompt pack."""

    def __post_init__(self) -> None:
        ApiConfig.__post_init__(self)
        require(self.num_seeds >= 1, f"num_seeds={self.num_seeds} must be at least 1.")
        require(
            self.num_scenarios is None or self.num_scenarios >= 1,
            f"num_scenarios={self.num_scenarios} must be at least 1; leave it out for all.",
        )
        require(self.max_turns >= 2, f"max_turns={self.max_turns}: a dialogue needs two turns.")
        for name in ("focal_temperature", "counterparty_temperature"):
            value = getattr(self, name)
            require(0 <= value <= 2, f"{name}={value} must lie in [0, 2].")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig(SweepConfig):
    """A forecast of the sweep with these settings, and of its judging."""

    pilot: int = operational(160)
    """Dialogues to play and judge for it; the sweep goes on from them."""
    judge: str | None = operational(None)
    """The judging model."""

    def __post_init__(self) -> None:
        SweepConfig.__post_init__(self)
        require(self.pilot >= 2, f"pilot={self.pilot} must be at least 2; 160 is plenty.")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig(ApiConfig):
    """Stage 2: a language model scores focal turns, or whole dialogues, from 1 to 10."""

    judge: str | None = None
    """The judging model."""
    level: Literal["turn", "dialogue"] = "turn"
    repeats: int = 1
    """Independent scores per item."""
    retry_unanswered: bool = operational(False)
    """Ask once more for the items that a server refused or never answered."""
    compare: str | None = operational(None)
    """Ask nothing; say how far the scores there are from those of this other judge."""
    prompt_pack: Path | None = None

    def __post_init__(self) -> None:
        ApiConfig.__post_init__(self)
        require(self.repeats >= 1, f"repeats={self.repeats} must be at least 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class IQLConfig(ExperimentConfig):
    """Stage 3: discrete implicit Q-learning of the emotion selector (Eqs. 13-15)."""

    signal: IQLSignal = "outcome"
    judge: str | None = None
    """Whose scores feed the judge signals."""
    expectile: float = 0.7
    advantage_scale: float = 3.0
    """The inverse temperature β of Eq. 15."""
    discount: float = 0.99
    num_steps: int = 50_000
    batch_size: int = 256
    learning_rate: float = 3e-4
    polyak: float = 0.005
    hidden_width: int = 256
    weight_cap: float = 100.0
    """Upper bound of the regression weights."""
    state: StateKind = "geometry"

    def __post_init__(self) -> None:
        require(0.5 <= self.expectile < 1, f"expectile={self.expectile} must lie in [0.5, 1).")
        require(self.advantage_scale > 0, f"advantage_scale={self.advantage_scale} must be > 0.")
        require(0 <= self.discount <= 1, f"discount={self.discount} must lie in [0, 1].")
        require(self.num_steps >= 1, f"num_steps={self.num_steps} must be at least 1.")


SAMPLES_PER_ROW = 8
"""Of a step for every device with rows of its own: with fewer they share little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshShape:
    """How many devices each axis of the mesh has (docs/scale.md)."""

    data: int = 1
    """Copies of the weights, each with rows of its own."""
    fsdp: int = 1
    """Weights and rows are split over these."""
    tensor: int = 1
    """Heads, MLP columns and a row's tokens are split over these."""

    def __post_init__(self) -> None:
        for name in ("data", "fsdp", "tensor"):
            size = getattr(self, name)
            require(size >= 1, f"mesh {self}: {name}={size} must be at least 1.")

    @classmethod
    def parse(cls, text: str) -> MeshShape:
        """Read `DATAxFSDPxTENSOR`, such as 1x2x4."""
        parts = text.lower().split("x")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise InputError(f"mesh={text!r} must be DATAxFSDPxTENSOR, such as 1x2x4.")
        return cls(**dict(zip(("data", "fsdp", "tensor"), map(int, parts), strict=True)))

    @property
    def size(self) -> int:
        return self.data * self.fsdp * self.tensor

    def __str__(self) -> str:
        return f"{self.data}x{self.fsdp}x{self.tensor}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig(ExperimentConfig):
    """What SFT and JPO share: the student, its LoRA, the optimiser (Appendix F)."""

    model: str = EMBEDDED
    """`embedded`, or a folder with a Qwen2-type checkpoint in safetensors."""
    judge: str | None = None
    """Whose scores are used; sim-judge on the simulator."""
    prompt_pack: Path | None = None
    emotion_free: bool = False
    """Leave the emotion block out of every prompt."""
    lora_rank: int = 16
    lora_alpha: float = 32.0
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    learning_rate: float = 1e-4
    batch_size: int = 16
    """Samples per optimiser step."""
    num_epochs: int = 2
    max_steps: int | None = None
    """Stop after this many steps, whatever the epochs say."""
    max_samples: int | None = None
    """Train on this many of the turns that qualify, drawn by the seed; all without it."""
    warmup_fraction: float = 0.03
    max_grad_norm: float = 1.0
    max_tokens: int = 2048
    """Prompt and reply together; longer prompts lose their oldest turns."""
    quantize: Quantization | None = None
    """Hold the frozen projections in 8 or 4 bits, for small cards (extra `quantize`)."""
    mesh: str | None = operational(None)
    """DATAxFSDPxTENSOR devices, such as 1x2x4; without it all there are, as --batch-size allows."""
    remat: Remat | None = operational(None)
    """What the backward pass computes again: none (CPU), full (elsewhere), all but dots."""
    packing: Packing = operational("tree")
    """How samples share rows: merged where their prompts agree, side by side, or not at all."""
    max_micro_tokens: int | None = operational(None)
    """Tokens of a micro-batch on each device; what suits the kind of device without it."""
    save_every: int = operational(25)
    """Steps between checkpoints."""
    keep: int = operational(2)
    """Newest checkpoints that stay."""
    keep_every: int | None = operational(None)
    """Also keep the checkpoints of every this many steps."""
    coordinator: str | None = operational(None)
    """HOST:PORT of the first of several processes; `auto` on Slurm, Open MPI and TPU pods."""
    num_processes: int | None = operational(None)
    process_id: int | None = operational(None)

    def mesh_shape(self, num_devices: int, num_heads: int) -> MeshShape:
        """The mesh on which to train a model of `num_heads` query heads.

        Unless it is asked for, `tensor` takes what rows can't use, as far as it divides the heads:
        samples share much within a row, and too little between rows.
        """
        if self.mesh:
            return MeshShape.parse(self.mesh)
        tensors = [n for n in (1, 2, 4) if num_devices % n == 0 and num_heads % n == 0]
        enough = (t for t in tensors if self.batch_size * t >= SAMPLES_PER_ROW * num_devices)
        tensor = next(enough, tensors[-1])
        return MeshShape(fsdp=num_devices // tensor, tensor=tensor)

    def __post_init__(self) -> None:
        if self.mesh is not None:
            MeshShape.parse(self.mesh)
        for name in ("keep", "keep_every", "max_micro_tokens", "save_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}={value} must be at least 1.")
        has_both = None not in (self.num_processes, self.process_id)
        require(
            self.coordinator in (None, AUTO) or has_both,
            f"--coordinator {self.coordinator} takes --num-processes and --process-id beside it.",
        )
        require(
            self.coordinator is not None or (self.num_processes, self.process_id) == (None, None),
            "--num-processes and --process-id take --coordinator HOST:PORT beside them.",
        )
        require(self.lora_rank >= 1, f"lora_rank={self.lora_rank} must be at least 1.")
        require(self.learning_rate > 0, f"learning_rate={self.learning_rate} must be > 0.")
        require(self.batch_size >= 1, f"batch_size={self.batch_size} must be at least 1.")
        require(self.num_epochs >= 1, f"num_epochs={self.num_epochs} must be at least 1.")
        require(
            self.max_steps is None or self.max_steps >= 1,
            f"max_steps={self.max_steps} must be at least 1; leave it out for whole epochs.",
        )
        require(
            self.max_samples is None or self.max_samples >= 1,
            f"max_samples={self.max_samples} must be at least 1; leave it out for all.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTConfig(AdapterConfig):
    """Stage 4a: supervised fine-tuning on the best quarter of the turns (Eqs. 16, 23)."""

    signal: SFTSignal = "hybrid"
    top_fraction: float = 0.25
    """Share of a domain's scored turns that is kept."""

    def __post_init__(self) -> None:
        AdapterConfig.__post_init__(self)
        require(0 < self.top_fraction <= 1, f"top_fraction={self.top_fraction} must lie in (0, 1].")


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinementConfig(AdapterConfig):
    """What the stages after SFT share."""

    stage: ClassVar[str]
    signal: JPOSignal = "turn-judge"
    """What a turn's advantage is made from."""
    sft_cell: str = "default"
    """The SFT cell whose adapter it starts from."""
    learning_rate: float = 5e-6

    @property
    def starts_from_base(self) -> bool:
        """Whether the base model takes the place of the SFT adapter, as start and reference."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class JPOConfig(RefinementConfig):
    """Stage 4b: Judge Policy Optimization (Eqs. 17-19)."""

    stage: ClassVar[str] = "jpo"
    reference: Literal["sft", "base"] = "sft"
    """Start from, and stay near, the SFT snapshot or the base model (`iql+jpo`)."""
    kappa: float = 1.0
    """κ of Eq. 18: the weight of negative advantages."""
    clip: float = 0.2
    """ε of Eq. 19."""
    kl_coef: float = 0.04
    """λ_KL of Eq. 19."""
    ratio: RatioKind = "mean-token"
    data: Literal["all", "top"] = "all"
    """All scored turns, or SFT's best quarter (Eq. 19 as printed)."""
    top_fraction: float = 0.25

    @property
    def starts_from_base(self) -> bool:
        return self.reference == "base"

    def __post_init__(self) -> None:
        AdapterConfig.__post_init__(self)
        require(0 <= self.kappa <= 1, f"kappa={self.kappa} must lie in [0, 1]; the paper uses 1.")
        require(
            0 < self.clip < 1, f"clip={self.clip} must lie in (0, 1); the paper uses --clip 0.2."
        )
        require(self.kl_coef >= 0, f"kl_coef={self.kl_coef} must be >= 0; the paper uses 0.04.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ALoLConfig(RefinementConfig):
    """In place of JPO: A-LoL, the likelihood of turns with A > 0 weighted by A."""

    stage: ClassVar[str] = "alol"


@dataclass(frozen=True, slots=True, kw_only=True)
class DPOConfig(RefinementConfig):
    """In place of JPO: DPO on pairs of the same scenario, turn index and emotion."""

    stage: ClassVar[str] = "dpo"
    beta: float = 0.1
    """β: how much a reply's log-ratio to the reference counts."""

    def __post_init__(self) -> None:
        AdapterConfig.__post_init__(self)
        require(self.beta > 0, f"beta={self.beta} must be > 0; 0.1 is usual.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """What a training step needs on each device, without weights and without the device."""

    model: str = "qwen2.5-7b"
    """qwen2.5-0.5b, -1.5b, -3b, -7b, -14b, -32b, -72b, `embedded`, or a checkpoint folder."""
    stage: Literal["sft", "jpo"] = "jpo"
    mesh: str = "1x1x1"
    """DATAxFSDPxTENSOR devices."""
    topology: str | None = None
    """TPUs to compile for (extra `tpu-aot`), such as v6e:1x1 or v5e:2x4; CPUs without it."""
    tokens: int = 4_096
    """Of a row; every device that has rows of its own has one."""
    fit_gb: float | None = None
    """Also find the longest row that takes at most so many GB (1e9 bytes) on each device."""
    lora_rank: int = 16
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    remat: Remat = "full"
    """What the backward pass computes again: none, full, all but dots."""
    quantize: Quantization | None = None
    """Hold the frozen projections in 8 or 4 bits."""

    def __post_init__(self) -> None:
        MeshShape.parse(self.mesh)
        require(self.tokens >= 1, f"tokens={self.tokens} must be at least 1.")
        require(self.fit_gb is None or self.fit_gb > 0, f"fit_gb={self.fit_gb} must be positive.")


METHODS = ("vanilla-slm", "vanilla-llm", "random", "iql", "iql+sft", "iql+jpo", "iql+sft+jpo")
"""Those of Table 1, in its order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchConfig(ApiConfig):
    """What stages share that play held-out scenarios."""

    split: Literal["test", "validation"] = "test"
    """`validation` (sweep with --num-validation) is for choosing settings."""
    model: str | None = None
    """The focal language model of `vanilla-llm`, `random` and `iql`."""
    student: str = EMBEDDED
    """`embedded`, or the folder of the student's base checkpoint."""
    quantize: Quantization | None = None
    """Hold the student's frozen projections in 8 or 4 bits, for small cards (extra `quantize`)."""
    counterparty: str | None = None
    num_scenarios: int | None = None
    """Held-out scenarios to play; all without it."""
    num_seeds: int = 1
    """Dialogues per scenario."""
    iql_cell: str = "default"
    sft_cell: str = "default"
    jpo_cell: str = "default"
    alol_cell: str = "default"
    dpo_cell: str = "default"
    policy: Literal["network", "closed-form"] = "network"
    """The regressed policy network, or exp(β(Q−V)) itself."""
    greedy: bool = False
    """Take the most probable emotion instead of sampling."""
    focal_temperature: float | None = None
    """0.7 without it, and 0.4 for the embedded student, whose unlikely tokens are mostly noise."""
    counterparty_temperature: float = 0.7
    max_reply_tokens: int = 160
    max_turns: int = 30
    agreement: AgreementRule = "stand"
    offer_reader: OfferReaderKind = "pattern"
    """`llm` asks a language model which figure each utterance puts forward."""
    reader: str | None = None
    """That language model."""
    prompt_pack: Path | None = None

    def __post_init__(self) -> None:
        ApiConfig.__post_init__(self)
        require(self.num_seeds >= 1, f"num_seeds={self.num_seeds} must be at least 1.")
        require(
            self.num_scenarios is None or self.num_scenarios >= 1,
            f"num_scenarios={self.num_scenarios} must be at least 1; leave it out for all.",
        )
        require(self.max_turns >= 2, f"max_turns={self.max_turns} must be at least 2.")
        for name in ("focal_temperature", "counterparty_temperature"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 2, f"{name}={value} must lie in [0, 2].")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig(MatchConfig):
    """Stage 5: a method negotiates on the held-out scenarios (Appendix E.3-E.7)."""

    method: str = "iql+sft+jpo"
    """vanilla-llm, vanilla-slm, neutral, random, fixed, iql, iql+sft, iql+jpo, iql+sft+jpo,
    iql+sft+jpo-stripped, iql+sft+alol, iql+sft+dpo, free-sft, free-jpo, free-sft+jpo, oracle."""
    emotion: str | None = None
    """What `fixed` expresses at every turn."""
    trained_on: DomainName | None = None
    """The domain that selector and adapter come from, where it is another one."""
    selector: Literal["source", "target"] = "source"
    """With --trained-on: the selector of that domain, or of the one that is played."""

    def __post_init__(self) -> None:
        MatchConfig.__post_init__(self)
        require(
            self.emotion is None or self.emotion in EMOTION_INDEX,
            f"emotion={self.emotion!r} is none of the 28 labels: {', '.join(EMOTION_INDEX)}.",
        )
        require(
            (self.emotion is not None) == (self.method == "fixed"),
            "--method fixed and --emotion LABEL go together.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TournamentConfig(MatchConfig):
    """Methods play each other, each in both seats, on the held-out scenarios (Table 13)."""

    methods: tuple[str, ...] = ("vanilla-llm", "iql", "iql+sft+jpo", "free-sft+jpo")
    """V, I, E and E0 of Table 13; any others (see `evaluate.py --method`), but not `oracle`."""

    def __post_init__(self) -> None:
        MatchConfig.__post_init__(self)
        require(len(self.methods) > 0, "methods is empty; name one at least.")
        for name in self.methods:
            require(self.methods.count(name) == 1, f"methods names {name} twice.")

    def evaluation(self, method: str) -> EvaluateConfig:
        """The settings with which `evaluate` plays one of the methods."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(MatchConfig)}
        return EvaluateConfig(method=method, **shared)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """Tables, figures and the page of a run."""

    run: Path = DEFAULT_RUN
    only: str | None = None
    """One table or figure, e.g. table-1."""
    counterparty: str | None = None
    """Whose dialogues to report on, where methods have met several counterparties."""
    judge: str | None = None
    """Whose scores to rank the emotions by, where there are several judges."""
    num_resamples: int = 10_000
    """Bootstrap resamples."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Size and schedule of the embedded student."""

    out: Path = Path("runs/embedded")
    """The folder of the checkpoint; the shipped one is emodistill/model/embedded."""
    seed: int = 0
    num_dialogues: int = 4_000
    """With the pipeline's own prompts, over all domains."""
    num_bare_dialogues: int = 4_000
    """With prompts cut down to little but the figures."""
    num_steps: int = 1_100
    bare_share: float = 0.4
    """Share of the steps that see bare dialogues; there are ever fewer of them."""
    tokens_per_step: int = 4_800
    learning_rate: float = 0.03
    """Muon's, of the matrices."""
    adam_learning_rate: float = 3e-3
    """AdamW's, of embeddings, norms and biases."""
    prompt_weight: float = 0.3
    """Weight of a prompt token beside 1 for a reply token."""
    digit_weight: float = 4.0
    """Weight of a digit in a reply: figures are few tokens, and they carry the deal."""
    start: Path | None = None
    """Go on from this checkpoint, its sizes and its tokenizer, under another --seed."""
    tone_free_share: float = 0.08
    """Share of dialogues whose prompts carry no emotion block."""
    vocab_size: int = 2_048
    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 6
    num_kv_heads: int = 2

    def __post_init__(self) -> None:
        require(self.num_dialogues >= 4, "num_dialogues must be at least 4, one per domain.")
        require(self.num_bare_dialogues >= 4, "num_bare_dialogues must be at least 4.")
        require(self.num_steps >= 1, f"num_steps={self.num_steps} must be at least 1.")
        require(0 <= self.bare_share <= 0.5, f"bare_share={self.bare_share} must lie in [0, 0.5].")
        require(self.tokens_per_step >= 128, "tokens_per_step must be at least 128.")
        require(self.vocab_size >= 300, "vocab_size must be at least 300: the bytes and more.")
        require(
            self.hidden_size % (2 * self.num_heads) == 0,
            f"hidden_size={self.hidden_size} must be an even multiple of num_heads.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorConfig:
    """Where the simulated models are served."""

    host: str = "127.0.0.1"
    """Only this machine reaches the default."""
    port: int = 8000
    """0 takes a free one."""
    faults: tuple[str, ...] | None = None
    """What goes wrong, as shares of the calls: `429=0.1 cut hang=0.01`; without any, everything."""
    log: Path | None = None
    """A file that gets a line for every call."""
    seed: int = 0
    """Of the faults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickstartConfig:
    """All stages in order; their sizes come from the configuration file."""

    run: Path = Path("runs/quickstart")
    """The folder of the experiment; started again, finished stages are kept."""
    domains: tuple[DomainName, ...] = ("crad",)
    methods: tuple[str, ...] = METHODS
    studies: tuple[str, ...] = ()
    """signal, kappa, kl, rank, iql, transfer, counterparty, emotion-free, refinement, emotions,
    tournament; what has no list of domains is of the first domain."""
    seed: int = 0
    fast: bool = False
    """About two minutes, too small for conclusions (configs/fast.yaml)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSweepConfig:
    """The API client under load."""

    name: ClassVar[str] = "sweep"
    peers: tuple[str, ...] = ("openai", "litellm")
    """Libraries to measure beside it."""
    in_flight: int = 256
    latency_s: float = 0.5
    """Of the server, for every call."""
    calls: int = 16_384
    """Of a round."""
    rounds: int = 3
    long_calls: int = 20_000
    """Of the run that watches memory."""

    def __post_init__(self) -> None:
        require(self.rounds >= 1 and self.calls >= self.in_flight >= 1, "there is nothing to do.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchTrainingConfig:
    """Reply tokens a second of a training stage."""

    name: ClassVar[str]
    peers: tuple[str, ...] = ()
    """Libraries to measure beside it."""
    size: Literal["slice", "embedded"] = "slice"
    """A slice of the 7B model at its full width, or the student that ships."""
    num_layers: int = 1
    """Of the slice."""
    kept: float = 1.0
    """Share of a sweep's turns that are trained on."""
    batch_size: int = 16
    """Samples of an optimiser step."""
    steps: int = 1
    """Optimiser steps of a round."""
    peer_samples: int = 8
    """Of those that a peer takes for each step."""
    packing: Packing = "tree"
    max_micro_tokens: int = 4096
    rounds: int = 3

    def __post_init__(self) -> None:
        require(self.rounds >= 1, f"rounds={self.rounds} must be at least 1.")
        require(self.num_layers >= 1, f"num_layers={self.num_layers} must be at least 1.")
        require(self.steps >= 1, f"steps={self.steps} must be at least 1.")
        require(self.peer_samples >= 1, f"peer_samples={self.peer_samples} must be at least 1.")
        require(0 < self.kept <= 1, f"kept={self.kept} must lie in (0, 1].")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSFTConfig(BenchTrainingConfig):
    """SFT: reply tokens a second on the same samples."""

    name: ClassVar[str] = "sft"
    peers: tuple[str, ...] = ("peft", "trl")
    kept: float = 0.25
    """Share of a sweep's turns that are trained on; SFT keeps the best quarter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchJPOConfig(BenchTrainingConfig):
    """JPO over two epochs, the reference pass included: reply tokens a second."""

    name: ClassVar[str] = "jpo"
    peers: tuple[str, ...] = ("upstream-style", "peft-stored")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchMFUConfig(BenchTrainingConfig):
    """Useful arithmetic of an SFT step over what matrix products reach on this device."""

    name: ClassVar[str] = "mfu"
    num_layers: int = 2
    """Of the slice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchIQLConfig:
    """Updates a second of the emotion selector's training."""

    name: ClassVar[str] = "iql"
    peers: tuple[str, ...] = ("torch",)
    """Libraries to measure beside it."""
    num_steps: int = 1_000
    """Of a round."""
    peer_steps: int = 300
    """Of a round of a peer."""
    rounds: int = 3

    def __post_init__(self) -> None:
        require(self.rounds >= 1 and self.num_steps >= 1, "there is nothing to do.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPackingConfig:
    """What packing costs and saves as samples and turns grow."""

    name: ClassVar[str] = "packing"
    num_samples: int = 100_000
    """Of the set whose packing is timed."""
    packing: Packing = "tree"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchLoadConfig:
    """A random checkpoint on its way from files to devices."""

    name: ClassVar[str] = "load"
    peers: tuple[str, ...] = ("transformers",)
    """Libraries to measure beside it."""
    model: str = "qwen2.5-7b"
    """Whose shapes (see `plan.py memory`)."""
    num_layers: int | None = None
    """All without it, or as many as disk and memory have room for."""
    rounds: int = 3
    dir: Path | None = None
    """Where to put the checkpoint for the time being; the system's temporary folder without it."""

    def __post_init__(self) -> None:
        require(self.rounds >= 1, f"rounds={self.rounds} must be at least 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchMemoryConfig:
    """Memory of a training step on one device and on eight, compiled ahead of time."""

    name: ClassVar[str] = "memory"
    model: str = "qwen2.5-7b"
    """Whose shapes (see `plan.py memory`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """A run's sweep, scores and training turns as a Hugging Face dataset (docs/data.md)."""

    run: Path = DEFAULT_RUN
    domain: DomainName = "crad"
    """crad, disaster, hospital or student."""
    judge: str | None = None
    """Whose scores the turns get, where several judges have scored them."""
    prompt_pack: Path | None = None
    """What the turns' prompts are rendered with; the built-in one without it."""
    out: Path | None = None
    """The dataset's folder, which must not exist; RUN/DOMAIN/dataset without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """The files of a run out of a dataset's dialogues, judgements and scenarios."""

    source: str = ""
    """A Parquet file, a folder of the hub's layout or of `save_to_disk`, or a name on the hub."""
    run: Path = DEFAULT_RUN
    domain: DomainName = "crad"
    """crad, disaster, hospital or student."""
