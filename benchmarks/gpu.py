"""The first ten minutes on a GPU: `gpu`. Nothing of it is downloaded, and weights are random.

Parts run one after the other, the most telling ones first, and each writes its own file when it has
ended, so that a run that is cut off keeps what it has; a part that fails leaves its error there.
`--dry-run` goes through all of them at a tiny size on any device, with the kernels in JAX's
interpreter, so that the first minute on a GPU is not lost to a typo.

MFU is in the convention of NVIDIA's NeMo: arithmetic that the model needs over the data sheet's
peak; nothing that is computed again counts (`train.flops`), so that a step with `--remat full`,
which does a half more than it counts, can't go beyond two thirds.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import generation, iql
from benchmarks.configs import GPUBenchmark
from benchmarks.filled_rows import filled_step
from benchmarks.rounds import GB, machine
from benchmarks.timed_steps import TimedSteps
from benchmarks.workload import evaluation_dialogues
from emodistill.configs import AttentionForm, IQLConfig, Remat
from emodistill.errors import InputError
from emodistill.files import write_json
from emodistill.model import Engine, Qwen2, Qwen2Config, attention_forms, keep_programs
from emodistill.model.attention_forms import attention_form, planned_attention
from emodistill.model.config import read_architecture
from emodistill.seeding import jax_key, stream
from emodistill.train.flops import listed_peak, measured_peak, training_flops
from emodistill.train.q_learning import train_networks

NEMO = {"tokens_per_s": 14_110, "mfu": 0.428}
"""NeMo Automodel, Qwen2.5-7B, LoRA of rank 16, one H100, rows of 4,096, micro-batch 2: its
published figures."""

FORMS = ("pallas", "xla", "dense_mask")
"""How attention over a tree is computed; the last holds an array of all queries by all keys."""

Figures = dict[str, Any]


class BenchmarkSize(NamedTuple):
    """What is measured: the 7B model, or next to nothing."""

    architecture: Qwen2Config
    rows: tuple[int, ...]
    """Tokens of a row, the first for what is compared with NeMo."""
    shape: Mapping[str, int]
    """Lengths of the synthetic dialogues (see `workload`)."""
    num_scenarios: int
    slots: tuple[int, ...]
    iql_steps: int
    matrix: int
    repeats: int


def run(config: GPUBenchmark) -> None:
    """Run the parts that are asked for, write a file each, and print them as one JSON object.

    Raises:
      InputError: there is no GPU, and it is no dry run.
    """
    keep_programs()
    if config.dry_run:
        prepare_dry_run()
    else:
        check_device()
    bench = Parts(size_of(config))
    started, results = time.monotonic(), {}
    for name, part in bench.parts().items():
        if config.parts and not any(name.startswith(asked) for asked in config.parts):
            continue
        if not config.dry_run and time.monotonic() - started > config.limit_s:
            print(f"{name}: not begun, {config.limit_s:g} s are over", flush=True)
            continue
        results[name] = _measured(name, part, config)
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    print(json.dumps({"name": "gpu", "device": _device(), "machine": machine(), **results}))


def check_device() -> None:
    """Refuse to measure a 7B model on a CPU, which would take hours and say nothing."""
    if jax.default_backend() != "gpu":
        raise InputError(
            f"JAX sees no GPU here, but a {jax.default_backend().upper()}; install the JAX for "
            "CUDA (pip install -U 'jax[cuda13]'), or try the parts out with --dry-run."
        )


def prepare_dry_run() -> None:
    """Make this process run everything on any device, and soon."""
    attention_forms.IS_INTERPRETED = True
    # Programs run once or twice, and most of the time would go into making them faster.
    jax.config.update("jax_disable_most_optimizations", True)


def _measured(name: str, part: Callable[[], Figures], config: GPUBenchmark) -> Figures:
    """What `part` gives, also in a file of its own."""
    started = time.monotonic()
    try:
        figures = part()
    except Exception as error:  # whatever it is, the parts that follow may still run
        if config.dry_run:
            raise
        figures = {"error": f"{type(error).__name__}: {error}"[:500]}
    figures |= {"part_s": round(time.monotonic() - started, 1)}
    about = {"device": _device(), "machine": machine(), "jax": importlib.metadata.version("jax")}
    result = {"name": f"gpu-{name}", "is_dry_run": config.dry_run, **about, "figures": figures}
    config.dir.mkdir(parents=True, exist_ok=True)
    write_json(config.dir / f"{name}.json", result)
    return figures


def _device() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def size_of(config: GPUBenchmark) -> BenchmarkSize:
    whole = read_architecture(config.model)
    if not config.dry_run:
        return BenchmarkSize(whole, (4096, 8192, 16_384), {}, 20, (1, 16, 64), 2_000, 8192, 5)
    tiny = dataclasses.replace(
        whole,
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_positions=512,
    )
    shape = {"context_tokens": 20, "turn_tokens": 6, "cue_tokens": 3, "num_turns": 2}
    return BenchmarkSize(tiny, (128,), shape, 2, (1, 2), 10, 64, 1)


class Parts:
    """The parts, which share the model of random weights."""

    def __init__(self, size: BenchmarkSize) -> None:
        self.size = size

    def parts(self) -> dict[str, Callable[[], Figures]]:
        """By name, the most telling first; the steps on short rows in the order of the memory that
        they take, since JAX knows the peak of the whole process alone."""
        first, *longer = self.size.rows
        train, found = self.training, {}
        for stage in ("sft", "jpo"):
            found[f"{stage}-{first}-tree"] = functools.partial(train, stage, first, "tree")
        found[f"sft-{first}-sequence"] = functools.partial(train, "sft", first, "sequence")
        # What each of the two choices that a GPU has is worth.
        found[f"sft-{first}-tree-xla"] = functools.partial(
            train, "sft", first, "tree", attention="xla"
        )
        for remat in ("dots", "none"):
            found[f"sft-{first}-tree-{remat}"] = functools.partial(
                train, "sft", first, "tree", remat=remat
            )
        # A part each, because the dense mask of a long row may not fit into memory.
        for row, form in itertools.product(dict.fromkeys((first, self.size.rows[-1])), FORMS):
            found[f"attention-{row}-{form}"] = functools.partial(self.attention, row, form)
        found["decoding"] = self.decoding
        found["iql"] = self.iql
        for row in longer:
            for stage in ("jpo", "sft"):
                found[f"{stage}-{row}-tree"] = functools.partial(train, stage, row, "tree")
        for row in (*longer, first):
            for stage in ("sft", "jpo"):
                name = f"{stage}-{row}-sequence"
                found.setdefault(name, functools.partial(train, stage, row, "sequence"))
        return {"matmul": self.matmul, **found}

    def matmul(self) -> Figures:
        """The peak that MFU is over, and what is reached of it."""
        measured = measured_peak(self.size.matrix, self.dtype.name)
        return {"listed_flops": self.peak, "measured_flops": measured}

    @property
    def dtype(self) -> Any:
        return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")

    @functools.cached_property
    def peak(self) -> float:
        kind = jax.devices()[0].device_kind
        return listed_peak(kind) or measured_peak(self.size.matrix, self.dtype.name)

    def model(self, remat: Remat = "full", attention: AttentionForm | None = None) -> Qwen2:
        """Random weights, made anew each time: a model gets its LoRA only once, and two of them
        would not fit on a card."""

        def make() -> Qwen2:
            return Qwen2(
                self.size.architecture,
                key=jax_key(0, "bench"),
                dtype=self.dtype,
                remat=remat,
                attention=attention,
            )

        return made_on_device(make)

    def training(
        self,
        stage: Any,
        row: int,
        packing: Any,
        remat: Remat = "full",
        attention: AttentionForm | None = None,
    ) -> Figures:
        """A step of one micro-batch that is one row, filled as far as whole samples go."""
        step = filled_step(row, packing, self.size.num_scenarios, self.size.shape)
        steps = TimedSteps(self.model(remat, attention), stage)
        earlier_peak = _peak_bytes()
        first_s = steps.seconds([step])
        seconds = min(steps.seconds([step]) for _ in range(self.size.repeats))
        work = step.work
        # JPO's reference pass, which two epochs share, is a forward pass: a quarter of a step each.
        num_flops = training_flops(self.size.architecture, work)
        num_flops *= 1.25 if stage == "jpo" else 1
        peak = _peak_bytes()
        return {
            # Of tokens, not of positions: padding is no work.
            "tokens_per_s": work.num_tokens / seconds,
            "reply_tokens_per_s": work.num_reply_tokens / seconds,
            "mfu": num_flops / seconds / self.peak,
            "over_nemo": work.num_tokens / seconds / NEMO["tokens_per_s"],
            "row": work.num_positions,
            "samples": len(step.samples),
            "seconds": seconds,
            "first_s": first_s,
            "planned_gb": steps.planned_bytes(step) / GB,
            # JAX keeps the peak of the process, which says nothing of a step that stays below it.
            "peak_gb": peak / GB if peak > earlier_peak else None,
            "attention": steps.attention,
        }

    def attention(self, row: int, form: Any) -> Figures:
        """Forward and backward pass of one layer's attention on a tree.

        Raises:
          InputError: the form is `pallas`, which doesn't run on this GPU.
        """
        sizes, rng = self.size.architecture, stream(0, "bench", "attention")
        if form == "pallas":
            attention_form(form, None, sizes.head_dim, self.dtype)
        step = filled_step(row, "tree", self.size.num_scenarios, self.size.shape)
        ends_BT, T = jnp.asarray(step.batches[0].ends_BT), row
        heads = (sizes.num_heads, sizes.num_kv_heads, sizes.num_kv_heads, sizes.num_heads)
        q, k, v, grad = (
            jnp.asarray(rng.normal(size=(1, T, n, sizes.head_dim)), self.dtype) for n in heads
        )

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            if form != "dense_mask":
                attention, plan = planned_attention(form, ends_BT, None, sizes.num_heads)
                return attention(q, k, v, plan)
            positions = jnp.arange(T)
            is_seen_TS = positions[None] <= positions[:, None]
            is_seen_TS &= positions[:, None] < ends_BT[0][None]
            return jax.nn.dot_product_attention(q, k, v, mask=is_seen_TS[None, None], scale=1.0)

        @jax.jit
        def both(q: jax.Array, k: jax.Array, v: jax.Array, grad: jax.Array) -> Any:
            out, pull = jax.vjp(attend, q, k, v)
            return out, pull(grad)

        return {"ms": 1e3 * _best_of(self.size.repeats, lambda: both(q, k, v, grad))}

    def decoding(self) -> Figures:
        """Reply tokens a second at several numbers of slots, a dialogue each."""
        model, found = self.model(), {}
        for slots in self.size.slots:
            dialogues = evaluation_dialogues(
                num_dialogues=slots,
                vocab_size=min(10_000, self.size.architecture.vocab_size),
                **{"num_turns": 2, **self.size.shape},
            )
            longest = max(len(ids) + number for turns in dialogues for ids, number in turns)
            engine = functools.partial(Engine, model, num_slots=slots, max_tokens=longest)
            # A second turn takes up what the first one left, by a program of its own.
            generation.play(engine(), [turns[:2] for turns in dialogues[:2]])
            seconds = generation.play(engine(), dialogues)
            found[str(slots)] = sum(n for turns in dialogues for _, n in turns) / seconds
        return {"reply_tokens_per_s_by_slots": found}

    def iql(self) -> Figures:
        """Updates a second of one run, of the grid together, and of the PyTorch loop."""
        transitions = iql.random_transitions(2_000)
        settings = IQLConfig(num_steps=self.size.iql_steps)
        grid = [dataclasses.replace(settings, **point) for point in iql.GRID]
        figures: Figures = {}
        for name, together in (("one", [settings]), ("grid", grid)):
            train_networks(transitions, together)  # compiles
            started = time.perf_counter()
            train_networks(transitions, together)
            rate = len(together) * settings.num_steps / (time.perf_counter() - started)
            figures[f"{name}_updates_per_s"] = rate
        if importlib.util.find_spec("torch") is not None:
            from benchmarks.torch_iql import updates_per_second  # takes the extra `bench`

            figures["torch_updates_per_s"] = updates_per_second(
                transitions, settings, min(200, settings.num_steps)
            )
        return figures


def made_on_device(make: Callable[[], Qwen2]) -> Qwen2:
    """What `make` gives, by one program: array by array, what is drawn in float32 before
    the cast would stay alive."""
    graphdef = nnx.split(nnx.eval_shape(make))[0]
    return nnx.merge(graphdef, jax.jit(lambda: nnx.split(make())[1])())


def _peak_bytes() -> int:
    """The most device memory that this process has had in use; 0 where JAX doesn't say."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def _best_of(repeats: int, call: Callable[[], Any]) -> float:
    """The least time of a call after a first one, which compiles."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - started)
    return float(np.min(times))
