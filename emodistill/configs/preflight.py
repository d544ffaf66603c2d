"""Settings of the preflight: those of the training that it looks at, and what to look at."""

from __future__ import annotations

from typing import Any

from emodistill.configs.base import configuration, setting
from emodistill.configs.training import (
    AdapterConfig,
    ALoLConfig,
    DPOConfig,
    JPOConfig,
    SFTConfig,
)


def _with_preflight(kind: Any) -> type[AdapterConfig]:
    """The settings of a training stage, section of the file included, and those of a preflight."""

    @configuration
    class PreflightConfig(kind):
        num_shown: int = setting(3, ge=0, operational=True)
        """Samples to show beside the longest one and one whose oldest turns were dropped."""
        whole_prompts: bool = setting(False, operational=True)
        """Show prompts whole, not their first and last tokens alone."""
        measure: bool = setting(True, operational=True)
        """Time a few steps; without it, hours come from counted arithmetic and the peak."""
        url: str | None = setting(None, operational=True)
        """The server that plays the student later: its chat template is named as not checked."""

    PreflightConfig.__doc__ = f"What `train_{kind.stage}.py` with these flags would train on."
    return PreflightConfig


PREFLIGHTS: dict[str, type[AdapterConfig]] = {
    kind.stage: _with_preflight(kind) for kind in (JPOConfig, SFTConfig, ALoLConfig, DPOConfig)
}
"""What `preflight.py` has a subcommand for."""
