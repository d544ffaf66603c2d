"""Settings of the endpoint behind which a trained student negotiates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from emodistill.configs.base import (
    DEFAULT_RUN,
    EMBEDDED,
    Config,
    DomainName,
    Quantization,
    configuration,
    require,
    setting,
)


@configuration
class ServeConfig(Config):
    """A student and its adapters behind an OpenAI-compatible endpoint (docs/serving.md)."""

    stage = "serve"
    student_field = "student"
    host: str = "127.0.0.1"
    """The address to listen at; only this machine reaches the default."""
    port: int = setting(8000, ge=0, le=65535)
    """The port to listen at; 0 takes a free one."""
    api_key_env: str | None = None
    """The environment variable that holds the key which clients have to send; without one, whoever
    reaches the address is served."""
    run: Path = DEFAULT_RUN
    """The folder of the experiment whose adapters and selectors are offered."""
    domain: DomainName = "crad"
    """The domain that they were trained on."""
    student: str = setting(EMBEDDED, is_path=True)
    """`embedded`, or the folder of the student's base checkpoint."""
    quantize: Quantization | None = None
    """Hold the student's frozen projections in 8 or 4 bits, for small cards (extra `quantize`)."""
    adapter: tuple[str, ...] = ()
    """NAME=FOLDER each: adapters in PEFT's layout that are offered beside those of the run."""
    adapters_below: Path | None = None
    """A folder below which clients may name adapters to load, by /v1/load_lora_adapter; without it
    they may not. It needs a key."""
    cells: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """STAGE CELL pairs, such as `iql expectile=0.9-77c1`: the cells that methods play; those of
    their own names if left out."""
    policy: Literal["network", "closed-form"] = "network"
    """How selectors draw: the regressed policy network, or exp(β(Q−V)) itself."""
    greedy: bool = False
    """Take the most probable emotion instead of sampling."""
    prompt_pack: Path | None = None
    """A folder with the prompt pack that the student was trained with, where it is your own."""
    temperature: float | None = setting(None, ge=0, le=2)
    """Sampling temperature of requests that name none. If left out, 0.7, and 0.4 for the embedded
    student, as in an evaluation."""
    max_reply_tokens: int = setting(160, ge=1)
    """Tokens of a reply at most where the request doesn't say."""
    max_tokens: int = setting(4096, ge=16)
    """Tokens of a prompt and its reply together at most."""
    num_slots: int = setting(16, ge=1)
    """Requests that one adapter serves at once; the others wait."""
    max_kept_tokens: int = setting(16_384, ge=0)
    """Tokens of earlier prompts that one adapter keeps, so that a dialogue's next turn is read from
    where it differs."""
    max_loaded: int = setting(8, ge=1)
    """Adapters in memory at once; of more, those go that were used least recently."""
    max_queue: int = setting(64, ge=0)
    """Requests that may wait; beyond them, answers are 429 with Retry-After."""
    max_body_bytes: int = setting(1 << 20, ge=1024)
    """Bytes of a request's body at most."""
    timeout_s: float = setting(120.0, gt=0)
    """Seconds for one request, from its first byte to the last of its answer."""

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        require(
            self.max_reply_tokens < self.max_tokens,
            f"max_reply_tokens={self.max_reply_tokens} leaves no room for a prompt in "
            f"max_tokens={self.max_tokens}.",
        )
        for text in self.adapter:
            served, is_pair, folder = text.partition("=")
            require(
                bool(served and is_pair and folder) and served.isprintable(),
                f"adapter={text!r} is no NAME=FOLDER pair.",
            )
