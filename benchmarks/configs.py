"""The settings of every benchmark; free of jax, so that `--help` is quick.

`module` is the module of this package whose `run` takes the settings. What is operational does not
change what is measured: a result counts at the default values of the other settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from emodistill.configs import Config, Packing, require, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedBenchmark(Config):
    """A benchmark that measures all contenders several times, in alternation."""

    rounds: int = setting(3, ge=1, operational=True)
    """How often each contender is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepBenchmark(RepeatedBenchmark):
    """The API client under load."""

    stage: ClassVar[str] = "bench-sweep"
    module: ClassVar[str] = "sweep"
    peers: tuple[Literal["openai", "litellm"], ...] = setting(
        ("openai", "litellm"), operational=True
    )
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
    num_layers: int = setting(1, ge=1)
    """Layers of the slice."""
    kept: float = setting(1.0, gt=0, le=1)
    """Share of a sweep's turns that are trained on."""
    batch_size: int = 16
    """Samples of an optimiser step."""
    steps: int = setting(1, ge=1)
    """Optimiser steps of a round."""
    peer_samples: int = setting(8, ge=1)
    """Samples of each step that a peer trains on."""
    packing: Packing = "tree"
    """How samples share rows (see `train_sft.py`)."""
    max_micro_tokens: int = 4096
    """Tokens of a micro-batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTBenchmark(TrainingBenchmark):
    """SFT: reply tokens per second on the same samples."""

    stage: ClassVar[str] = "bench-sft"
    peers: tuple[Literal["peft", "trl"], ...] = setting(("peft", "trl"), operational=True)
    """Libraries to compare with."""
    kept: float = setting(0.25, gt=0, le=1)
    """Share of a sweep's turns that are trained on; SFT keeps the best quarter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JPOBenchmark(TrainingBenchmark):
    """JPO over two epochs, the reference pass included: reply tokens per second."""

    stage: ClassVar[str] = "bench-jpo"
    peers: tuple[Literal["upstream-style", "peft-stored"], ...] = setting(
        ("upstream-style", "peft-stored"), operational=True
    )
    """PEFT loops to compare with: two forward passes a sample, or stored reference log-probs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MFUBenchmark(TrainingBenchmark):
    """Useful arithmetic of an SFT step over what matrix products reach on this device."""

    stage: ClassVar[str] = "bench-mfu"
    num_layers: int = setting(2, ge=1)
    """Layers of the slice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IQLBenchmark(RepeatedBenchmark):
    """Updates per second of the emotion selector's training."""

    stage: ClassVar[str] = "bench-iql"
    module: ClassVar[str] = "iql"
    peers: tuple[Literal["torch"], ...] = setting(("torch",), operational=True)
    """Libraries to compare with."""
    num_steps: int = setting(1_000, ge=1)
    """Updates of a round."""
    peer_steps: int = 300
    """Updates of a peer's round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateBenchmark(RepeatedBenchmark):
    """Reply tokens per second of dialogues that are evaluated side by side."""

    stage: ClassVar[str] = "bench-generate"
    module: ClassVar[str] = "generation"
    peers: tuple[Literal["hf"], ...] = setting(("hf",), operational=True)
    """Libraries to compare with."""
    size: Literal["135m", "embedded"] = "135m"
    """A random checkpoint of SmolLM2-135M's shapes, or the student that ships."""
    dialogues: int = setting(20, ge=1)
    """Dialogues that are played at the same time."""
    turns: int = setting(8, ge=1)
    """Focal turns of each."""
    peer_turns: int = setting(2, ge=1)
    """How many of a round's turns a peer generates, from short to long ones evenly."""
    num_slots: int = setting(20, ge=1)
    """Requests that ours serves at once."""
    server_url: str | None = setting(None, operational=True)
    """A llama.cpp server whose figure stands under `extra` (benchmarks/completion_server.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingBenchmark(Config):
    """What packing costs and saves as samples and turns grow in number."""

    stage: ClassVar[str] = "bench-packing"
    module: ClassVar[str] = "packing"
    num_samples: int = 100_000
    """Size of the set whose packing is timed."""
    packing: Packing = "tree"
    """How samples share rows (see `train_sft.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBenchmark(RepeatedBenchmark):
    """Loading a checkpoint from files onto devices."""

    stage: ClassVar[str] = "bench-load"
    module: ClassVar[str] = "load"
    peers: tuple[Literal["transformers"], ...] = setting(("transformers",), operational=True)
    """Libraries to compare with."""
    model: str = "qwen2.5-7b"
    """The model whose shapes the checkpoint has (see `plan.py memory`)."""
    num_layers: int | None = None
    """All layers without it, or as many as disk and memory have room for."""
    dir: Path | None = None
    """Where to keep the checkpoint meanwhile; the system's temporary folder without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBenchmark(Config):
    """Memory of a training step on one device and on eight, compiled ahead of time."""

    stage: ClassVar[str] = "bench-memory"
    module: ClassVar[str] = "memory"
    model: str = "qwen2.5-7b"
    """The model whose shapes are compiled (see `plan.py memory`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GPUBenchmark(Config):
    """The first ten minutes on a GPU, part by part, each in a file of its own."""

    stage: ClassVar[str] = "bench-gpu"
    module: ClassVar[str] = "gpu"
    model: str = "qwen2.5-7b"
    """The model whose shapes are measured (see `plan.py memory`)."""
    parts: tuple[str, ...] = setting((), operational=True)
    """What parts' names begin with: matmul, sft-4096-tree, jpo, attention, decoding, iql; all of
    them without it."""
    dry_run: bool = False
    """All parts at a tiny size, on any device."""
    limit_s: float = setting(600.0, gt=0, operational=True)
    """Parts are not begun later than this."""
    dir: Path = setting(Path("benchmarks/results/gpu"), operational=True)
    """Where the parts' files are written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelledStepBenchmark(Config):
    """What a training step would take on a GPU, by a model: nothing is measured."""

    stage: ClassVar[str] = "bench-modelled-step"
    module: ClassVar[str] = "modelled_step"
    model: str = "qwen2.5-7b"
    """The model whose step it is (see `plan.py memory`)."""
    gpu: str = "h100"
    """The GPU (see `plan.py memory --topology`)."""
    row: int = setting(8192, ge=1)
    """Tokens of a row; 8,192 is what training on a device takes if left to itself."""
    kernels: int = setting(4_644, ge=0)
    """Kernels of a step, as `plan.py memory` counts them with --remat none."""
    remat_kernels: int = setting(6_989, ge=0)
    """Kernels of a step, as it counts them with --remat full."""


BENCHMARKS: dict[str, type[Config]] = {
    cls.stage.removeprefix("bench-"): cls
    for cls in (
        SweepBenchmark,
        SFTBenchmark,
        JPOBenchmark,
        MFUBenchmark,
        PackingBenchmark,
        IQLBenchmark,
        GenerateBenchmark,
        LoadBenchmark,
        MemoryBenchmark,
        GPUBenchmark,
        ModelledStepBenchmark,
    )
}
