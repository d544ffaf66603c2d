"""The settings of the embedded student's pretraining; free of jax, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emodistill.configs import require


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Size and schedule of the embedded student."""

    out: Path = Path("runs/embedded")
    """The folder of the checkpoint; the shipped one is emodistill/model/embedded."""
    seed: int = 0
    num_dialogues: int = 4_000
    """Dialogues with the pipeline's own prompts, over all domains."""
    num_bare_dialogues: int = 4_000
    """Dialogues whose prompts are cut down to little but the figures."""
    num_steps: int = 1_100
    bare_share: float = 0.4
    """Share of all steps that train on bare dialogues; their share falls to 0 at the end."""
    tokens_per_step: int = 4_800
    learning_rate: float = 0.03
    """The rate of Muon, which updates the matrices."""
    adam_learning_rate: float = 3e-3
    """The rate of AdamW, which updates embeddings, norms and biases."""
    prompt_weight: float = 0.3
    """Loss weight of a prompt token; a reply token has weight 1."""
    digit_weight: float = 4.0
    """Loss weight of a digit in a reply: figures are few tokens, but they decide the deal."""
    start: Path | None = None
    """Continue from this checkpoint, with its sizes and its tokenizer; use another --seed."""
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
