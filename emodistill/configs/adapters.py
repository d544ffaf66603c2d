"""Settings of adapters for other servers: their export, and the check that one is in use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from emodistill.configs.base import DEFAULT_RUN, Config, DomainName, configuration, setting

AdapterForm = Literal["peft", "merged", "gguf"]


@configuration
class ExportAdapterConfig(Config):
    """A trained adapter for other servers, with canaries that tell whether it is in use."""

    stage = "export-adapter"
    run: Path = DEFAULT_RUN
    """The folder of the experiment."""
    domain: DomainName = "crad"
    """Which of the four negotiation domains; canaries are prompts of it."""
    trained_by: Annotated[str, tyro.conf.arg(name="stage")] = "jpo"
    """The stage that has trained the adapter: sft, jpo, alol, dpo, grpo, ppo or one of your own."""
    cell: str = "default"
    """The cell of that stage."""
    adapter: Path | None = None
    """Any adapter in PEFT layout instead of a run's; its base is --model."""
    model: str = setting("", is_path=True)
    """`embedded`, or the folder of the base checkpoint; if left out, the one that the cell was
    trained on, or that the adapter names."""
    form: AdapterForm = "peft"
    """`peft` for PEFT and vLLM, `gguf` for llama.cpp (extra `gguf`), `merged` for a whole
    checkpoint."""
    out: Path | None = None
    """The folder to write, which must not exist; RUN/DOMAIN/export/STAGE-CELL-FORM if left out."""
    num_canaries: int = setting(8, ge=0, le=16)
    """Prompts whose answers tell adapter and base apart; 0 writes none."""
    prompt_pack: Path | None = None
    """The pack that the canaries are rendered with; the one that the cell was trained with if left
    out, or the built-in one."""


@configuration
class VerifyConfig(Config):
    """Whether a server answers with an adapter, by the canaries in its folder."""

    stage = "verify-adapter"
    url: str = ""
    """The server's OpenAI-compatible address, e.g. http://127.0.0.1:8000/v1."""
    model: str = ""
    """The name by which the server serves the adapter."""
    adapter: Path | None = None
    """The folder that export_adapter.py has made, whatever its form."""
    provider: str | None = None
    """Whose key is sent, and what else a request needs (see sweep.py); EMODISTILL_API_KEY without
    one."""
    tolerance: float = setting(0.15, gt=0, lt=0.5)
    """How far the server's log-probs may be from the adapter's (or the base's) on the way between
    the two, as a share of it; they may scatter by twice as much."""
    timeout_s: float = setting(120.0, gt=0)
    """Seconds for one attempt at a call."""
