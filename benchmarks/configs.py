"""The settings of every benchmark; free of jax, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from emodistill.configs import Packing, require


class Benchmark:
    """What every benchmark has."""

    name: ClassVar[str]
    module: ClassVar[str]
    """The module of this package whose `run` takes the settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedBenchmark(Benchmark):
    """A benchmark that measures all contenders several times, in alternation."""

    rounds: int = 3

    def __post_init__(self) -> None:
        require(self.rounds >= 1, f"rounds={self.rounds} must be at least 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepBenchmark(RepeatedBenchmark):
    """The API client under load."""

    name: ClassVar[str] = "sweep"
    module: ClassVar[str] = "sweep"
    peers: tuple[Literal["openai", "litellm"], ...] = ("openai", "litellm")
    """Libraries to compare with."""
    in_flight: int = 256
    """Calls that wait for their answers at the same time."""
    latency_s: float = 0.5
    """What the server waits before it answers a call."""
    calls: int = 16_384
    """Calls of a round."""
    long_calls: int = 20_000
    """Calls of the run that watches memory."""

    def __post_init__(self) -> None:
        RepeatedBenchmark.__post_init__(self)
        require(
            self.calls >= self.in_flight >= 1,
            f"in_flight={self.in_flight} must lie between 1 and calls={self.calls}.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBenchmark(RepeatedBenchmark):
    """Reply tokens per second of a training stage."""

    module: ClassVar[str] = "training"
    size: Literal["slice", "embedded"] = "slice"
    """A slice of the 7B model at its full width, or the student that ships."""
    num_layers: int = 1
    """Layers of the slice."""
    kept: float = 1.0
    """Share of a sweep's turns that are trained on."""
    batch_size: int = 16
    """Samples of an optimiser step."""
    steps: int = 1
    """Optimiser steps of a round."""
    peer_samples: int = 8
    """Samples of each step that a peer trains on."""
    packing: Packing = "tree"
    max_micro_tokens: int = 4096

    def __post_init__(self) -> None:
        RepeatedBenchmark.__post_init__(self)
        for name in ("num_layers", "steps", "peer_samples"):
            value = getattr(self, name)
            require(value >= 1, f"{name}={value} must be at least 1.")
        require(0 < self.kept <= 1, f"kept={self.kept} must lie in (0, 1].")


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTBenchmark(TrainingBenchmark):
    """SFT: reply tokens per second on the same samples."""

    name: ClassVar[str] = "sft"
    peers: tuple[Literal["peft", "trl"], ...] = ("peft", "trl")
    """Libraries to compare with."""
    kept: float = 0.25
    """Share of a sweep's turns that are trained on; SFT keeps the best quarter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JPOBenchmark(TrainingBenchmark):
    """JPO over two epochs, the reference pass included: reply tokens per second."""

    name: ClassVar[str] = "jpo"
    peers: tuple[Literal["upstream-style", "peft-stored"], ...] = ("upstream-style", "peft-stored")
    """PEFT loops to compare with: two forward passes a sample, or stored reference log-probs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MFUBenchmark(TrainingBenchmark):
    """Useful arithmetic of an SFT step over what matrix products reach on this device."""

    name: ClassVar[str] = "mfu"
    num_layers: int = 2
    """Layers of the slice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IQLBenchmark(RepeatedBenchmark):
    """Updates per second of the emotion selector's training."""

    name: ClassVar[str] = "iql"
    module: ClassVar[str] = "iql"
    peers: tuple[Literal["torch"], ...] = ("torch",)
    """Libraries to compare with."""
    num_steps: int = 1_000
    """Updates of a round."""
    peer_steps: int = 300
    """Updates of a peer's round."""

    def __post_init__(self) -> None:
        RepeatedBenchmark.__post_init__(self)
        require(self.num_steps >= 1, f"num_steps={self.num_steps} must be at least 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingBenchmark(Benchmark):
    """What packing costs and saves as samples and turns grow in number."""

    name: ClassVar[str] = "packing"
    module: ClassVar[str] = "packing"
    num_samples: int = 100_000
    """Size of the set whose packing is timed."""
    packing: Packing = "tree"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBenchmark(RepeatedBenchmark):
    """Loading a random checkpoint from files onto devices."""

    name: ClassVar[str] = "load"
    module: ClassVar[str] = "load"
    peers: tuple[Literal["transformers"], ...] = ("transformers",)
    """Libraries to compare with."""
    model: str = "qwen2.5-7b"
    """The model whose shapes the checkpoint has (see `plan.py memory`)."""
    num_layers: int | None = None
    """All layers without it, or as many as disk and memory have room for."""
    dir: Path | None = None
    """Where to keep the checkpoint meanwhile; the system's temporary folder without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBenchmark(Benchmark):
    """Memory of a training step on one device and on eight, compiled ahead of time."""

    name: ClassVar[str] = "memory"
    module: ClassVar[str] = "memory"
    model: str = "qwen2.5-7b"
    """The model whose shapes are compiled (see `plan.py memory`)."""


BENCHMARKS: tuple[type[Benchmark], ...] = (
    SweepBenchmark,
    SFTBenchmark,
    JPOBenchmark,
    MFUBenchmark,
    PackingBenchmark,
    IQLBenchmark,
    LoadBenchmark,
    MemoryBenchmark,
)
