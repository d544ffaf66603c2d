"""The settings of the embedded student's pretraining, and of the simulated judge's fit; free of
jax, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from emodistill.configs import Config, require, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig(Config):
    """Size and schedule of the embedded student."""

    stage: ClassVar[str] = "pretrain"
    out: Path = setting(Path("runs/embedded"), operational=True)
    """The folder of the checkpoint; the shipped one is emodistill/model/embedded."""
    seed: int = 0
    """Names every random stream."""
    num_dialogues: int = setting(5_000, ge=4, hint="one per domain")
    """Dialogues with the pipeline's own prompts, over all domains."""
    num_bare_dialogues: int = setting(4_500, ge=4)
    """Dialogues whose prompts are cut down to little but the figures."""
    replies_per_turn: int = setting(4, ge=2)
    """Replies that are learned for each prompt, and share its tokens. To a full prompt half of them
    are the simulated model's; all others are the novice's."""
    num_steps: int = setting(1_300, ge=1)
    """Updates."""
    bare_share: float = setting(0.4, ge=0, le=0.5)
    """Share of all steps that train on bare dialogues; their share falls to 0 at the end."""
    tokens_per_step: int = setting(4_800, ge=128)
    """Tokens of an update."""
    learning_rate: float = 0.01
    """The rate of Muon, which updates the matrices."""
    adam_learning_rate: float = 1e-3
    """The rate of AdamW, which updates embeddings, norms and biases."""
    prompt_weight: float = 0.3
    """Loss weight of a prompt token; a reply token has weight 1."""
    given_weight: float = 4.0
    """Loss weight of a reply's token that the prompt decides, in figures and facts: these are few,
    but they make the deal."""
    drawn_weight: float = 4.0
    """Loss weight of a digit of a concession, which the prompt bounds."""
    foreign_start_weight: float = setting(0.05, gt=0, le=1)
    """Loss weight of the first two tokens of a simulated model's reply. The student then knows how
    such a reply goes on, and seldom begins one: to begin is left for SFT to teach."""
    tone_free_share: float = 0.08
    """Share of dialogues whose prompts carry no emotion block."""
    vocab_size: int = setting(2_048, ge=300, hint="the bytes and more")
    """Entries of the tokenizer."""
    hidden_size: int = 384
    """Width of the model."""
    intermediate_size: int = 512
    """Width of the MLP."""
    num_layers: int = 4
    """Layers of the model."""
    num_heads: int = 6
    """Query heads."""
    num_kv_heads: int = 2
    """Key and value heads. In the first two layers, the query heads of the first one copy from the
    start and are frozen."""

    check_scenarios: int = setting(25, ge=0, operational=True)
    """Unseen scenarios of each domain on which the student's reading is looked at afterwards; 0
    looks at none."""
    check_temperatures: tuple[float, ...] = setting((0.2, 0.4, 0.7), operational=True)
    """The sampling temperatures of that check."""

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        require(
            self.hidden_size % (2 * self.num_heads) == 0,
            f"hidden_size={self.hidden_size} must be an even multiple of num_heads.",
        )
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeFitConfig(Config):
    """How the weights of the simulated judge are fitted to what turns are worth."""

    stage: ClassVar[str] = "judge-fit"
    out: Path = Path("runs/judge_fit")
    """The folder of the turns with their worths; what is there is not played again."""
    seed: int = 1
    """Draws the scenarios (0 are the built-in ones, which every experiment uses) and all else."""
    num_seeds: int = setting(3, ge=1)
    """Dialogues per scenario."""
    num_turns: int = setting(300, ge=10)
    """Turns of a domain whose worth is measured."""
    continuations: int = setting(12, ge=2)
    """Pairs of forks of a turn."""
    num_processes: int = setting(2, ge=1)
    """Domains that are played at once."""
    write: bool = False
    """Write the weights into the package; without it they are only printed."""

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        require(self.seed != 0, "seed=0 draws the scenarios of the experiments; take another.")
